"""Judge ``majority:(MEMBER,MEMBER)``: the label with the most votes of several judges.

Two of three need not agree on one: it is the plurality that wins, among the votes that were cast. A draw for the
first place, or no vote at all, is ``unparsed`` with the tag ``tie`` (and ``no_votes``). A member without a verdict is
named (``missing`` in ``detail``), and where no more than half of the members have one, the panel has none (``quorum``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.panel import VOTES, JudgePanel, with_missing

TAKES = "judges"
ABOUT = "majority:(JUDGE,JUDGE)  the label with the most votes of two or more judges; a draw is unparsed"


class MajorityJudge(JudgePanel):
    """``detail`` holds every member's label (``members``) and the votes cast (``votes``)."""

    kind = "majority"
    least = 2

    def combine(self, responses: Sequence[Response], given: Sequence[Mapping[str, Verdict]]) -> list[Verdict]:
        return [
            with_missing(self._verdict(r, {name: one.label for name, one in votes.items()}), votes)
            for r, votes in zip(responses, given, strict=True)
        ]

    def _verdict(self, response: Response, given: Mapping[str, Label]) -> Verdict:
        counts = Counter(label for label in given.values() if label in VOTES)
        most = max(counts.values(), default=0)
        first: list[Label] = [label for label in VOTES if counts[label] == most]
        decided = len(first) == 1
        return Verdict(
            id=response.id,
            judge=self.name,
            label=first[0] if decided else "unparsed",
            tags=() if decided else ("tie",) if counts else ("tie", "no_votes"),
            detail={"members": dict(given), "votes": {label: counts[label] for label in VOTES}},
        )


JUDGE = MajorityJudge
