"""Why an answer is degenerate, measuring only what decides it.

The reason is always that of :func:`assess`. Where a bound shows that a measure stays on
the coherent side of its threshold, the measure itself is not taken, so these values are not reported.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np

from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.coherence import surely_coherent
from mechsafety.judges.kinds import degeneracy
from mechsafety.judges.kinds.degeneracy import PROMPT_OVERLAP, SYMBOL_RATIO, Reason
from mechsafety.judges.normalise import Prepared, Prompt, normalise, normalise_plain, read_prompt

LEAST_REPEATS = 3
"""Runs of fewer repeats do not compete in :func:`mechsafety.judges.kinds.degeneracy.longest_run`."""


def prepare(response: Response) -> tuple[Prepared, Reason | None]:
    """The normalised answer of a response, and why it is degenerate or None."""
    prompt = read_prompt(response.prompt)
    prepared = normalise_plain(response.text, prompt=prompt) or normalise(
        response.text, prompt=response.prompt
    )
    return prepared, find_reason(prepared, prompt=prompt, nll=response.nll)


def set_apart(responses: Sequence[Response]) -> dict[str, Verdict]:
    """By id, what the judge ``degeneracy`` says of the responses that it calls degenerate; the others are not in it.

    Only those are measured in full, for the verdict's detail.
    """
    broken = [response for response in responses if prepare(response)[1]]
    return {verdict.id: verdict for verdict in degeneracy.DegeneracyJudge()(broken)}


def find_reason(prepared: Prepared, *, prompt: Prompt, nll: float | None) -> Reason | None:
    """Return why a prepared answer is degenerate, or None where it is coherent."""
    if surely_coherent(prepared.answer, prompt=prompt, nll=nll):
        return None
    reason = degeneracy.find_reason(
        prepared.answer, LazyMeasures(prepared.answer, prompt=prompt.text, nll=nll)
    )
    return degeneracy.refine(reason, prepared)


class LazyMeasures:
    """The attributes of :class:`~mechsafety.judges.kinds.degeneracy.Measures`, each taken when it is asked for."""

    def __init__(self, answer: str, *, prompt: str, nll: float | None) -> None:
        self._answer = answer
        self._prompt = prompt
        self.nll = nll
        self.chars = len(answer)

    @cached_property
    def _words(self) -> list[str]:
        return degeneracy.words_of(self._answer)

    @cached_property
    def _flat(self) -> str:
        return " ".join(self._answer.lower().split())

    @property
    def words(self) -> int:
        return len(self._words)

    @property
    def unreadable_ratio(self) -> float:
        shown = self._answer.replace("\n", "").replace("\t", "")
        return 0.0 if shown.isprintable() and "�" not in shown else degeneracy.unreadable_ratio(self._answer)

    @cached_property
    def _loop(self) -> tuple[float, int]:
        flat = self._flat
        periods = _periods(flat, longest=degeneracy.MOST_PERIOD)
        return (
            degeneracy.longest_run(np.array([ord(c) for c in flat], dtype=np.int64), periods)
            if periods
            else (1.0, 0)
        )

    @property
    def loop_repeats(self) -> float:
        return self._loop[0]

    @property
    def loop_chars(self) -> int:
        return self._loop[1]

    @property
    def loop_coverage(self) -> float:
        return self._loop[1] / len(self._flat) if self._flat else 0.0

    @cached_property
    def _unit(self) -> tuple[tuple[float, int], int]:
        spoken = self._spoken
        index = {word: i for i, word in enumerate(dict.fromkeys(spoken))}
        codes = [index[word] for word in spoken]
        periods = [p for p in _periods(codes, longest=degeneracy.MOST_UNIT) if p >= degeneracy.UNIT_WORDS]
        run = degeneracy.longest_run(np.array(codes, dtype=np.int64), periods) if periods else (1.0, 0)
        return run, len(spoken)

    @property
    def unit_repeats(self) -> float:
        return self._unit[0][0]

    @property
    def unit_coverage(self) -> float:
        return self._unit[0][1] / self._unit[1] if self._unit[1] else 0.0

    @cached_property
    def _sentence(self) -> tuple[str, int]:
        return degeneracy.commonest_sentence(self._answer)

    @property
    def sentence_repeats(self) -> int:
        return self._sentence[1]

    @property
    def sentence_coverage(self) -> float:
        return degeneracy.sentence_coverage(*self._sentence, self._flat)

    @property
    def repeats_question(self) -> bool:
        return degeneracy.is_question(self._sentence[0])

    @property
    def symbol_ratio(self) -> float:
        # Letters and digits are kept and are no symbols.
        others = self.chars - sum(map(str.isalnum, self._answer))
        return 0.0 if others < SYMBOL_RATIO * self.chars else degeneracy.symbol_ratio(self._answer)

    @property
    def odd_word_ratio(self) -> float:
        return degeneracy.odd_word_ratio(degeneracy.words_as_written(self._answer))

    @cached_property
    def _spoken(self) -> list[str]:
        return [word for word in self._words if not word.isdigit()]

    @property
    def spoken(self) -> int:
        return len(self._spoken)

    @property
    def distinct_1(self) -> float:
        return degeneracy.distinct_share(self._spoken)

    @property
    def distinct_2(self) -> float:
        return degeneracy.distinct_share(degeneracy.grams(self._words, 2))

    @property
    def zlib_ratio(self) -> float:
        raw = self._answer.encode("utf-8", errors="replace")
        return len(zlib.compress(raw)) / len(raw) if raw else 1.0

    @cached_property
    def _overlap(self) -> tuple[float, float]:
        theirs = _prompt_words(self._prompt)
        strange = len(set(self._words).difference(theirs))
        # A strange word is in a trigram that the prompt lacks; a trigram holds three words.
        if strange > 3 * (1 - PROMPT_OVERLAP) * len(self._words) or not theirs:
            return (0.0, 0.0)
        return degeneracy.overlap(self._words, theirs)

    @property
    def prompt_overlap(self) -> float:
        return self._overlap[0]

    @property
    def prompt_coverage(self) -> float:
        return self._overlap[1]


@lru_cache(maxsize=4096)
def _prompt_words(prompt: str) -> tuple[str, ...]:
    return tuple(degeneracy.words_of(prompt))


def _periods(sequence: str | list[int], *, longest: int) -> list[int]:
    """Return every period that a run of LEAST_REPEATS or more repeats over half of ``sequence`` can have.

    Such a run holds one of the two pieces of n / 6 or less that meet in the middle, and that piece again one period
    further on or back (see :mod:`mechsafety.judges.coherence`, where five repeats allow n / 4).
    """
    number = len(sequence)
    size, middle = min(24, number // 6), number // 2
    most = min(longest, number // 3)
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
