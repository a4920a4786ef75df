"""Checkpoints compared: is it the same refusal? Cosines, angles, CKA and transfer, resumable at every part.

Each checkpoint is loaded alone, and leaves its residual streams, its directions and a sample of its embedding in the
run folder. Pairs are compared from there. For the transfer matrix each model is loaded once more. A part that is
there is not made again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pandas as pd

from mechsafety.core.arguments import as_path, several
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.names import MEASURES, Measure
from mechsafety.core.places import packaged_words
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.directions.direction import Directions
from mechsafety.directions.files import read_directions
from mechsafety.engines.tasks import Task
from mechsafety.experiments.base import Experiment, Read
from mechsafety.experiments.comparison.config import ComparisonConfig
from mechsafety.experiments.comparison.figures import comparison_figures
from mechsafety.experiments.comparison.findings import comparison_findings
from mechsafety.experiments.comparison.tasks import mark_transferred, stream_tasks, transfer_tasks
from mechsafety.experiments.comparison.work import CheckpointWork
from mechsafety.experiments.config import Dtype, checked_config
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.registry import load_run
from mechsafety.experiments.result import Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.geometry.shared_basis import Basis
from mechsafety.geometry.similarity import LEAST_PROMPTS
from mechsafety.models.accepted import ModelLike, named
from mechsafety.models.chat_settings import ChatSettings, chat_settings
from mechsafety.pages.page import Page, page_blocks
from mechsafety.prompts.accepted import PromptsLike, as_prompt_set
from mechsafety.prompts.columns import SPLITS
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.prompts.splits import require_classes
from mechsafety.runs.folder import RunFolder, finite

if TYPE_CHECKING:
    import plotly.graph_objects as go

TABLES: Mapping[Measure, str] = MappingProxyType(
    {"cosine": "cosines", "angles": "angles", "cka": "cka", "transfer": "transfer"}
)
_SAVED = ".safetensors"
_WORDS = packaged_words("mechsafety.experiments.comparison", "page.toml")
_TEXT_COLUMNS = {
    "cosines": ["a", "b", "cosine", "low", "high", "ceiling", "corrected", "harmless_floor", "random_high"],
    "angles": ["a", "b", "index", "angle", "low", "high", "ceiling_a", "ceiling_b", "random_low"],
    "cka": ["a", "b", "cka", "low", "high", "class_floor", "floor_high", "next_layer_a", "next_layer_b"],
    "transfer": ["layer", "source", "target", "base", "drop", "low", "high", "share", "kl", "random_max"],
}


def _table(name: str, result: Result) -> Any:
    return result.tables.get(name)


class Comparison(Result):
    """A finished comparison: what was left out and why, and its tables.

    A table that was not asked for, or that no pair of these checkpoints could have, is None. The columns are
    described at :class:`Cosines`, :class:`Angles`, :func:`compare_cka` and :meth:`CheckpointWork.table`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.config["checkpoints"])

    @property
    def layer(self) -> int:
        """The one that matrices are shown at."""
        return self._facts["layer"]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._facts["notes"])

    @property
    def bases(self) -> tuple[Basis, ...]:
        """Whether each pair shares a residual basis."""
        unknown = ("correlation", "threshold")
        return tuple(
            Basis(**basis | {key: math.nan for key in unknown if basis[key] is None})
            for basis in self._facts["bases"]
        )

    cosines = property(partial(_table, "cosines"))
    angles = property(partial(_table, "angles"))
    cka = property(partial(_table, "cka"))
    transfer = property(partial(_table, "transfer"))

    @property
    def short_tables(self) -> dict[str, pd.DataFrame]:
        """What to read first of the tables: their rows at one layer (all of the transfer matrix), rounded."""
        return {
            name: (table if name == "transfer" else table[table["layer"] == self.layer]).round(3)
            for name, table in self.tables.items()
        }

    @property
    def _facts(self) -> dict[str, Any]:
        return self.manifest["comparison"]


