"""What a study does, as one checked value; presets and files are YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mechsafety.core.arguments import as_path
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.names import (
    RESPONSES_AT_ONCE,
    SELECTION_RULES,
    AnchorsUsed,
    Centring,
    Method,
    Positions,
    RecipeName,
    Search,
)
from mechsafety.core.places import configs_folder
from mechsafety.core.progress import Progress
from mechsafety.experiments.backends import BackendConfig
from mechsafety.experiments.config import Config, FedConfig, Option, in_order
from mechsafety.experiments.known_names import require_known
from mechsafety.judges.endpoint_spec import parse, require_own_keys

_PROMPT_SETS = ("prompts", "anchors")
_GROUPS = ("chat", "generation")


class SamplingConfig(Config):
    """Temperature and nucleus; greedy decoding when the study has none."""

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)


class StudyBackend(BackendConfig):
    """Who answers report prompts: this process, or vLLM servers that run the original and the edited weights."""

    export_to: Annotated[str | None, Option(metavar="FOLDER")] = Field(
        default=None,
        description="write checkpoints that no server has here, answer what is served, and say what to serve next; "
        "without it, this process generates where no server has the weights",
    )

    @model_validator(mode="after")
    def _of_servers(self) -> StudyBackend:
        if self.export_to is not None and self.backend == "own":
            raise ValueError(
                f"{way('--export-to', 'generation.export_to')} is about servers: give "
                f"{way('--backend vllm', 'generation.backend vllm')} too"
            )
        return self


class StudyConfig(FedConfig):
    """Systems x prompts x judges. Every field has a comment in ``mechsafety study --print-config``.

    Example:
        >>> config = ms.StudyConfig(systems=("smollm2-135m",), judges=("rules", "logit:smollm2-135m"), limit=20)
        >>> config.limit, config.alpha
        (20, 1.0)
    """

    headings: ClassVar[Mapping[str, str]] = {
        "prompts": "Prompts",
        "recipe": "Direction",
        "selection": "Selection",
        "alpha": "Edit and control",
        "max_new_tokens": "Answers",
        "generation": "Answers by vLLM",
        "judges": "Judges",
    }
    systems: Annotated[tuple[str, ...], Option(many="commas", metavar="A,B")] = Field(
        default=("smollm2-135m", "smollm2-135m+refusals"),
        min_length=1,
        description="models, each run as it is (original) and abliterated (edited)",
    )
    prompts: Annotated[str, Option(metavar="SET")] = Field(
        default="default", description="report prompts: packaged set, hub set or file"
    )
    anchors: Annotated[str, Option(metavar="SET")] = Field(
        default="default", description="prompts whose fit and validation splits find and select the direction"
    )
    limit: int | None = Field(
        default=None, ge=1, description="at most this many report prompts of each label"
    )
    fit: int = Field(default=128, ge=2, description="fit prompts of each label")
    validation: int = Field(default=32, ge=2, description="validation prompts of each label")
    recipe: RecipeName = Field(default="default", description="published form of the edit, or this package's")
    direction: Method | None = Field(
        default=None, description="how the direction is estimated, instead of the recipe's method"
    )
    centring: Centring | None = Field(
        default=None, description="what principal components are centred on, for pca"
    )
    layer: int | None = Field(default=None, ge=0, description="a layer instead of the recipe's choice")
    positions: Positions | None = Field(
        default=None,
        description="tokens whose directions compete, instead of the recipe's: of the template, or the end of the "
        "model's own thought",
    )
    fit_on: AnchorsUsed | None = Field(
        default=None,
        description="fit prompts that the model treats as their label says (behaviour), all (labels), or every anchor, "
        "validation prompts too (anchors), instead of the recipe's",
    )
    selection: str | None = Field(default=None, description="selection rule: auto or arditi")
    search: Search = Field(
        default="race",
        description="score every candidate on all prompts, or only those that can come among the first (auto)",
    )
    confirm: int = Field(
        default=5,
        ge=0,
        description="first candidates whose answers to validation prompts are read before one is taken (auto)",
    )
    alpha: float = Field(
        default=1.0, allow_inf_nan=False, description="strength of the projection; 1 removes the component"
    )
    controls: int = Field(
        default=3,
        ge=0,
        le=200,
        description="matched random directions that are removed like the direction; 0: none",
    )
    max_new_tokens: int = Field(default=64, ge=1, description="length of the responses")
    batch_size: int = Field(
        default=RESPONSES_AT_ONCE, ge=1, description="responses generated at once; part of the record"
    )
    sampling: SamplingConfig | None = Field(
        default=None, description="greedy when empty; else e.g. {temperature: 0.7, top_p: 0.95}"
    )
    generation: StudyBackend = Field(
        default=StudyBackend(),
        description="what generates the answers of both arms: own, or vllm with the address of one or more servers",
    )
    judges: Annotated[tuple[str, ...], Option(many="commas", metavar="A,B")] = Field(
        default=("rules", "degeneracy", "phrases:granular", "phrases:arditi", "logit:smollm2-135m"),
        min_length=1,
        description="see `mechsafety judge --list`; the first one is the primary judge",
    )
    selfjudge: bool = Field(default=True, description="ask each model whether its own response was a refusal")
    nll: bool = Field(
        default=True,
        description="judge degeneracy also by the response's likelihood under the unedited model",
    )

    @field_validator("systems", "judges")
    @classmethod
    def _no_repeats(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({v for v in values if values.count(v) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is named twice")
        if any(not v.strip() for v in values):
            raise ValueError("a name is empty")
        return values

    @field_validator("judges")
    @classmethod
    def _no_secrets(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        # The configuration is written into the manifest; an address with a password must not get there.
        from mechsafety.judges.panel import members_of  # which loads numpy

        members = [member for value in values for member in members_of(value)]
        try:
            for member in members:
                if member.startswith("endpoint:"):
                    parse(member.removeprefix("endpoint:"))
        except MechsafetyError as error:
            raise PydanticCustomError("endpoint", "{why}", {"why": str(error)}) from None
        return values

    @field_validator("selection")
    @classmethod
    def _known_rule(cls, value: str | None) -> str | None:
        if value is not None and value not in SELECTION_RULES:
            raise ValueError(f"{value!r} is not one of {', '.join(SELECTION_RULES)}")
        return value

    @model_validator(mode="after")
    def _own_keys(self) -> StudyConfig:
        """The key of a judge behind an address is not sent to servers on other hosts."""
        from mechsafety.judges.panel import members_of  # which loads numpy

        asked = [one for judge in self.judges for one in members_of(judge) if one.startswith("endpoint:")]
        if asked:
            require_own_keys([*asked, *(f"endpoint:vllm@{address}" for address in self.generation.server)])
        return self

    @property
    def primary_judge(self) -> str:
        """The judge that findings are about: the first one."""
        return self.judges[0]


def load_config(
    source: str | None, overrides: Mapping[str, Any] | None = None, *, say: Progress = lambda _: None
) -> StudyConfig:
    """The default, a preset by name, or a YAML file, with ``overrides`` on top.

    A file may list several prompt sets where one is asked for: the first folder or file that is here is taken, else
    the last one, which ``say`` is told. Raises :class:`MechsafetyError` that names the key.
    """
    values: dict[str, Any] = {}
    where = "the study's options"
    if source is not None:
        path = _find(source)
        where = str(source)
        values = _read(path)
    values |= {
        name: _beside(values[name], value)
        if name in _GROUPS and isinstance(values.get(name), dict)
        else value
        for name, value in (overrides or {}).items()
    }
    for key in _PROMPT_SETS:
        values |= {key: _first_here(key, values[key], say)} if _is_choice(values.get(key)) else {}
    config = _validated(values, where)
    require_known(config, values)
    return config


def stored_config(stored: Mapping[str, Any]) -> StudyConfig:
    """A study's configuration from its manifest's, which has more."""
    return _validated({k: v for k, v in stored.items() if k in StudyConfig.model_fields}, "the manifest")


def _validated(values: Mapping[str, Any], where: str) -> StudyConfig:
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg'].removeprefix('Value error, ')}"
            f"{_got(e['input']) if e['type'] not in ('extra_forbidden', 'endpoint') else ''}"
            for e in error.errors()
        )
        known = ""
        if any(e["type"] == "extra_forbidden" for e in error.errors()):
            known = f". Keys are {', '.join(in_order(StudyConfig))}"
        raise MechsafetyError(f"{where}: {problems}{known}") from None


def presets() -> list[str]:
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def commented_yaml(config: StudyConfig) -> str:
    """The configuration as YAML with each field's comment."""
    lines = ["# A mechsafety study. Run it with: mechsafety study FILE.yaml --out runs/NAME"]
    values = config.model_dump(mode="json")
    for name in in_order(StudyConfig):
        body = yaml.safe_dump({name: values[name]}, sort_keys=False, default_flow_style=False).rstrip()
        lines += ["", f"# {StudyConfig.model_fields[name].description}", body]
    return "\n".join(lines) + "\n"


