"""Safety-critical regions: what removing weights does."""
