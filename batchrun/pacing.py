"""When the next request may go (pure: the clock is an argument, so is chance).

Every ``now`` is a monotonic clock in seconds. The constants and their reasons: docs/decisions/0004-pace.md.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable

SLOWER = 0.7
FASTER_PER_S = 0.02
KNOWN = 0.995
NEARLY = 0.9
CREEP_PER_S2 = 0.000012
FLOOR_PER_S = 0.2
CATCH_UP_S = 0.05
STUCK_S = 60.0
HOUR_S = 3600
MAX_RETRY_AFTER_S = 300.0
FULL_POLL_S = 0.05
FEW = 4
LOOK_EVERY_S = 10.0
LOOKS_IN_HAND = 4
LAPSES_SOON_S = 12 * 3600.0

Due = tuple[float, int, str, float]
"""(poll at, seq, operation ID, accepted at), both instants on the monotonic clock: all that is kept of an operation."""


def backoff_s(tries: int, chance: float, *, base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Seconds to wait before the next try: full jitter, ``chance`` in 0..1 of a ceiling that doubles with each try."""
    return chance * min(cap_s, base_s * 2.0 ** min(tries, 30))


def with_jitter_s(retry_after_s: float, chance: float) -> float:
    """A wait the service asked for, as a floor: up to a tenth and a second more, so that clients spread."""
    return retry_after_s + chance * (0.1 * retry_after_s + 1.0) if retry_after_s > 0 else 0.0


