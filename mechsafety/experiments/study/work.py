"""The work of a study, part by part: systems x prompts x judges -> tables.

For each system: load -> residual streams of the fit prompts -> directions -> scores on the validation prompts -> one
selected direction -> an edit -> responses of both arms, and of random directions removed in the same way -> verdicts of
every judge -> self-judgement. Each arrow ends in a part on disk; a part that is there is not made again. A system whose
numbers are not finite is left out and named; the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError, NotFiniteError
from mechsafety.directions.files import save_directions
from mechsafety.experiments.agreement.tables import judge_tables
from mechsafety.experiments.study.answers import AnsweredWork, Arm
from mechsafety.experiments.study.controls import (
    answered_draws,
    control_tables,
    random_arms,
)
from mechsafety.experiments.study.served import served_table
from mechsafety.judges.label_order import label_order
from mechsafety.judges.panel import members_of
from mechsafety.judges.registry import is_pooled
from mechsafety.judges.selfjudgement import summarise
from mechsafety.runs.memory import peak_memory_mb, record_peak_memory
from mechsafety.statistics.paired import paired_tests
from mechsafety.statistics.raters import agreement
from mechsafety.statistics.rates import refusal_rates
from mechsafety.statistics.tables import ARMS

_RESPONSE_COLUMNS = [
    *("system", "arm", "id", "label", "category", "prompt", "response", "finish"),
    *("n_prompt_tokens", "n_tokens", "nll", "messages"),
]
"""The last one where prompts are conversations."""


class StudyWork(AnsweredWork):
    """One session of a study. Without ``report`` and ``anchors`` it judges, and makes tables of what is there."""

    # -- one system -----------------------------------------------------------------------------

    def try_system(self, spec: str, title: str) -> None:
        """Everything about one system; where its numbers are not finite it is marked as failed.

        It is tried again under other versions or on another device, where numbers may be finite.
        """
        if not self.is_tried(spec, title):
            return
        try:
            self.system(spec, title)
        except NotFiniteError as error:
            self.fail(spec, title, str(error))

    def is_tried(self, spec: str, title: str) -> bool:
        """Whether a system is worked on in this session: not where it failed before under the same circumstances."""
        if (why := self.failure(spec)) is None:
            return True
        if self.run.read_json_part("failed", spec).get("circumstance") == self.run.circumstance(
            f"model {spec}"
        ):
            again = self._again(spec)
            self.say(f"{title} · failed in an earlier session and is not tried again: {why} ({again})")
            return False
        self.run.part_path("failed", spec, suffix="json").unlink()
        return True

    def fail(self, spec: str, title: str, why: str, *, for_good: bool = True) -> None:
        """Mark a system as failed; unless it is ``for_good``, the next session tries it again."""
        now = self.run.circumstance(f"model {spec}") if for_good else None
        self.run.write_json_part({"failed": why, "circumstance": now}, "failed", spec)
        self.say(f"{title} · failed: {why}" + (f" ({self._again(spec)})" if for_good else ""))

    def _again(self, spec: str) -> str:
        part = self.run.part_path("failed", spec, suffix="json").relative_to(self.run.path)
        return f"name a new folder, or delete {part} in the run to try it again"

    def failure(self, spec: str) -> str | None:
        """Why a system could not be measured."""
        if not self.run.has_part("failed", spec, suffix="json"):
            return None
        return self.run.read_json_part("failed", spec)["failed"]

    def system(self, spec: str, title: str) -> None:
        """Everything about one system, part by part."""
        run, session = self.run, self.session
        self.choose(spec, title)
        for arm in ARMS:
            with session.timed(spec, f"generate {arm}"):
                if not run.has_part("responses", spec, arm) and not self.waits(spec, arm):
                    self.say(f"{title} · {arm}: {len(self._asked(spec, arm))} responses")
                    self.respond(spec, arm)
        random = random_arms(self.config, self.report)
        with session.timed(spec, "generate random"):
            if missing := [arm for arm in random if not run.has_part("responses", spec, arm)]:
                n = len(self._asked(spec, random[0]))
                self.say(f"{title} · {len(missing)} random directions: {n} responses to each")
                self.respond_randomly(spec, missing)
        answered = [arm for arm in ARMS if run.has_part("responses", spec, arm)]  # others wait for servers
        # Before any judge, whose model may take the place of this one.
        for arm in answered:
            with session.timed(spec, "self-judgement"):
                if self.config.selfjudge and not run.has_part("selfjudge", spec, arm):
                    self.say(f"{title} · {arm}: self-judgement")
                    self.selfjudge(spec, arm)
        for arm in [*answered, *random]:
            self.judge(spec, arm, title)

    def judge_all(self) -> None:
        """Every verdict that is missing on responses that are there; raises where the study lacks them."""
        for spec, arm in self.arms():
            if not self.run.has_part("responses", spec, arm):
                raise MechsafetyError(
                    f"run {str(self.run.path)!r} lacks the responses of {spec!r} among its parts: keep its folder "
                    "parts, or run the study again"
                )
            self.judge(spec, arm, spec)

    # -- tables ---------------------------------------------------------------------------------

    def specs(self) -> list[str]:
        """The systems that could be measured, in the order of the configuration."""
        return [spec for spec in self.config.systems if self.failure(spec) is None]

    def arms(self) -> list[Arm]:
        return [(spec, arm) for spec in self.specs() for arm in ARMS]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Join the parts into the run's tables, in the order of the configuration; none where every system failed."""
        run, config = self.run, self.config
        measured = {s: self.selection(s) | {"generation": self._speeds(s)} for s in self.specs()}
        run.record("systems", {s: measured.get(s) or {"failed": self.failure(s)} for s in config.systems})
        record_peak_memory(run, peak_memory_mb())
        if not measured:
            return {}
        self.say("tables and tests")
        arms, specs = self.arms(), [(spec,) for spec in measured]
        for judge in filter(is_pooled, config.judges):
            random = answered_draws(run, config, list(measured)) if judge == config.primary_judge else []
            self.pool(judge, [*arms, *random])
        verdicts = self._joined("verdicts", [(judge, *arm) for arm in arms for judge in config.judges])
        found = [self.directions(spec) for spec in measured]
        run.save("directions.safetensors", lambda path: save_directions(found, path))
        tables = {
            "rates": refusal_rates(verdicts),
            "tests": paired_tests(verdicts),
            "agreement": agreement(verdicts, seed=config.seed),
            **judge_tables(verdicts, primary=config.primary_judge, seed=config.seed),
            **self._model_judge_tables(verdicts),
            "sweep": self._joined("sweep", specs),
            "scatter": self._joined("scatter", specs),
            "responses": self._joined("responses", arms).filter(items=_RESPONSE_COLUMNS),
            "verdicts": verdicts,
            **self._confirmation_table(list(measured)),
            **self._served_table(list(measured)),
            **control_tables(run, config, list(measured), verdicts, columns=_RESPONSE_COLUMNS),
        }
        return tables | (self._selfjudge_tables(arms, verdicts) if config.selfjudge else {})

    def _model_judge_tables(self, verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """What is to be known of judges that are models; none where there are no such judges."""
        judges = dict.fromkeys(one for several in self.config.judges for one in members_of(several))
        found = [
            self.run.read_json_part("judge_check", judge)
            for judge in judges
            if self.run.has_part("judge_check", judge, suffix="json")
        ]
        order = label_order(verdicts, ["system", "arm", "label"])
        tables = {"judge_checks": pd.DataFrame(found), "label_order": order}
        return {name: table for name, table in tables.items() if len(table)}

    def _confirmation_table(self, specs: Sequence[str]) -> dict[str, pd.DataFrame]:
        """The answers by which candidates were confirmed; none where scores alone decided."""
        parts = [part for spec in specs for part in self.run.parts("confirmed", spec)]
        if not parts:
            return {}
        return {
            "confirmation_responses": pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
        }

    def _served_table(self, specs: Sequence[str]) -> dict[str, pd.DataFrame]:
        """Which arms servers answered; none where this process answered all."""
        table = served_table(self.run, specs)
        return {"served": table} if len(table) else {}

    def _joined(self, name: str, keys: Sequence[tuple[str, ...]]) -> pd.DataFrame:
        return pd.concat([self.run.read_part(name, *key) for key in keys], ignore_index=True)

    def _selfjudge_tables(self, arms: Sequence[Arm], verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
        outside = verdicts[verdicts["judge"] == self.config.primary_judge]
        judged = self._joined("selfjudge", arms).merge(
            outside[["system", "arm", "id", "label", "verdict"]], how="left"
        )
        return {"selfjudge": summarise(judged, seed=self.config.seed), "selfjudgements": judged}

    def _speeds(self, spec: str) -> dict[str, Any]:
        return {
            arm: self.run.read_json_part("speed", spec, arm)
            for arm in ARMS
            if self.run.has_part("speed", spec, arm, suffix="json")
        }
