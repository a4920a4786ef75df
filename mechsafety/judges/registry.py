"""Judges by name: ``NAME`` or ``NAME:ARGUMENT``, where NAME is a module of :mod:`mechsafety.judges.kinds`.

A judge is added by adding one file there with a one-line ``ABOUT``. ``TAKES`` says what ARGUMENT names, on which
verdicts depend beside the responses: ``nothing``, a ``model``, a ``chat model``, a ``classifier``, a ``file``, other
``judges``. The file holds the judge's class as ``JUDGE``, which is made by :func:`load_judge` as ``TAKES`` asks, or
makes its judge itself: ``create(argument, *, models=None) -> Judge``.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mechsafety.core.arguments import nearest, shown
from mechsafety.core.errors import IncompleteError, MechsafetyError, way
from mechsafety.core.verdict import Judge, Response, Verdict
from mechsafety.judges.accepted import JudgesLike, as_judges
from mechsafety.judges.asking import MISSING, AskingJudge, is_missing
from mechsafety.judges.asking_once import ask_once
from mechsafety.judges.cache import VerdictCache, open_cache
from mechsafety.judges.kinds.endpoint import EndpointJudge
from mechsafety.judges.side_by_side import require_usable

if TYPE_CHECKING:
    from mechsafety.runs.folder import Provenance


@runtime_checkable
class ModelSource(Protocol):
    """Returns the loaded model that a spec names; given by the caller so that a model is loaded once."""

    def __call__(self, spec: str, /) -> object: ...


def model_source(models: ModelSource | None) -> ModelSource:
    """``models``, or :func:`mechsafety.models.loading.load_model` where the caller has none loaded."""
    if models is not None:
        return models
    from mechsafety.models.loading import load_model

    return load_model


def available_judges() -> list[str]:
    """Return the names of all judges, sorted."""
    return sorted(_judge_modules())


def describe_judges() -> dict[str, str]:
    """Return each judge's name with its one-line description."""
    return {name: getattr(module, "ABOUT", name) for name, module in sorted(_judge_modules().items())}


def load_judge(spec: str, *, models: ModelSource | None = None) -> Judge:
    """Make the judge that ``spec`` names, for example ``rules`` or ``phrases:arditi``.

    ``models`` is handed to judges that need a model and ignored by the others. Raises MechsafetyError
    for an unknown name or an argument that the judge does not take.

    Returns:
        The judge: called with responses, it gives one verdict for each.

    Example:
        >>> ms.judges.load_judge("phrases:arditi").name
        'phrases:arditi'
    """
    name, argument, module = _named(spec)
    if hasattr(module, "JUDGE"):
        return _made(name, module, argument, models=models)
    return module.create(argument or None, models=models)


def _named(spec: str) -> tuple[str, str, ModuleType]:
    """Name, argument and module of the judge that ``spec`` names. Raises MechsafetyError where there is none."""
    name, colon, argument = spec.strip().partition(":")
    modules = _judge_modules()
    if name not in modules:
        listed = name.partition(",")[0] in modules
        hint = "; several judges are a list of names" if listed else nearest(name, modules)
        of = "" if name == spec.strip() else f" (from {redacted(spec)!r})"
        raise MechsafetyError(
            f"no judge is called {name!r}{of}{hint}; there are: {', '.join(sorted(modules))}"
        )
    if colon and not argument:
        raise MechsafetyError(
            f"judge {redacted(spec)!r} has a colon and no argument; write {name!r} or '{name}:ARGUMENT'"
        )
    return name, argument, modules[name]


def require_known_judge(spec: str) -> None:
    """Raise MechsafetyError for a judge that could be made nowhere: unknown, or without the argument that it needs.

    Files, models and addresses are not looked for: those of another machine are not here.
    """
    name, argument, module = _named(spec)
    takes = getattr(module, "TAKES", None)
    if takes == "judges":
        for member in module.JUDGE.named(argument):
            require_known_judge(member)
    elif takes in ("model", "chat model"):
        _require_argument(name, argument, takes)
    elif takes == "nothing" or name == "phrases":
        load_judge(spec)


def asks_a_model(spec: str) -> bool:
    """Whether the judge is a model that reads answers: such a one is checked before it is believed."""
    name = spec.strip().partition(":")[0]
    module = _judge_modules().get(name)
    return name == "endpoint" or getattr(module, "TAKES", None) in ("model", "chat model", "classifier")


def is_pooled(spec: str) -> bool:
    """Whether the judge is fitted on all answers of a comparison together."""
    module = _judge_modules().get(spec.strip().partition(":")[0])
    return bool(getattr(getattr(module, "JUDGE", None), "pooled", False))


