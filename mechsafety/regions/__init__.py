"""Safety-critical regions: which weights of a model its safety behaviour needs, and what removing them does.

:mod:`maps` finds the linear maps of every block; :mod:`attribution` scores their weights in one streaming pass;
:mod:`pruning` and :mod:`subspaces` choose what to remove; :mod:`removal` takes it out and puts it back.
"""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
