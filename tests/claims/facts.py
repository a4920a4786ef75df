"""What an evaluator of sentences knows: raw rows under the phrases that sentences use for them.

`Facts` holds rows, never results: per-item outcomes for shares, a table's own numbers for measured values. An adapter for another
experiment fills the same fields from that experiment's tables; `verdict_facts` and `value_facts` are the two that most need.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import pandas as pd

Items = Mapping[Hashable, bool | None]  # by item: it happened, it did not, or (None) nobody could read it
Labels = Mapping[Hashable, str]  # by item: its verdict
Key = tuple[str, str]  # SUBJECT, MEASURE

WORDS = {"refusal": "refused", "compliance": "answered", "degenerate": "degenerate", "unparsed": "not read"}
UNREAD = "unparsed"
STATES = ("original", "edited")


@dataclass(frozen=True)
class Value:
    """A number of a table with its 95 % interval; `unit` is empty for AUROC, cosine, kappa and their like."""

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Change:
    """A share in two states, item by item; a control's draws are items in the changed state's place."""

    before: Items
    after: Items
    states: tuple[str, str] = STATES
    paired: bool = True
    margin: float | None = None
    draws: Mapping[str, Sequence[Items]] = field(default_factory=dict)
    labels: tuple[Labels, Labels] | None = None
    why: str | None = None


@dataclass(frozen=True)
class RealControl:
    """Values of a control's draws, and the largest p over the differences from them."""

    draws: Sequence[Value]
    p: float | None


@dataclass(frozen=True)
class RealChange:
    """A measured value in two states as its table has it: both values, their difference, test and p."""

    before: Value | None
    after: Value | None
    difference: Value | None = None
    test: str | None = None
    p: float | None = None
    states: tuple[str, str] = STATES
    margin: float | None = None
    draws: Mapping[str, RealControl] = field(default_factory=dict)
    why: str | None = None


@dataclass(frozen=True)
class Family:
    """Changes over which p is corrected, and what a sentence calls them (`systems`)."""

    over: str
    keys: Sequence[Key]


@dataclass(frozen=True)
class Count:
    """What of several things happened (None: unknown), and how many are expected by chance."""

    outcomes: Sequence[bool | None]
    expected: float | None = None


@dataclass(frozen=True)
class Held:
    """Whether a claim was met in each repetition (None: not measurable), and the same for its control or its result as text."""

    outcomes: Sequence[bool | None]
    over: str = "seeds"
    control: "Held | str | None" = None


@dataclass(frozen=True)
class Facts:
    """Rows by phrase: what the sentences of one page may be about."""

    changes: Mapping[Key, Change | RealChange] = field(default_factory=dict)
    families: Sequence[Family] = ()
    levels: Mapping[Key, Items | Value] = field(default_factory=dict)
    extremes: Mapping[tuple[str, str, str], Mapping[str, Items | Value | None]] = field(default_factory=dict)
    counts: Mapping[Key, Count] = field(default_factory=dict)
    series: Mapping[tuple[str, str, str], Mapping[str, Key]] = field(default_factory=dict)
    judges: Mapping[Key, Mapping[str, Key]] = field(default_factory=dict)
    answers: Mapping[str, Labels] = field(default_factory=dict)
    held: Mapping[str, Held] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: "Facts") -> "Facts":
        """Both together; a phrase that both use is an error."""
        both = {}
        for name in (f.name for f in fields(self)):
            mine, others = getattr(self, name), getattr(other, name)
            if isinstance(mine, Mapping):
                assert not set(mine) & set(others), f"{name}: {set(mine) & set(others)} stand twice"
                both[name] = {**mine, **others}
            else:
                both[name] = [*mine, *others]
        return Facts(**both)

    def subjects(self) -> set[str]:
        """Every phrase that can stand before the colon."""
        keyed = [*self.changes, *self.levels, *self.extremes, *self.counts, *self.series, *self.judges]
        return {key[0] for key in keyed} | set(self.missing) | set(self.held)


def hits(labels: Labels, verdict: str) -> dict[Hashable, bool | None]:
    """Which items have a verdict; None where nothing could be read."""
    return {item: None if label == UNREAD else label == verdict for item, label in labels.items()}


def labelled_change(before: Labels, after: Labels, verdict: str = "refusal", *, draws=None, **more) -> Change:
    """The change of one verdict between two states, with draws of controls as verdicts by name."""
    read = {name: [hits(draw, verdict) for draw in each] for name, each in (draws or {}).items()}
    return Change(hits(before, verdict), hits(after, verdict), draws=read, labels=(before, after), **more)


def _labels(rows: pd.DataFrame) -> dict[Hashable, str]:
    return dict(zip(rows["id"], rows["verdict"], strict=True))


