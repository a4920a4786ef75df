"""The lab in a run folder: what ``mechsafety lab run`` does.

The way of the data, for each seed: rules of a world -> a pretrained model -> three safety tunings and a benign one ->
what each answers to every kind of input -> the anatomy of each safety tuning, the benign one as its control -> nine
claims and whether they held. Models, outcomes and anatomies are kept when they are done; an interrupted run goes on.

A folder ``seed-N`` holds the models (``models/base`` with its checkpoints, ``models/ssft``, ...), the inputs as prompt
sets (``prompts.csv``, ``attacks.csv``), the answers as a key for the judge ``key`` (``answer_key.csv``), and a run of
``mechsafety anatomy`` for each tuning (``anatomy/ssft``, ...), so that every other command works on them too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mechsafety.core.errors import MechsafetyError
from mechsafety.experiments.anatomy.config import AnatomyConfig
from mechsafety.experiments.anatomy.runs import run_anatomy
from mechsafety.experiments.lab.config import BASE, CONTROL, SAFETY_TUNINGS, LabConfig
from mechsafety.experiments.lab.models import pretrained, tuned
from mechsafety.experiments.lab.thresholds import held_over_seeds, threshold_table
from mechsafety.lab.cases import measure_cases
from mechsafety.lab.mixtures import TUNINGS
from mechsafety.lab.networks import open_network
from mechsafety.lab.presets import Preset, preset
from mechsafety.lab.prompt_sets import lab_prompts
from mechsafety.lab.rules import Rules
from mechsafety.lab.vocabulary import Vocabulary
from mechsafety.models.provenance import of_model
from mechsafety.runs.folder import RunFolder, open_run, read_run

if TYPE_CHECKING:
    import plotly.graph_objects as go

Say = Callable[[str], None]
TABLES = ("cases", "thresholds")
PROMPTS, ATTACKS, KEY = "prompts.csv", "attacks.csv", "answer_key.csv"


@dataclass(frozen=True, kw_only=True)
class LabRun:
    """A finished run: where it lies, what every model answers (``cases``), and the claims' numbers, by seed."""

    path: Path
    cases: pd.DataFrame
    thresholds: pd.DataFrame

    def models(self, seed: int) -> dict[str, str]:
        """The folders of a seed's models, by name: what :func:`load_model` takes."""
        folder = seed_folder(self.path, seed) / "models"
        return {name: str(folder / name) for name in (BASE, *TUNINGS)}

    def anatomy(self, seed: int, tuning: str) -> Path:
        """The folder of a tuning's anatomy, for :func:`mechsafety.experiments.anatomy.runs.read_anatomy`."""
        return seed_folder(self.path, seed) / "anatomy" / tuning

    def figures(self) -> dict[str, go.Figure]:
        """Every figure, by file name."""
        from mechsafety.experiments.lab.figures import lab_figures

        return lab_figures(self.cases, self.thresholds)

    def held(self) -> pd.DataFrame:
        """How often each bound was met over the seeds."""
        return held_over_seeds(self.thresholds)

    def _repr_html_(self) -> str:
        return (
            f"<b>Lab</b> in {escape(str(self.path))}"
            f"{self.held().round(3).to_html(index=False, border=0, na_rep='reported')}"
        )


def run_lab(
    config: LabConfig, out: Path | str, *, say: Say = lambda _: None, allow_other_versions: bool = False
) -> LabRun:
    """Run ``config`` in the folder ``out``, or go on where it was interrupted.

    Raises :class:`MechsafetyError` for a folder of another configuration, and when a training's loss is not finite.
    """
    out = Path(out)
    chosen = preset(config.preset)
    asked = config.model_dump(mode="json") | {"kind": "lab"}
    started = time.perf_counter()
    with open_run(out, config=asked, allow_other_versions=allow_other_versions) as run:
        cases, thresholds = [], []
        for seed in config.seeds:
            found = _seed(run, chosen, seed, say=say, allow_other_versions=allow_other_versions)
            cases.append(found.cases.assign(seed=seed))
            thresholds.append(found.thresholds.assign(seed=seed))
        tables = {"cases": pd.concat(cases), "thresholds": pd.concat(thresholds)}
        for name, table in tables.items():
            run.write_table(_seed_first(table), f"{name}.csv")
        run.record_item("timings", "last_session_s", round(time.perf_counter() - started, 1))
    return read_lab(out)


