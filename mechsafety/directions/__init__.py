"""Residual-stream caches, estimators, directions."""
