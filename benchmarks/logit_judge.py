"""The logit judge on many replies at once against one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.options import Options
from benchmarks.sections import Check, Section, table
from benchmarks.timing import in_turns
from mechsafety.core.verdict import Response
from mechsafety.judges.kinds.logit import LogitJudge, load_anchors
from mechsafety.models.loading import load_model

_MODEL = "smollm2-135m"
_WANTED = 3.0


def section(options: Options) -> Section:
    """Replies a second of both, on the anchors, in turns; and whether the labels are the same."""
    judge = LogitJudge(_MODEL, load_model(_MODEL, device="cpu"))
    anchors = load_anchors()[: options.size(48, 6)]
    responses = [
        Response(id=str(number), prompt=a["prompt"], text=a["response"]) for number, a in enumerate(anchors)
    ]
    _ = judge.threshold  # fitted once, by both
    labels: dict[str, Sequence[str]] = {}

    def at_once() -> float:
        labels["at once"] = [v.label for v in judge(responses)]
        return len(responses)

    def singly() -> float:
        labels["one at a time"] = [judge([r])[0].label for r in responses]
        return len(responses)

    found = in_turns({"at once": at_once, "one at a time": singly}, rounds=options.rounds)
    ratio = found.ratio("at once", "one at a time")
    same = sum(a == b for a, b in zip(labels["at once"], labels["one at a time"], strict=True))
    return Section(
        name="logit_judge",
        title="Logit judge",
        quick=options.quick,
        body=(
            f"{len(responses)} written replies, {_MODEL}, {torch.get_num_threads()} threads.\n\n"
            + table(["way", "replies a second"], [[name, f"{found.rate(name):.1f}"] for name in labels])
            + f"\n\nThe labels are the same for {same} of {len(responses)}."
        ),
        checks=(
            Check(
                what="logit judge, many replies at once against one at a time",
                wanted=f"{_WANTED:g}x or more",
                found=str(ratio),
                met=ratio.median >= _WANTED,
            ),
        ),
    )
