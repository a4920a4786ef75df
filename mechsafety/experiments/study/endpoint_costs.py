"""What a study's judges behind addresses are asked, before any answer is there: questions, tokens and money."""

from __future__ import annotations

from collections.abc import Sequence

from mechsafety.core.verdict import Response
from mechsafety.experiments.study.answers import judges_of
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.controls import random_arms
from mechsafety.judges.asking import Usage
from mechsafety.judges.batches import Expected
from mechsafety.judges.checks import load_checks
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.panel import members_of
from mechsafety.judges.registry import load_judge
from mechsafety.prompts.prompt_set import Prompt, PromptSet
from mechsafety.statistics.tables import ARMS

_FILLER = "word "
_CHARACTERS_A_TOKEN = 4


def asked_elsewhere(config: StudyConfig, report: PromptSet) -> list[Expected]:
    """What each judge behind an address, or member of a panel, is asked about the answers of all systems.

    Every answer counts with all its tokens, and every question once. A judge that is no member alone is also asked
    about the answers with known labels, with its labels in both orders.
    """
    every = {arm: _asks(config, arm) for arm in (*ARMS, *random_arms(config, report))}
    found = []
    for spec in dict.fromkeys(spec for several in every.values() for spec in several):
        judge = load_judge(spec)
        assert isinstance(judge, EndpointJudge)
        known = [Response(id=row["id"], prompt=row["prompt"], text=row["response"]) for row in load_checks()]
        about = _times(judge.estimate(known), 2 if spec in map(str.strip, config.judges) else 0)
        for arm in [arm for arm, asked in every.items() if spec in asked]:
            prompts = report if arm in ARMS else report.harmful
            of_one = judge.estimate(_answers(prompts, config.max_new_tokens))
            about += _times(of_one, len(config.systems))
        found.append(Expected.of(judge.name, about))
    return found


def _asks(config: StudyConfig, arm: str) -> list[str]:
    """The judges behind addresses that read one arm, members of panels too."""
    members = [member for judge in judges_of(config, arm) for member in members_of(judge)]
    return [member for member in dict.fromkeys(members) if member.startswith("endpoint:")]


def _answers(prompts: Sequence[Prompt] | PromptSet, tokens: int) -> list[Response]:
    """Answers of ``tokens`` tokens to ``prompts``."""
    text = (_FILLER * tokens)[: _CHARACTERS_A_TOKEN * tokens]
    return [Response(id=str(n), prompt=prompt.text, text=text) for n, prompt in enumerate(prompts)]


def _times(usage: Usage, n: int) -> Usage:
    return sum([usage] * n, Usage(cost=None if usage.cost is None else 0.0))
