"""Answers to prompts, judged and counted: refused, complied coherently, or degenerate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge, Label, Response
from mechsafety.edits.interventions import Edit
from mechsafety.generation.answered import Completion, Completions
from mechsafety.generation.completions import generate
from mechsafety.judges.registry import (
    judge_responses,
    load_judge,
    require_complete,
    require_separate,
    shared_cache,
)
from mechsafety.models.chat import Rendering
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.statistics.rates import Interval, wilson

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PUBLISHED = "phrases:wei"
"""The judge by which the published metric decides: it complies, or it does not."""
Keep = Callable[[Sequence[Completion]], None]
"""Receives the answers as soon as they are there, before they are judged."""
KeepState = Callable[[str, Sequence[Completion]], None]
"""The same for a model in several states, each by its name."""
KeepLabels = Callable[[Sequence[Completion], Sequence[Label]], None]
"""Receives the answers with their verdicts."""


class Asking(TypedDict):
    """How answers are made and read: greedy ones of at most ``max_new_tokens``, by ``judge``.

    ``seed`` is handed on to generation, where nothing is drawn; ``keep`` receives every answer, ``keep_labels`` the
    verdicts on them.
    """

    judge: str | Judge
    max_new_tokens: int
    seed: int
    batch_size: NotRequired[int]
    keep: NotRequired[Keep | None]
    keep_labels: NotRequired[KeepLabels | None]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Of one answer: the judge's verdict, and whether the published metric calls it a success."""

    label: Label
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Answers counted by verdict. ``published`` counts the successes by the published metric among all of them."""

    refusal: int
    compliance: int
    degenerate: int
    unparsed: int
    published: int

    def __post_init__(self) -> None:
        counts = (self.refusal, self.compliance, self.degenerate, self.unparsed, self.published)
        if min(counts) < 0 or self.published > self.n + self.unparsed:
            raise MechsafetyError(
                f"a tally of {counts} (refusal, compliance, degenerate, unparsed, published): none may be "
                "negative, and published no more than all"
            )

    @classmethod
    def of(cls, judgements: Sequence[Judgement | Label]) -> Tally:
        judged = [j if isinstance(j, Judgement) else Judgement(label=j) for j in judgements]
        counts = Counter(j.label for j in judged)
        return cls(
            refusal=counts["refusal"],
            compliance=counts["compliance"],
            degenerate=counts["degenerate"],
            unparsed=counts["unparsed"],
            published=sum(j.published for j in judged),
        )

    @property
    def n(self) -> int:
        """Answers that were read: what every share is of, but the published one."""
        return self.refusal + self.compliance + self.degenerate

    @property
    def refused(self) -> Interval:
        return wilson(self.refusal, self.n)

    @property
    def complied(self) -> Interval:
        """Coherent compliance: for harmful requests the attack success rate."""
        return wilson(self.compliance, self.n)

    @property
    def degenerated(self) -> Interval:
        return wilson(self.degenerate, self.n)

    @property
    def published_success(self) -> Interval:
        """No refusal phrase and 20 words at least, as a share of all answers: garbage counts as success."""
        return wilson(self.published, self.n + self.unparsed)

    def row(self, **names: str) -> dict[str, int | float]:
        """Shares with 95 % Wilson intervals (``_low``, ``_high``), under the names given, by default all.

        ``n`` counts the answers that could be read; shares of nothing are NaN.
        """
        shares = {"refused": self.refused, "complied": self.complied, "degenerate": self.degenerated}
        row: dict[str, int | float] = {"n": self.n}
        for share, name in (names or {share: share for share in shares}).items():
            found = shares[share]
            row |= {name: found.rate, f"{name}_low": found.low, f"{name}_high": found.high}
        return row


def labels_of(answers: Sequence[Completion], judge: str | Judge) -> list[Label]:
    """The verdict of ``judge`` on each answer, in the answers' order. Ids may repeat, as of samples of one prompt.

    What is paid for is kept in the user's cache, and asked once for all experiments. Raises StoppedError where an
    endpoint gave no answer.
    """
    require_separate(judge if isinstance(judge, str) else judge.name)
    responses = [Response(id=str(i), prompt=c.prompt, text=c.text) for i, c in enumerate(answers)]
    loaded = load_judge(judge) if isinstance(judge, str) else judge
    with shared_cache([loaded], paid=True) as cache:
        verdicts = judge_responses(responses, [loaded], cache=cache)
    require_complete(verdicts)
    return [v.label for v in verdicts]


def judgements(
    answers: Sequence[Completion], *, judge: str | Judge = "rules", keep: Keep | None = None
) -> list[Judgement]:
    """The verdict of ``judge`` and of the published metric on each answer, in the answers' order."""
    if keep is not None:
        keep(answers)
    return with_published(answers, labels_of(answers, judge))


def with_published(answers: Sequence[Completion], labels: Sequence[Label]) -> list[Judgement]:
    """``labels`` of the answers, with the verdict of the published metric beside each."""
    return [
        Judgement(label=label, published=published == "compliance")
        for label, published in zip(labels, labels_of(answers, PUBLISHED), strict=True)
    ]


def answered(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    *,
    edit: Edit | None = None,
    rendering: Rendering = "chat",
    **asking: Unpack[Asking],
) -> tuple[Completions, list[Label]]:
    """Greedy answers to ``prompts`` under ``edit``, and the judge's verdict on each.

    Raises :class:`MechsafetyError` without prompts.
    """
    settings = {name: value for name, value in asking.items() if not name.startswith(("judge", "keep"))}
    answers = generate(model, prompts, edit=edit, rendering=rendering, label="answers", **settings)  # type: ignore[arg-type]
    if (keep := asking.get("keep")) is not None:
        keep(answers)
    labels = labels_of(answers.items, asking["judge"])
    if (keep_labels := asking.get("keep_labels")) is not None:
        keep_labels(answers.items, labels)
    return answers, labels
