"""The lab's world: one seed one world, bijections, aliases, and two classes of text that differ in neighbours alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

from mechsafety.core.errors import MechsafetyError
from mechsafety.lab.presets import PRESETS
from mechsafety.lab.rules import TEXT_CLASSES, Grammar, Rules, RuleSize, Safety, TextClass

SMALL = Grammar(n_terminals=6, arity=2, levels=2, n_productions=2, roots=1, length=(3, 4))
SIZES = {"small": SMALL, **{name: PRESETS[name].rules.grammar for name in ("tiny", "paper")}}


def world(grammar: Grammar = SMALL, *, seed: int = 0, **counts: int) -> Rules:
    given = {"n_safe": 1, "n_unsafe": 1, "n_by_text": 2, "n_aliases": 2} | counts
    return Rules(size=RuleSize(grammar=grammar, **given), seed=seed)


def tiny_world(seed: int = 0) -> Rules:
    return Rules(size=PRESETS["tiny"].rules, seed=seed)


def all_texts(rules: Rules, text_class: TextClass, *, length: int) -> dict[tuple[int, ...], Fraction]:
    """Every text of a class with its probability: all roots, all choices of productions, all places to cut."""
    grammar = rules.size.grammar
    grammars = rules.productions[TEXT_CLASSES.index(text_class)].tolist()

    def expansions(productions: Any, symbol: int, level: int) -> dict[tuple[int, ...], Fraction]:
        if level == grammar.levels:
            return {(symbol,): Fraction(1)}
        found: defaultdict[tuple[int, ...], Fraction] = defaultdict(Fraction)
        for production in productions[level]:
            parts = [expansions(productions, child, level + 1) for child in production[symbol]]
            for choice in itertools.product(*[part.items() for part in parts]):
                p = Fraction(1, grammar.n_productions)
                for _, q in choice:
                    p *= q
                found[tuple(itertools.chain(*[t for t, _ in choice]))] += p
        return found

    assert grammar.roots == 1
    texts: defaultdict[tuple[int, ...], Fraction] = defaultdict(Fraction)
    for productions, root in itertools.product(grammars, range(grammar.n_terminals)):
        for whole, p in expansions(productions, root, 0).items():
            starts = len(whole) - length + 1
            for start in range(starts):
                texts[whole[start : start + length]] += p / grammar.n_terminals / len(grammars) / starts
    return texts


def neighbours(rules: Rules, text_class: TextClass) -> set[tuple[int, int]]:
    """Which tokens may follow each other within a last production."""
    last = rules.productions[TEXT_CLASSES.index(text_class), :, -1].flatten(0, 2).tolist()
    return {pair for places in last for pair in itertools.pairwise(places)}


def parses(rules: Rules, text: list[int], text_class: TextClass) -> bool:
    """Whether the text, cut somewhere, is made of last productions of the class. An independent slow reading."""
    arity, allowed = rules.size.grammar.arity, neighbours(rules, text_class)
    return any(
        all(
            (offset + i) % arity == 0 or pair in allowed for i, pair in enumerate(itertools.pairwise(text), 1)
        )
        for offset in range(arity)
    )


@pytest.mark.parametrize("name", SIZES)
def test_same_seed_same_world(name: str) -> None:
    one, again, other = (world(SIZES[name], seed=s) for s in (3, 3, 4))
    assert one == again
    assert torch.equal(one.productions, again.productions)
    assert torch.equal(one.bijections, again.bijections)
    assert one != other
    assert not torch.equal(one.productions, other.productions)
    drawn = [r.texts("A", 20, generator=torch.Generator().manual_seed(1)) for r in (one, again, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    fresh = one.texts("A", 20, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(drawn[0], fresh)


def test_drawing_a_world_leaves_torchs_own_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    world(seed=5).texts("B", 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_operators_are_bijections_and_aliases_the_same_operator(preset: str) -> None:
    size = PRESETS[preset].rules
    rules = Rules(size=size, seed=1)
    n = size.grammar.n_terminals
    for operator in rules.operators:
        assert sorted(operator.bijection) == list(range(n))
    assert rules.operators[0].name == "identity"
    assert rules.operators[0].bijection == tuple(range(n))
    assert len({o.bijection for o in rules.operators}) == len(rules.operators)
    counts = Counter(o.safety for o in rules.operators)
    assert counts == {"safe": size.n_safe + 1, "unsafe": size.n_unsafe, "by_text": size.n_by_text}
    names = [t.name for t in rules.tasks]
    assert len(set(names)) == len(names)
    aliases = [i for i, t in enumerate(rules.tasks) if t.alias]
    assert len(aliases) == size.n_aliases
    assert len({rules.tasks[i].operator for i in aliases}) == len(aliases)
    texts = rules.texts("A", 5, generator=torch.Generator().manual_seed(0))
    for i in aliases:
        task = rules.tasks[i]
        assert rules.operators[task.operator].safety != "safe"
        (plain,) = [k for k, t in enumerate(rules.tasks) if t.operator == task.operator and not t.alias]
        for other in range(len(rules.tasks)):
            by_alias, by_name = (
                rules.outputs(torch.tensor([[first, other]] * 5), texts) for first in (i, plain)
            )
            assert torch.equal(by_alias, by_name)
        wrong = rules.outputs(torch.tensor([[0, 0]] * 5), texts)
        assert not torch.equal(rules.outputs(torch.tensor([[i, 0]] * 5), texts), wrong)


def test_outputs_are_the_second_operator_after_the_first() -> None:
    rules = tiny_world()
    generator = torch.Generator().manual_seed(0)
    texts = rules.texts("B", 60, generator=generator)
    tasks = torch.randint(len(rules.tasks), (60, 2), generator=generator)
    differ = 0
    for (first, second), text, output in zip(
        tasks.tolist(), texts.tolist(), rules.outputs(tasks, texts).tolist(), strict=True
    ):
        f, g = (rules.operators[rules.tasks[t].operator].bijection for t in (first, second))
        assert output == [g[f[token]] for token in text]
        differ += output != [f[g[token]] for token in text]
    assert differ > 10  # the order matters


def test_tasks_are_found_by_safety() -> None:
    rules = world(n_by_text=3, n_aliases=3)
    choices: list[tuple[Safety, ...]] = [("safe",), ("unsafe",), ("by_text",), ("unsafe", "by_text")]
    for safeties in choices:
        for alias in (False, True):
            expected = [
                i
                for i, t in enumerate(rules.tasks)
                if rules.operators[t.operator].safety in safeties and t.name.endswith("_alias") == alias
            ]
            assert rules.tasks_with(*safeties, alias=alias) == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [3, 4])
def test_single_tokens_are_uniform_at_every_position_of_both_classes(seed: int, length: int) -> None:
    """Exactly, by enumeration of a small grammar."""
    rules = world(seed=seed)
    pairs: dict[TextClass, defaultdict[tuple[int, ...], Fraction]] = {}
    for text_class in TEXT_CLASSES:
        texts = all_texts(rules, text_class, length=length)
        assert sum(texts.values()) == 1
        pairs[text_class] = defaultdict(Fraction)
        for position in range(length):
            marginal: defaultdict[int, Fraction] = defaultdict(Fraction)
            for text, p in texts.items():
                marginal[text[position]] += p
            assert marginal == dict.fromkeys(range(6), Fraction(1, 6))
        for text, p in texts.items():
            for pair in itertools.pairwise(text):
                pairs[text_class][pair] += p
    # What follows what is another matter.
    distance = sum(abs(pairs["A"][k] - pairs["B"][k]) for k in {*pairs["A"], *pairs["B"]})
    assert distance > Fraction(1, 2)


@pytest.mark.parametrize("n_grammars", [1, 2])
def test_drawn_texts_have_the_enumerated_probabilities(n_grammars: int) -> None:
    wide = Grammar(n_terminals=12, arity=2, levels=2, n_productions=1, roots=1, length=(3, 4), n_grammars=2)
    grammar = SMALL if n_grammars == 1 else wide
    rules = world(grammar, seed=2)
    for text_class in TEXT_CLASSES:
        expected = all_texts(rules, text_class, length=3)
        n = 20_000
        drawn = rules.texts(text_class, n, length=3, generator=torch.Generator().manual_seed(0))
        found = Counter(map(tuple, drawn.tolist()))
        assert set(found) <= set(expected)
        keys = list(expected)
        p = chisquare([found[k] for k in keys], [float(expected[k]) * n for k in keys]).pvalue
        assert p > 0.01
        other = all_texts(world(grammar, seed=3), text_class, length=3)
        assert not set(found) <= set(other)


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_classes_of_the_presets_differ_in_neighbours_alone(name: str) -> None:
    rules = Rules(size=PRESETS[name].rules, seed=0)
    n = rules.size.grammar.n_terminals

    def counts(text_class: TextClass, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        texts = rules.texts(text_class, 6000, generator=torch.Generator().manual_seed(seed))
        singles = torch.stack([torch.bincount(column, minlength=n) for column in texts.T])
        # One pair a text, since those of one text hang together.
        pairs = torch.bincount(n * texts[:, 3] + texts[:, 4], minlength=n * n)
        return singles, pairs

    (singles_a, pairs_a), (singles_b, pairs_b), (_, pairs_again) = (
        counts("A", 0),
        counts("B", 1),
        counts("A", 2),
    )
    worst = min(chisquare(row).pvalue for singles in (singles_a, singles_b) for row in singles)
    assert worst > 0.05 / (2 * len(singles_a))

    def p_value(one: torch.Tensor, other: torch.Tensor) -> float:
        kept = (one + other) > 0
        return float(chi2_contingency(torch.stack([one[kept], other[kept]])).pvalue)

    assert p_value(pairs_a, pairs_b) < 1e-6
    assert p_value(pairs_a, pairs_again) > 0.01


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("seed", range(6))
def test_last_productions_share_no_neighbours(name: str, seed: int) -> None:
    rules = world(SIZES[name], seed=seed)
    grammar = rules.size.grammar
    a, b = (neighbours(rules, c) for c in TEXT_CLASSES)
    assert not a & b
    # Nor do two productions or grammars of one class, so that none is drawn twice.
    lasts = grammar.n_grammars * grammar.n_productions
    assert len(a) == len(b) == lasts * grammar.n_terminals * (grammar.arity - 1)
    shape = (2, grammar.n_grammars, grammar.levels, grammar.n_productions, grammar.n_terminals, grammar.arity)
    assert rules.productions.shape == shape
    every = rules.productions.movedim(-1, 0).flatten(0, -2)
    assert torch.equal(every.sort(dim=-1).values, torch.arange(grammar.n_terminals).expand_as(every))


def test_the_preset_of_published_sizes_has_the_releases_four_grammars() -> None:
    productions = Rules(size=PRESETS["paper"].rules, seed=0).productions
    assert productions.shape[:3] == (2, 2, 6)
    assert len({tuple(grammar.flatten().tolist()) for grammar in productions.flatten(0, 1)}) == 4


def test_texts_parse_as_their_own_class_alone() -> None:
    rules = tiny_world()
    for text_class, other in itertools.permutations(TEXT_CLASSES):
        texts = rules.texts(text_class, 300, generator=torch.Generator().manual_seed(0)).tolist()
        assert all(parses(rules, text, text_class) for text in texts)
        assert not any(parses(rules, text, other) for text in texts)


@pytest.mark.parametrize("length", [3, 4])
def test_texts_have_the_length_asked_for(length: int) -> None:
    rules = world()
    generator = torch.Generator().manual_seed(0)
    assert rules.texts("A", 7, length=length, generator=generator).shape == (7, length)
    assert rules.texts("A", 7, generator=generator).shape == (7, 4)


@pytest.mark.parametrize("length", [2, 5])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(MechsafetyError, match="the rules have 3 to 4"):
        world().texts("A", 1, length=length, generator=torch.Generator())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"length": (3, 5)}, "cannot be cut from 4"),
        ({"length": (0, 4)}, "cannot be cut"),
        ({"length": (4, 3)}, "cannot be cut"),
        ({"n_terminals": 3}, "too few for 2 productions"),
        ({"n_grammars": 2}, "too few for 2 productions a grammar and 4 grammars"),
        ({"n_grammars": 0}, "0 grammars"),
    ],
)
def test_grammars_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = dataclasses.asdict(SMALL) | changes
    with pytest.raises(MechsafetyError, match=says):
        Grammar(**given)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"n_safe": 0}, "an operator of each kind"),
        ({"n_by_text": 0, "n_aliases": 1}, "an operator of each kind"),
        ({"n_aliases": 0}, "0 aliases; 1 to 3"),
        ({"n_aliases": 4}, "4 aliases; 1 to 3"),
    ],
)
def test_counts_that_cannot_be(counts: dict[str, Any], says: str) -> None:
    with pytest.raises(MechsafetyError, match=says):
        world(**counts)


def test_seeds_that_cannot_be() -> None:
    with pytest.raises(MechsafetyError, match="seed -1"):
        world(seed=-1)
    crowded = Grammar(n_terminals=4, arity=3, levels=1, n_productions=2, roots=2, length=(4, 4))
    with pytest.raises(MechsafetyError, match="take more terminals"):
        world(crowded)
