"""A finished run's page and figures, whichever command made the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechsafety.errors import MechsafetyError
from mechsafety.pages import FORMATS, FigureFormat, render_page, write_figures
from mechsafety.report import study_run_figures, write_report
from mechsafety.runs import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go


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


def write_run_page(run: RunFolder) -> Path:
    """Write the run's ``report.html``."""
    return _of_kind(run)[1](run)


def _of_kind(run: RunFolder) -> tuple[Any, Any]:
    kind = run_kind(run)
    if kind == "study":
        return study_run_figures, write_report
    if kind == "sweep":
        from mechsafety import sweep_pages

        return sweep_pages.figures_of, _page_writer(sweep_pages.page_of)
    if kind == "compare":
        from mechsafety import checkpoint_pages

        return checkpoint_pages.figures_of, _page_writer(checkpoint_pages.page_of)
    if kind == "audit":
        from mechsafety import audit_pages

        return audit_pages.figures_of, _page_writer(audit_pages.page_of)
    if kind == "selfjudge":
        from mechsafety import selfjudge_pages

        return selfjudge_pages.figures_of, _page_writer(selfjudge_pages.page_of)
    raise MechsafetyError(f"run {str(run.path)!r} is of kind {kind!r}, which has no figures or report")


def _page_writer(page_of: Any) -> Any:
    return lambda run: run.write_text("report.html", render_page(page_of(run), run.manifest))
