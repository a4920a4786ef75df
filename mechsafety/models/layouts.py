"""Models that TransformerLens has no adapter for: hooked around their own modules, where their blocks can be read.

Every module runs as transformers has it; hooks stand at what goes into it and what comes out. Which modules of a block
write to the stream is read off a pass (:mod:`mechsafety.models.layout_reading`). Whether the numbers are those of
transformers is found out as for any model (:mod:`mechsafety.models.faithful`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.models.layout_reading import Layout, OtherLayoutError, read_layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHORT = {"attn_out": "attn", "mlp_out": "mlp"}
"""What the first branch of a site is called in the bridge."""


@contextmanager
def own_adapter(spec: str, hf: PreTrainedModel) -> Iterator[None]:
    """While the block runs, TransformerLens has an adapter for the class of ``hf``, if it has none of its own.

    Raises :class:`MechsafetyError` where the blocks of such a model cannot be read.
    """
    from transformer_lens.factories import architecture_adapter_factory as factory

    name = type(hf).__name__
    known: Any = factory.SUPPORTED_ARCHITECTURES
    # TransformerLens goes by the names in the configuration: files may have none, or one of their own.
    if not set(getattr(hf.config, "architectures", None) or []) & set(known):
        hf.config.architectures = [name]
    if hf.config.architectures != [name] or name in known:
        yield
        return
    made = _adapter(_layout(spec, hf))
    adapters: Any = factory.ArchitectureAdapterFactory._adapters
    for table in (known, adapters):
        table[name] = made
    try:
        yield
    finally:
        for table in (known, adapters):
            table.pop(name, None)


def _layout(spec: str, hf: PreTrainedModel) -> Layout:
    try:
        return read_layout(hf)
    except Exception as error:  # whatever the code of an architecture raises
        why = str(error) if isinstance(error, OtherLayoutError) else f"it does not run: {first_lines(error)}"
        raise MechsafetyError(
            f"TransformerLens cannot boot {spec!r} ({type(hf).__name__}), for which it has no adapter; mechsafety "
            f"hooks a model itself where its blocks add what their modules write to one stream, but here {why}"
        ) from None


def _adapter(layout: Layout) -> Any:
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.generalized_components import (
        BlockBridge,
        EmbeddingBridge,
        MoEBridge,
        UnembeddingBridge,
    )
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    names = _bridge_names(layout)
    points = {"hook_resid_pre": "hook_in", "hook_resid_post": "hook_out"}
    if layout.mid:
        points["hook_resid_mid"] = f"{names[layout.mid]}.hook_in"
    for branch in layout.branches:
        if names[branch.name] == (short := _SHORT[branch.site]):
            points[f"hook_{short}_out"] = f"{names[branch.writes]}.hook_out"

    class Block(BlockBridge):
        """Hook points of what modules read and write; those within attention need modules of TransformerLens's."""

        hook_aliases = points
        mechsafety_branches = {names[b.name]: (b.site, names[b.writes]) for b in layout.branches}  # noqa: RUF012

    class ReadLayout(ArchitectureAdapter):
        """Hooks around the modules of a model whose blocks were read."""

        supports_compatibility_mode = False

        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            self._set_rms_rotary_defaults()
            self.weight_processing_conversions = {}
            mlps = {branch.name for branch in layout.branches if branch.site == "mlp_out"}
            parts: dict[str, Any] = {
                names[part]: MoEBridge(name=part, config=self.cfg, optional=True)
                if part in mlps
                else GeneralizedComponent(name=part, optional=True)
                for part in layout.parts
            }
            self.component_mapping = {
                "embed": EmbeddingBridge(name=layout.embedding),
                "blocks": Block(name=layout.blocks, submodules=parts),
                "ln_final": GeneralizedComponent(name=layout.norm),
                "unembed": UnembeddingBridge(name=layout.head, config=self.cfg),
            }

    return ReadLayout


def _bridge_names(layout: Layout) -> dict[str, str]:
    """Module names within a block, by what the bridge calls them: the first of each site ``attn`` and ``mlp``."""
    names = {part: part for part in layout.parts}
    for branch in layout.branches:
        if (short := _SHORT[branch.site]) not in names.values():
            names[branch.name] = short
    return names
