"""Refusal scores under many candidate directions: several per batch, one direction per row.

Prompts -> tokens -> the unedited pass, once (its residual streams are kept for ``induce``)
-> for every chunk of candidates: the shared prompt prefix once a candidate, then rows of candidate x prompt in
batches of like length, each row under its own projection -> ``induce`` goes on from the stored residual stream
at the candidate's own layer. Only the last position is unembedded.

:func:`score_plain` is the same one candidate at a time through :func:`edited`; it serves models
without a plain twin, and the tests show that both agree. Where scores are about written answers, these run behind the
prompts' keys, each row again under its own edit; ``induce`` then runs whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Direction, Directions
from mechsafety.edits.completeness import written_past_hooks
from mechsafety.edits.interventions import Ablate, Add
from mechsafety.edits.places import written_places
from mechsafety.generation.bodies import body_under
from mechsafety.generation.completions import out_of_memory
from mechsafety.generation.scoring import continuation_logits, log_probability
from mechsafety.models.chat import TokenBatch, device_of, pad_left, pad_token, plan_batches
from mechsafety.models.forward import NO_PREFIX, Prefix, forward, run_prefix
from mechsafety.models.hooking import hooked, observed, plain_module_path, plain_twin_at, residual_hooks
from mechsafety.models.placing import Copies
from mechsafety.models.prefixes import all_last_logits, common_prefix
from mechsafety.sweeps.measures import AnswerMeasure, OwnMeasure, RefusalMeasure, TokenMeasure
from mechsafety.sweeps.refusal_scores import DivergenceFrom, kl_divergence, log_odds, token_probabilities

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One (position, layer): what is projected out, and what ``induce`` adds."""

    direction: Direction
    steering: Float[Tensor, " d_model"]

    @property
    def layer(self) -> int:
        return self.direction.layer

    @property
    def write(self) -> Float[Tensor, " d_model"]:
        return self.direction.unit

    @property
    def read(self) -> Float[Tensor, " d_model"]:
        """The covector r of the projection h - (r.h) u: u itself, or for an oblique eraser scaled to r.u = 1."""
        covector = self.direction.covector
        return self.write if covector is None else covector / (covector @ self.write)


@dataclass(frozen=True, kw_only=True)
class CandidateScores:
    """Scores of every prompt under one candidate; NaN where there is none (the stream's end induces nothing).

    ``bypass_tokens`` and ``induce_tokens`` hold P of every refusal token, in the order of their ids, where the scores
    are by first tokens.
    """

    bypass: Float[Tensor, " harmful"]
    induce: Float[Tensor, " harmless"]
    kl: Float[Tensor, " harmless"]
    bypass_tokens: Float[Tensor, "harmful token"] | None = None
    induce_tokens: Float[Tensor, "harmless token"] | None = None


