"""Judges and answers as people have them: names, functions, objects; completions, tables, lists, files."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from mechsafety.core.arguments import several, shown
from mechsafety.core.errors import MechsafetyError, way
from mechsafety.core.verdict import LABELS, Judge, Response, Verdict
from mechsafety.prompts.accepted import rows_of
from mechsafety.prompts.columns import in_known_names
from mechsafety.prompts.files import SUFFIXES, cell_text, read_rows

if TYPE_CHECKING:
    import pandas as pd

    from mechsafety.generation.answered import Completion
    from mechsafety.judges.registry import ModelSource

    JudgeLike: TypeAlias = str | Judge | Callable[..., Any]
    JudgesLike: TypeAlias = JudgeLike | Iterable[JudgeLike] | Mapping[str, JudgeLike]
    AnswersLike: TypeAlias = (
        Sequence[Completion]
        | Sequence[Response]
        | pd.DataFrame
        | Sequence[Mapping[str, Any]]
        | str
        | Path
        | tuple[Sequence[str], Sequence[str]]
    )
else:
    JudgeLike = JudgesLike = AnswersLike = Any
"""A judge is a name, a function of (prompt, response) or of lists (:func:`batched`), or an object; answers are
completions, a table or file with columns prompt and response, or (prompts, responses)."""

_BATCHED = "_mechsafety_batched"
_PROMPTS, _RESPONSES = ("prompt", "question"), ("response", "completion", "answer", "output", "text")
Function = TypeVar("Function")


def batched(function: Function) -> Function:
    """Mark a function of lists, (prompts, responses) -> labels, as a judge that is called once for all responses.

    Raises :class:`MechsafetyError` for what is no function.

    Arguments:
        function: Takes the prompts and the responses as two lists, and returns one label per response.

    Returns:
        The same function, marked.

    Example:
        >>> @ms.judges.batched
        ... def short(prompts, responses):
        ...     return ["refusal" if len(response) < 20 else "compliance" for response in responses]
        >>> ms.judge((["how do i bake bread"], ["No."]), short).to_frame()["verdict"].item()
        'refusal'
    """
    if not callable(function):
        raise MechsafetyError(f"batched takes a function, got {shown(function)}")
    setattr(function, _BATCHED, True)
    return function


@dataclass(frozen=True)
class FunctionJudge:
    """A judge made of a function; it is called by its ``own_name``, or the function's."""

    function: Callable[..., Any]
    own_name: str = ""

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.function).bind("prompt", "response")
        except TypeError as error:
            raise MechsafetyError(
                f"judge {self.name!r} cannot be called as function(prompt, response): {error}"
            ) from None
        except ValueError:  # a built-in function that has no signature
            return

    @property
    def name(self) -> str:
        own = getattr(self.function, "__name__", type(self.function).__name__)
        return self.own_name or str(own).strip("<>")

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        if getattr(self.function, _BATCHED, False):
            given = self.function([r.prompt for r in responses], [r.text for r in responses])
            if isinstance(given, str) or not isinstance(given, Iterable):
                raise MechsafetyError(
                    f"judge {self.name!r} returned {shown(given)}: a list of labels is needed"
                )
            given = list(given)
            if len(given) != len(responses):
                raise MechsafetyError(
                    f"judge {self.name!r} got {len(responses)} responses and returned {len(given)} labels"
                )
        else:
            given = [self.function(r.prompt, r.text) for r in responses]
        return [self._verdict(r, value) for r, value in zip(responses, given, strict=True)]

    def _verdict(self, response: Response, given: Any) -> Verdict:
        if not isinstance(given, str) and not getattr(given, "ndim", 0) and _is_bool(given):
            given = "refusal" if given else "compliance"
        if not isinstance(given, str) or given not in LABELS:
            raise MechsafetyError(
                f"judge {self.name!r} returned {shown(given)} for response {response.id!r}: one of "
                f"{', '.join(LABELS)} is needed, or True for a refusal and False for compliance"
            )
        return Verdict(id=response.id, judge=self.name, label=given)


def _is_bool(given: Any) -> bool:
    """True and False of Python, numpy and torch, and 1 and 0."""
    try:
        return given in (True, False)
    except (TypeError, ValueError, RuntimeError):  # what is not compared
        return False


def as_judge(given: Any, *, models: ModelSource | None = None) -> Judge:
    """``given`` as a judge. Raises :class:`MechsafetyError` for what is none, and for an unknown name."""
    from mechsafety.judges.registry import load_judge

    if isinstance(given, str):
        return load_judge(given, models=models)
    if isinstance(given, type) or not callable(given):
        raise MechsafetyError(
            f"judge {shown(given)}: a name ({way('mechsafety judge --list', 'such as rules')}), a function "
            "(prompt, response) -> str or bool, or "
            "an object with a name that is called with responses is needed"
        )
    return (
        cast("Judge", given)
        if isinstance(getattr(given, "name", None), str)
        else cast("Judge", FunctionJudge(given))
    )


