"""Models: loading, chat rendering and batches, one forward pass, hooks."""
