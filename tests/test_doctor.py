"""What the doctor says of the hub is what a connection says."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from typing import Any

import pytest

from mechsafety import doctor


def hub(monkeypatch: pytest.MonkeyPatch, connect: Any) -> str:
    monkeypatch.setattr(socket, "create_connection", connect)
    return next(check.value for check in doctor.examine() if check.name == "hub")


def test_the_hub_is_online_exactly_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answers(address: Any, timeout: float) -> Any:
        asked.append(address)
        return nullcontext()

    def fails(address: Any, timeout: float) -> Any:
        raise OSError("no route")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub(monkeypatch, answers) == "online; token not set"
    assert "cannot be reached" in hub(monkeypatch, fails)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert hub(monkeypatch, answers).startswith("online")
    assert asked == [("huggingface.co", 443), ("proxy.example", 3128)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub(monkeypatch, fails) == "offline (HF_HUB_OFFLINE is set)"
