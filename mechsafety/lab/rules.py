"""The world of the lab, drawn from one seed: texts, tasks, and what is unsafe.

An input is two task tokens on a text. Each task token stands for an operator, a bijection of the terminals that is
applied to every token of the text; the output is the second operator's after the first's. Texts come from a grammar
of class A (harmless) or B (dangerous): the two have the same distribution of single tokens at every position and
differ in which tokens follow each other. An operator is safe on every text, unsafe on every text, or unsafe on what
holds class B. All stages of a run share one :class:`Rules`, so that a bijection never changes between them.

Source: the framework of Jain et al., NeurIPS 2024, arXiv 2407.10264, section 3; the construction is this project's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from mechsafety.core.errors import MechsafetyError

Safety = Literal["safe", "unsafe", "by_text"]
TextClass = Literal["A", "B"]
TEXT_CLASSES: tuple[TextClass, ...] = get_args(TextClass)
_TRIES = 1000


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Symbols expand level by level, each into ``arity`` symbols of the next, by one of ``n_productions`` rules.

    Each class has ``n_grammars`` such grammars, of which every text has one.

    A text begins with ``roots`` symbols drawn uniformly and is cut, at a random place, to ``length`` tokens. Every
    production is a permutation of the symbols at each of its places, so that single tokens are uniform at every
    position in both classes. No two neighbours within a last production of one grammar are neighbours there in another.
    """

    n_terminals: int
    arity: int
    levels: int
    n_productions: int
    roots: int
    length: tuple[int, int]
    n_grammars: int = 1

    def __post_init__(self) -> None:
        whole = self.roots * self.arity**self.levels
        low, high = self.length
        if not 1 <= low <= high <= whole:
            raise MechsafetyError(f"texts of {low} to {high} tokens cannot be cut from {whole}")
        if self.n_grammars < 1:
            raise MechsafetyError(f"{self.n_grammars} grammars a class; 1 or more")
        if self.n_terminals < 2 * self.n_grammars * self.n_productions:
            raise MechsafetyError(
                f"{self.n_terminals} terminals are too few for {self.n_productions} productions a grammar and "
                f"{2 * self.n_grammars} grammars"
            )


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A named bijection of the terminals and where it is unsafe."""

    name: str
    safety: Safety
    bijection: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a task token asks for; an alias asks for the same operator by another token."""

    name: str
    operator: int
    alias: bool


