"""SNIP and Wanda scores and Gram matrices of every linear map, in one streaming pass over prompts and answers.

Each example is run forward and backward once, for all layers together. The model's parameters need no gradient:
of a map y = W x the hooks see x and the gradient at y, and grad_W L = sum_t (dL/dy_t) x_t^T over the example's
tokens t is one matrix product, whose absolute value is added to a float32 sum at once. What is kept is one such sum
a map and one Gram matrix a site.

Source: Wei et al. 2024 (arXiv 2402.05162), section 3; Lee et al. 2019 (SNIP), Sun et al. 2023 (Wanda).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.progress import bar
from mechsafety.generation.answers import AnswerBatch, Encoded, Example, answer_logits, collate, encode
from mechsafety.generation.completions import out_of_memory
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import device_of, pad_token, plan_batches
from mechsafety.models.forward import evaluating
from mechsafety.models.loading import current_fingerprint, model_name
from mechsafety.regions import score_files
from mechsafety.regions.maps import LinearMap, linear_maps, running_body
from mechsafety.regions.score_files import Attribution, Loss, Positions
from mechsafety.regions.sums import Sums

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_BATCH = 4
_PART = "unfinished scores"
CHECKPOINT_SHARE = 0.05
"""The most of the time that checkpoints may take."""
_DISK = 5e8  # bytes per second: what the first checkpoint, whose cost is not known yet, is reckoned with


def score_weights(
    model: ModelLike,
    examples: Sequence[Example],
    *,
    loss: Loss = "mean",
    positions: Positions = "paper",
    batch_size: int = DEFAULT_BATCH,
    store: str | Path | None = None,
) -> Attribution:
    """SNIP scores and Gram matrices of every linear map over ``examples``, in one pass.

    SNIP is I = mean over examples of |W * grad_W L|, L = -log p(answer | prompt) summed over the answer's tokens
    (``loss="sum"``) or averaged over them, as the released code does, which weighs every example by 1 / length
    (``"mean"``). Gram matrices sum x x^T over the answers' tokens: at the positions of these tokens (``"paper"``, as
    the released mask has it) or at those that predict them, one earlier (``"predictive"``).

    With ``store`` the result is a file, read map by map; a killed call goes on from its last checkpoint, in the
    batches of its first session, and gives the same bytes as one that was not killed; a finished file is opened.

    The model's weights and their ``requires_grad`` are as before. When memory runs out in the first batch, which
    has the longest examples, the batch size is halved. Raises :class:`MechsafetyError` for no examples, an empty
    answer, an example longer than the context, float16 weights (gradients underflow), activations or gradients
    that are NaN or infinite (with the map), a map that does not run on all tokens in order, and a ``store`` that
    holds other scores.

    Experts are scored by the tokens that are routed to them. Their gradients are those of their parameters, in the
    model's number format, so that a model that has some runs one example at a time.

    Arguments:
        positions: paper or predictive, as above.

    Returns:
        The scores [d_out, d_in] and Gram matrices [d_in, d_in], by map; float32.

    Example:
        >>> safety = ms.regions.score_weights(model, examples)
        >>> weight = maps[0].name
        >>> safety.tensors[f"snip/{weight}"].shape == safety.shapes[weight]
        True
    """
    model = as_model(model)
    store = None if store is None else as_path(store)
    if batch_size < 1:
        raise MechsafetyError(f"batch_size is {batch_size}; 1 at least")
    encoded = _checked(model, examples)
    maps = linear_maps(model)
    facts = _facts(model, maps, encoded, loss, positions)
    batch_size = 1 if any(m.expert is not None for m in maps) else batch_size
    part = _Checkpoint.of(store, facts)
    if store is not None and store.is_file():
        part.remove()
        return _finished(store, facts)
    sums, batch_size = part.resume(maps, batch_size)
    with _gradient_through(model) as body, torch.inference_mode(False), torch.enable_grad():
        while True:
            try:
                _stream(model, body, encoded, sums, part, loss, positions, batch_size)
                break
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if sums.batches or batch_size == 1:
                    raise MechsafetyError(
                        f"memory ran out at batch size {batch_size}: give a smaller one, or shorter answers"
                    ) from error
            batch_size //= 2
            sums = Sums.empty(maps)
    result = sums.finish(facts)
    if store is None:
        return result
    result.save(store)
    part.remove()
    return Attribution.open(store)


def _checked(model: TransformerBridge, examples: Sequence[Example]) -> list[Encoded]:
    if not examples:
        raise MechsafetyError("no examples to score the weights with")
    dtype = next(model.parameters()).dtype
    if dtype == torch.float16:
        raise MechsafetyError("gradients underflow in float16: load the model in bfloat16 or float32")
    encoded = encode(model, examples)
    longest = model.cfg.n_ctx
    for number, (prompt, answer) in enumerate(encoded):
        if not examples[number].answer.strip() or not answer:
            raise MechsafetyError(f"example {number} ({examples[number].prompt[:60]!r}) has an empty answer")
        if len(prompt) + len(answer) > longest:
            raise MechsafetyError(
                f"example {number} ({examples[number].prompt[:60]!r}) has {len(prompt) + len(answer)} tokens; the "
                f"model's context holds {longest}"
            )
    return encoded


def _facts(
    model: TransformerBridge,
    maps: Sequence[LinearMap],
    encoded: Sequence[Encoded],
    loss: Loss,
    positions: Positions,
) -> dict[str, Any]:
    return {
        "shapes": {m.name: (m.d_out, m.d_in) for m in maps},
        "sites": {m.name: m.site for m in maps},
        "n_examples": len(encoded),
        "n_tokens": sum(len(answer) for _, answer in encoded),
        "loss": loss,
        "positions": positions,
        "model": model_name(model),
        "fingerprint": current_fingerprint(model),
        "examples_sha256": hashlib.sha256(json.dumps(encoded).encode()).hexdigest(),
    }


def _finished(store: Path, facts: dict[str, Any]) -> Attribution:
    found = Attribution.open(store)
    changed = [name for name, value in facts.items() if getattr(found, name) != value]
    if changed:
        raise MechsafetyError(
            f"{str(store)!r} holds other scores ({', '.join(changed)} differ): name another file, or remove it"
        )
    return found


def _stream(
    model: TransformerBridge,
    body: Any,
    encoded: Sequence[Encoded],
    sums: Sums,
    part: _Checkpoint,
    loss: Loss,
    positions: Positions,
    batch_size: int,
) -> None:
    """Add every batch of the plan that is not in ``sums`` yet."""
    plan = plan_batches([len(prompt) + len(answer) for prompt, answer in encoded], batch_size=batch_size)
    done = sums.batches
    with sums.watching(model_name(model)), bar("attribution", total=len(encoded), unit="example") as progress:
        progress.update(sum(len(rows) for rows in plan[:done]))
        for rows in plan[done:]:
            batch = collate([encoded[row] for row in rows], pad=pad_token(model))
            sums.begin(batch, positions, device_of(model))
            total = _loss(body, batch.to(device_of(model)), loss)
            sums.require_finite(total.detach(), "the loss, behind the last map that is scored,")
            total.backward()
            sums.end()
            part.keep(sums, batch_size=batch_size)
            progress.update(len(rows))


@contextmanager
def _gradient_through(model: TransformerBridge) -> Iterator[Any]:
    """The body to run, with gradients of activations and of no parameter."""
    body = running_body(model)
    learning = [p for p in body.parameters() if p.requires_grad]

    def begin(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        output.requires_grad_(True)

    handle = body.get_input_embeddings().register_forward_hook(begin)
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with evaluating(body):
            yield body
    finally:
        handle.remove()
        for parameter in learning:
            parameter.requires_grad_(True)


def _loss(body: Any, batch: AnswerBatch, loss: Loss) -> Float[Tensor, ""]:
    """The sum over examples of each one's loss, so that one backward pass gives each its own gradient."""
    kept = batch.weights[:, 1:] > 0
    labels = batch.labels[:, 1:][kept]
    each = nn.functional.cross_entropy(answer_logits(body, batch).float(), labels, reduction="none")
    if loss == "sum":
        return each.sum()
    lengths = kept.sum(-1, keepdim=True).expand_as(kept)
    return (each / lengths[kept]).sum()


