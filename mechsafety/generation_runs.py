"""Answers of one model under one edit, in a run folder: what ``mechsafety generate`` does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from mechsafety.edit_expressions import parse_edit
from mechsafety.edit_files import save_edit
from mechsafety.errors import MechsafetyError
from mechsafety.generation import DEFAULT_BATCH, Sampling
from mechsafety.interventions import baked, digest
from mechsafety.models import load_model, load_record
from mechsafety.prompts import Split, load_prompts
from mechsafety.resumable_generation import resumable_responses
from mechsafety.runs import open_run

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


class GenerationConfig(BaseModel):
    """What one generation run does; a part of its manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    prompts: str = "default"
    split: Split = "report"
    limit: int | None = Field(default=None, ge=1)
    edit: str | None = None
    baked: bool = False
    max_new_tokens: int = Field(default=64, ge=1)
    batch_size: int = Field(default=DEFAULT_BATCH, ge=1)
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    template: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    seed: int = Field(default=0, ge=0)


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
    config: GenerationConfig, out: Path, *, save_edit_to: Path | None = None, say: Say = lambda _: None
) -> GenerationRun:
    """Answer the prompts under the edit in the folder ``out``, or go on where that was interrupted.

    Raises :class:`MechsafetyError` for a wrong edit, an empty split, and whatever loading raises.
    """
    if config.baked and config.edit is None:
        raise MechsafetyError("--baked writes an edit into the weights: name one with --edit")
    prompts = load_prompts(config.prompts).where(split=config.split)
    if not len(prompts):
        raise MechsafetyError(f"prompt set {config.prompts!r} has no prompts in split {config.split!r}")
    if config.limit is not None:
        prompts = prompts.sample(config.limit, seed=config.seed)
    asked = config.model_dump(mode="json") | {"kind": "generate", "prompts_sha256": prompts.sha256()}
    say(f"loading {config.model}")
    model = load_model(config.model, dtype=config.dtype, device=config.device, template=config.template)
    edit = parse_edit(config.edit, model) if config.edit is not None else None
    # Files may change between sessions: the run is bound to the edit, not to its name.
    asked["edit_sha256"] = digest(edit) if edit is not None else None
    with open_run(out, config=asked) as run:
        if edit is not None and save_edit_to is not None:
            save_edit(edit, save_edit_to, model=model)
        say(f"{len(prompts)} responses")
        written = baked(model, edit) if config.baked and edit is not None else nullcontext()
        sampling = None
        if config.temperature is not None:
            sampling = Sampling(temperature=config.temperature, top_p=config.top_p)
        with written:
            table = resumable_responses(
                run,
                model,
                prompts,
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
