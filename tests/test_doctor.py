"""What the doctor says of the hub is what a connection says."""

from __future__ import annotations

import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mechsafety import doctor
from tests.chat_forms import save_form
from tests.cli.test_base import call, succeed


def hub(monkeypatch: pytest.MonkeyPatch, connect: Any) -> str:
    monkeypatch.setattr(socket, "create_connection", connect)
    return next(check.value for check in doctor.examine() if check.name == "hub")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("offline")
def test_a_model_is_looked_at_as_it_would_be_loaded(tmp_path: Path) -> None:
    qwen = str(save_form(tmp_path / "qwen", "qwen3"))

    def said(*options: str) -> dict[str, dict[str, Any]]:
        shown = succeed("doctor", qwen, "--dtype", "float32", *options, "--json")
        return {c["name"].removeprefix(qwen): c for c in shown["checks"] if c["name"].startswith(qwen)}

    assert said()[": thinking"]["value"].startswith("off: enable_thinking=false")
    thinks = said("--thinking", "model", "--system-prompt", "Be brief.", "--device-map", "auto")
    assert thinks[": thinking"]["value"] == "model"
    assert "Be brief." in thinks[": chat settings"]["value"]
    assert "LlamaForCausalLM" in thinks[""]["value"]
    wrong = said("--chat-arg", "brevity=1")[""]
    assert (wrong["ok"], "'brevity'" in wrong["fix"]) == (False, True)
    small = said("--device-map", "auto", "--max-memory", "cpu=1B")[""]
    assert (small["ok"], "--max-memory" in small["fix"]) == (False, True)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--system-prompt", "Be brief."], "name the model too"),
        (["--max-memory", "cpu=1GB"], "--device-map auto"),
        (["--device", "cpu", "--device-map", "auto"], "one of the two"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(options: list[str], message: str) -> None:
    refused = call("doctor", *options)
    assert (refused.exit_code, message in refused.stderr) == (2, True)


def test_the_hub_is_online_exactly_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def answers(address: Any, timeout: float) -> Any:
        asked.append(address)
        return nullcontext()

    def fails(address: Any, timeout: float) -> Any:
        raise OSError("no route")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert hub(monkeypatch, answers) == "online; token not set"
    assert "cannot be reached" in hub(monkeypatch, fails)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert hub(monkeypatch, answers).startswith("online")
    assert asked == [("huggingface.co", 443), ("proxy.example", 3128)]
    for value in ("1", "true"):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert hub(monkeypatch, fails) == "offline (HF_HUB_OFFLINE is set)"
