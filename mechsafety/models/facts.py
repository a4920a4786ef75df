"""What a checkpoint is, without its weights and without the network: from this machine, or from a packaged table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechsafety.core.days import today
from mechsafety.core.errors import MechsafetyError, first_lines
from mechsafety.core.places import packaged_words
from mechsafety.core.progress import quiet
from mechsafety.models.adapters import adapter_folder
from mechsafety.models.gguf import PACKAGED
from mechsafety.models.specs import parse_spec


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Sizes of a model, and how it is used. ``gated`` is None where it is not known.

    ``source`` is where the facts are from: the checkpoint's own files, or the packaged table with its date.
    """

    architecture: str
    n_parameters: int
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool | None
    template: str
    thinking: str
    source: str

    @property
    def cache_values(self) -> int:
        """Keys and values that are kept of each token."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim


def model_facts(spec: str) -> ModelFacts:
    """The facts of ``spec``, of its files on this machine if they are there, else of the packaged table.

    No weights are read. Raises :class:`MechsafetyError` for a model that is in neither place.
    """
    parsed = parse_spec(spec)
    if parsed.adapter is not None:
        adapter_folder(parsed.adapter)  # merged into its base: as large as that
    if parsed.base == PACKAGED:
        return _of_table(parsed.base)
    config = _own(_config, spec, parsed.base, parsed.revision)
    if config is None:
        return _of_table(parsed.base)
    return _of_config(config, _own(_tokenizer, spec, parsed.base, parsed.revision), base=parsed.base)


def _own(read: Any, spec: str, base: str, revision: str | None) -> Any:
    """What ``read`` finds of ``base`` on this machine; None where nothing is. Raises for a file that cannot be read."""
    path = Path(base).expanduser()
    if path.is_file() or base.endswith(".gguf"):
        raise MechsafetyError(f"{spec!r}: a GGUF file is not read before it is loaded")
    try:
        with quiet():
            return read(str(path) if path.is_dir() else base, revision=revision, local_files_only=True)
    except Exception as error:
        if path.is_dir():
            raise MechsafetyError(f"{spec!r}: {first_lines(error)}") from None
        return None


def _config(base: str, **where: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(base, **where)


def _tokenizer(base: str, **where: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base, **where)


def _of_config(config: Any, tokenizer: Any, *, base: str) -> ModelFacts:
    text, known = config.get_text_config(), _table().get(base, {})
    heads = int(text.num_attention_heads)
    template, thinking = _chat(tokenizer)
    return ModelFacts(
        architecture=(config.architectures or [type(config).__name__])[0],
        n_parameters=count_parameters(config),
        n_layers=int(text.num_hidden_layers),
        d_model=int(text.hidden_size),
        n_heads=heads,
        n_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        vocabulary=int(text.vocab_size),
        gated=known.get("gated", False if Path(base).expanduser().is_dir() else None),
        template=template or known.get("template", "not known"),
        thinking=thinking or known.get("thinking", "not known"),
        source="its files on this machine",
    )


def count_parameters(config: Any) -> int:
    """Weights of the model of a configuration, which is made without any memory."""
    import torch

    from mechsafety.models.weights import auto_class

    try:
        with quiet(), torch.device("meta"):
            made = auto_class(config).from_config(config)
    except Exception as error:
        raise MechsafetyError(
            f"{type(config).__name__} is no language model's configuration: {first_lines(error)}"
        ) from None
    return sum(p.numel() for p in made.parameters())


def _chat(tokenizer: Any) -> tuple[str | None, str | None]:
    """How the tokenizer renders a chat, and how thinking is switched off; None where there is no tokenizer."""
    if tokenizer is None:
        return None, None
    if tokenizer.chat_template is None:
        return "missing: --template plain, or a file", "not known"
    return "its own", _thinking(tokenizer)


def _thinking(tokenizer: Any) -> str:
    from mechsafety.models.thinking import thinking_off

    return thinking_off(tokenizer, day=today()).how


def _table() -> dict[str, dict[str, Any]]:
    entries = packaged_words("mechsafety.models", "facts.toml")["model"]
    return {name: entry for entry in entries for name in entry["names"]}


def _of_table(base: str) -> ModelFacts:
    entry = _table().get(base)
    if entry is None:
        raise MechsafetyError(
            f"model {base!r} is neither on this machine nor in the packaged table: what it needs is not known before "
            "it is downloaded"
        )
    return ModelFacts(
        architecture=entry["architecture"],
        n_parameters=entry["parameters"],
        n_layers=entry["layers"],
        d_model=entry["width"],
        n_heads=entry["heads"],
        n_kv_heads=entry["kv_heads"],
        head_dim=entry["head_dim"],
        vocabulary=entry["vocabulary"],
        gated=entry["gated"],
        template=entry["template"],
        thinking=entry["thinking"],
        source=f"table of {entry['date']}: {entry['source']}",
    )
