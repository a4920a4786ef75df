"""Why an answer is degenerate, measuring only what decides it.

The reason is always that of :func:`assess`. Where a bound shows that a measure stays on
the coherent side of its threshold, the measure itself is not taken, so these values are not reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.coherence import surely_coherent
from mechsafety.judges.kinds import degeneracy
from mechsafety.judges.kinds.degeneracy import PROMPT_OVERLAP, SYMBOL_RATIO, Reason
from mechsafety.judges.normalise import Prepared, PreparedPrompt, normalise, normalise_plain, read_prompt


def prepare(response: Response) -> tuple[Prepared, Reason | None]:
    """The normalised answer of a response, and why it is degenerate or None."""
    prompt = read_prompt(response.prompt)
    prepared = normalise_plain(response.text, prompt=prompt) or normalise(
        response.text, prompt=response.prompt
    )
    return prepared, decisive_reason(prepared, prompt=prompt, nll=response.nll)


def set_apart(responses: Sequence[Response]) -> dict[str, Verdict]:
    """Verdicts of the judge ``degeneracy`` by id, for responses without an answer that can be judged; no others.

    Only those are measured in full, for the verdict's detail.
    """
    broken = [response for response in responses if prepare(response)[1]]
    return {verdict.id: verdict for verdict in degeneracy.DegeneracyJudge()(broken)}


def decisive_reason(prepared: Prepared, *, prompt: PreparedPrompt, nll: float | None) -> Reason | None:
    """Return why a prepared answer is degenerate, or None where it is coherent."""
    if surely_coherent(prepared.answer, prompt=prompt, nll=nll):
        return None
    reason = degeneracy.find_reason(
        prepared.answer, BoundedMeasures(prepared.answer, prompt=prompt.text, nll=nll)
    )
    return degeneracy.refine(reason, prepared)


class BoundedMeasures(degeneracy.Measures):
    """The same measures, not taken where a bound keeps one on the coherent side of its threshold."""

    @property
    def unreadable_ratio(self) -> float:
        shown = self._answer.replace("\n", "").replace("\t", "")
        return 0.0 if shown.isprintable() and "�" not in shown else super().unreadable_ratio

    @property
    def symbol_ratio(self) -> float:
        # Letters and digits are kept and are no symbols.
        others = self.chars - sum(map(str.isalnum, self._answer))
        return 0.0 if others < SYMBOL_RATIO * self.chars else super().symbol_ratio

    def _periods(self, sequence: str | list[int], *, least: int, most: int) -> list[int]:
        return [period for period in periods(sequence, most=most) if period >= least]

    @cached_property
    def _overlap(self) -> tuple[float, float]:
        theirs = degeneracy.words_of_prompt(self._prompt)
        strange = len(set(self._words).difference(theirs))
        # A strange word is in a trigram that the prompt lacks; a trigram holds three words.
        if strange > 3 * (1 - PROMPT_OVERLAP) * len(self._words) or not theirs:
            return (0.0, 0.0)
        return super()._overlap


def periods(sequence: str | list[int], *, most: int) -> list[int]:
    """Return every period that a run of three or more repeats over half of ``sequence`` can have.

    Such a run holds one of the two pieces of n / 6 or less that meet in the middle, and that piece again one period
    further on or back (see :mod:`mechsafety.judges.coherence`, where five repeats allow n / 4).
    """
    number = len(sequence)
    size, middle = min(24, number // 6), number // 2
    if size == 0:
        return list(range(1, most + 1))
    found: set[int] = set()
    for start in (middle - size, middle):
        piece = sequence[start : start + size]
        low, high = max(0, start - most), min(number - size, start + most)
        if isinstance(sequence, str):
            at = sequence.find(str(piece), low, high + size)
            while at >= 0:
                found.add(abs(at - start))
                at = sequence.find(str(piece), at + 1, high + size)
        else:
            found.update(abs(i - start) for i in range(low, high + 1) if sequence[i : i + size] == piece)
    return sorted(found - {0})
