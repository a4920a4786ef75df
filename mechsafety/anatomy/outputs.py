"""A model's own answers, and what its linear maps read while it gives them.

An answer is free-running: the model's greedy continuation, never a text that it is led through. Of each prompt one
vector per map is kept, the mean over the answer's positions, added up while the model runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.core.progress import bar
from mechsafety.generation.answered import Completion
from mechsafety.generation.answers import Encoded
from mechsafety.generation.completions import DEFAULT_BATCH, generate
from mechsafety.models.chat import TokenBatch, batches, device_of, tokenize_prompts
from mechsafety.models.finite import not_finite_at
from mechsafety.models.forward import forward, run_prefix
from mechsafety.models.handles import attached
from mechsafety.models.loading import model_name
from mechsafety.models.prefixes import common_prefix
from mechsafety.models.turn_ends import end_of_turn
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.regions.maps import LinearMap, running_body

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

AnswerPositions = Literal["output", "last_prompt"]
"""``output``: the positions that predict the answer's tokens, from the last prompt token to the last but one of the
answer. ``last_prompt``: the first of these alone, where no text of the answer exists yet."""
ANSWER_POSITIONS: tuple[AnswerPositions, ...] = get_args(AnswerPositions)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Prompts, a model's answers to them in the same order, and both as token ids.

    The ids of an answer that ended by itself close with the token that ends a turn, so none is empty.
    """

    prompts: tuple[Prompt, ...]
    completions: tuple[Completion, ...]
    encoded: tuple[Encoded, ...]

    def __post_init__(self) -> None:
        ids = [p.id for p in self.prompts]
        if not ids:
            raise MechsafetyError("no prompts, so no answers")
        if ids != [c.id for c in self.completions] or len(ids) != len(self.encoded):
            raise MechsafetyError(
                f"{len(self.completions)} answers and {len(self.encoded)} encoded ones for {len(ids)} prompts: "
                "there must be one of each per prompt, in the prompts' order"
            )
        if empty := [i for i, (_, answer) in zip(ids, self.encoded, strict=True) if not answer]:
            raise MechsafetyError(f"the answer to {empty[0]!r} has no token")


