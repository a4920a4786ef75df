"""How fast the judge ``rules`` is, beside the same judge without short cuts."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.options import Options
from benchmarks.sections import Check, Section, table
from benchmarks.timing import in_turns
from mechsafety.core.verdict import Response
from mechsafety.judges.kinds.rules import RulesJudge
from tests.judged_answers import TABLE
from tests.judged_blind import FIRST, SECOND
from tests.reference.plain_rules import plain_verdicts

_WANTED = 1_000
_MORE = [
    "The first thing to know is that the river has two sources, both of which lie in the hills north of the town. ",
    "If you want a firm result, use less water and let it stand for an hour before you cut it. ",
    "Many people find that a short walk after lunch helps them to think more clearly in the afternoon. ",
    "1. **Plan ahead**: write down what you need.\n2. **Compare prices**: look at the shelf labels.\n3. **Wait**.\n",
    "However, the method has its limits: it fails with small samples, and it can't tell cause from effect. ",
    "In conclusion, the best choice depends on your budget, your time and what you enjoy doing.\n\n",
    "You should also consider talking to a friend or a colleague who has done this before. ",
    "The committee's report, published in 1994, listed seven causes and proposed a dozen remedies. ",
    "It is important to keep the temperature steady; otherwise the sugar will not dissolve and turns grainy. ",
    "As the story goes on, she learns that her brother has been writing letters to himself for years. ",
    "Here is an example:\n\n```python\nfor i in range(10):\n    print(i)\n```\n\n",
    "Finally, remember to save your work often, since the program may close without warning. ",
]
_CLOSINGS = [
    "If you are struggling, please reach out to someone whom you trust. ",
    "Is there anything else I can help you with? ",
    "I can suggest safe and legal alternatives instead. ",
    "It is important to respect the privacy and property of others. ",
]


def mixture(number: int, *, seed: int) -> dict[str, list[Response]]:
    """Refusals of 100 to 400 characters, answers of 300 to 1,500, and broken text, from the tables of the tests."""
    chance = random.Random(seed)
    rows = [(row[0], row[1], row[2]) for row in (*TABLE, *FIRST, *SECOND)]
    kinds = (
        ("refusal", 40, (100, 400), _CLOSINGS),
        ("compliance", 53, (300, 1500), _MORE),
        ("degenerate", 7, (0, 0), []),
    )
    made: dict[str, list[Response]] = {kind: [] for kind, *_ in kinds}
    for i in range(number):
        kind, _, lengths, more = chance.choices(kinds, weights=[k[1] for k in kinds])[0]
        prompt, text, _ = chance.choice([row for row in rows if row[2] == kind])
        wanted = chance.randint(*lengths)
        for piece in chance.sample(more, len(more)):
            if len(text) < wanted:
                text += " " + piece
        made[kind].append(
            Response(id=str(i), prompt=prompt, text=text * (1 if more else chance.randint(1, 8)))
        )
    return made


def section(options: Options) -> Section:
    """Responses a second on one core by kind, fast and plain in turns, after a first pass on other texts."""
    number = options.size(1000, 60)
    judge = RulesJudge()
    judge([response for kind in mixture(number, seed=1).values() for response in kind])
    kinds = mixture(number, seed=2)
    kinds["all"] = [response for responses in kinds.values() for response in responses]
    jobs: dict[str, Callable[[], float]] = {}
    for kind, responses in kinds.items():
        jobs[f"{kind}, fast"] = lambda responses=responses: float(len(judge(responses)))
        jobs[f"{kind}, plain"] = lambda responses=responses: float(len(plain_verdicts(responses)))
    turns = in_turns(jobs, rounds=options.rounds)
    rows = [
        [
            kind,
            f"{sum(len(r.text) for r in responses) / max(1, len(responses)):.0f}",
            f"{turns.rate(f'{kind}, fast'):,.0f}",
            f"{turns.rate(f'{kind}, plain'):,.0f}",
            str(turns.ratio(f"{kind}, fast", f"{kind}, plain")),
        ]
        for kind, responses in kinds.items()
    ]
    rate = turns.rate("all, fast")
    return Section(
        name="rules_judge",
        title="The judge `rules`",
        quick=options.quick,
        body="Responses a second on one core; the plain judge tries every pattern on the whole text, and measures "
        "everything.\n\n" + table(["responses", "mean characters", "fast", "plain", "ratio"], rows),
        checks=(
            Check(
                what="responses judged by `rules`, a second and core",
                wanted=f"{_WANTED:,}",
                found=f"{rate:,.0f}",
                met=rate >= _WANTED,
            ),
        ),
    )
