"""What the configurations of experiments share: how models are loaded, the seed, and where tasks run."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mechsafety.core.arguments import nearest, shown
from mechsafety.core.days import Day
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.signatures import type_name
from mechsafety.core.values import short
from mechsafety.experiments.known_names import require_known
from mechsafety.models.chat_settings import ChatSettings, Thinking

C = TypeVar("C", bound=BaseModel)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """How a field is given on the command line, where its name and type do not determine it.

    Fields are annotated with it: ``Annotated[tuple[Part, ...], Option(name="--part")]``. ``argument`` makes it
    positional; ``many`` records whether several values repeat the option or stand behind it with commas between them;
    ``parse`` reads one text; ``default`` is shown in place of the field's default.
    """

    name: str | None = None
    metavar: str | None = None
    argument: bool = False
    many: Literal["repeat", "commas"] = "repeat"
    parse: Callable[[str], Any] | None = None
    default: str | None = None


SplitPrompts = Annotated[str, Option(metavar="SET"), Field(description="fit, validation and report prompts")]
AnyPrompts = Annotated[str, Option(metavar="SET"), Field(description="prompts: packaged, hub or file")]


class _Named(type(BaseModel)):
    """Made with a wrong field or value, a configuration raises one line of ours instead of pydantic's several."""

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        if args:
            raise MechsafetyError(
                f"{cls.__name__} takes its fields by name, {cls.__name__}(field=...), got {shown(args[0])}"
            )
        try:
            made = super().__call__(**fields)
        except ValidationError as error:
            raise MechsafetyError(first_error(error, cls)) from None  # type: ignore[arg-type]
        require_known(made, fields)
        return made


