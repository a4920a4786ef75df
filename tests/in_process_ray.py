"""As much of ray as the engine uses, in this process: a call is made when its result is asked for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class _Call:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.result = functools.cache(function)


class _Method:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def options(self, **_: Any) -> _Method:
        return self

    def remote(self, *arguments: Any, **named: Any) -> _Call:
        return _Call(lambda: self.function(*arguments, **named))


class _Handle:
    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self.actor, name))


class _Kind:
    def __init__(self, kind: type) -> None:
        self.kind = kind

    def options(self, **_: Any) -> _Kind:
        return self

    def remote(self, *arguments: Any, **named: Any) -> _Handle:
        return _Handle(self.kind(*arguments, **named))


def _wait(calls: Sequence[_Call], *, num_returns: int, timeout: float) -> tuple[list[_Call], list[_Call]]:
    assert timeout >= 0
    for call in calls[:num_returns]:
        with suppress(RayError):
            call.result()
    return list(calls[:num_returns]), list(calls[num_returns:])


class RayError(Exception):
    """What a dead worker's result raises."""


def put_in(monkeypatch: pytest.MonkeyPatch, *, cpus: int = 2) -> None:
    """Let ``import ray`` find this, with one machine of so many CPUs."""
    ray: Any = ModuleType("ray")
    ray.is_initialized = lambda: True
    ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}}]
    ray.cluster_resources = lambda: {"CPU": float(cpus)}
    ray.put = lambda value: value
    ray.remote = lambda **_: _Kind
    ray.wait = _wait
    ray.get = lambda call: call.result()
    ray.kill = lambda _: None
    ray.exceptions = SimpleNamespace(RayError=RayError)
    monkeypatch.setitem(sys.modules, "ray", ray)
