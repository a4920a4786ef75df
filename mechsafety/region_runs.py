"""Safety-critical regions of one model, in a run folder: what ``mechsafety regions`` does.

The way of the data: own refusals and own answers -> SNIP scores and Grams of both, in one pass each -> overlap and
similarity of what safety and utility need -> removals, each with matched random controls -> outcomes, attacks and
utility of the model without them -> the sweet spot -> links with the refusal direction, heads, and fine-tuning with
the region frozen. Every state that is measured is kept when it is done; an interrupted run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from mechsafety.fed_prompts import require_all_fit
from mechsafety.fed_records import record_fed, record_shared_tokens
from mechsafety.models import load_model, load_record
from mechsafety.prompt_splits import record_repeated, require_splits
from mechsafety.prompts import PromptSet, Purpose, load_prompts
from mechsafety.provenance import of_models
from mechsafety.region_config import RegionsConfig
from mechsafety.region_followups import follow_up
from mechsafety.region_work import RegionWork, evaluated_prompts
from mechsafety.runs import Provenance, RunFolder, open_run, pinned_date, record_date

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RegionsRun:
    """A finished run: where it lies, its tables by name, and the sweet spot's sentence."""

    path: Path
    tables: dict[str, pd.DataFrame]
    sweet_spot: str | None

    def _repr_html_(self) -> str:
        shown = "".join(
            f"<h4>{escape(name)}</h4>{table.head(12).round(3).to_html(index=False, border=0)}"
            for name, table in self.tables.items()
        )
        said = f"<p>{escape(self.sweet_spot)}</p>" if self.sweet_spot else ""
        return f"<b>Regions</b> in {escape(str(self.path))}{said}{shown}"


def run_regions(
    config: RegionsConfig, out: Path, *, say: Say = lambda _: None, allow_other_versions: bool = False
) -> RegionsRun:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Attribution draws on the fit prompts, evaluation on the report prompts, which must not overlap.
    Raises :class:`MechsafetyError` for a prompt set without those splits, overlapping prompts, a model that does not
    refuse enough of the harmful ones, and whatever loading the model raises.
    """
    prompts = load_prompts(config.prompts)
    require_splits(prompts, _purposes(config), name=config.prompts)
    asked = config.model_dump(mode="json") | {"kind": "regions", "prompts_sha256": prompts.sha256()}
    started = time.perf_counter()
    loading: dict[str, Any] = {"dtype": config.dtype, "device": config.device, "template": config.template}

    def sources() -> dict[str, Provenance]:
        return of_models(config.model, **loading)

    day = pinned_date(out, config.date)
    with open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions) as run:
        record_date(run, day)
        record_repeated(run, say, prompts)
        require_all_fit([config.model], _read(prompts, config), template=config.template, date=day)
        say(f"loading {config.model}")
        model = load_model(config.model, **loading, date=day)
        record = load_record(model)
        run.record("model", record.as_dict() if record else {})
        record_fed(run, config.model, model, prompts)
        work = RegionWork(config=config, run=run, prompts=prompts, model=model, say=say)
        tables = work.tables()
        tables |= follow_up(work, tables["tradeoff"] if "sweep" in config.parts else None)
        for name, table in tables.items():
            run.write_table(table, f"{name}.csv")
        record_shared_tokens(run, config.model, model)
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))
    return RegionsRun(path=run.path, tables=tables, sweet_spot=sweet_spot_of(run))


def sweet_spot_of(run: RunFolder) -> str | None:
    """The sentence about the sweet spot, where the sweep was run."""
    return (run.manifest.get("sweet_spot") or {}).get("explanation")


def _read(prompts: PromptSet, config: RegionsConfig) -> list[tuple[PromptSet, int]]:
    """The prompts that the model reads, with the tokens that it may add."""
    return [
        (prompts.to_estimate, config.answer_tokens),
        *([(prompts.to_choose, 0)] if "choose" in _purposes(config) else []),
        (evaluated_prompts(prompts, config), config.max_new_tokens),
    ]


def _purposes(config: RegionsConfig) -> tuple[Purpose, ...]:
    """Weights are scored to estimate, removals judged; heads and the direction's layer are chosen."""
    chooses = {"heads", "links"} & set(config.parts)
    return ("estimate", *(("choose",) if chooses else ()), "judge")
