"""A run folder: its manifest, tables, parts and journals, and what it was made from."""
