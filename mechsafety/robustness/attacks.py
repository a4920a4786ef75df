"""All attacks on one model as the rows of ``attacks.csv``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import ATTACKS, MAX_NEW_TOKENS, Attack
from mechsafety.core.verdict import Judge
from mechsafety.edits.interventions import Edit
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.generation.answered import Completions
from mechsafety.generation.completions import generate
from mechsafety.judges.accepted import JudgeLike, as_judge
from mechsafety.judges.outcomes import Keep, judgements
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.prompts.accepted import PromptsLike, as_prompts
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.robustness.attempts import Attempts
from mechsafety.robustness.decoding import decoding
from mechsafety.robustness.suffix import Suffixes, suffix_attack

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ATTACK_COLUMNS: tuple[str, ...] = (
    *("system", "attack", "measure", "k", "n", "unread", "asr", "low", "high"),
    *("refused", "degenerate", "unparsed", "published", "published_low", "published_high"),
)
"""``asr``: coherent compliance. ``n``: prompts of the greedy and any rows, answers of the mean rows; ``unread`` of
these are left out, since no answer was read that decides on them. ``refused`` and ``degenerate``: shares of all
answers read. ``published``: the published metric, which does not ask for coherence."""


def attack_table(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    system: str = "model",
    attacks: Sequence[Attack] = ("vanilla", "decoding"),
    suffixes: Suffixes | None = None,
    k: int = 5,
    temperature: float = 1.0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    edit: EditLike | None = None,
    judge: JudgeLike = "rules",
    keep: Callable[[Attack, Completions], None] = lambda *_: None,
) -> pd.DataFrame:
    """Attack ``model`` under ``edit`` on harmful ``prompts``; columns :data:`ATTACK_COLUMNS`.

    ``vanilla``: chat template and system prompt, greedy. ``decoding``: :func:`decoding`. ``suffix``: the suffixes of
    :func:`find_suffixes`, which were made from other prompts. ``keep`` receives the answers of each attack. Raises
    :class:`MechsafetyError` without attacks or prompts, for a prompt that is not harmful, and for the attack
    ``suffix`` without suffixes.

    Arguments:
        attacks: Any of vanilla, decoding and suffix.
        suffixes: Of find_suffixes, for the attack suffix.
        k: Samples per prompt of the attack decoding.
        temperature: Of that sampling.

    Returns:
        One row per attack and measure.

    Example:
        >>> attacks = ms.regions.attack_table(model, prompts.report.harmful, attacks="vanilla", max_new_tokens=4)
        >>> attacks[["attack", "measure"]].to_dict("records")
        [{'attack': 'vanilla', 'measure': 'greedy'}]
    """
    model = as_model(model)
    prompts = as_prompts(prompts)
    edit = None if edit is None else as_edit(edit, model)
    judge = as_judge(judge)
    require_attackable(prompts, attacks)
    if "suffix" in attacks and suffixes is None:
        raise MechsafetyError("the attack 'suffix' needs suffixes: make them with find_suffixes()")
    rows: list[dict[str, Any]] = []
    for attack in dict.fromkeys(attacks):
        common: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "edit": edit,
            "judge": judge,
            "keep": partial(keep, attack),
        }
        if attack == "vanilla":
            found = vanilla(model, prompts, **common)
        elif attack == "decoding":
            found = decoding(model, prompts, k=k, temperature=temperature, **common)
        else:
            assert suffixes is not None
            found = suffix_attack(model, prompts, suffixes, **common)
        rows += attack_rows(found, system=system, attack=attack, seed=seed)
    return pd.DataFrame(rows, columns=list(ATTACK_COLUMNS))


def vanilla(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    seed: int,
    edit: Edit | None = None,
    judge: str | Judge = "rules",
    keep: Keep | None = None,
) -> Attempts:
    """The greedy answer to each prompt in the chat template, with the model's system prompt: no attack at all."""
    answers = generate(model, prompts, edit=edit, max_new_tokens=max_new_tokens, seed=seed, label="answers")
    return Attempts(judged=tuple((j,) for j in judgements(answers, judge=judge, keep=keep)))


def attack_rows(found: Attempts, *, system: str, attack: Attack, seed: int) -> list[dict[str, Any]]:
    """The rows of one attack: greedy for a single attempt at each prompt, else any and mean."""
    tally = found.tally
    common = {
        "system": system,
        "attack": attack,
        "k": found.k,
        "refused": tally.refused.rate,
        "degenerate": tally.degenerated.rate,
        "unparsed": tally.unparsed,
    }
    rows: list[dict[str, Any]] = []
    for measure in ("greedy",) if attack == "vanilla" else ("any", "mean"):
        gated, published = (
            (found.mean(seed=seed), found.mean("published", seed=seed))
            if measure == "mean"
            else (found.any(), found.any("published"))
        )
        unread = tally.unparsed if measure == "mean" else len(found.judged) - gated.n
        rows.append(
            common
            | {"measure": measure, "n": gated.n, "unread": unread}
            | {"asr": gated.rate, "low": gated.low, "high": gated.high}
            | {"published": published.rate, "published_low": published.low, "published_high": published.high}
        )
    return rows


def require_attackable(prompts: Sequence[Prompt], attacks: Sequence[str]) -> None:
    """Raise unless there is something to attack, with something that is known."""
    if not attacks:
        raise MechsafetyError(f"no attack: name one of {', '.join(ATTACKS)}")
    if unknown := [attack for attack in attacks if attack not in ATTACKS]:
        raise MechsafetyError(f"unknown attack {unknown[0]!r}: there are {', '.join(ATTACKS)}")
    if not prompts:
        raise MechsafetyError("no prompts to attack: an attack needs harmful requests")
    if other := [p for p in prompts if p.label != "harmful"]:
        raise MechsafetyError(
            f"prompt {other[0].id!r} is {other[0].label}: success is compliance with harmful requests, so give "
            "those alone (prompts.harmful)"
        )
