"""Scores by written answers are those of a plain loop, and the measure that is taken is the one that tells more."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import Directions, find_directions
from mechsafety.edits.interventions import Ablate, Add, Edit, edited
from mechsafety.generation.bodies import body_under
from mechsafety.models.chat import tokenize_piece, tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.models.prefixes import all_last_logits
from mechsafety.runs.journal import Journal
from mechsafety.sweeps import measures
from mechsafety.sweeps.candidates import BatchedScorer, Validation, candidates_of, score_plain
from mechsafety.sweeps.measures import (
    AnswerMeasure,
    FirstPass,
    Measured,
    TokenMeasure,
    answer_measure,
    answer_tokens,
    refusal_measure,
    tells,
)
from mechsafety.sweeps.refusal_scores import OwnRefusals, RefusalTokens
from mechsafety.sweeps.sweep import sweep
from tests.architectures import KINDS, UNPADDABLE, save_architecture
from tests.prompt_sets import small_prompts
from tests.sweeps.test_sweep import TOKENS, long_prompts

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(0))
EDITS: list[Edit | None] = [None, Ablate(VECTOR), Add(VECTOR, layer=1, coefficient=2.0)]
MEASURE = AnswerMeasure(refusals=((14, 15, 22), (31,), (14, 18, 9, 40)), openings=((8, 9), (33, 5, 6, 7)))


def plain_score(model: Any, prompt: list[int], edit: Edit | None = None) -> float:
    """log of summed probabilities of refusals over those of openings: one whole unpadded pass for each answer."""

    def p(answer: tuple[int, ...]) -> float:
        on = edited(model, edit, prompt_length=len(prompt)) if edit is not None else nullcontext()
        with torch.inference_mode(), on:
            ids = torch.tensor([[*prompt, *answer]])
            logits = model.original_model(input_ids=ids, use_cache=False).logits[0].double()
        found = torch.softmax(logits, -1)
        return math.prod(float(found[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))

    return math.log(sum(map(p, MEASURE.refusals))) - math.log(sum(map(p, MEASURE.openings)))


def tokens_of(model: Any, n: int = 7) -> list[list[int]]:
    texts = [p.text for p in small_prompts(n).validation.harmful]
    assert len({len(t.split()) for t in texts}) > 1  # padded in a batch
    return tokenize_prompts(model, texts)


@pytest.mark.parametrize(
    ("architecture", "edit"),
    [
        *(("llama", edit) for edit in EDITS),
        ("gpt2", EDITS[1]),
        ("gemma2", EDITS[2]),
        *(pytest.param("gpt2", edit, marks=pytest.mark.slow) for edit in (EDITS[0], EDITS[2])),
        *(pytest.param("gemma2", edit, marks=pytest.mark.slow) for edit in EDITS[:2]),
    ],
)
def test_a_score_by_answers_is_that_of_a_plain_loop(
    tiny_kept: Callable[..., Any], architecture: str, edit: Edit | None
) -> None:
    model = tiny_kept(architecture)
    prompts = tokens_of(model)
    expected = torch.tensor([plain_score(model, p, edit) for p in prompts], dtype=torch.float64)
    for batch_size in (1, 3, 64):
        got = MEASURE.measure(model, prompts, edit=edit, batch_size=batch_size)
        assert got.tokens is None
        torch.testing.assert_close(got.scores, expected, rtol=0, atol=2e-4)
    assert expected.std() > 0.01
    if edit is not None:  # the control
        unedited = torch.tensor([plain_score(model, p) for p in prompts], dtype=torch.float64)
        assert (expected - unedited).abs().max() > 0.05


@pytest.mark.parametrize(
    "name", [n if n in ("mamba", "qwen2-moe") else pytest.param(n, marks=pytest.mark.slow) for n in KINDS]
)
def test_it_is_on_models_of_every_kind(tmp_path: Path, name: str) -> None:
    model: Any = load_model(str(save_architecture(tmp_path, name)), dtype="float32", device="cpu")
    prompts = tokens_of(model, 3)
    got = MEASURE.measure(model, prompts, batch_size=1 if name in UNPADDABLE else 8).scores
    expected = torch.tensor([plain_score(model, p) for p in prompts], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-4)


def test_bfloat16_is_near(tiny_kept: Callable[..., Any]) -> None:
    narrow, wide = tiny_kept("llama", dtype="bfloat16"), tiny_kept("llama")
    prompts = tokens_of(wide)
    a, b = (MEASURE.measure(m, prompts, batch_size=8).scores for m in (narrow, wide))
    assert (a - b).abs().max() < 0.35 < (b.max() - b.min())


# -- the sweep by answers -----------------------------------------------------------------------------


def found_on(model: Any) -> Directions:
    return find_directions(residual_stream(model, small_prompts().fit), resamples=1)


@pytest.fixture
def by_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens tell nothing, and written answers something."""
    monkeypatch.setattr(measures, "answer_measure", lambda *_: MEASURE)
    told = iter(range(10_000))
    real = measures.tells

    def rising(*scores: Any) -> Any:
        return replace(real(*scores), auroc=0.3 + 0.1 * (next(told) % 2))

    monkeypatch.setattr(measures, "tells", rising)


