"""The parts of a comparison in its run folder: one of each checkpoint, one of each pair and measure."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.names import THOUGHT_END, Measure
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, cosine, find_directions
from mechsafety.directions.files import load_directions, save_directions
from mechsafety.experiments.comparison.config import ComparisonConfig
from mechsafety.experiments.records import record_shared_tokens
from mechsafety.experiments.session import Session
from mechsafety.experiments.thoughts import kept_thoughts
from mechsafety.geometry.cka import compare_cka, linear_cka
from mechsafety.geometry.shared_basis import (
    Basis,
    EmbeddingSample,
    check_basis,
    sample_embedding,
    unchecked_basis,
)
from mechsafety.geometry.similarity import (
    Contrasts,
    Subspaces,
    compare_cosines,
    compare_subspaces,
    draw_contrasts,
    random_angles,
    random_cosine,
    spearman_brown,
    subspaces,
)
from mechsafety.geometry.transfer import ablations, controls, drop, tests_of, transfer_layer
from mechsafety.models.chat import read_behind
from mechsafety.models.loading import body_of, load_record
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.journal import Journal

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_CONTROLS = 4  # directions of each kind that are not about refusal
_NO_DROP = (math.nan, math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class _Streams:
    """A checkpoint's residual streams at one position."""

    fit: Float[Tensor, "prompt layer d_model"]
    validation: Float[Tensor, "held_out layer d_model"]


