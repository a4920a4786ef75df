"""A layer sweep as a run."""
