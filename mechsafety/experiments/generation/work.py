"""Answers of one model under one edit, in a run folder: what ``mechsafety generate`` does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.expressions import read_expression
from mechsafety.edits.files import require_edit_path, save_edit
from mechsafety.edits.interventions import baked, digest, require_fits
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.generation.completions import Sampling, overridden_defaults
from mechsafety.generation.resumable import resumable_responses
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.provenance import of_models
from mechsafety.prompts.fed import fed, fed_record
from mechsafety.prompts.prompt_set import load_prompts
from mechsafety.prompts.splits import record_repeated
from mechsafety.runs.folder import open_run, pinned_date, record_date

Say = Callable[[str], None]
_COLUMNS = [
    "id",
    "prompt",
    "label",
    "category",
    "response",
    "finish",
    "n_prompt_tokens",
    "n_tokens",
]


@dataclass(frozen=True, kw_only=True)
class GenerationRun:
    """Finished answers: where they lie, the table, and what was edited (None for the model as it is)."""

    path: Path
    responses: pd.DataFrame
    edit: dict[str, Any] | None

    def _repr_html_(self) -> str:
        shown = self.responses[["label", "prompt", "response"]].head(10)
        edit = self.edit["description"] if self.edit else "no edit"
        return f"<b>{escape(str(self.path))}</b>: {escape(edit)}{shown.to_html(index=False, border=0)}"


def run_generation(
    config: GenerationConfig,
    out: Path,
    *,
    save_edit_to: Path | None = None,
    say: Say = lambda _: None,
    allow_other_versions: bool = False,
) -> GenerationRun:
    """Answer the prompts under the edit in the folder ``out``, or go on where that was interrupted.

    What can be wrong is said before the model is loaded where it can be, and before the folder is made. Raises
    :class:`MechsafetyError` for a wrong edit, options that go with others, an empty split, and whatever loading
    raises.
    """
    _require_companions(config, save_edit_to)
    asked_edit = read_expression(config.edit) if config.edit is not None else None
    every = load_prompts(config.prompts)
    prompts = every.where(split=config.split)
    if not len(prompts):
        splits = ", ".join(dict.fromkeys(p.split for p in every))
        raise MechsafetyError(
            f"prompt set {config.prompts!r} has no prompts in split {config.split!r}: --split can be {splits}"
        )
    if config.limit is not None:
        prompts = prompts.sample(config.limit, seed=config.seed)
    asked = config.model_dump(mode="json") | {"kind": "generate", "prompts_sha256": prompts.sha256()}
    loading = config.loading
    sources = of_models(config.model, **loading)
    say(f"loading {config.model}")
    day = pinned_date(out, config.date)
    model = load_model(config.model, **loading, date=day)
    entered = fed(
        model,
        prompts,
        new_tokens=config.max_new_tokens,
        truncate=config.truncate_prompts,
        escape=config.escape_control_tokens,
    )
    edit = asked_edit.for_model(model) if asked_edit is not None else None
    if edit is not None:
        require_fits(model, edit, weights=config.baked)
    # Files may change between sessions: the run is bound to the edit, not to its name.
    asked["edit_sha256"] = digest(edit) if edit is not None else None
    written = baked(model, edit) if config.baked and edit is not None else nullcontext()
    sampling = None
    if config.temperature is not None:
        sampling = Sampling(temperature=config.temperature, top_p=config.top_p)
    opened = open_run(out, config=asked, sources=sources, allow_other_versions=allow_other_versions)
    with written, opened as run:
        record_date(run, day)
        if edit is not None and save_edit_to is not None:
            save_edit(edit, save_edit_to, model=model)
        record_repeated(run, say, every)
        say(f"{len(prompts)} responses")
        table = resumable_responses(
            run,
            model,
            entered.prompts,
            key=(config.model,),
            edit=None if config.baked else edit,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_size=config.batch_size,
            sampling=sampling,
            say=say,
        )
        table = table[_COLUMNS]
        run.write_table(table, "responses.parquet")
        run.write_table(table, "responses.csv")
        record = load_record(model)
        run.record("model", record.as_dict() if record else {})
        run.record("overridden_generation_defaults", overridden_defaults(model))
        record = fed_record(model, [entered], escaped=config.escape_control_tokens)
        run.record_item("fed", config.model, record)
        facts = None
        if edit is not None:
            facts = {
                "description": edit.describe(),
                "sha256": digest(edit),
                "as": "weights" if config.baked else "hooks",
            }
            run.record("edit", facts)
        if run.has_part("speed", config.model, suffix="json"):
            run.record("generation", run.read_json_part("speed", config.model))
    return GenerationRun(path=run.path, responses=table, edit=facts)


def _require_companions(config: GenerationConfig, save_edit_to: Path | None) -> None:
    if config.edit is None and (config.baked or save_edit_to is not None):
        option = "--baked writes an edit into the weights" if config.baked else "--save-edit saves an edit"
        raise MechsafetyError(f"{option}: name one with --edit")
    if config.top_p < 1 and config.temperature is None:
        raise MechsafetyError(f"--top-p {config.top_p:g} is about drawing tokens: give --temperature too")
    if save_edit_to is not None:
        require_edit_path(save_edit_to)
