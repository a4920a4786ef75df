"""Edits side by side are each edit alone: its rows, its answers, whatever stands in the other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, Edit, Orthogonalise, SideBySide, edited
from mechsafety.generation import completions
from mechsafety.generation.answered import Completion
from mechsafety.generation.bodies import body_under
from mechsafety.generation.completions import generate
from mechsafety.generation.resumable import resumable_responses, resumable_under_each
from mechsafety.generation.side_by_side import generate_under_each
from mechsafety.models.chat import TokenBatch, pad_left
from mechsafety.models.forward import forward
from mechsafety.runs.folder import open_run
from tests.architectures import ARCHITECTURES, SITELESS, UNFAITHFUL, kinds_first, save_architecture
from tests.hooked_architectures import hooked_architecture
from tests.kept_models import kept
from tests.prompt_sets import small_prompts

SEQUENCES = [[5, 9, 12, 30, 7, 21, 40, 8], [6, 11, 33], [14, 15, 16, 17, 18]]
ASKING: dict[str, Any] = {"max_new_tokens": 8, "seed": 0}


def direction(seed: int, k: int | None = None) -> Tensor:
    drawn = torch.randn(k or 1, 32, generator=torch.Generator().manual_seed(seed))
    return drawn if k else drawn[0]


def edits(**settings: Any) -> list[Edit]:
    """Ablations of one and of two directions, everywhere and in one layer, and an addition."""
    return [
        Ablate(direction(0), **settings),
        Ablate(direction(1, k=2), **settings),
        Ablate(direction(2), layers=(2,), sites=("resid_pre",), **settings),
        Add(direction(3), layer=1, coefficient=3.0, **settings),
    ]


def last_logits(model: Any, batch: TokenBatch, edit: Edit) -> Tensor:
    with body_under(model, edit) as body:
        return forward(body, batch, logits=1).logits[:, -1].float()


def require_each_as_alone(model: Any, given: Sequence[Edit], tolerance: float) -> None:
    """A padded batch under all edits holds the logits that each edit gives the batch alone."""
    batch = pad_left(SEQUENCES, pad=0)
    n = len(given)
    together = last_logits(
        model,
        TokenBatch(rows=tuple(range(3 * n)), ids=batch.ids.repeat(n, 1), mask=batch.mask.repeat(n, 1)),
        SideBySide(tuple(given)),
    ).chunk(n)
    alone = [last_logits(model, batch, edit) for edit in given]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    # The control: another edit's rows differ by more.
    assert all((together[0] - other).abs().max() > 20 * tolerance for other in alone[1:])


@pytest.mark.parametrize("name", kinds_first(n for n in ARCHITECTURES if n not in (*UNFAITHFUL, *SITELESS)))
def test_every_architecture_reads_each_as_alone(name: str) -> None:
    require_each_as_alone(kept(name), edits(), 1e-3)


@pytest.mark.parametrize("positions", ["prompt", "last_prompt"])
def test_positions_hold_in_every_group(tiny_kept: Callable[..., Any], positions: str) -> None:
    require_each_as_alone(tiny_kept("llama"), edits(positions=positions), 1e-4)


def test_bfloat16_agrees_roughly(tiny_kept: Callable[..., Any]) -> None:
    require_each_as_alone(tiny_kept("llama", dtype="bfloat16"), edits()[:2], 0.04)


@pytest.mark.filterwarnings("ignore:HookedTransformer:DeprecationWarning")
def test_hooked_transformers_answer_each_as_alone(tmp_path: Path) -> None:
    pytest.importorskip("transformer_lens.loading_from_pretrained", reason="transformer-lens 4.0 has none")
    model = hooked_architecture(save_architecture(tmp_path, "llama"), "llama")
    prompts = small_prompts(3).report
    given = edits()[:2]
    found = generate_under_each(model, prompts, given, **ASKING)
    for answers, edit in zip(found, given, strict=True):
        assert texts(answers) == texts(generate(model, prompts, edit=edit, **ASKING))


def texts(answers: Sequence[Completion]) -> dict[str, tuple[int, ...]]:
    return {answer.id: answer.tokens for answer in answers}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 10, 64])
def test_answers_are_those_under_each_edit_alone(
    tiny_kept: Callable[..., Any], architecture: str, batch_size: int
) -> None:
    model, prompts = tiny_kept(architecture), small_prompts(3).report
    given = [*edits(), Orthogonalise(direction(4))]
    batches: list[int] = []
    found = generate_under_each(
        model, prompts, given, batch_size=batch_size, on_batch=lambda b: batches.append(len(b[0])), **ASKING
    )
    assert max(batches) == max(1, min(len(prompts), batch_size // len(given)))
    for answers, edit in zip(found, given, strict=True):
        assert [answer.id for answer in answers] == [p.id for p in prompts]
        assert texts(answers) == texts(generate(model, prompts, edit=edit, **ASKING))
    # The control: the edits differ in what they make the model write.
    assert len({tuple(texts(answers).items()) for answers in found}) > 2


@pytest.mark.parametrize("most", [4, 2])
def test_little_memory_changes_no_answer(
    tiny_kept: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Four rows hold one prompt under all edits; two do not, so that each edit then answers alone."""
    model, prompts = tiny_kept("llama"), small_prompts(3).report
    named = {f"edit {number}": edit for number, edit in enumerate(edits())}
    real = completions.hf_answers

    def small(module: Any, batch: Any, *rest: Any) -> Any:
        if len(batch.rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(module, batch, *rest)

    monkeypatch.setattr(completions, "hf_answers", small)
    said: list[str] = []
    settings: dict[str, Any] = {**ASKING, "batch_size": 64, "say": said.append}
    with open_run(tmp_path / "run", config={}) as run:
        table = resumable_under_each(run, model, prompts, key=("a",), edits=named, **settings)
        again = resumable_under_each(run, model, prompts, key=("a",), edits=named, **settings)
        assert table.equals(again)
        assert said
        for arm, edit in named.items():
            alone = resumable_responses(
                run,
                model,
                prompts,
                key=("a", arm),
                edit=edit,
                sampling=None,
                **(settings | {"batch_size": 2}),
            )
            rows = table[table["arm"] == arm].drop(columns="arm").reset_index(drop=True)
            assert list(rows["id"]) == [p.id for p in prompts]
            assert rows.astype(str).equals(alone.astype(str))


def test_what_cannot_share_a_batch_is_refused(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(2).report
    with pytest.raises(MechsafetyError, match="same positions"):
        SideBySide((Ablate(direction(0)), Ablate(direction(0), positions="prompt")))
    with pytest.raises(MechsafetyError, match="same positions"):
        SideBySide(())
    with (
        pytest.raises(MechsafetyError, match="3 rows are no 2 equal groups"),
        edited(model, SideBySide(tuple(edits()[:2]))),
    ):
        forward(model.original_model, pad_left(SEQUENCES, pad=0), logits=1)
    twice = [prompts[0], replace(prompts[1], id=prompts[0].id)]
    with pytest.raises(MechsafetyError, match="distinct ids"):
        generate_under_each(model, twice, edits(), **ASKING)
    with pytest.raises(MechsafetyError, match="made for another model"):
        generate_under_each(model, prompts, [Ablate(torch.ones(8)), Ablate(torch.ones(8))], **ASKING)
