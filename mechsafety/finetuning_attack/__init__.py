"""Benign fine-tuning as an attack on refusals, and weights that are frozen in it or rewound after it."""

from mechsafety.finetuning_attack.freezing import MODES, Mode, freezing_table
from mechsafety.finetuning_attack.training import Finetuned, FinetuneRecipe, benign_examples, drawn, finetuned

__all__ = [
    "MODES",
    "FinetuneRecipe",
    "Finetuned",
    "Mode",
    "benign_examples",
    "drawn",
    "finetuned",
    "freezing_table",
]
