"""Loading a packaged model prints nothing, whatever warnings are shown; a progress bar needs a terminal."""

from __future__ import annotations

import subprocess
import sys

LOAD = "import mechsafety as ms; model = ms.load_model('smollm2-135m+refusals', device='cpu'); print(model.cfg.n_layers)"


def test_a_packaged_model_loads_without_noise() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", LOAD], capture_output=True, text=True, check=True
    )
    assert done.stdout == "30\n"
    assert done.stderr == ""
