"""The anatomy of a fine-tuning."""
