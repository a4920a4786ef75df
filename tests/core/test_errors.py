"""What an error proposes is spelt for where it is read."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from mechsafety.cli.base import _Group
from mechsafety.core.errors import MechsafetyError, on_the_command_line, way


@pytest.mark.parametrize(
    ("option", "python", "said"),
    [
        ("--dtype float32", None, 'dtype="float32"'),
        ("--out", None, "out=..."),
        ("--truncate-prompts", "truncate_prompts=True", "truncate_prompts=True"),
    ],
)
def test_a_way_is_an_argument_in_python_and_an_option_on_the_command_line(
    option: str, python: str | None, said: str
) -> None:
    assert way(option, python) == said
    with on_the_command_line():
        assert way(option, python) == option
    assert way(option, python) == said


def test_every_command_speaks_of_options() -> None:
    group = _Group("g")

    @group.command("c")
    def _() -> None:
        raise MechsafetyError(way("--dtype float32"))

    raised = CliRunner().invoke(group, ["c"]).exception
    assert str(raised) == "--dtype float32"
    assert way("--dtype float32") == 'dtype="float32"'
