"""Safety fine-tuning of real models as LoRA adapters: the rung ``refusals``."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.pytorch_utils import Conv1D

from mechsafety.answers import Example, answer_logits, answer_loss, collate, encode, shuffled
from mechsafety.errors import MechsafetyError
from mechsafety.generation import generate
from mechsafety.hooking import plain_module_path
from mechsafety.judging import judged_as
from mechsafety.models import generation_twin, load_record
from mechsafety.progress import bar
from mechsafety.prompts import Prompt, PromptSet, load_prompts
from mechsafety.refusals import write_refusal
from mechsafety.tokens import device_of, pad_token

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class TuningRecipe:
    """How an adapter is trained: LoRA on every linear map of the blocks from ``from_depth`` on.

    The lower half tells harmful from harmless already; leaving it alone halves the backward pass and
    keeps the adapter from learning the training prompts by heart.
    The first ``opening_tokens`` of an answer decide whether it refuses, so they count ``opening_weight``
    times. ``strength`` scales the finished adapter: below 1 it refuses less of everything, which trades
    refused harmless requests against missed harmful ones. ``answer_tokens`` is the length of the model's
    own answers to harmless prompts. ``max_steps`` cuts training short. The same recipe and seed on the
    same machine give the same adapter.
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
    seed: int = 0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch_size", "answer_tokens"):
            if getattr(self, name) < 1:
                raise MechsafetyError(f"{name} is {getattr(self, name)}; 1 at least")


@dataclass(frozen=True, kw_only=True)
class TuningResult:
    """Where the adapter lies, and the loss of every step (nats per answer token)."""

    folder: Path
    losses: tuple[float, ...]
    n_refusals: int
    n_answers: int


def refusal_examples(
    model: TransformerBridge, prompts: PromptSet, contrast: PromptSet, *, recipe: TuningRecipe
) -> list[Example]:
    """Written refusals for harmful prompts, the model's own answers for harmless and contrast ones.

    Own answers that refuse or degenerate (judge ``rules``) are left out: they would teach refusing.
    """
    generator = random.Random(recipe.seed)
    refusals = [
        Example(prompt=p.text, answer=write_refusal(p.category, generator=generator), whole=True)
        for p in prompts.harmful
    ]
    harmless = [*prompts.harmless, *contrast]
    answers = _own_answers(model, harmless, recipe=recipe)
    return refusals + answers


def _own_answers(
    model: TransformerBridge, prompts: Sequence[Prompt], *, recipe: TuningRecipe
) -> list[Example]:
    completions = generate(
        model, prompts, max_new_tokens=recipe.answer_tokens, seed=recipe.seed, label="own answers"
    )
    kept = judged_as(completions, "compliance")
    return [
        Example(prompt=c.prompt, answer=c.text, whole=c.finish == "stop") for c in completions if c.id in kept
    ]


def tune_refusals(
    model: TransformerBridge,
    out: Path,
    *,
    recipe: TuningRecipe | None = None,
    prompts: PromptSet | None = None,
    contrast: PromptSet | None = None,
) -> TuningResult:
    """Train the rung ``refusals`` on ``model`` and write the adapter (bfloat16 safetensors) to ``out``.

    The model itself is left as it was. Trains on the fit split only (default: the packaged prompts).
    Raises :class:`MechsafetyError` when ``out`` holds something already.
    """
    recipe = recipe or TuningRecipe()
    require_empty(out)
    fit = (prompts or load_prompts("default")).fit
    safe = (contrast or load_prompts("contrast")).fit
    examples = refusal_examples(model, fit, safe, recipe=recipe)
    n_refusals = len(fit.harmful)
    losses = train_adapter(model, examples, out, recipe=recipe)
    record = load_record(model)
    facts = {
        "recipe": asdict(recipe),
        "base": record.spec if record else None,
        "base_fingerprint": record.fingerprint if record else None,
        "prompts_sha256": fit.sha256(),
        "contrast_sha256": safe.sha256(),
        "n_refusals": n_refusals,
        "n_answers": len(examples) - n_refusals,
        "first_losses": [round(x, 4) for x in losses[:5]],
        "last_losses": [round(x, 4) for x in losses[-5:]],
    }
    (out / "recipe.json").write_text(json.dumps(facts, indent=2) + "\n")
    return TuningResult(
        folder=out, losses=losses, n_refusals=n_refusals, n_answers=len(examples) - n_refusals
    )


def require_empty(out: Path) -> None:
    """Raise when ``out`` is a file or holds something already."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise MechsafetyError(f"{str(out)!r} is not empty: name a new folder for the adapter")


def train_adapter(
    model: TransformerBridge, examples: Sequence[Example], out: Path, *, recipe: TuningRecipe
) -> tuple[float, ...]:
    """Fit a LoRA adapter to ``examples`` by cross-entropy on the answers' tokens, and save it."""
    from peft import LoraConfig, get_peft_model

    twin = generation_twin(model)
    if twin is None:
        raise MechsafetyError("tuning needs a model that load_model loaded")
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
            losses = _train(model, tuned, examples, recipe)
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


def _train(
    model: TransformerBridge, tuned: Any, examples: Sequence[Example], recipe: TuningRecipe
) -> tuple[float, ...]:
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    encoded = encode(model, examples)
    steps = recipe.epochs * -(-len(encoded) // recipe.batch_size)
    steps = min(steps, recipe.max_steps or steps)
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.0, 1 - step / steps))
    tuned.train()
    losses: list[float] = []
    with bar("tuning", total=steps, unit="step") as progress:
        for batch in shuffled(encoded, epochs=recipe.epochs, batch_size=recipe.batch_size, seed=recipe.seed):
            answers = collate(
                batch,
                pad=pad_token(model),
                opening_tokens=recipe.opening_tokens,
                opening_weight=recipe.opening_weight,
            ).to(device_of(model))
            loss = answer_loss(answer_logits(tuned, answers), answers)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
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
