"""The public hints are complete: a user's script passes the strictest mode of the type checker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).parent / "typed_script.py"


def errors(folder: Path, script: str) -> list[str]:
    """What basedpyright's strict mode says of ``script``, checked in a folder of its own."""
    (folder / "script.py").write_text(script)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "include": ["script.py"]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    checker = str(Path(sys.executable).parent / "basedpyright")
    command = [checker, "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return [
        f"{one['range']['start']['line'] + 1}: {one['message']}"
        for one in found["generalDiagnostics"]
        if one["severity"] == "error"
    ]


def test_a_users_script_type_checks_strictly(tmp_path: Path) -> None:
    script = SCRIPT.read_text()
    assert len([line for line in script.splitlines() if line.strip()]) >= 50
    wrong = "\nfraction: int = interval.low\nms.no_such_name\nms.generate(model, max_tokens=3)\n"
    found = errors(tmp_path, script + wrong)
    # The control: what is appended is wrong, each line in its own way.
    after = len(script.splitlines()) + 1
    assert [text for text in found if int(text.partition(":")[0]) < after] == []
    assert {int(text.partition(":")[0]) - after for text in found} == {1, 2, 3}


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "mechsafety" / "py.typed").is_file()
