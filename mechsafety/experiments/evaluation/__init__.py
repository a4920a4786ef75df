"""lm-eval's tasks on a model under an edit; the run itself is in ``integrations.harness_runs``."""
