"""Signatures of public names as ``help()`` and a notebook show them: types by their names, defaults in one word."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin


class Shown(str):
    """A text that shows itself without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def readable(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function with annotations and defaults that can be read."""
    signature = inspect.signature(function)
    parameters = [
        p.replace(annotation=_hint(p.annotation), default=_default(p.default))
        for p in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters, return_annotation=_hint(signature.return_annotation))


def readable_config(config: Any) -> inspect.Signature:
    """The same of a pydantic model: its fields, without what checks them."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Shown(type_name(field.annotation)),
                default=_field_default(field),
            )
            for name, field in config.model_fields.items()
        ]
    )


def _field_default(field: Any) -> Any:
    if field.is_required():
        return inspect.Parameter.empty
    if field.default_factory_takes_validated_data:  # made of other fields
        return Shown("...")
    return _default(field.get_default(call_default_factory=True))


def type_name(hint: Any) -> str:
    """A type as it is written: ``Sequence[int] | None``."""
    origin, given = get_origin(hint), get_args(hint)
    if hint is None or hint is type(None):
        return "None"
    if hint is Ellipsis:
        return "..."
    if origin is Annotated:
        return type_name(given[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(type_name, given))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, given))}]"
    name = getattr(origin or hint, "__name__", str(origin or hint))
    return f"{name}[{', '.join(map(type_name, given))}]" if given else name


def _hint(annotation: Any) -> Any:
    return annotation if annotation is inspect.Parameter.empty else Shown(_as_text(annotation))


def _as_text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else type_name(annotation)


def _default(value: Any) -> Any:
    return Shown(value.__name__.strip("<>_")) if isinstance(value, types.FunctionType) else value