def read_lab(path: Path | str) -> LabRun:
    """A finished run of the lab. Raises :class:`MechsafetyError` for a folder that is none."""
    run = read_run(Path(path))
    if run.manifest["config"].get("kind") != "lab":
        raise MechsafetyError(f"{str(path)!r} is not a run of the lab")
    return LabRun(path=run.path, **{name: run.read_table(f"{name}.csv") for name in TABLES})


def seed_folder(run: Path, seed: int) -> Path:
    return run / f"seed-{seed}"


def write_prompt_sets(chosen: Preset, vocabulary: Vocabulary, folder: Path, *, seed: int) -> None:
    """The inputs of a seed as ``prompts.csv`` and ``attacks.csv``, and their answers as ``answer_key.csv``."""
    n = chosen.anatomy
    made = lab_prompts(vocabulary, fit=n, validation=n, report=n, attacks=n, seed=seed)
    for name, table in ((PROMPTS, made.prompts), (ATTACKS, made.attacks), (KEY, made.key)):
        RunFolder(folder).write_table(table, name)


def longest_answer(vocabulary: Vocabulary) -> int:
    """Tokens of the longest right answer: a tag, the text, and the token that ends it."""
    return vocabulary.rules.size.grammar.length[1] + 2


@dataclass(frozen=True, kw_only=True)
class _Seed:
    cases: pd.DataFrame
    thresholds: pd.DataFrame


def _seed(run: RunFolder, chosen: Preset, seed: int, *, say: Say, allow_other_versions: bool) -> _Seed:
    vocabulary = Vocabulary(rules=Rules(size=chosen.rules, seed=seed))
    folder = seed_folder(run.path, seed)
    models = {name: folder / "models" / name for name in (BASE, *TUNINGS)}
    say(f"seed {seed}: models")
    _timed(
        run,
        f"seed {seed}: base",
        lambda: pretrained(chosen, vocabulary, models[BASE], rung="raw", seed=seed, checkpoints=True),
    )
    for name in TUNINGS:

        def train(name: str = name) -> object:
            return tuned(
                chosen,
                vocabulary,
                models[BASE],
                models[name],
                tuning=name,  # type: ignore[arg-type]
                schedule=chosen.tunings[name],  # type: ignore[index]
                seed=seed,
            )

        _timed(run, f"seed {seed}: {name}", train)
    write_prompt_sets(chosen, vocabulary, folder, seed=seed)
    cases = pd.concat(
        [
            _cases(run, chosen, vocabulary, path, name=name, seed=seed).assign(model=name)
            for name, path in models.items()
        ],
        ignore_index=True,
    )
    anatomies: dict[str, Mapping[str, pd.DataFrame]] = {}
    for name in SAFETY_TUNINGS:
        say(f"seed {seed}: anatomy of {name}")
        config = AnatomyConfig(
            base=str(models[BASE]),
            tuned=str(models[name]),
            control=str(models[CONTROL]),
            prompts=str(folder / PROMPTS),
            attacks=str(folder / ATTACKS),
            judge=f"key:{folder / KEY}",
            max_new_tokens=longest_answer(vocabulary),
            dtype="float32",
            seed=seed,
        )

        def take_apart(config: AnatomyConfig = config, name: str = name) -> None:
            anatomies[name] = run_anatomy(
                config, folder / "anatomy" / name, say=say, allow_other_versions=allow_other_versions
            ).tables

        _timed(run, f"seed {seed}: anatomy of {name}", take_apart)
    return _Seed(cases=cases, thresholds=threshold_table(cases, anatomies))


def _cases(
    run: RunFolder, chosen: Preset, vocabulary: Vocabulary, path: Path, *, name: str, seed: int
) -> pd.DataFrame:
    key = (f"seed-{seed}", "cases", name)
    run.require_source(f"model {name} of seed {seed}", of_model(str(path), dtype="float32", device="cpu"))
    if not run.has_part(*key):
        found = measure_cases(open_network(path), vocabulary, n=chosen.measured, seed=seed)
        run.write_part(found, *key)
    return run.read_part(*key)


def _timed(run: RunFolder, what: str, work: Callable[[], object]) -> None:
    """Do ``work`` and record its seconds, unless an earlier session, which did the work, has."""
    started = time.perf_counter()
    work()
    if what not in run.manifest.get("timings", {}):
        run.record_item("timings", what, round(time.perf_counter() - started, 1))


def _seed_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["seed", *(c for c in table.columns if c != "seed")]]
