"""What every subcommand shares: the group, the two kinds of output, errors, common options.

Readable output and the JSON object of ``--json`` go to stdout; progress and messages go to stderr. A
problem the user can mend ends in one line and exit code 2.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechsafety import __version__
from mechsafety.core.errors import MechsafetyError, StoppedError, on_the_command_line

if TYPE_CHECKING:
    from mechsafety.experiments.base import Experiment
    from mechsafety.experiments.result import Result

_COMMANDS: dict[str, tuple[str, str]] = {
    "study": ("studies", "Measure refusal of every system, original and edited, and write a report."),
    "status": ("status", "List by stage how much of RUN is made, and what its workers are at."),
    "report": ("studies", "Write a finished run's report.html and HTML figures again."),
    "figures": ("studies", "Write every figure of a finished run as files."),
    "direction": ("directions", "Find refusal directions of MODEL at every layer, and select one."),
    "sweep": (
        "directions",
        "Score every layer and template position of MODEL, select a direction, and draw what lies where.",
    ),
    "select": (
        "directions",
        "Select a candidate from a recorded TABLE of scores, and list what each filter dropped.",
    ),
    "compare": (
        "checkpoints",
        "Compare refusal across checkpoints: cosines, principal angles, CKA, and transfer of directions.",
    ),
    "export": (
        "edits",
        "Write MODEL under an edit as a checkpoint that transformers and vLLM read, and print how vLLM serves it.",
    ),
    "generate": ("edits", "Answer prompts with MODEL under an edit, or as it is without one."),
    "judge": (
        "judging",
        "Judge the responses in a file, or let another judge read the answers of a finished run.",
    ),
    "selfjudge": (
        "selfjudgement",
        "Ask each system of a finished study, with and without the edit, whether its answers were refusals.",
    ),
    "annotate": (
        "annotation",
        "Label the responses of RUN by hand on a local page, blind to system, arm and judges.",
    ),
    "plan-labels": ("agreement", "Plan how many labels and prompts a study needs, before anyone labels."),
    "agree": (
        "agreement",
        "Compare the judges of a finished study with each other, with people, or with one of them.",
    ),
    "audit": (
        "audits",
        "List the published differences that survive intervals, correction and another judge.",
    ),
    "regions": (
        "regions",
        "Score the weights that MODEL's refusals need, remove them, and measure what is left.",
    ),
    "robustness": (
        "robustness",
        "Attack MODEL under an edit, or as it is, and measure its perplexity and accuracy on benign text.",
    ),
    "anatomy": (
        "anatomy",
        "Take apart what a fine-tuning that made TUNED of BASE did to its activations, its weights and its answers.",
    ),
    "ladder": (
        "ladder",
        "Remove 1, 2, 4 and 8 refusal directions from each SYSTEM, and as many random ones, and count refusals.",
    ),
    "lab": (
        "lab",
        "Train models of a small synthetic world, tune them for safety, attack them and take the tuning apart.",
    ),
    "tune": ("models", "Train a rung of safety fine-tuning on MODEL, as a LoRA adapter."),
    "evaluate": ("integrations", "Run lm-eval's tasks on MODEL under an edit, or as it is without one."),
    "export-inspect": (
        "integrations",
        "Write a finished study as inspect_ai logs, one for each system and arm.",
    ),
    "models": ("models", "List the packaged model, adapters, prompt sets and study presets."),
    "doctor": (
        "models",
        "Report what would be used here, how each MODEL would be loaded and asked, and how to mend what is missing.",
    ),
}
"""Each command's module in this package and its line in the list, in the order in which they are used."""


class _Group(click.Group):
    """Lists its commands without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            importlib.import_module(f"{__package__}.{_COMMANDS[cmd_name][0]}")
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        with on_the_command_line():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])


class SectionedOption(click.Option):
    """An option under a heading of its command's help; without one it is the command's own."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class _Command(click.Command):
    """Lists its options under their headings: its own first, what every command has last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if line is not None:
                section = "Output" if parameter.name in _OUTPUT else getattr(parameter, "section", "")
                sections.setdefault(section or "Options", []).append(line)
        for heading in sorted(sections, key=lambda name: _LAST.index(name) if name in _LAST else -1):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


_OUTPUT = {"as_json", "out", "allow_other_versions"}
_LAST = ("Models", "Chat template", "Where it runs", "Output")
"""Sections that many commands have, behind a command's own."""


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
        sys.exit(1 if isinstance(error, StoppedError) else 2)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        sys.exit(130)
    click.echo(json.dumps(facts, default=records) if as_json else text)
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
        return main.command(name, cls=_Command)(call)

    return wrap


other_versions_option = click.option(
    "--allow-other-versions",
    is_flag=True,
    help="Go on with a run that other versions, another device or number format began.",
)


def records(table: Any) -> list[dict[str, Any]]:
    """Rows as JSON objects; NaN becomes null."""
    return json.loads(table.to_json(orient="records"))


def run_options(folder: str | None) -> Callable[[Any], Any]:
    """``--out``, by default ``folder`` (None: nothing is written without it), and ``--allow-other-versions``."""

    def wrap(function: Any) -> Any:
        about = "Folder for tables, figures, page." if folder is None else f"Run folder [default: {folder}]."
        return click.option("--out", type=click.Path(path_type=Path), default=None, help=about)(
            other_versions_option(function)
        )

    return wrap


def run_and_show(experiment: Experiment[Any], out: Path, *, allow_other_versions: bool) -> Shown:
    """Run ``experiment`` in ``out``, write its figures and page, and show what it found."""
    from mechsafety.experiments.running import run_experiment

    result = run_experiment(experiment, out, say=say, allow_other_versions=allow_other_versions)
    return shown(result)


def shown(result: Result, *, published: bool = False) -> Shown:
    """A finished run's facts and text, after its figures and page are written, unless they are ``published``."""
    if not published:
        say("figures and page")
        result.publish()
    report = result.report_path
    experiment, findings = result.experiment, result.findings
    facts = {
        "run": str(result.path),
        "report": str(report),
        "findings": findings,
        "tables": {name: records(table) for name, table in result.short_tables.items()},
        **{k: records(v) if hasattr(v, "to_json") else v for k, v in experiment.facts(result).items()},
    }
    table = experiment.text(result)
    lines = [*([table, ""] if table else []), *findings, "", f"report: {report}", f"run:    {result.path}"]
    lines += [f"next:   {step}" for step in experiment.next_steps(result)]
    return facts, "\n".join(lines)
