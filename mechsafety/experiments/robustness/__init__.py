"""Attack success and utility of a system."""
