"""Rates, intervals, paired tests, agreement and corrected prevalence. Knows no model; takes tables of verdicts.

Missing is NaN, never 0: every rate carries its denominator and what could not be read.
"""

from mechsafety.statistics.agreement import (
    AGREEMENT_COLUMNS,
    agreement,
    gwet_ac1,
    kappa,
    krippendorff_alpha,
    panel_agreement,
)
from mechsafety.statistics.auroc import auroc_interval
from mechsafety.statistics.paired import PAIRED_COLUMNS, mcnemar, minimum_detectable_drop, paired_tests
from mechsafety.statistics.rates import RATE_COLUMNS, Interval, bounds, refusal_rates, wilson
from mechsafety.statistics.reference import REFERENCE_COLUMNS, against_reference
from mechsafety.statistics.resampling import Estimate
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS, PROMPT_LABELS, VERDICT_COLUMNS

__all__ = [
    "ABSTAINING_JUDGES",
    "AGREEMENT_COLUMNS",
    "ARMS",
    "PAIRED_COLUMNS",
    "PROMPT_LABELS",
    "RATE_COLUMNS",
    "REFERENCE_COLUMNS",
    "VERDICT_COLUMNS",
    "Estimate",
    "Interval",
    "against_reference",
    "agreement",
    "auroc_interval",
    "bounds",
    "gwet_ac1",
    "kappa",
    "krippendorff_alpha",
    "mcnemar",
    "minimum_detectable_drop",
    "paired_tests",
    "panel_agreement",
    "refusal_rates",
    "wilson",
]
