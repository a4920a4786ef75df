"""Loading prints nothing, whatever warnings are shown, and installs nothing; a progress bar needs a terminal."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mechsafety.models import loading
from mechsafety.models.booted import nothing_installed
from tests.architectures import save_architecture

LOAD = "import mechsafety as ms; model = ms.load_model('smollm2-135m+refusals', device='cpu'); print(model.cfg.n_layers)"


def test_a_packaged_model_loads_without_noise() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", LOAD], capture_output=True, text=True, check=True
    )
    assert done.stdout == "30\n"
    assert done.stderr == ""


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="where it is installed nothing is asked for")
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "control"])
def test_a_model_of_images_installs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """TransformerLens would install torchvision, and another torch with it."""
    asked: list[Any] = []

    def installing(command: Any, **_: Any) -> int:
        asked.append(command)
        raise OSError("nothing is installed in a test")

    monkeypatch.setattr(subprocess, "check_call", installing)
    if not guarded:
        monkeypatch.setattr(loading, "nothing_installed", nullcontext)
    folder = save_architecture(tmp_path, "gemma3, images")
    model = loading.load_model(str(folder), dtype="float32", device="cpu")
    assert model.cfg.n_layers == 4
    assert [command[-2:] for command in asked] == ([] if guarded else [["torchvision", "-q"]])
    assert subprocess.check_call is installing


def test_other_commands_run_meanwhile() -> None:
    with nothing_installed():
        assert subprocess.check_call([sys.executable, "-c", ""]) == 0
        with pytest.raises(OSError, match="no package is installed"):
            subprocess.check_call([sys.executable, "-m", "pip", "install", "torchvision"])