class HourWindow:
    """At most ``limit`` permits in any 60 minutes.

    Counted in whole seconds, so that memory is bounded by the hour and not by the limit; any window of 3,600 s touches
    3,601 of them, and all of these are counted.
    """

    def __init__(self, limit: float, past: Iterable[tuple[float, int]] = ()) -> None:
        self.limit = limit
        self._seconds: deque[tuple[int, int]] = deque()
        self._sum = 0
        for at, permits in past:
            self._add(int(at // 1), permits)

    def free_at(self, now: float) -> float:
        """The earliest time for one more permit; not later than ``now`` if there is room."""
        surplus = self.used(now) - self.limit + 1
        if surplus <= 0:
            return now
        for second, permits in self._seconds:
            surplus -= permits
            if surplus <= 0:
                return float(second + HOUR_S + 1)
        return now + HOUR_S

    def take(self, now: float) -> None:
        self._add(int(now // 1), 1)

    def used(self, now: float) -> int:
        """Permits of the last hour."""
        while self._seconds and self._seconds[0][0] + HOUR_S + 1 <= now:
            self._sum -= self._seconds.popleft()[1]
        return self._sum

    def _add(self, second: int, permits: int) -> None:
        if self._seconds and self._seconds[-1][0] >= second:
            last, count = self._seconds.pop()
            self._seconds.append((last, count + permits))
        else:
            self._seconds.append((second, permits))
        self._sum += permits


class Pacer:
    """Evenly spaced permits: at most ``rate`` a second, and ``per_hour`` in any 60 minutes.

    A refusal slows it at once, to just under what the last second brought if most of that was accepted, and to just
    under the rate if nearly all was. Time without refusals brings it back; beyond what is known to be refused slowly at
    first, then faster. A late caller may catch up by a twentieth of a second, but never so that more than ``rate``
    permits fall into any one second.
    """

    def __init__(self, rate: float, per_hour: HourWindow | None = None) -> None:
        self.ceiling = rate
        self._hour = HourWindow(math.inf) if per_hour is None else per_hour
        self._rate = self._known = rate
        self._slot = self._slot_if_accepted = 0.0
        self._not_before = 0.0
        self._last_second: deque[float] = deque(maxlen=max(1, math.ceil(rate)))
        self._accepted: deque[float] = deque(maxlen=max(FEW, math.ceil(rate)))
        self._changed_at = 0.0
        self._refused_since: float | None = None

    def rate(self, now: float) -> float:
        """Permits per second right now."""
        calm_s = max(0.0, now - self._changed_at)
        creep = CREEP_PER_S2 * calm_s * calm_s * self.ceiling
        return min(self.ceiling, self._rate + FASTER_PER_S * calm_s * self.ceiling, self._known + creep)

    def wait_s(self, now: float) -> float:
        """Seconds until the next permit; 0 or less: now."""
        at = max(self._slot, self._not_before)
        if len(self._last_second) == self._last_second.maxlen and self.ceiling >= 1:
            at = max(at, self._last_second[0] + 1.0)
        return max(at, self._hour.free_at(now)) - now

    def take(self, now: float) -> None:
        """A permit is used."""
        start = max(self._slot, now - CATCH_UP_S)
        self._slot_if_accepted = start + 1.0 / self.rate(now)
        self._slot = start + STUCK_S if self._is_stuck(now) else self._slot_if_accepted
        self._last_second.append(now)
        self._hour.take(now)

    def refused(self, now: float, retry_after_s: float = 0.0) -> None:
        """The service asked for less (429), or a poll failed. Slower at once, but not twice for one burst."""
        if self._refused_since is None:
            self._refused_since = now
        self._not_before = max(self._not_before, now + min(retry_after_s, MAX_RETRY_AFTER_S))
        if now - self._changed_at >= 1.0 or self._changed_at == 0.0:
            rate = self.rate(now)
            self._rate = max(min(FLOOR_PER_S, self.ceiling), rate * SLOWER)
            accepted = sum(at > now - 1.0 for at in self._accepted)
            known = KNOWN * (accepted if accepted < NEARLY * rate else rate)
            if known > self._rate:
                self._rate = self._known = known
            self._changed_at = now

    def accepted(self, now: float) -> None:
        """The service took one: whatever was wrong is over."""
        self._accepted.append(now)
        self._refused_since = None
        self._slot = self._slot_if_accepted

    def achieved(self, now: float) -> float:
        """Permits per second that the service grants: those of the last few, at most what ``rate`` allows."""
        few = min(FEW, len(self._accepted))
        return min(self.rate(now), few / max(0.001, now - self._accepted[-few])) if few else self.rate(now)

    def limited_by(self, now: float) -> str:
        """What holds the next permit back: ``hour``, ``429`` or ``rate``."""
        if self._hour.free_at(now) > now + 1.0:
            return "hour"
        return "429" if self.rate(now) < self.ceiling or self._not_before > now else "rate"

    def _is_stuck(self, now: float) -> bool:
        """Nothing but refusals for a minute: an hourly quota, most likely. One probe a minute is enough."""
        return self._refused_since is not None and now - self._refused_since >= STUCK_S


class Gate:
    """Closed while POSTs fail: then one real POST at a time, further and further apart, until one is accepted."""

    FAILURES_IN_A_ROW = 5
    WINDOW = 20
    FIRST_WAIT_S = 5.0
    MAX_WAIT_S = 60.0

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=self.WINDOW)
        self._in_a_row = 0
        self._wait_s = 0.0
        self._probe_at = 0.0

    @property
    def is_closed(self) -> bool:
        return self._wait_s > 0

    def wait_s(self, now: float) -> float:
        """Seconds until the next probe; 0 or less: now."""
        return self._probe_at - now if self.is_closed else 0.0

    def accepted(self) -> None:
        self._recent.append(True)
        self._in_a_row = 0
        if self.is_closed:
            self._recent.clear()
            self._wait_s = 0.0

    def failed(self, now: float) -> None:
        """A POST was ambiguous or never left. A refusal is neither: the service is there."""
        self._recent.append(False)
        self._in_a_row += 1
        half = len(self._recent) == self.WINDOW and self._recent.count(False) * 2 >= self.WINDOW
        if self.is_closed:
            if now >= self._probe_at:  # a probe; those sent before it closed say nothing new
                self._wait_s = min(self.MAX_WAIT_S, self._wait_s * 2)
                self._probe_at = now + self._wait_s
        elif self._in_a_row >= self.FAILURES_IN_A_ROW or half:
            self._wait_s = self.FIRST_WAIT_S
            self._probe_at = now + self._wait_s


def submit_wait_s(now: float, pacer: Pacer, gate: Gate, has_room: Callable[[], bool]) -> float:
    """Seconds until a submission may go, or until it is worth asking again; 0 or less: now."""
    wait_s = max(pacer.wait_s(now), gate.wait_s(now))
    return wait_s if wait_s > 0 or has_room() else FULL_POLL_S


class Polls:
    """The open operations in the order of their next poll, all under one read budget."""

    def __init__(self, pacer: Pacer, retention_s: float, earlier: Iterable[Due] = ()) -> None:
        self._pacer = pacer
        self._retention_s = retention_s
        self._due = list(earlier)
        heapq.heapify(self._due)
        self._lapse_at = math.inf
        self._looked_at = -math.inf

    def __len__(self) -> int:
        return len(self._due)

    def add(self, due: Due) -> None:
        heapq.heappush(self._due, due)

    def wait_s(self, now: float) -> float:
        """Seconds until the next poll; 0 or less: now."""
        return max(self._due[0][0] - now, self._pacer.wait_s(now)) if self._due else math.inf

    def take(self, now: float) -> Due:
        """The operation that has been due longest; the caller polls it."""
        self._pacer.take(now)
        return heapq.heappop(self._due)

    def lapse_at(self, now: float) -> float:
        """When the oldest answer still kept may lapse. Looked up now and then: it takes a walk."""
        if now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            young = now - self._retention_s
            self._lapse_at = min((due[3] for due in self._due if due[3] > young), default=now) + self._retention_s
        return self._lapse_at

    def has_time(self, now: float) -> bool:
        """Whether one more answer could be collected, and all that are open, before any of them lapses."""
        looks_s = LOOKS_IN_HAND * (len(self._due) + 1) / self._pacer.achieved(now)
        return looks_s <= self.lapse_at(now) - now


class Outage:
    """How long nothing has succeeded. Only time with failures in it counts: a pause of our own is no outage."""

    MAX_GAP_S = 150.0  # the longest wait between two probes, and a timeout

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since: float | None = None
        self._last = 0.0

    def succeeded(self) -> None:
        self._since = None

    def failed(self, now: float) -> bool:
        """Note a failure; True if there has been nothing else for too long."""
        if self._since is None or now - self._last > self.MAX_GAP_S:
            self._since = now
        self._last = now
        return now - self._since >= self.limit_s
