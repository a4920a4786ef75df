"""What everything stands on: errors, progress, places of data, the vocabulary of labels."""