def candidates_of(directions: Directions, layers: Sequence[int]) -> dict[tuple[int, int], Candidate]:
    """Every direction that is not zero, by (position, layer), layer by layer."""
    return {
        (position, layer): Candidate(
            direction=directions.at(layer=layer, position=position),
            steering=directions.steering(layer=layer, position=position),
        )
        for layer in layers
        for row, position in enumerate(directions.positions)
        if float(directions.vectors[row, layer].norm())
    }


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The validation prompts as tokens, their unedited logits, and what refusal scores are about."""

    harmful: list[list[int]]
    harmless: list[list[int]]
    base_harmless: Float[Tensor, "prompt vocabulary"]
    measure: RefusalMeasure
    batch_size: int

    def of(self, harmful: Sequence[int] | None, harmless: Sequence[int] | None) -> Validation:
        """The named prompts alone; all of a class by default."""
        a = range(len(self.harmful)) if harmful is None else harmful
        b = range(len(self.harmless)) if harmless is None else harmless
        return replace(
            self,
            harmful=[self.harmful[row] for row in a],
            harmless=[self.harmless[row] for row in b],
            base_harmless=self.base_harmless[list(b)],
        )


def score_plain(
    model: TransformerBridge,
    prompts: Validation,
    candidate: Candidate,
    harmful: Sequence[int] | None = None,
    harmless: Sequence[int] | None = None,
) -> CandidateScores:
    """One candidate through edited(): the reference, and what models without a plain twin take."""
    prompts = prompts.of(harmful, harmless)
    sized: dict[str, Any] = {"batch_size": prompts.batch_size}
    ablated = Ablate(candidate.direction)
    bypass = prompts.measure.measure(model, prompts.harmful, edit=ablated, **sized)
    kl = torch.empty(0, dtype=torch.float64)
    if prompts.harmless:
        with body_under(model, ablated) as body:
            projected = all_last_logits(model, body, prompts.harmless, **sized)
        kl = kl_divergence(prompts.base_harmless, projected)
    if candidate.layer < model.cfg.n_layers:
        added = Add(candidate.steering, layer=candidate.layer)
        induce = prompts.measure.measure(model, prompts.harmless, edit=added, **sized)
        induced, induced_tokens = induce.scores, induce.tokens
    else:
        induced = torch.full((len(prompts.harmless),), float("nan"), dtype=torch.float64)
        induced_tokens = None if bypass.tokens is None else induced[:, None].repeat(1, bypass.tokens.shape[1])
    return CandidateScores(
        bypass=bypass.scores,
        induce=induced,
        kl=kl,
        bypass_tokens=bypass.tokens,
        induce_tokens=induced_tokens,
    )


class BatchedScorer:
    """The fast path: made once for a model and its validation prompts, then given chunks of candidates.

    Raises :class:`MechsafetyError` when the model has no plain twin: ask :func:`has_fast_path` first.
    """

    def __init__(self, model: TransformerBridge, prompts: Validation) -> None:
        twin = _fast_twin(model)
        if twin is None:
            raise MechsafetyError("this model has no plain twin: score its candidates one at a time")
        self.model, self.prompts = model, prompts
        self.body: Any = twin
        self.device = device_of(model)
        self.n_layers = model.cfg.n_layers
        if isinstance(prompts.measure, OwnMeasure):
            raise MechsafetyError(
                "a score of one's own has no batched form: score its candidates one at a time"
            )
        sequences = prompts.harmful + prompts.harmless
        answers = prompts.measure.answers if isinstance(prompts.measure, AnswerMeasure) else []
        longest = max(map(len, answers), default=0)
        self.prefix = common_prefix(twin, sequences, self.device, more=longest)
        self.rests = [s[len(self.prefix) :] for s in sequences]
        self.n_harmful = len(prompts.harmful)
        self.divergence = DivergenceFrom(prompts.base_harmless)
        self.blocks = _blocks(model, self.body)
        self.sites, self.tuples = _projection_sites(model, self.body, self.blocks, self.rests[0])
        self._resumable: dict[int, bool] = {}
        if isinstance(prompts.measure, TokenMeasure):
            self._store_streams()

    def score(
        self,
        candidates: Sequence[Candidate],
        harmful: Sequence[int] | None = None,
        harmless: Sequence[int] | None = None,
    ) -> list[CandidateScores]:
        """Scores of ``candidates`` on the named prompts, all by default; one layer's share ``induce``'s passes."""
        a = range(self.n_harmful) if harmful is None else harmful
        b = range(len(self.prompts.harmless)) if harmless is None else harmless
        measure = self.prompts.measure
        assert not isinstance(measure, OwnMeasure)
        by_layer = {
            layer: [place for place, c in enumerate(candidates) if c.layer == layer]
            for layer in sorted({c.layer for c in candidates if c.layer < self.n_layers})
        }
        if isinstance(measure, AnswerMeasure):
            return self._by_answers(measure, candidates, by_layer, a, b)
        bypass, kl = self._projected(candidates, a, b, measure.ids)
        shape = (len(candidates), len(b), len(measure.ids))
        induce = torch.full(shape, float("nan"), dtype=torch.float64)
        for layer, places in by_layer.items():
            induce[places] = self._induced([candidates[place] for place in places], layer, b, measure.ids)
        return [
            CandidateScores(
                bypass=log_odds(bypass[place]),
                induce=log_odds(induce[place]),
                kl=kl[place],
                bypass_tokens=bypass[place],
                induce_tokens=induce[place],
            )
            for place in range(len(candidates))
        ]

    # -- bypass and KL --------------------------------------------------------------------------

    def _projected(
        self,
        candidates: Sequence[Candidate],
        harmful: Sequence[int],
        harmless: Sequence[int],
        ids: Sequence[int],
    ) -> tuple[Float[Tensor, "candidate harmful token"], Float[Tensor, "candidate harmless"]]:
        """P of the tokens ``ids``, and KL."""
        project = _Projection(candidates)
        shape = (len(candidates), self.n_harmful, len(ids))
        bypass = torch.empty(shape, dtype=torch.float64)
        kl = torch.empty(len(candidates), len(self.prompts.harmless), dtype=torch.float64)
        with hooked(self.model, [(name, project) for name in self.sites], twin=self.body):
            before = run_prefix(self.body, self.prefix, self.device, rows=len(candidates))
            prompts = [*harmful, *(self.n_harmful + row for row in harmless)]
            for batch, which, prompt in self._candidate_rows(len(candidates), prompts):
                project.rows = Copies(which)
                rows = which.to(self.device) if before.cache is not None else None
                logits = forward(self.body, batch, logits=1, before=before, rows=rows).logits[:, -1]
                self._divide(logits, which, prompt, bypass, kl, ids)
        return bypass[:, list(harmful)], kl[:, list(harmless)]

    def _divide(
        self,
        logits: Float[Tensor, "row vocabulary"],
        which: Int[Tensor, " row"],
        prompt: Int[Tensor, " row"],
        bypass: Tensor,
        kl: Tensor,
        ids: Sequence[int],
    ) -> None:
        logits = logits.float().cpu()
        harmful = prompt < self.n_harmful
        if bool(harmful.any()):
            found = token_probabilities(logits[harmful], ids)
            bypass[which[harmful], prompt[harmful]] = found
        if not bool(harmful.all()):
            places = prompt[~harmful] - self.n_harmful
            kl[which[~harmful], places] = self.divergence(places, logits[~harmful])

    def _candidate_rows(
        self, n: int, prompts: Sequence[int]
    ) -> Iterator[tuple[TokenBatch, Int[Tensor, " row"], Int[Tensor, " row"]]]:
        """Batches of like length over candidate x prompt, with each row's candidate and prompt, these on the CPU."""
        pairs = [(k, p) for p in prompts for k in range(n)]
        lengths = [len(self.rests[p]) for _, p in pairs]
        for rows in plan_batches(lengths, batch_size=self.prompts.batch_size):
            chosen = [pairs[row] for row in rows]
            batch = pad_left([self.rests[p] for _, p in chosen], pad=pad_token(self.model)).to(self.device)
            which = torch.tensor([k for k, _ in chosen])
            yield batch, which, torch.tensor([p for _, p in chosen])

    # -- written answers ------------------------------------------------------------------------

    def _by_answers(
        self,
        measure: AnswerMeasure,
        candidates: Sequence[Candidate],
        by_layer: dict[int, list[int]],
        harmful: Sequence[int],
        harmless: Sequence[int],
    ) -> list[CandidateScores]:
        _, kl = self._projected(candidates, [], harmless, [])
        project = _Projection(candidates)
        bypass = self._answered(measure, len(candidates), harmful, self.sites, project)
        induce = torch.full((len(candidates), len(harmless)), float("nan"), dtype=torch.float64)
        rows = [self.n_harmful + row for row in harmless]
        for layer, places in by_layer.items():
            add = _Addition([candidates[place] for place in places])
            name = residual_hooks(self.n_layers)[layer]
            induce[places] = self._answered(measure, len(places), rows, [name], add)
        return [
            CandidateScores(bypass=bypass[place], induce=induce[place], kl=kl[place])
            for place in range(len(candidates))
        ]

    def _answered(
        self,
        measure: AnswerMeasure,
        n: int,
        prompts: Sequence[int],
        names: Sequence[str],
        change: _Projection | _Addition,
    ) -> Float[Tensor, "candidate prompt"]:
        """Scores of the named rows of all prompts under ``change`` at the hook points ``names``."""
        answers = measure.answers
        found = torch.empty(n, len(self.rests), len(answers), dtype=torch.float64)
        with hooked(self.model, [(name, change) for name in names], twin=self.body):
            before = run_prefix(self.body, self.prefix, self.device, rows=n)
            for batch, which, prompt in self._candidate_rows(n, prompts):
                on_device = which.to(self.device)

                def entering(rows: Int[Tensor, " row"], which: Int[Tensor, " row"] = on_device) -> None:
                    change.rows = Copies(which[rows])

                asked = [(row, answer) for answer in answers for row in range(len(batch.rows))]
                scored = continuation_logits(
                    self.body,
                    batch,
                    asked,
                    before=before,
                    rows=on_device if before.cache is not None else None,
                    pad=pad_token(self.model),
                    batch_size=self.prompts.batch_size,
                    entering=entering,
                )
                each = {number: log_probability(logits, asked[number][1]) for number, logits in scored}
                for number, value in zip(each, torch.stack(list(each.values())).tolist(), strict=True):
                    row = asked[number][0]
                    found[int(which[row]), int(prompt[row]), number // len(batch.rows)] = value
        return measure.of_log_probs(found[:, list(prompts)])

    # -- induce ---------------------------------------------------------------------------------

    def _store_streams(self) -> None:
        """Keep every block's input for the harmless prompts and for the prefix, in the model's own dtype."""
        names = residual_hooks(self.n_layers)[:-1]
        kept: list[Tensor] = []
        self.prefix_stream: list[Tensor] = []
        self.streams: list[tuple[TokenBatch, list[Tensor]]] = []
        with observed(self.model, [(name, kept.append) for name in names], twin=self.body):
            self.before = run_prefix(self.body, self.prefix, self.device)
            self.prefix_stream = list(kept)
            rests = self.rests[self.n_harmful :]
            for rows in plan_batches([len(r) for r in rests], batch_size=self.prompts.batch_size):
                kept.clear()
                batch = pad_left([rests[r] for r in rows], pad=pad_token(self.model), rows=rows)
                batch = batch.to(self.device)
                forward(self.body, batch, logits=None, before=self.before)
                self.streams.append((batch, list(kept)))

    def _induced(
        self, candidates: Sequence[Candidate], layer: int, harmless: Sequence[int], ids: Sequence[int]
    ) -> Float[Tensor, "candidate harmless token"]:
        if not self._resumes(layer):
            return self._induced_whole(candidates, layer, harmless, ids)
        n = len(candidates)
        steering = torch.stack([c.steering for c in candidates]).float().to(self.device)
        out = torch.empty(n, len(self.prompts.harmless), len(ids), dtype=torch.float64)
        asked = frozenset(harmless)
        with self._resumed(layer) as start:
            before = self._steered_prefix(start, steering, layer)
            for batch, stream in self.streams:
                each = max(1, self.prompts.batch_size // n)
                wanted = [place for place, row in enumerate(batch.rows) if row in asked]
                for first in range(0, len(wanted), each):
                    part = wanted[first : first + each]
                    rows = tuple(batch.rows[place] for place in part)
                    which = torch.arange(n, device=self.device).repeat_interleave(len(rows))
                    x = stream[layer][part].repeat(n, 1, 1)
                    start[:] = [_added(x, steering[which])]
                    repeated = TokenBatch(
                        rows=rows * n, ids=batch.ids[part].repeat(n, 1), mask=batch.mask[part].repeat(n, 1)
                    )
                    index = which if before.cache is not None else None
                    logits = forward(self.body, repeated, logits=1, before=before, rows=index).logits[:, -1]
                    found = token_probabilities(logits.float(), ids).cpu()
                    out[:, list(rows)] = found.reshape(n, len(rows), len(ids))
        return out[:, list(harmless)]

    def _induced_whole(
        self, candidates: Sequence[Candidate], layer: int, harmless: Sequence[int], ids: Sequence[int]
    ) -> Float[Tensor, "candidate harmless token"]:
        n, add = len(candidates), _Addition(candidates)
        out = torch.empty(n, len(self.prompts.harmless), len(ids), dtype=torch.float64)
        with hooked(self.model, [(residual_hooks(self.n_layers)[layer], add)], twin=self.body):
            before = run_prefix(self.body, self.prefix, self.device, rows=n)
            prompts = [self.n_harmful + row for row in harmless]
            for batch, which, prompt in self._candidate_rows(n, prompts):
                add.rows = Copies(which)
                rows = which.to(self.device) if before.cache is not None else None
                logits = forward(self.body, batch, logits=1, before=before, rows=rows).logits[:, -1]
                out[which, prompt - self.n_harmful] = token_probabilities(logits.float(), ids).cpu()
        return out[:, list(harmless)]

    def _resumes(self, layer: int) -> bool:
        """Whether the blocks from ``layer`` on need nothing of those before but the stream: tried on one prompt.

        Some read keys that an earlier block has computed (Gemma 4), or are handed another state beside the stream.
        """
        if layer not in self._resumable:
            batch, stream = self.streams[0]
            one = TokenBatch(rows=(0,), ids=batch.ids[:1], mask=batch.mask[:1])
            want = forward(self.body, one, logits=1, before=self.before).logits.float()
            try:
                with self._resumed(layer) as start:
                    nothing = torch.zeros(1, self.model.cfg.d_model, device=self.device, dtype=torch.float32)
                    before = self._steered_prefix(start, nothing, layer)
                    start[:] = [stream[layer][:1]]
                    got = forward(self.body, one, logits=1, before=before).logits.float()
                most = 1e-3 if stream[layer].dtype.itemsize > 2 else 0.05
                self._resumable[layer] = float((got - want).norm() / want.norm()) < most
            except MechsafetyError:
                raise
            except (
                Exception
            ) as error:  # whatever the code of an architecture raises where something is not there
                if out_of_memory(error):
                    raise
                self._resumable[layer] = False
        return self._resumable[layer]

    def _steered_prefix(
        self, start: list[Tensor], steering: Float[Tensor, "candidate d_model"], layer: int
    ) -> Prefix:
        """The prefix with every candidate's vector added at ``layer``: a row of keys and values each."""
        if not self.prefix:
            return NO_PREFIX
        n = len(steering)
        start[:] = [_added(self.prefix_stream[layer].expand(n, -1, -1), steering)]
        run = run_prefix(self.body, self.prefix, self.device, rows=n)
        # The blocks before are passed over; their old keys only give the cache its length.
        run.cache.layers[:layer] = self.before.rows(n).layers[:layer]
        return run

    @contextmanager
    def _resumed(self, layer: int) -> Iterator[list[Tensor]]:
        """Blocks before ``layer`` do nothing; the block there gets the yielded list's tensor as its input."""
        start: list[Tensor] = []
        with ExitStack() as stack:
            for block, length in zip(self.blocks[:layer], self.tuples[:layer], strict=True):
                stack.callback(_restore_forward, block, block.__dict__.get("forward"))
                block.forward = partial(_pass_over, length)
            name = residual_hooks(self.n_layers)[layer]
            stack.enter_context(hooked(self.model, [(name, lambda _: start[0])], twin=self.body))
            yield start


class _Projection:
    """Each row of a batch without what its candidate removes; ``rows`` are the candidates of the batch's rows."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.write = Copies(torch.stack([c.write for c in candidates]).float())
        self.read = Copies(torch.stack([c.read for c in candidates]).float())
        self.rows = Copies(torch.arange(len(candidates)))

    def __call__(self, x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token d_model"]:
        wide, rows = x.float(), self.rows.on(x.device)
        along = torch.bmm(wide, self.read.on(x.device)[rows][:, :, None])
        return torch.baddbmm(wide, along, self.write.on(x.device)[rows][:, None, :], alpha=-1).to(x.dtype)


class _Addition:
    """Each row of a batch with its candidate's vector added; ``rows`` are the candidates of the batch's rows."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.steering = Copies(torch.stack([c.steering for c in candidates]).float())
        self.rows = Copies(torch.arange(len(candidates)))

    def __call__(self, x: Float[Tensor, "row token d_model"]) -> Float[Tensor, "row token d_model"]:
        return _added(x, self.steering.on(x.device)[self.rows.on(x.device)])


def _added(x: Float[Tensor, "row token d_model"], v: Float[Tensor, "row d_model"]) -> Tensor:
    return (x.float() + v.to(x.device)[:, None]).to(x.dtype)


def has_fast_path(model: TransformerBridge) -> bool:
    """Whether :class:`BatchedScorer` serves this model: it has a plain twin and the user has no hooks on it."""
    return _fast_twin(model) is not None


def _fast_twin(model: TransformerBridge) -> Any:
    n = model.cfg.n_layers
    by_block = written_places(model)
    if not all(by_block):
        return None
    sites = [name for places in by_block for name in places] + _besides(model)
    twin = plain_twin_at(model, [*sites, *residual_hooks(n)])
    return twin if twin is not None and _by_row(model, twin, sites) else None


def _besides(model: TransformerBridge) -> list[str]:
    return [f"blocks.{layer}.hook_{site}" for layer, site in written_past_hooks(model)]


def _by_row(model: TransformerBridge, twin: Any, sites: Sequence[str]) -> bool:
    """Whether every site sees [row, token, d_model]: mixtures of experts may see the tokens of all rows in a line."""
    if "_mechsafety_by_row" not in twin.__dict__:
        shapes: list[int] = []
        ids = torch.zeros((1, 2), dtype=torch.long, device=device_of(model))
        batch = TokenBatch(rows=(0,), ids=ids, mask=torch.ones_like(ids))
        with observed(model, [(name, lambda x: shapes.append(x.ndim)) for name in sites], twin=twin):
            forward(twin, batch, logits=None)
        twin.__dict__["_mechsafety_by_row"] = set(shapes) == {3}
    return twin.__dict__["_mechsafety_by_row"]


def _projection_sites(
    model: TransformerBridge, body: Any, blocks: Sequence[Any], tokens: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Where a projection must act so that it acts everywhere, and how long a tuple each block returns; by a short pass.

    Where a block adds its attention and MLP outputs to its input as they are, a stream that is free of the
    direction stays free, and the first block's input and all outputs are enough: a third of the projections
    saved. Gemma 2, for example, puts a norm between: there every site is projected.
    """
    n = model.cfg.n_layers
    by_block = written_places(model)
    names = [name for places in by_block for name in places]
    seen: dict[str, Tensor] = {}
    tuples: list[int] = []  # 0: no tuple

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda x: seen.__setitem__(name, x.float().to(device))

    ends, device = residual_hooks(n), device_of(model)
    batch = pad_left([list(tokens)], pad=pad_token(model)).to(device)
    with ExitStack() as stack:
        for block in blocks:
            handle = block.register_forward_hook(
                lambda _m, _a, out: tuples.append(len(out) if isinstance(out, tuple) else 0)
            )
            stack.callback(handle.remove)
        everything = dict.fromkeys([*names, *ends])
        stack.enter_context(observed(model, [(name, keep(name)) for name in everything], twin=body))
        forward(body, batch, logits=None)
    if besides := _besides(model):
        return [*names, *besides], tuples
    for layer, places in enumerate(by_block):
        total = torch.stack([seen[name] for name in places]).sum(0)
        end = seen[ends[layer + 1]]
        if not float((total - end).norm() / end.norm()) < 0.02:
            return names, tuples
    return [n for n in names if not n.endswith("resid_pre") or n.startswith("blocks.0.")], tuples


def _blocks(model: TransformerBridge, body: Any) -> list[Any]:
    paths = [plain_module_path(model, name) for name in residual_hooks(model.cfg.n_layers)[:-1]]
    return [body.get_submodule(path[0]) for path in paths if path is not None]


def _restore_forward(block: Any, own: Any) -> None:
    """Its class's forward again, or the one that carries activations to its device."""
    block.__dict__.pop("forward")
    if own is not None:
        block.forward = own


def _pass_over(length: int, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor | None, ...]:
    """What a block returns that does nothing: its input, in a tuple of ``length`` where that is not 0."""
    return (hidden_states, *[None] * (length - 1)) if length else hidden_states
