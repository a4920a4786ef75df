"""Refusal geometry across checkpoints."""
