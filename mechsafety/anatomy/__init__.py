"""The anatomy of a fine-tuning: what the step from one model to another did to its activations and its weights."""
