"""mechsafety: where a language model keeps its safety behaviour, and how much of it survives an edit.

Names load when they are first used, so that ``import mechsafety`` and ``mechsafety --help`` are quick. They stand in
``__init__.pyi``.
"""

import importlib
import os
from types import FunctionType
from typing import Any

import lazy_loader

# Before torch loads OpenMP: where another process has a core, threads that spin while they wait for the last one made
# generation on two cores 9 to 18 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_FIGURES = {
    "anatomy_figures": "anatomy",
    "figures": "study",
    "judge_figures": "agreement",
    "lab_figures": "lab",
    "ladder_figures": "ladder",
    "region_figures": "regions",
    "sweep_figures": "sweep",
}
"""Modules of figures, by the name of their experiment."""

_load, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += [*_FIGURES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _FIGURES:
        return importlib.import_module(f"mechsafety.experiments.{_FIGURES[name]}.figures")
    found = _load(name)
    if not isinstance(found, FunctionType):
        return found
    from mechsafety.public import public

    globals()[name] = public(found, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
