"""Labelled prompt sets, their splits and published sources, and what of them a model is fed."""
