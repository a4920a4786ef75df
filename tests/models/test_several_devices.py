"""A model divided among devices gives the numbers of the same model on one, and waits for no device without need.

The devices are pretended (:mod:`tests.pretended_devices`): real GPUs are not tested here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor

import mechsafety as ms
from mechsafety.core.errors import MechsafetyError
from mechsafety.edits.interventions import Ablate, Add, AffineAblate, edited
from mechsafety.generation.answers import Example
from mechsafety.generation.scoring import answer_nll, option_log_probs
from mechsafety.generation.side_by_side import generate_under_each
from mechsafety.judges.kinds.logit import LogitJudge
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import load_model
from mechsafety.models.placing import Copies, Placing
from mechsafety.regions.attribution import score_weights
from mechsafety.regions.heads import head_outputs
from mechsafety.regions.maps import linear_maps
from mechsafety.sweeps.candidates import BatchedScorer, Validation, candidates_of
from mechsafety.sweeps.confirmation import confirm
from mechsafety.sweeps.measures import TokenMeasure
from mechsafety.sweeps.refusal_scores import RefusalTokens
from tests.architectures import ARCHITECTURES, MORE, UNFAITHFUL, UNPADDABLE
from tests.kept_models import kept, kept_folder
from tests.pretended_devices import FIRST, SECOND, MixedDevicesError, PretendedDevices
from tests.prompt_sets import small_prompts

UNDIVIDED = ("falcon", "openai-gpt")
"""Of which TransformerLens takes off what carries activations to the device of a block."""
FAST = ("llama", "gemma4")
"""Plain, and with windows, keys that blocks share and inputs of each block's own."""
NAMES = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in (*ARCHITECTURES, *([] if version("transformer-lens").startswith("3.") else MORE))
    if name not in (*UNFAITHFUL, *UNPADDABLE, *UNDIVIDED)
]
EXAMPLES = (
    Example(prompt="tell me about bread", answer="sorry i can not help with that", whole=True),
    Example(prompt="how do i make a garden gate of fire", answer="here is", whole=False),
)
TOKENS = RefusalTokens(ids=(5, 9), texts=("a", "b"), weight=(0.1, 0.1), source="user")


def direction(seed: int) -> Tensor:
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def streams(model: Any) -> Any:
    return ms.residual_stream(model, small_prompts().fit).activations


def swept(model: Any) -> Any:
    found = ms.find_directions(ms.residual_stream(model, small_prompts().fit))
    table = ms.sweep(
        model, found, small_prompts().validation, refusal_tokens=TOKENS, layers=(1, 3)
    ).to_frame()
    return torch.tensor(table[["bypass", "induce", "kl"]].to_numpy())


def answers(model: Any, **options: Any) -> Any:
    settings: dict[str, Any] = {"max_new_tokens": 18, "seed": 0}
    done = ms.generate(model, small_prompts().report, **(settings | options))
    return [list(c.tokens) for c in done]


def edited_answers(model: Any) -> Any:
    return [
        answers(model, edit=Ablate(direction(0), positions=positions), max_new_tokens=3)
        for positions in ("all", "prompt", "generated", "last_prompt")
    ]


def side_by_side(model: Any) -> Any:
    given = [Ablate(direction(0)), Add(direction(1), layer=2, coefficient=3.0)]
    found = generate_under_each(model, small_prompts().report, given, max_new_tokens=3, seed=0)
    return [[list(c.tokens) for c in done] for done in found]


def hooked_logits(model: Any) -> Any:
    reference = torch.randn(model.cfg.n_layers, 32, generator=torch.Generator().manual_seed(9))
    edits = [
        Ablate(direction(0)),
        Ablate(direction(0), alpha=0.5, layers=(0, 3)),
        AffineAblate(direction(1), reference=reference),
        Add(direction(2), layer=3, positions="last_prompt"),
    ]
    ids = torch.tensor([[0, 5, 9, 12, 30], [4, 6, 11, 33, 8]], device=next(model.parameters()).device)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], device=ids.device)
    found = []
    for edit in edits:
        with edited(model, edit), torch.inference_mode():
            found.append(model.original_model(input_ids=ids, attention_mask=mask).logits[:, -1].cpu())
    return torch.stack(found)


