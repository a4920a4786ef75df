"""What an evaluator of sentences knows: raw rows under the phrases that sentences use for them.

`Facts` holds rows, never results: per-item outcomes for shares, a table's own numbers for measured values. An adapter for another
experiment fills the same fields from that experiment's tables; `verdict_facts` and `value_facts` are the two that most need.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import pandas as pd

Items = Mapping[Hashable, bool | None]  # by item: it happened, it did not, or (None) nobody could read it
Labels = Mapping[Hashable, str]  # by item: its verdict
Key = tuple[str, ...]  # SUBJECT, MEASURE and, where several changes have both, what tells them apart

WORDS = {"refusal": "refused", "compliance": "answered", "degenerate": "degenerate", "unparsed": "not read"}
UNREAD = "unparsed"
STATES = ("original", "edited")


@dataclass(frozen=True)
class Value:
    """A number of a table with its 95 % interval; `unit` is empty for AUROC, cosine, kappa and their like.

    `plain` numbers have neither a unit nor a range of -1 to 1: scores, ranks, d'. `unread` items did not enter it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    plain: bool = False
    unread: int = 0


@dataclass(frozen=True, eq=False)  # one change is measured once (rules.py)
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
    """Values of a control's draws, and the largest p over the differences from them.

    `side` is to which side of all draws the changed state lies (0: of some), where not all of them are among the values.
    """

    draws: Sequence[Value]
    p: float | None
    side: int | None = None


@dataclass(frozen=True, eq=False)
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
    alpha: float = 0.05

    def __add__(self, other: "Facts") -> "Facts":
        """Both together; a phrase that both use is an error."""
        both = {}
        for name in (f.name for f in fields(self)):
            mine, others = getattr(self, name), getattr(other, name)
            if isinstance(mine, Mapping):
                assert not set(mine) & set(others), f"{name}: {set(mine) & set(others)} stand twice"
                both[name] = {**mine, **others}
            elif name == "families":
                both[name] = [*mine, *others]
        assert self.alpha == other.alpha, "two levels"
        return Facts(**both, alpha=self.alpha)

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


