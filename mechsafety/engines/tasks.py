"""Tasks that are named by what they make, and the plan of who works on which of them. Knows no ray and no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Name = tuple[str, ...]

MOST_DEATHS = 5
"""So many workers may die over one task, of which nothing more is made meanwhile, before it is given up: it may be what
kills them."""


JOINT = " · "


def shown(name: Name) -> str:
    """A task's name in one line."""
    return JOINT.join(name)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch of a run's plan: ``key`` names the plan, ``ids`` the prompts."""

    key: Name
    ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A piece of a run that can be worked on anywhere, named by what it makes; its name begins with its stage.

    It can begin when all tasks in ``needs`` are done. ``model`` is the one that it loads, ``system`` the one that has
    failed if the task fails, and ``ships`` names the parts that it reads: all those whose keys begin so.
    """

    name: Name
    done: bool = False
    needs: tuple[Name, ...] = ()
    model: str | None = None
    system: str | None = None
    ships: tuple[Name, ...] = ()
    batch: Batch | None = None

    @property
    def stage(self) -> str:
        return self.name[0]

    @property
    def title(self) -> str:
        return shown(self.name)


def placed(
    ready: Sequence[Task], idle: Mapping[str, Collection[str]], busy: Iterable[str | None] = ()
) -> dict[str, Task]:
    """A task for each idle worker, as far as there are ready ones, in their order.

    ``idle`` has the models that each worker holds, ``busy`` those that others work with. A worker goes on with a model
    that it holds; one that must load another takes that with which the fewest workers are, so that systems advance
    side by side.
    """
    left, found = list(ready), {}
    for worker, held in idle.items():
        mine = next((task for task in left if task.model is None or task.model in held), None)
        if mine is not None:
            found[worker] = mine
            left.remove(mine)
    taken = Counter([*busy, *(task.model for task in found.values())])
    for worker in idle:
        if worker in found or not left:
            continue
        mine = min(left, key=lambda task: taken[task.model])
        found[worker] = mine
        taken[mine.model] += 1
        left.remove(mine)
    return found


def next_model(tasks: Iterable[Task], held: Collection[str]) -> str | None:
    """The first model of tasks that are left which nobody holds or works with (``held``)."""
    return next((t.model for t in tasks if not t.done and t.model is not None and t.model not in held), None)


def blocked(tasks: Iterable[Task], failed: Collection[Name]) -> dict[Name, Name]:
    """The tasks that cannot be made, each with the one of ``failed`` that it, or what it needs, would need."""
    left = [task for task in tasks if not task.done]
    found: dict[Name, Name] = {}
    while True:
        more = {
            task.name: found.get(need, need)
            for task in left
            if task.name not in found
            for need in task.needs
            if need in found or need in failed
        }
        if not more:
            return found
        found |= more


@dataclass
class Schedule:
    """Who works on what, what failed, and how many workers died over each task.

    What is done is known from the tasks themselves, as they are on disk: :meth:`next` is given all of them anew.
    """

    running: dict[str, Task] = field(default_factory=dict)
    failed: dict[Name, str] = field(default_factory=dict)
    deaths: Counter[Name] = field(default_factory=Counter)

    def next(self, tasks: Iterable[Task], idle: Mapping[str, Collection[str]]) -> dict[str, Task]:
        """Tasks that idle workers begin with now."""
        free = {worker: held for worker, held in idle.items() if worker not in self.running}
        chosen = placed(self.ready(tasks), free, [task.model for task in self.running.values()])
        self.running |= chosen
        return chosen

    def ready(self, tasks: Iterable[Task]) -> list[Task]:
        """Tasks that can begin, in their order."""
        tasks = list(tasks)
        done = {task.name for task in tasks if task.done}
        taken = {task.name for task in self.running.values()} | self.failed.keys()
        return [t for t in tasks if not t.done and t.name not in taken and done.issuperset(t.needs)]

    def finished(self, worker: str) -> Task:
        """The task that a worker is through with."""
        return self.running.pop(worker)

    def advances(self, worker: str) -> None:
        """A worker has made more of its task: workers that died over it before do not count."""
        self.deaths.pop(self.running[worker].name, None)

    def fails(self, worker: str, why: str) -> Task:
        """The task of a worker failed, and is not tried again."""
        task = self.running.pop(worker)
        self.failed[task.name] = why
        return task

    def dies(self, worker: str) -> Task | None:
        """A worker is gone; its task can begin anew, unless :data:`MOST_DEATHS` workers have died over it."""
        task = self.running.pop(worker, None)
        if task is None:
            return None
        self.deaths[task.name] += 1
        if self.deaths[task.name] >= MOST_DEATHS:
            self.failed[task.name] = (
                f"{MOST_DEATHS} workers died over it, perhaps because memory ran out: see the workers' own messages"
            )
        return task
