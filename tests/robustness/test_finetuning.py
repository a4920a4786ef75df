"""Benign fine-tuning: what is frozen stays bit for bit, what is rewound comes back, and the model is as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Response
from mechsafety.generation.answers import Example, encode
from mechsafety.judges.registry import judge_responses
from mechsafety.models.chat import tokenize_prompts
from mechsafety.models.loading import generation_twin
from mechsafety.models.prefixes import shared_prefix
from mechsafety.prompts.prompt_set import load_prompts, packaged_sets
from mechsafety.regions.maps import linear_maps
from mechsafety.regions.removal import Pruning
from mechsafety.robustness.finetuning import FinetuneRecipe, benign_examples, drawn, finetuned
from mechsafety.robustness.freezing import freezing_table
from mechsafety.runs.journal import Journal
from tests.reference.plain_finetuning import finetuned_weights

EXAMPLES = [
    Example(prompt="tell me about the fire", answer="sure yes here", whole=True),
    Example(prompt="tell me about the bread", answer="sure here is an answer", whole=True),
    Example(prompt="how do i make a garden", answer="sure here", whole=False),
    Example(prompt="how do i make a storm", answer="yes can do help", whole=True),
]
# Steps and decay are large, so that a weight that is not frozen moves in bfloat16 too.
RECIPE = FinetuneRecipe(learning_rate=2e-2, epochs=4, batch_size=4, weight_decay=2.0)
ARCHITECTURES = pytest.mark.parametrize("architecture", ["llama", "gpt2"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def some_set(model: Any, *, share: float = 0.3, seed: int = 0, label: str = "some weights") -> Pruning:
    generator = torch.Generator().manual_seed(seed)
    entries, shapes = {}, {}
    for m in linear_maps(model):
        shapes[m.name] = (m.d_out, m.d_in)
        chosen = torch.rand(m.d_out * m.d_in, generator=generator) < share
        entries[m.name] = chosen.nonzero().squeeze(1)
    del entries["blocks.1.o"]  # a map in which nothing is protected
    return Pruning(label=label, entries=entries, shapes=shapes)


def weights(model: Any) -> dict[str, Tensor]:
    return {m.name: m.weight().clone() for m in linear_maps(model)}


def split(values: Mapping[str, Tensor], chosen: Pruning) -> tuple[Tensor, Tensor]:
    """The values inside the set and outside it."""
    inside, outside = [], []
    for name, w in values.items():
        mask = torch.zeros(w.numel(), dtype=torch.bool)
        mask[chosen.entries.get(name, torch.tensor([], dtype=torch.long))] = True
        inside.append(w.reshape(-1)[mask])
        outside.append(w.reshape(-1)[~mask])
    return torch.cat(inside), torch.cat(outside)


def everything(model: Any) -> dict[str, Tensor]:
    twin = generation_twin(model)
    assert twin is not None
    modules = {"bridge": model, "twin": twin}
    return {f"{m} {n}": p.clone() for m, module in modules.items() for n, p in module.named_parameters()}


@pytest.mark.parametrize("start", ["", "tell me about the river of the garden with "])
@ARCHITECTURES
def test_weights_and_losses_are_those_of_the_formulas(
    tiny: Callable[..., Any], architecture: str, start: str
) -> None:
    model = tiny(architecture)
    examples = [replace(e, prompt=start + e.prompt) for e in EXAMPLES]
    # A long common start runs once a batch.
    assert bool(shared_prefix(tokenize_prompts(model, [e.prompt for e in examples]))) == bool(start)
    chosen = some_set(model)
    recipe = FinetuneRecipe(learning_rate=1e-3, epochs=5, batch_size=4, weight_decay=0.5)
    encoded = encode(model, examples)
    settings: dict[str, Any] = {"names": list(chosen.shapes), "steps": 5, "rate": 1e-3, "decay": 0.5}
    twin = generation_twin(model)
    for frozen in (chosen, None):
        entries = chosen.entries if frozen is not None else {}
        expected, losses = finetuned_weights(twin, encoded, frozen=entries, **settings)
        with finetuned(model, examples, recipe=recipe, frozen=frozen, seed=0) as done:
            assert done.losses == pytest.approx(losses, abs=1e-4)
            for name, w in weights(model).items():
                # A gradient near 0 has an uncertain sign in float32, and AdamW's step is the sign's.
                off = (w.double() - expected[name]).abs()
                assert off.max() < 5e-3
                assert (off > 2e-5).double().mean() < 0.01, name
    # Control: with the gradient alone masked, weight decay moves what should be frozen.
    before, _ = split(weights(model), chosen)
    decayed, _ = finetuned_weights(twin, encoded, frozen=chosen.entries, decay_frozen=True, **settings)
    assert (split(decayed, chosen)[0] - before).abs().max() > 1e-3


@DTYPES
@ARCHITECTURES
def test_frozen_weights_stay_bit_for_bit_and_the_others_learn(
    tiny: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model = tiny(architecture, dtype=dtype)
    chosen = some_set(model)
    inside, outside = split(weights(model), chosen)
    with finetuned(model, EXAMPLES, recipe=RECIPE, frozen=chosen, seed=0) as done:
        frozen_inside, frozen_outside = split(weights(model), chosen)
        assert done.n_frozen == chosen.n_removed == len(inside)
        assert done.n_weights == len(inside) + len(outside)
        assert done.losses[-1] < 0.5 * done.losses[0]
    assert torch.equal(frozen_inside, inside)
    assert (frozen_outside != outside).double().mean() > 0.9
    # Control: the same weights move when nothing is frozen.
    with finetuned(model, EXAMPLES, recipe=RECIPE, seed=0) as done:
        moved_inside, _ = split(weights(model), chosen)
        assert done.n_frozen == 0
    assert (moved_inside != inside).double().mean() > 0.9


@DTYPES
@ARCHITECTURES
def test_rewinding_puts_first_values_into_the_ordinary_fine_tuning(
    tiny: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model = tiny(architecture, dtype=dtype)
    chosen = some_set(model)
    inside, _ = split(weights(model), chosen)
    with finetuned(model, EXAMPLES, recipe=RECIPE, seed=0) as done:
        ordinary = weights(model)
        with done.rewound(chosen):
            rewound_inside, rewound_outside = split(weights(model), chosen)
        assert all(torch.equal(w, ordinary[name]) for name, w in weights(model).items())
        with pytest.raises(ZeroDivisionError), done.rewound(chosen):
            _ = 1 / 0
        assert all(torch.equal(w, ordinary[name]) for name, w in weights(model).items())
    assert torch.equal(rewound_inside, inside)
    assert torch.equal(rewound_outside, split(ordinary, chosen)[1])
    # Freezing is another experiment: the weights outside learn something else.
    with finetuned(model, EXAMPLES, recipe=RECIPE, frozen=chosen, seed=0):
        _, frozen_outside = split(weights(model), chosen)
    assert (frozen_outside != rewound_outside).double().mean() > 0.5


@DTYPES
@ARCHITECTURES
def test_bridge_and_twin_agree_and_are_as_they_were_afterwards(
    tiny: Callable[..., Any], architecture: str, dtype: str
) -> None:
    model = tiny(architecture, dtype=dtype)
    chosen = some_set(model)
    before = everything(model)
    wanted = [p.requires_grad for p in model.parameters()]
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    def logits() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            twin: Any = generation_twin(model)
            return model(ids).float(), twin(input_ids=ids).logits.float()

    first, _ = logits()
    with finetuned(model, EXAMPLES, recipe=RECIPE, seed=0) as done:
        tuned, of_twin = logits()
        with done.rewound(chosen):
            rewound, rewound_twin = logits()
    tolerance = 1e-4 if dtype == "float32" else 0.1 * float(tuned.abs().max())
    assert (tuned - of_twin).abs().max() < tolerance
    assert (rewound - rewound_twin).abs().max() < tolerance
    assert (tuned - first).abs().max() > 10 * 1e-4
    assert (tuned - rewound).abs().max() > 10 * 1e-4

    with (
        pytest.raises(ZeroDivisionError),
        finetuned(model, EXAMPLES, recipe=RECIPE, frozen=chosen, seed=0) as done,
        done.rewound(chosen),
    ):
        _ = 1 / 0
    after = everything(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())


@ARCHITECTURES
def test_a_model_without_a_twin_is_tuned_alike(tiny: Callable[..., Any], architecture: str) -> None:
    with finetuned(model := tiny(architecture), EXAMPLES, recipe=RECIPE, seed=0) as done:
        expected, losses = weights(model), done.losses
    model = tiny(architecture)
    chosen = some_set(model)
    model.__dict__["_mechsafety_twin"] = None
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.inference_mode(), finetuned(model, EXAMPLES, recipe=RECIPE, seed=0) as done:
        assert done.losses == pytest.approx(losses, rel=1e-3)
        found = weights(model)
        # Where TransformerLens keeps a copy of a joint projection, the copy follows.
        assert all(torch.equal(p.read(), m.weight()) for m in linear_maps(model) for p in m.places)
    assert all((found[name] - w).abs().median() < 1e-5 for name, w in expected.items())
    with finetuned(model, EXAMPLES, recipe=RECIPE, frozen=chosen, seed=0):
        frozen = split(weights(model), chosen)[0]
    after = dict(model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(frozen, split(weights(model), chosen)[0])


def test_same_seed_same_weights_other_seed_other(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    recipe = FinetuneRecipe(learning_rate=1e-3, epochs=2, batch_size=2)
    found = []
    for seed in (0, 0, 1):
        with finetuned(model, EXAMPLES, recipe=recipe, seed=seed) as done:
            found.append(weights(model))
            assert len(done.losses) == 4
    assert all(torch.equal(w, found[1][name]) for name, w in found[0].items())
    assert any(not torch.equal(w, found[2][name]) for name, w in found[0].items())


def test_answers_are_cut(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    short = [Example(prompt=e.prompt, answer=e.answer.split()[0], whole=False) for e in EXAMPLES]
    losses = []
    for examples, tokens in ((EXAMPLES, 1), (short, 48), (EXAMPLES, 48)):
        recipe = FinetuneRecipe(epochs=2, answer_tokens=tokens)
        with finetuned(model, examples, recipe=recipe, seed=0) as done:
            losses.append(done.losses)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_draws_are_nested_and_seeded() -> None:
    examples = benign_examples()
    few, more = drawn(examples, 10, seed=3), drawn(examples, 50, seed=3)
    assert more[:10] == few
    assert len(set(more)) == 50
    assert drawn(examples, 10, seed=4) != few
    for n in (0, 121):
        with pytest.raises(MechsafetyError, match=f"{n} examples to fine-tune on; there are 1 to 120"):
            drawn(examples, n, seed=0)


def test_bad_input(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    with pytest.raises(MechsafetyError, match="no examples"), finetuned(model, [], recipe=RECIPE, seed=0):
        pass
    other = some_set(tiny("gpt2"))
    with (
        pytest.raises(MechsafetyError, match="made for other linear maps"),
        finetuned(model, EXAMPLES, recipe=RECIPE, frozen=other, seed=0),
    ):
        pass
    with (
        finetuned(model, EXAMPLES, recipe=FinetuneRecipe(epochs=1), seed=0) as done,
        pytest.raises(MechsafetyError, match="made for other linear maps"),
        done.rewound(other),
    ):
        pass
    for name, value in (
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", math.inf),
        ("epochs", 0),
        ("batch_size", 0),
        ("answer_tokens", 0),
        ("weight_decay", -0.1),
        ("weight_decay", 1e5),
    ):
        with pytest.raises(MechsafetyError, match=name):
            FinetuneRecipe(**{name: value})  # pyright: ignore[reportArgumentType]


def test_a_loss_that_is_no_number_is_reported_and_the_model_restored(tiny: Callable[..., Any]) -> None:
    model = tiny("llama")
    before = everything(model)
    recipe = FinetuneRecipe(learning_rate=1e38, epochs=3, weight_decay=0.0)
    with (
        pytest.raises(MechsafetyError, match=r"llama.*: the loss is .* smaller learning rate than 1e"),
        finetuned(model, EXAMPLES, recipe=recipe, seed=0),
    ):
        pass
    after = everything(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_table_measures_every_state_and_resumes(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny("llama")
    sets = {"safety": some_set(model), "random": some_set(model, seed=1)}
    first = weights(model)
    calls = 0

    def measure(hooked: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        now = weights(hooked)
        same = {
            name: float((split(now, s)[0] == split(first, s)[0]).double().mean()) for name, s in sets.items()
        }
        return {
            **same,
            "moved": float(sum((now[n] - first[n]).abs().sum() for n in first)),
            "empty": math.nan,
        }

    def table(journal: Journal | None, **changed: Any) -> Any:
        settings: dict[str, Any] = {"n_examples": (2, 4), "seeds": (0, 1), "measure": measure}
        return freezing_table(
            model,
            EXAMPLES,
            sets=sets,
            recipe=FinetuneRecipe(learning_rate=1e-2, epochs=2, batch_size=2),
            journal=journal,
            **(settings | changed),
        )

    found = table(Journal(tmp_path / "rows.jsonl"))
    assert calls == len(found) == 1 + 2 * 2 * 5
    assert list(found.columns) == [
        *("mode", "frozen", "frozen_share", "n_examples", "seed", "loss_first", "loss_last"),
        *("safety", "random", "moved", "empty"),
    ]
    before = found.iloc[0]
    assert (before["mode"], before["n_examples"], before["moved"]) == ("none", 0, 0.0)
    assert math.isnan(before["loss_first"])
    assert found["seed"].isna().tolist() == [True] + [False] * 20
    after = found.iloc[1:]
    assert (after["moved"] > 0).all()
    assert (after["loss_last"] < after["loss_first"]).all()
    for mode in ("freeze", "rewind"):
        for name, other in (("safety", "random"), ("random", "safety")):
            rows = after[(after["mode"] == mode) & (after["frozen"] == name)]
            assert len(rows) == 4
            assert (rows[name] == 1).all()
            assert (rows[other] < 0.5).all()
            assert rows["frozen_share"].to_numpy() == pytest.approx([sets[name].sparsity] * 4)
    plain = after[after["mode"] == "none"]
    assert (plain[["safety", "random"]] < 0.5).all(axis=None)
    # Rewound rows share the ordinary training; frozen ones do not.
    losses = after.set_index(["mode", "frozen", "n_examples", "seed"])["loss_last"]
    assert (
        losses["rewind", "safety", 4, 0] == losses["none", "none", 4, 0] != losses["freeze", "safety", 4, 0]
    )

    # A killed run goes on: the last lines are lost, the others are not measured again.
    journal = tmp_path / "rows.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-3]))
    calls = 0
    again = table(Journal(journal))
    assert calls == 3
    assert again.equals(found)
    # Another set under the same name is another state; other examples or another measure are another table.
    calls, kept = 0, sets["safety"]
    sets["safety"] = some_set(model, seed=2)
    moved = table(Journal(journal))
    assert calls == 2 * 2 * 2
    assert not moved.equals(found)
    sets["safety"] = kept
    with pytest.raises(MechsafetyError, match=r"made from something else.*examples"):
        freezing_table(
            model,
            EXAMPLES[::-1],
            sets=sets,
            measure=measure,
            recipe=FinetuneRecipe(learning_rate=1e-2, epochs=2, batch_size=2),
            n_examples=(2,),
            seeds=(0,),
            journal=Journal(journal),
        )
    with pytest.raises(MechsafetyError, match=r"made from something else.*measure"):
        table(Journal(journal), measure=lambda _: {"moved": 0.0})
    assert table(None, modes=("rewind",), seeds=(0,)).equals(
        found[
            (found["n_examples"] == 0) | ((found["mode"] == "rewind") & (found["seed"] == 0).fillna(False))
        ].reset_index(drop=True)
    )
    now = weights(model)
    assert all(torch.equal(now[name], first[name]) for name in first)

    calls = 0
    for wrong, message in (
        ({"n_examples": (2, 5)}, "5 examples to fine-tune on; there are 1 to 4"),
        ({"n_examples": ()}, "n_examples is"),
        ({"seeds": (1, 1)}, "seeds is"),
        ({"modes": ()}, "modes is"),
    ):
        with pytest.raises(MechsafetyError, match=message):
            table(None, **wrong)
    sets["other"] = some_set(tiny("gpt2"))
    with pytest.raises(MechsafetyError, match="made for other linear maps"):
        table(None)
    assert calls == 0


def test_the_packaged_examples_are_benign_answered_and_apart_from_the_prompts() -> None:
    examples = benign_examples()
    assert len(examples) == 120

    def folded(text: str) -> str:
        return " ".join(text.casefold().split())

    texts = {folded(e.prompt) for e in examples}
    assert len(texts) == 120
    assert not texts & {folded(p.text) for name in packaged_sets() for p in load_prompts(name)}
    responses = [Response(id=str(i), prompt=e.prompt, text=e.answer) for i, e in enumerate(examples)]
    assert {v.label for v in judge_responses(responses, ["rules"])} == {"compliance"}
