"""One file for each judge: a one-line ``ABOUT``, what it ``TAKES``, and its class as ``JUDGE`` or ``create``."""