def greedy_answers(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int = DEFAULT_BATCH,
) -> Answers:
    """The model's own greedy answers, at most ``max_new_tokens`` each."""
    done = generate(model, prompts, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
    return with_completions(model, prompts, done)


def with_completions(
    model: TransformerBridge, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> Answers:
    """``completions`` that were made before, in any order, as the answers to ``prompts``.

    Raises :class:`MechsafetyError` for a prompt without a completion, and for a completion of another text or of
    another tokenizer or template (its prompt has a different number of tokens).
    """
    by_id = {c.id: c for c in completions}
    if missing := [p.id for p in prompts if p.id not in by_id]:
        raise MechsafetyError(f"{len(missing)} prompts have no completion, {missing[0]!r} for one")
    ordered = tuple(by_id[p.id] for p in prompts)
    sequences = tokenize_prompts(model, [p.asked for p in prompts])
    for prompt, completion, sequence in zip(prompts, ordered, sequences, strict=True):
        if completion.asked != prompt.asked or completion.n_prompt_tokens != len(sequence):
            raise MechsafetyError(
                f"the completion of {prompt.id!r} answers {completion.n_prompt_tokens} tokens of "
                f"{completion.prompt[:40]!r}; this model reads {len(sequence)} tokens of {prompt.text[:40]!r}: take "
                "completions of the same prompts and the same chat template"
            )
    # Which of several end tokens it was is not recorded; nothing is fed after the last token of an answer.
    end = [end_of_turn(model)] if any(c.finish == "stop" for c in ordered) else []
    encoded = tuple(
        (sequence, [*c.tokens, *(end if c.finish == "stop" else [])])
        for sequence, c in zip(sequences, ordered, strict=True)
    )
    return Answers(prompts=tuple(prompts), completions=ordered, encoded=encoded)


def map_inputs(
    model: TransformerBridge,
    answers: Answers,
    maps: Sequence[LinearMap],
    *,
    positions: AnswerPositions,
    batch_size: int = DEFAULT_BATCH,
) -> dict[str, Float[Tensor, "prompt d_in"]]:
    """What ``maps`` read, by site: the mean over each prompt's ``positions``, float32 on the CPU.

    Maps of the model itself (:func:`linear_maps`); the answers may be another model's, of
    the same tokenizer. Raises :class:`MechsafetyError` for no maps, unknown ``positions``, activations that are NaN
    or infinite (with the prompt and the map), and a map that does not see every token in order (an expert, for
    example).
    """
    if positions not in ANSWER_POSITIONS:
        raise MechsafetyError(f"positions {positions!r} is not one of {', '.join(ANSWER_POSITIONS)}")
    if not maps:
        raise MechsafetyError("no linear maps whose inputs could be read")
    pairs = [(p, a if positions == "output" else a[:1]) for p, a in answers.encoded]
    body = running_body(model)
    longest = max(len(answer) for _, answer in pairs)
    shared = common_prefix(body, [prompt for prompt, _ in pairs], device_of(model), more=longest)
    before = run_prefix(body, shared, device_of(model))
    rests = [[*prompt[len(shared) :], *answer[:-1]] for prompt, answer in pairs]
    means = _Means(model_name(model), maps, answers, [len(answer) for _, answer in pairs])
    with means.watching(), bar("activations", total=len(rests), unit="answer") as progress:
        for batch in batches(model, rests, batch_size=batch_size):
            means.begin(batch)
            forward(body, batch, logits=None, before=before)
            means.end()
            progress.update(len(batch.rows))
    return means.found


class _Means:
    """The mean input of each site over the last columns of left-padded rows, batch by batch."""

    def __init__(
        self, system: str, maps: Sequence[LinearMap], answers: Answers, lengths: Sequence[int]
    ) -> None:
        self.system = system  # for messages
        self.sites = {m.site: m for m in reversed(maps)}
        self.ids = [p.id for p in answers.prompts]
        self.lengths = torch.tensor(lengths)
        self.found = {
            m.site: torch.empty(len(lengths), m.d_in, dtype=torch.float32) for m in self.sites.values()
        }
        self.batch: TokenBatch | None = None
        self.chosen: Bool[Tensor, "row column"] = torch.zeros(0, 0, dtype=torch.bool)
        self.times: dict[str, int] = {}

    def begin(self, batch: TokenBatch) -> None:
        self.batch = batch
        self.times = dict.fromkeys(self.sites, 0)
        n = self.lengths[list(batch.rows)]
        columns = torch.arange(int(n.max()), 0, -1)
        self.chosen = (columns <= n[:, None]).to(batch.ids.device)

    def end(self) -> None:
        for site, times in self.times.items():
            if times != 1:
                raise MechsafetyError(
                    f"{site} was {'not read' if not times else f'read {times} times'} in a pass: maps that are "
                    "chosen by input have no mean over an answer"
                )

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [m.module.register_forward_pre_hook(self._reader(m)) for m in self.sites.values()]
        with attached(handles):
            yield

    def _reader(self, linear: LinearMap) -> Any:
        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            assert self.batch is not None
            x, (rows, width) = args[0], self.batch.ids.shape
            if x.numel() != rows * width * linear.d_in:
                raise MechsafetyError(
                    f"{linear.name} reads {list(x.shape)} for {rows} x {width} tokens: a map that does not see all "
                    "tokens in order (an expert, for example) has no mean over an answer"
                )
            kept = x.reshape(rows, width, linear.d_in)[:, -self.chosen.shape[1] :].float()
            kept = torch.where(self.chosen[..., None], kept, 0.0)
            mean = kept.sum(1) / self.chosen.sum(1, keepdim=True)
            if not bool(torch.isfinite(mean).all()):
                raise self._not_finite(linear.name, mean)
            self.found[linear.site][list(self.batch.rows)] = mean.cpu()
            self.times[linear.site] += 1

        return before

    def _not_finite(self, name: str, mean: Float[Tensor, "row d_in"]) -> NotFiniteError:
        assert self.batch is not None
        bad = int((~torch.isfinite(mean)).any(dim=1).nonzero()[0])
        return not_finite_at(
            self.system, f"the input of {name} for prompt {self.ids[self.batch.rows[bad]]!r}"
        )
