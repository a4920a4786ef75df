"""A run of any experiment on disk: its tables, figures, findings and page."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from mechsafety.claims.shared import RunTables
from mechsafety.core.arguments import as_path, shown
from mechsafety.core.boundary import checked_methods
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import Progress
from mechsafety.experiments import judging
from mechsafety.experiments.records import mixed_templates, template_lines
from mechsafety.pages.page import FigureFormat, Page, write_figures
from mechsafety.plots.look import Look, drawn, looking_at_all, wanted
from mechsafety.runs.folder import read_run

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from mechsafety.experiments.base import Experiment

REPORT = "report.html"
RESPONSES = "responses.parquet"
_SHOWN_ROWS = 12


@checked_methods
class Result:
    """A run of any experiment on disk: its tables, figures, findings and page.

    :func:`load_run` opens one. Tables are read when they are first asked for.

    Example::

        run = load_run("runs/regions")
        run.to_frame("tradeoff")
        run.figures()["region-tradeoff"].show()
    """

    def __init__(self, path: str | Path, experiment: type[Experiment[Any]]) -> None:
        self.run = read_run(as_path(path))
        self.experiment = experiment

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def manifest(self) -> dict[str, Any]:
        return self.run.manifest

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as the manifest has it."""
        return self.manifest["config"]

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables by name. Raises :class:`MechsafetyError` for a run that has none yet."""
        found = self.experiment.read_tables(self.run)
        if not found:
            raise MechsafetyError(f"run {str(self.path)!r} is not finished: give the same command again")
        return RunTables(found)

    def to_frame(self, name: str | None = None) -> pd.DataFrame:
        """The table ``name``, by default the first. Raises :class:`MechsafetyError` for one that the run lacks."""
        name = next(iter(self.tables)) if name is None else name
        if name not in self.tables:
            raise MechsafetyError(
                f"run {str(self.path)!r} has no table {name!r}: it has {', '.join(self.tables)}"
            )
        return self.tables[name]

    @property
    def short_tables(self) -> dict[str, pd.DataFrame]:
        """The tables but for those with one row per answer."""
        return {name: table for name, table in self.tables.items() if name not in self.experiment.long}

    @cached_property
    def _drawn(self) -> dict[str, go.Figure]:
        return self._draw()

    def _draw(self) -> dict[str, go.Figure]:
        added = self._added
        drawn = self.experiment.figures(self)
        return drawn if added is None else drawn | {judging.FIGURE: judging.figure(*added)}

    @cached_property
    def _added(self) -> tuple[pd.DataFrame, tuple[str, ...]] | None:
        """The rates of judges that were added to the run, and what distinguishes its states."""
        if not (self.path / judging.RATES).is_file():
            return None
        return self.run.read_table(judging.RATES), self.experiment.answer_keys

    def figures(self, **look: Unpack[Look]) -> dict[str, go.Figure]:
        """Every figure, by file name, with the options of :class:`~mechsafety.plots.look.Look`.

        Drawn once where no option is given.
        """
        if not look:
            return dict(self._drawn)
        with looking_at_all(**look):
            return self._draw()

    @drawn
    def plot(self, **_look: Unpack[Look]) -> go.Figure:
        """The first figure."""
        if not wanted():
            return next(iter(self._drawn.values()))
        with looking_at_all():
            return next(iter(self._draw().values()))

    @property
    def findings(self) -> list[str]:
        """What was found, in sentences."""
        return [*self.experiment.findings(self), *mixed_templates(self.manifest)]

    def save_figures(self, *, form: FigureFormat = "html", out: str | Path | None = None) -> list[Path]:
        """Write every figure into ``out`` (default: the run's ``figures``), as ``form``: html, png, svg or pdf.

        Returns the paths.
        """
        return write_figures(
            self.figures(), as_path(out) if out is not None else self.path / "figures", form=form
        )

    def responses(self) -> pd.DataFrame:
        """Every answer that the run keeps. Raises :class:`MechsafetyError` for a run that generates none."""
        if not (self.path / RESPONSES).is_file():
            raise MechsafetyError(f"run {str(self.path)!r} keeps no answers ({RESPONSES} is missing)")
        return self.run.read_table(RESPONSES)

    def rates_by_judge(self) -> pd.DataFrame:
        """Shares of each verdict by state, label and judge, of the judges that were added (:meth:`judge`)."""
        return self.experiment.rates_by_judge(self)

    def judge(
        self, *judges: Any, say: Progress = lambda _: None, allow_other_versions: bool = False
    ) -> Result:
        """Let ``judges``, named one by one, read the run's answers; tables, figures and page are written again.

        Returns the run, opened anew. Raises :class:`MechsafetyError` for a run without answers, a judge that has read
        them already, and whatever loading a judge raises.
        """
        if not judges:
            raise MechsafetyError(
                'no judges are given: name them one by one, run.judge("rules", "degeneracy")'
            )
        if strange := [one for one in judges if not isinstance(one, str)]:
            raise MechsafetyError(
                f"judge {shown(strange[0])}: a run keeps verdicts of judges that have names; a function reads its "
                "answers, ms.judge(run.responses().drop(columns='id'), function)"
            )
        self.experiment.with_judges(self, judges, say, allow_other_versions=allow_other_versions)
        found = type(self)(self.path, self.experiment)
        found.publish()
        return found

    def page(self) -> Page:
        """The page before it is HTML."""
        found, added = self.experiment.page(self, self.figures()), self._added
        found = replace(found, how=[*found.how, *template_lines(self.manifest)])
        if added is None:
            return found
        block = judging.block(added[0], self.figures()[judging.FIGURE])
        return replace(found, blocks=[*found.blocks, block])

    @property
    def report_path(self) -> Path:
        """Where the page stands once it is written."""
        return self.path / REPORT

    def report(self) -> Path:
        """Write the page, ``report.html``. Returns its path."""
        return self.run.write_text(REPORT, self.experiment.html(self))

    def publish(self) -> Path:
        """Write every figure as HTML, and the page. Returns its path."""
        self.save_figures()
        return self.report()

    def open(self) -> None:
        """Show the page in a browser."""
        path = self.path / REPORT
        webbrowser.open((path if path.is_file() else self.report()).resolve().as_uri())

    def __eq__(self, other: object) -> bool:
        """Whether both are the run in one folder."""
        return isinstance(other, Result) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, kind={self.experiment.kind!r})"

    def _repr_html_(self) -> str:
        found = "".join(f"<li>{escape(line)}</li>" for line in self.findings)
        shown = "".join(
            f"<h4>{escape(name)}</h4>{table.head(_SHOWN_ROWS).round(3).to_html(index=False, border=0)}"
            for name, table in self.short_tables.items()
        )
        return f"<b>{escape(self.experiment.kind.capitalize())}</b> in {escape(str(self.path))}<ul>{found}</ul>{shown}"