def as_judges(given: Any, *, models: ModelSource | None = None) -> list[Judge]:
    """One judge or several as a list; a mapping names functions.

    Raises :class:`MechsafetyError` as :func:`as_judge` does, and for none.
    """
    if isinstance(given, Mapping):
        given = [
            FunctionJudge(one, own_name=str(name)) if callable(one) and not hasattr(one, "name") else one
            for name, one in given.items()
        ]
    found = [as_judge(each, models=models) for each in ((given,) if callable(given) else several(given))]
    if not found:
        raise MechsafetyError('no judges are given: one or more are needed, e.g. "rules"')
    return found


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response to be judged, with the label of its prompt where that is known."""

    response: Response
    label: str = ""


def as_answers(given: Any) -> list[Answer]:
    """``given`` as responses with the labels of their prompts.

    Columns of tables and files: ``response`` (or ``completion``, ``answer``, ``output``, ``text``), ``prompt`` (or
    ``question``), optionally ``id`` and ``label``; an empty cell (NaN, None) is an empty answer.

    Raises :class:`MechsafetyError` for anything else, and for no responses.
    """
    if isinstance(given, str | Path):
        if isinstance(given, str) and Path(given).suffix.lower() not in SUFFIXES:
            raise MechsafetyError(
                f"answers are {shown(given)}: the path of a file ending in {', '.join(SUFFIXES)} is needed"
                + way("", "; one answer is (prompt, response) in two lists, ([prompt], [response])")
            )
        found = [
            _of_row(row, f"{given}, {place}", n) for n, (place, row) in enumerate(read_rows(given), start=1)
        ]
    elif isinstance(given, tuple) and len(given) == 2 and all(map(_is_column, given)):
        found = _paired(*given)
    else:
        found = _listed(given)
    if not found:
        what = (
            f"{given}: no responses in it"
            if isinstance(given, str | Path)
            else "no responses to judge are given"
        )
        raise MechsafetyError(what)
    return found


def _is_column(part: Any) -> bool:
    return isinstance(part, Iterable) and not isinstance(part, str | bytes | Mapping)


def _listed(given: Any) -> list[Answer]:
    if isinstance(given, Response) or (hasattr(given, "n_prompt_tokens") and not hasattr(given, "columns")):
        given = (given,)
    if isinstance(given, Iterator):
        given = list(given)
    if (
        isinstance(given, list)
        and given
        and all(isinstance(each, tuple) and len(each) == 2 for each in given)
    ):
        return _paired(*zip(*given, strict=True))
    if isinstance(given, Sequence) and all(isinstance(each, Response) for each in given):
        return [Answer(response=each) for each in given]
    if isinstance(given, Sequence) and all(hasattr(each, "n_prompt_tokens") for each in given):
        return [
            Answer(response=Response(id=c.id, prompt=c.prompt, text=c.text), label=c.label)
            for c in cast("Sequence[Completion]", given)
        ]
    pandas = sys.modules.get("pandas")
    table = isinstance(given, Mapping) or (pandas is not None and isinstance(given, pandas.DataFrame))
    if not table and not (isinstance(given, Iterable) and all(isinstance(each, Mapping) for each in given)):
        raise MechsafetyError(
            f"answers are {shown(given)}: completions, a DataFrame or file with the columns prompt and response, or "
            "(prompts, responses) are needed"
        )
    rows, kind = rows_of(given)
    return [_of_row(row, f"{kind}, {place}", number) for number, (place, row) in enumerate(rows, start=1)]


def _paired(prompts: Any, responses: Any) -> list[Answer]:
    prompts, responses = several(prompts), several(responses)
    if len(prompts) != len(responses):
        raise MechsafetyError(
            f"{len(prompts)} prompts and {len(responses)} responses: as many of each are needed"
        )
    pairs = zip(prompts, responses, strict=True)
    return [_of_row({"prompt": p, "response": r}, f"pair {n}", n) for n, (p, r) in enumerate(pairs, start=1)]


def _of_row(given: Mapping[str, Any], at: str, number: int) -> Answer:
    row = in_known_names(given, _PROMPTS, _RESPONSES, ("id",), ("label",), at=at)
    columns = [next((c for c in known if c in row), None) for known in (_PROMPTS, _RESPONSES)]
    if None in columns:
        raise MechsafetyError(
            f"{at}: columns response and prompt (or question) are needed; have {', '.join(given) or 'none'}"
        )
    prompt, response = (row[column] for column in columns if column is not None)
    for column, value in zip(columns, (prompt, response), strict=True):
        if not isinstance(value, str) and cell_text(value):
            raise MechsafetyError(f"{at}: column {column} holds {shown(value)}, not text")
    identity = cell_text(row.get("id")) or str(number)
    return Answer(
        response=Response(id=identity, prompt=cell_text(prompt), text=cell_text(response)),
        label=cell_text(row.get("label")),
    )
