"""Blind labelling of a run's responses by people: the sample, the store, the page, the export."""
