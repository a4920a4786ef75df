"""What every page shares: the template, the script, figures as fragments and as files."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import jinja2
import pandas as pd

from mechsafety.core.arguments import as_path, shown
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.wording import percent_cell, points

if TYPE_CHECKING:
    import plotly.graph_objects as go

FigureFormat = Literal["html", "png", "pdf", "svg"]
_NAMED = 10
FORMATS: tuple[FigureFormat, ...] = ("html", "png", "pdf", "svg")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One part of a page: a heading, a line of explanation, what the figures show, figures, a table behind them."""

    name: str
    title: str
    text: str = ""
    claims: Sequence[str] = ()
    figures: Sequence[go.Figure] = ()
    table: pd.DataFrame | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """A run's page before it is HTML: what was found first, then the blocks, then how it was made."""

    title: str
    subtitle: str
    findings: Sequence[str]
    blocks: Sequence[Block]
    how: Sequence[str] = field(default=())
    headings: Sequence[str] = ()
    """Of each finding the heading that it stands under (:func:`under_headings`)."""
    subjects: Sequence[str] = ()
    """Without headings, what the findings are grouped by, each under its own; without any they are one list."""
    others: str = "Other findings"
    """The heading of findings on none of the subjects."""


def render_page(
    page: Page, manifest: Mapping[str, Any], *, fed: str = "fed", form: str = "page.html", **more: Any
) -> str:
    """One file, no network, every text escaped.

    ``fed`` is the section of the manifest that has what models were fed, ``more`` what the template ``form`` shows
    besides the page.
    """
    about = {name: manifest.get(name, {}) for name in ("config", "versions", "timings")}
    return template(form).render(
        title=page.title,
        subtitle=page.subtitle,
        findings=grouped_findings(page),
        blocks=rendered_blocks(page.blocks),
        how=page.how,
        fed=fed_parts(manifest.get(fed, {})),
        sessions=manifest.get("sessions", []),
        repeated=manifest.get("repeated_prompts", 0),
        script=plotly_script(),
        **about,
        **more,
    )


@dataclass(frozen=True, kw_only=True)
class Said:
    """A finding as it stands on a page; ``follows``: on the same subject as the one before it."""

    text: str
    follows: bool


class Headed(TypedDict):
    """Two fields of a page."""

    findings: list[str]
    headings: list[str]


def under_headings(found: Mapping[str, Sequence[str]], words: Mapping[str, Mapping[str, Any]]) -> Headed:
    """The ``findings`` and ``headings`` of a page from sentences by block; ``words`` are as for :func:`page_blocks`."""
    pairs = [(text, words[name]["title"]) for name, texts in found.items() for text in texts]
    return {"findings": [text for text, _ in pairs], "headings": [title for _, title in pairs]}


def grouped_findings(page: Page) -> list[tuple[str, list[Said]]]:
    """The findings under their headings, in the order in which these come first."""
    if not page.headings:
        return by_subject(page.findings, page.subjects, others=page.others)
    groups: dict[str, list[str]] = {}
    for text, heading in zip(page.findings, page.headings, strict=True):
        groups.setdefault(heading, []).append(text)
    return [(heading, in_order(texts)) for heading, texts in groups.items()]


def in_order(texts: Sequence[str]) -> list[Said]:
    """Sentences of one list."""
    return [
        Said(text=text, follows=place > 0 and _subject(text) == _subject(texts[place - 1]))
        for place, text in enumerate(texts)
    ]


def by_subject(
    findings: Sequence[str], subjects: Sequence[str], *, others: str
) -> list[tuple[str, list[Said]]]:
    """The findings under the subject that each begins with, in the order in which these come first."""
    longest = sorted(subjects, key=len, reverse=True)
    groups: dict[str, list[str]] = {}
    for text in findings:
        begins = (s for s in longest if text.startswith((f"{s}:", f"{s},", f"{s} ")))
        groups.setdefault(next(begins, others if subjects else ""), []).append(text)
    return [(subject, in_order(texts)) for subject, texts in groups.items()]


def _subject(text: str) -> str:
    return text.partition(": ")[0]


def page_blocks(
    words: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, go.Figure],
    *,
    added: Mapping[str, Sequence[str]] = MappingProxyType({}),
    drawn: bool = False,
) -> list[Block]:
    """The blocks of a page whose tables have rows; with ``drawn`` those that have the figures they name.

    ``words`` are the section ``blocks`` of an experiment's ``page.toml``: by name a title, a text, the beginnings of
    the figures' names, and the table (by default the one of that name). ``added`` are the sentences of each.
    """
    blocks = []
    for name, block in words.items():
        table = tables.get(block.get("table", name))
        starts = block.get("figures", ())
        shown = [figure for start in starts for key, figure in figures.items() if key.startswith(start)]
        if shown if drawn and starts else table is not None and len(table):
            said = {"title": block.get("title", ""), "text": block.get("text", "").strip()}
            said |= {"claims": list(added.get(name, ()))}
            blocks.append(Block(name=name.replace("_", "-"), figures=shown, table=table, **said))
    return blocks


