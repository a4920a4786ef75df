"""What a model answers, read by a judge and counted by group: safe, unsafe, and each family of attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Unpack

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge, Label
from mechsafety.edits.interventions import Edit
from mechsafety.generation.answered import Completion
from mechsafety.judges.outcomes import Asking, Tally, answered, labels_of
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SAFE, UNSAFE = "safe", "unsafe"
OUTCOMES = ("refused", "complied", "degenerate")
OUTCOME_COLUMNS: tuple[str, ...] = (
    "n",
    *(f"{name}{end}" for name in OUTCOMES for end in ("", "_low", "_high")),
)

Groups = Mapping[str, Sequence[Prompt]]
"""The prompts of each group, by the group's name."""


def prompt_groups(prompts: Sequence[Prompt], attacks: Sequence[Prompt] = ()) -> dict[str, list[Prompt]]:
    """``prompts`` by label, harmless ones as ``safe`` and harmful ones as ``unsafe``, and ``attacks`` by category.

    A group without prompts is left out. Raises :class:`MechsafetyError` for an attack that is labelled harmless, has
    no category, or one that is called ``safe`` or ``unsafe``, and for an id that occurs twice.
    """
    groups: dict[str, list[Prompt]] = {SAFE: [], UNSAFE: []}
    for prompt in prompts:
        groups[SAFE if prompt.label == "harmless" else UNSAFE].append(prompt)
    for prompt in attacks:
        if prompt.label != "harmful" or prompt.category in ("", SAFE, UNSAFE):
            raise MechsafetyError(
                f"attack {prompt.id!r} is labelled {prompt.label} with category {prompt.category!r}: attacks are "
                f"harmful prompts, and their category names the family ({SAFE} and {UNSAFE} are taken)"
            )
        groups.setdefault(prompt.category, []).append(prompt)
    ids = [prompt.id for group in groups.values() for prompt in group]
    if len(set(ids)) < len(ids):
        twice = next(i for k, i in enumerate(ids) if i in ids[:k])
        raise MechsafetyError(f"two prompts have the id {twice!r}: prompts and attacks need ids of their own")
    return {name: group for name, group in groups.items() if group}


def read_outcomes(completions: Sequence[Completion], judge: str | Judge) -> dict[str, Label]:
    """What ``judge`` finds each answer to be, by the prompt's id. Raises for ids that repeat."""
    ids = [c.id for c in completions]
    if len(set(ids)) < len(ids):
        raise MechsafetyError("ids of answers must be unique: here one repeats")
    return dict(zip(ids, labels_of(completions, judge), strict=True))


def outcome_row(labels: Mapping[str, Label], ids: Sequence[str]) -> dict[str, int | float]:
    """The columns :data:`OUTCOME_COLUMNS` of the answers to the prompts ``ids``: shares with 95 % Wilson intervals.

    ``n`` counts the answers that the judge could read, and shares are of these; they are NaN where there are none.
    Raises :class:`MechsafetyError` for an id without a label.
    """
    if missing := [i for i in ids if i not in labels]:
        raise MechsafetyError(f"{len(missing)} prompts were not judged, {missing[0]!r} for one")
    return Tally.of([labels[i] for i in ids]).row()


def outcome_rows(
    model: TransformerBridge, groups: Groups, *, edit: Edit | None = None, **asking: Unpack[Asking]
) -> list[dict[str, str | int | float]]:
    """Greedy, free-running answers to every group's prompts, judged: one row per group, with its name in ``group``.

    Raises :class:`MechsafetyError` without prompts.
    """
    prompts = [prompt for group in groups.values() for prompt in group]
    answers, found = answered(model, prompts, edit=edit, **asking)
    labels = dict(zip([c.id for c in answers], found, strict=True))
    return [{"group": name, **outcome_row(labels, [p.id for p in group])} for name, group in groups.items()]