class CheckpointComparison(Experiment[ComparisonConfig], Parallel):
    """Directions are found on fit prompts, layers chosen on validation prompts, transfer measured on report prompts.

    ``prompts`` take the place of the configuration's.
    """

    kind = "compare"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType(
        {name: f"{name}.parquet" for name in TABLES.values()}
    )
    result_type = Comparison

    def __init__(self, config: ComparisonConfig, prompts: PromptSet | None = None) -> None:
        super().__init__(config)
        chosen = _checked_measures(config.measures)
        self.names, self.saved = _read_specs(config.checkpoints)
        models = self.models()
        self.wanted = _possible(chosen, explicit=config.measures is not None, models=models, saved=self.saved)
        self.prompts = prompts
        self.parts = _checked_prompts(prompts, config.limit, config.seed, self.wanted, models)

    def models(self) -> Sequence[str]:
        return [name for name in self.names if name not in self.saved]

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [] if self.prompts is None else [self.prompts]

    def bound(self) -> Mapping[str, Any]:
        """Measures, layer and limit may differ between sessions: parts are kept by what they depend on."""
        hashes = {f"{name}_sha256": part.sha256() for name, part in zip(SPLITS, self.parts, strict=True)}
        saved = {s: _file_hash(s) for s in self.config.checkpoints if s.endswith(_SAVED)}
        return {"checkpoints": list(self.names), "saved_sha256": saved, **hashes}

    def reads(self) -> Sequence[Read]:
        return [(part, 0) for part in self.parts]

    def tasks(self, run: RunFolder) -> list[Task]:
        streams = stream_tasks(run, self.models())
        return streams + (
            transfer_tasks(run, streams, self.config.layer) if "transfer" in self.wanted else []
        )

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        """Those on each model; which measures are asked for is no part of the manifest."""
        models = [name for name in run.manifest["config"]["checkpoints"] if _SAVED not in name]
        return stream_tasks(run, models)

    def do(self, task: Task, session: Session) -> None:
        work, (stage, name), layer = self._work(session), task.name, self.config.layer
        if stage == "streams":
            work.prepare_model(name)
            return
        work.prepare()
        work.shown_layer(layer)  # raises for one that does not exist
        work.transfer_to(name, layer)
        mark_transferred(session.run, name, layer)

    def _work(self, session: Session) -> CheckpointWork:
        fit, validation, report = self.parts
        return CheckpointWork(
            session=session,
            config=self.config,
            names=self.names,
            saved=self.saved,
            fit=fit,
            validation=validation,
            report=report,
        )

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        config, run, work = self.config, session.run, self._work(session)
        work.prepare()
        if config.measures is not None and "cka" not in self.wanted:
            _require_comparable(work.bases, self.wanted)
        shown = work.shown_layer(config.layer)
        made = {TABLES[m]: work.table(m, layer=config.layer) for m in self.wanted}
        tables = {name: table for name, table in made.items() if table is not None}
        for name, table in tables.items():
            run.write_table(table, f"{name}.csv")
        facts = {
            "layer": shown,
            "tables": list(tables),
            "notes": work.notes(self.wanted),
            "bases": [finite(asdict(basis)) for basis in work.bases],
        }
        run.record("comparison", facts)
        return tables

    @classmethod
    def read_tables(cls, run: RunFolder) -> dict[str, pd.DataFrame]:
        """The tables of the last session: an earlier one may have made others."""
        asked = run.manifest.get("comparison", {}).get("tables", ())
        return {name: table for name, table in super().read_tables(run).items() if name in asked}

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return comparison_figures(result.tables, layer=_of(result).layer)

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        found = _of(result)
        return [*found.notes, *comparison_findings(found.tables, layer=found.layer)]

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        found = _of(result)
        return Page(
            title="Refusal geometry compared",
            subtitle=f"{' · '.join(found.names)} · matrices at layer {found.layer}",
            findings=found.findings,
            blocks=page_blocks(_WORDS["blocks"], found.tables, figures),
            how=[basis.reason for basis in found.bases],
        )

    @classmethod
    def text(cls, result: Result) -> str:
        found = _of(result)
        return "\n\n".join(
            f"{name}{'' if name == 'transfer' else f', layer {found.layer}'}\n"
            + table[_TEXT_COLUMNS[name]].to_string(index=False, na_rep="-")
            for name, table in found.short_tables.items()
        )

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        found = _of(result)
        return {
            "layer": found.layer,
            "notes": list(found.notes),
            "bases": [{"a": b.a, "b": b.b, "verdict": b.verdict, "reason": b.reason} for b in found.bases],
            "figures": [str(found.path / "figures" / f"{name}.html") for name in found.figures()],
            **found.short_tables,
        }

    @classmethod
    def next_steps(cls, result: Result) -> list[str]:
        models = [name for name in _of(result).names if _SAVED not in name]
        if not models:
            return ["mechsafety compare with the models themselves, for intervals, angles, CKA and transfer"]
        return [f"mechsafety study --systems {','.join(models)} --out runs/compared"]