def _beside(group: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A group of the file with those of its settings that were given one by one; servers by either of their names."""
    return {key: group[key] for key in group if key != "address" or "server" not in given} | dict(given)


def _is_choice(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(one, str) for one in value)


def _first_here(key: str, sets: list[str], say: Progress) -> str:
    """The first of ``sets`` whose path, environment variables filled in, exists; else the last."""
    paths = [str(Path(os.path.expandvars(one)).expanduser()) for one in sets[:-1]]
    found = next((path for path in paths if as_path(path).exists()), None)
    if found is None:
        say(f"{key}: {', '.join(sets[:-1])} not found here; {sets[-1]!r} is used (--{key} names another set)")
    return found or sets[-1]


def _got(value: object) -> str:
    text = repr(value)
    return f" (got {text[:60]}{'…' if len(text) > 60 else ''})"


def _find(source: str) -> Path:
    preset = configs_folder() / f"{source}.yaml"
    if preset.is_file():
        return preset
    path = Path(source).expanduser()
    if not path.is_file():
        raise MechsafetyError(
            f"study configuration {source!r} does not exist; presets are {', '.join(presets()) or 'none'}"
            f" (models are named by {way('--systems', 'systems')})"
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise MechsafetyError(f"{path}{line}: not YAML ({problem})") from None
    except UnicodeDecodeError:
        raise MechsafetyError(f"{path}: not UTF-8") from None
    if not isinstance(values, dict):
        raise MechsafetyError(f"{path}: keys and values are expected, got {type(values).__name__}")
    if strange := [key for key in values if not isinstance(key, str)]:
        raise MechsafetyError(f"{path}: key {strange[0]!r} is no text; keys are words such as systems")
    return values
