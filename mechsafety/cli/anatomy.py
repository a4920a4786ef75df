"""Anatomy of a fine-tuning: what changed between a base and a tuned model."""
