"""Refusals that survive the removal of more and more directions, over the rungs of safety training."""
