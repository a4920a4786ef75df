"""The safety-pretraining ladder in the lab: what ``mechsafety lab ladder`` does.

For each seed, six models from one initialisation are pretrained on the six mixtures of :data:`RUNGS`, each
gets the same short safety tuning, and ``mechsafety ladder`` then removes directions from all of them. A folder
``seed-N`` holds ``pretrained/RUNG``, ``rungs/RUNG``, the prompt sets and the answer key, and the ladder's run in
``ladder``; the first seed's report tells the other seeds too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from mechsafety.experiments.lab.config import LabConfig
from mechsafety.experiments.lab.models import pretrained, tuned
from mechsafety.experiments.lab.work import KEY, PROMPTS, longest_answer, seed_folder, write_prompt_sets
from mechsafety.experiments.ladder.config import LadderConfig
from mechsafety.experiments.ladder.runs import LadderRun, run_ladder
from mechsafety.lab.cases import measure_cases
from mechsafety.lab.mixtures import RUNGS
from mechsafety.lab.networks import open_network
from mechsafety.lab.presets import preset
from mechsafety.lab.rules import Rules
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.models.provenance import of_model
from mechsafety.runs.folder import RunFolder, open_run

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LabLadder:
    """A finished ladder of the lab: what every rung answers before and after its tuning, and a ladder's run a seed."""

    path: Path
    cases: pd.DataFrame
    ladders: dict[int, LadderRun]

    def _repr_html_(self) -> str:
        shown = "".join(
            f"<h4>seed {seed}</h4>{ladder._repr_html_()}" for seed, ladder in self.ladders.items()
        )
        return f"<b>Ladder of the lab</b> in {escape(str(self.path))}{shown}"


def run_lab_ladder(
    config: LabConfig, out: Path | str, *, say: Say = lambda _: None, allow_other_versions: bool = False
) -> LabLadder:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted."""
    out = Path(out)
    chosen = preset(config.preset)
    asked = config.model_dump(mode="json") | {"kind": "lab-ladder"}
    with open_run(out, config=asked, allow_other_versions=allow_other_versions) as run:
        cases: list[pd.DataFrame] = []
        configs: dict[int, LadderConfig] = {}
        for seed in config.seeds:
            vocabulary = Vocabulary(rules=Rules(size=chosen.rules, seed=seed))
            folder = seed_folder(run.path, seed)
            for rung in RUNGS:
                say(f"seed {seed}: rung {rung}")
                stages = {"pretrained": folder / "pretrained" / rung, "tuned": folder / "rungs" / rung}
                pretrained(chosen, vocabulary, stages["pretrained"], rung=rung, seed=seed, checkpoints=False)
                tuned(
                    chosen,
                    vocabulary,
                    stages["pretrained"],
                    stages["tuned"],
                    tuning="ssft",
                    schedule=chosen.instruct,
                    seed=seed,
                )
                for stage, path in stages.items():
                    key = (f"seed-{seed}", "cases", f"{rung}-{stage}")
                    made = of_model(str(path), dtype="float32", device="cpu")
                    run.require_source(f"model {rung}, {stage}, of seed {seed}", made)
                    if not run.has_part(*key):
                        found = measure_cases(open_network(path), vocabulary, n=chosen.measured, seed=seed)
                        run.write_part(found, *key)
                    cases.append(run.read_part(*key).assign(seed=seed, rung=rung, stage=stage))
            write_prompt_sets(chosen, vocabulary, folder, seed=seed)
            configs[seed] = LadderConfig(
                systems=tuple(str(folder / "rungs" / rung) for rung in RUNGS),
                prompts=str(folder / PROMPTS),
                judge=f"key:{folder / KEY}",
                max_new_tokens=longest_answer(vocabulary),
                dtype="float32",
                seed=seed,
            )
        table = pd.concat(cases, ignore_index=True)
        first = ["seed", "rung", "stage"]
        run.write_table(table[[*first, *(c for c in table.columns if c not in first)]], "cases.csv")
        ladders = _ladders(run, configs, say=say, allow_other_versions=allow_other_versions)
    return LabLadder(path=run.path, cases=table, ladders={seed: ladders[seed] for seed in config.seeds})


def _ladders(
    run: RunFolder, configs: dict[int, LadderConfig], *, say: Say, allow_other_versions: bool
) -> dict[int, LadderRun]:
    """The first seed's last: its report tells the others, which must be there then."""
    first, *others = configs
    folder = {seed: seed_folder(run.path, seed) / "ladder" for seed in configs}
    found: dict[int, LadderRun] = {}
    for seed in (*others, first):
        say(f"seed {seed}: ladder")
        beside = tuple(str(folder[other]) for other in others) if seed == first else ()
        found[seed] = run_ladder(
            configs[seed].model_copy(update={"beside": beside}),
            folder[seed],
            say=say,
            allow_other_versions=allow_other_versions,
        )
    return found
