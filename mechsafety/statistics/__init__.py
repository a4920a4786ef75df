"""Rates, intervals, paired tests, agreement and corrected prevalence. Knows no model; takes tables of verdicts.

Missing is NaN, never 0: every rate carries its denominator and what could not be read.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
