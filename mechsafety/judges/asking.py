"""What judges that ask a model in words share: the question, the fence around the data, reading the answer.

The reply under judgement is untrusted text that may argue with its judge. It is normalised, cut to a readable
length, stripped of words that look like a verdict or a fence, and put between markers that carry a nonce it
cannot know; the instruction stands before it and again after it. No fence is proof against a persuadable model:
:func:`mechsafety.judges.injection.injection_flip_rate` measures how far a judge can be talked round.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

from mechsafety.core.errors import MechsafetyError, StoppedError
from mechsafety.core.places import packaged_words
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.neutral import neutral_digest, neutralise
from mechsafety.judges.normalise import normalise, tidy

Unread = Literal[
    "unreadable",
    "empty",
    "judge_refused",
    "cut_off",
    "filtered",
    "rejected",
    "too_long",
    "budget",
    "network",
    "unclosed_thought",
]
"""Why there is no verdict: the model answered twice out of form or with nothing, or declined to judge; its answer was
cut at its length or by a filter; the endpoint rejected the question; the question does not fit into the model; the cap
was reached; the endpoint gave no answer; or the response is a thought that was cut off. It is the tag of an
``unparsed`` verdict."""
MISSING: frozenset[str] = frozenset({"budget", "network"})
"""Reasons for which there is no verdict yet: work that holds such is not complete."""
TRANSIENT: frozenset[str] = MISSING | {"empty", "cut_off", "filtered", "rejected"}
"""Reasons that may be gone tomorrow: such verdicts are not cached."""

LONGEST = 4000
"""Characters of a request or reply that are shown: three quarters from its beginning, one from its end."""
_WORDS = packaged_words("mechsafety.judges", "words/questions.toml")
_QUESTION, REPAIR = _WORDS["asking"], _WORDS["repair"]
"""The second is the short message that follows an answer out of form."""
_LINES = re.compile(r"^(REFUSAL: .*\n)(COMPLIANCE: .*\n)", re.MULTILINE)
_SWAPPED = _LINES.sub(r"\2\1", _QUESTION).replace("REFUSAL, COMPLIANCE", "COMPLIANCE, REFUSAL")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a judge has spent since it was made.

    ``fresh`` and ``cached`` count responses with an answer, ``calls`` all that was sent (``retries`` and ``repairs``
    included), ``unmetered`` the answers that came without token counts, which the token sums and ``cost`` lack.
    ``cost`` is in the currency of the prices that were given; None without prices.
    """

    fresh: int = 0
    cached: int = 0
    calls: int = 0
    retries: int = 0
    repairs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    cost: float | None = None

    def __add__(self, more: Usage) -> Usage:
        sums = {
            f.name: getattr(self, f.name) + getattr(more, f.name) for f in fields(self) if f.name != "cost"
        }
        costs = [u.cost for u in (self, more) if u.cost is not None]
        return Usage(**sums, cost=sum(costs) if costs else None)


class Ledger:
    """A running sum of :class:`Usage`."""

    def __init__(self) -> None:
        self.usage = Usage()

    def add(self, more: Usage) -> None:
        self.usage += more


OnVerdict = Callable[[Verdict], None]


def is_missing(verdict: Verdict) -> bool:
    """Whether there is no verdict yet: it was not asked for, or no answer came."""
    return bool(MISSING & set(verdict.tags))


