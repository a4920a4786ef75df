"""Completions under an edit: greedy by default, in a fixed plan of length-sorted batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import MAX_NEW_TOKENS, RESPONSES_AT_ONCE
from mechsafety.core.progress import bar, with_progress
from mechsafety.edits.interventions import Edit, SideBySide, edited, targets_on
from mechsafety.edits.sums import EditLike, as_edit
from mechsafety.generation.answered import Completion, Completions
from mechsafety.generation.hugging_face import Asking, Sampling, hf_answers
from mechsafety.generation.kept_batches import KeptBatches, interruptible
from mechsafety.generation.served import Agreed, Asked, Server, by_server
from mechsafety.models import hooked_transformers
from mechsafety.models.accepted import ModelLike, as_model
from mechsafety.models.chat import (
    Rendering,
    TokenBatch,
    after_thoughts,
    answer_prefix,
    device_of,
    pad_left,
    pad_token,
    plan_batches,
    tokenize_prompts,
)
from mechsafety.models.finite import finite_logits
from mechsafety.models.forward import evaluating
from mechsafety.models.hooking import Coverage, plain_twin_at
from mechsafety.models.loading import body_of, is_hooked_transformer
from mechsafety.models.rendering import NEXT_QUESTION, is_bare
from mechsafety.models.thought_reading import ThoughtReader, thought_reader
from mechsafety.models.turn_ends import stop_tokens
from mechsafety.prompts.accepted import PromptsLike, as_prompts
from mechsafety.prompts.fed import fitting
from mechsafety.prompts.prompt_set import Prompt

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DEFAULT_BATCH = RESPONSES_AT_ONCE


Batch = list[int]
OnBatch = Callable[[list[Completion]], None]


def generation_plan(
    model: TransformerBridge, prompts: Sequence[Prompt], *, batch_size: int = DEFAULT_BATCH
) -> list[Batch]:
    """Row numbers of ``prompts`` in batches of like length: fixed by the prompts and the batch size."""
    with after_thoughts(model, {}):
        lengths = [len(s) for s in tokenize_prompts(model, [p.asked for p in prompts])]
    return plan_batches(lengths, batch_size=batch_size)


@with_progress
def generate(
    model: ModelLike,
    prompts: PromptsLike,
    *,
    edit: EditLike | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    batch_size: int = DEFAULT_BATCH,
    sampling: Sampling | None = None,
    fast_path: bool = True,
    plan: Sequence[Batch] | None = None,
    on_batch: OnBatch | None = None,
    on_halving: Callable[[Batch, list[Batch]], None] | None = None,
    rendering: Rendering = "chat",
    truncate_prompts: bool = False,
    label: str = "generating",
    out: str | Path | None = None,
    server: Server | Agreed | None = None,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
) -> Completions:
    """Answer each prompt in the model's chat template (or as ``rendering`` asks), under ``edit`` if one is given.

    The fast path is Hugging Face's ``generate`` on a plain module tree that shares the bridge's
    parameters; the reference path is the bridge's own generation, one prompt at a time. A
    HookedTransformer is stepped over its own cache, or, on the reference path, without one. All give the
    same tokens in float32, and so does every batch size; a model whose rotary frequencies depend on the length is
    refused where rows of one batch would be read otherwise than alone. ``seed`` matters only with ``sampling``;
    each batch draws from a generator
    seeded by it and the batch's prompts, so that a resumed run draws the same.

    Raises :class:`MechsafetyError` before any work where a prompt and ``max_new_tokens`` do not fit in the model's
    window; ``truncate_prompts`` cuts such prompts' texts at their end instead. The completion holds the text as it was
    read. ``on_batch`` receives each finished batch. When memory runs out, the batch is halved and tried again;
    ``on_halving`` is then called, so that the plan can be recorded.

    ``out`` is a folder that keeps every finished batch: the same call goes on where it was interrupted, and one on
    another model, edit, prompts or settings is an error. Interrupted (Ctrl-C), it raises
    :class:`GenerationInterrupted`, whose ``completions`` are those that were finished. The
    coverage receipt is of the batches that this call ran.

    A ``server`` (:class:`mechsafety.serving.server.VllmServer`) runs the weights of the model under ``edit``, which
    must have a weight form, and is fed the same token ids. Its greedy answers to a sample of the prompts are compared
    with our own first; where they agree too little, all answers are our own. ``served`` of the result records it.

    A model that is left thinking (``chat`` of :func:`load_model`) may think for its ``max_thought_tokens`` before the
    ``max_new_tokens`` of each answer.

    Arguments:
        fast_path: False runs the reference path.
        plan: Which prompts go together, where that is fixed.

    Returns:
        The answers, in the order of the prompts.

    Example:
        >>> answers = ms.generate(model, prompts.report, edit=ms.Ablate(direction), max_new_tokens=4, progress=False)
        >>> list(answers.to_frame()["id"]) == [prompt.id for prompt in prompts.report]
        True
        >>> all(answer.n_tokens <= 4 for answer in answers)
        True
    """
    model = as_model(model)
    prompts = as_prompts(prompts, empty=True)
    edit = None if edit is None else as_edit(edit, model)
    if max_new_tokens < 1:
        raise MechsafetyError(f"max_new_tokens is {max_new_tokens}; 1 at least")
    if not prompts:
        raise MechsafetyError("no prompts to answer")
    if server is not None and not isinstance(server, Agreed):
        return by_server(
            server,
            model,
            prompts,
            edit,
            partial(generate, model),
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=batch_size,
            sampling=sampling,
            plan=plan,
            on_batch=on_batch,
            on_halving=on_halving,
            rendering=rendering,
            truncate_prompts=truncate_prompts,
            label=label,
            out=out,
        )
    with after_thoughts(model, {}):
        prompts, sequences = fitting(
            model, prompts, new_tokens=max_new_tokens, truncate=truncate_prompts, rendering=rendering
        )
    if not fast_path:
        batch_size = 1
    todo = [list(b) for b in (plan or plan_batches([len(s) for s in sequences], batch_size=batch_size))]
    kept = None
    if out is not None:
        settings = {"max_new_tokens": max_new_tokens, "sampling": sampling, "rendering": rendering}
        seeded = {"seed": seed, "plan": todo} if sampling else {}
        if server is not None:
            seeded["server"] = "vllm"
        kept = KeptBatches(out, model, prompts, sequences, edit=edit, **settings, **seeded)
    done: dict[int, Completion] = {}
    total = sum(len(rows) for rows in todo)
    stops, prefix = stop_tokens(model), "" if rendering == "text" else answer_prefix(model)
    reader = thought_reader(model, n_answer=max_new_tokens, rendering=rendering)
    n_groups = _groups_of(edit)
    coverage: Coverage | None = None
    with bar(label, total=total, unit="response") as shown, interruptible(done, total, out):
        while todo:
            rows = todo.pop(0)
            if kept is not None and (before := kept.get(rows)) is not None:
                done.update(zip(rows, before, strict=True))
                shown.update(len(rows))
                continue
            batch = pad_left([sequences[r] for r in rows], pad=pad_token(model), rows=rows).to(
                device_of(model)
            )
            batch_seed = _batch_seed(seed, [prompts[r].id for r in rows])
            try:
                under = (
                    _under(model, edit, batch, fast_path)
                    if server is None
                    else _at(server, model, batch_seed)
                )
                with under as (run, receipt), _seeded(batch_seed):
                    new = run(batch, reader, sampling, stops)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or len(rows) == n_groups:
                    raise
                halves = _halves(rows, n_groups)
                if on_halving is not None:
                    on_halving(rows, halves)
                todo[:0] = halves
                continue
            coverage = _added(coverage, receipt)
            finished = [
                _completion(model, reader, prompts[r], sequences[r], tokens, stops, prefix=prefix)
                for r, tokens in zip(rows, new, strict=True)
            ]
            done.update(zip(rows, finished, strict=True))
            if kept is not None:
                kept.put(rows, finished)
            if on_batch is not None:
                on_batch(finished)
            shown.update(len(rows))
    return Completions(tuple(done[row] for row in sorted(done)), coverage)


def _halves(rows: Batch, n_groups: int) -> list[Batch]:
    """The first and the second half of each group of rows."""
    size = len(rows) // n_groups
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    middle = size // 2
    return [[row for group in groups for row in group[part]] for part in (slice(middle), slice(middle, None))]


_FOLLOWED = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
_NO_CHOICE = ("_", "output_", "return_dict", "use_cache", "cache_", "transformers_version")


def overridden_defaults(model: TransformerBridge) -> dict[str, Any]:
    """What the checkpoint's generation config asks for beyond transformers' defaults, and no answer here follows:
    sampling, penalties, least and greatest lengths, suppressed tokens and the like.

    Its end-of-turn tokens are followed (:func:`stop_tokens`). Empty for a HookedTransformer, which has no
    such config.
    """
    config: Any = getattr(body_of(model), "generation_config", None)
    if config is None:
        return {}
    defaults: Any = getattr(type(config), "_get_default_generation_params", dict)
    neutral = type(config)().to_dict() | defaults()
    return {
        name: value
        for name, value in config.to_dict().items()
        if value is not None
        and value != neutral.get(name)
        and name not in _FOLLOWED
        and not name.startswith(_NO_CHOICE)
    }


_Run = Callable[[TokenBatch, ThoughtReader, Sampling | None, frozenset[int]], list[list[int]]]


@contextmanager
def _at(server: Agreed, model: TransformerBridge, seed: int) -> Iterator[tuple[_Run, None]]:
    """The generate function of a server."""

    def elsewhere(
        batch: TokenBatch, reader: ThoughtReader, sampling: Sampling | None, stops: frozenset[int]
    ) -> list[list[int]]:
        rows = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch.ids.cpu(), batch.mask.cpu(), strict=True)
        ]
        asked = Asked(
            most=reader.most, stops=stops, sampling=sampling, seed=seed, vocabulary=int(model.cfg.d_vocab)
        )
        return server.server.complete(rows, asked)

    yield elsewhere, None


@contextmanager
def _under(
    model: TransformerBridge, edit: Edit | None, batch: TokenBatch, fast_path: bool
) -> Iterator[tuple[_Run, Coverage | None]]:
    """The generate function of the fast or the reference path, with the edit on for as long as the block runs."""
    hooks = [target.hook for target in targets_on(model, edit)] if edit is not None else []
    twin = plain_twin_at(model, hooks) if fast_path else None

    def step(
        batch: TokenBatch, reader: ThoughtReader, sampling: Sampling | None, stops: frozenset[int]
    ) -> list[list[int]]:
        return hooked_transformers.answer(
            body_of(model),
            batch,
            max_new_tokens=reader.most,
            pick=_picker(sampling),
            stops=stops,
            pad=pad_token(model),
            cached=fast_path,
        ).tolist()

    def fast(
        batch: TokenBatch, reader: ThoughtReader, sampling: Sampling | None, stops: frozenset[int]
    ) -> list[list[int]]:
        module: Any = twin if twin is not None else body_of(model)
        asking = Asking(
            most=reader.most,
            sampling=sampling,
            stops=stops,
            pad=pad_token(model),
            groups=_groups_of(edit),
            end=reader.end if reader.n_thought is not None else None,
        )
        return hf_answers(module, batch, asking).tolist()

    def reference(
        batch: TokenBatch, reader: ThoughtReader, sampling: Sampling | None, _stops: frozenset[int]
    ) -> list[list[int]]:
        return _bridge_generate(model, batch, reader.most, sampling).tolist()

    if is_hooked_transformer(model):
        run = step
    elif fast_path:
        run = fast
    else:
        run = reference
    length = batch.ids.shape[1]
    context = edited(model, edit, prompt_length=length, twin=twin) if edit is not None else nullcontext(None)
    with context as receipt:
        yield run, receipt


def _groups_of(edit: Edit | None) -> int:
    return len(edit.edits) if isinstance(edit, SideBySide) else 1


def _picker(sampling: Sampling | None) -> hooked_transformers.Pick:
    """The likeliest token, or one drawn as Hugging Face's ``generate`` draws it."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    if sampling is None:
        return lambda logits: logits.argmax(-1)
    warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))

    def draw(logits: Float[Tensor, "row vocabulary"]) -> Int[Tensor, " row"]:
        for warp in warpers:
            logits = warp(None, logits)
        return torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1).squeeze(1)

    return draw


