"""The synthetic lab: published claims on models with known answers."""