@with_progress
def run_comparison(
    specs: ModelLike | Sequence[ModelLike],
    prompts: PromptsLike | None = None,
    *,
    out: Path | str,
    measures: Sequence[str] | None = None,
    layer: int | None = None,
    limit: int | None = None,
    k: int = 3,
    resamples: int = 300,
    position: int | Literal["thought-end"] = -1,
    seed: int = 0,
    dtype: Dtype = "auto",
    device: str = "auto",
    device_map: Literal["auto"] | None = None,
    max_memory: str | None = None,
    template: str | None = None,
    date: str | None = None,
    chat: ChatSettings | Mapping[str, Any] | None = None,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> Comparison:
    """Compare the refusal geometry of two or more checkpoints, in the folder ``out``; goes on if interrupted.

    ``specs`` are models, by name (as for :func:`load_model`) or as loaded, which are loaded again, or files of saved
    directions (``*.safetensors``), of which only cosines can be computed. Directions are found on fit prompts; the
    transfer matrix is measured on report
    prompts, with each direction of ``layer`` ablated (default: for each ablated checkpoint, the layer that separates
    validation prompts best).

    ``measures`` are cosine, angles, cka and transfer (default: every one that can be had; they may be asked for one
    after another in the same folder). ``limit`` is of prompts of each label and split; the other settings are those of
    :class:`ComparisonConfig`.

    Cosines, angles and transfer are left out, with a note, for models that share no residual basis. Raises
    :class:`MechsafetyError` when nothing but these was asked for, and for fewer than two checkpoints, one
    named twice, an unknown measure, one class only, and no validation or report split where transfer needs one.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.

    Arguments:
        k: Dimensions of the subspaces whose angles are measured.

    Returns:
        The comparison: its tables, figures and findings.

    Example:
        >>> run = ms.run_comparison(
        ...     ["smollm2-135m", "my-model"], "own.csv", out="runs/comparison", layer=2, limit=8, resamples=5,
        ...     progress=False,
        ... )
        >>> sorted(run.tables)
        ['angles', 'cka', 'cosines', 'transfer']
    """
    settings = {
        "checkpoints": tuple(map(named, several(specs))),
        "measures": None if measures is None else tuple(measures),
        **{"layer": layer, "limit": limit, "k": k, "resamples": resamples, "position": position},
        **{"seed": seed, "dtype": dtype, "template": template, "date": date},
        **{"device": device, "device_map": device_map, "max_memory": max_memory},
        "chat": chat_settings(chat).as_dict(),
    }
    asked = None if prompts is None else as_prompt_set(prompts)
    experiment = CheckpointComparison(checked_config(ComparisonConfig, settings), asked)
    return _of(run_experiment(experiment, out, say=say, allow_other_versions=allow_other_versions))


def read_comparison(path: str | Path) -> Comparison:
    """A finished comparison from its folder. Raises :class:`MechsafetyError` where it is not finished."""
    found = _of(load_run(path))
    _ = found.tables
    return found


def _of(result: Result) -> Comparison:
    if not isinstance(result, Comparison):
        raise MechsafetyError(f"run {str(result.path)!r} is no comparison")
    return result


# -- what was asked -----------------------------------------------------------------------------------


def _checked_measures(measures: Sequence[str] | None) -> tuple[Measure, ...]:
    wrong = [m for m in measures or () if m not in MEASURES]
    if wrong or (measures is not None and not measures):
        raise MechsafetyError(f"measure {', '.join(wrong) or '(none)'} is not one of {', '.join(MEASURES)}")
    return tuple(m for m in MEASURES if measures is None or m in measures)


def _read_specs(specs: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Directions]]:
    """Names of all checkpoints, and the saved directions among them."""
    names: list[str] = []
    saved: dict[str, Directions] = {}
    for spec in specs:
        if not spec.endswith(_SAVED):
            names.append(spec)
            continue
        held = read_directions(Path(spec))
        found = {spec if len(held) == 1 else f"{spec}:{model}": d for model, d in held.items()}
        names += found
        saved |= found
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MechsafetyError(f"checkpoint {twice!r} is named twice: name every checkpoint once")
    if len(names) < 2:
        raise MechsafetyError(
            f"{len(names)} checkpoint{'s' * (len(names) != 1)} to compare: name two or more, e.g. smollm2-135m "
            "smollm2-135m+refusals"
        )
    return tuple(names), saved


