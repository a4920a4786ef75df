"""The plan of tasks: whatever workers die, every task is made once, and none before what it needs."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from mechsafety.engines.progress import Pace, by_stage, line, state
from mechsafety.engines.tasks import MOST_DEATHS, Name, Schedule, Task, placed

SYSTEMS, ARMS, BATCHES, JUDGES = 4, ("original", "edited"), 4, 2


def study() -> list[Task]:
    """Tasks like those of a study of four systems, of which plans are known from the start."""
    tasks = []
    for system in map("m{}".format, range(SYSTEMS)):
        select = Task(name=("select", system), model=system)
        tasks.append(select)
        for arm in ARMS:
            first = [] if arm == "original" else [select.name]
            batches = [
                Task(name=("answers", system, arm, str(n)), needs=tuple(first), model=system)
                for n in range(BATCHES)
            ]
            joined = Task(name=("responses", system, arm), needs=tuple(b.name for b in batches), model=system)
            verdicts = [
                Task(
                    name=("verdicts", str(n), system, arm),
                    needs=(joined.name,),
                    model=f"judge{n}" if n else None,
                )
                for n in range(JUDGES)
            ]
            tasks += [*batches, joined, *verdicts]
    return tasks


def run_with_failures(tasks: list[Task], workers: int, draw: random.Random, deaths: float) -> Counter[Name]:
    """How often each task was written; workers finish in any order, and some die over their task."""
    written: Counter[Name] = Counter()
    plan, held = Schedule(), {f"w{n}": () for n in range(workers)}
    names = iter(range(workers, 10**6))
    while True:
        known = [replace(task, done=task.name in written) for task in tasks]
        before = dict(plan.running)
        for worker, task in plan.next(known, held).items():
            assert worker not in before
            assert all(written[need] for need in task.needs), f"{task.name} began before what it needs"
            assert task.name not in {other.name for other in before.values()}, (
                f"{task.name} is made twice at once"
            )
        if not plan.running:
            return written
        worker = draw.choice(sorted(plan.running))
        if draw.random() < deaths:
            plan.dies(worker)
            del held[worker]
            held[f"w{next(names)}"] = ()
        else:
            task = plan.finished(worker)
            written[task.name] += 1
            held[worker] = (task.model,) if task.model else ()


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(60, 1000), marks=pytest.mark.slow)])
def test_no_task_of_64_workers_is_lost_or_made_twice_whatever_dies(seeds: range) -> None:
    tasks = study()
    for seed in seeds:
        draw = random.Random(seed)
        written = run_with_failures(tasks, 64, draw, deaths=draw.uniform(0, 0.12))
        lost = {task.name for task in tasks} - written.keys()
        assert max(written.values()) == 1, f"seed {seed}"
        assert not lost, f"seed {seed}: {lost}"


def test_a_task_that_kills_its_workers_is_given_up_and_what_needs_it_never_begins() -> None:
    """The control: the same plan does lose tasks where every worker dies over one."""
    poison, after, other = Task(name=("a",)), Task(name=("b",), needs=(("a",),)), Task(name=("c",))
    plan = Schedule()
    for n in range(MOST_DEATHS):
        assert plan.next([poison, after], {f"w{n}": ()}) == {f"w{n}": poison}
        plan.dies(f"w{n}")
    assert plan.ready([poison, after, other]) == [other]
    assert "workers died" in plan.failed["a",]


def test_a_failed_task_is_not_tried_again_and_others_go_on() -> None:
    plan, tasks = Schedule(), [Task(name=("a",)), Task(name=("b",))]
    plan.next(tasks, {"w": ()})
    plan.fails("w", "gated")
    assert plan.next(tasks, {"w": ()}) == {"w": tasks[1]}
    assert plan.failed == {("a",): "gated"}


def test_tasks_go_where_their_model_is_and_other_workers_take_other_models() -> None:
    a, b = [Task(name=("a", str(n)), model="a") for n in range(3)], Task(name=("b",), model="b")
    assert placed([*a, b], {"w1": (), "w2": ("a",)}) == {"w2": a[0], "w1": b}
    assert placed([*a, b], {"w1": (), "w2": ()}) == {"w1": a[0], "w2": b}
    assert placed([*a, b], {"w1": ()}, busy=["a"]) == {"w1": b}
    # No worker stands idle where only tasks of a model that another one holds are left.
    assert placed(a, {"w1": ("b",), "w2": ("a",)}) == {"w2": a[0], "w1": a[1]}


def test_progress_counts_stages_and_states_what_is_left() -> None:
    tasks = [Task(name=("select", "m"), done=True), *(Task(name=("answers", str(n))) for n in range(4))]
    stages, pace = by_stage(tasks), Pace()
    assert stages == {"select": (1, 1), "answers": (0, 4)}
    assert pace.left_s(stages, 2) is None
    pace.add("answers", 30.0)
    assert pace.left_s(stages, 2) == 60.0
    found = state(stages, pace, workers={"w1": "answers · 1", "w2": ""}, failed={})
    assert found["stages"]["answers"] == {"done": 0, "known": 4, "per_minute": 4.0}
    assert line(found) == "answers 0/4 (4 a minute) · 1 of 2 workers busy · about 60 s left"
