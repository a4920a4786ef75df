"""Benign fine-tuning as an attack on refusals, and two ways of protecting a set of weights from it.

``freeze`` keeps the set out of training: no gradient, no movement of the optimiser's state, no weight decay
(:func:`finetuned` with ``frozen``). ``rewind`` trains everything and puts the set's first values back afterwards
(:meth:`rewound`). The two are different experiments: frozen, the set has the other weights learn around it;
rewound, they have learned together with values that are gone. Table 3 of Wei et al. (ICML 2024, arXiv 2402.05162) is
called freezing there and is a rewind.

Trained are the weights of every linear map of every block, in full (no adapter). Embeddings, unembedding, norms and
biases stay as they are, as everywhere in :mod:`mechsafety.regions`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mechsafety.core.boundary import checked_construction
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.places import data_folder
from mechsafety.core.progress import bar
from mechsafety.generation.answers import (
    AnswerBatch,
    Example,
    answer_logits,
    answer_loss,
    collate,
    encode,
    shuffled,
)
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import device_of, pad_token
from mechsafety.models.loading import model_name
from mechsafety.models.prefixes import goes_on, shared_prefix
from mechsafety.prompts.files import read_rows
from mechsafety.regions.maps import LinearMap, linear_maps, running_body
from mechsafety.regions.removal import Pruning, replace_entries, require_made_for

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked_construction
@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """AdamW (Loshchilov and Hutter 2019) on all weights of the maps, with a rate that falls linearly to 0.

    Answers are cut to ``answer_tokens``. Rate and epochs were chosen among a few on validation prompts of the packaged
    refusing model, so that 10 examples take a part of its refusals; a model of 7 billion weights wants about 2e-5.
    Raises :class:`MechsafetyError` for a number that trains nothing.

    Arguments:
        learning_rate: At the first step.
        epochs: How often each example is seen.
        batch_size: Examples per step.
        weight_decay: Of AdamW.

    Example:
        >>> ms.regions.FinetuneRecipe(learning_rate=2e-5).epochs
        3
    """

    learning_rate: float = 5e-4
    epochs: int = 3
    batch_size: int = 10
    weight_decay: float = 0.01
    answer_tokens: int = 48

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "answer_tokens"):
            if getattr(self, name) < 1:
                raise MechsafetyError(f"{name} is {getattr(self, name)}; 1 at least")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise MechsafetyError(f"learning_rate is {self.learning_rate}; it must be above 0, such as 5e-4")
        if not 0 <= self.weight_decay < 1 / self.learning_rate:
            raise MechsafetyError(
                f"weight_decay is {self.weight_decay}; it must be 0 or more, and below 1 / learning_rate"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Finetuned:
    """What a fine-tuning did: the loss of every step (nats an answer token, before the step), and to how many weights.

    ``maps`` and ``first`` are the maps and their values before it, for :meth:`rewound`.
    """

    losses: tuple[float, ...]
    n_examples: int
    n_weights: int
    n_frozen: int
    maps: tuple[LinearMap, ...] = field(repr=False)
    first: Mapping[nn.Parameter, Tensor] = field(repr=False)

    @contextmanager
    def rewound(self, weights: Pruning) -> Iterator[None]:
        """The fine-tuned model with the values that ``weights`` had before; fine-tuned again when the block ends.

        Raises :class:`MechsafetyError` for a set made for another model.
        """
        require_made_for(weights, self.maps, "the fine-tuned model")
        undo: list[tuple[LinearMap, Tensor]] = []
        try:
            for linear in self.maps:
                entries = weights.entries.get(linear.name)
                if entries is not None and len(entries):
                    first = self._first(linear).flatten()
                    first = first[entries.to(first.device, torch.long)]
                    undo.append((linear, replace_entries(linear, entries, first)))
            yield
        finally:
            for linear, tuned in undo:
                replace_entries(linear, weights.entries[linear.name], tuned)

    def _first(self, linear: LinearMap) -> Float[Tensor, "d_out d_in"]:
        place = linear.places[0]
        values = nn.Parameter(self.first[place.parameter], requires_grad=False)
        return replace(place, parameter=values).read()


def benign_examples() -> list[Example]:
    """The packaged benign instructions with their answers (``data/benign/instructions.jsonl``), in their order."""
    path = data_folder() / "benign" / "instructions.jsonl"
    return [
        Example(prompt=row["instruction"], answer=row["answer"], whole=True) for _, row in read_rows(path)
    ]


def drawn(examples: Sequence[Example], n: int, *, seed: int) -> list[Example]:
    """``n`` of the examples; what a seed draws for a smaller ``n`` it draws for a larger one too."""
    if not 1 <= n <= len(examples):
        raise MechsafetyError(f"{n} examples to fine-tune on; there are 1 to {len(examples)}")
    return random.Random(seed).sample(list(examples), len(examples))[:n]


@contextmanager
def finetuned(
    model: ModelLike,
    examples: Sequence[Example],
    *,
    recipe: FinetuneRecipe = FinetuneRecipe(),
    frozen: Pruning | None = None,
    seed: int = 0,
    maps: Sequence[LinearMap] | None = None,
) -> Iterator[Finetuned]:
    """``model`` fine-tuned on ``examples``; its weights are as they were, bit for bit, when the block ends.

    The loss is the mean cross-entropy of a batch's answer tokens, in the model's own chat template, without dropout.
    Training runs in the model's number format around float32 weights: after each step the model gets them rounded.
    Bridge, plain twin and TransformerLens' copies of joint projections carry the result. ``seed`` orders the examples.
    The weights of ``frozen`` keep their values through every step; None trains all.

    Memory beside the model, in bytes per weight of the maps: in bfloat16 20 while it trains (12 for AdamW's weights and
    moments in float32, 6 for gradients, 2 for a copy of the model's values) and 2 afterwards; in float32 16 and 4.
    One more where weights are frozen. Of 106 million weights in bfloat16 that makes 2.1 GB.

    Raises :class:`MechsafetyError` without examples, for a set made for another model, and when the loss is no
    longer a number.

    Arguments:
        recipe: How it is trained.

    Returns:
        A context manager that gives what the training did: its losses, in nats per answer token.

    Example:
        >>> before = ms.logits(model, prompts.report)
        >>> with ms.regions.finetuned(model, examples, seed=0):
        ...     tuned = ms.logits(model, prompts.report)
        >>> bool((tuned == before).all()), bool((ms.logits(model, prompts.report) == before).all())
        (False, True)
    """
    model = as_model(model, by_name=False)
    if not examples:
        raise MechsafetyError("no examples to fine-tune on: give one at least")
    found = list(maps) if maps is not None else linear_maps(model)
    if frozen is not None:
        require_made_for(frozen, found, model_name(model))
    with torch.inference_mode(False):
        kept = {p: p.detach().clone() for p in _parameters(found)}
    try:
        # Under an outer inference_mode or no_grad nothing could be trained.
        with torch.inference_mode(False), torch.enable_grad(), _gradients(kept):
            weights = _weights(found, kept, frozen)
            losses = _train(model, weights, examples, recipe=recipe, seed=seed)
            del weights  # what is measured next needs the memory
        for linear in found:
            if len(linear.places) > 1:
                linear.write(linear.weight().clone())
        yield Finetuned(
            losses=losses,
            n_examples=len(examples),
            n_weights=sum(m.d_out * m.d_in for m in found),
            n_frozen=frozen.n_removed if frozen is not None else 0,
            maps=tuple(found),
            first=kept,
        )
    finally:
        for parameter, values in kept.items():
            parameter.detach().copy_(values)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Weight:
    """One parameter that runs: its float32 weights (itself where it is float32), its first values, what is frozen."""

    parameter: nn.Parameter
    master: Float[Tensor, "row column"]
    first: Float[Tensor, "row column"]
    frozen: Bool[Tensor, "row column"] | None

    def take(self, gradient: Float[Tensor, "row column"]) -> None:
        """Hand the gradient to the optimiser, 0 where the weight is frozen."""
        # The fused optimiser walks through memory: weights and gradients must lie in the same order.
        own = gradient.to(torch.float32).contiguous()
        self.master.grad = own if self.frozen is None else own.masked_fill(self.frozen, 0.0)

    def store(self) -> None:
        """Undo the weight decay of frozen weights, and round the float32 weights into the model."""
        if self.frozen is not None:
            self.master.copy_(torch.where(self.frozen, self.first.to(torch.float32), self.master))
        self.parameter.detach().copy_(self.master)


def _weights(
    maps: Sequence[LinearMap], first: Mapping[nn.Parameter, Tensor], frozen: Pruning | None
) -> list[_Weight]:
    by_parameter: dict[nn.Parameter, list[LinearMap]] = {}
    for linear in maps:
        by_parameter.setdefault(linear.places[0].parameter, []).append(linear)
    return [
        _Weight(
            parameter=parameter,
            master=parameter.detach().to(torch.float32).contiguous(),
            first=first[parameter],
            frozen=_mask(parameter, stored, frozen) if frozen is not None else None,
        )
        for parameter, stored in by_parameter.items()
    ]


def _mask(
    parameter: nn.Parameter, maps: Sequence[LinearMap], weights: Pruning
) -> Bool[Tensor, "row column"] | None:
    """The set in the parameter's own layout; None where it has no entry there."""
    if not any(len(weights.entries.get(m.name, ())) for m in maps):
        return None
    marks = nn.Parameter(torch.zeros_like(parameter), requires_grad=False)
    for linear in maps:
        if linear.name in weights.entries:
            mask = _entries_mask(linear, weights.entries[linear.name])
            replace(linear.places[0], parameter=marks).write(mask.to(marks.dtype))
    return marks.detach() != 0


def _entries_mask(linear: LinearMap, entries: Int[Tensor, " entry"]) -> Bool[Tensor, "d_out d_in"]:
    device = linear.places[0].parameter.device
    flat = torch.zeros(linear.d_out * linear.d_in, dtype=torch.bool, device=device)
    flat[entries.to(device, torch.long)] = True
    return flat.view(linear.d_out, linear.d_in)


def _train(
    model: TransformerBridge,
    weights: Sequence[_Weight],
    examples: Sequence[Example],
    *,
    recipe: FinetuneRecipe,
    seed: int,
) -> tuple[float, ...]:
    body: Any = running_body(model)
    pairs = encode(model, examples)
    # Padded on the right: no gap behind the shared tokens, so that keys to go on from are all it takes.
    shared = shared_prefix([prompt for prompt, _ in pairs]) if goes_on(body, device_of(model)) else []
    encoded = [(prompt[len(shared) :], answer[: recipe.answer_tokens]) for prompt, answer in pairs]
    steps = recipe.epochs * -(-len(encoded) // recipe.batch_size)
    optimiser = torch.optim.AdamW(
        [w.master for w in weights], lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    losses: list[float] = []
    with bar("fine-tuning", total=steps, unit="step") as progress:
        for batch in shuffled(encoded, epochs=recipe.epochs, batch_size=recipe.batch_size, seed=seed):
            answers = collate(batch, pad=pad_token(model)).to(device_of(model))
            loss = answer_loss(_logits(body, shared, answers), answers)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise MechsafetyError(
                    f"{model_name(model)}: the loss is {losses[-1]} after {len(losses) - 1} steps: choose a smaller "
                    f"learning rate than {recipe.learning_rate:g}"
                )
            # Not backward(): a model that the user booted may want gradients elsewhere.
            gradients = torch.autograd.grad(loss, [w.parameter for w in weights], materialize_grads=True)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.take(gradient)
            del gradients
            optimiser.step()
            schedule.step()
            for weight in weights:
                weight.store()
            progress.update(1)
    return tuple(losses)


def _logits(body: Any, shared: list[int], batch: AnswerBatch) -> Float[Tensor, "answer_token vocabulary"]:
    """:func:`answer_logits`, with the tokens that all prompts begin with run once for the whole batch."""
    if not shared:
        return answer_logits(body, batch)
    device = batch.ids.device
    before = body.base_model(input_ids=torch.tensor([shared], device=device), use_cache=True).past_key_values
    before.batch_repeat_interleave(len(batch.ids))
    return answer_logits(body, batch, cache=before, n_cached=len(shared))


def _parameters(maps: Sequence[LinearMap]) -> list[nn.Parameter]:
    """Every parameter that holds a map, copies too, each once."""
    return list(dict.fromkeys(place.parameter for m in maps for place in m.places))


@contextmanager
def _gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let autograd reach the parameters while the block runs."""
    before = {p: p.requires_grad for p in parameters}
    try:
        for p in before:
            p.requires_grad_(True)
        yield
    finally:
        for p, wanted in before.items():
            p.requires_grad_(wanted)
