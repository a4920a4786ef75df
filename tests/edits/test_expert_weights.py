"""A baked edit reaches every expert, routed to or not, and every mixer of a hybrid; it is the hook edit or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Orthogonalise, baked, edited
from mechsafety.edits.places import written_places
from mechsafety.edits.writing_maps import Call, expert_rows
from tests.architectures import ARCHITECTURES, UNFAITHFUL, kinds_first
from tests.kept_models import kept

VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))
UNIT = VECTOR / VECTOR.norm()
IDS = torch.tensor([[5, 9, 12, 30, 7, 21, 40, 8], [6, 11, 33, 14, 15, 16, 17, 18]])
NORM_BETWEEN = ("gemma2", "gemma3", "gemma4", "bloom", "olmo2", "olmo3", "exaone4", "glm4", "xglm")
"""A norm, or a scale of the embedding's rows, lies between a map and the stream."""
SITELESS = ("recurrent-gemma",)
EXPERTS = {
    "mixtral": ("mlp.experts.down_proj", -2),
    "qwen2-moe": ("mlp.experts.down_proj", -2),
    "qwen3-moe": ("mlp.experts.down_proj", -2),
    "qwen3-next": ("mlp.experts.down_proj", -2),
    "qwen3_5-moe": ("mlp.experts.down_proj", -2),
    "olmoe": ("mlp.experts.down_proj", -2),
    "deepseek-v3": ("mlp.experts.down_proj", -2),
    "minimax-m2": ("mlp.experts.down_proj", -2),
    "gpt-oss": ("mlp.experts.down_proj", -1),
    "llama4": ("feed_forward.experts.down_proj", -1),
}
"""Where each expert's output map stands in the plain modules of the last block, and on which axis it writes."""


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.original_model(input_ids=IDS).logits


@pytest.mark.parametrize("name", kinds_first(n for n in ARCHITECTURES if n not in UNFAITHFUL))
def test_baked_is_the_hook_edit_or_refused_by_name(name: str) -> None:
    model = kept(name)
    if name in (*NORM_BETWEEN, *SITELESS):
        with (
            pytest.raises(MechsafetyError, match=r"norm lies between|no hook point"),
            baked(model, Ablate(VECTOR)),
        ):
            pass
        return
    bare = logits(model)
    with edited(model, Ablate(VECTOR)):
        hooked = logits(model)
    with baked(model, Ablate(VECTOR)):
        weights = logits(model)
    assert float((weights - hooked).abs().max()) < 1e-3 * float(hooked.std())
    assert float((bare - hooked).abs().max()) > 1e-2 * float(hooked.std())  # the control
    assert torch.equal(logits(model), bare)


def expert_weights(model: Any, name: str) -> torch.Tensor:
    """The output maps of the experts of the last block [expert, d_ff, d_model]."""
    path, axis = EXPERTS[name]
    twin = model._mechsafety_twin
    found = [p for n, p in twin.named_parameters() if n.endswith(f"layers.3.{path}")]
    return found[0].detach().movedim(axis, -1)


@pytest.mark.parametrize("name", kinds_first(n for n in EXPERTS if n not in UNFAITHFUL))
def test_every_expert_loses_the_direction(name: str) -> None:
    model = kept(name)
    before = (expert_weights(model, name) @ UNIT).abs().amax(-1)
    with baked(model, Orthogonalise(VECTOR)):
        after = (expert_weights(model, name) @ UNIT).abs().amax(-1)
    assert len(before) >= 4
    assert float(before.min()) > 0.1
    assert float(after.max()) < 1e-5


@pytest.mark.parametrize("name", kinds_first(n for n in EXPERTS if n not in UNFAITHFUL))
def test_experts_are_written_in_half_precision(name: str) -> None:
    """What stands at every site along the direction is rounding, whatever other experts are chosen for it."""
    model = kept(name, dtype="bfloat16")
    places = [place for block in written_places(model) for place in block]

    def most() -> float:
        seen: list[float] = []
        hooks = [(p, lambda x, hook: seen.append(float((x.float() @ UNIT).abs().max()))) for p in places]
        with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
            model.original_model(input_ids=IDS)
        return max(seen)

    bare = most()
    with baked(model, Ablate(VECTOR)):
        assert most() < bare / 20


class Unfused(nn.Module):
    """A mixture of experts that are modules of their own, two of four for a token; beside them what writes nothing."""

    def __init__(self, *, after: bool = False) -> None:
        super().__init__()
        self.router = nn.Linear(32, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 32)) for _ in range(4)
        )
        self.norm = nn.LayerNorm(32) if after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 32)
        weight, chosen = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            out[token] += weight[token, place, None] * expert(flat[token])
        return self.norm(out).reshape(x.shape)


def called(x: torch.Tensor) -> Call:
    return Call(x, (x,), {})


def test_experts_of_their_own_modules_write_by_their_last_maps_alone() -> None:
    torch.manual_seed(0)
    experts, few = Unfused(), torch.randn(1, 3, 32)  # so few tokens that some expert sees none
    rows = expert_rows(kept("mixtral"), "blocks.0.hook_mlp_out", experts, called(few), {})
    parts: Any = experts.experts
    wanted = [p for expert in parts for p in (expert[2].weight, expert[2].bias)]
    assert {r.data_ptr() for r in rows} == {p.data_ptr() for p in wanted}
    assert len(rows) == len(wanted)


def test_control_a_norm_behind_the_experts_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(MechsafetyError, match="more than parameters"):
        expert_rows(
            kept("mixtral"), "blocks.0.hook_mlp_out", Unfused(after=True), called(torch.randn(1, 9, 32)), {}
        )
