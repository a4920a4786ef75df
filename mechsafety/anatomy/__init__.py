"""The anatomy of a fine-tuning: what the step from one model to another did to its activations and its weights."""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
