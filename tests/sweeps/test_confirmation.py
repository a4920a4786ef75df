"""The first candidates of a sweep are confirmed by what the model writes under them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.edits.interventions import Ablate, edited
from mechsafety.generation.completions import generate
from mechsafety.judges.outcomes import labels_of
from mechsafety.judges.registry import load_judge
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import body_of
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.journal import Journal
from mechsafety.sweeps import confirmation
from mechsafety.sweeps.confirmation import ANSWER_COLUMNS, confirm
from mechsafety.sweeps.ranking import shortlist
from mechsafety.sweeps.selection import nearest
from mechsafety.sweeps.sweep import sweep
from tests.prompt_sets import small_prompts
from tests.sweeps.test_sweep import TOKENS, directions_of

SETTINGS: dict[str, Any] = {"max_new_tokens": 6}


def swept(model: Any) -> tuple[pd.DataFrame, Any, PromptSet]:
    directions = directions_of(model, positions=(-2, -1))
    prompts = small_prompts().validation
    return sweep(model, directions, prompts, refusal_tokens=TOKENS).to_frame(), directions, prompts


@pytest.mark.parametrize("architecture", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_columns_equal_a_plain_reading(tiny_kept: Callable[..., Any], architecture: str) -> None:
    model = tiny_kept(architecture)
    table, directions, prompts = swept(model)
    found = confirm(model, table, directions, prompts, candidates=3, **SETTINGS)
    places = shortlist(table, n_layers=model.cfg.n_layers, size=3)
    read = found[found["complied"].notna()]
    assert set(zip(read["position"], read["layer"], strict=True)) == set(places)
    assert found.drop(columns=list(ANSWER_COLUMNS)).equals(table)
    rules = load_judge("rules")
    own_judge = confirm(
        model,
        table,
        directions,
        prompts,
        candidates=3,
        judge=lambda prompt, text: rules([Response(id="0", prompt=prompt, text=text)])[0].label,
        **SETTINGS,
    )
    assert own_judge.equals(found), "a function stands for a judge's name"
    own = generate(model, prompts.harmless, seed=0, **SETTINGS)
    for row in read.itertuples():
        edit = Ablate(directions.at(layer=row.layer, position=row.position))
        answers = generate(model, prompts.harmful, edit=edit, seed=0, **SETTINGS)
        labels = labels_of(answers.items, "rules")
        assert row.n_answers == len(labels)
        for name, label in (("refused", "refusal"), ("complied", "compliance"), ("degenerate", "degenerate")):
            assert getattr(row, name) == pytest.approx(labels.count(label) / len(labels))
        total, n = 0.0, 0
        for context, answer in zip(
            tokenize_prompts(model, [p.text for p in prompts.harmless]), own, strict=True
        ):
            if not answer.tokens:
                continue
            ids = torch.tensor([[*context, *answer.tokens]])
            with torch.inference_mode(), edited(model, edit, prompt_length=len(context)):
                logits = model(ids) if architecture != "llama" else body_of(model)(input_ids=ids).logits
            log_probs = torch.log_softmax(logits[0, len(context) - 1 : -1].double(), -1)
            total -= float(log_probs.gather(-1, torch.tensor(answer.tokens)[:, None]).sum())
            n += len(answer.tokens)
        assert row.nll == pytest.approx(total / n, abs=1e-4)
    # The control: the likelihood differs between candidates by more than the tolerance.
    assert read["nll"].max() - read["nll"].min() > 1e-3


def test_finished_candidates_are_kept_and_only_validation_prompts_are_read(
    tiny_kept: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_kept("llama")
    table, directions, prompts = swept(model)
    whole = confirm(model, table, directions, prompts, candidates=3, **SETTINGS)
    asked: list[str] = []
    under_each = confirmation.generate_under_each

    def interrupted(model: Any, prompts: Any, edits: Any, *, on_batch: Any, **options: Any) -> Any:
        asked.extend(p.id for p in prompts)

        def keep(groups: Any) -> None:
            on_batch(groups)
            raise KeyboardInterrupt

        return under_each(model, prompts, edits, on_batch=keep, **options)

    path = tmp_path / "journal.jsonl"
    options: dict[str, Any] = {"candidates": 3, "batch_size": 6, **SETTINGS}
    monkeypatch.setattr(confirmation, "generate_under_each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        confirm(model, table, directions, prompts, journal=Journal(path), **options)
    with pytest.raises(KeyboardInterrupt):
        confirm(model, table, directions, prompts, journal=Journal(path), **options)
    n = len(prompts.harmful)
    assert len(asked) == n + n - 2  # the two prompts of the first batch were answered once
    assert set(asked) == {p.id for p in prompts.harmful}
    monkeypatch.setattr(confirmation, "generate_under_each", under_each)
    resumed = confirm(model, table, directions, prompts, journal=Journal(path), **options)
    pd.testing.assert_frame_equal(resumed, whole)
    # Nothing is left to answer.
    monkeypatch.setattr(confirmation, "generate_under_each", interrupted)
    again = confirm(model, table, directions, prompts, journal=Journal(path), **options)
    pd.testing.assert_frame_equal(again, whole)
    with pytest.raises(MechsafetyError, match="made from something else"):
        confirm(model, table, directions, prompts, journal=Journal(path), candidates=3, max_new_tokens=7)


def test_one_class_only_is_refused_and_an_empty_shortlist_confirms_nothing(
    tiny_kept: Callable[..., Any],
) -> None:
    model = tiny_kept("llama")
    table, directions, prompts = swept(model)
    with pytest.raises(MechsafetyError, match="none is harmful"):
        confirm(model, table, directions, prompts.harmless, **SETTINGS)
    nothing = table.assign(kl=math.nan)
    assert confirm(model, nothing, directions, prompts, **SETTINGS)["complied"].isna().all()


def test_the_nearest_is_chosen_by_answers_where_they_were_read(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    table, directions, prompts = swept(model)
    found = confirm(model, table, directions, prompts, **SETTINGS)
    read = found[found["complied"].notna()]
    chosen = nearest(found, n_layers=model.cfg.n_layers)
    assert chosen.confirmed is not None
    assert chosen.confirmed.candidates == len(read)
    worse = read[read["complied"] > chosen.confirmed.complied + 0.75]
    assert worse.empty