@dataclass(kw_only=True, eq=False)
class _Checkpoint:
    """The checkpoint of unfinished work beside ``store``; without a store, nothing."""

    path: Path | None
    facts: dict[str, Any]
    saved_at: float
    cost: float = 0.0

    @classmethod
    def of(cls, store: Path | None, facts: dict[str, Any]) -> _Checkpoint:
        path = None if store is None else store.with_name(f"{store.stem}.part.safetensors")
        return cls(path=path, facts=json.loads(json.dumps(facts)), saved_at=time.perf_counter())

    def resume(self, maps: Sequence[LinearMap], batch_size: int) -> tuple[Sums, int]:
        """Sums and batch size: those of the checkpoint, if there is a fitting one."""
        sums = Sums.empty(maps)
        if self.path is None or not self.path.is_file():
            return sums, batch_size
        facts = score_files.read_facts(self.path, kind=_PART)
        if facts["facts"] != self.facts:
            raise MechsafetyError(
                f"{str(self.path)!r} holds the unfinished scores of other examples, settings or weights: name another "
                "file, or remove it"
            )
        stored = score_files.StoredTensors(self.path)
        for name, tensor in _named(sums).items():
            tensor.copy_(stored[name])
        sums.batches = facts["batches"]
        return sums, facts["batch_size"]

    def keep(self, sums: Sums, *, batch_size: int) -> None:
        """Write a checkpoint if that has become cheap beside the work since the last one."""
        tensors = _named(sums)
        cost = self.cost or sum(t.numel() * t.element_size() for t in tensors.values()) / _DISK
        if self.path is None or time.perf_counter() - self.saved_at < cost / CHECKPOINT_SHARE:
            return
        started = time.perf_counter()
        facts = {"facts": self.facts, "batch_size": batch_size, "batches": sums.batches}
        score_files.FILES.write(self.path, tensors, {"kind": _PART, **facts})
        self.saved_at = time.perf_counter()
        self.cost = self.saved_at - started

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _named(sums: Sums) -> dict[str, Tensor]:
    return {f"gradient/{name}": value for name, value in sums.gradients.items()} | {
        f"gram/{name}": value for name, value in sums.grams.items()
    }
