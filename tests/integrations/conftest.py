"""What the tests of integrations share."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

import pytest

from mechsafety import integrations
from mechsafety.core.errors import MechsafetyError


@pytest.fixture(autouse=True)
def _no_account_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval asks pip and the system about the machine after each evaluation, for a second; nothing here reads it."""
    if "lm_eval.evaluator" in sys.modules:
        monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)


@pytest.fixture
def imported_without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """``imported_without("lm_eval", "harness")``: the error of a module of ours where that package is not installed."""

    def error(package: str, module: str) -> str:
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            monkeypatch.setitem(sys.modules, name, None)
        for name in [n for n in sys.modules if n.startswith("mechsafety.integrations.")]:
            # Both are put back: modules are found by their names, and as attributes of their package.
            monkeypatch.setattr(integrations, name.rpartition(".")[2], sys.modules[name], raising=False)
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(MechsafetyError) as caught:
            importlib.import_module(f"mechsafety.integrations.{module}")
        return str(caught.value)

    return error
