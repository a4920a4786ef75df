"""Safety fine-tuning of real models as LoRA adapters: one adapter a rung."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.pytorch_utils import Conv1D

from mechsafety.core.arguments import as_path
from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.core.values import Value
from mechsafety.generation.answers import (
    AnswerBatch,
    Encoded,
    Example,
    answer_logits,
    answer_loss,
    collate,
    encode,
    shuffled,
)
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import device_of, pad_token
from mechsafety.models.hooking import plain_module_path
from mechsafety.models.loading import generation_twin, load_record, model_name
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.splits import require_disjoint
from mechsafety.tuning.objectives import Objective, answer_log_likelihoods, dpo_loss, unlearning_loss
from mechsafety.tuning.rungs import ANSWERS, OBJECTIVE, RUNGS, Rung, rung_examples

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel


@checked_construction
@dataclass(frozen=True, kw_only=True)
class TuningRecipe:
    """How an adapter is trained: LoRA on every linear map of the blocks from ``from_depth`` on.

    The lower half separates harmful from harmless already; leaving it alone halves the backward pass and
    keeps the adapter from learning the training prompts by heart.
    The first ``opening_tokens`` of an answer decide whether it refuses, so they count ``opening_weight``
    times in cross-entropy (not in DPO, nor in what is unlearned). ``strength`` scales the finished adapter: below 1 it
    refuses less of everything, which trades refused harmless requests against missed harmful ones. ``answer_tokens`` is
    the length of the model's own answers. ``beta`` is DPO's; ``unlearning_weight`` is the share of the dispreferred
    answers' cross-entropy that is taken off. ``max_steps`` cuts training short. The same recipe and seed on the same
    machine give the same adapter.

    Arguments:
        rank: Rank of the adapter.
        scale: What the adapter's product is multiplied by while it is trained.
        learning_rate: Of AdamW at the first step; it falls linearly to 0.
        epochs: How often each example is seen.
        batch_size: Examples per step.

    Example:
        >>> ms.anatomy.TuningRecipe(rank=4, max_steps=100).strength
        0.9
    """

    rank: int = 8
    from_depth: float = 0.5
    scale: float = 2.0
    learning_rate: float = 2e-3
    epochs: int = 4
    batch_size: int = 16
    answer_tokens: int = 32
    opening_tokens: int = 3
    opening_weight: float = 8.0
    strength: float = 0.9
    beta: float = 0.1
    unlearning_weight: float = 0.1
    seed: int = 0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size", "answer_tokens", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MechsafetyError(f"{name} is {value}; 1 at least")
        for name in ("learning_rate", "beta", "scale", "strength", "opening_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise MechsafetyError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if not 0 <= self.from_depth < 1:
            raise MechsafetyError(f"from_depth is {self.from_depth}; 0 at least and below 1")
        if not 0 <= self.unlearning_weight < math.inf:
            raise MechsafetyError(f"unlearning_weight is {self.unlearning_weight}; 0 at least and finite")


RECIPES: Mapping[Rung, TuningRecipe] = {
    **dict.fromkeys(RUNGS, TuningRecipe()),
    "dpo": TuningRecipe(learning_rate=1e-3, epochs=1, strength=1.0),
    "unlearn": TuningRecipe(epochs=2),
}
"""The recipe of each packaged adapter."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TuningResult(Value):
    """Where the adapter lies, the loss of every step, and what it was trained on.

    Losses are nats per answer token, in DPO nats per pair. ``n_harmful`` and ``n_harmless`` count the preferred
    answers, ``n_dispreferred`` the dispreferred ones.
    """

    folder: Path
    losses: tuple[float, ...]
    n_harmful: int
    n_harmless: int
    n_dispreferred: int

    def to_frame(self) -> pd.DataFrame:
        """One row per step: step, loss."""
        import pandas as pd

        return pd.DataFrame({"step": range(len(self.losses)), "loss": self.losses})

    def describe(self) -> str:
        last = f"last loss {self.losses[-1]:.3f}" if self.losses else "no step"
        return (
            f"TuningResult({str(self.folder)!r}: {len(self.losses)} steps, {last}; {self.n_harmful} harmful, "
            f"{self.n_harmless} harmless, {self.n_dispreferred} dispreferred answers)"
        )


