"""How much of a model's safety behaviour survives attacks and benign fine-tuning, and what an edit costs elsewhere."""
