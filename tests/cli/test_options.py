"""Options of commands are the fields of their configurations: none is missing, none is more, and values arrive."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from mechsafety.cli import base, main
from mechsafety.cli.agreement import PlanConfig
from mechsafety.cli.directions import DirectionConfig
from mechsafety.cli.models import TuneConfig
from mechsafety.cli.options import checked_config, config_options
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.anatomy.config import AnatomyConfig
from mechsafety.experiments.audit.config import AuditConfig
from mechsafety.experiments.comparison.config import ComparisonConfig
from mechsafety.experiments.config import Config, EditedConfig, ModelConfig, Option, headings
from mechsafety.experiments.evaluation.config import EvaluationConfig
from mechsafety.experiments.generation.config import GenerationConfig
from mechsafety.experiments.lab.config import LabConfig
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.regions.config import RegionsConfig
from mechsafety.experiments.robustness.config import RobustnessConfig
from mechsafety.experiments.selfjudgement.config import SelfJudgeConfig
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.costs import Gpu
from mechsafety.experiments.sweep.config import SweepConfig

ALWAYS = {"as_json", "out", "allow_other_versions"}
"""Options of every command that makes a run; those that make none can have no other versions to allow."""
COMMANDS: dict[str, tuple[type[BaseModel], set[str]]] = {
    "anatomy": (AnatomyConfig, set()),
    "audit": (AuditConfig, set()),
    "compare": (ComparisonConfig, {"form"}),
    "direction": (DirectionConfig, set()),
    "evaluate": (EvaluationConfig, set()),
    "export": (EditedConfig, set()),
    "generate": (GenerationConfig, {"save_edit"}),
    "lab": (LabConfig, {"what"}),
    "ladder": (LadderConfig, set()),
    "plan-labels": (PlanConfig, {"run"}),
    "regions": (RegionsConfig, {"study", "dry_run"}),
    "robustness": (RobustnessConfig, set()),
    "selfjudge": (SelfJudgeConfig, set()),
    "study": (StudyConfig, {"source", "print_config", "dry_run", *(field.name for field in fields(Gpu))}),
    "sweep": (SweepConfig, set()),
    "tune": (TuneConfig, set()),
}
"""By command, its configuration and the options that are none of its fields."""
WITHOUT: dict[str, set[str]] = {
    "study": {"sampling", "selfjudge", "nll"},
    "export": {"engine", "address", "gpus_per_task", "cpus_per_task", "workers", "seed"},
}
"""By command, the fields that have no option: sections of a study, which stand in its file; what an export is not."""
BARE = {
    "report",
    "figures",
    "select",
    "judge",
    "annotate",
    "agree",
    "export-inspect",
    "models",
    "doctor",
    "status",
}
"""Commands without a configuration: they read what there is."""


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a configuration, a section among them by the fields of its own."""
    found: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        section: Any = field.annotation
        inside = isinstance(section, type) and issubclass(section, BaseModel)
        found |= fields_of(section) if inside else {name: field}
    return found


def unmatched(kind: type[BaseModel], made: click.Command, *, extras: set[str], without: set[str]) -> set[str]:
    """Fields without an option, and options without a field."""
    options = {p.name for p in made.params if p.name is not None}
    return (set(fields_of(kind)) - without) ^ (options - ALWAYS - extras)


@pytest.mark.parametrize("name", COMMANDS)
def test_fields_and_options_are_the_same(name: str) -> None:
    kind, extras = COMMANDS[name]
    made, without = command(name), WITHOUT.get(name, set())
    assert unmatched(kind, made, extras=extras, without=without) == set()
    assert {p.name for p in made.params} >= {"as_json", *extras}

    class More(kind):  # type: ignore[misc, valid-type]
        another: int = 0

    # The controls: a field that has no option, and an option that no field has.
    assert unmatched(More, made, extras=extras, without=without) == {"another"}
    first = next(field for field in fields_of(kind) if field not in without)
    assert unmatched(kind, made, extras={*extras, first}, without=without) == {first}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_has_the_text_of_its_field(name: str) -> None:
    fields = fields_of(COMMANDS[name][0])
    for parameter in command(name).params:
        if not isinstance(parameter, click.Option) or parameter.name not in fields:
            continue
        field = fields[parameter.name]
        assert field.description, f"{name} {parameter.name} has no description"
        assert parameter.help is not None
        assert field.description.rstrip(".").lower() in parameter.help.lower()
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
            shown = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            assert f"[default: {shown}]" in parameter.help


