"""Answers of one model under one edit: what ``mechsafety generate`` runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

from mechsafety.claims import Estimate
from mechsafety.claims.sentences import level
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.edits.files import require_edit_path, save_edit
from mechsafety.edits.interventions import digest
from mechsafety.engines.tasks import Task
from mechsafety.experiments.backends import require_here, workers_asked
from mechsafety.experiments.edited import EditedExperiment
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.result import RESPONSES, Result
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.served import compared_with, served_sentences, servers_of
from mechsafety.experiments.session import Session
from mechsafety.generation.completions import Sampling, generate, overridden_defaults
from mechsafety.generation.resumable import batch_plan, batch_tasks, resumable_responses
from mechsafety.generation.served import Agreed, in_weights, served_name
from mechsafety.pages.page import Block, Page
from mechsafety.plots.style import COLOURS, short_name, styled
from mechsafety.prompts.columns import LABELS
from mechsafety.prompts.fed import fed, fed_record
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import require_labels
from mechsafety.runs.folder import RunFolder
from mechsafety.serving.server import VllmServer, listed, server_with

if TYPE_CHECKING:
    from mechsafety.edits.interventions import Edit

_COLUMNS = ["id", "prompt", "label", "category", "response", "finish", "n_prompt_tokens", "n_tokens"]
_SHOWN = 160


class Generation(EditedExperiment[GenerationConfig], Parallel):
    """Answers to the prompts of one split. ``save_edit_to`` names a file for the edit."""

    kind = "generate"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType({"responses": RESPONSES})

    def __init__(self, config: GenerationConfig, *, save_edit_to: str | Path | None = None) -> None:
        save_edit_to = None if save_edit_to is None else Path(save_edit_to)
        if save_edit_to is not None:
            if config.edit is None:
                raise MechsafetyError(
                    f"{way('--save-edit', 'save_edit_to')} saves an edit: name one with {way('--edit')}"
                )
            require_edit_path(save_edit_to)
            if config.on_workers:
                raise MechsafetyError(
                    f"{way('--save-edit', 'save_edit_to')} writes where the model is, and with "
                    f"{workers_asked(config)} that is a worker: save it in a run without"
                )
        require_here(config, config.generation)
        super().__init__(config)
        self.save_edit_to = save_edit_to
        self.every = load_prompts(config.prompts)
        require_labels(self.every, name=config.prompts)
        self.prompts = _chosen(self.every, config)

    @property
    def in_weights(self) -> bool:
        return self.config.baked or self.config.generation.backend == "vllm"

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [self.every]

    def prepare(self, day: str, say: Progress) -> None:
        super().prepare(day, say)
        self.server = self._server_at()
        self.fed = fed(self.model, self.prompts, new_tokens=self.config.max_new_tokens, **self.feeding)

    def bound(self) -> Mapping[str, Any]:
        return {"prompts_sha256": self.prompts.sha256(), **super().bound()}

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        run, edit = session.run, self.edit
        if edit is not None and self.save_edit_to is not None:
            save_edit(edit, self.save_edit_to, model=self.model)
        session.say(f"{len(self.prompts)} responses")
        table = self._answers(session)[_COLUMNS]
        run.write_table(table, "responses.csv")
        self._record(session)
        return {"responses": table}

    def tasks(self, run: RunFolder) -> list[Task]:
        return batch_tasks(run, (self.config.model,), model=self.config.model)

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        model = str(run.manifest["config"]["model"])
        return batch_tasks(run, (model,), model=model)

    def held(self) -> list[str]:
        return [self.config.model]

    def do(self, task: Task, session: Session) -> None:
        if task.stage == "plan":
            model, size = self.model, self.config.batch_size
            batch_plan(session.run, model, self.fed.prompts, (self.config.model,), size)
        else:
            self._answers(session)

    def _answers(self, session: Session) -> pd.DataFrame:
        """The answers that the run has, after those that its plan lacks are made."""
        config, edit = self.config, self.edit
        written = in_weights(self.model, edit) if self.in_weights else nullcontext()
        with written:
            return resumable_responses(
                session.run,
                self.model,
                self.fed.prompts,
                key=(config.model,),
                edit=None if self.in_weights else edit,
                max_new_tokens=config.max_new_tokens,
                seed=config.seed,
                batch_size=config.batch_size,
                sampling=self._sampling,
                say=session.say,
                server=self._agreed(session),
            )

    @property
    def _sampling(self) -> Sampling | None:
        if self.config.temperature is None:
            return None
        return Sampling(temperature=self.config.temperature, top_p=self.config.top_p)

    def _server_at(self) -> VllmServer | None:
        """The server that the configuration names, if it answers and has this model under this edit."""
        servers = servers_of(self.config.generation)
        return server_with(listed(servers), served_name(self.model, self.edit)) if servers else None

    def _agreed(self, session: Session) -> Agreed | None:
        """The server, if it agreed with this process when the run began; its answers are compared once a run."""
        server, config = self.server, self.config
        if server is None:
            return None

        def compared() -> dict[str, Any]:
            answer = partial(generate, self.model, batch_size=config.batch_size)
            prompts = list(self.fed.prompts)
            return compared_with(server, prompts, answer, max_new_tokens=config.max_new_tokens)

        made = session.json_part("served", config.model, make=compared)
        session.run.record("served", {"address": server.address, "model": server.model, **made})
        if not made["used"]:
            session.say(f"server {server.address} is not used: {made['reason']}; this process generates")
            return None
        return Agreed(server)

    def _record(self, session: Session) -> None:
        config, run = self.config, session.run
        session.record_model(config.model, self.model)
        facts = fed_record(self.model, [self.fed], escaped=config.escape_control_tokens)
        facts["overridden_generation_defaults"] = overridden_defaults(self.model)
        run.record_item("fed", config.model, facts)
        if self.edit is not None:
            run.record("edit", _described(self.edit, "weights" if self.in_weights else "hooks"))
        if run.has_part("speed", config.model, suffix="json"):
            run.record("generation", run.read_json_part("speed", config.model))

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        """Lengths of the answers to each label's prompts."""
        table, figure = result.to_frame(), go.Figure()
        for label in LABELS:
            rows = table[table["label"] == label]
            figure.add_histogram(x=rows["n_tokens"], name=label, marker_color=COLOURS[label])
        figure.update_layout(barmode="overlay", xaxis_title="tokens of an answer", yaxis_title="answers")
        figure.update_traces(opacity=0.6)
        longest = result.config["max_new_tokens"]
        about = f"{edit_description(result)}; answers are cut at {longest} tokens"
        return {"answer-lengths": styled(figure, "Lengths of answers", about, width=900, height=420)}

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        table = result.to_frame()
        measure = f"answers that were cut at {result.config['max_new_tokens']} tokens"
        subject = f"{short_name(result.config['model'])}, {edit_description(result)}"
        found = [level(subject, measure, Estimate.of_counts(_cut(table), len(table)))]
        served = result.manifest.get("served")
        return found if served is None else [*found, *served_sentences("vLLM server", served)]

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        return Page(
            title=f"Answers of {short_name(result.config['model'])}",
            subtitle=edit_description(result),
            findings=result.findings,
            blocks=[Block(name="lengths", title="Lengths of answers", figures=list(figures.values()))],
        )

    @classmethod
    def text(cls, result: Result) -> str:
        shown = " ".join(str(result.to_frame()["response"].iloc[0]).split())[:_SHOWN]
        return f"first: {shown}"

    @classmethod
    def next_steps(cls, result: Result) -> list[str]:
        return [f"mechsafety judge {shlex.quote(str(result.path / RESPONSES))} --judge rules"]

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        """The answers stay in the run folder."""
        return {
            "responses": str(result.path / RESPONSES),
            "n": len(result.to_frame()),
            "edit": result.manifest.get("edit"),
            "next": cls.next_steps(result)[0],
            "tables": {},
        }


