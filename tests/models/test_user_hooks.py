"""The user's own hooks on a bridge are felt by every part: the plain twin, which has none, is then left aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.directions.activations import residual_stream
from mechsafety.directions.direction import find_directions
from mechsafety.edits.interventions import Ablate, edited
from mechsafety.generation.completions import generate
from mechsafety.generation.scoring import answer_nll
from mechsafety.models import loading as models
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.hooking import plain_twin_at
from mechsafety.models.loading import body_of, generation_twin
from mechsafety.models.prefixes import all_last_logits
from mechsafety.sweeps.refusal_scores import RefusalTokens
from mechsafety.sweeps.sweep import sweep
from tests.prompt_sets import small_prompts

PROMPTS = small_prompts(4)
VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
OTHER = torch.randn(32, generator=torch.Generator().manual_seed(4))
REFUSALS = RefusalTokens(ids=(20, 30), texts=("a", "b"), weight=(1.0, 1.0), source="user")


def push(x: Tensor, hook: Any) -> Tensor:
    return x + 3 * VECTOR


@contextmanager
def added(model: Any, name: str) -> Iterator[None]:
    model.add_hook(name, push)
    try:
        yield
    finally:
        model.reset_hooks()


@contextmanager
def within(model: Any, name: str) -> Iterator[None]:
    with model.hooks(fwd_hooks=[(name, push)]):
        yield


def caching(model: Any) -> Tensor:
    return residual_stream(model, PROMPTS.fit, positions=(-1, -2), batch_size=5).activations


def sweeping(model: Any) -> Tensor:
    directions = find_directions(residual_stream(model, PROMPTS.fit), seed=0)
    table = sweep(model, directions, PROMPTS.validation, refusal_tokens=REFUSALS).to_frame()
    return torch.tensor(table[["norm", "auroc", "bypass", "induce", "kl"]].to_numpy()).nan_to_num()


def generating(model: Any) -> Tensor:
    done = generate(model, PROMPTS.report, edit=Ablate(OTHER), max_new_tokens=8, seed=0, batch_size=3)
    return torch.tensor([[*c.tokens, *([-1] * (8 - c.n_tokens))] for c in done])


def logits(model: Any) -> Tensor:
    sequences = tokenize_prompts(model, [p.text for p in PROMPTS.report])
    return all_last_logits(model, plain_twin_at(model) or body_of(model), sequences, batch_size=5)


def scoring(model: Any) -> Tensor:
    contexts = tokenize_prompts(model, [p.text for p in PROMPTS.report])
    scores = answer_nll(model, contexts, [[7, 8, 9]] * len(contexts), edit=Ablate(OTHER))
    return torch.tensor([s for s in scores if s is not None])


@pytest.mark.parametrize(
    ("part", "hooks", "name"),
    [
        *((part, added, "blocks.1.hook_resid_pre") for part in (caching, sweeping, logits, scoring)),
        *((part, within, "blocks.2.hook_attn_out") for part in (caching, generating, logits, scoring)),
        *(
            pytest.param(part, *case, marks=pytest.mark.slow)
            for part, case in (
                (sweeping, (within, "blocks.2.hook_attn_out")),
                (generating, (added, "blocks.1.hook_resid_pre")),
                *product(
                    (caching, sweeping, generating, logits, scoring),
                    ((within, "blocks.1.hook_resid_pre"), (added, "blocks.2.hook_attn_out")),
                ),
            )
        ),
    ],
)
def test_user_hooks_are_felt(
    tiny: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    part: Callable[[Any], Tensor],
    hooks: Callable[..., Any],
    name: str,
) -> None:
    model, alone = tiny("llama"), tiny("llama")
    del alone.__dict__["_mechsafety_twin"]
    untouched = part(model)
    with hooks(model, name), hooks(alone, name):
        felt, expected = part(model), part(alone)
        # The control: a twin that is used all the same feels nothing.
        monkeypatch.setattr(models, "_is_hooked", lambda _: False)
        unfelt = part(model)
        monkeypatch.undo()
    torch.testing.assert_close(felt, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unfelt, untouched, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(felt, unfelt, rtol=1e-2, atol=1e-2)
    # Once the hooks are gone so is their effect, and the twin is back.
    torch.testing.assert_close(part(model), untouched, rtol=1e-4, atol=1e-4)
    assert generation_twin(model) is not None


def test_an_edit_on_the_bridge_is_felt_by_what_runs_inside_it(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    before = caching(model)
    with edited(model, Ablate(VECTOR)):
        assert generation_twin(model) is None
        inside = caching(model)
    unit = VECTOR / VECTOR.norm()
    assert float((inside[:, :, 1:4] @ unit).abs().max()) < 1e-4 < 0.05 < float((before @ unit).abs().max())
    assert torch.equal(caching(model), before)


def hooked_block(model: Any) -> None:
    model.blocks[1].register_forward_hook(
        lambda _m, _a, out: (out[0] + 3 * VECTOR, *out[1:]) if isinstance(out, tuple) else out + 3 * VECTOR
    )


def hooked_input(model: Any) -> None:
    def before(_m: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] + 3 * VECTOR, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + 3 * VECTOR}

    model.blocks[2].register_forward_pre_hook(before, with_kwargs=True)


def replaced_parameter(model: Any) -> None:
    map_ = model.blocks[1].mlp.out.original_component
    map_.weight = torch.nn.Parameter(map_.weight.flip(0), requires_grad=False)


def added_to_a_map(model: Any) -> None:
    """As an adapter does it: the map is wrapped, and more is added to what it gives."""
    owner = model.blocks[1].mlp.out

    class Wrapped(torch.nn.Module):
        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base_layer = base
            self.more = torch.nn.Parameter(3 * VECTOR, requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.more

    owner._modules["_original_component"] = Wrapped(owner.original_component)


def replaced_forward(model: Any) -> None:
    map_ = model.blocks[1].mlp.out.original_component
    plain = map_.forward
    map_.forward = lambda x: plain(x) + 3 * VECTOR


ALTERATIONS = (hooked_block, hooked_input, replaced_parameter, added_to_a_map, replaced_forward)


@pytest.mark.parametrize(
    ("alter", "part"),
    [
        pytest.param(alter, part, marks=() if part is logits or alter is hooked_block else pytest.mark.slow)
        for alter in ALTERATIONS
        for part in (caching, generating, logits, scoring)
    ],
)
def test_what_the_user_changes_in_the_bridges_modules_is_felt(
    tiny: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    part: Callable[[Any], Tensor],
    alter: Callable[[Any], None],
) -> None:
    model, alone = tiny("llama"), tiny("llama")
    untouched = part(model)
    assert generation_twin(model) is not None  # what ran so far altered nothing
    del alone.__dict__["_mechsafety_twin"]
    for one in (model, alone):
        alter(one)
    felt, expected = part(model), part(alone)
    monkeypatch.setattr(models, "_is_altered", lambda _: False)
    unfelt = part(model)
    torch.testing.assert_close(felt, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(unfelt, untouched, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(felt, unfelt, rtol=1e-2, atol=1e-2)


def test_moving_and_casting_keep_the_twin(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    model.run_with_cache(torch.tensor([[5, 6, 7]]))
    model.original_model(input_ids=torch.tensor([[5, 6, 7]]), output_hidden_states=True)
    model.half().float().train().eval()
    assert generation_twin(model) is not None


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_processed_bridge_runs_its_processed_weights(tiny: Callable[..., Any], architecture: str) -> None:
    model = tiny(architecture)
    raw = caching(model)
    model.enable_compatibility_mode(disable_warnings=True)
    assert generation_twin(model) is None
    tokens = tokenize_prompts(model, [p.text for p in PROMPTS.fit])
    got = caching(model)
    expected = torch.stack(
        [model.run_with_cache(torch.tensor([s]))[1]["blocks.1.hook_resid_pre"][0, -1] for s in tokens]
    )
    torch.testing.assert_close(got[:, 0, 1], expected, rtol=1e-4, atol=1e-4)
    if architecture == "gpt2":  # LayerNorm: what the weights write is centred
        assert (got - raw).abs().max() > 0.1
    # Under an edit the processed model's own generation is what is reported.
    sequences = tokenize_prompts(model, [p.text for p in PROMPTS.report])
    for row, tokens in zip(generating(model), sequences, strict=True):
        with edited(model, Ablate(OTHER), prompt_length=len(tokens)):
            ids = model.generate(
                torch.tensor([tokens]), max_new_tokens=8, do_sample=False, verbose=False, return_type="tokens"
            )[0, len(tokens) :]
        kept = [t for t in row.tolist() if t >= 0]
        assert ids.tolist()[: len(kept)] == kept