class Config(BaseModel, metaclass=_Named):
    """A checked, frozen configuration. Descriptions of its fields are the help texts of the command's options."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    headings: ClassVar[Mapping[str, str]] = {}
    """Where a section of the command's help begins: the heading by the first field under it."""

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Of the fields those that were given."""
        return [(name, value) for name, value in super().__repr_args__() if name in self.model_fields_set]

    def __str__(self) -> str:
        return repr(self)

    def __dir__(self) -> list[str]:
        """The fields and what is made of them, not pydantic's own names."""
        made = [
            name
            for kind in type(self).__mro__
            for name, one in vars(kind).items()
            if isinstance(one, property)
        ]
        return sorted(
            {*type(self).model_fields, *(name for name in made if "model_" not in name), "model_copy"}
        )

    def _repr_html_(self) -> str:
        """Every field with its value; those that were given in bold."""
        rows = "".join(
            f"<tr><td>{f'<b>{name}</b>' if name in self.model_fields_set else name}</td>"
            f"<td>{escape(short(getattr(self, name), 80))}</td></tr>"
            for name in in_order(type(self))
        )
        return f"<b>{type(self).__name__}</b><table>{rows}</table>"

    def __setattr__(self, name: str, value: Any) -> None:
        raise MechsafetyError(
            f"a configuration does not change: config.model_copy(update={{{name!r}: ...}}) makes another"
        )

    def model_copy(self: C, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> C:  # noqa: ARG002
        """Another one with these fields, checked as a whole; what was not given follows from the others again."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        made = _validated(type(self), {**given, **(update or {})})
        require_known(made, update or {})
        return made

    @model_validator(mode="before")
    @classmethod
    def _as_given(cls, given: Any) -> Any:
        """One text where several may stand is one; paths are texts, loaded models the specs they were loaded from."""
        if not isinstance(given, Mapping):
            return given
        kinds = {name: type_name(one.annotation) for name, one in cls.model_fields.items()}
        return {name: _fitted(value, kinds.get(name, "")) for name, value in given.items()}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\nFields:\n{_field_lines(cls)}"


def _fitted(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind.startswith("tuple[str, ...]"):
        one = isinstance(value, str | Path) or hasattr(value, "cfg")
        return (_text(value),) if one else tuple(map(_text, value)) if isinstance(value, Iterable) else value
    if kind.startswith("tuple[Literal") and isinstance(value, str):
        return (value,)
    if kind.startswith(("tuple[int, ...]", "tuple[float, ...]")) and not isinstance(value, str | Iterable):
        return (value,)
    return _text(value) if kind.startswith(("str", "Literal")) else value


def _text(value: Any) -> Any:
    if isinstance(value, Path) or type(value).__module__ == "torch":  # a number format or a device
        return str(value).removeprefix("torch.")
    if hasattr(value, "cfg"):  # a loaded model
        from mechsafety.models.accepted import named

        return named(value)
    return value


def _field_lines(kind: type[BaseModel]) -> str:
    """A line per field: its name, its default and its description."""
    lines = []
    for name, one in kind.model_fields.items():
        if one.default_factory is not None:
            default = "depends on the others"
        else:
            default = "required" if one.is_required() else repr(one.default)
        shown = default if len(default) <= 60 else f"{default[:57]}..."
        about = f": {one.description}" if one.description else ""
        lines.append(f"    {name} ({shown}){about}")
    return "\n".join(lines)


def first_error(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line; of an unknown field the nearest one that there is."""
    first = error.errors()[0]
    if not first["loc"]:  # about several fields at once: the message names them, the input is all of them
        return first["msg"].removeprefix("Value error, ")
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{kind.__name__} needs {name}: give {kind.__name__}({name}=...)"
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        return f"{name}: {message} (got {shown(first['input']).rpartition(' (')[0]}){_remedy(first)}"
    *outer, wrong = (str(part) for part in first["loc"])
    for part in outer:
        inner = kind.model_fields[part].annotation if part in kind.model_fields else None
        kind = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else kind
    hint = nearest(wrong, kind.model_fields)
    return f"{name}: {kind.__name__} has no such field{hint}; its fields are {', '.join(kind.model_fields)}"


def _remedy(first: Any) -> str:
    """What to do about a value of the wrong kind, as far as that is known."""
    given = first["input"]
    if first["type"] == "literal_error":
        return nearest(given, re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    if hasattr(given, "to_csv") or hasattr(given, "to_frame"):
        table = "data" if hasattr(given, "to_csv") else "data.to_frame()"
        return f"; a file is named here: {table}.to_csv('own.csv', index=False) writes one"
    if callable(given):
        return (
            "; a run asks judges by their names: a function judges its answers, ms.judge(answers, function)"
        )
    return ""


def _named_values(given: Any) -> Any:
    """``("key=value", ...)`` as a mapping; a value is JSON, or else text."""
    if isinstance(given, str) or not isinstance(given, list | tuple):
        return given
    found: dict[str, Any] = {}
    for pair in given:
        name, equals, text = str(pair).partition("=")
        if not equals or not name.isidentifier():
            raise MechsafetyError(
                f"{way('--chat-arg', 'template_arguments')} {pair!r}: key=value is "
                "expected, e.g. enable_thinking=false or date_string=2025-03-01"
            )
        if name in found:
            raise MechsafetyError(
                f"{way('--chat-arg', 'template_arguments')} {name} is given twice: give it once"
            )
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


class ChatConfig(Config):
    """How prompts are put to a model (:class:`ChatSettings`)."""

    system_prompt: Annotated[str | None, Option(metavar="TEXT")] = Field(
        default=None, description="system prompt, instead of the template's own"
    )
    template_arguments: Annotated[
        dict[str, Any], Option(name="--chat-arg", metavar="KEY=VALUE"), BeforeValidator(_named_values)
    ] = Field(default={}, description="a variable of the chat template, with its value as JSON or text")
    answer_prefix: Annotated[str | None, Option(metavar="TEXT")] = Field(
        default=None, description="text that every answer begins with"
    )
    thinking: Annotated[Thinking, BeforeValidator(lambda given: "off" if given is False else given)] = Field(
        default="off", description="whether a model is kept from thinking before it answers"
    )
    max_thought_tokens: int = Field(
        default=1024,
        ge=1,
        description="longest thought of a model that is left thinking; a longer one has no answer",
    )

    @model_validator(mode="after")
    def _check(self) -> ChatConfig:
        _ = self.settings  # raises where they contradict each other
        return self

    @property
    def settings(self) -> ChatSettings:
        return ChatSettings(**self.model_dump())


class EngineConfig(Config):
    """Where an experiment runs. No number depends on it, so a run may be gone on with on another engine."""

    headings: ClassVar[Mapping[str, str]] = {"engine": "Where it runs"}
    engine: Literal["local", "ray"] = Field(
        default="local", description="run on this machine, or as tasks on the workers of a ray cluster"
    )
    address: Annotated[str | None, Option(metavar="HOST:PORT|auto")] = Field(
        default=None,
        description="ray: the cluster's address; auto finds it; workers on this machine when empty",
    )
    gpus_per_task: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="ray: GPUs of each worker; 0 when empty"
    )
    cpus_per_task: int | None = Field(
        default=None,
        ge=1,
        description="threads of torch of each worker, on ray also its CPUs; when empty 1 on ray, here an equal share",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="processes that work side by side; when empty 1, on ray as many as there is room for",
    )

    @field_validator("gpus_per_task")
    @classmethod
    def _part_or_whole(cls, given: float | None) -> float | None:
        """Ray divides one GPU, into ten thousandths at most, and hands out whole ones."""
        if given is None or given == 0 or 1e-4 <= given <= 1 or given == int(given):
            return given
        raise ValueError("a part of one GPU, or a whole number of them, is expected")

    @property
    def on_workers(self) -> bool:
        """Whether other processes work."""
        return self.engine == "ray" or (self.workers or 1) > 1

    @model_validator(mode="after")
    def _of_workers(self) -> EngineConfig:
        if self.engine == "ray":
            return self
        for name in ("address", "gpus_per_task"):
            if getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{way(option, name)} is about ray: give {way('--engine ray')} too")
        if self.cpus_per_task is not None and not self.on_workers:
            raise ValueError(
                f"{way('--cpus-per-task', 'cpus_per_task')} is about several workers: give {way('--workers')} or "
                f"{way('--engine ray')} too"
            )
        return self


ENGINE_FIELDS = tuple(EngineConfig.model_fields)


class LoadingConfig(Config):
    """How models are loaded."""

    headings: ClassVar[Mapping[str, str]] = {"template": "Chat template", "dtype": "Models", "seed": ""}
    template: Annotated[str | None, Option(metavar="NAME|FILE")] = Field(
        default=None,
        description="chat template: plain, few-shot, or a Jinja file; own-or-plain and own-or-few-shot for models "
        "without one alone; the model's own when empty",
    )
    date: Annotated[Day | None, Option(metavar="DAY")] = Field(
        default=None,
        description="the day (2025-03-01) that templates with a date write; the day the run began when empty",
    )
    chat: ChatConfig = Field(default=ChatConfig(), description="how prompts are put to models")
    dtype: Dtype = Field(
        default="auto", description="number format; auto: bfloat16 where it is native, else float32"
    )
    device: str = Field(default="auto", description="where models run: auto, cpu, cuda, ...")
    device_map: Literal["auto"] | None = Field(
        default=None, description="auto: divide models among all GPUs, block by block; one device when empty"
    )
    max_memory: Annotated[str | None, Option(metavar="0=20GiB,1=20GiB")] = Field(
        default=None, description="what each device may hold of a divided model"
    )
    seed: int = Field(default=0, ge=0, description="every random draw depends on it")

    @property
    def placing(self) -> dict[str, Any]:
        """Where models lie, as arguments of ``load_model``."""
        return {"device": self.device, "device_map": self.device_map, "max_memory": self.max_memory}

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of ``load_model``, but for the date, which the run pins."""
        return {
            "dtype": self.dtype,
            "template": self.template,
            "chat": self.chat.settings,
            **self.placing,
        }


class ModelConfig(LoadingConfig, EngineConfig):
    """The configuration of an experiment that loads models."""


class FedConfig(ModelConfig):
    """The configuration of an experiment that can change prompts before a model reads them."""

    headings: ClassVar[Mapping[str, str]] = {"truncate_prompts": "Prompts"}
    truncate_prompts: bool = Field(
        default=False, description="cut prompts that do not fit in the model's window at their end"
    )
    escape_control_tokens: bool = Field(
        default=False, description="break the model's control tokens in prompts by a blank"
    )

    @property
    def feeding(self) -> dict[str, bool]:
        """The same as arguments of ``fed``."""
        return {"truncate": self.truncate_prompts, "escape": self.escape_control_tokens}


class EditedConfig(ModelConfig):
    """The configuration of an experiment on one model under an edit, or as it is."""

    model: Annotated[str, Option(argument=True)]
    edit: Annotated[str | None, Option(metavar="FILE|EXPR")] = Field(
        default=None,
        description="a saved edit, or e.g. ablate(directions.safetensors, layer=22, alpha=0.5); several with + between",
    )


def in_order(kind: type[BaseModel]) -> list[str]:
    """A configuration's own fields, then those that every experiment with models has."""
    return sorted(kind.model_fields, key=lambda name: name in FedConfig.model_fields)


def headings(kind: type[BaseModel]) -> dict[str, str]:
    """The section of the help that each field stands in, '' where none has begun, in the order of :func:`in_order`."""
    begin: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        begin |= getattr(base, "headings", {})
    found, now = {}, ""
    for name in in_order(kind):
        now = begin.get(name, now)
        found[name] = now
    return found


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """``"3"``, ``"1,5,-2"``, ``"10-20"`` and mixtures of them as numbers, in the order given."""
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if span is None:
            raise MechsafetyError(f"{option} {text!r}: whole numbers and spans such as 3,10-20 are expected")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first or last - first > 100_000:
            raise MechsafetyError(f"{option} {text!r}: the span {part.strip()!r} is empty or too long")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


def checked_config(kind: type[C], fields: Mapping[str, Any]) -> C:
    """A configuration made of its fields. Raises :class:`MechsafetyError` that names the first wrong one."""
    made = _validated(kind, fields)
    require_known(made, fields)
    return made


def _validated(kind: type[C], fields: Mapping[str, Any]) -> C:
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        raise MechsafetyError(first_error(error, kind)) from None