@with_progress
def run_generation(
    config: GenerationConfig,
    out: str | Path,
    *,
    save_edit_to: str | Path | None = None,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> Result:
    """Answer the prompts under the edit in the folder ``out``, or go on where that was interrupted.

    Raises :class:`MechsafetyError`, before the folder is made, for a wrong edit, an empty split, prompts that do not
    fit, and whatever loading raises.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.
    """
    save_edit_to = None if save_edit_to is None else Path(save_edit_to)
    experiment = Generation(config, save_edit_to=save_edit_to)
    return run_experiment(experiment, out, say=say, allow_other_versions=allow_other_versions)


def edit_description(result: Result) -> str:
    """What was edited, in words."""
    edit = result.manifest.get("edit")
    return edit["description"] if edit else "unedited"


def _chosen(every: PromptSet, config: GenerationConfig) -> PromptSet:
    prompts = every.where(split=config.split)
    if not len(prompts):
        splits = ", ".join(dict.fromkeys(p.split for p in every))
        raise MechsafetyError(
            f"prompt set {config.prompts!r} has no prompts in split {config.split!r}: "
            f"{way('--split', 'split')} can be {splits}"
        )
    return prompts if config.limit is None else prompts.sample(config.limit, seed=config.seed)


def _described(edit: Edit, form: str) -> dict[str, str]:
    return {"description": edit.describe(), "sha256": digest(edit), "as": form}


def _cut(table: pd.DataFrame) -> int:
    return int((table["finish"] == "length").sum())