@pytest.mark.usefixtures("by_answers")
def test_a_sweep_by_answers_is_that_of_a_plain_loop(tiny_kept: Callable[..., Any]) -> None:
    model, prompts = tiny_kept("llama"), small_prompts().validation
    directions = found_on(model)
    swept = sweep(model, directions, prompts, layers=[1, 3, 4])
    assert swept.measure.taken == MEASURE
    assert swept.token_scores is None
    assert swept.token_stability() is None
    a, b = (tokenize_prompts(model, [p.text for p in part]) for part in (prompts.harmful, prompts.harmless))
    assert swept.base_harmful == pytest.approx(sum(plain_score(model, p) for p in a) / len(a), abs=1e-4)
    for row in swept.to_frame().itertuples():
        direction, steering = (
            directions.at(layer=row.layer, position=-1),
            directions.steering(layer=row.layer, position=-1),
        )
        expected = [plain_score(model, p, Ablate(direction)) for p in a]
        assert row.bypass == pytest.approx(sum(expected) / len(a), abs=1e-4)
        if row.layer == model.cfg.n_layers:
            assert row.induce != row.induce
            continue
        expected = [plain_score(model, p, Add(steering, layer=row.layer)) for p in b]
        assert row.induce == pytest.approx(sum(expected) / len(b), abs=1e-4)
    # KL is of the first token, whatever the scores are about.
    tokens = refusal_measure(model, prompts, written_answers=False)
    by_tokens = sweep(model, directions, prompts, layers=[1, 3, 4], measure=tokens)
    assert by_tokens.to_frame()["kl"].tolist() == pytest.approx(swept.to_frame()["kl"].tolist(), abs=1e-5)
    assert by_tokens.to_frame()["bypass"].tolist() != pytest.approx(
        swept.to_frame()["bypass"].tolist(), abs=1e-2
    )


@pytest.mark.usefixtures("by_answers")
def test_the_measure_is_part_of_what_a_journal_was_made_from(
    tiny_kept: Callable[..., Any], tmp_path: Path
) -> None:
    model, prompts = tiny_kept("llama"), small_prompts().validation
    directions, path = found_on(model), tmp_path / "journal.jsonl"
    first = sweep(model, directions, prompts, layers=[1, 2], journal=Journal(path))
    again = sweep(model, directions, prompts, layers=[1, 2], journal=Journal(path))
    assert again.to_frame().equals(first.to_frame())
    tokens = refusal_measure(model, prompts, written_answers=False)
    with pytest.raises(MechsafetyError, match=r"made from something else.*measure"):
        sweep(model, directions, prompts, layers=[1, 2], journal=Journal(path), measure=tokens)
    with pytest.raises(MechsafetyError, match="on other prompts"):
        sweep(model, directions, small_prompts(7).validation, measure=tokens)


BATCHED = (
    *(("llama", True, "answers"), ("llama", False, "tokens")),
    *(("gpt2", False, "answers"), ("gemma2", True, "tokens")),
)
"""Architecture, prefix or none, and what is measured: what runs each time."""


