"""An experiment that is one task of three parts and waits for a file before the second one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mechsafety.experiments.base import Experiment
from mechsafety.experiments.config import EngineConfig
from mechsafety.experiments.result import Result
from mechsafety.experiments.session import Session
from mechsafety.models.provenance import Provenance


class SlowConfig(EngineConfig):
    """Where each part that is made is written down, and the file that is waited for."""

    log: str
    gate: str


class Slow(Experiment[SlowConfig]):
    """Makes the parts 1, 2 and 3, each with a record in the manifest, and a large file that it alone reads."""

    kind = "slow"
    tables: ClassVar[Mapping[str, str]] = {"made": "made.csv"}
    stay = ("large/",)
    after_part: Callable[[], None] = staticmethod(lambda: None)

    def sources(self) -> Mapping[str, Provenance]:
        return {}

    def work(self, session: Session) -> Mapping[str, pd.DataFrame]:
        run = session.run
        large = run.path / "large" / "scores.bin"
        large.parent.mkdir(exist_ok=True)
        large.write_bytes(b"0" * 100)
        for number in (1, 2, 3):
            if run.has_part("made", str(number), suffix="json"):
                continue
            if number == 2:
                _wait_for(Path(self.config.gate))
            with session.timed(f"part {number}"):
                time.sleep(0.06)
            with Path(self.config.log).open("a") as log:
                log.write(f"{number}\n")
            session.say(f"part {number}")
            run.record_item("made", str(number), "yes")
            run.write_json_part(number, "made", str(number))
            self.after_part()
        made = [run.read_json_part("made", str(number)) for number in (1, 2, 3)]
        return {"made": pd.DataFrame({"number": made})}

    @classmethod
    def figures(cls, result: Result) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def findings(cls, result: Result) -> list[str]:
        raise NotImplementedError


def _wait_for(gate: Path) -> None:
    while not gate.exists():
        time.sleep(0.05)
