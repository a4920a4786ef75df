"""Judges that ask a model, through the cache: what it holds, and what another process is asking, is not asked again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from mechsafety.core.verdict import Response, Verdict
from mechsafety.judges.asking import AskingJudge, Errand, Usage, unread
from mechsafety.judges.cache import VerdictCache, cache_key
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.side_by_side import Work, ask_side_by_side

_WAIT, _LONGEST_WAIT = 0.05, 1.0  # seconds between looks at what another process is asking: more and more


def ask_once(
    judges: Sequence[AskingJudge], responses: Sequence[Response], cache: VerdictCache | None, *, repeat: int
) -> dict[str, list[Verdict]]:
    """The verdicts of each judge by its name; endpoint judges of different hosts are asked side by side."""
    asked = [_Questions(judge, responses, cache, repeat) for judge in judges]
    wait = _WAIT
    while todo := [one for one in asked if one.missing]:
        try:
            errands = [one.errand() for one in todo]
            _run(errands)
        finally:
            for one in todo:
                one.release()
        for one, errand in zip(todo, errands, strict=True):
            one.take(errand)
        if any(errand.responses for errand in errands):
            wait = _WAIT
        elif any(one.missing for one in asked):
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
    return {one.judge.name: one.verdicts() for one in asked}


def _run(errands: Sequence[Errand]) -> None:
    hosted = []
    for errand in errands:
        if isinstance(errand.judge, EndpointJudge):
            hosted.append(Work(errand.judge, errand.rest, errand.settle))
        else:
            errand.run()
    if any(work.responses for work in hosted):
        ask_side_by_side(hosted)


class _Questions:
    """What one judge is asked, by key: the same text twice is asked once."""

    def __init__(
        self, judge: AskingJudge, responses: Sequence[Response], cache: VerdictCache | None, repeat: int
    ) -> None:
        fingerprint = judge.fingerprint if judge.paid or cache is not None else None
        self.judge, self.responses = judge, responses
        judge.stopped = None  # where nothing is asked, nothing stops
        self._cache = None if fingerprint is None else cache
        self._keys = {
            r.id: r.id if fingerprint is None else cache_key(fingerprint, r, repeat=repeat) for r in responses
        }
        self._one = {self._keys[r.id]: r for r in reversed(responses)}
        self._found: dict[str, Verdict] = {}
        self._mine: list[str] = []
        self._asked = 0
        self._look(list(self._one))

    @property
    def missing(self) -> list[str]:
        return [key for key in dict.fromkeys(self._keys.values()) if key not in self._found]

    def errand(self) -> Errand:
        """What is ours to ask now; empty while another process asks all of it."""
        missing = self.missing
        self._mine = missing if self._cache is None else self._cache.claim(missing)
        self._look(self._mine or missing)  # others may have asked meanwhile
        todo = [self._one[key] for key in self._mine if key not in self._found]
        self._asked += len(todo)
        return Errand(self.judge, todo, on_verdict=self._keep)

    def take(self, errand: Errand) -> None:
        """The verdicts that came; where the judge was stopped, those that will not come."""
        self._found |= {self._keys[verdict.id]: verdict for verdict in errand.verdicts()}
        if self.judge.stopped is not None:
            why = {"error": str(self.judge.stopped)}
            self._found |= {
                key: unread(self._one[key], judge=self.judge.name, reason="network", detail=why)
                for key in self.missing
            }

    def release(self) -> None:
        if self._cache is not None:
            self._cache.release(self._mine)
            self._mine = []

    def verdicts(self) -> list[Verdict]:
        if self._cache is not None:
            self.judge.ledger.add(Usage(cached=len(self.responses) - self._asked))
        return [replace(self._found[self._keys[r.id]], id=r.id) for r in self.responses]

    def _look(self, keys: Sequence[str]) -> None:
        if self._cache is not None:
            self._found |= self._cache.get(keys, judge=self.judge.name)

    def _keep(self, verdict: Verdict) -> None:
        if self._cache is not None:
            self._cache.put(self._keys[verdict.id], verdict)
