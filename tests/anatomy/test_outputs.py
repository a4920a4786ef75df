"""What maps read at a model's own answers is what a plain loop reads, one prompt at a time and without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.anatomy.outputs import Answers, greedy_answers, map_inputs, with_completions
from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answered import Completion
from mechsafety.generation.completions import generate, stop_tokens
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.models.prefixes import shared_prefix
from mechsafety.prompts.prompt_set import Prompt
from mechsafety.regions.maps import linear_maps, running_body
from tests.prompt_sets import small_prompts
from tests.regions.test_maps import save_fused

ARCHITECTURES = ("llama", "gpt2", "neox")
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "neox": "gpt_neox.layers"}
NORMS = {"llama": "input_layernorm", "gpt2": "ln_1", "neox": "input_layernorm"}
DOWNS = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "neox": "mlp.dense_4h_to_h"}
SHARED = "tell me about the list of a garden for the river and "


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folders: dict[str, Path] = {}

    def loaded(architecture: str, dtype: str = "float32") -> Any:
        if architecture not in folders:
            folders[architecture] = save_fused(tmp_path_factory.mktemp(architecture), architecture)
        return load_model(str(folders[architecture]), dtype=dtype, device="cpu")

    return loaded


def prompts(*, shared: bool = False) -> list[Prompt]:
    found = list(small_prompts(3).report)
    return [replace(p, text=SHARED + p.text) for p in found] if shared else found


def uneven(model: Any, asked: Sequence[Prompt]) -> Answers:
    """Answers of 1 to 6 tokens, some of them ended."""
    done = [
        replace(c, tokens=c.tokens[: i % 6], finish="stop" if i % 2 == 0 else "length")
        for i, c in enumerate(generate(model, asked, max_new_tokens=6, seed=0))
    ]
    return with_completions(model, asked, done)


def keep(seen: list[torch.Tensor], _module: Any, args: tuple[torch.Tensor]) -> None:
    seen.append(args[0][0].clone())


def one_by_one(model: Any, architecture: str, answers: Answers, *, first_only: bool, shift: int = 0) -> Any:
    """{(layer, kind): [prompt, d_in]}: q's input from hidden states, down's by a hook on the module of that name."""
    body = running_body(model)
    blocks = body.get_submodule(BLOCKS[architecture])
    found: dict[tuple[int, str], list[torch.Tensor]] = {}
    for prompt, answer in answers.encoded:
        seen: list[torch.Tensor] = []  # in the order in which the blocks run
        handles = [
            block.get_submodule(DOWNS[architecture]).register_forward_pre_hook(partial(keep, seen))
            for block in blocks
        ]
        with torch.no_grad():
            out = body(torch.tensor([[*prompt, *answer]]), output_hidden_states=True, use_cache=False)
        for handle in handles:
            handle.remove()
        start = len(prompt) - 1 + shift
        span = slice(start, start + (1 if first_only else len(answer)))
        for layer, block in enumerate(blocks):
            with torch.no_grad():
                q = getattr(block, NORMS[architecture])(out.hidden_states[layer])[0]
            for kind, x in (("q", q), ("down", seen[layer])):
                found.setdefault((layer, kind), []).append(x[span].float().mean(0))
    return {key: torch.stack(rows) for key, rows in found.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("positions", ["output", "last_prompt"])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_a_plain_loop(load: Any, architecture: str, positions: Any, *, shared: bool) -> None:
    model = load(architecture)
    answers = uneven(model, prompts(shared=shared))
    assert bool(shared_prefix([p for p, _ in answers.encoded])) == shared
    assert {len(a) for _, a in answers.encoded} >= {1, 3, 5}
    maps = linear_maps(model)
    expected = one_by_one(model, architecture, answers, first_only=positions == "last_prompt")
    late = one_by_one(model, architecture, answers, first_only=positions == "last_prompt", shift=-1)
    for batch_size in (1, 4):  # alone, and padded
        found = map_inputs(model, answers, maps, positions=positions, batch_size=batch_size)
        assert set(found) == {m.site for m in maps}
        for m in maps:
            if m.kind not in ("q", "down"):
                continue
            got, wanted = found[m.site], expected[m.layer, m.kind]
            assert got.shape == (len(answers.prompts), m.d_in)
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
            # The neighbouring positions would not do.
            assert (got - late[m.layer, m.kind]).norm() > 0.05 * wanted.norm()


@pytest.mark.parametrize("architecture", ARCHITECTURES[:2])
def test_half_precision_is_averaged_in_single(load: Any, architecture: str) -> None:
    model = load(architecture, "bfloat16")
    answers = uneven(model, prompts())
    maps = [m for m in linear_maps(model) if m.kind == "down"]
    expected = one_by_one(model, architecture, answers, first_only=False)
    found = map_inputs(model, answers, maps, positions="output", batch_size=4)
    alone = map_inputs(model, answers, maps, positions="output", batch_size=1)
    for m in maps:
        wanted = expected[m.layer, "down"]
        for got in (found[m.site], alone[m.site]):
            assert got.dtype == torch.float32
            assert (got - wanted).norm() < 0.03 * wanted.norm()
        # A mean of bfloat16 values that was kept in bfloat16 would have no more digits than they do.
        assert not torch.equal(alone[m.site], alone[m.site].bfloat16().float())


def test_an_ended_answer_closes_with_the_end_token(load: Any) -> None:
    model = load("llama")
    asked = prompts()
    free = generate(model, asked, max_new_tokens=4, seed=0)
    ended = [replace(c, tokens=(), finish="stop") for c in free]
    end = min(stop_tokens(model))
    assert [a for _, a in with_completions(model, asked, ended).encoded] == [[end]] * len(asked)
    cut = with_completions(model, asked, list(free))
    assert [tuple(a) for _, a in cut.encoded] == [c.tokens for c in free]
    assert all(c.finish == "length" for c in cut.completions)
    assert [p for p, _ in cut.encoded] == tokenize_prompts(model, [p.text for p in asked])
    # An answer that ends by itself is read where its end is predicted too: one position more than it has tokens.
    maps = linear_maps(model)[-1:]
    both = [replace(c, finish="stop") for c in free]
    longer = map_inputs(model, with_completions(model, asked, both), maps, positions="output")
    expected = one_by_one(model, "llama", with_completions(model, asked, both), first_only=False)
    torch.testing.assert_close(longer[maps[0].site], expected[maps[0].layer, "down"], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        longer[maps[0].site], map_inputs(model, cut, maps, positions="output")[maps[0].site]
    )


def test_own_answers_are_greedy_ones_and_what_stops_is_recorded(load: Any) -> None:
    model = load("llama")
    asked = prompts()
    answers = greedy_answers(model, asked, max_new_tokens=5, seed=3, batch_size=2)
    free = generate(model, asked, max_new_tokens=5, seed=0)
    assert [c.tokens for c in answers.completions] == [c.tokens for c in free]
    # Let the second token of the first answer end a turn.
    stop = free[0].tokens[1]
    model.original_model.generation_config.eos_token_id = stop
    assert stop in stop_tokens(model)
    again = greedy_answers(model, asked, max_new_tokens=5, seed=3)
    assert again.completions[0].finish == "stop"
    assert again.encoded[0][1] == [free[0].tokens[0], min(stop_tokens(model))]


def test_completions_in_any_order_and_not_of_other_prompts(load: Any) -> None:
    model = load("llama")
    asked = prompts()
    done = list(generate(model, asked, max_new_tokens=3, seed=0))
    assert with_completions(model, asked, done[::-1]) == with_completions(model, asked, done)
    with pytest.raises(MechsafetyError, match=rf"1 prompts have no completion, '{asked[0].id}'"):
        with_completions(model, asked, done[1:])
    for other in (replace(done[0], prompt="another"), replace(done[0], n_prompt_tokens=99)):
        with pytest.raises(MechsafetyError, match="same chat template"):
            with_completions(model, asked, [other, *done[1:]])
    with pytest.raises(MechsafetyError, match="no token"):
        with_completions(model, asked, [replace(done[0], tokens=()), *done[1:]])
    with pytest.raises(MechsafetyError, match="no prompts"):
        Answers(prompts=(), completions=(), encoded=())
    whole = with_completions(model, asked, done)
    with pytest.raises(MechsafetyError, match="in the prompts' order"):
        replace(whole, completions=whole.completions[::-1])


def test_maps_that_cannot_be_read(load: Any) -> None:
    model = load("llama")
    answers = greedy_answers(model, prompts(), max_new_tokens=2, seed=0)
    maps = linear_maps(model)
    with pytest.raises(MechsafetyError, match="no linear maps"):
        map_inputs(model, answers, [], positions="output")
    with pytest.raises(MechsafetyError, match=r"blocks\.0\.q\.in was not read in a pass"):
        map_inputs(model, answers, linear_maps(load("llama"))[:1], positions="output")
    with pytest.raises(MechsafetyError, match="an expert"):
        map_inputs(model, answers, [replace(maps[0], d_in=16)], positions="output")
    # Whatever happened, no hook stays behind.
    assert not any(m.module._forward_pre_hooks for m in maps)


def test_damaged_activations_are_named(load: Any) -> None:
    model = load("llama")
    asked = [replace(p, text=p.text.replace("gate", "lock")) for p in prompts()]
    asked[2] = replace(asked[2], text=asked[2].text + " gate")
    answers = with_completions(model, asked, [_answer(model, p) for p in asked])
    maps = linear_maps(model)
    assert all(torch.isfinite(x).all() for x in map_inputs(model, answers, maps, positions="output").values())
    (gate,) = model.tokenizer("gate", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        running_body(model).get_input_embeddings().weight[gate] = torch.nan
    # The word is no output position itself: attention is the first to read it there.
    with pytest.raises(MechsafetyError, match=rf"llama.*: .* blocks\.0\.o for prompt '{asked[2].id}' is NaN"):
        map_inputs(model, answers, maps, positions="output")


def _answer(model: Any, prompt: Prompt) -> Completion:
    (ids,) = tokenize_prompts(model, [prompt.text])
    return Completion(
        id=prompt.id,
        prompt=prompt.text,
        label=prompt.label,
        category=prompt.category,
        text="bread",
        tokens=(7, 8),
        n_prompt_tokens=len(ids),
        finish="length",
    )
