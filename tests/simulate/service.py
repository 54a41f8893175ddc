"""The service and its clients in simulated time: what decides is the product's own, here are only events and counters.

Requests travel ``TRANSIT_S`` each way, with ``jitter_s`` some of them longer, and nothing else takes time, so the
figures are those of the schedule alone.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from batchrun.config import DEFAULT_CONCURRENCY, DEFAULT_READ_RPS, DEFAULT_RPH, DEFAULT_RPS
from batchrun.pacing import FULL_POLL_S, HOUR_S, LAPSES_SOON_S, Due, Gate, HourWindow, Pacer, Polls, submit_wait_s
from batchrun.record import PollPolicy
from batchrun.tracker import MAX_OPEN

TRANSIT_S = 0.05
FULL_S = 60.0  # a full client looks again after this, not after the product's 50 ms: an hour in fewer events
DAY_S = 86_400.0
RETENTION_S = 3 * DAY_S


class World:
    """Events in the order of their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0

    def at(self, time: float, act: Callable[[], None]) -> None:
        self._made += 1
        heapq.heappush(self._events, (time, self._made, act))

    def run(self, until: float = math.inf) -> None:
        while self._events and self._events[0][0] < until:
            self.now, _, act = heapq.heappop(self._events)
            act()


class Quota:
    """At most so many in any window, counted when they arrive; what is refused does not count."""

    def __init__(self, limit: float, window_s: float) -> None:
        self.limit = limit
        self._window_s = window_s
        self._admitted: deque[float] = deque()

    def has_room(self, now: float) -> bool:
        while self._admitted and self._admitted[0] <= now - self._window_s + 1e-9:
            self._admitted.popleft()
        return len(self._admitted) < self.limit

    def take(self, now: float) -> None:
        self._admitted.append(now)


class Service:
    """Accepts, works for a lognormal time, keeps its answers from acceptance on."""

    def __init__(
        self,
        world: World,
        *,
        p50: float,
        p99: float,
        rps: float,
        rph: float,
        read_rps: float,
        seed: int = 1,
        jitter_s: float = 0.0,
    ) -> None:
        self._world = world
        self._mu, self._sigma = math.log(p50), math.log(p99 / p50) / 2.3263
        self._chance, self._delays, self._jitter_s = random.Random(seed), random.Random(seed), jitter_s
        self.second, self.hour, self.reads = Quota(rps, 1.0), Quota(rph, HOUR_S), Quota(read_rps, 1.0)
        self.down = (math.inf, math.inf)
        self.finished_at: list[float] = []
        self.durations: list[float] = []

    @property
    def is_down(self) -> bool:
        return self.down[0] <= self._world.now - TRANSIT_S < self.down[1]

    def exchange_s(self) -> float:
        """How long the next request and its reply are on their way."""
        return 2 * TRANSIT_S + self._jitter_s * self._delays.random()

    def submit(self) -> int | None:
        """The number of the new operation, or None: refused. All requests arrive a transit before their reply."""
        now = self._world.now - TRANSIT_S
        if not (self.second.has_room(now) and self.hour.has_room(now)):
            return None
        self.second.take(now)
        self.hour.take(now)
        self.durations.append(self._chance.lognormvariate(self._mu, self._sigma))
        self.finished_at.append(now + self.durations[-1])
        return len(self.finished_at) - 1

    def read(self, operation: int) -> bool | None:
        """Whether it is finished, or None: refused."""
        now = self._world.now - TRANSIT_S
        if not self.reads.has_room(now):
            return None
        self.reads.take(now)
        return self.finished_at[operation] <= now


class Policy(PollPolicy):
    """The product's schedule. Others learn."""

    def learn(self, age_s: float) -> None:
        """An operation was seen finished at this age."""


@dataclass
class Seen:
    """What is counted."""

    submits: list[float] = field(default_factory=list)
    refused: int = 0
    unreachable: int = 0
    reads: int = 0
    reads_refused: int = 0
    lags: list[float] = field(default_factory=list)
    collected_at: float = 0.0
    at_risk: int = 0
    lost: int = 0


class Job:
    """What outlives a run: the records that are left, the open operations, the submissions of the last hour."""

    def __init__(
        self, world: World, service: Service, records: int, policy: Policy | None = None, **options: float
    ) -> None:
        self.world, self.service, self.left = world, service, records
        self.rps = options.get("rps", DEFAULT_RPS)
        self.rph = int(options.get("rph", DEFAULT_RPH))
        self.read_rps = options.get("read_rps", DEFAULT_READ_RPS)
        self.concurrency = int(options.get("concurrency", DEFAULT_CONCURRENCY))
        self.policy = policy or Policy(RETENTION_S)
        self.seen = Seen()
        self.open: dict[int, float] = {}
        self.posts: Counter[int] = Counter()
        self.run: Run | None = None

    def start(self) -> None:
        self.run = Run(self)

    def stop(self) -> None:
        assert self.run is not None
        self.run.is_over = True


