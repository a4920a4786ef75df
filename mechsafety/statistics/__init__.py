"""Rates, intervals, paired tests, agreement and corrected prevalence. Knows no model; takes tables of verdicts.

Missing is NaN, never 0: every rate carries its denominator and what could not be read.
"""

from mechsafety.core.lazy import public_names

# Not checked: these are used within the package too, and take NaN for what is missing.
__getattr__, __dir__, __all__ = public_names(__name__, __file__, checked=False)
