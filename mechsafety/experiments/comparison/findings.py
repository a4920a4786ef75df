"""What a comparison found: each pair's cosine beside its floor, and each direction's transfer beside its controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from mechsafety.claims import Contrast, Control, Draw, Estimate, corrected_over, decide, of_values, sentences
from mechsafety.claims.sentences import counted, level


def comparison_findings(tables: Mapping[str, pd.DataFrame], *, layer: int) -> list[str]:
    """Cosines at the shown ``layer``, and what each checkpoint's direction does in each other."""
    said: list[str] = []
    if "cosines" in tables:
        said += _cosines(tables["cosines"][tables["cosines"]["layer"] == layer], layer)
    if "transfer" in tables:
        transfer = tables["transfer"]
        foreign = (transfer["source"] != transfer["target"]).to_numpy()
        contrasts = transfer_contrasts(transfer, {})
        said += [
            s for c, other in zip(contrasts, foreign, strict=True) if other for s in sentences(decide(c))
        ]
    return said


def _cosines(at: pd.DataFrame, layer: int) -> Iterator[str]:
    for row in at.to_dict(orient="records"):
        subject = f"{row['a']} and {row['b']}, layer {layer}"
        own = Estimate(value=row["cosine"], low=row["low"], high=row["high"])
        yield level(subject, "cosine of the refusal directions", own, unit="cosine")
        floor = Estimate(value=row["harmless_floor"])
        yield level(
            subject, "cosine of directions between halves of the harmless prompts", floor, unit="cosine"
        )


def transfer_contrasts(transfer: pd.DataFrame, names: Mapping[str, str]) -> list[Contrast]:
    """The refusal score of each target with each source's direction ablated, beside its controls.

    Tables of earlier versions hold no tests of the controls; a control that was not tested is said so.
    """
    found = []
    for row in transfer.to_dict(orient="records"):
        source, target = (names.get(row[name], row[name]) for name in ("source", "target"))
        whose = "its own direction" if row["source"] == row["target"] else f"the direction of {source}"
        p = row.get("p", math.nan)
        contrast = of_values(
            subject=f"{target} without {whose}",
            measure="mean refusal score of harmful prompts",
            unit="",
            states=("unedited", "ablated"),
            before=Estimate(value=row["base"], n=row["n"]),
            after=Estimate(value=row["ablated"], n=row["n"]),
            difference=Estimate(value=-row["drop"], low=-row["high"], high=-row["low"]),
            test="sign flips" if p == p else "",
            p=p,
        )
        found.append(replace(contrast, control=_transfer_control(row)))
    return corrected_over(found, "ablations")


def _transfer_control(row: Mapping[str, Any]) -> Control:
    """Every random direction and every one between harmless halves; of each kind the one that lowers the score most."""
    p = row.get("control_p", math.nan)
    most = [row[name] for name in ("random_max", "harmless_max") if row[name] == row[name]]
    draws = tuple(Draw(estimate=Estimate(value=row["base"] - drop)) for drop in most)
    below = None if p != p or row["control_side"] == 0 else row["control_side"] < 0
    name = "random and harmless directions (lowest of each)"
    return Control(name=name, draws=draws, p=p, corrected=p, below=below)


def transfer_findings(table: pd.DataFrame, names: Mapping[str, str]) -> Iterator[str]:
    """What each foreign direction does, and how many do more than every control."""
    claims = [decide(contrast) for contrast in transfer_contrasts(table, names)]
    own = (table["source"] == table["target"]).to_numpy()
    for mine, whose in ((True, "own"), (False, "foreign")):
        some = [claim for claim, is_own in zip(claims, own, strict=True) if is_own == mine]
        tested = [claim for claim in some if claim.direction != "not tested"]
        for way, word in (("down", "fall"), ("up", "rise")):
            hits = [claim for claim in tested if claim.direction == way]
            what = f"ablations of the {whose} direction show a {word} in the mean refusal score"
            yield counted("Transfer", len(hits), len(tested), what, unknown=len(some) - len(tested))
        controlled = [claim for claim in tested if claim.beyond not in ("not tested", "no control")]
        yield counted(
            "Transfer",
            sum(claim.direction == "down" and claim.beyond == "yes" for claim in controlled),
            len(controlled),
            f"ablations of the {whose} direction show a fall beyond random and harmless directions",
            unknown=len(some) - len(controlled),
        )