def require_separate(spec: str) -> None:
    """Raise MechsafetyError for a judge that is fitted on all answers, where they are judged one state at a time."""
    if is_pooled(spec):
        raise MechsafetyError(
            f"judge {redacted(spec)!r} is fitted on all answers of a comparison together, and here answers are judged "
            "as they come: take majority: with the same members, or add it to the finished run, "
            + way("mechsafety judge", "run.judge(name)")
        )


def _made(name: str, module: ModuleType, argument: str, *, models: ModelSource | None) -> Judge:
    """The judge of a module that has its class as ``JUDGE``."""
    takes = module.TAKES
    if takes == "nothing":
        if argument:
            raise MechsafetyError(f"judge {name!r} takes no argument, got {argument!r}; write {name!r}")
        return module.JUDGE()
    if takes == "judges":
        return module.JUDGE.of(argument, models=models)
    if takes == "classifier":
        from mechsafety.judges.classifiers import load_classifier

        return module.JUDGE(
            f"{name}:{argument}" if argument else name, load_classifier(argument or module.DEFAULT)
        )
    _require_argument(name, argument, takes)
    return module.JUDGE(argument, model_source(models)(argument))


def _require_argument(name: str, argument: str, takes: str) -> None:
    if not argument:
        raise MechsafetyError(f"judge {name!r} needs a {takes}: {name}:smollm2-135m, or {name}:HUB/ID")


def judge_sources(spec: str, *, loading: Mapping[str, Any] | None = None) -> dict[str, Provenance]:
    """The models and files that a judge's verdicts are made with, as sources of a run that keeps them.

    ``loading`` is how the caller loads models: dtype, device, template; chat settings are those of the models that are
    studied, and a judge has none. What lies behind an endpoint cannot be known.

    It is asked for before the work: raises MechsafetyError for a judge that could not be made then, as far as that
    shows without a model.
    """
    from mechsafety.models.provenance import of_classifier, of_files, of_model  # which loads torch

    name, argument, module = _named(spec)
    takes = getattr(module, "TAKES", None)
    if takes == "judges":
        members = [judge_sources(member, loading=loading) for member in module.JUDGE.named(argument)]
        return {key: value for member in members for key, value in member.items()}
    if takes == "classifier":
        return {f"judge {spec}": of_classifier(argument or module.DEFAULT)}
    if takes in (None, "nothing"):
        load_judge(spec)  # which costs nothing, and says what is wrong with it before the work
        return {}
    if takes == "file":
        return {f"judge {spec}": of_files(Path(argument).expanduser())} if argument else {}
    _require_argument(name, argument, takes)
    loaded = {setting: value for setting, value in (loading or {}).items() if setting != "chat"}
    return {f"judge {spec}": of_model(argument, **loaded)}


def redacted(text: str) -> str:
    """``text`` with the user and password of any URL in it replaced by ``***``."""
    return re.sub(r"(?<=://)\S*@", "***@", text)


@runtime_checkable
class Panel(Protocol):
    """A judge made of judges, which are asked like any other, each once; it has the last word."""

    name: str
    members: tuple[Judge, ...]

    def combine(self, responses: Sequence[Response], given: Sequence[Mapping[str, Verdict]]) -> list[Verdict]:
        """One verdict a response from those of the members by name."""
        ...


def single_judges(judges: Sequence[Judge]) -> list[Judge]:
    """The judges that are asked: those that are no panel, and the members of panels, one of each name."""
    single = [judge for judge in judges if not isinstance(judge, Panel)]
    members = [member for judge in judges if isinstance(judge, Panel) for member in judge.members]
    return list({judge.name: judge for judge in reversed([*single, *members])}.values())[::-1]


@contextmanager
def shared_cache(judges: Sequence[Judge], *, paid: bool = False) -> Iterator[VerdictCache | None]:
    """The user's verdict cache where one of ``judges`` asks a model (``paid``: for money), else None."""
    asking = [judge for judge in single_judges(judges) if isinstance(judge, AskingJudge)]
    if not any(judge.paid or not paid for judge in asking):
        yield None
        return
    with open_cache(None) as cache:
        yield cache


