"""One system of a ladder: its subspace, what it answers in every state, and its links; each kept when it is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechsafety.core.errors import MechsafetyError, NotFiniteError, RefusedRunError, StoppedError
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.edits.interventions import Ablate, Edit
from mechsafety.experiments.ladder.config import Kind, LadderConfig
from mechsafety.experiments.ladder.links import change_links, removal_links
from mechsafety.experiments.ladder.subspaces import Splits, find_subspace
from mechsafety.experiments.ladder.tables import SYSTEM_LINK_COLUMNS
from mechsafety.experiments.records import record_shared_tokens
from mechsafety.experiments.session import ANSWERS, Session
from mechsafety.generation.answered import Completion, answer_frame
from mechsafety.judges.outcomes import answered
from mechsafety.models.loading import load_record
from mechsafety.runs.folder import RunFolder, finite
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.edit_costs import EditCosts
from mechsafety.tuning.rephrasings import opens_as_rephrasing
from mechsafety.tuning.rungs import opens_with_tag

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


PARTS = ("layers", "ranks", "basis", "subspace", "own_tokens", "states", "links", "link_note", ANSWERS)
"""The parts of one system."""


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
    session: Session
    prompts: Splits
    judge: Judge
    regions: RunFolder | None

    @property
    def run(self) -> RunFolder:
        return self.session.run

    @property
    def asking(self) -> dict[str, Any]:
        """How answers are made and read."""
        config = self.config
        return {"judge": self.judge, "max_new_tokens": config.max_new_tokens, "seed": config.seed}

    def keep(self, system: str, kind: str, directions: int, draw: int, answers: Sequence[Completion]) -> None:
        """Keep the answers of a system in a state; ``kind`` is the state's, or what a layer is chosen by."""
        rows = answer_frame(answers, system=system, kind=kind, directions=directions, draw=draw)
        self.session.keep_answers(rows, system, _key(kind, directions, draw))


class LadderSystem:
    """One system, loaded when it is first needed; :meth:`drop` lets go of it."""

    def __init__(self, setting: LadderSetting, spec: str) -> None:
        self.setting = setting
        self.spec = spec
        self._states = Journal(setting.run.part_path("states", spec, suffix="jsonl"))

    # -- what is held while it is loaded --------------------------------------------------------

    @cached_property
    def model(self) -> TransformerBridge:
        return self.setting.session.load(self.spec, prompts=self.setting.prompts.report)

    @cached_property
    def _costs(self) -> EditCosts:
        run, prompts = self.setting.run, self.setting.prompts.report.harmless
        stored = run.read_json_part("own_tokens", self.spec)
        answers = [(tokens, n) for tokens, n in (stored[p.id] for p in prompts)]
        return EditCosts(model=self.model, prompts=prompts, answers=answers)

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
        setting, run = self.setting, self.setting.run
        made = find_subspace(
            self.model,
            setting.prompts,
            k=max(setting.config.counts),
            fit_on=setting.config.fit_on,
            controls=setting.config.controls,
            system=self.spec,
            journal=Journal(run.part_path("layers", self.spec, suffix="jsonl")),
            keep_state=lambda name, answers: setting.keep(self.spec, f"validation, {name}", 1, 0, answers),
            **setting.asking,
        )
        run.write_part(made.ranks.assign(system=self.spec), "ranks", self.spec)
        target = self._basis_path.relative_to(run.path)
        bases = {"basis": made.basis} | {_draw(n): one.rows for n, one in enumerate(made.controls, start=1)}
        run.save(str(target), lambda path: save_file(bases, path))
        record = load_record(self.model)
        facts = {
            "layer": made.layer,
            "by_refusals": made.by_refusals,
            "explanation": made.explanation,
            "fit_prompts_used": {"harmful": len(made.fit.harmful), "harmless": len(made.fit.harmless)},
            "tried": [finite(asdict(one)) for one in made.tried],
            "energies": {_draw(n): one.energies for n, one in enumerate(made.controls, start=1)}
            | ({"basis": made.controls[0].energies_basis} if made.controls else {}),
            "model": record.as_dict() if record else {},
        }
        run.write_json_part(facts, "subspace", self.spec)  # last: it marks that the others are there

    @cached_property
    def _bases(self) -> dict[str, Tensor]:
        return load_file(self._basis_path)

    @property
    def basis(self) -> Float[Tensor, "k d_model"]:
        """The basis of the subspace that was found."""
        return self._bases["basis"]

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

    def done(self, kind: Kind, directions: int, draw: int) -> bool:
        return self._states.get(_key(kind, directions, draw)) is not None

    def measure(self, kind: Kind, directions: int, draw: int) -> None:
        """Answer the report prompts in a state, and keep what :meth:`state` returns.

        The unedited state comes first, for the others are measured by its answers.
        """
        setting, edit = self.setting, self._edit(kind, directions, draw)
        keep = partial(setting.keep, self.spec, kind, directions, draw)
        done, labels = answered(self.model, setting.prompts.report, edit=edit, keep=keep, **setting.asking)
        if edit is None:
            own = {c.id: c.written for c in done if c.label == "harmless"}
            setting.run.write_json_part(own, "own_tokens", self.spec)
        verdicts = dict(zip([c.id for c in done], labels, strict=True))
        costs = finite(self._costs.measure(edit))
        self._states.put(_key(kind, directions, draw), {"verdicts": verdicts, "costs": costs})

    def state(self, kind: Kind, directions: int, draw: int) -> tuple[dict[str, str], dict[str, float]]:
        """The verdict on every report prompt by id, and what a measured state costs: ``kl`` and ``perplexity``.

        Beside them ``energy``: the share of the fit activations' mean square at the subspace's place that is removed.
        """
        found = self._states.get(_key(kind, directions, draw))
        costs = {name: math.nan if value is None else value for name, value in found["costs"].items()}
        return found["verdicts"], costs | {"energy": self._energy(kind, directions, draw)}

    def _edit(self, kind: Kind, directions: int, draw: int) -> Edit | None:
        if kind == "unedited":
            return None
        return Ablate(self._bases[_draw(draw) if kind == "random" else "basis"][:directions])

    def _energy(self, kind: Kind, directions: int, draw: int) -> float:
        if kind == "unedited":
            return 0.0
        rows = self.facts()["energies"].get(_draw(draw) if kind == "random" else "basis")
        return math.nan if rows is None else sum(rows[:directions])

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
                    other, seed = setting.session.load(base), setting.config.seed
                    links = change_links(other, self.model, self.basis[0], regions=regions, seed=seed)
                    tables.append(links)
                except (NotFiniteError, RefusedRunError, StoppedError):
                    raise
                except MechsafetyError as error:
                    note = f"{self.spec} has no links to {base}: {error}."
            run.write_json_part(note, "link_note", self.spec)
            run.write_part(_joined(tables, self.spec), "links", self.spec)
        return run.read_part("links", self.spec), run.read_json_part("link_note", self.spec)


def _key(kind: str, directions: int, draw: int) -> str:
    return f"{kind} {directions}" + (f" draw {draw}" if draw else "")


def _draw(number: int) -> str:
    """Under what the basis of a random draw is kept."""
    return f"control-{number}"


def _joined(tables: Sequence[pd.DataFrame], system: str) -> pd.DataFrame:
    if not tables:
        return pd.DataFrame(columns=list(SYSTEM_LINK_COLUMNS))
    return pd.concat(tables, ignore_index=True).assign(system=system)[list(SYSTEM_LINK_COLUMNS)]