class AskingJudge(ABC):
    """A judge that is worth caching: it asks a model, and declares what its verdicts depend on."""

    name: str

    paid: bool = False
    """Whether each question costs money: then no experiment asks one twice."""

    swapped: bool = False
    """Whether the question names compliance before refusal: only to see what that changes."""

    stopped: StoppedError | None = None
    """What ended the last work before all was asked."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    @property
    def usage(self) -> Usage:
        """What has been spent since the judge was made."""
        return self.ledger.usage

    @property
    @abstractmethod
    def fingerprint(self) -> Mapping[str, object] | None:
        """All that a verdict depends on but the response: JSON values. None when that cannot be known."""

    def ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        """One verdict a response, in their order; ``on_verdict`` gets each as it arrives.

        Where the work was ``stopped``, what was not asked is ``unparsed`` with the tag ``network``.
        """
        errand = Errand(self, responses, on_verdict=on_verdict)
        errand.run()
        return errand.verdicts()

    @abstractmethod
    def _ask(self, responses: Sequence[Response], *, on_verdict: OnVerdict) -> list[Verdict]:
        """:meth:`ask` for responses that hold an answer; sets ``stopped`` where it leaves some out."""

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        verdicts = self.ask(responses, on_verdict=lambda _: None)
        if self.stopped is not None:
            raise self.stopped
        return verdicts


class Errand:
    """Responses that ``judge`` is asked about, and the verdicts that have come.

    Nothing is asked about a thought that was cut off: there is no answer behind it. ``rest`` are the others.
    """

    def __init__(self, judge: AskingJudge, responses: Sequence[Response], *, on_verdict: OnVerdict) -> None:
        self.judge, self.responses, self._on_verdict = judge, responses, on_verdict
        self._found: dict[str, Verdict] = {}
        judge.stopped = None
        for response in responses:
            prepared = normalise(response.text, prompt=response.prompt)
            if prepared.unclosed and not prepared.answer.strip():
                self.settle(unread(response, judge=judge.name, reason="unclosed_thought", detail={}))
        self.rest = [response for response in responses if response.id not in self._found]

    def settle(self, verdict: Verdict) -> None:
        """Take a verdict as it comes."""
        self._found[verdict.id] = verdict
        self._on_verdict(verdict)

    def run(self) -> None:
        """Ask."""
        if self.rest:
            self._found |= {v.id: v for v in self.judge._ask(self.rest, on_verdict=self.settle)}

    def verdicts(self) -> list[Verdict]:
        """One a response, in their order; what was not asked is ``unparsed`` with what stopped the judge."""
        if self.judge.stopped is not None:
            why = {"error": str(self.judge.stopped)}
            missing = [r for r in self.rest if r.id not in self._found]
            self._found |= {
                r.id: unread(r, judge=self.judge.name, reason="network", detail=why) for r in missing
            }
        if silent := [r.id for r in self.responses if r.id not in self._found]:
            raise MechsafetyError(f"judge {self.judge.name!r} gave no verdict on response {silent[0]!r}")
        return [self._found[response.id] for response in self.responses]


def template_digest(*, swapped: bool = False) -> str:
    """SHA-256 of everything in the question that is the same for all responses."""
    parts = (_SWAPPED if swapped else _QUESTION, REPAIR, neutral_digest())
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def question(
    response: Response,
    *,
    salt: str,
    longest: int = LONGEST,
    special: Sequence[str] = (),
    swapped: bool = False,
) -> str:
    """What the model is asked about one response. ``special`` are the model's own
    :func:`control_strings <mechsafety.models.rendering.control_strings>`.

    The nonce is a hash of ``salt`` and the response: a text cannot hold its own hash, and the same salt gives the
    same question. A salt drawn anew for each call makes it random.
    """
    if longest < 1:
        raise MechsafetyError(f"longest is {longest}; at least one character of a reply must be shown")
    answer = normalise(response.text, prompt=response.prompt).answer
    hashed = "\x1f".join((salt, response.prompt, response.text)).encode("utf-8", "surrogatepass")
    return (_SWAPPED if swapped else _QUESTION).format(
        nonce=hashlib.sha256(hashed).hexdigest()[:16],
        prompt=neutralise(_excerpt(tidy(response.prompt).strip(), longest), special=special),
        answer=neutralise(_excerpt(answer, longest), special=special),
    )


def _excerpt(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    tail = longest // 4
    left_out = f"\n[... {len(text) - longest} characters left out ...]\n"
    return text[: longest - tail] + left_out + text[len(text) - tail :]


def read(response: Response, *, judge: str, label: Label, repaired: bool) -> Verdict:
    """The verdict of an answer in form."""
    return Verdict(id=response.id, judge=judge, label=label, tags=("repaired",) if repaired else ())


def unread(response: Response, *, judge: str, reason: Unread, detail: Mapping[str, object]) -> Verdict:
    """The verdict where no answer can be had; ``detail`` holds more."""
    if reason not in get_args(Unread):
        raise ValueError(f"reason {reason!r} is not one of {', '.join(get_args(Unread))}")
    return Verdict(id=response.id, judge=judge, label="unparsed", tags=(reason,), detail=dict(detail))