def _draws(rows: pd.DataFrame, controls: Mapping[str, str]) -> dict[str, list[Labels]]:
    found = {}
    for phrase, arm in controls.items():
        of_arm = rows[rows["arm"] == arm]
        if len(of_arm):
            found[phrase] = [_labels(each) for _, each in of_arm.groupby("draw")]
    return found


def verdict_facts(
    rows: pd.DataFrame,
    measures: Mapping[str, tuple[str, str]],
    *,
    states: Mapping[str, str] | None = None,
    controls: Mapping[str, str] | None = None,
    doses: tuple[str, str] | None = None,
    over: str = "systems",
    margin: float | None = None,
) -> Facts:
    """Facts of a table of verdicts.

    Args:
        rows: Columns system, arm, label, id, judge, verdict; draw for controls; a dose's column where `doses` names one.
        measures: MEASURE phrase to (label of the prompts, verdict), as `refusals of harmful prompts` to (harmful, refusal).
        states: STATE phrase to arm, the unchanged one first.
        controls: CONTROL phrase to the arm that holds its draws.
        doses: What sentences call the doses, and the column of the changed arm's rows that names them in order.
        over: What the members of a family are called.
        margin: Bound of equality that was stated beforehand, as a share.

    Returns:
        Changes, levels and extremes by system, the same by judge, series over doses, and each judge's labels.
    """
    states = states or {name: name for name in STATES}
    (first, second), (unchanged, changed) = tuple(states), tuple(states.values())
    judges = sorted(rows["judge"].unique())
    changes, families, levels, series, by_judge, extremes = {}, [], {}, {}, {}, {}

    def change(of: pd.DataFrame, verdict: str, more: pd.DataFrame) -> Change:
        before, after = of[of["arm"] == unchanged], more[more["arm"] == changed]
        found = _draws(of, controls or {})
        return labelled_change(
            _labels(before), _labels(after), verdict, draws=found, states=(first, second), margin=margin
        )

    for phrase, (label, verdict) in measures.items():
        for judge in judges:
            of_judge = rows[(rows["judge"] == judge) & (rows["label"] == label)]
            named = {s: s if judge == judges[0] else f"{s}\0{judge}" for s in rows["system"].unique()}
            for system, subject in named.items():
                of = of_judge[of_judge["system"] == system]
                if doses is None:
                    changes[subject, phrase] = change(of, verdict, of)
                    by_judge.setdefault((system, phrase), {})[judge] = (subject, phrase)
                    for state, arm in states.items():
                        levels[f"{subject}, {state}", phrase] = hits(_labels(of[of["arm"] == arm]), verdict)
                    continue
                column = doses[1]
                found = {}
                for dose in of.loc[of["arm"] == changed, column].unique():
                    key = (f"{subject}, {dose}", phrase)
                    changes[key] = change(of, verdict, of[of[column] == dose])
                    found[str(dose)] = key
                series[subject, phrase, doses[0]] = found
                families.append(Family(doses[0], list(found.values())))
            if doses is None:
                families.append(Family(over, [(subject, phrase) for subject in named.values()]))
                if judge == judges[0]:
                    for state in states:
                        extremes[f"All {over}, {state}", phrase, over] = {
                            s: levels[f"{s}, {state}", phrase] for s in named
                        }
    keys = ["system", "arm", "label", "id", *(["draw"] if "draw" in rows else [])]
    answers = {
        judge: dict(zip(map(tuple, of[keys].astype(str).to_numpy()), of["verdict"], strict=True))
        for judge, of in rows.groupby("judge")
    }
    return Facts(changes, families, levels, extremes, series=series, judges=by_judge, answers=answers)


def value_facts(
    rows: pd.DataFrame, measure: str, *, unit: str = "", things: str | None = None, subject: str = "All"
) -> Facts:
    """Facts of a table of real values: columns name, value and, where measured, low and high; NaN is unknown.

    Args:
        rows: One row per thing.
        measure: MEASURE phrase.
        unit: Unit as sentences write it; empty for AUROC, cosine, kappa and their like.
        things: What the rows are called in a sentence on extremes; without it there are levels only.
        subject: SUBJECT of the sentence on extremes.
    """
    found: dict[str, Value | None] = {}
    for row in rows.to_dict("records"):
        low, high = (None if pd.isna(row.get(bound)) else float(row[bound]) for bound in ("low", "high"))
        found[str(row["name"])] = (
            None if pd.isna(row["value"]) else Value(float(row["value"]), low, high, unit)
        )
    levels = {(name, measure): value for name, value in found.items() if value is not None}
    return Facts(levels=levels, extremes={(subject, measure, things): found} if things else {})
