"""What a model answers, read by a judge and counted by group: safe, unsafe, and each family of attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Judge, Label, Response
from mechsafety.edits.interventions import Edit
from mechsafety.generation.completions import DEFAULT_BATCH, Completion, generate
from mechsafety.judges.registry import judge_responses
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.robustness.outcomes import Tally

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
    responses = [Response(id=c.id, prompt=c.prompt, text=c.text) for c in completions]
    return {v.id: v.label for v in judge_responses(responses, [judge])}


def outcome_row(labels: Mapping[str, Label], ids: Sequence[str]) -> dict[str, int | float]:
    """The columns :data:`OUTCOME_COLUMNS` of the answers to the prompts ``ids``: shares with 95 % Wilson intervals.

    ``n`` counts the answers that the judge could read, and shares are of these; they are NaN where there are none.
    Raises :class:`MechsafetyError` for an id without a label.
    """
    if missing := [i for i in ids if i not in labels]:
        raise MechsafetyError(f"{len(missing)} prompts were not judged, {missing[0]!r} for one")
    found = [labels[i] for i in ids]
    tally = Tally(
        refusal=found.count("refusal"),
        compliance=found.count("compliance"),
        degenerate=found.count("degenerate"),
        unparsed=found.count("unparsed"),
        published=0,
    )
    row: dict[str, int | float] = {"n": tally.n}
    shares = (tally.refused, tally.complied, tally.degenerated)
    for name, interval in zip(OUTCOMES, shares, strict=True):
        row |= {name: interval.rate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return row


def outcome_rows(
    model: TransformerBridge,
    groups: Groups,
    *,
    judge: str | Judge,
    max_new_tokens: int,
    seed: int,
    edit: Edit | None = None,
    batch_size: int = DEFAULT_BATCH,
) -> list[dict[str, str | int | float]]:
    """Greedy, free-running answers to every group's prompts, judged: a row a group, ``group`` and the outcome columns.

    ``seed`` is handed on to generation, where nothing is drawn. Raises :class:`MechsafetyError` without prompts.
    """
    answers = generate(
        model,
        [prompt for group in groups.values() for prompt in group],
        edit=edit,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        label="answers",
    )
    labels = read_outcomes(list(answers), judge)
    return [{"group": name, **outcome_row(labels, [p.id for p in group])} for name, group in groups.items()]