def scores(model: Any) -> Any:
    sequences = tokenize_prompts(model, [p.text for p in small_prompts().report][:4])
    options = option_log_probs(model, sequences, [[7], [8, 9, 10]])
    nll = torch.tensor(answer_nll(model, sequences, [[8, 9, 10]] * len(sequences)))
    return torch.cat([options, nll[:, None]], dim=1)


def attribution(model: Any) -> Any:
    found = score_weights(model, EXAMPLES)
    return [
        t.cpu() for m in linear_maps(model) for t in (found.snip(m.name), found.wanda(m), found.gram(m.name))
    ]


def heads(model: Any) -> Any:
    return head_outputs(model, small_prompts().report).outputs


ANALYSES: dict[str, Callable[[Any], Any]] = {
    "streams": streams,
    "hooked_logits": hooked_logits,
    "answers": answers,
    "edited_answers": edited_answers,
    "side_by_side": side_by_side,
    "swept": swept,
    "scores": scores,
    "attribution": attribution,
    "heads": heads,
}


def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """``device_map="auto"`` finds two devices, the first with room for some of the blocks."""
    planned = Placing.planned

    def plan(self: Placing, spec: str, shape: Any, dtype: torch.dtype) -> dict[str, Any]:
        size = sum(p.numel() for p in [*shape.parameters(), *shape.buffers()]) * dtype.itemsize
        if hasattr(shape.config, "vision_config"):  # tiny ones have more weights for images than for text
            monkeypatch.setattr("accelerate.utils.get_balanced_memory", lambda _, room, **__: room)
        found: dict[str, Any] = {}
        for share in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95):
            free = {0: int(share * size), 1: 2 * size}
            monkeypatch.setattr("mechsafety.models.placing.free_by_device", lambda free=free: free)
            found = planned(self, spec, shape, dtype)
            blocks = [name for name in found if name.rpartition(".")[2].isdigit() and "vis" not in name]
            if len({found[name] for name in blocks}) == 2:
                break
        return {name: f"cpu:{n + 1}" for name, n in found.items()}

    monkeypatch.setattr(Placing, "planned", plan)


def divided(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    placed(monkeypatch)
    return load_model(str(kept_folder(name)), dtype="float32", device_map="auto")


def same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one.cpu(), other.cpu(), rtol=1e-4, atol=1e-4, equal_nan=True)
    elif isinstance(one, list) and one and isinstance(one[0], Tensor):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


@cache
def alone(name: str, analysis: str) -> Any:
    try:
        return ANALYSES[analysis](kept(name))
    except MechsafetyError as error:
        return str(error)


@pytest.mark.parametrize("name", NAMES)
def test_divided_is_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = {analysis: alone(name, analysis) for analysis in ANALYSES}
    with PretendedDevices().on():
        model = divided(name, monkeypatch)
        assert {next(iter(block.parameters())).device for block in model.blocks} == {FIRST, SECOND}
        assert set(model.load_record.blocks) == {str(FIRST), str(SECOND)}
        for analysis, run in ANALYSES.items():
            if isinstance(want[analysis], str):  # refused on one device too
                with pytest.raises(MechsafetyError):
                    run(model)
            else:
                same(run(model), want[analysis])


@pytest.mark.parametrize("name", ["falcon", pytest.param("openai-gpt", marks=pytest.mark.slow)])
def test_a_model_whose_blocks_leave_their_device_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        PretendedDevices().on(),
        pytest.raises(MechsafetyError, match=r"divided among several devices: .*; it runs on one"),
    ):
        divided(name, monkeypatch)


@pytest.mark.parametrize("name", ["mamba", pytest.param("mamba2", marks=pytest.mark.slow)])
def test_answers_of_a_state_without_a_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want = alone(name, "edited_answers")
    with PretendedDevices().on():
        same(edited_answers(divided(name, monkeypatch)), want)


