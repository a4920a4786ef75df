"""A finished run's page and figures, whichever command made the run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.base import EXPERIMENTS, load_run
from mechsafety.experiments.study.page import study_run_figures, write_report
from mechsafety.pages.page import FORMATS, FigureFormat, render_page, write_figures
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go


_FOLDERS = {
    "sweep": "sweep",
    "compare": "comparison",
    "audit": "audit",
    "selfjudge": "selfjudgement",
}
"""By kind, the folder whose ``page`` gives ``figures_of(run)`` and ``page_of(run)``; imported when needed."""


def run_kind(run: RunFolder) -> str:
    """``study``, ``sweep``, ``compare``, ``audit``, ``selfjudge``, ...: what stands in the run's configuration."""
    return str(run.manifest["config"].get("kind", "study"))


def run_figures(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of a finished run, by file name."""
    return _of_kind(run)[0](run)


def save_figures(run: RunFolder, *, form: FigureFormat, out: Path | None = None) -> list[Path]:
    """Write every figure of ``run`` into ``out`` (default: the run's ``figures``)."""
    if form not in FORMATS:
        raise MechsafetyError(f"figure format {form!r} is not one of {', '.join(FORMATS)}")
    return write_figures(run_figures(run), out if out is not None else run.path / "figures", form=form)


def publish(run: RunFolder) -> Path:
    """Write every figure of ``run`` as HTML, and its page, whose path is returned."""
    if run_kind(run) in EXPERIMENTS:
        return load_run(run.path).publish()
    save_figures(run, form="html")
    return write_run_page(run)


def write_run_page(run: RunFolder) -> Path:
    """Write the run's ``report.html``."""
    return _of_kind(run)[1](run)


def _of_kind(run: RunFolder) -> tuple[Any, Any]:
    kind = run_kind(run)
    if kind in EXPERIMENTS:
        return lambda run: load_run(run.path).figures(), lambda run: load_run(run.path).report()
    if kind == "study":
        return study_run_figures, write_report
    if kind in _FOLDERS:
        pages = importlib.import_module(f"mechsafety.experiments.{_FOLDERS[kind]}.page")
        return pages.figures_of, lambda run: run.write_text(
            "report.html", render_page(pages.page_of(run), run.manifest)
        )
    raise MechsafetyError(f"run {str(run.path)!r} is of kind {kind!r}, which has no figures or report")
