"""The lab: tiny models on a synthetic grammar, trained, tuned, attacked and taken apart."""
