"""The work of a regions run, piece by piece: each piece is a part of the run and is not done twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from mechsafety.core.verdict import Judge
from mechsafety.core.wording import percent
from mechsafety.edits.interventions import Edit
from mechsafety.experiments.regions.config import RegionsConfig, State, planned_states
from mechsafety.experiments.session import Session
from mechsafety.generation.answered import Completion, answer_frame
from mechsafety.generation.answers import Example
from mechsafety.judges.kinds.fluent import FluentJudge
from mechsafety.models.chat import day_of
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.prompts.splits import require_disjoint
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.head_probes import probe_heads
from mechsafety.regions.heads import best_heads, prune_heads, random_heads
from mechsafety.regions.links import random_like
from mechsafety.regions.maps import LinearMap, linear_maps, uncovered, unseen_share
from mechsafety.regions.overlap import jaccard_table, subspace_table
from mechsafety.regions.own_examples import examples_from_model
from mechsafety.regions.pruning import prune, set_difference, top_pruning
from mechsafety.regions.removal import LowRank, Pruning, Removal, removed, removed_sizes
from mechsafety.regions.score_files import Attribution, Method
from mechsafety.regions.subspaces import orthogonal_projections
from mechsafety.robustness.benign import benign_choices, benign_passages
from mechsafety.robustness.outcomes import OUTCOME_COLUMNS, measure_outcomes
from mechsafety.robustness.utility import (
    UTILITY_COLUMNS,
    BaseDistributions,
    base_distributions,
    measure_utility,
)
from mechsafety.runs.folder import finite

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PROBE_FIT = 64
"""Prompts of each label that a head's probe is fitted on."""
_PASSAGES = 30
Kind = Literal["safety", "utility"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCORED = ("structure", "subspaces")
"""Tables on the scores of weights alone."""
VERDICTS = "verdicts"
"""The part, and the table, of the verdict on each report prompt in each state of the model."""
ANSWER_KEYS = ("part", "removal", "setting", "control", "draw")
_STATE_COLUMNS = [
    *("removal", "setting", "control", "draw", "p", "q", "r_u", "r_s"),
    *("share", "mean_weight", "energy"),
]


def evaluated_prompts(prompts: PromptSet, config: RegionsConfig) -> PromptSet:
    """The report prompts that removals are judged on."""
    report = prompts.to_judge
    return report if config.limit is None else report.sample(config.limit, seed=config.seed)


@dataclass(kw_only=True)
class RegionWork:
    """One model's run: what it is asked, where it is kept, and the parts in their order."""

    config: RegionsConfig
    session: Session
    prompts: PromptSet
    model: TransformerBridge

    def __post_init__(self) -> None:
        self.run, self.say = self.session.run, self.session.say
        self._answering: dict[str, Any] = {}
        self._attributions: dict[int, tuple[Attribution, Attribution]] = {}
        self._projected: dict[int, dict[tuple[int | float, ...], LowRank]] = {}
        self._like: dict[State, Removal] = {}
        self._passages, self._choices = benign_passages()[:_PASSAGES], benign_choices()
        require_disjoint(attribution=self.attributed, evaluation=self.evaluated)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table that was asked for, by name."""
        left = uncovered(self.model, self.maps)
        share = unseen_share(self.model, self.maps)
        self.run.record("maps", {"covered": len(self.maps), "left_out": left, "share_left_out": share})
        if left:
            self.say(
                f"{percent(share)} of the weights of the blocks are no linear maps and left as they are: "
                f"{', '.join(left[:3])}{', ...' if left[3:] else ''}"
            )
        parts = self.config.parts
        found: dict[str, pd.DataFrame] = {}
        if "structure" in parts:
            found |= {name: self.scored(name) for name in SCORED}
        if "heads" in parts:
            found["heads"] = self.heads
        if "sweep" in parts or "heads" in parts:
            found["tradeoff"] = self._tradeoff()
        return found

    @cached_property
    def whole(self) -> TransformerBridge:
        """A second copy of the model, from which nothing is ever removed."""
        config = self.config
        return load_model(
            config.model,
            **config.loading,
            date=day_of(self.model),
        )

    @cached_property
    def judge(self) -> Judge:
        """``rules``, with the whole model to separate language from garbage."""
        return FluentJudge(self.config.model, self.whole)

    @cached_property
    def base(self) -> BaseDistributions:
        """The whole model's distributions on the benign passages."""
        return base_distributions(self.whole, self._passages)

    @cached_property
    def maps(self) -> list[LinearMap]:
        return linear_maps(self.model)

    @cached_property
    def evaluated(self) -> PromptSet:
        """The report prompts that removals are judged on."""
        return evaluated_prompts(self.prompts, self.config)

    @cached_property
    def attributed(self) -> PromptSet:
        """The prompts that weights may be scored on."""
        return self.prompts.to_estimate

    def attributions(self, draw: int) -> tuple[Attribution, Attribution]:
        """Safety's and utility's scores of one calibration draw."""
        if draw not in self._attributions:
            self._attributions[draw] = (self._attribute("safety", draw), self._attribute("utility", draw))
        return self._attributions[draw]

    def examples(self, kind: Kind, draw: int) -> list[Example]:
        """The model's own answers that weights are scored on."""
        config = self.config

        def made() -> pd.DataFrame:
            self.say(f"own answers for {kind}, draw {draw + 1} of {config.draws}")
            examples = examples_from_model(
                self.model,
                self.attributed,
                kind=kind,
                n=config.examples,
                response=config.response if kind == "safety" else "full",
                max_new_tokens=config.answer_tokens,
                seed=config.seed + draw,
            )
            return pd.DataFrame([asdict(e) | {"prompt": json.dumps(e.prompt)} for e in examples])

        rows = self.session.part("examples", f"{kind}-{draw}", make=made).to_dict(orient="records")
        return [
            Example(prompt=json.loads(r["prompt"]), answer=r["answer"], whole=bool(r["whole"])) for r in rows
        ]

    def _attribute(self, kind: Kind, draw: int) -> Attribution:
        config, examples = self.config, self.examples(kind, draw)
        self.say(f"scores of {kind}, draw {draw + 1} of {config.draws}")
        folder = self.run.path / "scores"
        folder.mkdir(exist_ok=True)
        return score_weights(
            self.model,
            examples,
            loss=config.loss,
            positions=config.positions,
            batch_size=config.batch_size,
            store=folder / f"{kind}-{draw}.safetensors",
        )

    def scored(self, name: str) -> pd.DataFrame:
        """One of the tables on the scores alone (:data:`SCORED`)."""
        return self.part(name, self._structure if name == "structure" else self._subspaces)

    def _structure(self) -> pd.DataFrame:
        safety, utility = self.attributions(0)
        methods: tuple[Method, ...] = ("snip", "wanda")
        tables = [
            jaccard_table(self.maps, safety, utility, method=method, q=5, group=self.config.group)
            for method in methods
        ]
        return pd.concat(tables, ignore_index=True)

    def _subspaces(self) -> pd.DataFrame:
        return subspace_table(self.maps, *self.attributions(0), rank=self.config.rank)

    @cached_property
    def heads(self) -> pd.DataFrame:
        """A probe a head, fitted on fit prompts and read on validation prompts."""

        def probed() -> pd.DataFrame:
            fit = self.prompts.to_estimate.sample(_PROBE_FIT, seed=self.config.seed)
            return probe_heads(self.model, fit, self.prompts.to_choose, seed=self.config.seed)

        return self.part("heads", probed)

    def removal(self, state: State) -> Removal:
        """What ``state`` takes out of the model."""
        if state.control in ("random", "matched"):
            return self._control(state, in_size=state.control == "matched")
        if state.removal == "heads":
            return self._pruned_heads(best_heads(self.heads, n=self.config.heads))
        safety, utility = self.attributions(state.draw)
        method, group = self.config.method, self.config.group
        if state.removal == "set_difference":
            p, q = state.values
            return set_difference(self.maps, safety, utility, method=method, p=p, q=q, group=group)
        if state.removal == "orthogonal_projection":
            return self._projections(state.draw)[state.values]
        (percent,) = state.values
        if state.removal == "top_safety":
            return top_pruning(self.maps, safety, method=method, q=percent, group=group)
        return prune(self.maps, safety, method=method, percent=percent, group=group)

    def _projections(self, draw: int) -> dict[tuple[int | float, ...], LowRank]:
        """All orthogonal projections of one draw, for which every map is decomposed once."""
        if draw not in self._projected:
            ranks = self.config.projections
            found = orthogonal_projections(self.maps, *self.attributions(draw), ranks=ranks)
            self._projected[draw] = dict(zip(ranks, found, strict=True))
        return self._projected[draw]

    def _control(self, state: State, *, in_size: bool) -> Removal:
        seed = self.config.seed + state.draw
        if state.removal == "heads":
            best = best_heads(self.heads, n=self.config.heads)
            n_heads = self.model.cfg.n_heads
            return self._pruned_heads(
                random_heads(self.maps, best, n_heads=n_heads, seed=seed, in_size=in_size)
            )
        like = replace(state, control="removed", draw=0)
        if like not in self._like:
            self._like = {like: self.removal(like)}  # the last one only: controls follow their removal
        return random_like(self._like[like], self.maps, seed=seed, in_size=in_size)

    def _pruned_heads(self, heads: Sequence[tuple[int, int]]) -> Pruning:
        return prune_heads(self.maps, heads, n_heads=self.model.cfg.n_heads)

    def _tradeoff(self) -> pd.DataFrame:
        """A row a state: what is removed, and outcomes and utility of the model without it."""
        states = planned_states(self.config)
        rows = [self.row(state, f"[{number}/{len(states)}] ") for number, state in enumerate(states, start=1)]
        return pd.DataFrame(rows, columns=[*_STATE_COLUMNS, *OUTCOME_COLUMNS, *UTILITY_COLUMNS])

    def row(self, state: State, place: str = "") -> dict[str, Any]:
        """What is measured of one state, made if it is not there yet."""

        def made() -> dict[str, Any]:
            self.say(f"{place}{state.describe()}")
            return finite(self._measured_state(state))

        return self.session.json_part("states", state.key, make=made)

    def _measured_state(self, state: State) -> dict[str, Any]:
        self.answering("outcomes", state)
        with self.without(state) as removal:
            measured = self.measure(self.model)
        described = {
            "removal": state.removal,
            "setting": state.setting,
            "control": state.control,
            "draw": state.draw,
            "share": share_of(removal, self.maps),
            **({"energy": 0.0} if removal is None else removed_sizes(removal, self.maps)),
        }
        return described | state.named | measured

    @contextmanager
    def without(self, state: State | None) -> Iterator[Removal | None]:
        """The model without what ``state`` removes."""
        if state is None or state.removal == "none":
            yield None
            return
        removal = self.removal(state)
        with removed(self.model, removal, maps=self.maps):
            yield removal

    def judged(self, model: TransformerBridge, edit: Edit | None = None) -> dict[str, Any]:
        """Outcomes on the report prompts; the verdict on each is kept."""
        found = measure_outcomes(
            model,
            self.evaluated,
            edit=edit,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.config.seed,
            judge=self.judge,
            keep=self.keep,
        )
        keys = self._answering
        rows = [
            {**keys, "id": p.id, "label": p.label, "verdict": found.verdicts[p.id]} for p in self.evaluated
        ]
        self.run.write_part(
            pd.DataFrame(rows, columns=[*ANSWER_KEYS, "id", "label", "verdict"]),
            VERDICTS,
            " ".join(map(str, keys.values())),
        )
        return found.row()

    def answering(self, part: str, state: State, **changed: Any) -> None:
        """Name the answers that come next: the part and the state of the model."""
        keys = {name: getattr(state, name) for name in ANSWER_KEYS[1:]}
        self._answering = {"part": part, **keys, **changed}

    def keep(self, answers: Sequence[Completion]) -> None:
        """Keep answers for other judges."""
        keys = self._answering
        self.session.keep_answers(answer_frame(answers, **keys), " ".join(map(str, keys.values())))

    def measure(self, model: TransformerBridge, edit: Edit | None = None) -> dict[str, Any]:
        """Outcomes on the report prompts, and utility on benign text and questions."""
        cost = measure_utility(
            model,
            passages=self._passages,
            choices=self._choices,
            base=self.base,
            edit=edit,
            seed=self.config.seed,
        )
        return self.judged(model, edit) | cost.row()

    def part(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table ``name``, made if it is not there yet."""

        def made() -> pd.DataFrame:
            self.say(name)
            return make()

        return self.session.part("tables", name, make=made)


def share_of(removal: Removal | None, maps: Sequence[LinearMap]) -> float:
    """Weights removed as a share of all; for low ranks, ranks removed as a share of all ranks."""
    if removal is None:
        return 0.0
    if isinstance(removal, Pruning):
        return removal.sparsity
    return sum(removal.ranks().values()) / sum(m.rank for m in maps)
