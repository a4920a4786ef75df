"""Public names that load when they are first used; each stands once, in the ``.pyi`` beside its package."""

from __future__ import annotations

import ast
import functools
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mechsafety.core.arguments import nearest
from mechsafety.core.boundary import public
from mechsafety.core.signatures import readable_config


def public_names(
    package: str, file: str, *, missing: bool = False
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of ``package``, from the stub beside ``file``.

    The stub's lines are ``from .module import name as name``, with as many dots as it takes, or ``from . import package
    as package``. (lazy_loader reads stubs of one dot alone, which no name space over several packages can do with.)
    Arguments of functions are checked (:func:`mechsafety.core.boundary.public`); NaN is no error where they may be
    ``missing``.
    """
    homes: dict[str, tuple[str, str]] = {}
    tree = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            home = f"{base}.{node.module}" if node.module else base
            homes |= {alias.asname or alias.name: (home, alias.name) for alias in node.names}

    taken = {name for name, (home, own) in homes.items() if home == f"{package}.{own}"}

    class Package(types.ModuleType):
        """A function that is called as its module keeps its name when the module is imported."""

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in taken and isinstance(value, types.ModuleType)):
                super().__setattr__(name, value)

    sys.modules[package].__class__ = Package

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{_elsewhere(name, homes)}")
        home, own = homes[name]
        if home == package:
            return importlib.import_module(f"{package}.{own}")
        found = getattr(importlib.import_module(home), own)
        if hasattr(found, "model_fields"):  # a config of pydantic
            found.__signature__ = readable_config(found)
        return (
            public(found, package, name, missing=missing) if isinstance(found, types.FunctionType) else found
        )

    return functools.cache(load), lambda: sorted(homes), sorted(homes)


def _elsewhere(name: str, homes: Mapping[str, tuple[str, str]]) -> str:
    """Where a name is that is not among ``homes``: in one of the name spaces there, or the one most like it."""
    if name.startswith("_"):  # notebooks and debuggers ask for many of these
        return ""
    spaces = [f"{home}.{own}" for home, own in homes.values() if "." not in home]
    known = [space for space in spaces if name in dir(importlib.import_module(space))]
    found = [f"{space.replace('mechsafety', 'ms', 1)}.{name}" for space in known]
    return f": it is {' or '.join(found)}" if found else nearest(name, homes)