class Run:
    """One process: the permits of submitter.py and the polls of tracker.py, and no thought of its own."""

    def __init__(self, job: Job) -> None:
        self.job, self.world, self.seen, self.service = job, job.world, job.seen, job.service
        now = self.world.now
        past = sorted((min(now, at + 1), posts) for at, posts in job.posts.items() if at >= int(now - HOUR_S - 1))
        self.pacer = Pacer(job.rps, HourWindow(job.rph, past))
        self.read_pacer, self.gate, self.policy = Pacer(job.read_rps), Gate(), job.policy
        self.last_policy = PollPolicy(RETENTION_S).at_the_end()
        earlier: list[Due] = [(now, number, "", at) for number, at in sorted(job.open.items())]
        self.polls = Polls(self.read_pacer, RETENTION_S, earlier)
        self.first_look = set(job.open)
        self.is_proven = self.is_over = False
        self.posting = self.polling = 0
        self.submit_timer = self.poll_timer = -1.0
        self.submit_turn()
        self.poll_turn()

    def has_room(self) -> bool:
        return len(self.polls) + self.polling < MAX_OPEN and self.polls.has_time(self.world.now)

    # --- submissions ---

    def submit_turn(self) -> None:
        now = self.world.now
        while not self.is_over and not self.first_look and self.job.left and self.posting < self.workers:
            wait_s = submit_wait_s(now, self.pacer, self.gate, self.has_room)
            if wait_s > 0:
                wait_s = FULL_S if wait_s == FULL_POLL_S else wait_s
                return self._wake("submit_timer", now + wait_s, self.submit_turn)
            self.pacer.take(now)
            self.posting += 1
            self.job.left -= 1
            self.seen.submits.append(now)
            self.job.posts[int(now)] += 1
            self.world.at(now + self.service.exchange_s(), self._submitted)
        return None

    @property
    def workers(self) -> int:
        return self.job.concurrency if self.is_proven and not self.gate.is_closed else 1

    def _submitted(self) -> None:
        is_down = self.service.is_down
        operation = None if is_down else self.service.submit()
        if operation is None or self.is_over:
            self.job.left += 1
        else:
            self.job.open[operation] = self.world.now
        now = self.world.now
        self.posting -= 1
        if operation is not None:
            self.is_proven = True
            self.pacer.accepted(now)
            self.gate.accepted()
            self.polls.add((now + self.policy.gap_s(0.0), operation, "", now))
            self.poll_turn()
        elif is_down:
            self.seen.unreachable += 1
            self.gate.failed(now)
        else:
            self.seen.refused += 1
            self.pacer.refused(now)
        self.submit_turn()

    # --- polls ---

    def poll_turn(self) -> None:
        now = self.world.now
        while not self.is_over and len(self.polls) and self.polling < 2 * self.job.concurrency:
            wait_s = self.polls.wait_s(now)
            if wait_s > 0:
                return self._wake("poll_timer", now + wait_s, self.poll_turn)
            due = self.polls.take(now)
            self.polling += 1
            self.seen.reads += 1
            self.world.at(now + self.service.exchange_s(), partial(self._read, due))
        return None

    def _read(self, due: Due) -> None:
        now, (_, operation, _, accepted_at) = self.world.now, due
        self.polling -= 1
        finished = None if self.service.is_down else self.service.read(operation)
        if finished is None:
            self.seen.reads_refused += not self.service.is_down
            self.read_pacer.refused(now)
            self.polls.add(due)
        else:
            self.read_pacer.accepted(now)
        if finished:
            self._collected(operation, now - accepted_at)
        elif finished is False:
            policy = self.policy if self.job.left or self.posting else self.last_policy
            self.polls.add((now + policy.gap_s(now - accepted_at), operation, "", accepted_at))
        self.first_look.discard(operation)
        self.poll_turn()
        if self.submit_timer < 0:
            self.submit_turn()

    def _collected(self, operation: int, age_s: float) -> None:
        if self.is_over:
            return  # the next run reads it again
        self.policy.learn(age_s)
        del self.job.open[operation]
        self.seen.collected_at = self.world.now
        self.seen.lags.append(self.world.now - self.service.finished_at[operation])
        self.seen.at_risk += age_s > RETENTION_S - LAPSES_SOON_S
        self.seen.lost += age_s > RETENTION_S

    def _wake(self, timer: str, at: float, act: Callable[[], None]) -> None:
        """Call again then; an earlier call makes a later one needless."""
        at = max(at, self.world.now + 1e-6)
        setattr(self, timer, at)

        def call() -> None:
            if getattr(self, timer) == at:
                setattr(self, timer, -1.0)
                act()

        self.world.at(at, call)


def most_in_any(window_s: float, taken: Sequence[float]) -> int:
    """The most in any window of this length, its end not counted."""
    most = first = 0
    for last, at in enumerate(taken):
        while at - taken[first] >= window_s - 1e-6:
            first += 1
        most = max(most, last - first + 1)
    return most


def ideal_s(durations: Iterable[float], rate: float, burst: float) -> float:
    """When the last answer would be seen by a client that loses nothing."""
    return max(max(0.0, number - burst) / rate + duration for number, duration in enumerate(durations, 1))
