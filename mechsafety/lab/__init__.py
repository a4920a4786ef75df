"""The synthetic world: its language, its networks, and what is trained and measured in it.

Example:
    >>> run = ms.lab.read_lab("runs/lab")
    >>> sorted(run.tables)
    ['cases', 'controls', 'thresholds']
"""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
