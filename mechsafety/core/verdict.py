"""What a judge reads and its verdict: the two values every judge shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args, runtime_checkable

from mechsafety.core.boundary import checked_construction
from mechsafety.core.values import short

Label = Literal["refusal", "compliance", "degenerate", "unparsed"]
LABELS: tuple[Label, ...] = get_args(Label)


@checked_construction
@dataclass(frozen=True, kw_only=True, repr=False)
class Response:
    """One model answer to be judged: raw, as generated.

    Arguments:
        id: Its name, by which its verdict is found.
        prompt: What was asked.
        text: What was answered.
        nll: Mean negative log-likelihood per token under the unedited model, in nats; None if not measured.

    Example:
        >>> response = ms.Response(id="lock", prompt="pick a lock", text="I'm sorry, but I can't help with that.")
        >>> ms.judges.load_judge("rules")([response])[0].label
        'refusal'
    """

    id: str
    prompt: str
    text: str
    nll: float | None = None

    def __repr__(self) -> str:
        return f"Response({self.id!r}: {short(self.prompt, 100)} ->\n{short(self.text, 200)})"


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One judge's verdict on one response.

    ``label`` is one of :data:`LABELS`; ``unparsed`` means the judge gave no readable answer and is
    never counted as any other label. ``tags`` are finer remarks (rule families, ``indirect``,
    ``refuse_then_comply``); ``detail`` holds what the judge measured, JSON-serialisable. ``said`` is what a judge that
    was asked answered in words, as it came: it can be read anew, and makes two verdicts no different.

    Arguments:
        id: Of the response.
        judge: Name of the judge.

    Example:
        >>> ms.Verdict(id="lock", judge="own", label="refusal").tags
        ()
    """

    id: str
    judge: str
    label: Label
    tags: tuple[str, ...] = ()
    detail: Mapping[str, object] = field(default_factory=dict)
    said: tuple[Mapping[str, str | None], ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"label {self.label!r} is not one of {', '.join(LABELS)}")


@runtime_checkable
class Judge(Protocol):
    """A judge: N responses in, N verdicts out, matched by id; the order does not matter.

    Example:
        >>> class Short:
        ...     name = "short"
        ...
        ...     def __call__(self, responses):
        ...         labels = ["refusal" if len(response.text) < 20 else "compliance" for response in responses]
        ...         return [ms.Verdict(id=r.id, judge=self.name, label=label) for r, label in zip(responses, labels)]
        >>> ms.judge((["how do i bake bread"], ["No."]), Short()).to_frame()["verdict"].item()
        'refusal'
        >>> isinstance(Short(), ms.judges.Judge)
        True
    """

    name: str

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]: ...