def setting_lines(words: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
    """A line for each setting that ``words`` has a form for and ``config`` a value."""
    return [text.format(config[key]) for key, text in words.items() if config.get(key) is not None]


def fed_parts(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What ``fed.html`` reports about each model's prompts, from the records of :func:`fed_record`."""
    return [
        {"model": model, "rendered": record["rendered"], "sentences": _prompt_sentences(record)}
        for model, record in records.items()
        if "rendered" in record
    ]


def _prompt_sentences(record: Mapping[str, Any]) -> list[str]:
    cut, control = record.get("truncated_prompts", {}), record.get("control_tokens", {})
    sentences: list[str] = []
    if cut.get("n"):
        more = " and others" if cut["n"] > _NAMED else ""
        sentences.append(
            f"Cut at their end to fit in the model's window: {cut['n']} ({', '.join(cut['ids'][:_NAMED])}{more})."
        )
    if control.get("n_prompts"):
        done = "broken by a blank" if control["escaped"] else "left as they are"
        sentences.append(
            f"With control tokens of the model in their text, which were {done}: {control['n_prompts']} (the first is "
            f"{control['first']})."
        )
    return sentences


def rendered_blocks(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Blocks as ``block.html`` reads them."""
    return [
        {
            "name": block.name,
            "title": block.title,
            "text": block.text,
            "claims": in_order(block.claims),
            "figures": [
                fragment(figure, f"{place}-{block.name}-{number}")
                for number, figure in enumerate(block.figures)
            ],
            "rows": rounded(block.table) if block.table is not None else [],
        }
        for place, block in enumerate(blocks)
    ]


def fragment(figure: go.Figure, name: str) -> str:
    """A figure as HTML for a page that holds the script, under a name that no other figure of the page has.

    The name stands in place of plotly's random one, so that the same run gives the same page, byte for byte.
    """
    return figure.to_html(
        full_html=False, include_plotlyjs=False, config={"displaylogo": False}, div_id=f"figure-{name}"
    )


def plotly_script() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = partial(percent_cell, missing="–")
    environment.filters["points"] = lambda value: "–" if value != value else points(value)
    return environment.get_template(name)


def rounded(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for people: three digits, more where these would say 0, 1 or 0.05; a dash where there is nothing."""
    return [
        {
            k: ("–" if v is pd.NA or v != v else _rounded(v) if isinstance(v, float) else v)
            for k, v in row.items()
        }
        for row in table.to_dict(orient="records")
    ]


def _rounded(value: float) -> float:
    """0, 1, -1 and 0.05, which decides, only where exact but for what arithmetic rounds."""
    found = (round(value, digits) for digits in range(3, 9))
    return next((v for v in found if v not in (0.0, 1.0, -1.0, 0.05)), float(f"{value:.2g}"))


def write_figures(figures: Mapping[str, go.Figure], folder: str | Path, *, form: FigureFormat) -> list[Path]:
    """Write figures into ``folder`` by name. HTML needs nothing; png, pdf and svg a Chromium for kaleido."""
    folder = as_path(folder)
    if form not in FORMATS:
        raise MechsafetyError(f"figure format {form!r} is not one of {', '.join(FORMATS)}")
    if form != "html":
        require_chromium()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MechsafetyError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from None
    paths = {name: folder / f"{name}.{form}" for name in figures}
    if form == "html":
        return [save_figure(figure, paths[name]) for name, figure in figures.items()]
    _write_static(list(figures.values()), list(paths.values()), form)
    return list(paths.values())


def _write_static(figures: Sequence[go.Figure], paths: Sequence[Path], form: str) -> None:
    """Write pictures, all by one browser: it takes seconds to begin."""
    import plotly.io as pio

    if not figures:
        return
    sizes: dict[str, Any] = {
        side: [figure.layout[side] for figure in figures] for side in ("width", "height")
    }
    try:
        for path in paths:
            path.unlink(missing_ok=True)
        pio.write_images(list(figures), list(paths), scale=_scale(form), **sizes)
    except OSError as error:
        raise MechsafetyError(
            f"cannot write figures into {str(paths[0].parent)!r}: {error.strerror or error}"
        ) from None
    # Plotly goes on without what it cannot draw.
    if lost := [path.name for path in paths if not path.is_file()]:
        raise MechsafetyError(f"Chromium could not draw {', '.join(lost)}")


def _scale(form: str) -> int:
    return 2 if form == "png" else 1


def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as HTML, PNG, PDF or SVG, which the end of the name says; all but HTML need a Chromium.

    HTML needs ``plotly.min.js``, which is written beside it.

    Returns the path. Raises :class:`MechsafetyError` for another format, a folder that does not exist, and where no
    Chromium is found.

    Arguments:
        figure: A figure of plotly.

    Example:
        >>> study = ms.load_run("runs/study")
        >>> ms.save_figure(ms.plots.refusal_heatmap(study.tables["rates"]), "rates.html").name
        'rates.html'
    """
    path = as_path(path)
    form = path.suffix.removeprefix(".").lower()
    if not hasattr(figure, "write_html"):
        raise MechsafetyError(f"figure is {shown(figure)}; a plotly figure is needed, as ms.plots makes them")
    if form not in FORMATS:
        raise MechsafetyError(f"figure {str(path)!r}: the name is to end in .{', .'.join(FORMATS)}")
    if not path.parent.is_dir():
        raise MechsafetyError(f"figure {str(path)!r}: the folder {str(path.parent)!r} does not exist")
    if form != "html":
        require_chromium()
    try:
        if form == "html":
            name = re.sub(r"[^\w+.-]", "-", path.stem)
            figure.write_html(path, include_plotlyjs="directory", full_html=True, div_id=f"figure-{name}")
        else:
            figure.write_image(path, scale=_scale(form))
    except OSError as error:
        raise MechsafetyError(f"cannot write the figure {str(path)!r}: {error.strerror or error}") from None
    return path


def find_chromium() -> str | None:
    """The browser that draws static figures: ``$BROWSER_PATH``, or one on the PATH."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if Path(named).exists() else None
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def require_chromium() -> str:
    found = find_chromium()
    if found is None or importlib.util.find_spec("kaleido") is None:
        raise MechsafetyError(
            "png, pdf and svg figures need a Chromium or Chrome: apt-get install chromium (or set BROWSER_PATH); "
            f"{way('--format html', 'a name that ends in .html')} needs none"
        )
    return found
