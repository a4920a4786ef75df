"""Scores of experts by the tokens routed to them: those of plain autograd, and of a loop written here."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mechsafety.core.errors import MechsafetyError
from mechsafety.generation.answers import encode
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.blockwise import prune_blockwise
from mechsafety.regions.experts import Routed, mixtures, roles
from mechsafety.regions.heads import prune_heads
from mechsafety.regions.maps import LinearMap, linear_maps, running_body, uncovered, unseen_share
from mechsafety.regions.memory_plan import plan_of
from mechsafety.regions.pruning import top_pruning
from mechsafety.regions.removal import removed
from mechsafety.regions.subspaces import remove_top_ranks
from tests.architecture_measures import EXAMPLES, snip_by_autograd
from tests.architectures import ARCHITECTURES, UNFAITHFUL, config_of, kinds_first
from tests.kept_models import kept

EXPERTS = (
    "mixtral",
    "deepseek-v3",
    "qwen3-moe",
    "gpt-oss",
    "llama4",
    "olmoe",
    "qwen3-next",
    "granite-moe",
    "jamba",
)


def experts_of(maps: list[LinearMap]) -> list[LinearMap]:
    return [m for m in maps if m.expert is not None]


@pytest.mark.parametrize("name", kinds_first(EXPERTS))
def test_snip_of_experts_is_that_of_autograd(name: str) -> None:
    model = kept(name)
    linear = experts_of(linear_maps(model))
    assert len({m.expert for m in linear}) >= 4
    assert {m.kind for m in linear} == {"gate", "up", "down"}
    want, got = snip_by_autograd(model, linear), score_weights(model, EXAMPLES)
    assert any(float(one.max()) > 1e-4 for one in want.values())
    for m in linear:
        torch.testing.assert_close(got.snip(m.name), want[m.name], atol=1e-6, rtol=1e-3)


def oracle_inputs(model: Any, name: str, layer: int, expert: int) -> tuple[Tensor, Tensor]:
    """What gate and down of an expert read at the answers' tokens, from what enters the block's mixture."""
    twin = running_body(model)
    mixture = next(m for n, m in twin.named_modules() if n.endswith(f"layers.{layer}.{MIXTURES[name]}"))
    entered: list[Tensor] = []
    handle = mixture.register_forward_pre_hook(lambda _m, args: entered.append(args[0][0]))
    for prompt, answer in encode(model, EXAMPLES):
        with torch.no_grad():
            twin(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False)
        entered[-1] = entered[-1][len(prompt) :]
    handle.remove()
    x = torch.cat(entered)
    with torch.no_grad():
        return HIDDEN[name](mixture, x, expert)


def gated(mixture: Any, x: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Softmax of the router's logits, the two largest; SiLU(gate) * up (Mixtral, Qwen 3, OLMoE)."""
    chosen = (x @ mixture.gate.weight.T).topk(2).indices
    x = x[(chosen == expert).any(-1)]
    gate, up = (x @ mixture.experts.gate_up_proj[expert].T).chunk(2, -1)
    return x, nn.functional.silu(gate) * up


