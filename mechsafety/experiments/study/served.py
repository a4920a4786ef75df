"""The arms of a study that servers answer: looked for by name, compared, or answered here with the reason.

A server runs one set of weights, so each arm has one of its own. The name under which it is served differs for every
model and edit. An arm is answered by what it was begun with: by a server, or by this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mechsafety.core.errors import MechsafetyError, StoppedError, way
from mechsafety.edits.interventions import Edit, require_fits
from mechsafety.experiments.served import compared_with, servers_of
from mechsafety.experiments.study.config import StudyConfig
from mechsafety.generation.completions import generate
from mechsafety.generation.resumable import batch_tasks
from mechsafety.generation.served import Agreed, UnlikeServerError, served_name
from mechsafety.regions.saved_models import save_model
from mechsafety.serving.server import (
    Listed,
    VllmServer,
    listed,
    require_all_answer,
    serve_command,
    server_with,
)
from mechsafety.statistics.tables import ARMS

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from mechsafety.experiments.session import Session
    from mechsafety.prompts.prompt_set import PromptSet
    from mechsafety.runs.folder import RunFolder

SERVED = "served"
COLUMNS = [
    *("system", "arm", "used", "reason", "address", "model"),
    *("prompts", "equal", "tokens", "common", "share", "least"),
]
"""Of the table ``served``: a row per arm that a server was asked for; counts are those of the compared sample."""


class ServedArms:
    """What the servers of one session of a study answer."""

    def __init__(self, config: StudyConfig, session: Session) -> None:
        self.config, self.session, self.run = config, session, session.run
        self.servers = servers_of(config.generation)
        self.n_waiting = 0
        """Arms whose checkpoints wait for a server."""

    # -- before an arm is answered ----------------------------------------------------------------------

    def require_answers(self) -> None:
        """Raise :class:`MechsafetyError` for a server that does not answer while answers are missing.

        Not where checkpoints are exported: servers are started later then.
        """
        if self.config.generation.export_to is None and any(self._left(*arm) for arm in self._arms()):
            require_all_answer(self._listed)

    def waits(
        self, spec: str, arm: str, load: Callable[[], TransformerBridge], edit_of: Callable[[], Edit | None]
    ) -> bool:
        """Whether an arm is left until its checkpoint, which is in its folder then, is served."""
        if self.config.generation.export_to is None or self._begun(spec, arm):
            return False
        model, edit = load(), edit_of()
        if _unfit(model, edit) is not None:
            return False
        name = served_name(model, edit)
        if self._served(name):
            return False
        folder = Path(self.config.generation.export_to) / name
        if not folder.is_dir():
            self.session.say(f"{spec} · {arm}: checkpoint into {folder}")
            save_model(model, edit, folder)
        if self.n_waiting < len(self.servers):
            address = self.servers[self.n_waiting].address
            command = serve_command(model, edit, folder, address=address)
            self.session.say(f"{spec} · {arm}: serve it by {command}")
        self.n_waiting += 1
        return True

    def require_none_waiting(self) -> None:
        """Raise :class:`StoppedError` where arms wait for their servers."""
        n = self.n_waiting
        if not n:
            return
        more = f" ({n - len(self.servers)} more wait for an address)" if n > len(self.servers) else ""
        raise StoppedError(
            f"{n} arm{'s wait' if n > 1 else ' waits'} for a server of {'their' if n > 1 else 'its'} weights: start "
            f"the servers as shown above{more}, and give the same command again; all else is kept"
        )

    def _served(self, name: str) -> bool:
        """Whether one of the servers that answer has a model; others may not be started yet."""
        try:
            self._with(name)
        except MechsafetyError:
            return False
        return True

    @cached_property
    def _listed(self) -> Listed:
        """What the servers have; asked once a session, since waiting for one that does not answer takes seconds."""
        return listed(self.servers)

    def _with(self, name: str) -> VllmServer:
        """The server that has a model.

        Raises :class:`UnlikeServerError` where all answer and none has it, and :class:`MechsafetyError` where one that
        does not answer may have it.
        """
        return server_with(self._listed, name)

    # -- its answers -----------------------------------------------------------------------------------

    def agreed(
        self, spec: str, arm: str, model: TransformerBridge, edit: Edit | None, prompts: PromptSet
    ) -> Agreed | None:
        """The server that answers an arm; None where this process does, which the part ``served`` explains."""
        made = self.run.read_json_part(SERVED, spec, arm) if self._decided(spec, arm) else None
        begun, left = self._begun(spec, arm), self._left(spec, arm)
        if not left:
            return None
        if begun:
            return self._again(spec, arm, made, served_name(model, edit)) if made and made["used"] else None
        if made is not None:
            self.run.part_path(SERVED, spec, arm, suffix="json").unlink()
        if not self.servers:
            return None
        found = self._compared(model, edit, prompts)
        self.run.write_json_part(found, SERVED, spec, arm)
        if not found["used"]:
            self.session.say(f"{spec} · {arm}: no server is used: {found['reason']}; this process generates")
            return None
        return Agreed(self._with(found["model"]))

    def require_none_begun(self) -> None:
        """Raise :class:`MechsafetyError` for an arm that a server has answered in part: workers answer whole arms."""
        for spec, arm in self._arms():
            if not self._decided(spec, arm) or not self._left(spec, arm):
                continue
            made = self.run.read_json_part(SERVED, spec, arm)
            if self._begun(spec, arm) and made["used"]:
                self._again(spec, arm, made, made["model"])
            elif not self._begun(spec, arm):
                self.run.part_path(SERVED, spec, arm, suffix="json").unlink()

    def _compared(self, model: TransformerBridge, edit: Edit | None, prompts: PromptSet) -> dict[str, Any]:
        """Whether a server answers an arm, and why not; raises what a server does that fails, as it may not again."""
        config, name = self.config, served_name(model, edit)
        found: dict[str, Any] = {"address": None, "model": name, "used": False, "agreement": None}
        if (unfit := _unfit(model, edit)) is not None:
            return found | {"reason": unfit}
        try:
            server = self._with(name)
            found["address"] = server.address
            answer = partial(generate, model, edit=edit, batch_size=config.batch_size)
            return found | compared_with(server, list(prompts), answer, max_new_tokens=config.max_new_tokens)
        except UnlikeServerError as error:
            return found | {"reason": str(error)}

    def _again(self, spec: str, arm: str, made: dict[str, Any], name: str) -> Agreed:
        """The server of an arm that it has answered in part."""
        try:
            if not self.servers:
                raise MechsafetyError(f"none is named ({way('--server', 'generation.server')})")
            server = self._with(name)
        except MechsafetyError as error:
            raise MechsafetyError(
                f"{spec} · {arm} was begun by server {made['address']}, and answers of two kinds do not mix: {error}"
            ) from None
        return Agreed(server)

    def _arms(self) -> list[tuple[str, str]]:
        """The arms of systems that have not failed."""
        tried = [spec for spec in self.config.systems if not self.run.has_part("failed", spec, suffix="json")]
        return [(spec, arm) for spec in tried for arm in ARMS]

    def _decided(self, spec: str, arm: str) -> bool:
        return self.run.has_part(SERVED, spec, arm, suffix="json")

    def _batches(self, spec: str, arm: str) -> list[bool]:
        """Of each planned batch, whether it is there."""
        return [task.done for task in batch_tasks(self.run, (spec, arm), model=spec)[1:]]

    def _begun(self, spec: str, arm: str) -> bool:
        return any(self._batches(spec, arm))

    def _left(self, spec: str, arm: str) -> bool:
        batches = self._batches(spec, arm)
        return not batches or not all(batches)


def _unfit(model: TransformerBridge, edit: Edit | None) -> str | None:
    """Why no weights of ``model`` are ``edit``; None where some are."""
    try:
        if edit is not None:
            require_fits(model, edit, weights=True)
    except MechsafetyError as error:
        return str(error)
    return None


def served_table(run: RunFolder, specs: Sequence[str]) -> pd.DataFrame:
    """Which arms were answered by servers, and how far these agree with this process; empty where none was asked."""
    rows = []
    for spec in specs:
        for arm in ARMS:
            if run.has_part(SERVED, spec, arm, suffix="json"):
                made = run.read_json_part(SERVED, spec, arm)
                rows.append({"system": spec, "arm": arm, **made, **(made["agreement"] or {})})
    return pd.DataFrame(rows, columns=COLUMNS)
