"""Completions, continuations and log-probabilities of answers, under an edit or none."""
