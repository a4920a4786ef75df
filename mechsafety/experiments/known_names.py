"""Names in a configuration that can be known to be wrong as soon as it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from pydantic import BaseModel

from mechsafety.core.arguments import nearest, several
from mechsafety.core.errors import MechsafetyError
from mechsafety.core.names import SELECTION_RULES
from mechsafety.core.places import data_folder

# Those that torch knows, which is not loaded for it; a backend of a user's own is called as they please.
_DEVICES = (
    *(
        "auto",
        "cpu",
        "cuda",
        "mps",
        "xpu",
        "npu",
        "hpu",
        "xla",
        "mtia",
        "meta",
        "ipu",
        "hip",
        "maia",
        "lazy",
        "vulkan",
    ),
    *("opencl", "opengl", "mkldnn", "ideep", "fpga", "ve", "privateuseone"),
)
_DEVICE_WORDS = {"gpu": "cuda", "metal": "mps"}
_INDEX = re.compile(r"0|[1-9][0-9]*")
# Equal to what torch is loaded for: gguf.PACKAGED and templates.NAMES (a test).
_PACKAGED_MODEL = "smollm2-135m"
_TEMPLATES = ("plain", "few-shot", "own-or-plain", "own-or-few-shot")


def require_known(config: BaseModel, given: Collection[str]) -> None:
    """Raise :class:`MechsafetyError` for a name in the fields ``given`` to ``config`` that nothing can be called.

    Judges are known by their names. A model, a set or a template may be a folder of another machine: what is refused
    is a name that is nothing here and nearly one that is packaged.
    """
    for field, check in _CHECKS.items():
        if field in given and (value := getattr(config, field)) is not None:
            for name in several(value):
                if isinstance(name, str):
                    check(name, field)


def _judge(name: str, field: str) -> None:
    from mechsafety.judges.registry import require_known_judge  # which loads numpy

    try:
        require_known_judge(name)
    except MechsafetyError as error:
        raise MechsafetyError(f"{field}: {error}") from None


def _model(name: str, field: str) -> None:
    if _is_here(name):
        return
    base, plus, adapter = name.partition("+")
    if base != _PACKAGED_MODEL:
        _refuse_nearly(base, [_PACKAGED_MODEL], f"{field}: unknown model {name!r}")
    if plus and base == _PACKAGED_MODEL and not _is_here(adapter):
        _refuse_nearly(adapter, _adapters(), f"{field}: unknown adapter {adapter!r} of model {name!r}")


def _adapters() -> list[str]:
    return sorted(path.parent.name for path in (data_folder() / "adapters").glob("*/adapter_config.json"))


def _prompts(name: str, field: str) -> None:
    from mechsafety.prompts.prompt_set import packaged_sets
    from mechsafety.prompts.sources import SOURCES

    if not _is_here(name):
        _refuse_nearly(name, [*packaged_sets(), *SOURCES], f"{field}: unknown prompt set {name!r}")


def _template(name: str, field: str) -> None:
    if "{" not in name and not _is_here(name):
        _refuse_nearly(name, _TEMPLATES, f"{field}: unknown template {name!r}")


def _device(name: str, field: str) -> None:
    kind, colon, index = name.partition(":")
    if kind not in _DEVICES:
        hint = nearest(_DEVICE_WORDS.get(kind.lower(), kind), _DEVICES, alike=0.75)
        if hint:
            raise MechsafetyError(f"{field}: unknown device {name!r}{hint}")
    if colon and not _INDEX.fullmatch(index):
        raise MechsafetyError(f"{field}: device {name!r}: behind the colon stands a number, as in {kind}:0")


def _rule(name: str, field: str) -> None:
    if name not in SELECTION_RULES:
        known = ", ".join(SELECTION_RULES)
        raise MechsafetyError(f"{field}: {name!r} is not one of {known}{nearest(name, SELECTION_RULES)}")


def _refuse_nearly(name: str, known: Iterable[str], what: str) -> None:
    known = list(known)
    if name not in known and (hint := nearest(name, known, alike=0.75)):
        raise MechsafetyError(f"{what}{hint}; packaged are {', '.join(known)}")


def _is_here(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):
        return False


_CHECKS: dict[str, Callable[[str, str], None]] = {
    **dict.fromkeys(("judge", "judges"), _judge),
    **dict.fromkeys(("model", "systems", "base", "tuned", "control", "checkpoints"), _model),
    **dict.fromkeys(("prompts", "anchors"), _prompts),
    "rule": _rule,
    "template": _template,
    "device": _device,
}
