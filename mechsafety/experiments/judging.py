"""Another judge for a finished run: it reads the answers that the run keeps, and nothing is generated again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import pandas as pd
import plotly.graph_objects as go

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import Progress
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.judges.asking import AskingJudge
from mechsafety.judges.outcomes import Tally
from mechsafety.judges.registry import (
    judge_responses,
    judge_sources,
    load_judge,
    require_complete,
    shared_cache,
    single_judges,
)
from mechsafety.pages.page import Block
from mechsafety.plots.style import styled, whiskers
from mechsafety.runs.folder import RunFolder, open_run

if TYPE_CHECKING:
    from mechsafety.experiments.result import Result

VERDICTS, RATES = "added_verdicts.parquet", "added_judges.csv"
FIGURE = "added-judges"


def add_judges(
    result: Result,
    judges: Sequence[str],
    *,
    keys: Sequence[str],
    say: Progress,
    allow_other_versions: bool = False,
) -> None:
    """Write the verdicts of ``judges`` on the answers of ``result``, and their rates in every state of the model.

    Raises :class:`MechsafetyError` for a run without answers, and for a judge that has read them.
    """
    answers = result.responses()
    known = verdicts_of(result.run)
    require_new(judges, known["judge"], result)
    with reopened(result.run, judges, allow_other_versions=allow_other_versions) as run:
        tables = [known]
        for name in judges:
            say(f"judge {name}: {len(answers)} answers")
            tables.append(_verdicts(load_judge(name), name, answers, keys))
        table = pd.concat([t for t in tables if len(t)], ignore_index=True)
        run.write_table(table, VERDICTS)
        run.write_table(rates(table, keys), RATES)


def answers_of(result: Result) -> list[Response]:
    """The answers of a run that a judge added to it reads, those under random directions too."""
    tables = [result.responses()]
    if "random_responses" in result.tables:
        tables.append(result.tables["random_responses"])
    return [
        Response(id=f"{which}-{number}", prompt=str(prompt), text=str(text))
        for which, table in enumerate(tables)
        for number, (prompt, text) in enumerate(zip(table["prompt"], table["response"], strict=True))
    ]


def require_new(judges: Sequence[str], known: Iterable[str], result: Result) -> None:
    """Raise :class:`MechsafetyError` for a judge that has read the answers of ``result``."""
    seen = set(known)
    if again := [name for name in judges if name in seen]:
        raise MechsafetyError(f"judge {again[0]!r} has read the answers of run {str(result.path)!r} already")


def reopened(
    run: RunFolder,
    judges: Sequence[str],
    *,
    allow_other_versions: bool,
    loading: Mapping[str, Any] | None = None,
) -> AbstractContextManager[RunFolder]:
    """The run, opened for writing and bound to what ``judges`` are made from; ``loading`` is how models are loaded."""
    made_from = [judge_sources(judge, loading=loading) for judge in judges]
    sources = {name: one for several in made_from for name, one in several.items()}
    return open_run(
        run.path,
        config=run.manifest["config"],
        sources=sources,
        allow_other_versions=allow_other_versions,
    )


def verdicts_of(run: RunFolder) -> pd.DataFrame:
    """The verdicts of the judges that were added; empty where there are none."""
    if not (run.path / VERDICTS).is_file():
        return pd.DataFrame(columns=["judge"])
    return run.read_table(VERDICTS)


def ask(judge: Judge, responses: Sequence[Response]) -> list[Verdict]:
    """Verdicts; those of judges that ask a model are kept in the user's cache, so that nothing is asked twice.

    Raises StoppedError where an endpoint gave no answer: the run is not complete, and the same command goes on.
    """
    found: list[Verdict] = []
    for error in ask_together([judge], responses, lambda _, verdicts: found.extend(verdicts)).values():
        raise error
    return found


def ask_together(
    judges: Sequence[Judge], responses: Sequence[Response], take: Callable[[str, Sequence[Verdict]], None]
) -> dict[str, MechsafetyError]:
    """The same of several judges: those behind addresses of different hosts are asked side by side.

    ``take`` gets the name of each judge that is complete with its verdicts. Returns what stopped the others by name.
    """
    with shared_cache(judges) as cache:
        every = judge_responses(responses, judges, cache=cache, partial=True)
    stopped: dict[str, MechsafetyError] = {}
    for number, judge in enumerate(judges):
        verdicts = every[number * len(responses) : (number + 1) * len(responses)]
        try:
            for one in single_judges([judge]):
                if isinstance(one, AskingJudge) and one.stopped is not None:
                    raise one.stopped
            require_complete(verdicts)
        except MechsafetyError as error:
            stopped[judge.name] = error
        else:
            take(judge.name, verdicts)
    return stopped


def verdict_columns(verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """Verdicts as columns of a table."""
    return {
        "verdict": [v.label for v in verdicts],
        "tags": [" ".join(v.tags) for v in verdicts],
        "detail": [json.dumps(dict(v.detail), sort_keys=True) for v in verdicts],
    }


def rates(verdicts: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """One row per state, label and judge: the shares of each verdict with 95 % Wilson intervals.

    Shares are of the ``n`` answers that the judge could read; ``unparsed`` counts the others.
    """
    columns = [*keys, "label", "judge"]
    rows = []
    for key, group in verdicts.groupby(columns, sort=False, dropna=False):
        tally = Tally.of(list(group["verdict"]))
        shares = tally.row(refused="refusal", complied="compliance", degenerate="degenerate")
        state = dict(zip(columns, key, strict=True))
        rows.append({**state, "n": tally.n, "unparsed": tally.unparsed, **shares})
    return pd.DataFrame(rows)


def figure(table: pd.DataFrame, keys: Sequence[str]) -> go.Figure:
    """Refusal rates by judge that was added: one mark per state, judge and label."""
    drawn = go.Figure()
    named = table[list(keys)].astype(object).fillna("").astype(str)  # an empty text is NaN in a CSV file
    states = pd.Series([" · ".join(filter(None, row)) for row in named.to_numpy()], index=table.index)
    for (judge, label), rows in table.groupby(["judge", "label"], sort=False):
        drawn.add_scatter(
            x=rows["refusal"],
            y=states[rows.index],
            mode="markers",
            name=f"{judge}, {label}",
            error_x=whiskers(rows["refusal"], rows["refusal_low"], rows["refusal_high"]),
        )
    drawn.update_xaxes(title="refusal rate", range=[-0.03, 1.03], tickformat=".0%")
    drawn.update_yaxes(autorange="reversed", automargin=True)
    height = 200 + 24 * states.nunique()
    return styled(
        drawn, "Refusal rate by added judge", "Bars: 95 % Wilson intervals.", width=900, height=height
    )


def block(table: pd.DataFrame, drawn: go.Figure) -> Block:
    """The part of a page about judges that were added."""
    return Block(
        name=FIGURE,
        title="Judges added after the run",
        text="They read the answers that the run keeps; nothing was generated again.",
        figures=[drawn],
        table=table,
    )


def _verdicts(judge: Judge, name: str, answers: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    # Prompts repeat between states: two answers are distinguished here by their place.
    responses = [
        Response(id=str(number), prompt=prompt, text=text)
        for number, (prompt, text) in enumerate(zip(answers["prompt"], answers["response"], strict=True))
    ]
    found = ask(judge, responses)
    return answers[[*keys, "id", "label"]].assign(judge=name, **verdict_columns(found))
