"""The prompts that a ladder's subspace is found on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mechsafety.directions.activations import residual_stream
from mechsafety.directions.estimators import refusal_subspace
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.subspaces import Splits, find_subspace
from mechsafety.runs.journal import Journal
from mechsafety.sweeps.behaviour import treated_as_labelled
from mechsafety.sweeps.measures import refusal_measure
from mechsafety.sweeps.openings import own_refusals
from tests.prompt_sets import small_prompts


def test_prompts_that_the_system_treats_as_labelled_span_the_subspace(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(24)
    splits = Splits.of(prompts, LadderConfig(systems=("m",), limit=4))
    asking: dict[str, Any] = {"judge": "rules", "max_new_tokens": 3, "seed": 0}

    def found(k: int, fit_on: Any) -> Any:
        journal = Journal(tmp_path / f"{k}-{fit_on}.jsonl")
        return find_subspace(
            model, splits, k=k, fit_on=fit_on, controls=0, system="m", journal=journal, **asking
        )

    asked = type(prompts)((*splits.choice, *splits.validation.harmless[:4]))
    measure = refusal_measure(model, asked, refusals=own_refusals(model, asked, seed=0))
    kept = treated_as_labelled(model, splits.fit, measure=measure.taken)
    assert 8 <= len(kept.harmful) < 24
    for fit_on, expected in (("behaviour", kept), ("labels", splits.fit)):
        made = found(3, fit_on)
        assert [p.id for p in made.fit] == [p.id for p in expected]
        cache = residual_stream(model, expected)
        classes = (cache.select(label)[:, 0, made.layer] for label in ("harmful", "harmless"))
        torch.testing.assert_close(made.basis, refusal_subspace(*classes, k=3).float())
    # More directions than such prompts: all are used.
    assert len(found(len(kept.harmful) + 1, "behaviour").fit.harmful) == 24
