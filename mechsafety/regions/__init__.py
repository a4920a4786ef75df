"""Safety-critical regions: which weights of a model its safety behaviour needs, and what removing them does.

:mod:`maps` finds the linear maps of every block; :mod:`attribution` scores their weights in one streaming pass;
:mod:`pruning` and :mod:`subspaces` choose what to remove; :mod:`removal` takes it out and puts it back.

Example:
    >>> maps = ms.regions.linear_maps(model)
    >>> region = ms.regions.set_difference(maps, safety, utility, method="snip", p=20, q=5)
    >>> with ms.regions.removed(model, region):
    ...     outcomes = ms.regions.measure_outcomes(model, prompts.report, max_new_tokens=4)
    >>> outcomes.harmful.n == len(prompts.report.harmful)
    True
"""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
