"""Experiments on one model under an edit, or as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mechsafety.core.progress import Progress
from mechsafety.edits.expressions import read_expression
from mechsafety.edits.interventions import digest, require_fits
from mechsafety.experiments.base import Experiment
from mechsafety.experiments.config import EditedConfig
from mechsafety.models.loading import load_model
from mechsafety.models.provenance import of_models
from mechsafety.runs.folder import Provenance

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from mechsafety.edits.interventions import Edit

C = TypeVar("C", bound=EditedConfig)


class EditedExperiment(Experiment[C]):
    """One model under an edit.

    What an edit is depends on the model, and its file may change between sessions. So the model is loaded before the
    folder is opened, and the run is bound to the edit's values, not to its name.
    """

    loads_early = True
    model: TransformerBridge
    edit: Edit | None

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self._expression = read_expression(config.edit) if config.edit is not None else None

    @property
    def in_weights(self) -> bool:
        """Whether the edit is written into the weights."""
        return False

    @property
    def system(self) -> str:
        """The model and its edit, as tables name them."""
        return self.config.model if self.edit is None else f"{self.config.model} under {self.edit.describe()}"

    def models(self) -> Sequence[str]:
        return [self.config.model]

    def sources(self) -> Mapping[str, Provenance]:
        return self._sources

    def prepare(self, day: str, say: Progress) -> None:
        self._sources = of_models(self.config.model, **self.loading)
        say(f"loading {self.config.model}")
        self.model = load_model(self.config.model, **self.loading, date=day)
        self.edit = self._expression.for_model(self.model) if self._expression is not None else None
        if self.edit is not None:
            require_fits(self.model, self.edit, weights=self.in_weights)

    def bound(self) -> Mapping[str, Any]:
        return {"edit_sha256": digest(self.edit) if self.edit is not None else None}
