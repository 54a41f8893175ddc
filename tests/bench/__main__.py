"""``make bench``: what a record costs, and what a large file costs; prints and writes docs/benchmarks.md.

The machine may be shared, so the figures to read are CPU seconds, ratios within this run, and counters.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

ROUNDS = 3
SMALL_RECORDS = 10_000
LARGE_RECORDS = 200_000
QUOTA_RECORDS = 400
PACE = ("--rps", "5000", "--read-rps", "10000", "--rph", "100000000", "--concurrency", "32")
PAGE = Path("docs/benchmarks.md")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with emulator() as url:
            floors, costs = [], []
            for number in range(ROUNDS):
                floors.append(floor_ms(url))
                costs.append(job_ms(url, folder, number))
                print(
                    f"round {number + 1}: {costs[-1]:.2f} ms a record, bare exchanges {floors[-1]:.2f} ms", flush=True
                )
            share = share_at_quota(url, folder)
            large = large_job(url, folder)
    text = page(floors, costs, share, large)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


@contextmanager
def emulator() -> Iterator[str]:
    """The emulator as a process of its own, answering at once."""
    command = [sys.executable, "-m", "batchrun", "emulator", "--faults", "p50=0,p99=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("listening on ").strip()
    finally:
        process.terminate()
        process.wait()


def write_records(path: Path, count: int, filler: int) -> None:
    with path.open("w") as file:
        for number in range(count):
            record = {"id": f"r{number}", "prompt": f"record {number} " + "x" * filler, "sku": number}
            file.write(json.dumps(record) + "\n")


def job_ms(url: str, folder: Path, number: int) -> float:
    """CPU milliseconds of a whole job, start to exit, per record; everything on."""
    path = folder / "small.jsonl"
    write_records(path, SMALL_RECORDS, 200)
    return 1000 * run(url, path, folder / f"small-{number}.out.jsonl")[0] / SMALL_RECORDS


def floor_ms(url: str) -> float:
    """CPU milliseconds of one POST and one GET with nothing around them: what aiohttp alone costs here and now."""
    count = SMALL_RECORDS // 2
    command = [sys.executable, "-m", "tests.bench.floor", url, str(count)]
    return 1000 * float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / count


def share_at_quota(url: str, folder: Path) -> float:
    """Share of one core that a job needs at ten submissions a second, start and end included."""
    path = folder / "quota.jsonl"
    write_records(path, QUOTA_RECORDS, 200)
    cpu_s, _, wall_s = run(url, path, folder / "quota.out.jsonl", "--rps", "10", "--read-rps", "48")
    return cpu_s / wall_s


def large_job(url: str, folder: Path) -> dict[str, float]:
    path, log = folder / "large.jsonl", folder / "large.log"
    write_records(path, LARGE_RECORDS, 960)
    cpu_s, peak_mb, _ = run(url, path, folder / "large.out.jsonl", "--log-file", str(log))
    at = {
        name: datetime.fromisoformat(stamp) for stamp, name in re.findall(r"^(\S+Z) INFO (\w+)", log.read_text(), re.M)
    }
    gap_s = (at["first_post"] - at["input_checked"]).total_seconds()
    return {"peak_mb": peak_mb, "gap_s": gap_s, "cpu_ms": 1000 * cpu_s / LARGE_RECORDS}


def run(url: str, path: Path, output: Path, *options: str) -> tuple[float, float, float]:
    """(CPU seconds, peak resident MB, wall seconds) of one job; it must write every record."""
    command = [sys.executable, "-m", "batchrun", str(path), "-o", str(output), *PACE, *options]
    environ = {**os.environ, "YC_API_KEY": "bench", "YC_FOLDER_ID": "bench", "BATCHRUN_ENDPOINT": url}
    began = time.monotonic()
    process = subprocess.Popen(command, env=environ)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "a benchmark job failed"
    process.returncode = 0
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, time.monotonic() - began


def page(floors: list[float], costs: list[float], share: float, large: dict[str, float]) -> str:
    floor, cost = statistics.median(floors), statistics.median(costs)
    uvloop = "with" if _has_uvloop() else "without"
    return f"""# Benchmarks

Made by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {platform.machine()}, Python \
{platform.python_version()}, {uvloop} uvloop, the emulator as a process of its own on the same machine, answering at
once. The machine is shared with other work: read CPU seconds and ratios, not wall time. Peaks and counters are exact.

| what | figure | aim |
| --- | --- | --- |
| CPU per 1,000 records, whole process, median of {len(costs)} jobs of {SMALL_RECORDS:,} | {cost:.2f} s | 0.3 s |
| the same, best and worst | {min(costs):.2f} s, {max(costs):.2f} s | |
| CPU per 1,000 bare POST + GET with aiohttp in the same run | {floor:.2f} s | |
| ratio of the two medians | {cost / floor:.1f} | |
| peak memory, {LARGE_RECORDS:,} records of 1 KB | {large["peak_mb"]:.0f} MB | 80 MB |
| CPU per 1,000 records in that job | {large["cpu_ms"]:.2f} s | |
| share of a core at 10 submissions a second, {QUOTA_RECORDS} records, start and end included | {100 * share:.1f} % | |
| `first_post` after `input_checked` in that job | {large["gap_s"]:.2f} s | 1 s |

The bare exchanges keep nothing. What a job adds is the ledger (six statements in at least three commits, shared by
whatever arrives together, in a thread that takes turns with the event loop), reading each line three times (check,
send, write), and pacing.
"""


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401  only whether it is there
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
