"""Servers of an experiment: which are named, how their answers compare with ours, and what is said of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mechsafety.claims import Estimate
from mechsafety.claims.sentences import level, missing
from mechsafety.experiments.backends import BackendConfig
from mechsafety.generation.answered import Completions
from mechsafety.generation.served import compare
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.serving.server import VllmServer


def servers_of(backend: BackendConfig) -> list[VllmServer]:
    """The servers that a configuration names."""
    how = {"compared": backend.compared, "least_agreement": backend.least_agreement}
    return [VllmServer(address, **how) for address in backend.server]


def compared_with(
    server: VllmServer, prompts: Sequence[Prompt], answer: Callable[..., Completions], *, max_new_tokens: int
) -> dict[str, Any]:
    """Whether the answers of ``server`` are taken, as a part holds it: ``used``, ``reason``, ``agreement``."""
    found = compare(server, prompts, answer, max_new_tokens=max_new_tokens)
    return {"used": found.holds, "reason": found.reason, "agreement": found.as_dict()}


def served_sentences(subject: str, served: Mapping[str, Any]) -> list[str]:
    """How a server's answers agree with those of this process, and why they were not taken."""
    agreement, said = served.get("agreement"), []
    if agreement:
        equal = Estimate.of_counts(agreement["equal"], agreement["prompts"])
        said = [level(subject, "sampled prompts with the answer of this process, token by token", equal)]
    return said if served["used"] else [*said, missing(f"answers of the {subject}", served["reason"])]
