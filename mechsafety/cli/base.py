"""What every subcommand shares: the group, the two kinds of output, errors, common options.

Readable output and the JSON object of ``--json`` go to stdout; progress and messages go to stderr. A
problem the user can mend ends in one line and exit code 2.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import click

from mechsafety import __version__
from mechsafety.core.errors import MechsafetyError

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
    "selfjudge",
    "annotate",
    "plan-labels",
    "agree",
    "audit",
    "regions",
    "robustness",
    "anatomy",
    "ladder",
    "lab",
    "tune",
    "evaluate",
    "export-inspect",
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
    """Do ``work``; print its JSON or its text; turn what users can mend into one line and exit code 2.

    Facts that name what ``failed`` of several things end in exit code 1.
    """
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
    if facts.get("failed"):
        sys.exit(1)


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
    "--template",
    default=None,
    metavar="plain|FILE",
    help="plain, or a Jinja file [default: the model's own].",
)
date_option = click.option(
    "--date",
    default=None,
    metavar="DAY",
    help="The day (2025-03-01) that templates with a date write [default: the day the run began].",
)
truncate_option = click.option(
    "--truncate-prompts",
    is_flag=True,
    default=None,
    help="Cut prompts that do not fit in the model's window at their end.",
)
escape_option = click.option(
    "--escape-control-tokens",
    is_flag=True,
    default=None,
    help="Break the model's control tokens in prompts by a blank.",
)


other_versions_option = click.option(
    "--allow-other-versions",
    is_flag=True,
    help="Go on with a run that other versions, another device or number format began.",
)


def records(table: Any) -> list[dict[str, Any]]:
    """Rows as JSON objects; NaN becomes null."""
    return json.loads(table.to_json(orient="records"))


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """``"3"``, ``"1,5,-2"``, ``"10-20"`` and mixtures of them as numbers, in the order given."""
    found: list[int] = []
    for part in text.split(","):
        span = re.fullmatch(r"\s*(-?\d+)(?:-(\d+))?\s*", part)
        if span is None:
            raise MechsafetyError(f"{option} {text!r}: whole numbers and spans such as 3,10-20 are expected")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first or last - first > 100_000:
            raise MechsafetyError(f"{option} {text!r}: the span {part.strip()!r} is empty or too long")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


def checked(kind: Any, fields: Mapping[str, Any]) -> Any:
    """A pydantic configuration made of options; what is wrong with one is said in a line."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # about several fields at once: the message names them, the input is all of them
            raise MechsafetyError(first["msg"].removeprefix("Value error, ")) from None
        name = ".".join(str(part) for part in first["loc"])
        raise MechsafetyError(f"{name}: {first['msg']} (got {first['input']!r})") from None
