"""The answers of a study's systems in each arm, and what judges and the systems themselves say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import TYPE_CHECKING

import pandas as pd

from mechsafety.core.errors import IncompleteError, MechsafetyError, NotFiniteError, StoppedError
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.experiments.judging import ask, ask_together, verdict_columns
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.controls import (
    RANDOM,
)
from mechsafety.experiments.study.served import ServedArms
from mechsafety.experiments.study.systems import SystemWork
from mechsafety.generation.answered import asked_in
from mechsafety.generation.completions import Sampling
from mechsafety.generation.resumable import (
    batch_plan,
    resumable_responses,
    resumable_under_each,
    shared_size,
)
from mechsafety.generation.scoring import answer_nll
from mechsafety.judges.checks import check_judge
from mechsafety.judges.failures import UnusableError
from mechsafety.judges.kinds.dawid_skene import fitted_verdicts
from mechsafety.judges.panel import member_specs, members_of
from mechsafety.judges.registry import asks_a_model, is_pooled, load_judge, redacted
from mechsafety.judges.selfjudgement import Exchange, self_judge
from mechsafety.models.chat import tokenize_prompts
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.folder import finite
from mechsafety.statistics.tables import ARMS
from mechsafety.sweeps.edit_costs import EditCosts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Arm = tuple[str, str]
ALL_RANDOM = "random"
"""What batches that all random arms share are named by."""


def separate_judges(judges: Sequence[str]) -> list[str]:
    """The judges that read one arm at a time, each once: ``judges``, or the members of one fitted on all arms."""
    members = [members_of(judge) if is_pooled(judge) else [judge] for judge in judges]
    return [*dict.fromkeys(one for several in members for one in several)]


def judges_of(config: StudyConfig, arm: str) -> list[str]:
    """The judges that read the answers of one arm: the primary one alone reads random arms."""
    return separate_judges(config.judges if arm in ARMS else config.judges[:1])


def asks_an_address(judge: str) -> bool:
    """Whether a judge, or a member of it, is a model behind an address."""
    return any(member.partition(":")[0] == "endpoint" for member in members_of(judge))


class AnsweredWork(SystemWork):
    """What a study makes of one system that has its direction: answers, verdicts, self-judgement."""

    # -- responses ------------------------------------------------------------------------------

    @cached_property
    def served(self) -> ServedArms:
        """What servers answer."""
        return ServedArms(self.config, self.session)

    def waits(self, spec: str, arm: str) -> bool:
        """Whether an arm waits for a server of its weights."""
        return self.served.waits(spec, arm, partial(self.model, spec), partial(self.edit, spec, arm))

    def _asked(self, spec: str, arm: str) -> PromptSet:
        """The prompts of one arm: the harmful ones alone where a random direction is removed."""
        prompts = self.fed(spec)[0].prompts
        return prompts if arm in ARMS else prompts.harmful

    def plan(self, spec: str, arm: str) -> None:
        """Plan the batches of one arm; ``random`` stands for all random arms, which share them."""
        config, n = self.config, self.config.batch_size
        if arm == ALL_RANDOM:
            n = shared_size(n, config.controls)
            arm = f"{RANDOM}1"
            key = (spec, ALL_RANDOM)
        else:
            key = (spec, arm)
        batch_plan(self.run, self.model(spec), self._asked(spec, arm), key, n)

    def answers(self, spec: str, arm: str) -> pd.DataFrame:
        """Generate what is missing of one arm, batch by batch, and join the batches."""
        config, model, asked, edit = (
            self.config,
            self.model(spec),
            self._asked(spec, arm),
            self.edit(spec, arm),
        )
        return resumable_responses(
            self.run,
            model,
            asked,
            key=(spec, arm),
            edit=edit,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_size=config.batch_size,
            sampling=Sampling(**config.sampling.model_dump()) if config.sampling else None,
            say=self.say,
            server=self.served.agreed(spec, arm, model, edit, asked) if arm in ARMS else None,
        )

    def random_answers(self, spec: str, arms: Sequence[str]) -> pd.DataFrame:
        """The same under random directions, which share batches; nothing is drawn."""
        config = self.config
        return resumable_under_each(
            self.run,
            self.model(spec),
            self._asked(spec, arms[0]),
            key=(spec, ALL_RANDOM),
            edits={arm: self._edit(spec, arm) for arm in arms},
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            batch_size=config.batch_size,
            say=self.say,
        )

    def draw(self, spec: str, arms: Sequence[str]) -> None:
        """The random directions, and what each costs on harmless prompts."""
        edits = {arm: self._edit(spec, arm) for arm in arms}
        if harmless := self.fed(spec)[0].prompts.harmless:
            costs = EditCosts(model=self.model(spec), prompts=harmless)
            for arm, edit in {"edited": self._edit(spec, "edited"), **edits}.items():
                self.session.json_part("kl", spec, arm, make=partial(costs.kl, edit))

    def respond(self, spec: str, arm: str) -> None:
        """The responses of one arm with their likelihoods."""
        self._write_responses(spec, arm, self.answers(spec, arm))

    def respond_randomly(self, spec: str, arms: Sequence[str]) -> None:
        """The same for random directions."""
        # Before the responses, whose presence tells a resumed study that the arm is done.
        self.draw(spec, arms)
        if self.config.sampling:
            for arm in arms:
                self.respond(spec, arm)
            return
        for arm, rows in self.random_answers(spec, arms).groupby("arm", sort=False):
            self._write_responses(spec, str(arm), rows.drop(columns="arm").reset_index(drop=True))

    def _write_responses(self, spec: str, arm: str, table: pd.DataFrame) -> None:
        table["nll"] = self._nll(self.model(spec), table) if self.config.nll else float("nan")
        self.run.write_part(table.assign(system=spec, arm=arm), "responses", spec, arm)

    def _nll(self, model: TransformerBridge, table: pd.DataFrame) -> list[float]:
        contexts = tokenize_prompts(model, asked_in(table))
        answers = [[int(t) for t in tokens] for tokens in table["tokens"]]
        n_thought = table["n_thought_tokens"].tolist()
        found = answer_nll(model, contexts, answers, n_thought=n_thought, ids=list(table["id"]))
        return [float("nan") if value is None else round(value, 5) for value in found]

    def responses(self, spec: str, arm: str) -> pd.DataFrame:
        return self.run.read_part("responses", spec, arm)

    # -- verdicts -------------------------------------------------------------------------------

    def judge(self, spec: str, arm: str, title: str, judges: Sequence[str] | None = None) -> None:
        """The verdicts of ``judges`` on one arm's responses; when None, of those that read this arm.

        Those behind addresses of different hosts are asked side by side.
        """
        judges = judges_of(self.config, arm) if judges is None else judges
        missing = [judge for judge in judges if not self.run.has_part("verdicts", judge, spec, arm)]
        hosted = [judge for judge in missing if asks_an_address(judge)]
        if asked := [judge for judge in hosted if judge not in self._ended]:
            self.say(f"{title} · {arm}: judge{'s' if len(asked) > 1 else ''} {', '.join(asked)}")
            with self.session.timed(
                spec, "judges behind addresses" if len(asked) > 1 else f"judge {asked[0]}"
            ):
                stopped = self._verdicts(asked, spec, arm)
            self.stopped = {**stopped, **self.stopped}
            self._ended |= {judge for judge, why in stopped.items() if not isinstance(why, IncompleteError)}
        for judge in [judge for judge in missing if judge not in hosted]:
            self.say(f"{title} · {arm}: judge {judge}")
            with self.session.timed(spec, f"judge {judge}"):
                self.verdicts(judge, spec, arm)

    def require_judged(self) -> None:
        """Raise StoppedError where judges behind addresses have left answers without a verdict."""
        if self.stopped:
            others = f" (and of {len(self.stopped) - 1} more judges)" if len(self.stopped) > 1 else ""
            judge, why = next(iter(self.stopped.items()))
            raise StoppedError(
                f"not complete: verdicts of judge {redacted(judge)!r}{others} are missing: {why}; all else is kept, "
                "and the same command goes on"
            )

    def verdicts(self, judge: str, spec: str, arm: str) -> None:
        """The verdicts of one judge on one arm's responses."""
        for error in self._verdicts([judge], spec, arm).values():
            raise error

    def _verdicts(self, judges: Sequence[str], spec: str, arm: str) -> dict[str, MechsafetyError]:
        """The verdicts of several, of those that give all; what stopped each of the others."""
        table = self.responses(spec, arm)
        responses = [
            Response(id=i, prompt=p, text=t, nll=None if n != n else float(n))
            for i, p, t, n in zip(table["id"], table["prompt"], table["response"], table["nll"], strict=True)
        ]
        given = {self._judge(judge).name: judge for judge in judges}

        def take(name: str, verdicts: Sequence[Verdict]) -> None:
            rows = table[["system", "arm", "id", "label"]]
            rows = rows.assign(judge=given[name], **verdict_columns(verdicts))
            self.run.write_part(rows, "verdicts", given[name], spec, arm)

        try:
            stopped = self._checked(judges)
            ready = [self._judge(judge) for judge in judges if judge not in stopped]
            try:
                found = ask_together(ready, responses, take)
            except UnusableError as error:
                found = dict.fromkeys((judge.name for judge in ready), error)
        except NotFiniteError as error:  # of the judge's model, which is no fault of the system
            raise MechsafetyError(f"judge {' or '.join(map(repr, judges))}: {error}") from error
        return stopped | {given[name]: why for name, why in found.items()}

    def _checked(self, judges: Sequence[str]) -> dict[str, MechsafetyError]:
        """What stopped judges in their check: it stops none beside them."""
        stopped: dict[str, MechsafetyError] = {}
        for judge in judges:
            try:
                self.check(judge)
            except (StoppedError, UnusableError) as error:
                stopped[judge] = error
        return stopped

    def _judge(self, judge: str) -> Judge:
        if judge not in self._judges:
            self._judges[judge] = load_judge(judge, models=self.model)
        return self._judges[judge]

    def check(self, judge: str) -> None:
        """How a judge that is a model does where the labels are known, once per study."""
        judging = self._judge(judge)
        if asks_a_model(judge) and not self.run.has_part("judge_check", judge, suffix="json"):
            self.run.write_json_part(finite(check_judge(judging, ask=ask)), "judge_check", judge)

    def pool(self, judge: str, arms: Sequence[Arm]) -> None:
        """The verdicts of a judge that is fitted on all answers together, from its members' verdicts on them."""
        members = member_specs(judge.partition(":")[2])
        parts = {arm: [self.run.read_part("verdicts", member, *arm) for member in members] for arm in arms}
        answers = [(arm, row) for arm in arms for row in range(len(parts[arm][0]))]
        responses = [Response(id=str(number), prompt="", text="") for number in range(len(answers))]
        given = [
            {
                name: Verdict(
                    id="",
                    judge=name,
                    label=part["verdict"].iloc[row],
                    tags=tuple(part["tags"].iloc[row].split()),
                )
                for name, part in zip(members, parts[arm], strict=True)
            }
            for arm, row in answers
        ]
        verdicts = fitted_verdicts(responses, given, judge=judge, members=members)
        for arm in arms:
            mine = [v for v, (one, _) in zip(verdicts, answers, strict=True) if one == arm]
            rows = parts[arm][0][["system", "arm", "id", "label"]]
            self.run.write_part(rows.assign(judge=judge, **verdict_columns(mine)), "verdicts", judge, *arm)

    def selfjudge(self, spec: str, arm: str) -> None:
        exchanges = Exchange.of(self.responses(spec, arm))
        judged = self_judge(self.model(spec), exchanges, edit=self.edit(spec, arm), seed=self.config.seed)
        rows = pd.DataFrame([asdict(j) for j in judged])
        self.run.write_part(rows.assign(system=spec, arm=arm), "selfjudge", spec, arm)
