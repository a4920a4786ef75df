"""Models as judges of their own answers."""
