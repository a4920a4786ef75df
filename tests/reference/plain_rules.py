"""The judge ``rules`` without short cuts: measure everything, try every pattern on the whole answer."""

from __future__ import annotations

from collections.abc import Sequence

from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.kinds.degeneracy import assess
from mechsafety.judges.kinds.rules import conclude
from mechsafety.judges.normalise import normalise, tidy
from mechsafety.judges.spans import plain_spans


def plain_verdicts(responses: Sequence[Response]) -> list[Verdict]:
    """Return what RulesJudge must return."""
    return [
        conclude(
            response.id,
            normalise(response.text, prompt=response.prompt),
            reason=assess(response)[0],
            prompt=tidy(response.prompt).strip(),
            spans=plain_spans,
        )
        for response in responses
    ]
