"""The work of an anatomy run, part by part: each table is a part of the run and is not made twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.anatomy.actions import action_tables
from mechsafety.anatomy.clusters import (
    attack_tau,
    d_prime_changes,
    fit_centroids,
    mlp_activations,
    separation,
    tau_table,
)
from mechsafety.anatomy.interpolation import INTERPOLATION_COLUMNS, interpolation_rows
from mechsafety.anatomy.links import ablation_table, choose_direction, direction_links, set_links
from mechsafety.anatomy.outputs import ANSWER_POSITIONS, AnswerPositions, map_inputs
from mechsafety.anatomy.readings import OUTCOME_COLUMNS, SAFE, UNSAFE
from mechsafety.anatomy.reversal import (
    REVERSAL_COLUMNS,
    Factors,
    ReversalState,
    reversal_rows,
    reversal_states,
    top_factors,
)
from mechsafety.anatomy.sensitivity import gradient_norms, norm_table, sensitivity_table
from mechsafety.anatomy.weight_changes import MLP_KINDS, Inputs, WeightChange, change_tables, weight_changes
from mechsafety.directions.direction import Direction
from mechsafety.experiments.anatomy.answers import OwnAnswers
from mechsafety.experiments.anatomy.config import PART_TABLES, AnatomyConfig, Part, Role
from mechsafety.experiments.session import Session
from mechsafety.judges.outcomes import Asking
from mechsafety.regions.attribution import score_weights
from mechsafety.runs.folder import finite
from mechsafety.runs.journal import Journal

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Rows = Sequence[Mapping[str, Any]]
Tables = dict[str, pd.DataFrame]


@dataclass(kw_only=True)
class AnatomyWork:
    """One pair's run: what it is asked, where it is kept, and the parts in their order.

    The judge of ``answers`` must ask none of its models: the base's weights change in place while a state is measured.
    """

    config: AnatomyConfig
    session: Session
    answers: OwnAnswers

    def __post_init__(self) -> None:
        self.models, self.say, self.run = self.answers.models, self.session.say, self.session.run
        self.tunings: tuple[Role, ...] = tuple(role for role in self.models if role != "base")
        self._states = Journal(self.run.path / "parts" / "states.jsonl")

    def tables(self) -> Tables:
        """Every table that was asked for, by name."""
        makers: dict[Part, Callable[[], Tables]] = {
            "clusters": self._clusters,
            "weights": self._weights,
            "sensitivity": self._sensitivity,
            "interpolation": self._interpolation,
            "reversal": self._reversal,
            "links": self._links,
        }
        found: Tables = {}
        for number, part in enumerate(self.config.parts, start=1):
            names = PART_TABLES[part]
            if not all(self.run.has_part("tables", name) for name in names):
                self.say(f"[{number}/{len(self.config.parts)}] {part}")
                for name, table in makers[part]().items():
                    # Tensors bring their own number format; a table's numbers are Python's.
                    single = table.select_dtypes("float32").columns
                    self.run.write_part(table.astype(dict.fromkeys(single, float)), "tables", name)
            found |= {name: self.run.read_part("tables", name) for name in names}
        verdicts = self.answers.read_verdicts()
        return found | ({"verdicts": verdicts} if len(verdicts) else {})

    # -- activations ----------------------------------------------------------------------------

    def _clusters(self) -> Tables:
        seed, n_report = self.config.seed, len(self.answers.groups[SAFE]) + len(self.answers.groups[UNSAFE])
        unsafe = [p.label == "harmful" for p in self.answers.held_out[:n_report]]
        separations, taus = [], []
        for role, model in self.models.items():
            fit, held_out = self.answers(role, "fit"), self.answers(role, "held-out")
            for positions in ANSWER_POSITIONS:
                fitted = mlp_activations(model, fit, positions=positions)
                centroids = fit_centroids(fitted, [p.label == "harmful" for p in fit.prompts])
                found = mlp_activations(model, held_out, positions=positions)
                separations.append(
                    separation(
                        found[:n_report], unsafe, centroids, model=role, positions=positions, seed=seed
                    )
                )
                taus.append(
                    tau_table(
                        centroids.tau(found),
                        held_out,
                        model=role,
                        positions=positions,
                        groups=self.answers.group_of,
                        labels=self.answers.verdicts(role, "held-out"),
                    )
                )
        tau = pd.concat(taus, ignore_index=True)
        return {
            "separation": pd.concat(separations, ignore_index=True),
            "tau": tau,
            "d_prime_changes": d_prime_changes(tau, seed=seed),
            "attack_tau": attack_tau(tau, seed=seed),
        }

    def _sensitivity(self) -> Tables:
        norms = []
        for role, model in self.models.items():
            norms.append(self.session.part("norms", role, make=partial(self._norms, role, model)))
        table = pd.concat(norms, ignore_index=True)
        return {"sensitivity": sensitivity_table(table, seed=self.config.seed), "norms": table}

    def _norms(self, role: Role, model: TransformerBridge) -> pd.DataFrame:
        held_out, groups = self.answers.held_out, self.answers.group_of
        return norm_table(gradient_norms(model, held_out), held_out, model=role, groups=groups)

    # -- weights --------------------------------------------------------------------------------

    def _changes(self, role: Role) -> list[WeightChange]:
        return weight_changes(self.models["base"], self.models[role])

    def _weights(self) -> Tables:
        seed, wanted = self.config.seed, MLP_KINDS if self.config.maps == "mlp" else None
        changes: dict[Role, list[WeightChange]] = {
            role: [c for c in self._changes(role) if wanted is None or c.kind in wanted]
            for role in self.tunings
        }
        groups = [self.answers.group_of[p.id] for p in self.answers.held_out]
        given: dict[str, Any] = {"control": changes.get("control"), "groups": groups, "seed": seed}
        inputs = {positions: self._inputs(changes, positions) for positions in ANSWER_POSITIONS}
        changed = change_tables(changes["tuned"], inputs=inputs["output"], **given)
        acted = {
            positions: action_tables(changes["tuned"], inputs=read, **given)
            for positions, read in inputs.items()
        }
        return {
            "weight_changes": changed.changes,
            "spectrum": changed.spectrum,
            "action": pd.concat([a.action.assign(positions=p) for p, a in acted.items()], ignore_index=True),
            "action_ratios": pd.concat(
                [a.ratios.assign(positions=p) for p, a in acted.items()], ignore_index=True
            ),
        }

    def _inputs(
        self, changes: Mapping[Role, Sequence[WeightChange]], positions: AnswerPositions
    ) -> dict[str, Inputs]:
        return {
            role: map_inputs(
                self.models[role],
                self.answers(role, "held-out"),
                [change.tuned for change in several],
                positions=positions,
            )
            for role, several in changes.items()
        }

    # -- models between base and tuned ----------------------------------------------------------

    def _state(self, key: str, make: Callable[[], Rows]) -> Rows:
        """The rows of one state, made if they are not there yet."""
        rows = self._states.get(key)
        if rows is None:
            self.say(key)
            rows = [finite(row) for row in make()]
            self._states.put(key, rows)
        return rows

    def _asking(self, part: str, model: str, state: str) -> Asking:
        return {
            **self.answers.asking,
            "keep": partial(self.answers.keep, part, model, state),
            "keep_labels": partial(self.answers.keep_labels, part, model, state),
        }

    def _interpolation(self) -> Tables:
        rows = [
            {"model": role, **row}
            for role in self.tunings
            for alpha in self.config.alphas
            for row in self._state(f"interpolation, {role}, alpha {alpha}", partial(self._at, role, alpha))
        ]
        return {"interpolation": _numbers(pd.DataFrame(rows, columns=list(INTERPOLATION_COLUMNS)))}

    def _at(self, role: Role, alpha: float) -> Rows:
        if alpha in (0, 1):  # the base and the model itself, which have answered already
            return [{"alpha": alpha, **row} for row in self.answers.outcomes(role if alpha else "base")]
        asking = self._asking("interpolation", role, f"alpha {alpha:g}")
        return interpolation_rows(
            self.models["base"], self.models[role], alpha, self.answers.groups, **asking
        )

    @cached_property
    def _factors(self) -> Factors:
        return top_factors(self._changes("tuned"), rank=max(self.config.ranks))

    def _reversal(self) -> Tables:
        states = reversal_states(self.config.ranks)
        rows = [
            row for s in states for row in self._state(f"reversal, {s.label}", partial(self._reversed, s))
        ]
        return {"reversal": _numbers(pd.DataFrame(rows, columns=list(REVERSAL_COLUMNS)))}

    def _reversed(self, state: ReversalState) -> Rows:
        if state.what == "base" or state.what == "tuned":
            return [{"state": state.what, "r": None, **row} for row in self.answers.outcomes(state.what)]
        return reversal_rows(
            *(self.models["base"], self.models["tuned"], state, self.answers.groups),
            factors=None if state.r is None else self._factors,
            **self._asking("reversal", "tuned", state.label),
        )

    # -- links ----------------------------------------------------------------------------------

    def _links(self) -> Tables:
        direction, changes = self._direction(), self._changes("tuned")
        ablation = ablation_table(
            *(self.models["tuned"], direction, self.answers.groups),
            keep_state=partial(self.answers.keep, "ablation", "tuned"),
            keep_labels_of=partial(self.answers.keep_labels, "ablation", "tuned"),
            **self.answers.asking,
        )
        found = [direction_links(changes, direction, seed=self.config.seed)]
        refusals = self.answers.refusals("tuned")
        self.run.record("links", {"layer": direction.layer, "refusals_scored": len(refusals)})
        if refusals:
            store = self.run.path / "parts" / "refusal-scores.safetensors"
            found.append(set_links(changes, score_weights(self.models["tuned"], refusals, store=store)))
            store.unlink()
        else:
            self.say(
                "links: the tuned model refused no harmful fit prompt, so there is no safety set to measure"
            )
        return {"links": pd.concat(found, ignore_index=True), "ablation": ablation}

    def _direction(self) -> Direction:
        """The tuned model's refusal direction; the choice of its layer is kept, the direction is found again."""
        key = ("links", "layer")
        known = self.run.read_json_part(*key) if self.run.has_part(*key, suffix="json") else None
        found = choose_direction(
            self.models["tuned"],
            self.answers.prompts.to_estimate,
            self.answers.prompts.to_choose,
            layers=None if known is None else [known],
            keep_state=partial(self.answers.keep, "choice of the layer", "tuned"),
            **self.answers.asking,
        )
        self.run.write_json_part(found.layer, *key)
        return found


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Shares as numbers: what was not finite came back from the journal as None."""
    shares = [name for name in ("r", *OUTCOME_COLUMNS) if name in table and name != "n"]
    return table.astype(dict.fromkeys(shares, float))
