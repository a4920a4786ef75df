"""Rates, intervals, paired tests, agreement and corrected prevalence. Knows no model; takes tables of verdicts.

Missing is NaN, never 0: every rate carries its denominator and what could not be read.

Example:
    >>> set(ms.statistics.VERDICT_COLUMNS) <= set(table.columns)
    True
    >>> list(ms.statistics.refusal_rates(table).columns) == ms.statistics.RATE_COLUMNS
    True
    >>> list(ms.statistics.paired_tests(table).columns) == ms.statistics.PAIRED_COLUMNS
    True
    >>> list(ms.statistics.agreement(table, resamples=100).columns) == ms.statistics.AGREEMENT_COLUMNS
    True
    >>> list(ms.statistics.judge_effects(table).columns) == ms.statistics.EFFECT_COLUMNS
    True
    >>> list(ms.statistics.arm_errors(table, people).columns) == ms.statistics.ARM_ERROR_COLUMNS
    True
    >>> errors = ms.statistics.against_reference(table, people, seed=0, resamples=100)
    >>> list(errors.columns) == ms.statistics.REFERENCE_COLUMNS
    True
    >>> rules = table[table["judge"] == "rules"]
    >>> edited, draw = (rules[rules["arm"] == arm] for arm in reversed(ms.statistics.ARMS))
    >>> tests = ms.statistics.control_tests(edited, draw.assign(draw=0))
    >>> tuple(tests.columns) == ms.statistics.CONTROL_TEST_COLUMNS
    True
    >>> ms.statistics.PROMPT_LABELS
    ('harmful', 'harmless')
    >>> list(ms.statistics.MAPPINGS)
    ['refusal', 'coherent only', 'not compliance', 'unparsed refuses', 'unparsed complies', 'strict', 'lenient']
    >>> "degeneracy" in ms.statistics.ABSTAINING_JUDGES
    True
"""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__, missing=True)