def test_control_a_constant_left_on_the_wrong_device_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode raises for what would raise on two GPUs."""
    with PretendedDevices().on():
        model = divided("llama", monkeypatch)
        hooked_logits(model)
        monkeypatch.setattr(Copies, "on", lambda self, _device: self.tensor)
        with pytest.raises(MixedDevicesError):
            hooked_logits(model)


def test_the_mode_follows_views_gradients_and_scalars() -> None:
    devices = PretendedDevices()
    with devices.on():
        a, b = torch.ones(3, device=FIRST, requires_grad=True), torch.ones(3, device=SECOND)
        with pytest.raises(MixedDevicesError):
            _ = a + b
        with pytest.raises(MixedDevicesError):
            _ = a[1:] + torch.ones(2)
        assert (a[1:] * 2).device == FIRST
        assert (a * torch.tensor(2.0)).device == FIRST
        ((a.to(SECOND) * b).sum()).backward()
        assert a.grad is not None
        assert a.grad.device == FIRST
        with devices.counting() as waits, torch.inference_mode():
            _ = bool(b.sum() > 0), b.tolist(), b.cpu(), b.nonzero(), torch.ones(2).tolist()
    assert sum(waits.values()) == 4


def waits_of(run: Callable[[], object], devices: PretendedDevices) -> Counter[str]:
    """How often the host waited, by the line that asked."""
    with devices.counting() as waits:
        run()
    found: Counter[str] = Counter()
    for (_, line), times in waits.items():
        found[line] += times
    return found


def growth(run: Callable[[int], object], devices: PretendedDevices, few: int, many: int) -> Counter[str]:
    """How much more often each line waits for ``many`` than for ``few``."""
    run(few)  # what is tried once for each model
    run(many)
    a, b = (waits_of(lambda n=n: run(n), devices) for n in (few, many))
    return Counter({line.partition("(")[2].rstrip(")") or line: times for line, times in (b - a).items()})


def growing(run: Callable[[int], object], devices: PretendedDevices, few: int, many: int) -> set[str]:
    """The lines that wait more often for ``many`` than for ``few``."""
    return set(growth(run, devices, few, many))


PER_TOKEN = {
    "transformers/generation/utils.py:__call__",  # whether every row has ended, in transformers' own loop
    "transformers/masking_utils.py:_ignore_causal_mask_sdpa",  # whether a mask has padding, at every pass with SDPA
}
"""All that waits for the device at every token; both belong to transformers."""


@pytest.mark.parametrize(
    "positions", ["all", *(pytest.param(p, marks=pytest.mark.slow) for p in ("last_prompt", "generated"))]
)
def test_decoding_waits_for_no_device_but_where_transformers_does(
    positions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = PretendedDevices()
    with devices.on():
        model = divided("llama", monkeypatch)
        edit = Ablate(direction(0), positions=positions)

        def decode(n: int) -> None:
            # Two parts of an answer in both: what is done for each part is not for each token.
            ms.generate(model, small_prompts().report, max_new_tokens=n, seed=0, edit=edit)

        assert growing(decode, devices, 18, 30) == PER_TOKEN

        def decode_under_each(n: int) -> None:
            edits = [Ablate(direction(k), positions=positions) for k in range(2)]
            generate_under_each(model, small_prompts().report, edits, max_new_tokens=n, seed=0)

        assert growing(decode_under_each, devices, 18, 30) == PER_TOKEN


def test_answers_under_edits_side_by_side_wait_for_no_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = PretendedDevices()
    with devices.on():
        model = divided("llama", monkeypatch)

        def decode(n: int) -> None:
            edits = [Ablate(direction(k)) for k in range(n)]
            generate_under_each(model, small_prompts().report, edits, max_new_tokens=3, seed=0)

        assert not growing(decode, devices, 2, 6)


PER_BATCH = {
    "models/finite.py:rows_broken",  # whether logits are finite
    "sweeps/candidates.py:_divide",  # logits, of which KL and scores are made on the CPU
    "sweeps/candidates.py:_induced",  # probabilities of the refusal tokens
    "transformers/masking_utils.py:_ignore_causal_mask_sdpa",
}
"""All in a sweep that waits for the device once for each batch of candidates x prompts, not for each candidate."""


def test_a_sweep_waits_for_batches_and_not_for_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = PretendedDevices()
    with devices.on():
        model = divided("llama", monkeypatch)
        found = ms.find_directions(ms.residual_stream(model, small_prompts().fit))
        directions = list(candidates_of(found, (1, 2, 3)).values())
        sequences = [tokenize_prompts(model, [p.text for p in part]) for part in _by_label()]

        def scorer(batch_size: int) -> BatchedScorer:
            base = torch.zeros(len(sequences[1]), 160)
            return BatchedScorer(
                model,
                Validation(
                    harmful=sequences[0],
                    harmless=sequences[1],
                    base_harmless=base,
                    measure=TokenMeasure(tokens=TOKENS),
                    batch_size=batch_size,
                ),
            )

        one_batch = scorer(64)
        assert growing(lambda n: one_batch.score(directions[:1] * n), devices, 2, 4) == set()
        small = scorer(4)
        assert growing(lambda n: small.score(directions[:1] * n), devices, 2, 4) == PER_BATCH


PER_LIKELIHOOD = {
    "models/finite.py:rows_broken",
    "generation/scoring.py:_negated",
    "transformers/masking_utils.py:_ignore_causal_mask_sdpa",
}
"""All in a likelihood of answers that waits for the device, for each batch."""


def test_racing_and_confirmation_wait_for_batches_and_not_for_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Candidates of one layer share a batch in every round of a race, and those whose answers are read one too."""
    devices = PretendedDevices()
    with devices.on():
        model = divided("llama", monkeypatch)
        prompts = small_prompts(12)
        found = {
            n: ms.find_directions(ms.residual_stream(model, prompts.fit, positions=tuple(range(-n, 0))))
            for n in (1, 3)
        }
        how: dict[str, Any] = {"refusal_tokens": TOKENS, "racing": True, "batch_size": 10**4}

        def race(n: int) -> Any:
            return ms.sweep(model, found[n], prompts.validation, layers=(2,), **how).to_frame()

        assert growing(race, devices, 1, 3) == set()
        table, few = race(3), prompts.validation.sample(4, seed=0)

        def confirmed(n: int) -> None:
            confirm(model, table, found[3], few, candidates=n, max_new_tokens=3)

        costs = growth(confirmed, devices, 1, 3)
        assert set(costs) <= PER_LIKELIHOOD
        assert max(costs.values()) <= 2  # a batch of likelihoods for each of two candidates more


