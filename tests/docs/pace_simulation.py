"""An hour of submissions against a quota, in simulated time: the figures of docs/decisions/0004-pace.md.

Run it with ``python -m tests.docs.pace_simulation``.
"""

from __future__ import annotations

from collections import deque
from unittest.mock import patch

from batchrun import pacing

QUOTA_PER_S = 10
LENGTH_S = 3600.0
CASES = (
    # --rps, SLOWER, FASTER_PER_S
    (9.0, 0.7, 0.02),
    (12.5, 0.7, 0.02),
    (12.5, 0.5, 0.02),
    (12.5, 0.7, 0.1),
    (50.0, 0.7, 0.02),
)


def hour(rate: float) -> tuple[float, float]:
    """Shares of the quota used and of the requests refused, for one client alone at a sliding one-second quota."""
    pacer = pacing.Pacer(rate)
    last_second: deque[float] = deque()
    now, sent, refused = 0.0, 0, 0
    while now < LENGTH_S:
        wait_s = pacer.wait_s(now)
        if wait_s > 0:
            now += wait_s
            continue
        pacer.take(now)
        sent += 1
        while last_second and last_second[0] <= now - 1.0:
            last_second.popleft()
        if len(last_second) < QUOTA_PER_S:
            last_second.append(now)
            pacer.accepted()
        else:
            refused += 1
            pacer.refused(now)
    return (sent - refused) / (QUOTA_PER_S * LENGTH_S), refused / sent


def rows() -> list[str]:
    """The table, one row per case."""
    table = []
    for rate, slower, faster_per_s in CASES:
        with patch.multiple(pacing, SLOWER=slower, FASTER_PER_S=faster_per_s):
            used, refused = hour(rate)
        table.append(f"| {rate:g} | {slower:g} | {faster_per_s:g} | {used:.1%} | {refused:.1%} |")
    return table


if __name__ == "__main__":
    print("\n".join(rows()))
