"""Published counts of refusals, tested again."""
