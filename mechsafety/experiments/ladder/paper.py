"""A ladder against Agnihotri et al. 2025 (arXiv 2510.02768), and against other ladders, rung by rung."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from mechsafety.claims import Claim, Estimate, corrected_over, decide
from mechsafety.claims.contrasts import UNKNOWN
from mechsafety.claims.draws import differing_changes
from mechsafety.claims.sentences import Named, counted, extremes
from mechsafety.claims.shared import once
from mechsafety.claims.tables import claim_table
from mechsafety.core.wording import counted as number_of
from mechsafety.experiments.ladder.contrasts import (
    Claims,
    ladder_claims,
    ladder_systems,
    of_system,
    rung_names,
    rung_of,
    verdicts_by_state,
)
from mechsafety.statistics.counts import difference_interval, paired_bounds
from mechsafety.statistics.tables import ARMS

Tables = Mapping[str, pd.DataFrame]
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


PUBLISHED: Mapping[str, str] = {
    "refusals": "The paper's headline, that refusal-only training is the most fragile",
    "rephrase": "The paper's table, in which of its own ladder Score 0 + Rephrase loses most (49 to 34 of 50)",
    "smollm2": "The paper's table, in which plain SmolLM2 loses more than the ladder (35 to 15 of 50)",
}
"""What the paper says of a rung, by the rung's name."""


def paper_table(tables: Tables, published: pd.DataFrame) -> pd.DataFrame:
    """Each rung that the paper has too, a row each: its counts there and here.

    ``published`` holds system, arm, label, judge, refused, n. The published p of the fall is bounded only
    (:func:`paired_bounds`): counts do not say which prompts two arms share. Here: the removal of as few
    directions as were tried, Holm's p.
    """
    mine = published[(published["label"] == "harmful") & (published["judge"] == _JUDGE)]
    counts = {(row.system, row.arm): (int(row.refused), int(row.n)) for row in mine.itertuples()}
    names, claims = rung_names(ladder_systems(tables)), ladder_claims(tables)
    rows = []
    for system, short in names.items():
        name = SYSTEMS.get(paper_rung(system))
        if name is None or not {(name, arm) for arm in ARMS} <= counts.keys():
            continue
        (before, n), (after, m) = (counts[name, arm] for arm in ARMS)
        low, high = difference_interval(after, m, before, n)
        best, worst = paired_bounds(before, after, n)
        row = {"system": short, "published as": name, "published unedited": f"{before} of {n}"}
        row |= {"published abliterated": f"{after} of {m}", "published fall": (before / n) - (after / m)}
        row |= {"low": low, "high": high, "p at least": best, "p at most": worst}
        if found := of_system(claims, system):
            directions, claim = next(iter(found.items()))
            told = claim_table([claim]).iloc[0]
            row |= {"here unedited": told["before"], f"here without {directions}": told["after"]}
            row |= {"here change": told["change"], "here p": told["p"], "here": told["claim"]}
            row |= {"here beyond random": told["beyond"]}
        rows.append(row)
    return pd.DataFrame(rows)


def net_losses(tables: Tables) -> list[str]:
    """Which system loses the largest and which the smallest share of refusals without the fewest directions."""
    claims = ladder_claims(tables)
    if len({system for system, _ in claims}) < 2:
        return []
    fewest = min(k for _, k in claims)
    names = rung_names(ladder_systems(tables))
    losses = [
        Named(
            name=name,
            estimate=Estimate(value=0.0 - 100 * d.value, low=-100 * d.high, high=-100 * d.low),
        )
        for system, name in names.items()
        for claim in [claims.get((system, fewest))]
        for d in [claim.contrast.difference if claim else UNKNOWN]
    ]
    subject = f"Without {number_of(fewest, 'direction')}"
    return [extremes(subject, "net loss of refusals of harmful prompts", losses, unit="points", of="systems")]


@once
def paper_claims(tables: Tables) -> dict[str, list[Claim]]:
    """Each rung that the paper says something of, against its other rungs here: who loses more refusals.

    By the rung; a rise is that it loses more than the other (:func:`differing_changes`, corrected over all pairs).
    Plain SmolLM2 is none of the paper's ladder: nothing that is said of its rungs is said of them beside it.
    """
    states = verdicts_by_state(tables, "harmful")
    fewest = min((k for _, kind, k, _ in states if kind == "refusal"), default=0)
    names = rung_names(ladder_systems(tables))
    rungs = {rung: s for s in names if fewest and (rung := paper_rung(s)) in SYSTEMS}
    ladder = [rung for rung in rungs if rung != "smollm2"]
    pairs = [(rung, other) for rung in PUBLISHED if rung in rungs for other in ladder if other != rung]
    changes = {
        rung: (states.get((s, "unedited", 0, 0), {}), states.get((s, "refusal", fewest, 0), {}))
        for rung, s in rungs.items()
    }
    contrasts = [
        differing_changes(
            changes[other],
            changes[rung],
            subject=f"{names[rungs[rung]]} against {names[rungs[other]]}, without {number_of(fewest, 'direction')}",
            measure="net loss of refusals of harmful prompts",
            states=(names[rungs[other]], names[rungs[rung]]),
        )
        for rung, other in pairs
    ]
    found: dict[str, list[Claim]] = {rung: [] for rung, _ in pairs}
    for (rung, _), contrast in zip(pairs, corrected_over(contrasts, "pairs"), strict=True):
        found[rung].append(decide(contrast))
    return found


def paper_findings(claims: Mapping[str, Sequence[Claim]]) -> list[str]:
    """To how many other rungs each published statement about a rung applies here, and to how many its reverse."""
    said = []
    for rung, several in claims.items():
        tested = [claim for claim in several if claim.direction != "not tested"]
        for way, word in (("up", "fewer"), ("down", "more")):
            hits = sum(claim.direction == way for claim in tested)
            what = f"other rungs are shown to lose {word} refusals than {rung} here"
            said.append(counted(PUBLISHED[rung], hits, len(tested), what, unknown=len(several) - len(tested)))
    return said


def joint_table(ladders: Mapping[str, Tables]) -> pd.DataFrame:
    """The rungs that two or more ladders have: in each the removal of its fewest directions, a row each."""
    rows = []
    for name, tables in ladders.items():
        claims: Claims = ladder_claims(tables)
        for system in ladder_systems(tables):
            if found := of_system(claims, system):
                told = claim_table([next(iter(found.values()))]).iloc[0]
                rows.append(
                    {"rung": paper_rung(system), "ladder": name, **told.drop("control result").to_dict()}
                )
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    return table[table.groupby("rung")["ladder"].transform("nunique") > 1].sort_values("rung", kind="stable")
