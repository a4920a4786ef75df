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
from mechsafety.statistics.judge_effects import (
    EFFECT_COLUMNS,
    MAPPINGS,
    effect_flips,
    judge_edit_interaction,
    judge_effects,
    paired_difference,
    ranking_agreement,
    sign_change_p,
)
from mechsafety.statistics.paired import PAIRED_COLUMNS, holm, mcnemar, minimum_detectable_drop, paired_tests
from mechsafety.statistics.planning import (
    labels_for_correction,
    labels_for_kappa,
    labels_for_rate,
    pairs_for_drop,
)
from mechsafety.statistics.prevalence import Corrected, corrected_rates, prediction_powered, rogan_gladen
from mechsafety.statistics.rates import RATE_COLUMNS, Interval, bounds, refusal_rates, wilson
from mechsafety.statistics.reference import REFERENCE_COLUMNS, against_reference, error_change
from mechsafety.statistics.resampling import Estimate
from mechsafety.statistics.tables import ABSTAINING_JUDGES, ARMS, PROMPT_LABELS, VERDICT_COLUMNS

__all__ = [
    "ABSTAINING_JUDGES",
    "AGREEMENT_COLUMNS",
    "ARMS",
    "EFFECT_COLUMNS",
    "MAPPINGS",
    "PAIRED_COLUMNS",
    "PROMPT_LABELS",
    "RATE_COLUMNS",
    "REFERENCE_COLUMNS",
    "VERDICT_COLUMNS",
    "Corrected",
    "Estimate",
    "Interval",
    "against_reference",
    "agreement",
    "auroc_interval",
    "bounds",
    "corrected_rates",
    "effect_flips",
    "error_change",
    "gwet_ac1",
    "holm",
    "judge_edit_interaction",
    "judge_effects",
    "kappa",
    "krippendorff_alpha",
    "labels_for_correction",
    "labels_for_kappa",
    "labels_for_rate",
    "mcnemar",
    "minimum_detectable_drop",
    "paired_difference",
    "paired_tests",
    "pairs_for_drop",
    "panel_agreement",
    "prediction_powered",
    "ranking_agreement",
    "refusal_rates",
    "rogan_gladen",
    "sign_change_p",
    "wilson",
]
