"""Sweep scores equal a slow plain implementation, and mean what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import METHODS
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.hooking import plain_module_path
from mechsafety.models.loading import body_of, generation_twin
from mechsafety.models.prefixes import all_last_logits, shared_prefix
from mechsafety.prompts.prompt_set import PromptSet
from mechsafety.runs.journal import Journal
from mechsafety.sweeps import candidates
from mechsafety.sweeps.candidates import BatchedScorer, Validation, candidates_of, has_fast_path
from mechsafety.sweeps.measures import TokenMeasure, refusal_measure
from mechsafety.sweeps.refusal_scores import (
    RefusalTokens,
    derive_refusal_tokens,
    kl_divergence,
    named_refusal_tokens,
    openings_of,
    refusal_scores,
)
from mechsafety.sweeps.sweep import SCORE_COLUMNS, projection_auroc, sweep
from tests.prompt_sets import small_prompts
from tests.reference.plain_sweep import kl, plain_llama_scores, refusal_score


def long_prompts() -> PromptSet:
    """Prompts that begin alike, so that their first tokens run once."""
    start = "tell me about the garden river bread storm key and then "
    return PromptSet(tuple(replace(p, text=start + p.text) for p in small_prompts().validation), "long")


TOKENS = RefusalTokens(ids=(5, 9), texts=("a", "b"), weight=(0.1, 0.1), source="user")


def directions_of(
    model: Any, *, method: Any = "mean_difference", positions: tuple[int, ...] = (-1,)
) -> Directions:
    return find_directions(
        residual_stream(model, small_prompts().fit, positions=positions), method=method, seed=0
    )


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_scores_equal_the_plain_reference(
    tiny_kept: Callable[..., Any], method: str, fast_path: bool
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts().validation
    directions = directions_of(model, method=method)
    swept = sweep(model, directions, prompts, refusal_tokens=TOKENS, batch_size=5, fast_path=fast_path)
    # A random model refuses nothing in particular, so no prompt is left out for its score.
    assert (swept.n_harmful, swept.n_harmless) == (6, 6)
    for row in swept.to_frame().itertuples():
        vector = directions.vectors[0, row.layer]
        if row.layer == 0:
            # The last prompt token is the template's: its embedding is the same for every prompt.
            assert float(vector.norm()) == 0.0
            assert row.bypass != row.bypass
            continue
        if row.layer == model.cfg.n_layers:
            assert row.induce != row.induce
            continue
        scale = 1.0 if method in ("mean_difference", "leace") else float(directions.gaps[0, row.layer])
        covector = None if directions.covectors is None else directions.covectors[0, row.layer]
        expected = plain_llama_scores(
            model,
            [p.text for p in prompts.harmful],
            [p.text for p in prompts.harmless],
            vector * scale,
            row.layer,
            TOKENS.ids,
            covector,
        )
        assert row.bypass == pytest.approx(expected["bypass"], abs=1e-4)
        assert row.kl == pytest.approx(expected["kl"], abs=1e-4)
        assert row.induce == pytest.approx(expected["induce"], abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "shared"),
    [
        *(("llama", True), ("llama", False), ("gpt2", True), ("gemma2", False)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("gpt2", False),
                ("gemma2", True),
                *tuple((name, shared) for name in ("llama-tied", "qwen2") for shared in (True, False)),
            )
        ),
    ],
)
def test_batched_candidates_equal_one_at_a_time(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, architecture: str, shared: bool
) -> None:
    model, prompts = tiny(architecture), long_prompts() if shared else small_prompts().validation
    if not shared:
        monkeypatch.setattr("mechsafety.sweeps.candidates.common_prefix", lambda *_, **__: [])
    assert has_fast_path(model)
    directions = directions_of(model, positions=(-2, -1))
    options: dict[str, Any] = {"refusal_tokens": TOKENS, "batch_size": 7}
    fast = sweep(model, directions, prompts, **options)
    plain = sweep(model, directions, prompts, fast_path=False, **options)
    assert fast.to_frame().shape == (2 * (model.cfg.n_layers + 1), len(SCORE_COLUMNS))
    # Shares of the small gap of a random model would stretch the tolerance.
    shares = ["removed", "caused"]
    pd.testing.assert_frame_equal(
        fast.to_frame().drop(columns=shares), plain.to_frame().drop(columns=shares), rtol=0, atol=1e-4
    )
    for a, b in zip(fast.scores, plain.scores, strict=True):
        for name in ("bypass", "induce", "kl"):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-4, equal_nan=True)
    # The control: the candidates differ by far more than the tolerance.
    assert float(fast.to_frame()["bypass"].std()) > 1e-2
    sequences = tokenize_prompts(model, [p.text for p in prompts])
    assert shared_prefix(sequences) or not shared
    # Nothing is left behind: the same unedited logits as before.
    torch.testing.assert_close(
        all_last_logits(model, body_of(model), sequences, batch_size=4),
        all_last_logits(tiny(architecture), body_of(tiny(architecture)), sequences, batch_size=4),
    )


def test_batched_candidates_in_bfloat16_are_near_float32(tiny_kept: Callable[..., Any]) -> None:
    prompts = long_prompts()
    narrow, wide = tiny_kept("llama", dtype="bfloat16"), tiny_kept("llama")
    directions = directions_of(wide)
    a = sweep(narrow, directions, prompts, refusal_tokens=TOKENS).to_frame()
    b = sweep(wide, directions, prompts, refusal_tokens=TOKENS).to_frame()
    for column in ("bypass", "induce"):
        assert (a[column] - b[column]).abs().max() < 0.25 < b[column].abs().max()


def test_a_projection_at_the_sums_is_needed_only_where_blocks_do_not_add(
    tiny: Callable[..., Any],
) -> None:
    prompts = Validation(
        harmful=[[5, 6, 7]],
        harmless=[[5, 6, 8]],
        base_harmless=torch.zeros(1, 160),
        measure=TokenMeasure(tokens=replace(TOKENS, ids=(5,), texts=("a",), weight=(0.1,))),
        batch_size=2,
    )
    for architecture in ("llama", "gpt2", "gemma2"):
        model = tiny(architecture)
        inputs = [n for n in BatchedScorer(model, prompts).sites if n.endswith("resid_pre")]
        assert inputs == ["blocks.0.hook_resid_pre"]
        # The control: a block that scales what it adds up.
        twin = generation_twin(model)
        path = plain_module_path(model, "blocks.1.hook_resid_pre")
        assert twin is not None and path is not None  # noqa: PT018
        handle = twin.get_submodule(path[0]).register_forward_hook(lambda _m, _a, out: out * 1.5)
        inputs = [n for n in BatchedScorer(model, prompts).sites if n.endswith("resid_pre")]
        assert len(inputs) == model.cfg.n_layers
        handle.remove()


def _scorer(model: Any, prompts: PromptSet) -> BatchedScorer:
    sequences = tokenize_prompts(model, [p.text for p in prompts])
    validation = Validation(
        harmful=sequences,
        harmless=sequences,
        base_harmless=torch.zeros(len(sequences), 160),
        measure=TokenMeasure(tokens=TOKENS),
        batch_size=4,
    )
    return BatchedScorer(model, validation)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        RuntimeError("MPS backend out of memory"),
        MechsafetyError("in use"),
    ],
)
def test_what_is_no_fault_of_an_architecture_ends_the_trial_of_resuming(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Memory that ran out and hooks of another thread are raised; whatever else a block raises is an answer."""
    model, prompts = tiny_kept("llama"), small_prompts(10).validation
    scorer = _scorer(model, prompts)

    def fails(*_: Any, raised: Exception, **__: Any) -> None:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(candidates, "_pass_over", partial(fails, raised=error))
        with pytest.raises(type(error), match=str(error)):
            scorer._resumes(1)
    assert scorer._resumes(1)
    monkeypatch.setattr(candidates, "_pass_over", partial(fails, raised=AttributeError("no keys there")))
    assert not scorer._resumes(2)