@dataclass(frozen=True)
class VerdictTable:
    """How a table of verdicts is read; `verdict_facts` explains the fields."""

    rows: pd.DataFrame
    measures: Mapping[str, tuple[str, str]]
    states: Mapping[str, str]
    controls: Mapping[str, str]
    over: str
    margin: float | None

    def of(self, phrase: str, system: str, judge: str) -> pd.DataFrame:
        """One system's rows of the prompts that a measure is about."""
        rows = self.rows
        return rows[
            (rows["judge"] == judge)
            & (rows["label"] == self.measures[phrase][0])
            & (rows["system"] == system)
        ]

    def change(self, of: pd.DataFrame, changed: pd.DataFrame, verdict: str) -> Change:
        """The change from the first arm's rows to the second's, with the draws beside the second."""
        first, second = self.states.values()
        draws = {
            phrase: [_labels(draw) for _, draw in changed[changed["arm"] == arm].groupby("draw")]
            for phrase, arm in self.controls.items()
            if (changed["arm"] == arm).any()
        }
        before, after = _labels(of[of["arm"] == first]), _labels(changed[changed["arm"] == second])
        names = tuple(self.states)
        return labelled_change(
            before, after, verdict, draws=draws, states=(names[0], names[1]), margin=self.margin
        )

    def subjects(self, judge: str) -> dict[str, str]:
        """What a sentence calls each system: by its name alone where the first judge reads it."""
        first = min(self.rows["judge"])
        return {s: s if judge == first else f"{s} by {judge}" for s in self.rows["system"].unique()}

    def systems(self, phrase: str, judge: str) -> Facts:
        """Changes and levels of all systems by one judge, in one family."""
        changes, levels, verdict = {}, {}, self.measures[phrase][1]
        for system, subject in self.subjects(judge).items():
            of = self.of(phrase, system, judge)
            changes[subject, phrase] = self.change(of, of, verdict)
            for state, arm in self.states.items():
                levels[f"{subject}, {state}", phrase] = hits(_labels(of[of["arm"] == arm]), verdict)
        extremes = {}
        if judge == min(self.rows["judge"]):
            for state in self.states:
                of_state = {s: levels[f"{s}, {state}", phrase] for s in self.subjects(judge)}
                extremes[f"All {self.over}, {state}", phrase, self.over] = of_state
        return Facts(changes, [Family(self.over, list(changes))], levels, extremes)

    def doses(self, phrase: str, judge: str, doses: str, column: str) -> Facts:
        """Changes at each dose, in a family for each system."""
        changes, families, series = {}, [], {}
        for system, subject in self.subjects(judge).items():
            of = self.of(phrase, system, judge)
            keys = {}
            for dose in of[column].dropna().unique():
                keys[str(dose)] = (f"{subject}, {dose}", phrase)
                changes[keys[str(dose)]] = self.change(of, of[of[column] == dose], self.measures[phrase][1])
            families.append(Family(doses, list(keys.values())))
            series[subject, phrase, doses] = keys
        return Facts(changes, families, series=series)


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
        Changes, levels and extremes by system (or series over doses), the same by judge, and each judge's labels.
    """
    table = VerdictTable(rows, measures, states or {s: s for s in STATES}, controls or {}, over, margin)
    judges = sorted(rows["judge"].unique())
    keys = ["system", "arm", "label", "id", *(column for column in ("draw", "dose") if column in rows)]
    answers = {
        judge: dict(zip(map(tuple, of[keys].astype(str).to_numpy()), of["verdict"], strict=True))
        for judge, of in rows.groupby("judge")
    }
    facts = Facts(answers=answers)
    for phrase in measures:
        for judge in judges:
            facts += table.doses(phrase, judge, *doses) if doses else table.systems(phrase, judge)
        by_judge = {
            (system, phrase): {judge: (table.subjects(judge)[system], phrase) for judge in judges}
            for system in rows["system"].unique()
        }
        facts += Facts(judges={} if doses else by_judge)
    return facts


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
    found = {str(row["name"]): _value(row, "value", "low", "high", unit) for row in rows.to_dict("records")}
    levels = {(name, measure): value for name, value in found.items() if value is not None}
    return Facts(levels=levels, extremes={(subject, measure, things): found} if things else {})


def change_facts(
    rows: pd.DataFrame,
    measure: str,
    *,
    unit: str = "",
    test: str | None = None,
    over: str | None = None,
    **more,
) -> Facts:
    """Facts of a table of changes of a real value, one row per subject; NaN is unknown.

    Args:
        rows: Columns name, before, after and difference, each with `_low` and `_high` where measured; p.
        measure: MEASURE phrase.
        unit: Unit as sentences write it; empty for AUROC, cosine, kappa and their like.
        test: What p comes from.
        over: What the rows are called as one family; without it p is not corrected.
        more: Other fields of `RealChange`, the same for all rows.
    """
    changes: dict[Key, Change | RealChange] = {}
    for row in rows.to_dict("records"):
        before, after, difference = (
            _value(row, of, f"{of}_low", f"{of}_high", unit) for of in ("before", "after", "difference")
        )
        p = None if pd.isna(row.get("p")) else float(row["p"])
        changes[str(row["name"]), measure] = RealChange(
            before, after, difference, None if p is None else test, p, **more
        )
    return Facts(changes, [Family(over, list(changes))] if over else [])


def _value(row: Mapping[Hashable, float], of: str, low: str, high: str, unit: str) -> Value | None:
    bounds = [None if pd.isna(row.get(bound)) else float(row[bound]) for bound in (low, high)]
    return None if pd.isna(row.get(of)) else Value(float(row[of]), bounds[0], bounds[1], unit)
