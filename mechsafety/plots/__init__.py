"""Figures of every experiment, as functions of its tables; style, titles and panels that they share.

Every function, and every method ``plot`` and ``figures``, takes four options besides its own arguments: ``title``,
``width``, ``height`` (pixels) and ``colours``, as :class:`mechsafety.plots.look.Look` says. Public names stand in
``__init__.pyi``.

Example:
    >>> study = ms.load_run("runs/study")
    >>> figure = ms.plots.refusal_heatmap(study.tables["rates"])
    >>> figure.layout.title.text
    'Refusal rates by judge'
"""

from mechsafety.core.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)
