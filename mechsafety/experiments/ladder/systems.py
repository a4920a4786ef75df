"""One system of a ladder: its subspace, what it answers in every state, and its links; each kept when it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechsafety.anatomy.readings import read_outcomes
from mechsafety.core.errors import MechsafetyError, NotFiniteError, RefusedRunError
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.edits.interventions import Ablate, Edit
from mechsafety.experiments.ladder.config import SYSTEM_LINK_COLUMNS, Kind, LadderConfig
from mechsafety.experiments.ladder.links import change_links, removal_links
from mechsafety.experiments.ladder.subspaces import find_subspace
from mechsafety.experiments.records import record_fed, record_shared_tokens
from mechsafety.generation.completions import generate
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.provenance import of_models
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import Journal, RunFolder, finite
from mechsafety.sweeps.edit_costs import EditCosts
from mechsafety.tuning.rephrasings import opens_as_rephrasing
from mechsafety.tuning.rungs import opens_with_tag

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FIT = 128
"""Prompts of each label that directions are found on, at most."""
_VALIDATION = 64
"""Prompts of each label that a layer is chosen on, at most."""
_CHOICE = 16
"""Harmful validation prompts that are answered to choose a layer, at most."""


class RungAware:
    """``judge``, to whom the safe answers of other rungs are refusals of a harmful request as well.

    An answer that opens with the tag of ``metatags`` is withheld from the reader, whatever follows; a coherent one that
    opens as a rephrasing of ``rephrase`` does not comply. Rephrasings in other words are missed.
    """

    def __init__(self, judge: Judge) -> None:
        self.name = judge.name
        self._judge = judge

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        text = {r.id: r.text for r in responses}
        return [self._read(v, text[v.id]) for v in self._judge(responses)]

    def _read(self, verdict: Verdict, text: str) -> Verdict:
        if opens_with_tag(text):
            return replace(verdict, label="refusal", tags=("withheld",))
        if verdict.label == "compliance" and opens_as_rephrasing(text):
            return replace(verdict, label="refusal", tags=("redirected",))
        return verdict


@dataclass(frozen=True, kw_only=True, eq=False)
class LadderSetting:
    """What all systems of a ladder share: what is asked, where it is kept, prompts, judge and a regions run."""

    config: LadderConfig
    run: RunFolder
    prompts: PromptSet
    judge: Judge
    regions: RunFolder | None
    day: str

    @cached_property
    def fit(self) -> PromptSet:
        return self.prompts.to_estimate.sample(FIT, seed=self.config.seed)

    @cached_property
    def validation(self) -> PromptSet:
        return self.prompts.to_choose.sample(_VALIDATION, seed=self.config.seed)

    @cached_property
    def choice(self) -> PromptSet:
        """The harmful validation prompts that a layer is chosen by."""
        limit = _CHOICE if self.config.limit is None else min(_CHOICE, self.config.limit)
        return self.validation.harmful.sample(limit, seed=self.config.seed)

    @cached_property
    def report(self) -> PromptSet:
        report, limit = self.prompts.to_judge, self.config.limit
        return report if limit is None else report.sample(limit, seed=self.config.seed)

    @property
    def read(self) -> list[tuple[PromptSet, int]]:
        """The prompts that each system reads, with the tokens that it may add."""
        more = self.config.max_new_tokens
        return [(self.fit, 0), (self.validation, 0), (self.choice, more), (self.report, more)]

    def load(self, spec: str) -> TransformerBridge:
        loading = self.config.loading
        for name, made_from in of_models(spec, **loading).items():  # hours may lie since the run was opened
            self.run.require_source(name, made_from)
        return load_model(spec, **loading, date=self.day)


class LadderSystem:
    """One system, loaded when it is first needed; :meth:`drop` lets go of it."""

    def __init__(self, setting: LadderSetting, spec: str) -> None:
        self.setting = setting
        self.spec = spec
        self._states = Journal(setting.run.part_path("states", spec, suffix="jsonl"))

    # -- what is held while it is loaded --------------------------------------------------------

    @cached_property
    def model(self) -> TransformerBridge:
        setting = self.setting
        model = setting.load(self.spec)
        record_fed(setting.run, self.spec, model, setting.report)
        return model

    @cached_property
    def _costs(self) -> EditCosts:
        run, prompts = self.setting.run, self.setting.report.harmless
        answers = run.read_json_part("answers", self.spec)
        return EditCosts(model=self.model, prompts=prompts, answers=[answers[p.id] for p in prompts])

    def drop(self) -> None:
        """Let go of the model, and of what was made with it."""
        if "model" in self.__dict__:
            record_shared_tokens(self.setting.run, self.spec, self.model)
        for name in ("model", "_costs"):
            self.__dict__.pop(name, None)

    # -- its subspace ---------------------------------------------------------------------------

    @property
    def has_subspace(self) -> bool:
        return self.setting.run.has_part("subspace", self.spec, suffix="json")

    def find_subspace(self) -> None:
        """Find the subspace and keep it."""
        setting, config, run = self.setting, self.setting.config, self.setting.run
        made = find_subspace(
            self.model,
            setting.fit,
            setting.validation,
            choice=setting.choice,
            report=setting.report,
            k=max(config.counts),
            judge=setting.judge,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            journal=Journal(run.part_path("layers", self.spec, suffix="jsonl")),
        )
        run.write_part(made.ranks.assign(system=self.spec), "ranks", self.spec)
        target = self._basis_path.relative_to(run.path)
        run.save(str(target), lambda path: save_file({"basis": made.basis}, path))
        record = load_record(self.model)
        facts = {
            "layer": made.layer,
            "by_refusals": made.by_refusals,
            "explanation": made.explanation,
            "tried": [finite(asdict(one)) for one in made.tried],
            "model": record.as_dict() if record else {},
        }
        run.write_json_part(facts, "subspace", self.spec)  # last: it says that the others are there

    @cached_property
    def basis(self) -> Float[Tensor, "k d_model"]:
        """The basis of the subspace that was found."""
        return load_file(self._basis_path)["basis"]

    def ranks(self) -> pd.DataFrame:
        """How well each direction of the basis separates alone: :func:`rank_table`."""
        return self.setting.run.read_part("ranks", self.spec)

    @property
    def _basis_path(self) -> Path:
        return self.setting.run.part_path("basis", self.spec, suffix="safetensors")

    def facts(self) -> dict[str, Any]:
        """The system's model, the layer of its subspace, and how that was chosen."""
        return self.setting.run.read_json_part("subspace", self.spec)

    # -- its states -----------------------------------------------------------------------------

    def done(self, kind: Kind, directions: int) -> bool:
        return self._states.get(_key(kind, directions)) is not None

    def measure(self, kind: Kind, directions: int) -> None:
        """Answer the report prompts in a state, and keep what :meth:`state` tells.

        The unedited state comes first, for the others are measured by its answers.
        """
        edit = self._edit(kind, directions)
        verdicts = self._verdicts(edit)
        costs = finite(self._costs.measure(edit))
        self._states.put(_key(kind, directions), {"verdicts": verdicts, "costs": costs})

    def state(self, kind: Kind, directions: int) -> tuple[dict[str, str], dict[str, float]]:
        """The verdict on every report prompt by id, and what a measured state costs: ``kl`` and ``perplexity``."""
        found = self._states.get(_key(kind, directions))
        costs = {name: math.nan if value is None else value for name, value in found["costs"].items()}
        return found["verdicts"], costs

    def _edit(self, kind: Kind, directions: int) -> Edit | None:
        if kind == "unedited":
            return None
        basis = self.basis
        if kind == "random":
            generator = torch.Generator().manual_seed(self.setting.config.seed)
            basis = torch.randn(basis.shape, generator=generator, dtype=torch.float32)
        return Ablate(basis[:directions])

    def _verdicts(self, edit: Edit | None) -> Mapping[str, str]:
        setting, config = self.setting, self.setting.config
        done = generate(
            self.model,
            setting.report,
            edit=edit,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            label="answers",
        )
        if edit is None:
            # No answer to a harmful prompt is kept.
            own = {c.id: list(c.tokens) for c in done if c.label == "harmless"}
            setting.run.write_json_part(own, "answers", self.spec)
        return read_outcomes(list(done), setting.judge)

    # -- its links ------------------------------------------------------------------------------

    def links(self) -> tuple[pd.DataFrame, str | None]:
        """dW and the regions run beside the system's direction, and what was left out and why.

        Columns: :data:`SYSTEM_LINK_COLUMNS`; no rows for the base itself.
        """
        setting, run = self.setting, self.setting.run
        base, regions = setting.config.base, setting.regions
        if regions is not None and regions.manifest["config"]["model"] != self.spec:
            regions = None
        note = None
        if not run.has_part("links", self.spec):
            tables = [removal_links(regions)] if regions is not None else []
            if base is not None and base != self.spec:
                try:
                    other = setting.load(base)
                    direction = self.basis[0]
                    tables.append(
                        change_links(other, self.model, direction, regions=regions, seed=setting.config.seed)
                    )
                except (NotFiniteError, RefusedRunError):
                    raise
                except MechsafetyError as error:
                    note = f"{self.spec} has no links to {base}: {error}."
            run.write_json_part(note, "link_note", self.spec)
            run.write_part(_joined(tables, self.spec), "links", self.spec)
        return run.read_part("links", self.spec), run.read_json_part("link_note", self.spec)


def _key(kind: Kind, directions: int) -> str:
    return f"{kind} {directions}"


def _joined(tables: Sequence[pd.DataFrame], system: str) -> pd.DataFrame:
    if not tables:
        return pd.DataFrame(columns=list(SYSTEM_LINK_COLUMNS))
    return pd.concat(tables, ignore_index=True).assign(system=system)[list(SYSTEM_LINK_COLUMNS)]