def tune(
    model: ModelLike,
    out: str | Path,
    *,
    rung: Rung,
    recipe: TuningRecipe | None = None,
    prompts: PromptsLike = "default",
    contrast: PromptsLike = "contrast",
    tag_share: float | None = None,
) -> TuningResult:
    """Train one rung on ``model`` and write the adapter (bfloat16 safetensors) and its recipe to ``out``.

    The model itself is left as it was. Trains on the fit split only (default: the packaged prompts); what the model
    answers is not written anywhere. Without ``recipe``: the rung's own in :data:`RECIPES`. See
    :func:`rung_examples` for what a rung is, and for ``tag_share``, which no packaged adapter has.

    Raises :class:`MechsafetyError` when ``out`` holds something already, when nothing is left to train on, and when the
    loss is no longer finite.

    Arguments:
        rung: refusals, rephrase, metatags, all, dpo, unlearn or benign.
        contrast: Harmless prompts that look like harmful ones.

    Returns:
        Where the adapter is, and how the loss fell.

    Example:
        >>> recipe = ms.anatomy.TuningRecipe(max_steps=1)
        >>> ms.anatomy.tune(model, "adapters/refusals", rung="refusals", recipe=recipe, prompts="own.csv").folder.name
        'refusals'
    """
    model = as_model(model)
    out = as_path(out)
    recipe = recipe or RECIPES[rung]
    require_empty(out)
    fit, safe = as_prompt_set(prompts).to_estimate, as_prompt_set(contrast).to_estimate
    require_disjoint(prompt=fit, contrast=safe)
    examples = rung_examples(
        model,
        rung,
        prompts=fit,
        contrast=safe,
        answer_tokens=recipe.answer_tokens,
        seed=recipe.seed,
        tag_share=tag_share,
    )
    losses = train_adapter(
        model,
        examples.preferred,
        out,
        recipe=recipe,
        objective=OBJECTIVE[rung],
        dispreferred=examples.dispreferred,
    )
    n_harmless = len(examples.preferred) - examples.n_harmful
    record = load_record(model)
    facts = {
        "rung": rung,
        "objective": OBJECTIVE[rung],
        "recipe": asdict(recipe),
        "base": record.spec if record else None,
        "base_fingerprint": record.fingerprint if record else None,
        "prompts_sha256": fit.sha256(),
        "contrast_sha256": safe.sha256(),
        "n_harmful": examples.n_harmful,
        "n_harmless": n_harmless,
        "n_dispreferred": len(examples.dispreferred),
        "answers_to_harmful_prompts": ANSWERS[rung],
        "first_losses": [round(x, 4) for x in losses[:5]],
        "last_losses": [round(x, 4) for x in losses[-5:]],
    } | ({} if tag_share is None else {"tag_share": tag_share})
    (out / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
    return TuningResult(
        folder=out,
        losses=losses,
        n_harmful=examples.n_harmful,
        n_harmless=n_harmless,
        n_dispreferred=len(examples.dispreferred),
    )


def require_empty(out: str | Path) -> None:
    """Raise when ``out`` is a file or holds something already."""
    out = as_path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MechsafetyError(f"{str(out)!r} is not empty: name a new folder for the adapter")


def train_adapter(
    model: TransformerBridge,
    examples: Sequence[Example],
    out: str | Path,
    *,
    recipe: TuningRecipe,
    objective: Objective = "sft",
    dispreferred: Mapping[str, Example] | None = None,
) -> tuple[float, ...]:
    """Fit a LoRA adapter to ``examples`` by ``objective``, save it to ``out`` and return the loss of every step.

    ``dispreferred`` holds the dispreferred answer to a prompt. DPO needs one for every example; the reference is the
    model without the adapter. Raises :class:`MechsafetyError` where it is missing, or when there is no example.
    """
    out = as_path(out)
    from peft import LoraConfig, get_peft_model

    twin = generation_twin(model)
    if twin is None:
        raise MechsafetyError(
            "tuning needs a model that load_model loaded, without hooks, adapters or processing of your own"
        )
    data = _Data.encoded(model, examples, dispreferred or {}, objective=objective)
    names = _linear_maps(model, twin, from_depth=recipe.from_depth)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=round(recipe.scale * recipe.rank),
        target_modules=names,
        fan_in_fan_out=all(isinstance(twin.get_submodule(name), Conv1D) for name in names),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        with warnings.catch_warnings():
            # peft 0.21 reads a name that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            tuned = get_peft_model(cast("Any", twin), config)
        try:
            losses = _train(model, tuned, data, objective=objective, recipe=recipe)
            _save(model, tuned, out, strength=recipe.strength)
        finally:
            tuned.unload()
            twin.requires_grad_(False).eval()
    return losses


def _linear_maps(model: TransformerBridge, twin: PreTrainedModel, *, from_depth: float) -> list[str]:
    """Full names of the linear maps in the upper blocks, found by module and not by name."""
    names = []
    for layer in range(int(from_depth * model.cfg.n_layers), model.cfg.n_layers):
        place = plain_module_path(model, f"blocks.{layer}.hook_resid_pre")
        if place is None:
            raise MechsafetyError(
                f"block {layer} of {type(twin).__name__} is no plain module: it cannot be tuned"
            )
        block = twin.get_submodule(place[0])
        names += [
            f"{place[0]}.{name}"
            for name, module in block.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        ]
    return names


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Encoded preferred answers, and by a prompt's tokens the dispreferred answer to it."""

    preferred: list[Encoded]
    dispreferred: dict[tuple[int, ...], Encoded]

    @staticmethod
    def encoded(
        model: TransformerBridge,
        examples: Sequence[Example],
        dispreferred: Mapping[str, Example],
        *,
        objective: Objective,
    ) -> _Data:
        if not examples:
            raise MechsafetyError(
                "no example to train on: every answer refuses or degenerates, or no prompt fits"
            )
        missing = sum(e.prompt not in dispreferred for e in examples)
        if objective == "dpo" and missing:
            raise MechsafetyError(f"dpo needs a dispreferred answer to every prompt; {missing} have none")
        away = encode(model, list(dispreferred.values())) if objective != "sft" and dispreferred else []
        return _Data(preferred=encode(model, examples), dispreferred={tuple(e[0]): e for e in away})

    def against(self, batch: Sequence[Encoded]) -> list[Encoded]:
        """The dispreferred answers to the prompts of ``batch``, where there are any."""
        return [away for e in batch if (away := self.dispreferred.get(tuple(e[0]))) is not None]


@dataclass(kw_only=True)
class _Losses:
    """The loss of a batch under the objective."""

    model: TransformerBridge
    tuned: Any
    data: _Data
    objective: Objective
    recipe: TuningRecipe

    def __call__(self, batch: Sequence[Encoded]) -> torch.Tensor:
        away = self.data.against(batch)
        if self.objective == "dpo":
            return self._dpo(self._collated(batch), self._collated(away))
        answers = self._collated(batch, self.recipe.opening_tokens, self.recipe.opening_weight)
        loss = answer_loss(answer_logits(self.tuned, answers), answers)
        if self.objective == "sft" or not away:
            return loss
        unwanted = self._collated(away)
        return unlearning_loss(
            loss,
            answer_loss(answer_logits(self.tuned, unwanted), unwanted),
            weight=self.recipe.unlearning_weight,
        )

    def _dpo(self, preferred: AnswerBatch, dispreferred: AnswerBatch) -> torch.Tensor:
        with torch.no_grad(), self.tuned.disable_adapter():
            before = [self._log_likelihoods(batch) for batch in (preferred, dispreferred)]
        now = [self._log_likelihoods(batch) for batch in (preferred, dispreferred)]
        return dpo_loss(
            preferred=now[0],
            dispreferred=now[1],
            reference_preferred=before[0],
            reference_dispreferred=before[1],
            beta=self.recipe.beta,
        )

    def _log_likelihoods(self, batch: AnswerBatch) -> torch.Tensor:
        return answer_log_likelihoods(answer_logits(self.tuned, batch), batch)

    def _collated(
        self, batch: Sequence[Encoded], opening_tokens: int = 0, opening_weight: float = 1.0
    ) -> AnswerBatch:
        return collate(
            batch, pad=pad_token(self.model), opening_tokens=opening_tokens, opening_weight=opening_weight
        ).to(device_of(self.model))


def _train(
    model: TransformerBridge, tuned: Any, data: _Data, *, objective: Objective, recipe: TuningRecipe
) -> tuple[float, ...]:
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    steps = recipe.epochs * -(-len(data.preferred) // recipe.batch_size)
    steps = min(steps, recipe.max_steps or steps)
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.0, 1 - step / steps))
    loss_of = _Losses(model=model, tuned=tuned, data=data, objective=objective, recipe=recipe)
    tuned.eval()  # no dropout: DPO's reference and the model must be the same function of the same text
    losses: list[float] = []
    with bar("tuning", total=steps, unit="step") as progress:
        for batch in shuffled(
            data.preferred, epochs=recipe.epochs, batch_size=recipe.batch_size, seed=recipe.seed
        ):
            loss = loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise MechsafetyError(
                    f"{model_name(model)}: the loss is {losses[-1]} at step {len(losses)}: "
                    f"try a learning rate below {recipe.learning_rate:g}"
                )
            progress.set_postfix(loss=f"{losses[-1]:.3f}")
            progress.update(1)
            if len(losses) == steps:
                break
    return tuple(losses)


def _save(model: TransformerBridge, tuned: Any, out: Path, *, strength: float) -> None:
    from safetensors.torch import load_file, save_file

    record = load_record(model)
    for config in tuned.peft_config.values():
        config.base_model_name_or_path = record.spec if record else None
        config.inference_mode = True
        config.target_modules = sorted(config.target_modules)  # a set would be saved in any order
    tuned.save_pretrained(out, save_embedding_layers=False)
    file = out / "adapter_model.safetensors"
    stored = {
        # B A x is linear in B, so scaling B scales the adapter.
        name: (t * strength if ".lora_B" in name else t).to(torch.bfloat16)
        for name, t in load_file(file).items()
    }
    save_file(stored, file, metadata={"format": "pt"})
    (out / "README.md").unlink(missing_ok=True)  # peft's empty model card