def _bridge_generate(
    model: TransformerBridge, batch: TokenBatch, n: int, sampling: Sampling | None
) -> Tensor:
    body = body_of(model)
    with torch.inference_mode(), evaluating(body), finite_logits(body):
        out: Any = model.generate(
            batch.ids,
            max_new_tokens=n,
            do_sample=sampling is not None,
            temperature=sampling.temperature if sampling else 1.0,
            top_p=sampling.top_p if sampling else None,
            stop_at_eos=True,
            return_type="tokens",
            verbose=False,
        )
    return out[:, batch.ids.shape[1] :]


def _completion(
    model: TransformerBridge,
    reader: ThoughtReader,
    prompt: Prompt,
    sequence: Sequence[int],
    tokens: list[int],
    stops: frozenset[int],
    *,
    prefix: str,
) -> Completion:
    stop = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    end = reader.end(tokens[:stop])
    kept, finish = (tokens[:stop], "stop") if end is None else (tokens[:end], "length")
    text = continued_text(model, sequence, kept, prefix) if prefix else reader.text(kept)
    if is_bare(model.tokenizer) and NEXT_QUESTION in text:
        (kept, text), finish = _before_the_next_question(model, kept, text), "stop"
    return Completion(
        id=prompt.id,
        prompt=prompt.text,
        label=prompt.label,
        category=prompt.category,
        text=text,
        tokens=tuple(kept),
        n_prompt_tokens=len(sequence),
        finish=finish,
        n_thought_tokens=reader.thought_tokens(kept),
        messages=prompt.messages,
    )


