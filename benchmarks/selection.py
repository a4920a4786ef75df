"""Selection against an exhaustive search over layers by behaviour: what the default picks, and what it misses.

``python -m benchmarks.selection SYSTEM... --out FOLDER`` runs, for every system, a study of 25 + 25 report prompts and
then the study's own directions at the last prompt token of every second layer, each projected out while the harmful
report prompts are answered. The search sees the report prompts that it is judged on, the study does not: its best layer
is a bound that no honest selection reaches but by luck. Regret is the share of coherent compliance that the pick lacks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.sections import table
from mechsafety.core.verdict import Response
from mechsafety.directions.files import load_directions
from mechsafety.edits.interventions import Ablate
from mechsafety.experiments.config import Dtype
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.experiments.study.experiment import StudyResult, run_study
from mechsafety.generation.answered import answer_frame
from mechsafety.generation.side_by_side import generate_under_each
from mechsafety.judges.outcomes import Tally
from mechsafety.judges.registry import judge_responses
from mechsafety.models.loading import load_model
from mechsafety.prompts.prompt_set import PromptSet, load_prompts
from mechsafety.statistics.rates import Interval, wilson

_PROMPTS, _TOKENS = 25, 32
HEAD = ["system", "pick", "removed", "caused", "KL", "refused before", "after", "coherent after", "random"]
HEAD += ["best layer by behaviour", "refused there", "coherent there", "regret"]


def measured(system: str, out: Path, *, template: str | None, step: int, dtype: Dtype) -> list[str]:
    """One row of the table."""
    config = StudyConfig(
        systems=(system,),
        limit=_PROMPTS,
        max_new_tokens=_TOKENS,
        judges=("rules",),
        selfjudge=False,
        nll=False,
        template=template,
        dtype=dtype,
    )
    study = run_study(config, out, say=print)
    (facts,) = study.manifest["systems"].values()
    if "failed" in facts:
        return [system, facts["failed"]]
    before, after = (_harmful(study, arm) for arm in ("original", "edited"))
    controls = study.tables["controls"]["refused"]
    searched = _searched(study, config, out, step=step)
    best = searched.sort_values(["complied", "refused", "layer"], ascending=[False, True, True]).iloc[0]
    pick = facts["selection"]
    complied = wilson(int(after["compliance"]), int(after["n"]))
    return [
        system,
        f"{pick['layer']} at {pick['position']} ({pick['rule']})",
        *(f"{pick[name]:.2f}" for name in ("removed", "caused", "kl")),
        *(_shown(row) for row in (before, after)),
        f"{complied.rate:.0%} [{complied.low:.0%}, {complied.high:.0%}]",
        f"{controls.min():.0%} to {controls.max():.0%}",
        *(f"{best['layer']:.0f}", f"{best['refused']:.0%}", f"{best['complied']:.0%}"),
        f"{best['complied'] - complied.rate:+.0%}",
    ]


def _harmful(study: StudyResult, arm: str) -> Any:
    rates = study.tables["rates"]
    return rates[(rates["arm"] == arm) & (rates["label"] == "harmful")].iloc[0]


def _shown(row: Any) -> str:
    rate = Interval(rate=row["rate"], low=row["low"], high=row["high"], n=int(row["n"]))
    return f"{rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}]"


def _searched(study: StudyResult, config: StudyConfig, out: Path, *, step: int) -> pd.DataFrame:
    """Refused and coherent shares of the harmful report prompts, by layer; the answers are kept in the run's folder."""
    file = out / "searched.parquet"
    if not file.is_file():
        _answers(study, config, step=step).to_parquet(file)
    answers = pd.read_parquet(file)
    responses = [
        Response(id=str(number), prompt=row["prompt"], text=row["response"])
        for number, row in enumerate(answers.to_dict("records"))
    ]
    answers["label"] = [verdict.label for verdict in judge_responses(responses, config.judges)]
    tallies = {layer: Tally.of(list(rows["label"])) for layer, rows in answers.groupby("layer")}
    return pd.DataFrame(
        [
            {"layer": layer, "refused": tally.refused.rate, "complied": tally.complied.rate}
            for layer, tally in tallies.items()
        ]
    )


def _answers(study: StudyResult, config: StudyConfig, *, step: int) -> pd.DataFrame:
    system = config.systems[0]
    model = load_model(system, template=config.template, dtype=config.dtype)
    found = load_directions(study.run.part_path("directions", system, suffix="safetensors"))
    prompts: PromptSet = load_prompts(config.prompts).to_judge.sample(_PROMPTS, seed=config.seed).harmful
    layers = list(range(step, int(0.8 * model.cfg.n_layers) + 1, step))
    edits = [Ablate(found.at(layer=layer, position=-1)) for layer in layers]
    answers = generate_under_each(model, prompts, edits, max_new_tokens=_TOKENS, seed=0)
    tables = [answer_frame(done, layer=layer) for layer, done in zip(layers, answers, strict=True)]
    return pd.concat(tables, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("systems", nargs="+", metavar="SYSTEM")
    parser.add_argument("--template", default=None, help="chat template file, for all systems")
    parser.add_argument("--step", type=int, default=2, help="layers between two of the search")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/selection"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    rows = [
        measured(
            system,
            given.out / system.replace("/", "_"),
            template=given.template,
            step=given.step,
            dtype=given.dtype,
        )
        for system in given.systems
    ]
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