def judge_responses(
    responses: Sequence[Response],
    judges: JudgesLike,
    *,
    models: ModelSource | None = None,
    cache: VerdictCache | None = None,
    repeat: int = 0,
    partial: bool = False,
) -> list[Verdict]:
    """Return one verdict per judge and response: judges in the order given, responses in theirs.

    Members of panels are asked like any other judge, and once where they are judges beside. With ``cache``, judges
    that ask a model (:class:`AskingJudge`) are asked only what it does not hold and no other process is asking, and
    each verdict is kept as it arrives; ``judge.usage`` counts both. ``repeat`` numbers repeated judgements of the same
    responses, which do not share a verdict. With ``partial``, a judge that was ``stopped`` raises nothing.

    Raises MechsafetyError when two responses share an id or two judges a name, and when a judge returns
    anything but exactly one verdict under its own name for each response.
    """
    ids = [response.id for response in responses]
    _refuse_duplicates(ids, what="response ids", mend="give each answer an id of its own, or leave ids out")
    loaded = as_judges(judges, models=models)
    _refuse_duplicates(
        [judge.name for judge in loaded],
        what="judge names",
        mend=way("name each judge once", "name functions in a mapping, {'own': function, ...}"),
    )
    found: dict[str, dict[str, Verdict]] = {}
    for group in _asked_together(single_judges(loaded)):
        asking = [judge for judge in group if isinstance(judge, AskingJudge)]
        given = ask_once(asking, responses, cache, repeat=repeat)
        require_usable([judge for judge in group if isinstance(judge, EndpointJudge)])
        for judge in asking:
            if judge.stopped is not None and not partial:
                raise judge.stopped
        for judge in group:
            verdicts = given[judge.name] if judge.name in given else judge(responses)
            found[judge.name] = _by_id(judge, _verdicts_of(judge, verdicts), ids)
    for judge in loaded:
        if isinstance(judge, Panel):
            votes = [{m.name: found[m.name][i] for m in judge.members} for i in ids]
            found[judge.name] = _by_id(judge, judge.combine(responses, votes), ids)
    return [found[judge.name][i] for judge in loaded for i in ids]


def _asked_together(judges: Sequence[Judge]) -> list[list[Judge]]:
    """Every judge alone, but for those of endpoints, which are asked together: first, before any model works."""
    hosted = [judge for judge in judges if isinstance(judge, EndpointJudge)]
    alone = [[judge] for judge in judges if not isinstance(judge, EndpointJudge)]
    return [list[Judge](hosted), *alone] if hosted else alone


def require_complete(verdicts: Sequence[Verdict]) -> None:
    """Raise IncompleteError where verdicts are missing: an endpoint gave no answer, or a cap was reached."""
    missing = [verdict for verdict in verdicts if is_missing(verdict)]
    if missing:
        first = missing[0]
        why = first.detail.get("error") or ", ".join(MISSING & set(first.tags))
        raise IncompleteError(
            f"not complete: judge {first.judge!r} has no verdict on {len(missing)} of {len(verdicts)} answers ({why}); "
            "the others are kept, and the same command asks for these again"
        )


def _verdicts_of(judge: Judge, given: Any) -> list[Verdict]:
    """What a judge returned. Raises :class:`MechsafetyError` where that is no list of verdicts."""
    found = list(given) if isinstance(given, Iterable) else [given]
    if wrong := [one for one in found if not isinstance(one, Verdict)]:
        raise MechsafetyError(
            f"judge {judge.name!r} returned {shown(wrong[0])}: an object with a name returns a Verdict for each "
            "response; a function (prompt, response) may return a bool or a label"
        )
    return found


def _by_id(judge: Judge, verdicts: Sequence[Verdict], ids: Sequence[str]) -> dict[str, Verdict]:
    given = Counter(verdict.id for verdict in verdicts)
    if given != Counter(ids):
        missing, extra = Counter(ids) - given, given - Counter(ids)
        raise MechsafetyError(
            f"judge {judge.name!r} got {len(ids)} responses and returned {len(verdicts)} verdicts: "
            f"missing ids {_some(missing)}, unasked or repeated ids {_some(extra)}; "
            "a judge must answer each id once"
        )
    if strangers := {verdict.judge for verdict in verdicts} - {judge.name}:
        raise MechsafetyError(
            f"judge {judge.name!r} returned verdicts signed {_some(strangers)}; it must sign its own"
        )
    return {verdict.id: verdict for verdict in verdicts}


def _refuse_duplicates(names: Sequence[str], *, what: str, mend: str) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise MechsafetyError(f"{what} must be unique, these occur more than once: {_some(repeated)}; {mend}")


def _some(names: Sequence[str] | set[str] | Counter[str]) -> str:
    shown = sorted(names)
    return (
        ", ".join(map(repr, shown[:5])) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
    ) or "none"


def _judge_modules() -> dict[str, ModuleType]:
    from mechsafety.judges import kinds

    names = [entry.name for entry in pkgutil.iter_modules(kinds.__path__)]
    return {name: importlib.import_module(f"{kinds.__name__}.{name}") for name in names}
