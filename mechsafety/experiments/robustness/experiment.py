"""Attacks and utility of one model under one edit: what ``mechsafety robustness`` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pandas as pd

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.names import Attack
from mechsafety.core.places import packaged_words
from mechsafety.core.progress import Progress, progress_line, with_progress
from mechsafety.engines.tasks import Task
from mechsafety.experiments.base import Read
from mechsafety.experiments.edited import EditedExperiment
from mechsafety.experiments.parallel import Parallel
from mechsafety.experiments.records import record_shared_tokens
from mechsafety.experiments.result import Result
from mechsafety.experiments.robustness.config import RobustnessConfig
from mechsafety.experiments.robustness.findings import robustness_findings
from mechsafety.experiments.running import run_experiment
from mechsafety.experiments.session import Session
from mechsafety.generation.answered import Completion, answer_frame
from mechsafety.judges.kinds.fluent import FluentJudge
from mechsafety.pages.page import Page, page_blocks
from mechsafety.plots.attacks import attack_figure
from mechsafety.plots.style import short_name
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.prompts.splits import require_labels
from mechsafety.robustness.attacks import ATTACK_COLUMNS, attack_table
from mechsafety.robustness.benign import benign_choices, benign_passages
from mechsafety.robustness.suffix import SearchCost, Suffixes, require_nanogcg, resumable_suffixes
from mechsafety.robustness.utility import UTILITY_COLUMNS, base_distributions, measure_utility
from mechsafety.runs.folder import RunFolder

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WORDS = packaged_words("mechsafety.experiments.robustness", "page.toml")


class Robustness(EditedExperiment[RobustnessConfig], Parallel):
    """The report prompts are attacked; suffixes are searched on harmful ``fit`` prompts and stay in the run folder."""

    kind = "robustness"
    tables: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"attacks": "attacks.csv", "utility": "utility.csv"}
    )
    answer_keys = ("attack",)

    def __init__(self, config: RobustnessConfig) -> None:
        super().__init__(config)
        if "suffix" in config.attacks:
            require_nanogcg()
        self.every = load_prompts(config.prompts)
        require_labels(self.every, name=config.prompts)
        self.prompts = _harmful(self.every, config)
        self.searched = _searched(self.every, config) if "suffix" in config.attacks else None

    def prompt_sets(self) -> Sequence[PromptSet]:
        return [self.every]

    def bound(self) -> Mapping[str, Any]:
        return {"prompts_sha256": self.every.sha256(), **super().bound()}

    def reads(self) -> Sequence[Read]:
        searched = [(self.searched, 0)] if self.searched is not None else []
        return [(self.prompts, self.config.max_new_tokens), *searched]

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        config = self.config
        session.record_model(config.model, self.model, prompts=self.prompts)
        rows = [row for attack in config.attacks for row in self._attacked(session, attack)]
        cost = self._cost(session)
        record_shared_tokens(session.run, config.model, self.model)
        cost = cost.astype(dict.fromkeys(UTILITY_COLUMNS, float)).assign(system=self.system)
        return {
            "attacks": pd.DataFrame(rows, columns=list(ATTACK_COLUMNS)),
            "utility": cost[["system", *UTILITY_COLUMNS]],
        }

    def tasks(self, run: RunFolder) -> list[Task]:
        return _tasks(run, self.config.model, self.config.attacks)

    @classmethod
    def stored_tasks(cls, run: RunFolder) -> list[Task]:
        config = run.manifest["config"]
        return _tasks(run, config["model"], config["attacks"])

    def held(self) -> list[str]:
        return [self.config.model]

    def do(self, task: Task, session: Session) -> None:
        if task.stage == "attack":
            self._attacked(session, cast("Attack", task.name[1]))
        else:
            self._cost(session)

    def _cost(self, session: Session) -> pd.DataFrame:
        return session.part("utility", make=lambda: self._utility(session))

    def _attacked(self, session: Session, attack: Attack) -> list[dict[Any, Any]]:
        found = session.part("attacks", attack, make=lambda: self._attack(session, attack))
        return found.to_dict("records")

    def _attack(self, session: Session, attack: Attack) -> pd.DataFrame:
        config = self.config
        suffixes = self._suffixes(session) if attack == "suffix" else None
        session.say(f"{attack}: {len(self.prompts)} prompts")

        def keep(attack: Attack, answers: Sequence[Completion]) -> None:
            session.keep_answers(answer_frame(answers, attack=attack), attack)

        return attack_table(
            self.model,
            self.prompts,
            system=self.system,
            attacks=[attack],
            suffixes=suffixes,
            k=config.samples,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            edit=self.edit,
            judge=FluentJudge(config.model, self.model),  # answers are judged when the edit is off again
            keep=keep,
        )

    def _suffixes(self, session: Session) -> Suffixes:
        assert self.searched is not None
        return resumable_suffixes(
            session.run,
            self.model,
            self.searched,
            cost=SearchCost(steps=self.config.suffix_steps, width=self.config.suffix_width),
            seed=self.config.seed,
            edit=self.edit,
            say=session.say,
        )

    def _utility(self, session: Session) -> pd.DataFrame:
        session.say("utility: benign passages and questions")
        passages = benign_passages()
        base = base_distributions(self.model, passages) if self.edit is not None else None
        found = measure_utility(
            self.model,
            passages=passages,
            choices=benign_choices(),
            base=base,
            edit=self.edit,
            seed=self.config.seed,
        )
        return pd.DataFrame([found.row()])

    @classmethod
    def figures(cls, result: Result) -> dict[str, go.Figure]:
        return {"attacks": attack_figure(result.tables["attacks"])}

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        return robustness_findings(result.tables)

    @classmethod
    def page(cls, result: Result, figures: Mapping[str, go.Figure]) -> Page:
        return Page(
            title=f"Attack success on {short_name(result.config['model'])}",
            subtitle=str(result.tables["attacks"]["system"].iloc[0]),
            findings=result.findings,
            blocks=page_blocks(_WORDS["blocks"], result.tables, figures),
        )

    @classmethod
    def text(cls, result: Result) -> str:
        attacks, cost = (result.tables[name] for name in cls.tables)
        shown = attacks.drop(columns=["system", "published_low", "published_high"]).round(3)
        short = cost.drop(columns=["system"]).round(3).dropna(axis=1)
        return (
            f"{attacks['system'].iloc[0]}\n\n{shown.to_string(index=False)}\n\n{short.to_string(index=False)}\n\n"
            + "\n".join(f"{name}: {result.path / file}" for name, file in cls.tables.items())
        )

    @classmethod
    def facts(cls, result: Result) -> dict[str, Any]:
        return {**result.tables, "out": [str(result.path / file) for file in cls.tables.values()]}


@with_progress
def run_robustness(
    config: RobustnessConfig,
    out: str | Path,
    *,
    say: Progress = progress_line,
    progress: bool = True,  # noqa: ARG001 - with_progress reads it
    allow_other_versions: bool = False,
) -> Result:
    """Measure in the folder ``out``, or go on where that was interrupted: each attack is a part of the run.

    Raises :class:`MechsafetyError` for a wrong edit, prompt sets without what is needed, the attack ``suffix``
    without its package, and whatever loading raises.

    ``progress=False`` turns off bars and lines on the work; ``say`` receives the lines instead.
    """
    return run_experiment(Robustness(config), out, say=say, allow_other_versions=allow_other_versions)


def _tasks(run: RunFolder, model: str, attacks: Sequence[str]) -> list[Task]:
    """A task for each attack, and one for utility."""
    attacked = [
        Task(
            name=("attack", attack),
            done=run.has_part("attacks", attack),
            ships=(("suffixes",),) if attack == "suffix" else (),
            model=model,
        )
        for attack in attacks
    ]
    return [*attacked, Task(name=("utility",), done=run.has_part("utility"), model=model)]


def _harmful(every: PromptSet, config: RobustnessConfig) -> PromptSet:
    found = every.to_judge.harmful
    if not len(found):
        raise MechsafetyError(
            f"prompt set {config.prompts!r} has no harmful prompts in its split 'report': there is nothing to attack"
        )
    return found if config.limit is None else found.sample(config.limit, seed=config.seed)


def _searched(every: PromptSet, config: RobustnessConfig) -> PromptSet:
    found = every.to_estimate.harmful
    if len(found) < config.suffixes:
        raise MechsafetyError(
            f"prompt set {config.prompts!r} has {len(found)} harmful prompts in its split 'fit', on which suffixes "
            f"are searched, and {config.suffixes} are asked for: "
            f"lower {way('--suffixes', 'suffixes')}, or leave the attack out"
        )
    return found.sample(config.suffixes, seed=config.seed)