def twice_or_never(made: click.Command, text: str) -> list[str]:
    """Options that the help does not list exactly once."""
    listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", text.partition("\nOptions:\n")[2], re.MULTILINE)
    flags = [p.opts[-1] for p in made.params if isinstance(p, click.Option)]
    return [flag for flag in [*flags, "--help"] if listed.count(flag) != 1]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_every_option_once_under_headings_of_the_configuration(name: str) -> None:
    kind, made = COMMANDS[name][0], command(name)
    text = CliRunner().invoke(main, [name, "--help"]).output
    assert twice_or_never(made, text) == []
    assert twice_or_never(made, text.replace("--json", "--jsonl")) == ["--json"]  # the control
    for base_class in kind.__mro__:
        assert set(getattr(base_class, "headings", {})) <= set(kind.model_fields)
    for heading in {*headings(kind).values()} - {""}:
        under = text.partition(f"\n{heading}:\n")[2].partition("\n\n")[0]
        own = [n for n, section in headings(kind).items() if section == heading]
        assert under or not {p.name for p in made.params} & set(own), heading


@pytest.mark.parametrize("name", base._COMMANDS)
def test_the_line_in_the_list_of_commands_begins_the_commands_help(name: str) -> None:
    text = " ".join((command(name).help or "").split())
    assert text.startswith(base._COMMANDS[name][1])


def test_every_command_of_a_module_is_listed() -> None:
    for module in {module for module, _ in base._COMMANDS.values()}:
        importlib.import_module(f"mechsafety.cli.{module}")
    assert set(main.commands) == set(base._COMMANDS)
    assert set(base._COMMANDS) == set(COMMANDS) | BARE
    assert not set(COMMANDS) & BARE


# -- values -----------------------------------------------------------------------------------------


