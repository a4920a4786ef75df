"""Judge ``majority:MEMBER,MEMBER``: the label with the most votes of several judges.

Two of three need not agree on one: it is the plurality that wins, among the votes that were cast. A draw for the
first place, or no vote at all, is ``unparsed`` with the tag ``tie`` (and ``no_votes``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.panel import VOTES, JudgePanel, ask_members

TAKES = "judges"
ABOUT = "majority:JUDGE,JUDGE  the label with the most votes of two or more judges; a draw is unparsed"


class MajorityJudge(JudgePanel):
    """``detail`` holds every member's label (``members``) and the votes cast (``votes``)."""

    kind = "majority"
    least = 2

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        labels = ask_members(responses, self.members)
        return [self._verdict(r, given) for r, given in zip(responses, labels, strict=True)]

    def _verdict(self, response: Response, given: dict[str, Label]) -> Verdict:
        counts = Counter(label for label in given.values() if label in VOTES)
        most = max(counts.values(), default=0)
        first: list[Label] = [label for label in VOTES if counts[label] == most]
        decided = len(first) == 1
        return Verdict(
            id=response.id,
            judge=self.name,
            label=first[0] if decided else "unparsed",
            tags=() if decided else ("tie",) if counts else ("tie", "no_votes"),
            detail={"members": given, "votes": {label: counts[label] for label in VOTES}},
        )


JUDGE = MajorityJudge
