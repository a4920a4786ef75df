"""What a user runs: one folder an experiment."""