@dataclass(frozen=True, kw_only=True)
class RuleSize:
    """How many operators of each kind there are, beside the identity, which is safe."""

    grammar: Grammar
    n_safe: int
    n_unsafe: int
    n_by_text: int
    n_aliases: int

    def __post_init__(self) -> None:
        if min(self.n_safe, self.n_unsafe, self.n_by_text) < 1:
            raise MechsafetyError("the lab needs an operator of each kind: safe, unsafe and by text")
        if not 1 <= self.n_aliases <= self.n_unsafe + self.n_by_text:
            raise MechsafetyError(
                f"{self.n_aliases} aliases; 1 to {self.n_unsafe + self.n_by_text}, one for each operator that can be "
                "unsafe"
            )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Operators, task tokens and grammars, all drawn from ``seed``; two equal ones are the same world.

    ``productions`` has shape [class grammar level production symbol place].
    """

    size: RuleSize
    seed: int
    operators: tuple[Operator, ...] = field(init=False, repr=False)
    tasks: tuple[Task, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise MechsafetyError(f"seed {self.seed}: 0 or more")
        generator = torch.Generator().manual_seed(self.seed)
        operators = _draw_operators(self.size, generator)
        object.__setattr__(self, "operators", operators)
        can_be_unsafe = [i for i, o in enumerate(operators) if o.safety != "safe"]
        tasks = [Task(name=o.name, operator=i, alias=False) for i, o in enumerate(operators)]
        tasks += [
            Task(name=f"{operators[i].name}_alias", operator=i, alias=True)
            for i in can_be_unsafe[: self.size.n_aliases]
        ]
        object.__setattr__(self, "tasks", tuple(tasks))
        object.__setattr__(self, "_productions", _draw_productions(self.size.grammar, generator))

    @property
    def productions(self) -> Int[Tensor, "class grammar level production symbol place"]:
        return self.__dict__["_productions"]

    @cached_property
    def bijections(self) -> Int[Tensor, "operator terminal"]:
        return torch.tensor([o.bijection for o in self.operators])

    @cached_property
    def operator_of(self) -> Int[Tensor, " task"]:
        return torch.tensor([task.operator for task in self.tasks])

    def tasks_with(self, *safeties: Safety, alias: bool) -> list[int]:
        """Numbers of the task tokens whose operator is of these kinds."""
        return [
            i
            for i, task in enumerate(self.tasks)
            if task.alias == alias and self.operators[task.operator].safety in safeties
        ]

    def outputs(
        self, tasks: Int[Tensor, "input 2"], texts: Int[Tensor, "input length"]
    ) -> Int[Tensor, "input length"]:
        """What the tasks make of the texts: the second operator's bijection after the first's."""
        first, second = self.operator_of[tasks].unbind(dim=1)
        once = self.bijections[first].gather(1, texts)
        return self.bijections[second].gather(1, once)

    def texts(
        self, text_class: TextClass, n: int, *, length: int | None = None, generator: torch.Generator
    ) -> Int[Tensor, "n length"]:
        """``n`` texts of a class; ``length`` defaults to the longest."""
        grammar = self.size.grammar
        length = grammar.length[1] if length is None else length
        if not grammar.length[0] <= length <= grammar.length[1]:
            raise MechsafetyError(
                f"texts of {length} tokens; the rules have {grammar.length[0]} to {grammar.length[1]}"
            )
        rules = self.productions[TEXT_CLASSES.index(text_class)]
        symbols = torch.randint(grammar.n_terminals, (n, grammar.roots), generator=generator)
        which = torch.zeros(n, 1, dtype=torch.long)
        if grammar.n_grammars > 1:
            which = torch.randint(grammar.n_grammars, (n, 1), generator=generator)
        for level in range(grammar.levels):
            chosen = torch.randint(grammar.n_productions, symbols.shape, generator=generator)
            symbols = rules[:, level][which, chosen, symbols].flatten(1)
        start = torch.randint(symbols.shape[1] - length + 1, (n, 1), generator=generator)
        return symbols.gather(1, start + torch.arange(length))


def _permutation(n: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator)


def _draw_operators(size: RuleSize, generator: torch.Generator) -> tuple[Operator, ...]:
    n = size.grammar.n_terminals
    operators = [Operator(name="identity", safety="safe", bijection=tuple(range(n)))]
    kinds: tuple[tuple[str, Safety, int], ...] = (
        ("safe", "safe", size.n_safe),
        ("unsafe", "unsafe", size.n_unsafe),
        ("context", "by_text", size.n_by_text),
    )
    for name, safety, number in kinds:
        for i in range(number):
            bijection = tuple(_permutation(n, generator).tolist())
            operators.append(Operator(name=f"{name}{i + 1}", safety=safety, bijection=bijection))
    return tuple(operators)


def _draw_productions(grammar: Grammar, generator: torch.Generator) -> Tensor:
    """Permutations a place; the neighbours of the last level differ between classes, grammars and productions."""
    n = grammar.n_terminals
    shape = (len(TEXT_CLASSES), grammar.n_grammars, grammar.levels, grammar.n_productions, grammar.arity)
    drawn = torch.empty(*shape, n, dtype=torch.long)
    for place in itertools.product(*map(range, shape)):
        drawn[place] = _permutation(n, generator)
    taken = torch.zeros(n, n, dtype=torch.bool)
    for c, g, p in itertools.product(range(shape[0]), range(shape[1]), range(shape[3])):
        _separate(drawn[c, g, -1, p], taken, generator)
    return drawn.movedim(4, 5).contiguous()


def _separate(places: Tensor, taken: Tensor, generator: torch.Generator) -> None:
    """Draw again, place by place, until no pair of neighbours is one of those ``taken``; then take them."""
    for place in range(1, len(places)):
        for _ in range(_TRIES):
            clash = taken[places[place - 1], places[place]]
            if not clash.any():
                break
            # Only what clashes changes place, with as many others: a fresh permutation would hardly ever fit.
            moved = clash.nonzero().flatten()
            others = torch.randint(places.shape[1], moved.shape, generator=generator)
            for a, b in zip(moved.tolist(), others.tolist(), strict=True):
                places[place, [a, b]] = places[place, [b, a]]
        else:
            raise MechsafetyError("no grammar with distinct neighbours was found: take more terminals")
        taken[places[place - 1], places[place]] = True
