"""Models that TransformerLens has no adapter for, laid out as Llama is: hooked around their own modules.

Every module runs as transformers has it; hooks stand at what goes into it and what comes out. Whether the numbers are
those of transformers is found out as for any model (:mod:`mechsafety.models.faithful`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NORMS = ("input_layernorm", "post_attention_layernorm")
_MIXER = "self_attn"
_MLPS = ("mlp", "block_sparse_moe", "feed_forward", "moe", "shared_mlp")

_POINTS = {
    "hook_resid_pre": "hook_in",
    "hook_resid_mid": "ln2.hook_in",
    "hook_resid_post": "hook_out",
    "hook_attn_out": "attn.hook_out",
    "hook_mlp_out": "mlp.hook_out",
}


@contextmanager
def own_adapter(hf: PreTrainedModel) -> Iterator[None]:
    """While the block runs, TransformerLens has an adapter for the class of ``hf``, if it has none of its own and the
    blocks are laid out as Llama's: a norm, a token mixer, a norm, an MLP or experts."""
    from transformer_lens.factories import architecture_adapter_factory as factory

    name = type(hf).__name__
    known: Any = factory.SUPPORTED_ARCHITECTURES
    declared = getattr(hf.config, "architectures", None) or []
    place, mlps = _place(hf), _mlps_of(hf)
    if mlps is None or name in known or declared != [name]:
        yield
        return
    made = _adapter(place, mlps)
    adapters: Any = factory.ArchitectureAdapterFactory._adapters
    for table in (known, adapters):
        table[name] = made
    try:
        yield
    finally:
        for table in (known, adapters):
            table.pop(name, None)


def _place(hf: PreTrainedModel) -> str:
    """Where the text model lies: the base model, or within one that reads images too."""
    inner = "language_model"
    return f"{hf.base_model_prefix}.{inner}" if hasattr(hf.base_model, inner) else hf.base_model_prefix


def _mlps_of(hf: PreTrainedModel) -> list[str] | None:
    """The MLPs that blocks have, by name; None where the layout is another."""
    if hf.base_model is hf or not isinstance(getattr(hf, "lm_head", None), nn.Module):
        return None
    base: Any = hf.get_submodule(_place(hf))
    blocks = getattr(base, "layers", None)
    around = all(isinstance(getattr(base, part, None), nn.Module) for part in ("embed_tokens", "norm"))
    if not around or not isinstance(blocks, nn.ModuleList):
        return None
    found: dict[str, None] = {}
    for block in blocks:
        names = {name for name, child in block.named_children() if any(True for _ in child.parameters())}
        mlps = sorted(names & set(_MLPS))
        if names - set(mlps) != {*_NORMS, _MIXER} or not mlps:
            return None
        found |= dict.fromkeys(mlps)
    return list(found)


def _adapter(place: str, mlps: list[str]) -> Any:
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformer_lens.model_bridge.generalized_components import (
        BlockBridge,
        EmbeddingBridge,
        MoEBridge,
        UnembeddingBridge,
    )
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    class Block(BlockBridge):
        """Hook points of what modules read and write; those within attention need modules of TransformerLens's."""

        hook_aliases = _POINTS

    class LlamaLayout(ArchitectureAdapter):
        """Hooks around the modules of a model that is laid out as Llama is."""

        supports_compatibility_mode = False

        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            self._set_rms_rotary_defaults()
            self.weight_processing_conversions = {}
            parts: dict[str, Any] = {
                "ln1": GeneralizedComponent(name=_NORMS[0]),
                "attn": GeneralizedComponent(name=_MIXER),
                "ln2": GeneralizedComponent(name=_NORMS[1]),
            }
            for name in mlps:
                parts["mlp" if "mlp" not in parts else name] = MoEBridge(name=name, config=self.cfg)
            self.component_mapping = {
                "embed": EmbeddingBridge(name=f"{place}.embed_tokens"),
                "blocks": Block(name=f"{place}.layers", submodules=parts),
                "ln_final": GeneralizedComponent(name=f"{place}.norm"),
                "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
            }

    return LlamaLayout
