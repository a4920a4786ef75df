"""What experiments require of their prompts: the splits they need, and no prompt in two roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import Progress
from mechsafety.prompts.columns import LABELS, PURPOSES, Purpose
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.runs.folder import RunFolder


def require_splits(prompts: PromptSet, purposes: Iterable[Purpose], *, name: str) -> None:
    """Raise :class:`MechsafetyError` where harmful or harmless prompts for one of ``purposes`` are missing."""
    for purpose in purposes:
        split = PURPOSES[purpose]
        for label in LABELS:
            if not len(prompts.where(split=split, label=label)):
                raise MechsafetyError(
                    f"prompt set {name!r} has no {label} prompts in split {split!r}, which are here to {purpose}: fit "
                    "prompts estimate, validation prompts choose, report prompts judge"
                )


def require_labels(prompts: Sequence[Prompt], *, name: str) -> None:
    """Raise :class:`MechsafetyError` for a prompt that has no label, where rates are told apart by it."""
    if missing := [p.id for p in prompts if not p.label]:
        how = way(
            "give the file a column label", "name its column or its only label, load_prompts(data, label=...)"
        )
        raise MechsafetyError(f"prompt set {name!r}: prompt {missing[0]!r} has no label: {how}")


def require_classes(prompts: PromptSet, purpose: str) -> None:
    """Raise :class:`MechsafetyError` where none of ``prompts`` is harmful, or none harmless; ``purpose`` is a verb."""
    for label in LABELS:
        if not len(prompts.where(label=label)):
            raise MechsafetyError(
                f"to {purpose} harmful and harmless prompts are needed; of these {len(prompts)} none is {label}"
            )


def require_disjoint(**sets: Sequence[Prompt]) -> None:
    """Raise :class:`MechsafetyError` for a text in two of the named ``sets``, or under two labels in one.

    Texts are the same where case and blanks alone differ.
    """
    seen: dict[str, tuple[str, Prompt]] = {}
    for name, prompts in sets.items():
        for prompt in prompts:
            other_name, other = seen.setdefault(prompt.folded, (name, prompt))
            if other_name != name:
                raise MechsafetyError(
                    f"{name} prompt {prompt.id!r} is also {other_name} prompt {other.id!r}: what is found or chosen on "
                    "a prompt must be tested on others"
                )
            if other.label != prompt.label:
                raise MechsafetyError(
                    f"{name} prompt {prompt.id!r} is labelled {prompt.label!r}, and {other.id!r} of the same text "
                    f"{other.label!r}: a text has one label"
                )


def record_repeated(run: RunFolder, say: Progress, *sets: PromptSet) -> None:
    """Report and record how many rows of the sets' files were given twice and counted once."""
    repeated = sum(prompts.repeated for prompts in sets)
    run.record("repeated_prompts", repeated)
    if repeated:
        say(f"{repeated} prompts stand twice in one split under one label: each is counted once")
