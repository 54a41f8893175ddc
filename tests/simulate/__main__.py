"""Write docs/pace.md: ``make simulate``. The page is what the cases below come to."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from batchrun.pacing import HOUR_S
from tests.simulate.service import DAY_S, RETENTION_S, Job, Policy, Quota, Seen, Service, World, ideal_s, most_in_any

PAGE = Path(__file__).parents[2] / "docs" / "pace.md"
HEAD = (
    "| case | makespan, s | of the ideal | hourly quota used | sent in the worst hour | in the worst second | refused "
    "| polls each | lag, s | at risk | lost |"
)
SHORT = {"p50": 5.0, "p99": 20.0}
LONG = {"p50": 20.0, "p99": 60.0}
REAL = {"rps": 10.0, "rph": 5000.0, "read_rps": 50.0}


@dataclass
class Simulated:
    """One case at its end."""

    seen: Seen
    service: Service
    ideal: float

    @property
    def efficiency(self) -> float:
        return self.ideal / self.seen.collected_at

    @property
    def refused(self) -> float:
        return self.seen.refused / len(self.seen.submits)

    @property
    def quota_used(self) -> float:
        """Of the hours that the submissions took; the hour under way counts whole."""
        hours = math.ceil(round(self.seen.submits[-1] / HOUR_S, 2))
        return len(self.service.finished_at) / (self.service.hour.limit * hours)

    def row(self, name: str) -> str:
        seen, answers = self.seen, max(1, len(self.seen.lags))
        has_hour = self.service.hour.limit < 1e6
        cells = [
            name,
            f"{seen.collected_at:,.0f}",
            f"{self.efficiency:.1%}",
            f"{self.quota_used:.1%}" if has_hour else "",
            f"{most_in_any(HOUR_S, seen.submits):,}" if has_hour else "",
            str(most_in_any(1.0, seen.submits)),
            f"{self.refused:.2%}",
            f"{seen.reads / answers:.1f}",
            f"{sum(seen.lags) / answers:.1f}",
            f"{seen.at_risk:,}",
            str(seen.lost),
        ]
        return f"| {' | '.join(cells)} |"


def simulate(
    records: int,
    quota: dict[str, float],
    lasting: dict[str, float],
    *,
    until: float = math.inf,
    start_at: float = 0.0,
    delay_s: float = 0.0,
    jitter_s: float = 0.0,
    jobs: int = 1,
    seed: int = 1,
    policy: Policy | None = None,
    prepare: Callable[[World, Service, Job], None] = lambda world, service, job: None,
    **options: float,
) -> Simulated:
    """Run a case to its end. The ideal: each record is sent on time, and seen the moment it is finished.

    ``delay_s`` is what the case itself costs: an outage, the half of a quota.
    """
    world = World()
    service = Service(world, **quota, **lasting, seed=seed, jitter_s=jitter_s)
    several = [Job(world, service, records // jobs, policy, **options) for _ in range(jobs)]
    for job in several:
        job.seen = several[0].seen
        world.at(start_at, job.start)
        prepare(world, service, job)
    world.run(until)
    rate, hour = quota["rps"], quota.get("rph", 1e9)
    hours, rest = divmod(len(service.durations) - 1, hour)
    ideal = start_at + delay_s + hours * HOUR_S + ideal_s(service.durations[-int(rest + 1) :], rate, 1)
    return Simulated(several[0].seen, service, ideal)


# --- what happens to them ---


def restarts(*times: float) -> Callable[[World, Service, Job], None]:
    """The process is killed then, and started again five seconds later."""

    def prepare(world: World, service: Service, job: Job) -> None:
        for at in times:
            world.at(at, job.stop)
            world.at(at + 5.0, job.start)

    return prepare


def quota_becomes(at: float, **quotas: tuple[float, float]) -> Callable[[World, Service, Job], None]:
    """The service has other quotas from then on: (limit, seconds)."""

    def become(service: Service) -> None:
        vars(service).update({name: Quota(*quota) for name, quota in quotas.items()})

    return lambda world, service, job: world.at(at, lambda: become(service))


def outage(at: float, seconds: float) -> Callable[[World, Service, Job], None]:
    """Nothing reaches the service meanwhile."""
    return lambda world, service, job: setattr(service, "down", (at, at + seconds))


def open_for(operations: int) -> Callable[[World, Service, Job], None]:
    """An earlier run left so many operations open."""

    def prepare(world: World, service: Service, job: Job) -> None:
        service.finished_at = [20.0] * operations
        job.open = dict.fromkeys(range(operations), 0.0)

    return prepare


class Every(Policy):
    """Fixed intervals."""

    def gap_s(self, age_s: float) -> float:
        return self.min_gap_s


class Doubling(Policy):
    """Exponential: 1, 2, 4 … 30 s, so a poll at age 1, 3, 7 …"""

    def gap_s(self, age_s: float) -> float:
        return min(30.0, age_s + 1.0)


class Learned(Policy):
    """The gap at which one more poll costs as much as the lag it saves, from the ages seen: sqrt(2 s / hazard)."""

    def __init__(self) -> None:
        super().__init__(RETENTION_S)
        object.__setattr__(self, "counts", [0] * 400)  # of each second's age

    def learn(self, age_s: float) -> None:
        self.counts[min(399, int(max(0.0, age_s - self.gap_s(age_s) / 2)))] += 1  # type: ignore[attr-defined]

    def gap_s(self, age_s: float) -> float:
        left: list[int] = self.counts[min(399, int(age_s)) :]  # type: ignore[attr-defined]
        if sum(left) < 50:
            return super().gap_s(age_s)
        none_for = next(wait for wait, count in enumerate(left) if count)
        soon = sum(left[none_for : none_for + 5])
        return min(60.0, max(1.0, none_for + math.sqrt(2.0 * 5 * sum(left) / soon)))


# --- the cases ---


def night(records: int, **options: Any) -> Simulated:
    """The service's quotas and the default rates."""
    return simulate(records, REAL, LONG, **options)


