"""Results: short to read, equal by their entries, drawn, and kept in files."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import MechsafetyError
from mechsafety.directions.activations import load_cache, residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.directions.files import read_directions
from mechsafety.edits.interventions import Ablate
from mechsafety.generation.completions import generate
from mechsafety.generation.kept_batches import GenerationInterrupted
from mechsafety.generation.next_tokens import log_probs, logits
from mechsafety.generation.token_projections import project_tokens
from mechsafety.judges.judging import judge
from mechsafety.models.chat import post_instruction_positions, tokenize_prompts
from mechsafety.prompts.rendered import render
from mechsafety.sweeps.layer_profile import profile_layers
from mechsafety.sweeps.sweep import sweep
from tests.prompt_sets import small_prompts

PROMPTS = small_prompts(6)


@pytest.fixture(scope="module")
def made(tiny_folder: Callable[..., Path]) -> Any:
    from mechsafety.models.loading import load_model

    return load_model(str(tiny_folder("llama")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def cache(made: Any) -> Any:
    return residual_stream(made, PROMPTS.fit, positions=(-2, -1))


@pytest.fixture(scope="module")
def found(cache: Any) -> Any:
    return find_directions(cache, resamples=3)


def test_everything_is_short_and_shows_itself(made: Any, cache: Any, found: Any) -> None:
    answers = generate(made, PROMPTS.report[:3], edit=Ablate(found.at(layer=2)), max_new_tokens=3, seed=0)
    profile = profile_layers(found, cache, selected=2, resamples=20)
    swept = sweep(made, found, PROMPTS.validation)
    shown: list[Any] = [
        PROMPTS,
        cache,
        found,
        found.at(layer=2),
        found.cosine(),
        cache.project(found),
        swept,
        profile,
    ]
    shown += [
        answers,
        answers.coverage,
        judge(answers, ["rules"]),
        render(made, "tell me"),
        Ablate(found.at(layer=2)),
    ]
    shown.append(project_tokens(made, answers[0], found.at(layer=2)))
    long = "word " * 5000
    shown += [answers[0], PROMPTS[0], replace(answers[0], text=long), replace(PROMPTS[0], text=long)]
    for one in shown:
        text = repr(one)
        assert len(text) < 500, text
        assert len(text.splitlines()) <= 3, text
        assert one._repr_html_()
    for one in shown:
        if hasattr(one, "to_frame"):
            assert len(one.to_frame()), type(one)


def test_results_are_equal_by_their_entries(cache: Any, found: Any) -> None:
    again = find_directions(cache, resamples=3)
    assert found == again
    assert found.at(layer=2) == again.at(layer=2)
    assert found.at(layer=2) != again.at(layer=3)
    assert replace(found, seed=1) != found
    other = replace(cache, activations=cache.activations + 1e-3)
    assert cache != other
    assert replace(cache) == cache
    assert cache != "a cache"
    holes = replace(cache, activations=torch.full_like(cache.activations, torch.nan))
    assert holes == replace(holes, activations=holes.activations.clone())


def test_cosines_between_layers_are_those_of_the_vectors(found: Any) -> None:
    matrix = found.cosine().to_frame()
    assert matrix.shape == (found.n_layers, found.n_layers)
    a, b = found.vectors[1, 1], found.vectors[1, 3]
    assert matrix.loc[1, 3] == pytest.approx(float(torch.cosine_similarity(a, b, dim=0)), abs=1e-6)
    assert matrix.loc[2, 2] == pytest.approx(1)
    across = found.cosine(found, position=-2, other_position=-1).to_frame()
    c = float(torch.cosine_similarity(found.vectors[0, 2], found.vectors[1, 3], dim=0))
    assert across.loc[2, 3] == pytest.approx(c, abs=1e-6)
    with pytest.raises(MechsafetyError, match="positions are -2, -1"):
        found.cosine(position=-3)
    narrow = replace(found, vectors=found.vectors[..., :8])
    with pytest.raises(MechsafetyError, match="differ in width"):
        found.cosine(narrow)
    assert len(found.plot().data) == 6
    assert found.cosine().plot(colours=["white", "black"]).data[0].zmax == 1


def test_a_cache_is_projected_layer_by_layer(cache: Any, found: Any) -> None:
    table = cache.project(found).to_frame()
    one = found.at(layer=3)
    expected = one.project(cache.activations[:, 1, 3])
    torch.testing.assert_close(torch.tensor(table[3].to_numpy()), expected, rtol=1e-5, atol=1e-5)
    assert list(table.index) == list(cache.ids)
    alone = cache.project(one).to_frame()
    torch.testing.assert_close(
        torch.tensor(alone[1].to_numpy()), one.project(cache.activations[:, 1, 1]), rtol=1e-5, atol=1e-5
    )
    assert cache.project(found).plot().data[0].type == "heatmap"
    with pytest.raises(MechsafetyError, match="find them on the same model"):
        cache.project(torch.ones(8))
    with pytest.raises(MechsafetyError, match="it holds -2, -1"):
        cache.project(found, position=-5)


def test_caches_and_directions_are_kept_under_the_users_mode(cache: Any, found: Any, tmp_path: Path) -> None:
    cache.save(tmp_path / "c.safetensors")
    found.save(tmp_path / "d.safetensors")
    (tmp_path / "plain").write_text("")
    assert load_cache(str(tmp_path / "c.safetensors")) == cache
    assert read_directions(str(tmp_path / "d.safetensors"))[found.model] == found
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
    with pytest.raises(MechsafetyError, match="does not exist"):
        load_cache(tmp_path / "none.safetensors")
    with pytest.raises(MechsafetyError, match="no cache"):
        load_cache(tmp_path / "d.safetensors")


def test_positions_have_names(made: Any) -> None:
    whole = residual_stream(made, PROMPTS.fit[:2], positions="post_instruction")
    assert whole.positions == post_instruction_positions(made)
    assert residual_stream(made, PROMPTS.fit[:2], positions="last").positions == (-1,)
    with pytest.raises(MechsafetyError, match="post_instruction"):
        residual_stream(made, PROMPTS.fit[:2], positions="first")
    table = render(made, PROMPTS.fit[0]).to_frame()
    marked = table[table["name"] != ""]
    assert tuple(marked["position"]) == whole.positions
    assert list(table["id"]) == tokenize_prompts(made, [PROMPTS.fit[0].text])[0]


def test_logits_are_those_of_the_model_and_under_the_edit(made: Any, found: Any) -> None:
    (ids,) = tokenize_prompts(made, [PROMPTS.fit[0].text])
    with torch.no_grad():
        plain = made(torch.tensor([ids]), return_type="logits")[0].float()
    here, before = logits(made, PROMPTS.fit[:2]), logits(made, PROMPTS.fit[:2], position=-3)
    torch.testing.assert_close(here[0], plain[-1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(before[0], plain[-3], rtol=1e-3, atol=1e-3)
    assert log_probs(made, PROMPTS.fit[:2]).exp().sum(-1).tolist() == pytest.approx([1, 1])
    assert not torch.allclose(here, logits(made, PROMPTS.fit[:2], edit=Ablate(found.at(layer=2))), atol=1e-3)
    with pytest.raises(MechsafetyError, match="lies before the shortest"):
        logits(made, PROMPTS.fit[:2], position=-500)


def test_tokens_are_projected_as_the_cache_is_and_along_the_answer(made: Any, cache: Any, found: Any) -> None:
    first = project_tokens(made, PROMPTS.fit[0], found)
    table = first.to_frame().query("position == -1").set_index("layer")["projection"]
    expected = cache.project(found).to_frame().iloc[0]
    assert list(table.dropna()) == pytest.approx(list(expected.dropna()), abs=1e-4)
    direction = found.at(layer=2)
    answer = generate(made, PROMPTS.fit[:1], max_new_tokens=4, seed=0)[0]
    along = project_tokens(made, answer, direction)
    assert along.layer == 2
    assert sum(p >= 0 for p in along.positions) == answer.n_tokens
    assert first.values[-1, 2] == pytest.approx(float(along.values[along.positions.index(-1), 2]), abs=1e-4)
    edited = project_tokens(made, answer, direction, edit=Ablate(direction))
    assert float(edited.values[:, 1:].abs().max()) < 1e-4
    assert float(along.values[:, 1:].abs().max()) > 1e-2
    assert len(along.plot([1, 2]).data) == 2
    with pytest.raises(MechsafetyError, match="do not fit a model"):
        project_tokens(made, "tell me", torch.ones(8))


def test_a_score_of_ones_own_is_swept(made: Any, found: Any) -> None:
    token = 20
    own = sweep(made, found.only(-1), PROMPTS.validation, layers=(1, 2), score=lambda x: x[:, token])
    row = own.to_frame().set_index("layer").loc[2]
    expected = logits(made, PROMPTS.validation.harmful, edit=Ablate(found.at(layer=2)))[:, token]
    assert row["n_harmful"] == len(expected)
    assert row["bypass"] == pytest.approx(float(expected.mean()), abs=1e-4)
    with pytest.raises(MechsafetyError, match="one number per prompt"):
        sweep(made, found.only(-1), PROMPTS.validation, layers=(1,), score=lambda x: x)


def test_answers_go_on_where_they_were_interrupted(made: Any, tmp_path: Path) -> None:
    prompts = PROMPTS.report
    options: dict[str, Any] = {"max_new_tokens": 3, "seed": 0, "batch_size": 2}
    whole = generate(made, prompts, **options)
    seen: list[int] = []

    def stop(batch: Any) -> None:
        seen.append(len(batch))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(GenerationInterrupted, match="4 of 12 answers") as caught:
        generate(made, prompts, **options, out=tmp_path / "kept", on_batch=stop)
    assert len(caught.value.completions) == 4
    made_now: list[int] = []
    again = generate(
        made, prompts, **options, out=tmp_path / "kept", on_batch=lambda b: made_now.append(len(b))
    )
    assert again == whole
    assert sum(made_now) == 8
    with pytest.raises(MechsafetyError, match="something else"):
        generate(made, prompts, **options | {"max_new_tokens": 4}, out=tmp_path / "kept")


def test_some_of_the_answers_are_answers(made: Any, found: Any) -> None:
    answers = generate(made, PROMPTS.report[:4], edit=Ablate(found.at(layer=2)), max_new_tokens=2)
    some = answers[1:3]
    assert type(some) is type(answers)
    assert [c.id for c in some] == [p.id for p in PROMPTS.report[1:3]]
    assert some.coverage == answers.coverage
    assert some[0] == answers[1]
    assert len(judge(answers[:2]).to_frame()) == len(judge((answers[0], answers[1])).to_frame()) == 2


def test_answers_stand_side_by_side(made: Any, found: Any) -> None:
    prompts = PROMPTS.report[:4]
    plain = generate(made, prompts, max_new_tokens=3, seed=0)
    edited = generate(made, prompts, edit=Ablate(found.at(layer=2)), max_new_tokens=3, seed=0)
    table = plain.compare(edited, judges=["rules"])
    assert list(table["response"]) == [c.text for c in plain]
    assert list(table["other"]) == [c.text for c in edited]
    verdicts = judge(edited, ["rules"]).to_frame().set_index("id")["verdict"]
    assert list(table["rules_other"]) == [verdicts[name] for name in table["id"]]
    with pytest.raises(MechsafetyError, match="the same prompts"):
        plain.compare(replace(edited, items=edited.items[:2]))
    receipt = edited.coverage.to_frame()
    assert set(receipt.columns) == {"hook", "fired", "positions"}
    assert (receipt["fired"] > 0).all()


def test_public_names_are_few_and_all_load() -> None:
    import types

    import mechsafety as ms

    spaces = {name for name in dir(ms) if isinstance(getattr(ms, name), types.ModuleType)}
    assert spaces == {"anatomy", "judges", "lab", "plots", "regions", "statistics"}
    assert len(set(dir(ms)) - spaces) <= 54
    for space in spaces:
        for name in dir(getattr(ms, space)):
            found = getattr(getattr(ms, space), name)
            assert not isinstance(found, types.ModuleType), name
    with pytest.raises(AttributeError, match="no attribute 'residuals'"):
        _ = ms.residuals  # type: ignore[attr-defined]