def test_an_interrupted_sweep_goes_on_from_its_journal(
    tiny_kept: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(100).validation
    directions = directions_of(model)
    whole = sweep(model, directions, prompts, refusal_tokens=TOKENS)
    score, calls = BatchedScorer.score, []

    def twice(self: BatchedScorer, candidates: Any, *prompts: Any) -> Any:
        calls.append(len(candidates))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, candidates, *prompts)

    monkeypatch.setattr(BatchedScorer, "score", twice)
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sweep(model, directions, prompts, refusal_tokens=TOKENS, journal=Journal(path))
    with path.open("a") as stream:
        stream.write('{"key": "-1,4", "val')  # killed in the middle of a line
    resumed = sweep(model, directions, prompts, refusal_tokens=TOKENS, journal=Journal(path))
    assert sum(calls) == calls[1] + len(candidates_of(directions, range(5)))  # only the broken chunk twice
    pd.testing.assert_frame_equal(resumed.to_frame(), whole.to_frame())
    calls.clear()
    again = sweep(model, directions, prompts, refusal_tokens=TOKENS, journal=Journal(path))
    assert not calls
    pd.testing.assert_frame_equal(again.to_frame(), whole.to_frame())


def test_a_journal_is_of_these_directions_and_these_weights(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(10).validation
    directions = directions_of(model)

    def go_on(found: Directions) -> None:
        sweep(model, found, prompts, refusal_tokens=TOKENS, journal=Journal(tmp_path / "journal.jsonl"))

    go_on(directions)
    for changed in (
        {"vectors": directions.vectors.flip(0, 1)},
        {"covectors": directions.vectors * 2},
        {"gaps": directions.gaps + 1},
    ):
        with pytest.raises(MechsafetyError, match=r"made from something else.*directions"):
            go_on(replace(directions, **changed))
    parameter = next(model.original_model.parameters())
    with torch.inference_mode():
        before = parameter.clone()
        parameter.mul_(1.5)  # weights that were baked or pruned since the model was loaded
        with pytest.raises(MechsafetyError, match=r"made from something else.*model"):
            go_on(directions)
        parameter.copy_(before)
    go_on(directions)  # the control: as it was


def test_stability_counts_what_resamples_pick(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    swept = sweep(model, directions_of(model), small_prompts(12).validation, refusal_tokens=TOKENS)
    found = swept.stability(seed=0, resamples=50)
    assert found["share"].sum() == pytest.approx(1.0)
    assert found.equals(swept.stability(seed=0, resamples=50))


def test_scores_are_their_formulas() -> None:
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) * 3
    other = torch.randn(4, 30, generator=torch.Generator().manual_seed(1)) * 3
    for row in range(4):
        assert float(refusal_scores(logits, (3, 7))[row]) == pytest.approx(refusal_score(logits[row], (3, 7)))
        assert float(kl_divergence(logits, other)[row]) == pytest.approx(kl(logits[row], other[row]))
    assert float(kl_divergence(logits, logits).abs().max()) == 0.0
    certain = torch.zeros(1, 30)
    certain[0, 3] = 200.0
    assert torch.isfinite(refusal_scores(certain, (3,))).all()
    assert torch.isfinite(refusal_scores(certain, (4,))).all()


def test_separation_is_one_half_for_noise_and_one_for_a_gap() -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    v = torch.zeros(8)
    assert projection_auroc(x[:100], x[100:], v) != projection_auroc(x[:100], x[100:], v)
    v[2] = 1.0
    assert projection_auroc(x[:100], x[100:], v) == pytest.approx(0.5, abs=0.1)
    assert projection_auroc(x[:100] + 10 * v, x[100:], v) == 1.0
    assert projection_auroc(x[:100] + 10 * v, x[100:], -v) == 0.0


def test_refusal_tokens_are_those_that_harmful_prompts_make_likelier() -> None:
    harmful, harmless = torch.zeros(5, 20), torch.zeros(5, 20)
    harmful[:, 4] = 5.0
    harmful[:, 11] = 4.0
    harmless[:, 2] = 5.0
    found = derive_refusal_tokens(harmful, harmless, decode=str)
    assert found.ids == (4, 11)
    assert found.texts == ("4", "11")
    nothing = derive_refusal_tokens(harmless, harmless, decode=str)
    assert len(nothing.ids) == 1


def test_openings_are_counted_among_own_refusals() -> None:
    refusals = [[4, 1], [4, 2], [4], [7, 1], [9, 2], *[[4]] * 15]
    found = openings_of(refusals, decode=str)
    assert found is not None
    assert found.ids == (4,)
    assert found.weight == (0.9,)
    both = openings_of([[4], [7], [7]], decode=str)
    assert both is not None
    assert both.ids == (7, 4)
    assert openings_of([[4], [4], []], decode=str) is None


def test_named_refusal_tokens(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    found = named_refusal_tokens(model, ["sorry", "no"])
    assert model.tokenizer.convert_ids_to_tokens(list(found.ids)) == ["sorry", "no"]
    with pytest.raises(MechsafetyError, match="at least one token"):
        named_refusal_tokens(model, [" "])


def test_refusal_tokens_are_words_or_ids_one_or_several(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts(12).validation
    sorry, no = named_refusal_tokens(model, ["sorry", "no"]).ids
    for given in ("sorry", sorry, (sorry,), np.array([sorry]), (each for each in ["sorry"])):
        found = refusal_measure(model, prompts, refusal_tokens=given).refusal_tokens
        assert (found.ids, found.source) == ((sorry,), "user")
    assert named_refusal_tokens(model, ["sorry", no]).texts == ("sorry", "no")
    directions = directions_of(model)
    swept = ms.sweep(model, directions, prompts, layers=1, refusal_tokens="sorry")
    assert swept.refusal_tokens.ids == (sorry,)
    size = model.cfg.d_vocab
    for wrong, said in (
        (size, f"ids 0 to {size - 1}"),
        (-1, "token ids"),
        ([], "no refusal tokens"),
        (0.5, "number"),
    ):
        with pytest.raises(MechsafetyError, match=said):
            ms.sweep(model, directions, prompts, layers=1, refusal_tokens=wrong)


def test_prompts_treated_against_their_label_are_left_out_only_where_enough_remain(
    tiny_kept: Callable[..., Any],
) -> None:
    model = tiny_kept("llama")
    prompts = small_prompts(20).validation
    found = directions_of(model)
    swept = sweep(model, found, prompts, layers=[1])
    assert 8 <= swept.n_harmful < 20
    assert 8 <= swept.n_harmless < 20
    # What is left stands on its own side of the middle of the class means; where no prompt does, all are kept.
    assert swept.unedited.harmful.min() > swept.unedited.harmless.max()
    for threshold, kept in ((-1e3, (20, 20)), (1e3, (20, 20)), (0.0, None)):
        again = sweep(model, found, prompts, layers=[1], threshold=threshold)
        if kept is not None:
            assert (again.n_harmful, again.n_harmless) == kept
        elif again.n_harmful < 20:
            assert again.unedited.harmful.min() > 0


def test_zero_vectors_score_nan(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    found = directions_of(model)
    vectors = found.vectors.clone()
    vectors[0, 2] = 0
    swept = sweep(model, Directions(**{**vars(found), "vectors": vectors}), small_prompts().validation)
    row = swept.to_frame().set_index("layer").loc[2]
    assert row[["auroc", "bypass", "induce", "kl"]].isna().all()
    assert swept.to_frame().set_index("layer").loc[1].notna().all()


def test_every_post_instruction_position_is_scored(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    swept = sweep(model, directions_of(model, positions=(-2, -1)), small_prompts().validation, layers=[0, 3])
    assert swept.to_frame()[["position", "layer"]].to_numpy().tolist() == [[-2, 0], [-2, 3], [-1, 0], [-1, 3]]


def test_directions_of_other_weights_or_shapes_are_refused(tiny_kept: Callable[..., Any]) -> None:
    found = directions_of(tiny_kept("llama"))
    with pytest.raises(MechsafetyError, match="weights differ"):
        sweep(tiny_kept("llama", seed=1), found, small_prompts().validation)
    narrow = Directions(**{**vars(found), "vectors": found.vectors[..., :16]})
    with pytest.raises(MechsafetyError, match="do not fit"):
        sweep(tiny_kept("llama"), narrow, small_prompts().validation)
    with pytest.raises(MechsafetyError, match="of these 6 none is harmless"):
        sweep(tiny_kept("llama"), found, small_prompts().validation.harmful)
    with pytest.raises(MechsafetyError, match="no validation prompts"):
        sweep(tiny_kept("llama"), found, PromptSet(()))
    with pytest.raises(MechsafetyError, match="layers 5, 7 do not exist: this model's are 0 to 4"):
        sweep(tiny_kept("llama"), found, small_prompts().validation, layers=[1, 5, 7])