@pytest.mark.parametrize(
    ("architecture", "shared", "measured"),
    [
        pytest.param(*case, marks=() if case in BATCHED else pytest.mark.slow)
        for case in product(("llama", "gpt2", "gemma2", "qwen2"), (True, False), ("answers", "tokens"))
    ],
)
def test_batched_candidates_equal_one_at_a_time(
    tiny_kept: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    shared: bool,
    measured: str,
) -> None:
    measure = MEASURE if measured == "answers" else TokenMeasure(tokens=TOKENS)
    model, prompts = tiny_kept(architecture), long_prompts() if shared else small_prompts().validation
    if not shared:
        monkeypatch.setattr("mechsafety.sweeps.candidates.common_prefix", lambda *_, **__: [])
    found = find_directions(residual_stream(model, small_prompts().fit, positions=(-2, -1)), resamples=1)
    a, b = (tokenize_prompts(model, [p.text for p in part]) for part in (prompts.harmful, prompts.harmless))
    with body_under(model, None) as body:
        base = all_last_logits(model, body, b, batch_size=8)
    validation = Validation(harmful=a, harmless=b, base_harmless=base, measure=measure, batch_size=7)
    candidates = list(candidates_of(found, [1, 3, 4]).values())
    fast = BatchedScorer(model, validation)
    assert bool(fast.prefix) == shared
    # A round of a race may ask for one class alone.
    for some in (([0, 3, 5], [1, 2]), (None, None), ([], [4]), ([2], [])):
        for one, got in zip(candidates, fast.score(candidates, *some), strict=True):
            want = score_plain(model, validation, one, *some)
            for name in ("bypass", "induce", "kl"):
                torch.testing.assert_close(
                    getattr(got, name), getattr(want, name), rtol=0, atol=2e-4, equal_nan=True
                )
    bypass = torch.stack([s.bypass.mean() for s in fast.score(candidates)])
    assert bypass.std() > 0.01  # the control: the candidates differ by far more than the tolerance


# -- the choice ---------------------------------------------------------------------------------------

N = 12
NAMED = RefusalTokens(ids=(5,), texts=("a",), weight=(float("nan"),), source="user")
PROMPTS = small_prompts(N).validation
IDS = [p.id for p in PROMPTS.harmful]
APART = torch.linspace(-1, 1, N, dtype=torch.float64)


def own(refused: int, opening: int = 5) -> OwnRefusals:
    return OwnRefusals(
        asked=tuple(IDS),
        refused=tuple(IDS[:refused]),
        openings=tuple((opening, 7, 8) for _ in range(refused)),
    )


def logits_with(p: torch.Tensor) -> torch.Tensor:
    """Logits in which token 5 has probability ``p`` and token 9 has nearly all the rest."""
    logits = torch.full((len(p), 20), -30.0)
    logits[:, 5], logits[:, 9] = p.log(), (1 - p).log()
    return logits


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    model: Any,
    harmful: torch.Tensor,
    harmless: torch.Tensor,
    answers: tuple[torch.Tensor, torch.Tensor],
    **options: Any,
) -> Any:
    """The choice by made-up probabilities of the token and made-up scores of the answers."""
    made = iter(answers)
    monkeypatch.setattr(AnswerMeasure, "measure", lambda *_, **__: Measured(scores=next(made)))
    monkeypatch.setattr(measures, "answer_measure", lambda *_: MEASURE)
    passes = iter(FirstPass(sequences=[[5, 6]] * N, logits=logits_with(p)) for p in (harmful, harmless))
    monkeypatch.setattr(FirstPass, "of", lambda *_, **__: next(passes))
    return refusal_measure(model, PROMPTS, **options)


SEPARATE = (APART + 5, APART)
ALIKE = (APART, APART)