def fast(rps: float, policy: Policy | None = None, jitter_s: float = 0.0) -> Simulated:
    """200 a second, and no hour."""
    quota = {"rps": 200.0, "rph": 1e9, "read_rps": 1000.0}
    pace: dict[str, Any] = {"rps": rps, "read_rps": 880.0, "concurrency": 64.0, "rph": 1e9}
    return simulate(12_000, quota, SHORT, policy=policy, jitter_s=jitter_s, **pace)


def at_ten(records: int, rps: float, **options: Any) -> Simulated:
    """10 submissions and 50 polls a second, and no hour."""
    return simulate(records, {**REAL, "rph": 1e9}, LONG, rps=rps, read_rps=48.0, rph=1e9, **options)


def day_with_restarts(hours: int = 24, of_kills: tuple[int, int, int] = (5, 11, 20)) -> Simulated:
    """Killed twice in the middle of a burst and once in a pause; few polls, to be quick."""
    kills = (hour * HOUR_S + second for hour, second in zip(of_kills, (105.5, 400.0, 200.25), strict=True))
    return night(200_000, until=hours * HOUR_S, read_rps=2.0, prepare=restarts(*kills))


def one_read_in_100_s() -> Simulated:
    return night(20_000, until=5 * DAY_S, prepare=quota_becomes(600.0, reads=(1, 100.0)))


def back_after(days: float, read_rps: float) -> Simulated:
    return night(3000, start_at=days * DAY_S, read_rps=read_rps, prepare=open_for(5000))


QUICK: dict[str, Callable[[], Simulated]] = {
    "200/s, known": partial(fast, 200.0),
    "200/s, rate 25 % too high": partial(fast, 250.0),
    "10/s and 50 polls/s, known": partial(at_ten, 2000, 10.0),
    "10/s, rate 25 % too high": partial(at_ten, 6000, 12.5),
    "200/s, known, up to 10 ms late": partial(fast, 200.0, jitter_s=0.01),
    "10/s and 50 polls/s, known, up to 10 ms late": partial(at_ten, 2000, 10.0, jitter_s=0.01),
    "10/s becomes 5/s": partial(at_ten, 6000, 9.0, delay_s=300.0, prepare=quota_becomes(300.0, second=(5, 1.0))),
    "an outage of 10 minutes": partial(at_ten, 6000, 9.0, delay_s=600.0, prepare=outage(200.0, 600.0)),
    "5,000 open for 2.9 days": partial(back_after, 2.9, 40.0),
    "the same with 0.6 polls/s": partial(back_after, 2.9, 0.6),
    "0.01 polls/s, 4 days": partial(night, 20_000, until=4 * DAY_S, read_rps=0.01),
}
THOROUGH: dict[str, Callable[[], Simulated]] = {
    "a night: 49,700 records in 10 hours": partial(night, 49_700),
    "24 h, killed three times": day_with_restarts,
    "two jobs in one folder, unaware": partial(night, 30_000, jobs=2),
    "one poll in 100 s from minute 10 on, 5 days": one_read_in_100_s,
    "a tenth of a million in 8 days": partial(
        simulate, 100_000, {"rps": 10.0, "rph": 500.0, "read_rps": 50.0}, LONG, rph=497.0
    ),
}
SCHEDULES: dict[str, Callable[[], Policy]] = {
    "max(1 s, 5 % of the age), at most 60 s": partial(Policy, RETENTION_S),
    "the same with 10 %": partial(Policy, RETENTION_S, gap_per_age=0.1),
    "every 1 s": partial(Every, RETENTION_S),
    "every 10 s": partial(Every, RETENTION_S, min_gap_s=10.0),
    "1, 2, 4 … 30 s": partial(Doubling, RETENTION_S),
    "learned from the ages seen": Learned,
}


def schedules() -> list[str]:
    """The table of the poll schedules: makespan, polls each, mean lag, for each of three services."""
    lines = []
    for name, schedule in SCHEDULES.items():
        runs = night(10_000, policy=schedule()), at_ten(2000, 10.0, policy=schedule()), fast(200.0, policy=schedule())
        each = (
            f"{run.seen.collected_at:,.0f} s · {run.seen.reads / len(run.seen.lags):.1f} · "
            f"{sum(run.seen.lags) / len(run.seen.lags):.1f} s"
            for run in runs
        )
        lines.append(f"| {name} | {' | '.join(each)} |")
    return lines


def page() -> str:
    rows = [case().row(name) for name, case in {**QUICK, **THOROUGH}.items()]
    begin, end = PAGE.read_text("utf-8").split("<!-- figures -->")[::2]
    table = [HEAD, "| --- " * HEAD.count(" | ") + "| --- |", *rows]
    kinds = ["| schedule | default rates, 10,000 records | 10/s, 2,000 records | 200/s, 12,000 records |"]
    tables = "\n".join([*table, "", *kinds, "| --- | --- | --- | --- |", *schedules()])
    return f"{begin}<!-- figures -->\n\n`make simulate` on {date.today()}:\n\n{tables}\n\n<!-- figures -->{end}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.stdout.write(PAGE.read_text("utf-8").split("<!-- figures -->")[1])
