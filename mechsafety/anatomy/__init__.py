"""The anatomy of a fine-tuning: what the step from one model to another did to its activations and its weights.

Example:
    >>> changes = ms.anatomy.weight_changes(model, other)
    >>> len(changes) == len(ms.regions.linear_maps(model))
    True
"""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
