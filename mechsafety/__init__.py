"""mechsafety: where a language model keeps its safety behaviour, and how much of it survives an edit.

Names load when they are first used, so that ``import mechsafety`` and ``mechsafety --help`` are quick. They stand in
``__init__.pyi``.

Example:
    >>> with ms.edited(model, ms.Ablate(direction)):
    ...     answers = ms.generate(model, prompts.report, max_new_tokens=4, progress=False)
    >>> len(answers) == len(prompts.report)
    True
    >>> ms.__version__.count(".")
    2
"""

import os

from mechsafety.core.lazy import public_names

# Before torch loads OpenMP: where another process has a core, threads that spin while they wait for the last one made
# generation on two cores 9 to 18 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__getattr__, _names, __all__ = public_names(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return [*_names(), "__version__"]
