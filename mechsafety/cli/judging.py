"""Judging responses that lie in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechsafety.cli.base import Shown, command, other_versions_option, records, say
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.wording import percent, two_digits

if TYPE_CHECKING:
    from mechsafety.experiments.result import Result
    from mechsafety.judges.files import Judged
    from mechsafety.judges.injection import Injection


@command(
    "judge", example="mechsafety judge responses.csv --judge rules --judge phrases:arditi --out verdicts.csv"
)
@click.argument("responses", type=click.Path(path_type=Path), required=False)
@click.option(
    "--judge", "judges", multiple=True, default=("rules",), show_default=True, help="May be repeated."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="CSV, JSONL or Parquet file.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Where verdicts of text and endpoint judges are kept.  [default: in the cache folder]",
)
@click.option("--no-cache", is_flag=True, help="Ask everything anew, and keep nothing.")
@click.option(
    "--max-calls",
    type=click.IntRange(min=0),
    default=None,
    metavar="N",
    help="Send no more calls, to all endpoints together; the rest is unparsed.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=0),
    default=None,
    metavar="N",
    help="Ask endpoints nothing more once N tokens are spent on all.",
)
@click.option(
    "--max-cost",
    type=click.FloatRange(min=0),
    default=None,
    metavar="X",
    help="The same for money, with price_in and price_out per million tokens in the judge.",
)
@click.option(
    "--batch-out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Write what endpoints would be asked as a batch file (JSONL), and send nothing.",
)
@click.option(
    "--batch-in",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Read the results of a batch; nothing more is asked, but for --max-calls.",
)
@click.option(
    "--probe-injection",
    is_flag=True,
    help="Append orders to the judge to known items (column label; without a file, the packaged ones).",
)
@click.option(
    "--dry-run", is_flag=True, help="Print what endpoints would be asked and what it costs, and send nothing."
)
@click.option("--list", "list_them", is_flag=True, help="List the judges, and stop.")
@other_versions_option
def _judge(
    responses: Path | None,
    judges: tuple[str, ...],
    out: Path | None,
    cache: Path | None,
    no_cache: bool,
    max_calls: int | None,
    max_tokens: int | None,
    max_cost: float | None,
    batch_out: Path | None,
    batch_in: Path | None,
    probe_injection: bool,
    dry_run: bool,
    list_them: bool,
    allow_other_versions: bool,
) -> Shown:
    """Judge the responses in a file, or let another judge read the answers of a finished run.

    RESPONSES is a file with columns response and prompt (or question), id optional, or a run folder. Nothing is
    generated: a run keeps its answers, and its tables, figures and page are written again.
    """
    from mechsafety.judges.registry import describe_judges

    if list_them:
        about = describe_judges()
        return {"judges": about}, "\n".join(about.values())
    caps: dict[str, int | float | None] = {
        "max_calls": max_calls,
        "max_tokens": max_tokens,
        "max_cost": max_cost,
    }
    kept, batches = {"cache": cache, "no_cache": no_cache}, {"batch_out": batch_out, "batch_in": batch_in}
    if probe_injection:
        from mechsafety.judges.injection import probe_judges

        _refuse("--probe-injection", batches | {"dry_run": dry_run})
        probed = probe_judges(responses, judges=judges, out=out, caps=caps, cache=cache, no_cache=no_cache)
        return _show_probe(probed, out)
    if responses is None:
        raise MechsafetyError("name a file of responses or a run, or --list")
    if not responses.suffix and not responses.exists():
        raise MechsafetyError(f"{str(responses)!r} does not exist: name a file of responses or a run folder")
    if dry_run:
        _refuse("--dry-run", {"out": out} | caps | batches, asks=False)
        return _planned(responses, judges, cache=cache, no_cache=no_cache)
    if responses.is_dir():
        _refuse("a run, which keeps its verdicts itself,", {"out": out} | caps | kept | batches)
        return _judge_run(responses, judges, allow_other_versions=allow_other_versions)
    from mechsafety.judges.files import judge_file, write_batch

    if batch_out is not None:
        _refuse("--batch-out", {"out": out, "batch_in": batch_in} | caps, asks=False)
        written = write_batch(responses, batch_out, judges=judges, cache=cache, no_cache=no_cache)
        lines = [f"{judge}: {n} questions" for judge, n in written.items()]
        return {"batch": str(batch_out), "questions": written}, "\n".join([*lines, f"batch: {batch_out}"])
    judged = judge_file(
        responses,
        judges=judges,
        out=out,
        max_calls=max_calls,
        max_tokens=max_tokens,
        max_cost=max_cost,
        cache=cache,
        no_cache=no_cache,
        batch_in=batch_in,
        say=say,
    )
    return _show_verdicts(judged)


def _planned(source: Path, judges: tuple[str, ...], *, cache: Path | None, no_cache: bool) -> Shown:
    """What endpoint judges would be asked about a file's or a run's answers."""
    from mechsafety.experiments.judging import answers_of
    from mechsafety.experiments.registry import load_run
    from mechsafety.judges.files import plan_judging, read_responses

    answers = answers_of(load_run(source)) if source.is_dir() else read_responses(source)
    planned = plan_judging(answers, judges=judges, cache=cache, no_cache=no_cache)
    lines = [*map(str, planned)] or ["no judge asks an endpoint: nothing would be sent"]
    if source.is_dir() and planned:
        lines.append(
            "beside that, two questions about each of the 20 answers with known labels, where not kept"
        )
    facts = {"dry_run": True, "endpoint_judges": [asdict(one) for one in planned]}
    return facts, "\n".join(["Dry run: nothing was sent. Tokens and costs are estimates.", *lines])


def _refuse(what: str, options: Mapping[str, object], *, asks: bool = True) -> None:
    """Raise MechsafetyError for an option that would be ignored; ``asks``: the caps of the environment are not."""
    if given := [name for name, value in options.items() if value is not None and value is not False]:
        instead = (
            f", and set MECHSAFETY_ENDPOINT_{given[0].upper()}"
            if asks and given[0].startswith("max_")
            else ""
        )
        raise MechsafetyError(f"{what} takes no --{given[0].replace('_', '-')}: leave it out{instead}")


def _judge_run(folder: Path, judges: tuple[str, ...], *, allow_other_versions: bool) -> Shown:
    from mechsafety.experiments.registry import load_run
    from mechsafety.experiments.result import REPORT

    found = load_run(folder).judge(*judges, say=say, allow_other_versions=allow_other_versions)
    table, report = found.rates_by_judge(), found.path / REPORT
    shown = table.to_string(index=False, na_rep="-", float_format=two_digits)
    facts = {"run": str(found.path), "report": str(report), "rates": records(table)}
    order = "".join(f"\n{line}" for line in _order_lines(found, judges))
    return facts, f"{shown}{order}\n\nreport: {report}"


def _order_lines(found: Result, judges: tuple[str, ...]) -> list[str]:
    """On how many answers of the run the order of the labels decides, for each of ``judges`` that sees both."""
    from mechsafety.experiments.judging import verdicts_of
    from mechsafety.judges.label_order import label_order, order_sentences

    tables = found.tables
    verdicts = tables["verdicts"] if "verdicts" in tables else verdicts_of(found.run)
    if not {"judge", "verdict", "tags"} <= {*verdicts.columns}:
        return []
    return order_sentences(label_order(verdicts[verdicts["judge"].isin(judges)], []))


def _show_verdicts(judged: Judged) -> Shown:
    from mechsafety.judges.label_order import order_sentences

    lines = [
        f"{judge:24} " + "  ".join(f"{label} {n}" for label, n in found.items())
        for judge, found in judged.counts.items()
    ]
    for row in judged.order.to_dict(orient="records"):
        with_them, without = (percent(row[name]) for name in ("refusal", "refusal_without"))
        lines.append(f"{row['judge']:24} refusal {with_them}, without verdicts that turn {without}")
    lines += order_sentences(judged.order)
    for judge, used in judged.usage.items():
        tokens = f"{used.prompt_tokens + used.completion_tokens} tokens" + (
            f" and {used.unmetered} answers without a count" if used.unmetered else ""
        )
        cost = "" if used.cost is None else f", cost {used.cost:.4f}"
        lines.append(
            f"{judge:24} fresh {used.fresh}  cached {used.cached}  ({used.calls} calls, {used.retries} retries, "
            f"{tokens}{cost})"
        )
    for damaged in judged.damaged:
        lines.append(f"verdict cache: {damaged} is damaged; what it held is asked again")
    for judge, reasons in judged.unread.items():
        advice = (
            "; an answer may be longer with ;answer_tokens=N in the judge" if "cut_off" in reasons else ""
        )
        shown = ", ".join(f"{tag} {n}" for tag, n in reasons.items())
        lines.append(f"{judge:24} unparsed: {shown}{advice}")
    for judge, n in judged.not_english.items():
        lines.append(
            f"{judge:24} compliance that does not look English: {n}; {judge} reads English, so these may refuse"
        )
    for judge, reasons in judged.missing.items():
        n = sum(reasons.values())
        lines.append(
            f"not complete: {judge} has no verdict on {n} answers ({', '.join(reasons)}); ask again to go on"
        )
    lines += judged.stopped
    if judged.out:
        lines.append(f"verdicts: {judged.out}")
    facts = {
        "counts": judged.counts,
        "label_order": records(judged.order),
        "usage": {judge: asdict(used) for judge, used in judged.usage.items()},
        "missing": judged.missing,
        "unread": judged.unread,
        "not_english": judged.not_english,
        "stopped": list(judged.stopped),
        "damaged": list(judged.damaged),
        "failed": [judge for judge, reasons in judged.missing.items() if "network" in reasons],
        "out": str(judged.out) if judged.out else None,
    }
    return facts, "\n".join(lines)


def _show_probe(probed: list[Injection], out: Path | None) -> Shown:
    from mechsafety.runs.folder import finite

    lines, facts = [], []
    for found in probed:
        lines.append(f"{found.judge}: {found.right} of {found.known} known items right without attack")
        for rate in found.rates:
            shown = (
                f"{rate.rate:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
                if rate.attacked > rate.unparsed
                else "nothing readable"
            )
            lines.append(
                f"  {rate.variant:8} flipped {rate.flipped} of {rate.attacked - rate.unparsed}  {shown}"
                f"  unparsed {rate.unparsed}"
            )
        rates = [finite(asdict(rate)) for rate in found.rates]
        facts.append({"judge": found.judge, "known": found.known, "right": found.right, "rates": rates})
    if out:
        lines.append(f"flip rates: {out}")
    return {"injection": facts, "out": str(out) if out else None}, "\n".join(lines)