def test_tokens_that_tell_are_kept(tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = torch.full((N,), 0.8), torch.full((N,), 0.1)
    found = chosen(monkeypatch, tiny_kept(), p, q, SEPARATE, refusals=own(N))
    assert isinstance(found.taken, TokenMeasure)
    assert found.tokens.auroc == 1.0
    assert found.answers is None  # what is not needed is not scored
    assert (found.tokens.harmful_above, found.tokens.harmless_below, found.tokens.n_refused) == (1.0, 1.0, N)


@pytest.mark.parametrize("answers", [SEPARATE, ALIKE], ids=["separate", "alike"])
def test_tokens_that_tell_too_little_make_way_for_answers_that_tell_more(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, answers: Any
) -> None:
    model = tiny_kept()
    flat = torch.linspace(0.2, 0.4, N)
    mixed = torch.cat([flat[::2], flat[1::2]])
    cases: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = [
        (flat, mixed, {"refusals": own(N)}),  # the token begins answers of both kinds
        (flat * 0.01, mixed * 0.01, {}),  # hardly any weight
        (flat, mixed, {"refusals": own(2)}),  # too few refusals to learn from
    ]
    for p, q, options in cases:
        found = chosen(monkeypatch, model, p, q, answers, **options)
        assert isinstance(found.taken, AnswerMeasure) == (answers is SEPARATE)
        assert found.answers is not None
        # What is named is kept, whatever it tells, and so is what must not be replaced.
        for kept in ({"refusal_tokens": NAMED}, {"written_answers": False}):
            found = chosen(monkeypatch, model, p, q, answers, **options, **kept)
            assert isinstance(found.taken, TokenMeasure)


def test_few_refusals_whose_tokens_tell_as_much_keep_them(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    p, q = torch.full((N,), 0.8), torch.full((N,), 0.1)
    found = chosen(monkeypatch, tiny_kept(), p, q, SEPARATE, refusals=own(2))
    assert isinstance(found.taken, TokenMeasure)
    assert found.refusal_tokens.source == "logits"


def test_refused_prompts_are_held_against_harmless_ones_where_there_are_eight(
    tiny_kept: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A model that refuses the first prompts alone: the token tells that, not which prompts are harmful.
    for n, auroc in ((8, 1.0), (7, None)):
        p = torch.tensor([0.8] * n + [0.1] * (N - n))
        found = chosen(monkeypatch, tiny_kept(), p, torch.full((N,), 0.1), ALIKE, refusals=own(n))
        assert found.tokens.n_refused == (n if n >= 8 else None)
        assert (found.tokens.auroc == auroc) == (n >= 8)


def test_a_constant_or_a_factor_changes_nothing_that_scores_tell() -> None:
    a, b = torch.randn(9, dtype=torch.float64) + 1, torch.randn(11, dtype=torch.float64)
    refused = torch.arange(9) < 8
    assert tells(a, b, refused) == tells(a + 7, b + 7, refused) == tells(a * 3, b * 3, refused)
    assert tells(a, b, refused) != tells(a + 3, b, refused)


# -- what is written ----------------------------------------------------------------------------------


def test_no_written_answer_begins_with_another(tiny_kept: Callable[..., Any]) -> None:
    model = tiny_kept("llama")
    own = OwnRefusals(
        asked=("a", "b", "c", "d"),
        refused=("a", "b", "c", "d"),
        openings=((40, 41, 42), (40, 41, 42), (14, 15, 16), (14, 15, 16)),
    )
    found, without = answer_measure(model, own), answer_measure(model)
    assert found is not None
    assert without is not None
    assert set(found.refusals) == {*without.refusals, (40, 41, 42), (14, 15, 16)}
    everything = [*found.refusals, *found.openings]
    assert len(set(everything)) == len(everything)
    for one in everything:
        assert not any(one != other and one[: len(other)] == other for other in everything)
    # One of a kind is chance: it does not join.
    single = answer_measure(model, replace(own, openings=(*own.openings[:3], (14, 15, 17))))
    assert single is not None
    assert set(single.refusals) == {*without.refusals, (40, 41, 42)}


def test_answers_are_read_as_behind_the_template(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    assert answer_tokens(model, "sorry no") == tokenize_piece(model, "sorry no")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}answer {% endif %}"
    # What the template writes before an answer that exists is not what it asks for one with.
    assert answer_tokens(model, "sorry no") == tokenize_piece(model, "sorry no")
    model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}answer yes {% endif %}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}answer {% endif %}"
    )
    assert answer_tokens(model, "sorry no") == tokenize_piece(model, "yes sorry no")