def _before_the_next_question(
    model: TransformerBridge, tokens: list[int], text: str
) -> tuple[list[int], str]:
    """An answer without the question that a base model goes on with: its tokens and its text."""
    over = len(text) - len(answer := text.partition(NEXT_QUESTION)[0])
    whole = len(_decoded(model, tokens))
    n = next(n for n in range(len(tokens), -1, -1) if len(_decoded(model, tokens[:n])) <= whole - over)
    return tokens[:n], answer.rstrip()


def _decoded(model: TransformerBridge, tokens: Sequence[int]) -> str:
    return str(model.tokenizer.decode(tokens, skip_special_tokens=True))


def continued_text(
    model: TransformerBridge, prompt: Sequence[int], answer: Sequence[int], prefix: str
) -> str:
    """``prefix`` and the text that ``answer`` adds to the prompt that ends with it.

    Decoded together: alone, some tokens lose the blank before them.
    """
    before, whole = _decoded(model, prompt), _decoded(model, [*prompt, *answer])
    return prefix + (whole[len(before) :] if whole.startswith(before) else _decoded(model, answer))


def _batch_seed(seed: int, ids: Sequence[str]) -> int:
    digest = hashlib.sha256("\x1f".join([str(seed), *ids]).encode()).digest()
    return int.from_bytes(digest[:7], "big")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def out_of_memory(error: BaseException) -> bool:
    """Whether torch means by ``error`` that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def _added(total: Coverage | None, more: Coverage | None) -> Coverage | None:
    if more is None:
        return total
    if total is None:
        return more
    for hook, count in more.fired.items():
        total.fired[hook] += count
        total.changed[hook] += more.changed[hook]
    return total
