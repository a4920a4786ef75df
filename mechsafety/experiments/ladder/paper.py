"""A ladder against Agnihotri et al. 2025 (arXiv 2510.02768), and against other ladders: where they agree.

Two systems are said to lose differently only where the 95 % intervals of their falls do not meet; systems that refuse
too little to be judged, and rungs that a ladder lacks, are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mechsafety.core.wording import counted, listed, spelt_p
from mechsafety.experiments.ladder.verdicts import ALPHA, Ablated, SystemVerdict, rung_of
from mechsafety.statistics import ARMS
from mechsafety.statistics.counts import difference_interval, paired_bounds

SYSTEMS: Mapping[str, str] = {
    "raw": "Raw Data",
    "score0": "Score 0",
    "rephrase": "Score 0 + Rephrase",
    "metatags": "Score 0 + Rephrase + Metatags",
    "refusals": "Score 0 + Rephrase + Refusals",
    "all": "Safety Oracle",
    "smollm2": "SmolLM2",
}
"""The published systems that a ladder's rungs stand for, by the rung's name."""

_REPOSITORIES = {
    "allrawfoldersbaseline": "raw",
    "score0only": "score0",
    "rephrasedfrombeginning600b": "rephrase",
    "rephrasedfrombeginningmetadata": "metatags",
    "rephrase123withmildrefusal45600b": "refusals",
    "mildref45metadata5p": "all",
}
"""The published checkpoints' repositories, by a part of their names."""
_JUDGE = "ChatGPT5"  # the paper's primary one


def paper_rung(system: str) -> str:
    """The rung of a system; plain SmolLM2 and the published checkpoints by their repositories' names."""
    rung = rung_of(system)
    known = next((name for part, name in _REPOSITORIES.items() if part in rung), None)
    return known or ("smollm2" if rung.startswith("smollm2") else rung)


def paper_table(verdicts: Sequence[SystemVerdict], published: pd.DataFrame) -> pd.DataFrame:
    """Each rung that the paper has too, a row each: its counts there and here.

    ``published`` holds system, arm, label, judge, refused, n. The published p of the fall is bounded only
    (:func:`paired_bounds`): counts do not say which prompts two arms share. Here: the removal of as few
    directions as were tried, Holm's p.
    """
    mine = published[(published["label"] == "harmful") & (published["judge"] == _JUDGE)]
    counts = {(row.system, row.arm): (int(row.refused), int(row.n)) for row in mine.itertuples()}
    rows = []
    for verdict in verdicts:
        name = SYSTEMS.get(paper_rung(verdict.system))
        if name is None or not {(name, arm) for arm in ARMS} <= counts.keys():
            continue
        (before, n), (after, m) = (counts[name, arm] for arm in ARMS)
        low, high = difference_interval(after, m, before, n)
        best, worst = paired_bounds(before, after, n)
        row = {"system": verdict.name, "published as": name, "published unedited": f"{before} of {n}"}
        row |= {"published abliterated": f"{after} of {m}", "published fall": (before / n) - (after / m)}
        row |= {"low": low, "high": high, "p at least": best, "p at most": worst}
        if verdict.states:
            state = verdict.states[0]
            row |= {
                "here unedited": verdict.before.value,
                f"here without {state.directions}": state.refused.value,
            }
            row |= {"here fall": state.fall.drop, "here low": state.fall.low, "here high": state.fall.high}
            row |= {"here p": state.fall.p, "here": verdict.outcome}
        rows.append(row)
    return pd.DataFrame(rows)


def paper_findings(verdicts: Sequence[SystemVerdict], published: pd.DataFrame) -> list[str]:
    """Whether the ladder agrees with the paper's headline, with its table's largest losses, and rung by rung.

    Empty where the ladder has no rung of the paper's.
    """
    rungs = {name: v for v in verdicts if (name := paper_rung(v.system)) in SYSTEMS}
    if not rungs:
        return []
    claims = {
        "refusals": "The paper's headline, that refusal-only training is the most fragile",
        "rephrase": "The paper's table, in which of its own ladder Score 0 + Rephrase loses most (49 to 34 of 50)",
        "smollm2": "The paper's table, in which plain SmolLM2 loses more than the ladder (35 to 15 of 50)",
    }
    sentences = [
        f"{claim}: {_claim(rungs[rung], [v for name, v in rungs.items() if name != rung])}"
        for rung, claim in claims.items()
        if rung in rungs
    ]
    return [*sentences, *_rung_by_rung(rungs, paper_table(verdicts, published))]


def most_fragile(verdicts: Sequence[SystemVerdict]) -> list[str]:
    """Who loses most with the first directions removed, and whose fall is not told apart from it."""
    found = {v.name: v.states[0] for v in verdicts if v.outcome != "unjudged" and v.states}
    if len(found) < 2:
        return []
    name, most = max(found.items(), key=lambda item: item[1].fall.drop)
    removed = counted(most.directions, "direction")
    if not most.fall.significant:
        return [f"Without {removed}, no system's loss is told apart from none."]
    same = [other for other, state in found.items() if other != name and state.fall.high >= most.fall.low]
    end = f"not told apart from it: {listed(same)}" if same else "every other system loses less"
    return [f"Without {removed}, {name} loses most refusals ({most.fall}); {end}."]


