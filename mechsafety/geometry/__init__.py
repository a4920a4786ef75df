"""Similarity of directions and of activations across layers and models."""
