"""The readings of a seed's claims and of its controls: what is run again on networks that were never trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mechsafety.anatomy.clusters import fit_centroids
from mechsafety.anatomy.decompositions import NullSpace, left_null_spaces, singular
from mechsafety.anatomy.readings import SAFE, UNSAFE
from mechsafety.experiments.lab.config import BASE
from mechsafety.experiments.lab.controls import (
    CONTROL_COLUMNS,
    NETWORKS,
    SHUFFLED,
    UNTRAINED,
    Reading,
    auroc,
    d_prime,
    growth_reading,
    labelled_reading,
    mean_ratio,
    median_ratio,
    outcome_readings,
    safe_side,
    worst_answered,
)
from mechsafety.experiments.lab.seeds import ATTACKS, PROMPTS, LabSeed
from mechsafety.lab.forced import Place, first_token_norms, last_reads
from mechsafety.lab.inputs import KINDS, Inputs, draw_inputs, joined
from mechsafety.lab.networks import new_network, open_network
from mechsafety.lab.outcomes import free_running, outcome_table, readings

if TYPE_CHECKING:
    from mechsafety.experiments.lab.thresholds import Tables

PLACE_NAMES: Mapping[Place, str] = {
    "last_prompt": "last prompt token",
    "last_operand": "last operand",
    "output": "over the answer",
}
_FRESH = 1_000_000
"""Where the seeds of untrained networks begin: far from those of the runs."""
_INPUTS = 48
"""Inputs of each kind that untrained networks answer, at most."""
_TARGETS = 99
"""Draws of exchanged targets."""


def control_table(seed: LabSeed, cases: pd.DataFrame, anatomies: Mapping[str, Tables]) -> pd.DataFrame:
    """Every reading of a seed beside its controls.

    ``cases`` and ``anatomies`` are those of :func:`threshold_table`. Columns: :data:`CONTROL_COLUMNS`.
    """
    found = [*_Controls(seed=seed, cases=cases, anatomies=anatomies).readings()]
    found.sort(key=lambda reading: reading.number)
    return pd.DataFrame([row for reading in found for row in reading.rows()], columns=CONTROL_COLUMNS)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Controls:
    seed: LabSeed
    cases: pd.DataFrame
    anatomies: Mapping[str, Tables]

    def readings(self) -> Iterator[Reading]:
        yield self._targets()
        yield from outcome_readings(
            self.cases, self.untrained_cases, list(self.anatomies), seed=self.seed.seed
        )
        for model, tables in self.anatomies.items():
            network = open_network(self._folder(model))
            yield from self._activations(model, network, tables)
            yield self._alignment(model, network, tables)
            yield self._sensitivity(model, tables)
            line = tables["interpolation"]
            line = line[line["model"] == "tuned"]
            yield growth_reading(model, line, self.cases, self.untrained_cases, seed=self.seed.seed)

    def _folder(self, model: str) -> Any:
        return self.seed.model(model)

    @cached_property
    def networks(self) -> list[GPTNeoXForCausalLM]:
        size, first = self.seed.chosen.network, _FRESH + NETWORKS * self.seed.seed
        return [new_network(size, self.seed.vocabulary, seed=first + i) for i in range(NETWORKS)]

    @cached_property
    def base(self) -> GPTNeoXForCausalLM:
        return open_network(self._folder(BASE))

    # -- answers --------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> Inputs:
        generator = torch.Generator().manual_seed(self.seed.seed)
        rules, n = self.seed.vocabulary.rules, min(_INPUTS, self.seed.chosen.measured)
        return joined([draw_inputs(rules, kind, n, split="report", generator=generator) for kind in KINDS])

    @cached_property
    def untrained_cases(self) -> list[pd.DataFrame]:
        """What every untrained network answers."""
        return [self._outcomes(self._answers(network)) for network in self.networks]

    def _answers(self, network: GPTNeoXForCausalLM) -> list[list[int]]:
        return free_running(network, self.seed.vocabulary, self.seed.vocabulary.prompts(self.inputs))

    def _outcomes(self, answers: list[list[int]], wanted: Tensor | None = None) -> pd.DataFrame:
        """The answers compared with what the inputs require, or the inputs at ``wanted``, of the same kinds."""
        inputs = self.inputs if wanted is None else self.inputs.select(wanted)
        return outcome_table(self.inputs, readings(self.seed.vocabulary, inputs, answers))

    def _targets(self) -> Reading:
        """The pretrained model's answers against what other inputs of their class require."""
        rng, answers = np.random.default_rng(self.seed.seed), self._answers(self.base)
        cells = pd.Series(list(zip(self.inputs.kinds, self.inputs.text_classes, strict=True)))
        places = [np.asarray(rows) for rows in cells.groupby(cells).indices.values()]
        shuffled = []
        for _ in range(_TARGETS):
            order = np.arange(len(cells))
            for rows in places:
                order[rows] = rng.permutation(rows)
            shuffled.append(worst_answered(self._outcomes(answers, torch.from_numpy(order))))
        own = self.cases[self.cases["model"] == BASE]
        return Reading(
            number=1,
            model=BASE,
            what="worst class answered",
            value=worst_answered(own),
            draws={UNTRAINED: [worst_answered(t) for t in self.untrained_cases], SHUFFLED: shuffled},
        )

    # -- activations ----------------------------------------------------------------------------

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """Fit and report prompts and attacks, with their token ids."""
        tables = [pd.read_csv(self.seed.folder / name) for name in (PROMPTS, ATTACKS)]
        every = pd.concat(tables, ignore_index=True)
        return every[every["split"] != "validation"].reset_index(drop=True)

    @cached_property
    def ids(self) -> Int[Tensor, "input position"]:
        vocabulary = self.seed.vocabulary
        places = {word: i for i, word in enumerate(vocabulary.words)}
        return torch.tensor(
            [[places[w] for w in ("<bos>", *text.split(), "<eot>")] for text in self.prompts["text"]]
        )

    def _activations(self, model: str, network: GPTNeoXForCausalLM, tables: Tables) -> Iterator[Reading]:
        vocabulary = self.seed.vocabulary
        longest, end = vocabulary.rules.size.grammar.length[1] + 2, vocabulary.id("<end>")
        answers = free_running(network, vocabulary, self.ids)
        answers = [[*row, end] if len(row) < longest else row for row in answers]
        own = last_reads(network, self.ids, answers)
        fresh = [last_reads(untrained, self.ids, answers) for untrained in self.networks]
        sides = self._sides(tables)
        change = (_down(network) - _down(self.base)).detach()
        given = {"model": model, "seed": self.seed.seed}
        for place, name in PLACE_NAMES.items():
            taus = [sides.tau(read[place]) for read in (own, *fresh)]
            acts = [sides.acted(read[place], change) for read in (own, *fresh)]
            prompts = [tau[sides.judged] for tau in taus]
            attacks = [tau[sides.attacks] for tau in taus]
            for number, what, read, values, labels in (
                (4, "AUROC of tau", auroc, prompts, sides.safe),
                (4, "d' of tau", d_prime, prompts, sides.safe),
                (5, "successful attacks on the safe side", safe_side, attacks, sides.succeeded),
                (6, "||dW a|| unsafe over safe, last MLP output matrix", mean_ratio, acts, sides.safe),
            ):
                first, *others = values
                told = {"number": number, "what": f"{what}, {name}", **given}
                yield labelled_reading(read, first, others, labels, **told)

    def _sides(self, tables: Tables) -> _Sides:
        tau = tables["tau"]
        tau = tau[(tau["model"] == "tuned") & (tau["positions"] == "last_prompt") & (tau["layer"] == 0)]
        label = dict(zip(tau["id"], tau["label"], strict=True))
        attack = self.prompts["id"].isin(tau.loc[~tau["group"].isin([SAFE, UNSAFE]), "id"])
        return _Sides(
            fit=np.array(self.prompts["split"] == "fit"),
            attack=np.array(attack),
            unsafe=np.array(self.prompts["label"] == "harmful"),
            verdicts=np.array([label.get(i, "") for i in self.prompts["id"]]),
        )

    # -- weights and gradients --------------------------------------------------------------------

    @cached_property
    def null_spaces(self) -> list[dict[tuple[int, str], NullSpace]]:
        """The left null space (90 % energy) of every MLP matrix of every untrained network."""
        return [
            {key: left_null_spaces(w, energies=(90,))[90] for key, w in _matrices(network).items()}
            for network in self.networks
        ]

    def _alignment(self, model: str, network: GPTNeoXForCausalLM, tables: Tables) -> Reading:
        changes = tables["weight_changes"]
        rows = changes[(changes["model"] == "tuned") & changes["kind"].isin(["up", "down"])]
        kept = {(r.layer, r.kind): r.directions for r in rows.itertuples()}
        before = _matrices(self.base)
        tops = {
            key: singular(w - before[key], top=int(kept[key])).left[:, : int(kept[key])]
            for key, w in _matrices(network).items()
            if kept[key]
        }

        def excess(spaces: Mapping[tuple[int, str], NullSpace]) -> float:
            over = [
                float(spaces[k].alignment(left).square().mean().sqrt()) - spaces[k].chance
                for k, left in tops.items()
            ]
            return float(np.mean(over))

        return Reading(
            number=7,
            model=model,
            what="alignment with the left null space less chance, mean of MLP matrices",
            value=float((rows["alignment_90"] - rows["chance_90"]).mean()),
            draws={UNTRAINED: [excess(spaces) for spaces in self.null_spaces]},
        )

    @cached_property
    def untrained_norms(self) -> list[np.ndarray]:
        ids = self.ids[torch.from_numpy(self._plain)]
        return [first_token_norms(network, ids).double().numpy() for network in self.networks]

    @property
    def _plain(self) -> np.ndarray:
        """Which prompts are safe and unsafe report prompts."""
        own = pd.read_csv(self.seed.folder / PROMPTS)
        return np.array(self.prompts["id"].isin(own.loc[own["split"] == "report", "id"]))

    def _sensitivity(self, model: str, tables: Tables) -> Reading:
        norms = tables["norms"]
        norms = norms[norms["model"] == "tuned"].set_index("id")["norm"]
        plain = self.prompts[self._plain]
        return labelled_reading(
            median_ratio,
            norms.reindex(plain["id"]).to_numpy(dtype=float),
            self.untrained_norms,
            (plain["label"] == "harmless").to_numpy(),
            number=8,
            model=model,
            what="median sensitivity, unsafe over safe inputs",
            side=-1,
            seed=self.seed.seed,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sides:
    """Which prompts centroids are fitted to, which are judged, and which are attacks; verdicts on the answers."""

    fit: np.ndarray
    attack: np.ndarray
    unsafe: np.ndarray
    verdicts: np.ndarray

    @property
    def judged(self) -> np.ndarray:
        return ~self.fit & ~self.attack

    @property
    def safe(self) -> np.ndarray:
        """Of the judged ones."""
        return ~self.unsafe[self.judged]

    @property
    def attacks(self) -> np.ndarray:
        """Attacks whose answers could be read."""
        return self.attack & (self.verdicts != "unparsed")

    @property
    def succeeded(self) -> np.ndarray:
        return self.verdicts[self.attacks] == "compliance"

    def tau(self, read: Float[Tensor, "input d_mlp"]) -> np.ndarray:
        layered, fit = read[:, None], torch.from_numpy(self.fit)
        centroids = fit_centroids(layered[fit], self.unsafe[self.fit].tolist())
        return centroids.tau(layered)[:, 0].double().numpy()

    def acted(self, read: Float[Tensor, "input d_mlp"], change: Float[Tensor, "d_model d_mlp"]) -> np.ndarray:
        """||dW a|| / ||a|| of the judged prompts."""
        a = read[torch.from_numpy(self.judged)]
        return ((a @ change.T).norm(dim=-1) / a.norm(dim=-1)).double().numpy()


def _matrices(network: GPTNeoXForCausalLM) -> dict[tuple[int, str], Float[Tensor, "d_out d_in"]]:
    """The MLP matrices by layer and kind."""
    layers = cast("Any", network).gpt_neox.layers
    return {
        (number, kind): getattr(layer.mlp, name).weight.detach()
        for number, layer in enumerate(layers)
        for kind, name in (("up", "dense_h_to_4h"), ("down", "dense_4h_to_h"))
    }


def _down(network: GPTNeoXForCausalLM) -> Float[Tensor, "d_model d_mlp"]:
    return list(_matrices(network).values())[-1]
