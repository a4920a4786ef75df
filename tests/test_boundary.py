"""Every public function, given what it cannot take, says so in one line of ours: no traceback of torch or pandas."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import mechsafety as ms
from mechsafety.core.fitting import MAKERS
from mechsafety.core.verdict import Response
from mechsafety.experiments.lab.config import LabConfig
from mechsafety.judges.injection import KnownItem
from mechsafety.judges.registry import load_judge
from mechsafety.robustness.benign import benign_passages
from mechsafety.robustness.finetuning import FinetuneRecipe
from tests.prompt_sets import small_prompts
from tests.regions.test_subspaces import examples

SPACES = {"ms": ms, "regions": ms.regions, "judges": ms.judges, "anatomy": ms.anatomy, "lab": ms.lab}
FUNCTIONS = {
    name: getattr(space, name)
    for space in SPACES.values()
    for name in sorted(space.__all__)
    if isinstance(getattr(space, name), FunctionType)
}
FIGURES = [name for name in ms.plots.__all__ if isinstance(getattr(ms.plots, name), FunctionType)]
STATISTICS = {
    name: getattr(ms.statistics, name)
    for name in ms.statistics.__all__
    if isinstance(getattr(ms.statistics, name), FunctionType)
}
UNCHECKED = {("edited", "twin"), ("load_model", "trust_remote_code")}
"""What is not looked at: the twin comes from the package itself."""
MAY_BE_EMPTY = {
    "choices",
    "passages",
    "exclude",
    "families",
    "alphas",
    "ranks",
    "kinds",
    "layers",
    "seeds",
    "sets",
}


@pytest.fixture(scope="module")
def given(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Any]:
    """A valid value for every argument that a function cannot do without."""
    model = ms.load_model(str(tiny_folder()), dtype="float32", device="cpu")
    prompts = small_prompts(4)
    cache = ms.residual_stream(model, prompts.fit)
    directions = ms.find_directions(cache, resamples=2)
    maps = ms.regions.linear_maps(model)
    scores = ms.regions.score_weights(model, examples(0, n=2))
    direction = directions.at(layer=2)
    pruning = ms.regions.top_pruning(maps, scores, method="snip", q=5)
    low_rank = ms.regions.remove_top_ranks(maps, scores, rank=1)
    table = pd.DataFrame({"position": [-1], "layer": [1], "bypass": [0.0], "induce": [1.0], "kl": [0.1]})
    verdicts = ms.judge((["a"], ["b"]))
    classes = cache.select("harmful")[:, 0, 2], cache.select("harmless")[:, 0, 2]
    folder = tmp_path_factory.mktemp("boundary")
    known = {
        "model": model, "prompts": prompts.validation, "examples": examples(0, n=2), "edit": ms.Ablate(direction),
        "function": len, "specs": [str(tiny_folder())], "out": folder / "out", "path": folder / "none.safetensors",
        "table": table, "directions": directions, "harmful": classes[0], "harmless": classes[1],
        "direction": direction, "doses": (), "removal": low_rank, "folder": folder / "adapter", "cache": cache,
        "recipe": FinetuneRecipe(), "sets": {"top": pruning}, "measure": lambda _: {"x": 0.0}, "seeds": (0,),
        "judge": load_judge("rules"), "maps": maps, "safety": scores, "utility": scores, "method": "snip",
        "items": [KnownItem(response=Response(id="a", prompt="p", text="r"), label="refusal")],
        "answers": (["a"], ["b"]), "run": folder, "spec": "rules", "data": prompts, "like": pruning, "n_layers": 4,
        "r_u": 1, "r_s": 1, "kind": "refusal", "n": 2, "text": "ablate(random)", "activations": classes,
        "basis": direction.unit[None], "held_out": cache, "responses": pd.DataFrame(), "verdicts": verdicts,
        "attribution": scores, "rank": 1, "base": model, "tuned": model, "passages": benign_passages()[:2], "prompt": "how do i",
        "k": 1, "config": LabConfig(), "p": 5, "percent": 5, "q": 5, "rung": "refusal",
        "arms": {"original": verdicts}, "figure": go.Figure(),
    }  # fmt: skip
    special: dict[tuple[str, str], Any] = {
        ("control_directions", "direction"): direction.unit,
        ("random_low_rank", "like"): low_rank,
        ("set_difference_blockwise", "safety"): examples(0, n=2),
        ("set_difference_blockwise", "utility"): examples(1, n=2),
    }
    return lambda function, name: special.get((function, name), known[name])


def wrongs(parameter: inspect.Parameter) -> Iterator[Any]:
    """What no argument of this kind can be: another type, a word that is not known, NaN, a wrong shape."""
    hint = str(parameter.annotation)
    yield object()
    if "Like" not in hint and "str" not in hint and "Any" not in hint and "Path" not in hint:
        yield "no such thing"
    if "float" in hint.lower() or "int" in hint or "Percent" in hint:
        yield math.nan
    if "Tensor" in hint or "VectorLike" in hint:
        yield torch.full((32,), math.nan)
        yield torch.zeros(2, 3, 4, 5)
        yield np.array(["a"])


def called(name: str, arguments: dict[str, Any]) -> None:
    """The function is called, a context is entered, and what it raises is ours and one paragraph."""
    found = FUNCTIONS[name](**arguments)
    if isinstance(found, AbstractContextManager) and not isinstance(found, Path):
        with found:
            pass


def required(name: str) -> list[inspect.Parameter]:
    every = inspect.signature(FUNCTIONS[name]).parameters.values()
    return [p for p in every if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_an_argument_cannot_be_is_refused_by_name(name: str, given: Callable[[str, str], Any]) -> None:
    valid = {p.name: given(name, p.name) for p in required(name)}
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if (name, parameter.name) in UNCHECKED:
            continue
        for wrong in wrongs(parameter):
            with pytest.raises(ms.MechsafetyError) as raised:
                called(name, valid | {parameter.name: wrong})
            assert "\n" not in str(raised.value)
            assert 10 < len(str(raised.value)) < 1200


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_where_something_is_needed_is_no_traceback(
    name: str, given: Callable[[str, str], Any]
) -> None:
    valid = {p.name: given(name, p.name) for p in required(name)}
    for parameter in required(name):
        hint = str(parameter.annotation)
        nothing: list[Any] = [] if "None" in hint else [None]
        nothing += [pd.DataFrame()] if "DataFrame" in hint or "Like" in hint else []
        nothing += [()] if "Sequence" in hint or "Like" in hint else []
        nothing += [torch.zeros(0)] if "Tensor" in hint else []
        for value in nothing:
            if parameter.name in MAY_BE_EMPTY or parameter.name in ("doses", "examples", "maps", "items"):
                continue
            with pytest.raises(ms.MechsafetyError):
                called(name, valid | {parameter.name: value})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_argument_names_the_nearest_and_a_missing_one_is_named(name: str) -> None:
    first = next(iter(inspect.signature(FUNCTIONS[name]).parameters))
    with pytest.raises(ms.MechsafetyError, match=rf"has no argument '{first}x'; did you mean {first}\?"):
        FUNCTIONS[name](**{f"{first}x": 1})
    if not required(name):
        return
    with pytest.raises(ms.MechsafetyError, match=rf"^{name}\(\): missing a required .*'{first}'"):
        FUNCTIONS[name]()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"direction": torch.zeros(32)}, "direction is zero"),
        ({"direction": torch.ones(31)}, r"direction is .* with the d_model 32 of harmful is needed"),
        ({"harmless": torch.ones(6, 31)}, r"harmless is .* \[b d_model\] with the d_model 32 of harmful"),
        ({"kind": "matchd"}, "'matchd' is not one of matched, isotropic"),
        ({"harmless": torch.ones(1, 32)}, "2 of each at least"),
        ({"n": -1}, "0 to 200 are drawn"),
    ],
)
def test_control_directions_of_what_cannot_be(
    change: dict[str, Any], said: str, given: Callable[[str, str], Any]
) -> None:
    valid = {p.name: given("control_directions", p.name) for p in required("control_directions")}
    with pytest.raises(ms.MechsafetyError, match=said):
        ms.control_directions(**valid | change)


def test_control_valid_arguments_pass_the_boundary(given: Callable[[str, str], Any]) -> None:
    for name in ("find_directions", "jaccard_table", "logit_lens", "load_prompts", "render"):
        called(name, {p.name: given(name, p.name) for p in required(name)})


def test_numpys_numbers_are_numbers(given: Callable[[str, str], Any]) -> None:
    cache = given("find_directions", "cache")
    assert ms.find_directions(cache, seed=np.int64(3), resamples=2).seed == 3


def test_makers_are_public() -> None:
    for maker in MAKERS.values():
        if maker.startswith("ms."):
            assert callable(attrgetter(maker.removeprefix("ms."))(ms)), maker


VERDICTS = pd.DataFrame(
    {
        "system": "s",
        "arm": ["original", "edited"],
        "id": "p",
        "label": "harmful",
        "judge": "rules",
        "verdict": "refusal",
    }
)
NUMBERS = {
    "rate",
    "width",
    "n",
    "b",
    "c",
    "baseline",
    "drop",
    "kappa",
    "sensitivity",
    "specificity",
    "responses",
}
NUMBERS |= {"seed", "share", "successes", "refused", "hits", "positives", "rejections", "negatives"}


def statistic(name: str) -> dict[str, Any]:
    """A valid value for each argument that a statistic cannot do without."""
    found: dict[str, Any] = {}
    for parameter in inspect.signature(STATISTICS[name]).parameters.values():
        hint = str(parameter.annotation)
        if parameter.default is not parameter.empty:
            continue
        made: dict[str, Any] = {"effects": ms.statistics.judge_effects(VERDICTS), "primary": "rules"}
        usual = VERDICTS if "DataFrame" in hint else 1 if parameter.name in NUMBERS else [0.5, 0.5]
        found[parameter.name] = made.get(parameter.name, usual)
    return found


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_refuse_what_an_argument_cannot_be(name: str) -> None:
    """Wrong types, letters for numbers, NaN for a count, and tables that are empty or lack a column."""
    valid = statistic(name)
    for parameter in inspect.signature(STATISTICS[name]).parameters.values():
        hint = str(parameter.annotation)
        wrong: list[Any] = [object()]
        wrong += ["no such thing"] if "str" not in hint else []
        wrong += [math.nan] if hint == "int" else []
        wrong += [pd.DataFrame({"a": [1]})] if hint == "pd.DataFrame" else []
        for value in wrong:
            with pytest.raises(ms.MechsafetyError) as raised:
                STATISTICS[name](**valid | {parameter.name: value})
            assert "\n" not in str(raised.value)
    with pytest.raises(ms.MechsafetyError, match=r"has no argument 'sed'"):
        STATISTICS[name](**valid, sed=1)
    if valid:
        with pytest.raises(ms.MechsafetyError, match=rf"^{name}\(\): missing a required"):
            STATISTICS[name]()


def test_statistics_take_lists_and_what_is_missing() -> None:
    assert ms.statistics.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])  # type: ignore[arg-type]
    assert math.isnan(ms.statistics.largest_p([(7, 0, math.nan)]))
    assert math.isnan(ms.statistics.rank_p(math.nan, [0.5] * 19))
    assert ms.statistics.auroc_interval([0, 1, 2, 3], [0, 0, 1, 1]).value == 1
    with pytest.raises(
        ms.MechsafetyError, match=r"^kappa\(\): a is .* a list, an array or a column is needed"
    ):
        ms.statistics.kappa("RRCC", "RRCC", clusters=range(4))


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_what_is_no_table_are_refused(name: str) -> None:
    function = getattr(ms.plots, name)
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    with pytest.raises(ms.MechsafetyError, match=r" needed"):
        function(**dict.fromkeys(needed, object()))


def test_figures_take_their_options_at_the_boundary() -> None:
    rates = ms.statistics.refusal_rates(VERDICTS)
    assert ms.plots.refusal_heatmap(rates, title="Own", width=500).layout.title.text == "Own"
    with pytest.raises(ms.MechsafetyError, match="width"):
        ms.plots.refusal_heatmap(rates, width="wide")


def test_every_path_is_a_str_or_a_path() -> None:
    """Fault 4: functions and methods of public classes take both."""
    found = list(FUNCTIONS.values())
    classes = [
        c for space in SPACES.values() for n in space.__all__ if inspect.isclass(c := getattr(space, n))
    ]
    found += [f for c in classes for n, f in inspect.getmembers(c, callable) if not n.startswith("_")]
    hints = [
        str(hint)
        for f in found
        for name, hint in getattr(inspect.unwrap(f), "__annotations__", {}).items()
        if name != "return"
    ]
    paths = [hint for hint in hints if "Path" in hint and "pathlib" not in hint]
    assert len(paths) > 15
    assert [hint for hint in paths if "str" not in hint] == []
