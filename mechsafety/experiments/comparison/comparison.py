"""Checkpoints compared: is it the same refusal? Cosines, angles, CKA and transfer, resumable at every part.

The way of the data: each checkpoint is loaded alone, and leaves its residual streams, its directions and a
sample of its embedding in the run folder. Pairs are compared from there. For the transfer matrix each model
is loaded once more. A part that is there is not made again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.days import checked_day
from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.direction import Directions, load_directions
from mechsafety.experiments.comparison.work import MEASURES, CheckpointWork, Measure, Say
from mechsafety.geometry.shared_basis import Basis
from mechsafety.geometry.similarity import LEAST_PROMPTS
from mechsafety.models.loading import load_model
from mechsafety.models.provenance import of_models
from mechsafety.prompts.fed import require_all_fit
from mechsafety.prompts.prompt_set import SPLITS, PromptSet
from mechsafety.prompts.splits import record_repeated
from mechsafety.runs.folder import open_run, pinned_date, read_run, record_date

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from transformer_lens.model_bridge import TransformerBridge

TABLES: Mapping[str, str] = {
    "cosine": "cosines",
    "angles": "angles",
    "cka": "cka",
    "transfer": "transfer",
}
_SAVED = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison: where it lies, what was left out and why, and its tables.

    ``layer`` is the one that matrices are shown at; a table that was not asked for, or that no pair of these
    checkpoints could have, is None. The columns are described at :class:`Cosines`,
    :class:`Angles`, :func:`compare_cka` and :meth:`table`.
    """

    path: Path
    names: tuple[str, ...]
    layer: int
    notes: tuple[str, ...]
    bases: tuple[Basis, ...]
    cosines: pd.DataFrame | None
    angles: pd.DataFrame | None
    cka: pd.DataFrame | None
    transfer: pd.DataFrame | None

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables that there are, by name."""
        found = {name: getattr(self, name) for name in TABLES.values()}
        return {name: table for name, table in found.items() if table is not None}

    def figures(self) -> dict[str, go.Figure]:
        """Every figure, by file name."""
        from mechsafety.experiments.comparison.figures import comparison_figures

        return comparison_figures(self.tables, layer=self.layer)

    def plot(self) -> go.Figure:
        """The first figure: cosines by layer where there are any."""
        return next(iter(self.figures().values()))

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        shown = "".join(
            f"<p>{name}, layer {self.layer}</p>{at_layer(name, table, self.layer).to_html(index=False, border=0)}"
            for name, table in self.tables.items()
        )
        return (
            f"<b>Comparison</b> of {escape(', '.join(self.names))} in {escape(str(self.path))}{notes}{shown}"
        )


def at_layer(name: str, table: pd.DataFrame, layer: int) -> pd.DataFrame:
    """What to read first of a table: its rows at one layer (all of the transfer matrix), rounded."""
    rows = table if name == "transfer" else table[table["layer"] == layer]
    return rows.round(3)


def compare(
    specs: Sequence[str],
    prompts: PromptSet | None = None,
    *,
    out: Path | str,
    seed: int,
    measures: Sequence[str] | None = None,
    layer: int | None = None,
    position: int = -1,
    k: int = 3,
    limit: int | None = None,
    resamples: int = 300,
    dtype: str = "auto",
    device: str = "auto",
    template: str | None = None,
    date: str | None = None,
    say: Say = lambda _: None,
    allow_other_versions: bool = False,
) -> Comparison:
    """Compare the refusal geometry of two or more checkpoints, in the folder ``out``; goes on if interrupted.

    ``specs`` are models (as for :func:`load_model`) or files of saved directions (``*.safetensors``), of
    which only cosines can be told. Directions are found on fit prompts; the transfer matrix is measured on report
    prompts, with each direction of ``layer`` ablated (default: for each ablated checkpoint, the layer that separates
    validation prompts best). At most ``limit`` prompts of each label and split are used.
    ``date`` is the day that templates with a date write, by default the day the run began.
    ``measures`` are cosine, angles, cka and transfer (default: every one that can be had); they may be asked for
    one after another in the same folder.

    Cosines, angles and transfer are left out, with a note, for models that share no residual basis. Raises
    :class:`MechsafetyError` when nothing but these was asked for, and for fewer than two checkpoints, one
    named twice, an unknown measure, one class only, and no validation or report split where transfer needs one.
    """
    chosen = _checked_measures(measures)
    names, saved = _read_specs(specs)
    models = [name for name in names if name not in saved]
    wanted = _possible(chosen, explicit=measures is not None, models=models, saved=saved)
    fit, validation, report = _checked_prompts(prompts, limit, seed, wanted, models)
    asked = {
        "kind": "compare",
        "checkpoints": list(names),
        "saved_sha256": {s: _file_hash(s) for s in specs if s.endswith(_SAVED)},
        "fit_sha256": fit.sha256(),
        "validation_sha256": validation.sha256(),
        "report_sha256": report.sha256(),
        "position": position,
        "k": k,
        "resamples": resamples,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "template": template,
        "date": None if date is None else checked_day(date),
    }
    loading: dict[str, Any] = {"dtype": dtype, "device": device, "template": template}
    day = pinned_date(Path(out), date)
    with open_run(
        Path(out),
        config=asked,
        sources=lambda: of_models(*models, **loading),
        allow_other_versions=allow_other_versions,
    ) as run:
        record_date(run, day)
        record_repeated(run, say, prompts or PromptSet(()))
        require_all_fit(
            models, [(part, 0) for part in (fit, validation, report)], template=template, date=day
        )

        def load(spec: str) -> TransformerBridge:
            for name, made_from in of_models(spec, **loading).items():
                run.require_source(name, made_from)
            return load_model(spec, **loading, date=day)

        work = CheckpointWork(
            run=run,
            names=names,
            saved=saved,
            fit=fit,
            validation=validation,
            report=report,
            position=position,
            k=k,
            resamples=resamples,
            seed=seed,
            load=load,
            say=say,
        )
        work.prepare()
        if measures is not None and "cka" not in wanted:
            _require_comparable(work.bases, wanted)
        shown = work.shown_layer(layer)
        tables = {TABLES[m]: table for m in wanted if (table := work.table(m, layer=layer)) is not None}
        for name, table in tables.items():
            run.write_table(table, f"{name}.parquet")
            run.write_table(table, f"{name}.csv")
        facts = {
            "layer": shown,
            "tables": list(tables),
            "notes": [*work.notes(wanted), *_unwilling(tables.get("transfer"))],
            "bases": [
                {key: None if value != value else value for key, value in asdict(basis).items()}
                for basis in work.bases
            ],
        }
        run.record("comparison", facts)
    return read_comparison(Path(out))


def read_comparison(path: Path) -> Comparison:
    """A finished comparison from its folder."""
    run = read_run(path)
    facts = run.manifest.get("comparison")
    if facts is None:
        raise MechsafetyError(f"run {str(path)!r} holds no finished comparison: run mechsafety compare again")
    tables = {
        name: run.read_table(f"{name}.parquet") if name in facts["tables"] else None
        for name in TABLES.values()
    }
    bases = [
        Basis(
            **basis | {key: math.nan for key in ("correlation", "threshold") if basis[key] is None},
        )
        for basis in facts["bases"]
    ]
    return Comparison(
        path=path,
        names=tuple(run.manifest["config"]["checkpoints"]),
        layer=facts["layer"],
        notes=tuple(facts["notes"]),
        bases=tuple(bases),
        **tables,
    )


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
        held = load_directions(Path(spec))
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
            "directions only: name the models, or ask for --measure cosine"
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
                    "'report'; without them ask for --measure cosine --measure angles --measure cka"
                )
            )
        for label in ("harmful", "harmless"):
            if not len(some.where(label=label)):
                raise MechsafetyError(
                    f"comparing needs harmful and harmless prompts; of the {len(some)} {split} prompts in "
                    f"{prompts.name!r} none is {label}"
                )
    if limit is not None:
        found = {split: some.sample(limit, seed=seed) for split, some in found.items()}
    return found["fit"], found["validation"], found["report"]


def _require_comparable(bases: Sequence[Basis], wanted: Sequence[Measure]) -> None:
    """Raise for a pair without a shared basis when nothing was asked for that such a pair can have."""
    refused = next((basis for basis in bases if not basis.comparable), None)
    if refused is not None:
        raise MechsafetyError(
            f"{refused.reason}; {' and '.join(wanted)} would compare unrelated axes. Ask for --measure cka, which "
            "needs no common basis, or leave one of them out"
        )


def _unwilling(transfer: pd.DataFrame | None) -> list[str]:
    """A sentence for every target that does not refuse: there is nothing to remove in it."""
    if transfer is None:
        return []
    scores = transfer.groupby("target", sort=False)["base"].first()
    return [
        f"{target} hardly refuses (mean refusal score {score:.1f} on harmful prompts), so its column of the transfer "
        "matrix says little."
        for target, score in scores.items()
        if score < 0
    ]


def _file_hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
