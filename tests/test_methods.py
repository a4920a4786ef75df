"""Methods and constructors of public classes check their arguments as public functions do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import mechsafety as ms
from mechsafety.core.boundary import checked_methods
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.plain_arguments import PlainArguments
from tests.prompt_sets import small_prompts

VECTOR = np.ones(32)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """One of each class that public functions return, of a tiny model; and none of them is changed here."""
    prompts = small_prompts(6)
    activations = torch.randn(12, 1, 3, 32, generator=torch.Generator().manual_seed(0))
    labels = tuple(p.label for p in prompts.fit)
    cache = ms.ResidualCache(
        activations=activations,
        positions=(-1,),
        ids=tuple(p.id for p in prompts.fit),
        labels=labels,
        model="tiny",
        fingerprint="0",
    )
    directions = ms.find_directions(cache, resamples=2)
    verdicts = ms.judge((["a"], ["b"]))
    return {"prompts": prompts, "cache": cache, "directions": directions, "verdicts": verdicts}


CALLS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "letters for a layer": (lambda m: m["directions"].at(layer="2"), "Directions.at...? layer is '2'"),
    "no layer": (lambda m: m["directions"].at(), "missing a required argument: 'layer'"),
    "half a layer": (lambda m: m["directions"].at(layer=1.5), "a whole number is needed"),
    "an unknown name": (lambda m: m["directions"].at(laye=1), "did you mean layer"),
    "no directions": (
        lambda m: m["directions"].cosine(VECTOR),
        "other is array.*ms.find_directions makes one",
    ),
    "options of a figure": (lambda m: m["directions"].plot(wdth=500), "did you mean width"),
    "another label": (lambda m: m["prompts"].where(label="evil"), "label is 'evil'"),
    "another filter": (lambda m: m["prompts"].where(kind="a"), "where.. has no argument 'kind'"),
    "a share in letters": (
        lambda m: m["prompts"].split(fit="most"),
        "fit is 'most' .* a number or None is needed",
    ),
    "half a prompt": (lambda m: m["prompts"].sample(2.5, seed=0), "per_label is 2.5"),
    "a prompt by place": (lambda _: ms.Prompt("a", "b"), "Prompt...? too many positional"),  # type: ignore[call-arg]
    "a prompt of no label": (lambda _: ms.Prompt(id="a", text="b", label="evil"), "label is 'evil'"),  # type: ignore[arg-type]
    "texts as a set": (lambda _: ms.PromptSet(["a"]), "a Prompt is needed"),  # type: ignore[arg-type]
    "layers in letters": (lambda _: ms.Ablate(VECTOR, layers="all"), "layers is 'all'"),  # type: ignore[arg-type]
    "an unknown site": (lambda _: ms.Ablate(VECTOR, sites="attn"), "did you mean .attn_out"),  # type: ignore[arg-type]
    "positions by number": (lambda _: ms.Ablate(VECTOR, positions=-1), "positions is -1"),  # type: ignore[arg-type]
    "an unknown field": (lambda _: ms.Ablate(VECTOR, layrs=1), "did you mean layers"),  # type: ignore[call-arg]
    "no layer to add at": (lambda _: ms.Add(VECTOR), "missing a required argument: 'layer'"),  # type: ignore[call-arg]
    "an unknown option": (lambda _: ms.Sampling(temp=1), "has no argument 'temp'"),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_method_cannot_take_is_one_line(name: str, made: dict[str, Any]) -> None:
    call, said = CALLS[name]
    with pytest.raises(MechsafetyError, match=said) as raised:
        call(made)
    assert "\n" not in str(raised.value)


def test_methods_take_what_people_have(made: dict[str, Any]) -> None:
    directions = made["directions"]
    assert directions.at(layer=np.int64(2)) == directions.at(layer=2)
    assert len(ms.PromptSet([made["prompts"][0]])) == 1  # type: ignore[arg-type]
    assert ms.Ablate(VECTOR, layers=[np.int64(1)]) == ms.Ablate(VECTOR, layers=1)
    assert ms.Sampling(temperature=1, top_p=1) == ms.Sampling(temperature=1.0, top_p=1.0)


def test_arrays_and_nan_are_handed_on_as_they_are() -> None:
    class Sized:
        def twice(self, value: float, many: int = 1) -> tuple[float, int]:
            return value, many

    value, many = checked_methods(Sized)().twice(float("nan"), many=np.int64(2))  # type: ignore[attr-defined]
    assert (value != value, type(many)) == (True, int)


def test_configs_take_one_for_several_and_paths(tmp_path: Any) -> None:
    config = ms.StudyConfig(systems=str(tmp_path), prompts=tmp_path / "own.csv", judges="rules")  # type: ignore[arg-type]
    assert config.systems == (str(tmp_path),)
    assert config.judges == ("rules",)
    assert config.prompts == str(tmp_path / "own.csv")
    assert ms.SweepConfig(model="a", layers=None).layers is None
    with pytest.raises(MechsafetyError, match=r"^limit: .* \(got 'x'\)$"):
        ms.StudyConfig(limit="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ms.judge((["a"], ["b"]), lambda r: True), r"judge 'lambda' cannot be called as function\(prompt, response\)"),
        (lambda: ms.refusal_rates({}), "no verdicts are given"),
        (lambda: ms.load_model("no/such/folder", dtype=torch.float32, device=torch.device("cpu")), "no/such/folder"),
    ],
)  # fmt: skip
def test_other_things_that_people_give(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(MechsafetyError, match=said):
        call()


PUBLIC = [
    getattr(space, name)
    for space in (ms, ms.statistics, ms.regions, ms.anatomy, ms.judges)
    for name in space.__all__
]


@pytest.mark.parametrize("kind", [c for c in PUBLIC if dataclasses.is_dataclass(c)], ids=lambda c: c.__name__)
def test_every_public_dataclass_checks_what_it_is_made_of(kind: Any) -> None:
    with pytest.raises(MechsafetyError, match=rf"{kind.__name__}\(\) has no argument 'nonsense'"):
        kind(nonsense=1)


@pytest.mark.parametrize(
    ("kwargs", "fast"),
    [
        ({"id": "a", "judge": "own", "label": "refusal"}, True),
        ({"id": "a", "judge": "own", "label": "refusal", "tags": ("indirect",), "detail": {"p": 1}}, True),
        ({"id": "a", "judge": "own", "label": "refusl"}, False),
        ({"id": "a", "judge": "own", "label": "refusal", "tags": (1,)}, False),
        ({"id": "a", "judge": "own", "label": "refusal", "tags": "indirect"}, False),
        ({"id": 1, "judge": "own", "label": "refusal"}, False),
        ({"id": "a", "judge": "own"}, False),
    ],
)
def test_what_plainly_fits_is_not_looked_at_twice(kwargs: dict[str, Any], fast: bool) -> None:
    plain = PlainArguments(ms.Verdict.__init__.__wrapped__)  # type: ignore[attr-defined]
    assert plain.are((), kwargs) == fast
    if kwargs.get("tags") == "indirect":
        assert ms.Verdict(**kwargs).tags == ("indirect",)
    elif not fast:
        with pytest.raises(MechsafetyError):
            ms.Verdict(**kwargs)