def _pair(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise MechsafetyError(f"--pair {text!r}: two numbers with a colon between them")
    return int(found[1]), int(found[2])


class Wanted(ModelConfig):
    """One field of each kind."""

    model: Annotated[str, Option(argument=True)]
    tries: int = Field(default=3, ge=1, description="tries")
    rate: float = Field(default=0.5, description="rate")
    place: Path | None = Field(default=None, description="place")
    fast: bool = Field(default=False, description="fast")
    mode: Literal["a", "b"] = Field(default="a", description="mode")
    tags: Annotated[tuple[str, ...], Option(name="--tag")] = Field(default=(), description="tags")
    modes: tuple[Literal["x", "y"], ...] = Field(default=("x",), description="modes")
    layers: Annotated[tuple[int, ...] | None, Option(many="commas")] = Field(
        default=None, description="layers"
    )
    names: Annotated[tuple[str, ...], Option(many="commas")] = Field(default=("n",), description="names")
    kinds: Annotated[tuple[Literal["x", "y"], ...], Option(many="commas")] = Field(
        default=("x", "y"), description="kinds"
    )
    pairs: Annotated[tuple[tuple[int, int], ...], Option(name="--pair", parse=_pair)] = Field(
        default=((1, 2),), description="pairs"
    )

    @model_validator(mode="after")
    def _together(self) -> Wanted:
        if self.fast and self.tries > 10:
            raise ValueError("--fast goes with 10 tries at most")
        return self


received: list[Any] = []


@click.command()
@config_options(Wanted)
@click.option("--other", default=None)
def wanted(config: Wanted, other: str | None) -> None:
    received.append((config, other))


def given(*arguments: str) -> Wanted:
    result = CliRunner().invoke(wanted, ["m", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return received.pop()[0]


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ("", {}),
        ("--tries 7 --rate 0.25 --place a/b --fast --mode b", {"tries": 7, "rate": 0.25, "place": Path("a/b"), "fast": True, "mode": "b"}),
        ("--tag one --tag two --tag one", {"tags": ("one", "two")}),
        ("--modes y --modes x", {"modes": ("y", "x")}),
        ("--layers 3,10-12,-2", {"layers": (3, 10, 11, 12, -2)}),
        ("--names a,b", {"names": ("a", "b")}),
        ("--kinds y", {"kinds": ("y",)}),
        ("--pair 3:4 --pair 5:6", {"pairs": ((3, 4), (5, 6))}),
        ("--seed 0 --tries 1 --date 2025-03-01", {"seed": 0, "tries": 1, "date": "2025-03-01"}),
    ],
)  # fmt: skip
def test_what_is_given_arrives_and_the_rest_is_the_default(arguments: str, fields: dict[str, Any]) -> None:
    assert given(*arguments.split()) == Wanted(model="m", **fields)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--tries 0", "tries: Input should be greater than or equal to 1 (got 0)"),
        ("--layers 3,x", "--layers '3,x': whole numbers and spans"),
        ("--layers 9-3", "the span '9-3' is empty"),
        ("--kinds x,z", "--kinds 'x,z': 'z' is not one of x, y"),
        ("--pair 3", "--pair '3': two numbers with a colon"),
        ("--date tomorrow", "no day of the calendar"),
        ("--fast --tries 11", "--fast goes with 10 tries at most"),
    ],
)
def test_what_cannot_be_is_reported_in_one_line(arguments: str, said: str) -> None:
    with pytest.raises(MechsafetyError) as caught:
        given(*arguments.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", ["--tries many", "--mode c", "--modes z", "--rate high"])
def test_what_click_detects_shows_the_usage(arguments: str) -> None:
    result = CliRunner().invoke(wanted, ["m", *arguments.split()])
    assert result.exit_code == 2
    assert "Usage: " in result.output
    assert CliRunner().invoke(wanted, []).exit_code == 2  # the argument is missing


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate m --limit 0", "limit: "),
        ("regions m --set-difference 1", "--set-difference '1': two numbers"),
        ("robustness m --samples 0", "samples: "),
        ("audit --seed 0.5", "Usage: "),
    ],
)
def test_a_wrong_value_of_a_command_ends_in_exit_code_2(tmp_path: Path, line: str, said: str) -> None:
    result = CliRunner().invoke(main, [*line.split(), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()
    if said != "Usage: ":
        assert len(result.stderr.splitlines()) == 1


def test_what_is_shown_of_defaults() -> None:
    helps = {p.name: p.help for p in wanted.params if isinstance(p, click.Option)}
    assert helps["rate"] == "Rate.  [default: 0.5]"
    assert helps["fast"] == "Fast."
    assert helps["place"] == "Place."
    assert helps["modes"] == "Modes. May be repeated.  [default: x]"
    assert helps["kinds"] == "Kinds.  [default: x,y]"
    assert str(helps["seed"]).endswith("[default: 0]")  # a nought is a default too


class Left(Config):
    a: int = Field(default=1, description="a")
    b: int = Field(default=2, description="b")


def test_a_field_that_is_left_out_is_given_by_the_function() -> None:
    seen: list[dict[str, Any]] = []

    @click.command()
    @config_options(Left, leave_out=("b",))
    def left(given: dict[str, Any]) -> None:
        seen.append(given)

    assert CliRunner().invoke(left, ["--a", "5"], catch_exceptions=False).exit_code == 0
    assert seen == [{"a": 5}]
    assert CliRunner().invoke(left, ["--b", "5"]).exit_code == 2
    assert checked_config(Left, {"a": 5, "b": 6}) == Left(a=5, b=6)
    with pytest.raises(MechsafetyError, match="c: Left has no such field; its fields are a, b"):
        checked_config(Left, {"c": 7})
