"""Judges: a response in, a verdict out. One file a judge; see :mod:`mechsafety.judges.registry`."""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
