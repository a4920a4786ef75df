"""Safety fine-tuning of real models: objectives, rungs, training."""