def grouped(mixture: Any, x: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Sigmoid scores; two of four groups of two by their two best, then three experts (DeepSeek-V3)."""
    scores = (x @ mixture.gate.weight.T).sigmoid() + mixture.gate.e_score_correction_bias
    by_group = scores.reshape(-1, 4, 2)
    kept_groups = nn.functional.one_hot(by_group.sum(-1).topk(2).indices, 4).sum(1).bool()
    scores = by_group.masked_fill(~kept_groups[..., None], -1e9).reshape(-1, 8)
    x = x[(scores.topk(3).indices == expert).any(-1)]
    gate, up = (x @ mixture.experts.gate_up_proj[expert].T).chunk(2, -1)
    return x, nn.functional.silu(gate) * up


def interleaved(mixture: Any, x: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Gate and up in turn, with biases, clamped (gpt-oss)."""
    chosen = (x @ mixture.router.weight.T + mixture.router.bias).topk(2).indices
    x = x[(chosen == expert).any(-1)]
    both = x @ mixture.experts.gate_up_proj[expert] + mixture.experts.gate_up_proj_bias[expert]
    gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
    return x, (up + 1) * gate * (1.702 * gate).sigmoid()


def scaled(mixture: Any, x: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """One expert per token, whose input is scaled by the sigmoid of its score (Llama 4)."""
    best, chosen = (x @ mixture.router.weight.T).max(-1)
    x = (x * best.sigmoid()[:, None])[chosen == expert]
    gate, up = (x @ mixture.experts.gate_up_proj[expert]).chunk(2, -1)
    return x, nn.functional.silu(gate) * up


HIDDEN: dict[str, Any] = {
    "mixtral": gated,
    "deepseek-v3": grouped,
    "qwen3-moe": gated,
    "olmoe": gated,
    "gpt-oss": interleaved,
    "llama4": scaled,
}
MIXTURES = dict.fromkeys(HIDDEN, "mlp") | {"llama4": "feed_forward"}


@pytest.mark.parametrize("name", kinds_first(HIDDEN))
def test_wanda_of_experts_is_by_the_tokens_routed_to_them(name: str) -> None:
    model = kept(name)
    linear = [m for m in experts_of(linear_maps(model)) if m.layer == 3]
    got = score_weights(model, EXAMPLES)
    seen = 0
    for m in linear:
        assert m.expert is not None
        x, hidden = oracle_inputs(model, name, 3, m.expert)
        seen += len(x)
        read = hidden if m.kind == "down" else x
        torch.testing.assert_close(got.gram(m.name), read.T @ read, atol=1e-3, rtol=1e-3)
        want = m.weight().abs() * read.norm(dim=0)
        torch.testing.assert_close(got.wanda(m), want, atol=1e-3, rtol=1e-3)
    assert 0 < seen < 3 * got.n_tokens * len({m.expert for m in linear})  # the control: not all see all


@pytest.mark.skipif(
    version("transformer-lens").startswith("3."), reason="not tried under transformer-lens 3.9"
)
def test_experts_of_attention_read_what_is_routed_before_it_and_made_by_it() -> None:
    """JetMoE: q reads the tokens that are routed to it, o what the attention makes for them."""
    model, layer = kept("jetmoe"), 2
    linear = [m for m in experts_of(linear_maps(model)) if m.layer == layer]
    assert {m.kind for m in linear} == {"q", "o", "gate", "up", "down"}
    assert {m.kind for m in linear if m.name.startswith(f"blocks.{layer}.experts.0.")} in (
        {"q", "o"},
        {"gate", "up", "down"},
    )
    with pytest.raises(MechsafetyError, match="which head is which depends on the token"):
        prune_heads(linear, [(layer, 0)], n_heads=2)
    got = score_weights(model, EXAMPLES)
    want = snip_by_autograd(model, linear)
    for m in linear:
        torch.testing.assert_close(got.snip(m.name), want[m.name], atol=1e-6, rtol=1e-3)
    twin = running_body(model)
    attention: Any = next(m for n, m in twin.named_modules() if n.endswith(f"layers.{layer}.self_attention"))
    reads: dict[tuple[str, int], list[Tensor]] = {}
    reduce, router = attention.experts.reduce, attention.experts.router.layer

    def reduced(attended: Tensor, topology: Any) -> Tensor:
        chosen = (entered[-1] @ router.weight.T).topk(attention.experts.top_k).indices
        for token in range(start, len(chosen)):
            for slot, expert in enumerate(chosen[token].tolist()):
                reads.setdefault(("q", expert), []).append(entered[-1][token])
                reads.setdefault(("o", expert), []).append(attended[0, token, slot])
        return reduce(attended, topology)

    entered: list[Tensor] = []
    handle = attention.register_forward_pre_hook(
        lambda _m, args, kwargs: entered.append((args[0] if args else kwargs["hidden_states"])[0]),
        with_kwargs=True,
    )
    attention.experts.reduce = reduced
    try:
        for prompt, answer in encode(model, EXAMPLES):
            start = len(prompt)
            with torch.no_grad():
                twin(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False)
    finally:
        del attention.experts.reduce
        handle.remove()
    for m in linear:
        if m.kind in ("q", "o"):
            assert m.expert is not None
            x = torch.stack(reads[m.kind, m.expert]) if (m.kind, m.expert) in reads else m.weight()[:0]
            torch.testing.assert_close(got.gram(m.name), x.T @ x, atol=1e-3, rtol=1e-3)


class Unfused(nn.Module):
    """Experts that are modules of their own: two of four for a token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.ModuleDict(self._maps()) for _ in range(4))

    @staticmethod
    def _maps() -> dict[str, nn.Module]:
        return {
            "gate_proj": nn.Linear(6, 5, bias=False),
            "up_proj": nn.Linear(6, 5, bias=False),
            "down_proj": nn.Linear(5, 6, bias=False),
        }

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, 6)
        weight, chosen = self.router(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            out[token] += weight[token, place, None] * self.run(expert, flat[token])
        return out.reshape(x.shape)

    def run(self, expert: Any, x: Tensor) -> Tensor:
        return expert["down_proj"](nn.functional.silu(expert["gate_proj"](x)) * expert["up_proj"](x))


def test_experts_of_their_own_modules_are_seen_and_read() -> None:
    torch.manual_seed(0)
    whole = nn.ModuleDict({"mlp": Unfused()})
    (mixture,) = mixtures(whole)
    assert [(r.kind, r.transposed, r.half) for r in roles(mixture, 6)] == [
        ("gate", False, None),
        ("up", False, None),
        ("down", False, None),
    ]
    x, read = torch.randn(2, 7, 6), {}
    routed = Routed([mixture], lambda p, n, x: read.__setitem__((id(p), n), x))
    routed.chosen = torch.tensor([[True] * 4 + [False] * 3, [False] * 5 + [True] * 2])
    with routed.watching():
        whole["mlp"](x)
    tokens = x[routed.chosen]
    own: Any = whole["mlp"]
    chosen = own.router(tokens).topk(2).indices
    for number, expert in enumerate(own.experts):
        mine = tokens[(chosen == number).any(-1)]
        torch.testing.assert_close(read.get((id(expert["gate_proj"].weight), 0), mine[:0]), mine)


@pytest.mark.parametrize("name", kinds_first(EXPERTS))
def test_removals_reach_experts_and_are_undone(name: str) -> None:
    model = kept(name)
    maps, scores = linear_maps(model), score_weights(model, EXAMPLES)
    before = {m.name: m.weight().clone() for m in maps}
    removals = [
        top_pruning(maps, scores, method="snip", q=20),
        remove_top_ranks(maps, scores, rank=1),
        prune_blockwise(model, EXAMPLES, method="wanda", percent=30, group="matrix"),
    ]
    for removal in removals:
        with removed(model, removal):
            changed = {m.name for m in linear_maps(model) if not torch.equal(m.weight(), before[m.name])}
        assert {m.name for m in experts_of(maps) if m.layer == 3 and m.kind == "down"} & changed
        assert all(torch.equal(m.weight(), before[m.name]) for m in linear_maps(model))


@pytest.mark.parametrize("name", kinds_first(n for n in ARCHITECTURES if n not in UNFAITHFUL))
def test_the_share_that_no_map_covers_is_that_of_the_parameters_named(name: str) -> None:
    model = kept(name)
    maps = linear_maps(model)
    names = uncovered(model, maps)
    assert not any("experts." in n and ("up" in n or "down" in n) for n in names)
    assert (unseen_share(model, maps) > 1e-9) == bool(names)
    assert unseen_share(model, maps) < 0.35


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_a_memory_plan_counts_experts(name: str) -> None:
    maps = linear_maps(kept(name))
    scores = score_weights(kept(name), EXAMPLES)
    plan = plan_of(config_of(name), name=name, dtype=torch.float32)
    grams = {m.site: m.d_in**2 for m in maps}
    assert (plan.n_maps, plan.n_sites) == (len(maps), len(grams))
    assert plan.scores == 4 * sum(m.d_out * m.d_in for m in maps)
    assert plan.grams == 4 * sum(grams.values())
    assert plan.batch_size == 1
    assert set(scores.sites.values()) == set(grams)