def _possible(
    chosen: tuple[Measure, ...], *, explicit: bool, models: Sequence[str], saved: Mapping[str, Any]
) -> tuple[Measure, ...]:
    """The measures that these kinds of checkpoints can have."""
    able = {"cosine": True, "angles": len(models) > 1, "cka": len(models) > 1, "transfer": bool(models)}
    wrong = [m for m in chosen if not able[m]]
    if wrong and explicit:
        raise MechsafetyError(
            f"measure {', '.join(wrong)} needs the models themselves, and {next(iter(saved))!r} holds saved "
            f"directions only: name the models, or ask for " + way("--measure cosine", "measures='cosine'")
        )
    return tuple(m for m in chosen if able[m])


def _checked_prompts(
    prompts: PromptSet | None,
    limit: int | None,
    seed: int,
    wanted: Sequence[Measure],
    models: Sequence[str],
) -> tuple[PromptSet, PromptSet, PromptSet]:
    """The prompts to estimate, to choose and to judge on; all empty where no model runs."""
    if not models:
        return PromptSet(()), PromptSet(()), PromptSet(())
    if prompts is None:
        raise MechsafetyError(
            f"comparing the model {models[0]!r} needs prompts, e.g. load_prompts('default')"
        )
    if limit is not None and limit < LEAST_PROMPTS:
        raise MechsafetyError(f"limit {limit}: at least {LEAST_PROMPTS} prompts of each label are needed")
    found = {split: prompts.where(split=split) for split in SPLITS}
    for split, some in found.items() if "transfer" in wanted else [("fit", found["fit"])]:
        if not len(some):
            raise MechsafetyError(
                f"no {split} prompts in {prompts.name!r}: "
                + (
                    "directions are found on a split 'fit' of the prompt set"
                    if split == "fit"
                    else "the transfer matrix chooses layers on a split 'validation' and is measured on a split "
                    "'report'; without them ask for "
                    + way(
                        "--measure cosine --measure angles --measure cka",
                        "measures=['cosine', 'angles', 'cka']",
                    )
                )
            )
        require_classes(some, f"compare on {split} prompts")
    if limit is not None:
        found = {split: some.sample(limit, seed=seed) for split, some in found.items()}
    return found["fit"], found["validation"], found["report"]


def _require_comparable(bases: Sequence[Basis], wanted: Sequence[Measure]) -> None:
    """Raise for a pair without a shared basis when nothing was asked for that such a pair can have."""
    refused = next((basis for basis in bases if not basis.comparable), None)
    if refused is not None:
        raise MechsafetyError(
            f"{refused.reason}; {' and '.join(wanted)} would compare unrelated axes. Ask for "
            + way("--measure cka", "measures='cka'")
            + ", which "
            "needs no common basis, or leave one of them out"
        )


def _file_hash(path: str) -> str:
    return hashlib.sha256(as_path(path).read_bytes()).hexdigest()