def joint_findings(ladders: Mapping[str, Sequence[SystemVerdict]]) -> list[str]:
    """On which rungs two or more ladders agree: those judged in each. Empty for one ladder."""
    if len(ladders) < 2:
        return []
    judged = {
        name: {paper_rung(v.system): v for v in verdicts if v.outcome != "unjudged"}
        for name, verdicts in ladders.items()
    }
    first, *others = judged.values()
    shared = [rung for rung in first if all(rung in other for other in others)]
    if not shared:
        return [f"No rung is judged in each of the ladders {listed(list(ladders))}."]
    same = [rung for rung in shared if len({found[rung].outcome for found in judged.values()}) == 1]
    parts = []
    if same:
        # The same outcome, perhaps after other numbers of directions: each is named, in the ladders' order.
        became = {rung: dict.fromkeys(_became(found[rung]) for found in judged.values()) for rung in same}
        parts.append("the same becomes of " + listed([f"{r} ({', '.join(became[r])})" for r in same]))
    parts += [
        f"{rung} differs ({'; '.join(f'{name}: {_became(found[rung])}' for name, found in judged.items())})"
        for rung in shared
        if rung not in same
    ]
    where = f"both {listed(list(ladders))}" if len(ladders) == 2 else "every ladder"
    return [f"Of {counted(len(shared), 'rung')} judged in {where}: {'; '.join(parts)}."]


def _claim(verdict: SystemVerdict, others: Sequence[SystemVerdict]) -> str:
    """Whether ``verdict``'s system loses more than the paper's other rungs, by intervals that do not meet."""
    if verdict.outcome == "unjudged":
        return f"not to be checked here, {verdict.name} refuses too little unedited ({verdict.before.value:.0%})."
    state = verdict.states[0]
    pairs = [(v, v.states[0].fall) for v in others if v.outcome != "unjudged"]
    unjudged = [v.name for v in others if v.outcome == "unjudged"]
    rest = f" Not judged: {listed(unjudged)}." if unjudged else ""
    if not pairs:
        return f"not to be checked here, no other rung of the paper refuses enough to be judged.{rest}"
    loss = f"without {counted(state.directions, 'direction')} {verdict.name} loses {_loss(state)}"
    less = [v.name for v, fall in pairs if fall.high < state.fall.low]
    more = [f"{v.name} ({_loss(v.states[0])})" for v, fall in pairs if fall.low > state.fall.high]
    same = [v.name for v, fall in pairs if fall.high >= state.fall.low and fall.low <= state.fall.high]
    if not state.fall.significant:
        return f"this ladder does not bear it out; {loss}, no loss told apart from none.{rest}"
    if more:
        return f"this ladder does not agree; {loss}, and more is lost by {listed(more)}.{rest}"
    if same:
        apart = f", more than {listed(less)}, but" if less else ","
        return f"neither borne out nor refuted here; {loss}{apart} not told apart from {listed(same)}.{rest}"
    return f"this ladder agrees; {loss}, more than {listed(less)}.{rest}"


def _loss(state: Ablated) -> str:
    """A fall, and what keeps it from being one of safety alone."""
    if not state.fall.significant:
        return f"{state.fall}"
    but = ["mostly to degenerate text"] if state.broken_text else []
    if state.as_random:
        but.append("not told apart from random directions")
    return f"{state.fall}{', ' if but else ''}{listed(but) if but else ''}"


def _rung_by_rung(rungs: Mapping[str, SystemVerdict], table: pd.DataFrame) -> list[str]:
    """Which rungs lose refusals in the paper's counts, here, in both, or in neither."""
    groups: dict[tuple[bool, bool], list[str]] = {}
    by_name = {v.name: v for v in rungs.values() if v.outcome != "unjudged"}
    for row in table.to_dict(orient="records"):
        verdict = by_name.get(row["system"])
        if verdict is not None:
            there, here = row["p at most"] < ALPHA, verdict.states[0].fall.significant
            counts = f"{row['published unedited'].split()[0]} to {row['published abliterated']}"
            p = "" if here == there else f"; here {spelt_p(verdict.states[0].fall.p)}"
            groups.setdefault((there, here), []).append(f"{verdict.name} ({counts} there{p})")
    words = {
        (True, True): "lost in both",
        (False, True): "lost here, not told apart from chance there",
        (True, False): "lost there, not told apart from chance here",
        (False, False): "told apart from chance in neither",
    }
    parts = [f"{text}: {listed(groups[key])}" for key, text in words.items() if key in groups]
    return (
        [f"Refusals rung by rung, with the fewest directions removed: {'; '.join(parts)}."] if parts else []
    )


def _became(verdict: SystemVerdict) -> str:
    if verdict.outcome == "breaks" and verdict.state is not None:
        return f"breaks at {verdict.state.directions}"
    return verdict.outcome