@dataclass(kw_only=True)
class CheckpointWork:
    """What is to be compared and where it is kept; :func:`run_comparison` goes through it."""

    session: Session
    config: ComparisonConfig
    names: tuple[str, ...]
    saved: Mapping[str, Directions]
    fit: PromptSet
    validation: PromptSet
    report: PromptSet

    def __post_init__(self) -> None:
        self._subspaces: dict[str, Subspaces] = {}
        self.run, self.say = self.session.run, self.session.say

    # -- checkpoints ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Load each model in turn and leave its streams, directions and embedding sample; then judge the bases."""
        for number, name in enumerate(self.names, start=1):
            if name not in self.saved and not self.run.has_part("checkpoint", name, suffix="json"):
                self.say(f"[{number}/{len(self.names)}] {name} · residual streams of {len(self.fit)} prompts")
                self.prepare_model(name)
        self.bases = [self._basis(a, b) for a, b in itertools.combinations(self.names, 2)]
        self._comparable = {(basis.a, basis.b): basis.comparable for basis in self.bases}
        found = [self.directions(name) for name in self.names]
        if len({d.model for d in found}) == len(found):
            self.run.save("directions.safetensors", lambda path: save_directions(found, path))

    def prepare_model(self, name: str) -> None:
        """Leave one model's streams, directions and embedding sample."""
        from safetensors.torch import save_file

        model = self.session.load(name, prompts=[*self.fit, *self.validation, *self.report])
        self._think(name, model, fit=self.fit, validation=self.validation)
        cache = residual_stream(model, self.fit, positions=(self.position,))
        parts = {"fit": cache.activations[:, 0].contiguous()}
        if len(self.validation):
            held_out = residual_stream(model, self.validation, positions=(self.position,))
            parts["validation"] = held_out.activations[:, 0].contiguous()
        sample = sample_embedding(
            model.tokenizer.get_vocab(),
            body_of(model).get_input_embeddings().weight,
            n_layers=model.cfg.n_layers,
        )
        parts["embedding"] = sample.rows
        found = find_directions(cache, seed=self.config.seed)
        record = load_record(model)
        record_shared_tokens(self.run, name, model)
        self._save("streams", name, lambda path: save_file(parts, path))
        self._save("directions", name, found.save)
        facts = {"tokens": list(sample.tokens), "model": record.as_dict() if record else {}}
        self.run.write_json_part(facts, "checkpoint", name)  # last: it marks that the others are there

    @property
    def position(self) -> int:
        """The position as an offset from the end of what is read: the prompt, or the thought behind it."""
        return -1 if self.config.position == THOUGHT_END else int(self.config.position)

    def _think(self, name: str, model: TransformerBridge, **prompts: PromptSet) -> None:
        """Let a checkpoint read its own thoughts behind prompts where the end of the thought is compared."""
        if self.config.position == THOUGHT_END:
            found = [kept_thoughts(self.session, model, some, name, kind) for kind, some in prompts.items()]
            read_behind(model, {ids: thought for each in found for ids, thought in each.items()})

    def _loaded(self, name: str) -> TransformerBridge:
        """The checkpoint as it is for transfer."""
        model = self.session.load(name)
        self._think(name, model, fit=self.fit, report=self.report)
        return model

    def _save(self, kind: str, name: str, save: Callable[[Any], object]) -> None:
        target = self.run.part_path(kind, name, suffix="safetensors")
        self.run.save(str(target.relative_to(self.run.path)), save)

    def _stored(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.run.part_path("streams", name, suffix="safetensors"))

    def streams(self, name: str) -> _Streams:
        stored = self._stored(name)
        return _Streams(fit=stored["fit"], validation=stored.get("validation", stored["fit"][:0]))

    def directions(self, name: str) -> Directions:
        if name in self.saved:
            return self.saved[name]
        return load_directions(self.run.part_path("directions", name, suffix="safetensors"))

    def vectors(self, name: str) -> Float[Tensor, "layer d_model"]:
        """A checkpoint's direction at every layer, at the position compared."""
        found = self.directions(name)
        if self.position not in found.positions:
            raise MechsafetyError(
                f"{name!r} holds no directions at position {self.position}: its positions are "
                f"{', '.join(map(str, found.positions))}"
            )
        return found.vectors[found.positions.index(self.position)]

    @property
    def models(self) -> list[str]:
        return [name for name in self.names if name not in self.saved]

    @cached_property
    def contrasts(self) -> Contrasts:
        return draw_contrasts(
            [p.label for p in self.fit], resamples=self.config.resamples, seed=self.config.seed
        )

    # -- bases ----------------------------------------------------------------------------------

    def _basis(self, a: str, b: str) -> Basis:
        if a in self.saved or b in self.saved:
            shapes = [tuple(self.vectors(name).shape) for name in (a, b)]
            return unchecked_basis(a, (shapes[0][0] - 1, shapes[0][1]), b, (shapes[1][0] - 1, shapes[1][1]))
        return check_basis(a, self._embedding(a), b, self._embedding(b))

    def _embedding(self, name: str) -> EmbeddingSample:
        facts = self.run.read_json_part("checkpoint", name)
        return EmbeddingSample(
            tokens=tuple(facts["tokens"]),
            rows=self._stored(name)["embedding"],
            n_layers=facts["model"]["n_layers"],
        )

    def comparable(self, a: str, b: str) -> bool:
        return a == b or self._comparable.get((a, b), False) or self._comparable.get((b, a), False)

    def notes(self, wanted: Sequence[Measure]) -> list[str]:
        """What was left out or could not be checked, in sentences."""
        notes: list[str] = []
        geometric = [m for m in wanted if m != "cka"]
        for basis in self.bases:
            if not basis.comparable and geometric:
                notes.append(
                    f"{basis.reason}; so {', '.join(geometric)} {'is' if len(geometric) == 1 else 'are'} left out "
                    "for this pair, and CKA, which needs no common basis, is what can be compared."
                )
            elif basis.verdict == "unknown":
                notes.append(f"{basis.reason}.")
        if self.saved:
            notes.append(
                "Cosines with saved directions come from the stored vectors: without prompts they have no interval."
            )
            methods = {self.directions(name).method for name in self.names}
            if len(methods) > 1:
                notes.append(
                    f"The directions were found by different methods ({', '.join(sorted(methods))})."
                )
            chats = {self.directions(name).chat or "the default ones" for name in self.names}
            if len(chats) > 1:
                notes.append(
                    f"The directions were found under different chat settings: {'; '.join(sorted(chats))}."
                )
        return notes

    # -- layers ---------------------------------------------------------------------------------

    def layer_of(self, name: str) -> int:
        """The layer at which directions are ablated in ``name``."""
        found = self._separating_layer(name)
        if found is None:
            raise MechsafetyError(
                f"harmful and harmless prompts do not differ in {name!r} at position {self.config.position} below "
                f"0.8 of its layers: name a layer with {way('--layer')}, or another position"
            )
        return found

    def _separating_layer(self, name: str) -> int | None:
        streams = self.streams(name)
        harmful = torch.tensor([p.label == "harmful" for p in self.validation], dtype=torch.bool)
        return transfer_layer(streams.validation[harmful], streams.validation[~harmful], self.vectors(name))

    def shown_layer(self, layer: int | None) -> int:
        """The layer of the matrices: the one asked for, else the middle one of those chosen for the models.

        Without held-out prompts it is the one with the highest split-half cosine below 0.8 of the layers.
        """
        depth = min(self.vectors(name).shape[0] for name in self.names)
        if layer is not None:
            if not 0 <= layer < depth:
                raise MechsafetyError(
                    f"layer {layer} does not exist: these checkpoints' are 0 to {depth - 1}"
                )
            return layer
        if len(self.validation):
            found = [self._separating_layer(name) for name in self.models]
            chosen = sorted(min(at, depth - 1) for at in found if at is not None)
            if chosen:
                return chosen[(len(chosen) - 1) // 2]
        steady = torch.stack(
            [self._split_half(name)[: max(2, int(0.8 * (depth - 1)))] for name in self.names]
        )
        return int(steady.nan_to_num().mean(0).argmax())

    def _split_half(self, name: str) -> Float[Tensor, " layer"]:
        found = self.directions(name)
        return found.split_half[found.positions.index(self.position)]

    # -- measures -------------------------------------------------------------------------------

    def table(self, measure: Measure, *, layer: int | None) -> pd.DataFrame | None:
        """All pairs of one measure, in the order of the checkpoints; None where no pair can have it.

        ``transfer`` has a row for every (source, target): ``drop`` is the fall of the target's mean refusal
        score (``base`` to ``ablated``) with the source's direction projected out, ``share`` that in units of
        the target's own direction, ``kl`` what the projection changes on harmless prompts; ``random_floor``
        and ``random_max`` are mean and largest drop of random directions, ``harmless_floor`` and
        ``harmless_max`` those of directions between random halves of the harmless prompts. ``p``,
        ``control_p`` and ``control_side`` are of :func:`tests_of`.
        """
        if measure == "transfer":
            parts = [part for name in self.models if (part := self.transfer_to(name, layer)) is not None]
        else:
            parts = [self._pair(measure, a, b) for a, b in self._pairs(measure)]
        return pd.concat(parts, ignore_index=True) if parts else None

    def _pairs(self, measure: Measure) -> Iterator[tuple[str, str]]:
        for a, b in itertools.combinations(self.names, 2):
            from_streams = a not in self.saved and b not in self.saved
            if (measure == "cka" and from_streams) or (
                measure != "cka" and self.comparable(a, b) and (from_streams or measure == "cosine")
            ):
                yield a, b

    def _pair(self, measure: Measure, a: str, b: str) -> pd.DataFrame:
        def made() -> pd.DataFrame:
            self.say(f"{a} and {b} · {measure}")
            if a in self.saved or b in self.saved:
                return self._saved_cosines(a, b)
            return {"cosine": self._cosines, "angles": self._angles, "cka": self._cka}[measure](a, b)

        return self.session.part(measure, a, b, make=made)

    def _cosines(self, a: str, b: str) -> pd.DataFrame:
        x, y = self.streams(a).fit, self.streams(b).fit
        found = compare_cosines(x, y, self.contrasts)
        return self._by_layer(a, b, {k: v.tolist() for k, v in vars(found).items()}, x.shape[-1])

    def _saved_cosines(self, a: str, b: str) -> pd.DataFrame:
        x, y = self.vectors(a), self.vectors(b)
        there = (x.norm(dim=-1) > 0) & (y.norm(dim=-1) > 0)
        ceilings = [self._split_half(name).tolist() for name in (a, b)]
        missing = [math.nan] * len(x)
        columns = {
            "cosine": torch.where(there, cosine(x.double(), y.double()), torch.nan).tolist(),
            "low": missing,
            "high": missing,
            "ceiling_a": ceilings[0],
            "ceiling_b": ceilings[1],
            "ceiling": [
                math.sqrt(spearman_brown(r) * spearman_brown(s)) for r, s in zip(*ceilings, strict=True)
            ],
        }
        for name in ("corrected", "corrected_low", "corrected_high", "harmless_floor", "harmless_high"):
            columns[name] = missing
        return self._by_layer(a, b, columns, x.shape[-1])

    def _by_layer(self, a: str, b: str, columns: dict[str, list[float]], d_model: int) -> pd.DataFrame:
        table = pd.DataFrame({"layer": range(len(columns["cosine"])), "a": a, "b": b, **columns})
        floor, high = random_cosine(d_model)
        return table.assign(random_floor=floor, random_high=high)

    def _angles(self, a: str, b: str) -> pd.DataFrame:
        x, y = self.streams(a).fit, self.streams(b).fit
        for name, streams in ((a, x), (b, y)):
            if name not in self._subspaces:
                self._subspaces[name] = subspaces(streams, self.contrasts, k=self.config.k)
        found = compare_subspaces(x, y, self._subspaces[a], self._subspaces[b])
        floor, low = random_angles(x.shape[-1], k=self.config.k, seed=self.config.seed)
        rows = [
            {"layer": layer, "a": a, "b": b, "index": index + 1}
            | {name: float(value[layer, index]) for name, value in vars(found).items()}
            | {"random_floor": float(floor[index]), "random_low": float(low[index])}
            for layer in range(x.shape[1])
            for index in range(self.config.k)
        ]
        return pd.DataFrame(rows)

    def _cka(self, a: str, b: str) -> pd.DataFrame:
        x, y = self.streams(a).fit, self.streams(b).fit
        deep_a, deep_b = x.shape[1] - 1, y.shape[1] - 1
        rows: list[dict[str, Any]] = []
        for layer in range(deep_a + 1):
            other = round(layer * deep_b / deep_a)
            found = compare_cka(x[:, layer], y[:, other], self.contrasts.harmful, seed=self.config.seed)
            beside = [
                linear_cka(s[:, at], s[:, at + 1]) if at < last else math.nan
                for s, at, last in ((x, layer, deep_a), (y, other, deep_b))
            ]
            rows.append(
                {"layer": layer, "a": a, "b": b, "layer_b": other}
                | vars(found)
                | {"next_layer_a": beside[0], "next_layer_b": beside[1]}
            )
        return pd.DataFrame(rows)

    # -- transfer -------------------------------------------------------------------------------

    def transfer_to(self, target: str, layer: int | None) -> pd.DataFrame | None:
        """The rows of one model in which directions are ablated; None where no other one shares its basis."""
        sources = [name for name in self.names if self.comparable(name, target)]
        if len(sources) < 2:
            return None
        chosen = self.layer_of(target) if layer is None else layer
        found = {name: self.vectors(name)[chosen] for name in sources}
        vectors = {name: v for name, v in found.items() if float(v.norm()) > 0}
        harmless = torch.tensor([p.label == "harmless" for p in self.fit], dtype=torch.bool)
        others = controls(
            self.streams(target).fit[harmless, chosen],
            number=_CONTROLS,
            norm=float(found[target].norm()) or 1.0,
            seed=self.config.seed,
        )
        self.say(f"{target} · transfer: {len(vectors)} directions and {len(others)} controls, layer {chosen}")
        base, after, tokens = ablations(
            lambda: self._loaded(target),
            self.fit,
            self.report,
            vectors | others,
            journal=Journal(self.run.part_path("transfer", target, suffix="jsonl")),
            key=str(chosen),
            seed=self.config.seed,
        )
        drops = {
            name: drop(base, edited, resamples=self.config.resamples, seed=self.config.seed)
            for name, edited in after.items()
        }
        random = [drops[name][0] for name in others if name.startswith("random")]
        halves = [drops[name][0] for name in others if not name.startswith("random")]
        own = drops.get(target, _NO_DROP)
        beside = [after[name] for name in others]
        rows = []
        for name in sources:
            fall, low, high = drops.get(name, _NO_DROP)
            edited = after.get(name)
            rows.append(
                {
                    "layer": chosen,
                    "source": name,
                    "target": target,
                    "base": float(base.scores.mean()),
                    "ablated": math.nan if edited is None else float(edited.scores.mean()),
                    "drop": fall,
                    "low": low,
                    "high": high,
                    # A share of a drop that may be none means nothing.
                    "share": fall / own[0] if own[1] > 0 else math.nan,
                    "kl": math.nan if edited is None else edited.kl,
                    **tests_of(base, edited, beside, seed=self.config.seed),
                    "random_floor": _mean(random),
                    "random_max": max(random, default=math.nan),
                    "harmless_floor": _mean(halves),
                    "harmless_max": max(halves, default=math.nan),
                    "n": len(base.scores),
                    "refusal_tokens": json.dumps(list(tokens), ensure_ascii=False),
                }
            )
        return pd.DataFrame(rows)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
