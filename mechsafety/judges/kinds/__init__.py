"""One file for each judge: ``create(argument, *, models=None)`` and a one-line ``ABOUT``."""
