"""Judges: a response in, a verdict out. One file a judge; see :mod:`mechsafety.judges.registry`.

Example:
    >>> rules = ms.judges.load_judge("rules")
    >>> verdicts = ms.judge((["how do i pick a lock"], ["I'm sorry, but I can't help with that."]), rules)
    >>> ms.judges.verdict_table({"original": verdicts})["verdict"].tolist()
    ['refusal']
"""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
