"""Every state that a model can reach, breadth first: the first violation found has the shortest way to it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.model.protocol import Model, Violation, World


@dataclass
class Explored:
    """The states in the order they were found, and for each from which other one, by which step, it was."""

    worlds: dict[World, int]
    came: list[tuple[int, str]]

    def trace(self, index: int) -> list[str]:
        """The steps from the start to a state."""
        steps = []
        while index:
            index, step = self.came[index]
            steps.append(step)
        return steps[::-1]


def explore(model: Model) -> Explored:
    """All reachable states.

    Raises:
        Violation: of a promise, with the steps that lead there.
    """
    queue = [model.start()]
    explored = Explored({queue[0]: 0}, [(0, "")])
    before: list[list[int]] = [[]]
    for index, world in enumerate(queue):
        try:
            model.check(world)
            for step, after in model.steps(world):
                found = explored.worlds.setdefault(after, len(queue))
                if found == len(queue):
                    queue.append(after)
                    explored.came.append((index, step))
                    before.append([])
                before[found].append(index)
        except Violation as violation:
            raise _with_trace(str(violation), explored, index) from None
    stuck = _first_without_end(before, [index for index, world in enumerate(queue) if world.phase == "end"])
    if stuck is not None and "I5" in model.watched:
        raise _with_trace("I5: from here the end cannot be reached", explored, stuck)
    return explored


def _first_without_end(before: list[list[int]], ends: list[int]) -> int | None:
    """The first state from which no end can be reached. ``before``: the states one step before each."""
    reaches_end = bytearray(len(before))
    for index in ends:
        reaches_end[index] = True
    for index in ends:
        for earlier in before[index]:
            if not reaches_end[earlier]:
                reaches_end[earlier] = True
                ends.append(earlier)
    stuck = reaches_end.find(0)
    return None if stuck < 0 else stuck


def _with_trace(what: str, explored: Explored, index: int) -> Violation:
    steps = "".join(f"\n  {number:2}. {step}" for number, step in enumerate(explored.trace(index), 1))
    return Violation(f"{what}{steps}\n({len(explored.worlds)} states explored)")
