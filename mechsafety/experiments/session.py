"""What the work of an experiment uses while it is under way: the run's folder, its models, its parts, its timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.progress import Progress
from mechsafety.experiments.records import record_fed
from mechsafety.models.ahead import fetch_ahead
from mechsafety.models.chat_settings import NOT_OFF
from mechsafety.models.loading import load_model, load_record
from mechsafety.models.provenance import of_models
from mechsafety.runs.folder import MANIFEST, RunFolder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ANSWERS = "answers"
"""The parts of answers that another judge can read later."""


@dataclass(kw_only=True)
class Session:
    """One session of a run under way: its folder, the pinned day, and what parts have in common.

    ``home`` is the run's folder itself where ``run`` is a worker's copy of it. ``models`` are loaded one after another:
    the files of the next one are fetched while one works.
    """

    run: RunFolder
    day: str
    say: Progress
    loading: Mapping[str, Any]
    allow_other_versions: bool = False
    home: Path | None = None
    models: Sequence[str] = ()

    @property
    def shared_folder(self) -> Path:
        """Where folders lie that are no parts, such as models: on a disk that all workers have.

        Raises :class:`MechsafetyError` for a worker that has not.
        """
        if self.home is None:
            return self.run.path
        if not (self.home / MANIFEST).is_file():
            import platform

            raise MechsafetyError(
                f"the worker on {platform.node()} has no run folder {str(self.home)!r}, into which models are written: "
                f"name one on a disk that all machines share, from its root ({way('--out')})"
            )
        return self.home

    def load(self, spec: str, *, prompts: Sequence[Any] = (), judging: bool = False) -> TransformerBridge:
        """Load a model whose weights are still those that the run is bound to, and record it.

        ``prompts`` are those whose rendered form the manifest shows. A model that is there for ``judging`` alone has
        none of the chat settings, which are about the models that are studied.
        """
        loading = {name: value for name, value in self.loading.items() if not (judging and name == "chat")}
        for name, made_from in of_models(spec, **loading).items():
            self.run.require_source(name, made_from)  # hours may lie since the run was opened
        self.say(f"loading {spec}")
        model = load_model(spec, **loading, date=self.day)
        if spec in self.models[:-1]:
            fetch_ahead(self.models[self.models.index(spec) + 1])
        self.record_model(spec, model, prompts=prompts)
        if judging:
            self.run.record_item("models", spec, self.run.manifest["models"][spec] | {"judges": True})
        return model

    def record_model(self, spec: str, model: TransformerBridge, *, prompts: Sequence[Any] = ()) -> None:
        """Record a loaded model; ``prompts`` are those whose rendered form the manifest shows."""
        record = load_record(model)
        self.run.record_item("models", spec, record.as_dict() if record else {})
        if record and (how := record.chat.get("thinking", "")).startswith(NOT_OFF):
            self.say(f"{spec}: thinking {how}")
        if len(prompts):
            record_fed(self.run, spec, model, prompts)

    def part(self, *key: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The part named by ``key``, made first where it is missing."""
        if not self.run.has_part(*key):
            self.run.write_part(make(), *key)
        return self.run.read_part(*key)

    def json_part(self, *key: str, make: Callable[[], Any]) -> Any:
        """The same for a part that is kept as JSON."""
        if not self.run.has_part(*key, suffix="json"):
            self.run.write_json_part(make(), *key)
        return self.run.read_json_part(*key)

    def keep_answers(self, answers: pd.DataFrame, *key: str) -> None:
        """Keep answers, so that another judge can read them without generating them again.

        Columns: the experiment's ``answer_keys``, then id, label, prompt, response. The run's ``responses.parquet``
        joins what was kept under all keys.
        """
        self.run.write_part(answers, ANSWERS, *key)

    @contextmanager
    def timed(self, *keys: str) -> Iterator[None]:
        """Add the seconds of the block to the manifest's timings under ``keys``; parts that are there take none."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        if seconds > 0.05:
            timings = self.run.manifest.get("timings", {})
            place = timings
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = round(place.get(keys[-1], 0.0) + seconds, 2)
            self.run.record("timings", timings)
