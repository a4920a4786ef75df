"""Edits of the residual stream: as values, on and off a model, in its weights, as files and as expressions."""
