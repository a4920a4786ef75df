"""The ladder: which systems keep refusing when directions are removed."""
