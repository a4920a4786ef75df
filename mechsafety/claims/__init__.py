"""Contrasts, claims and the sentence forms that say them: what a table shows, and nothing that it does not."""

from mechsafety.claims.claims import Claim, decide
from mechsafety.claims.contrasts import (
    Contrast,
    Control,
    Draw,
    Estimate,
    corrected_over,
    of_values,
    paired_binary,
    paired_control,
    paired_counts,
    unpaired_counts,
)
from mechsafety.claims.sentences import sentences

__all__ = [
    "Claim",
    "Contrast",
    "Control",
    "Draw",
    "Estimate",
    "corrected_over",
    "decide",
    "of_values",
    "paired_binary",
    "paired_control",
    "paired_counts",
    "sentences",
    "unpaired_counts",
]
