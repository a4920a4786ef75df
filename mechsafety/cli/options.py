"""Options of a command made from the fields of its configuration: name, type, default and help stand there once."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mechsafety.cli.base import SectionedOption
from mechsafety.core.arguments import listed
from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.config import Option, checked_config, headings, whole_numbers

F = TypeVar("F", bound=Callable[..., Any])
_TYPES: dict[Any, tuple[Any, str]] = {int: (int, "N"), float: (float, "X"), Path: (Path, "PATH")}


def config_options(kind: type[BaseModel], *, leave_out: Collection[str] = ()) -> Callable[[F], F]:
    """Give a command an option, or an argument, for each field of ``kind``.

    The function receives ``config``, checked, in place of the fields. Fields in ``leave_out`` have no option; the
    function then receives ``given``, the fields that were named, and makes the configuration itself.
    """

    def wrap(function: F) -> F:
        takes_config = "config" in inspect.signature(function).parameters

        @functools.wraps(function)
        def call(**options: Any) -> Any:
            given = _parsed(kind, options)
            made = {"config": checked_config(kind, given)} if takes_config else {"given": given}
            return function(**made, **options)

        wrapped: Any = call
        # click builds a command's parameters from the last one to the first.
        sections = headings(kind)
        for name in reversed([n for n in sections if n not in leave_out]):
            group = _group(kind.model_fields[name])
            fields = {name: kind.model_fields[name]} if group is None else group.model_fields
            for one in reversed(fields):
                wrapped = _parameter(one, fields[one], sections[name])(wrapped)
        return wrapped

    return wrap


def _parsed(kind: type[BaseModel], options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, taken out of all, as the configuration takes them."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if (group := _group(field)) is not None:
            found |= {name: inner} if (inner := _parsed(group, options)) else {}
        elif name in options and (value := options.pop(name)) not in (None, ()):
            found[name] = _value(name, field, value)
    return found


def _group(field: FieldInfo) -> type[BaseModel] | None:
    """The configuration that a field holds always, whose own fields are options."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _value(name: str, field: FieldInfo, given: Any) -> Any:
    option, inner, several = _option_of(field), *_inner(field)
    if option.parse is not None:
        return (
            tuple(option.parse(one) for one in given)
            if several and option.many == "repeat"
            else option.parse(given)
        )
    if not several:
        return given
    if option.many == "repeat":
        return tuple(given if option.argument else dict.fromkeys(given))
    if inner is int:
        return whole_numbers(given, _flag(name, option))
    values = tuple(listed(given))
    allowed = get_args(inner) if get_origin(inner) is Literal else values
    if unknown := [value for value in values if value not in allowed]:
        raise MechsafetyError(
            f"{_flag(name, option)} {given!r}: {unknown[0]!r} is not one of {', '.join(allowed)}"
        )
    return values


def _parameter(name: str, field: FieldInfo, section: str) -> Callable[[Any], Any]:
    option, inner, several = _option_of(field), *_inner(field)
    text, kind = option.parse is not None or (several and option.many == "commas"), str
    metavar = option.metavar
    if get_origin(inner) is Literal and not text:
        kind = click.Choice([str(choice) for choice in get_args(inner)])
    elif not text:
        kind, letter = _TYPES.get(inner, (str, "NAME"))
        metavar = metavar or letter
    if option.argument:
        shown = metavar if option.metavar else name.upper()
        return click.argument(name, nargs=-1 if several else 1, type=kind, metavar=shown)
    takes: dict[str, Any] = {"is_flag": True}
    if inner is not bool:
        multiple = several and option.many == "repeat"
        takes = {"type": kind, "multiple": multiple, "required": field.is_required(), "metavar": metavar}
    return click.option(
        *(_flag(name, option), name),
        cls=SectionedOption,
        section=section,
        default=None,
        help=_help(field),
        **takes,
    )


def _option_of(field: FieldInfo) -> Option:
    return next((m for m in field.metadata if isinstance(m, Option)), Option())


def _flag(name: str, option: Option) -> str:
    return option.name or f"--{name.replace('_', '-')}"


def _inner(field: FieldInfo) -> tuple[Any, bool]:
    """The type of one value, and whether the field holds several."""
    kinds = [_bare(k) for k in _alternatives(field.annotation) if k is not type(None)]
    for kind in kinds:
        if get_origin(kind) is tuple:
            return _bare(get_args(kind)[0]), True
        if get_origin(kind) is dict:  # each entry is one text
            return str, True
    return (kinds[0] if len(kinds) == 1 else str), False


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    """The type without what ``Annotated`` adds to it."""
    return get_args(kind)[0] if hasattr(kind, "__metadata__") else kind


def _help(field: FieldInfo) -> str:
    about = field.description or ""
    about = about[:1].upper() + about[1:]
    option, default = _option_of(field), field.default
    ending = " May be repeated." if option.many == "repeat" and _inner(field)[1] else ""
    about = f"{about}{'' if about.endswith('.') else '.'}{ending}" if about else ending.strip()
    if option.default is None and (default in (None, (), {}) or default is False or field.is_required()):
        return about
    shown = option.default or _spelt(default)
    return f"{about}  [default: {shown}]"


def _spelt(default: Any) -> str:
    """A default as it would be given: values of one tuple with commas, several tuples one after another."""
    if isinstance(default, float):
        return f"{default:g}"
    if not isinstance(default, tuple):
        return str(default)
    nested = any(isinstance(value, tuple) for value in default)
    return (" " if nested else ",").join(map(_spelt, default))