def _by_label() -> tuple[list[Any], list[Any]]:
    prompts = small_prompts().validation
    return prompts.harmful[:4], prompts.harmless[:4]


ATTRIBUTION = {
    "regions/sums.py:settle",  # whether all that passed was finite
    "regions/attribution.py:_loss",  # which tokens are the answers'
    "regions/attribution.py:_stream",  # the same, in the backward pass
    "generation/answers.py:keep",
    "generation/answers.py:answer_logits",
    "transformers/masking_utils.py:_ignore_causal_mask_sdpa",
}
"""All in attribution that waits for the device for each batch of examples, at most so often for each device."""
_MOST = 3


def test_attribution_waits_for_batches_and_not_for_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = PretendedDevices()
    with devices.on():
        model = divided("llama", monkeypatch)

        def scored(n: int) -> None:
            score_weights(model, EXAMPLES[:1] * n, batch_size=1)

        found = growth(scored, devices, 2, 3)
        assert set(found) <= ATTRIBUTION
        assert max(found.values()) <= _MOST < len(linear_maps(model)), found
        # Examples of one batch.
        together = growth(lambda n: score_weights(model, EXAMPLES[:1] * n, batch_size=4), devices, 2, 4)
        assert not together


def test_log_probabilities_wait_for_batches_and_not_for_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = PretendedDevices()
    with devices.on():
        model = divided("llama", monkeypatch)
        sequences = tokenize_prompts(model, [p.text for p in small_prompts().report])
        edit = Ablate(direction(0), positions="generated")
        jobs: dict[str, Callable[[int], object]] = {
            "likelihood": lambda n: answer_nll(model, sequences[:n], [[8, 9, 10]] * n),
            "likelihood behind prompts": lambda n: answer_nll(
                model, sequences[:n], [[8, 9, 10]] * n, edit=edit
            ),
            "options": lambda n: option_log_probs(model, sequences[:n], [[7], [8, 9], [8, 10]]),
            "judge": lambda n: LogitJudge("model", model).margins([("make bread", "sorry i can not")] * n),
            "logits": lambda n: ms.logits(model, list(small_prompts().report)[:n]),
        }
        for name, job in jobs.items():
            assert not growing(job, devices, 3, 6), name


def test_token_projections_wait_once(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = PretendedDevices()
    with devices.on():
        model = divided("llama", monkeypatch)
        prompts = {n: " ".join(["bread"] * n) for n in (3, 30)}
        assert not growing(lambda n: ms.project_tokens(model, prompts[n], direction(0)), devices, 3, 30)
        found = waits_of(lambda: ms.project_tokens(model, prompts[3], direction(0)), devices)
        # The control: a copy of each of the 5 layers would be 5.
        assert found["generation/token_projections.py:_stream_of"] == 1
