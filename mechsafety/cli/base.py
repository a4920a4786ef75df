"""What every subcommand shares: the group, the two kinds of output, errors, common options.

Readable output and the JSON object of ``--json`` go to stdout; progress and messages go to stderr. A
problem the user can mend ends in one line and exit code 2.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from mechsafety import __version__
from mechsafety.errors import MechsafetyError

_ORDER = (
    "study",
    "report",
    "figures",
    "direction",
    "sweep",
    "select",
    "compare",
    "generate",
    "judge",
    "tune",
    "models",
    "doctor",
)


class _Group(click.Group):
    """Lists commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [name for name in _ORDER if name in self.commands]


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mechsafety")
def main() -> None:
    """Where a language model keeps its safety behaviour, and how much of it survives an edit.

    \b
    Begin with:   mechsafety study --out runs/first
    """


def say(line: str) -> None:
    click.echo(line, err=True)


Shown = tuple[dict[str, Any], str]


def _run(work: Callable[[], Shown], *, as_json: bool) -> None:
    """Do ``work``; print its JSON or its text; turn what users can mend into one line and exit code 2."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")  # other packages' advice to developers
            facts, text = work()
    except MechsafetyError as error:
        if as_json:
            click.echo(json.dumps({"error": str(error)}))
        say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        sys.exit(130)
    click.echo(json.dumps(facts) if as_json else text)


def command(name: str, *, example: str) -> Callable[[Callable[..., Shown]], click.Command]:
    """A subcommand with ``--json``, whose function returns (facts, text)."""

    def wrap(function: Callable[..., Shown]) -> click.Command:
        def call(*, as_json: bool, **options: Any) -> None:
            _run(lambda: function(**options), as_json=as_json)

        call.__doc__ = f"{function.__doc__}\n\n    \b\n    Example:   {example}\n"
        call.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        call = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(call)
        return main.command(name)(call)

    return wrap


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default=None,
    help="Number format.",
)
device_option = click.option("--device", default=None, metavar="NAME", help="auto, cpu, cuda, ...")
template_option = click.option(
    "--template", default=None, metavar="plain|FILE", help="For models without a chat template."
)


def records(table: Any) -> list[dict[str, Any]]:
    """Rows as JSON objects; NaN becomes null."""
    return json.loads(table.to_json(orient="records"))
