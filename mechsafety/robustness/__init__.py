"""How much of a model's safety behaviour survives attacks, and what an edit costs elsewhere."""

from mechsafety.robustness.attacks import ATTACK_COLUMNS, attack_table
from mechsafety.robustness.attempts import Attempts, Estimated
from mechsafety.robustness.benign import Choice, Passage, benign_choices, benign_passages
from mechsafety.robustness.decoding import decoding
from mechsafety.robustness.outcomes import OUTCOME_COLUMNS, Outcomes, Tally, outcomes
from mechsafety.robustness.suffix import SearchCost, Suffixes, find_suffixes, suffix_attack
from mechsafety.robustness.tradeoff import SweetSpot, against_control, sweet_spot
from mechsafety.robustness.utility import (
    UTILITY_COLUMNS,
    BaseDistributions,
    Utility,
    base_distributions,
    utility,
)

__all__ = [
    "ATTACK_COLUMNS",
    "OUTCOME_COLUMNS",
    "UTILITY_COLUMNS",
    "Attempts",
    "BaseDistributions",
    "Choice",
    "Estimated",
    "Outcomes",
    "Passage",
    "SearchCost",
    "Suffixes",
    "SweetSpot",
    "Tally",
    "Utility",
    "against_control",
    "attack_table",
    "base_distributions",
    "benign_choices",
    "benign_passages",
    "decoding",
    "find_suffixes",
    "outcomes",
    "suffix_attack",
    "sweet_spot",
    "utility",
]
