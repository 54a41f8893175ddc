"""``make bench``: what a record costs, what size costs, how much of a quota is used; writes docs/benchmarks.md.

The machine may be shared, so the figures to read are CPU seconds, ratios within this run, and counters.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROUNDS = 3
RECORDS = 10_000
PACE = ("--rps", "100000", "--read-rps", "100000", "--rph", "1000000000", "--concurrency", "32")
WITHIN = ("-m", "tests.bench.served_within")
PAGE = Path("docs/benchmarks.md")
ROOMS = {
    "ledger": ("storage/ledger.py", "storage/thread.py", "storage/inventory.py"),
    "output": ("writer.py", "storage/results.py"),
    "JSON, in and out": ("lines.py", "inputs.py", "check.py", "providers/yandex.py", "redact.py"),
    "stages, pace and queues": ("reader.py", "submitter.py", "tracker.py", "pacing.py", "channel.py", "record.py"),
    "Python's own and libraries": ("Python and libraries",),
}


@dataclass(frozen=True)
class Spent:
    """What a process cost: seconds and MB."""

    cpu_s: float
    peak_mb: float
    wall_s: float
    told: str

    @property
    def last_line(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.told.splitlines()[-1])
        return told


def spend(*words: object, environ: dict[str, str] | None = None, code: int = 0) -> Spent:
    """Run the interpreter with these words; it must end with this code."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        command = [sys.executable, *map(str, words)]
        process = subprocess.Popen(command, env=os.environ | (environ or {}), stdout=subprocess.DEVNULL, stderr=told)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        text = told.read()
    assert process.returncode == code, f"{words} ended with {process.returncode}: {text[-500:]}"
    return Spent(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, time.monotonic() - began, text)


@contextmanager
def emulator(*settings: str, journal: Path = Path(os.devnull)) -> Iterator[str]:
    """The emulator as a process of its own; its URL."""
    command = [sys.executable, "-m", "batchrun", "emulator", "--faults", ",".join(settings)]
    if journal != Path(os.devnull):
        command += ["--journal", str(journal)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().removeprefix("listening on ").strip()
    finally:
        process.terminate()
        process.wait()


def at(url: str) -> dict[str, str]:
    return {"YC_API_KEY": "of-the-benchmark", "YC_FOLDER_ID": "of-nobody", "BATCHRUN_ENDPOINT": url}


def write_records(path: Path, count: int, filler: int = 200, start: int = 0) -> Path:
    with path.open("w") as file:
        for number in range(start, start + count):
            record = {"id": f"r{number}", "prompt": f"record {number} " + "x" * filler, "sku": number}
            file.write(json.dumps(record) + "\n")
    return path


# --- what a record costs ---


def cost(folder: Path) -> list[str]:
    """CPU of whole jobs against the emulator, beside that of bare exchanges and of everything but HTTP."""
    path = write_records(folder / "cost.jsonl", RECORDS)
    floors, streams, jobs, without = [], [], [], []
    with emulator("p50=0", "p99=0") as url:
        for number in range(ROUNDS):
            floors.append(bare(url))
            streams.append(bare(url, "--streams"))
            out = folder / f"cost-{number}.out.jsonl"
            jobs.append(1000 * spend("-m", "batchrun", path, "-o", out, *PACE, environ=at(url)).cpu_s / RECORDS)
            within = spend(*WITHIN, path, "-o", folder / f"cost-{number}.within.jsonl", *PACE)
            without.append((1000 * within.cpu_s / RECORDS, 1000 * within.last_line["storage_s"] / RECORDS))
    floor, stream, job = map(statistics.median, (floors, streams, jobs))
    rest, storage = statistics.median(each[0] for each in without), statistics.median(each[1] for each in without)
    return [
        f"| CPU per 1,000 records, whole process, median of {ROUNDS} jobs of {RECORDS:,} | {job:.2f} s | 0.25 s |",
        f"| the same, best and worst | {min(jobs):.2f} s, {max(jobs):.2f} s | |",
        f"| CPU per 1,000 bare POST + GET with aiohttp in the same run | {floor:.2f} s | |",
        f"| the same without an HTTP library, over asyncio's streams | {stream:.2f} s | |",
        f"| the job's median beside that of aiohttp | {job / floor:.1f} times | |",
        f"| of the job's: HTTP (the job less one with the service in its own process) | {job - rest:.2f} s | |",
        f"| of the job's: the storage thread | {storage:.2f} s | |",
        f"| of the job's: all the rest | {rest - storage:.2f} s | |",
    ]


def bare(url: str, *options: str) -> float:
    """CPU seconds of 1,000 exchanges that keep nothing."""
    command = [sys.executable, "-m", "tests.bench.floor", url, str(RECORDS // 2), *options]
    return 1000 * float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / (RECORDS // 2)


def profile(folder: Path) -> list[str]:
    """Where the time without HTTP goes: own time by module, under the profiler, which makes calls look dear."""
    path = write_records(folder / "profile.jsonl", RECORDS)
    modules = spend(*WITHIN, "--profile", path, "-o", folder / "profile.out.jsonl", *PACE).last_line["modules"]
    total, left = sum(modules.values()), dict(modules)
    rows = [(room, sum(left.pop(name, 0.0) for name in names)) for room, names in ROOMS.items()]
    rows.append(("other modules", sum(left.values())))
    return [f"| {room} | {spent / total:.0%} |" for room, spent in rows]


# --- what size costs ---


def size(folder: Path) -> list[str]:
    """Memory and resuming at a hundred thousand and a million records, the service in the same process."""
    peaks = {}
    for count in (100_000, 1_000_000):
        path, out = write_records(folder / f"{count}.jsonl", count), folder / f"{count}.out.jsonl"
        peaks[count] = spend(*WITHIN, path, "-o", out, *PACE).peak_mb
    small = write_records(folder / "small.jsonl", 1000)
    fresh = to_first_post(folder / "small.log", small, folder / "small.out.jsonl")
    with closing(sqlite3.connect(folder / "1000000.out.jsonl.batchrun/ledger.db")) as ledger:  # as before the last POST
        last, end = ledger.execute("SELECT seq, out_offset FROM record ORDER BY out_offset DESC LIMIT 1").fetchone()
        before = ledger.execute("SELECT seq FROM record WHERE seq <> ? ORDER BY out_offset DESC LIMIT 1", (last,))
        ledger.execute("UPDATE job SET out_committed = ?, out_last_seq = ?", (end, before.fetchone()[0]))
        ledger.execute(
            "UPDATE record SET state = 'new', operation_id = NULL, out_offset = NULL, out_length = NULL,"
            " out_crc32 = NULL WHERE seq = ?",
            (last,),
        )
        ledger.commit()
    os.truncate(folder / "1000000.out.jsonl", end)
    resumed = to_first_post(folder / "resume.log", folder / "1000000.jsonl", folder / "1000000.out.jsonl")
    checked = spend("-m", "batchrun", "check", folder / "1000000.jsonl")
    long = write_records(folder / "long.jsonl", 500_000, filler=350)
    checked_long = spend("-m", "batchrun", "check", long)
    few, many = resident_with_open(folder, 5_000, 205_000)
    lines, megabytes = 1e6 / checked.cpu_s, long.stat().st_size / 1e6 / checked_long.cpu_s
    return [
        f"| peak memory, 100,000 records | {peaks[100_000]:.0f} MB | 64 MB |",
        f"| peak memory, 1,000,000 records | {peaks[1_000_000]:.0f} MB | 64 MB, and 5 MB more at most |",
        f"| memory per open operation (205,000 beside 5,000) | {(many - few) * 2**20 / 200_000:.0f} B | 400 B |",
        f"| start to first request, a fresh job of 1,000 records | {fresh:.2f} s | |",
        f"| start to first request, 1,000,000 rows in the ledger, unchanged input | {resumed:.2f} s | 0.5 s more |",
        f"| checking lines of 240 B, per second of CPU | {lines:,.0f} lines | 100,000 |",
        f"| checking lines of 400 B, per second of CPU | {megabytes:.0f} MB | 40 MB |",
    ]


def to_first_post(log: Path, path: Path, out: Path) -> float:
    """Seconds from the start of the process to its first request."""
    began = time.time()
    spend(*WITHIN, path, "-o", out, "--log-file", log, *PACE)
    stamps = re.findall(r"^(\S+Z) INFO first_post", log.read_text(), re.MULTILINE)
    return datetime.fromisoformat(stamps[-1]).timestamp() - began


def resident_with_open(folder: Path, *counts: int) -> list[float]:
    """MB of one process when so many of its operations, which never end, are open; stopped at the last."""
    path, out = write_records(folder / "open.jsonl", counts[-1]), folder / "open.out.jsonl"
    # 10 polls a second: with fewer the tracker would not let in so many, for they could not all be asked in time
    command = [sys.executable, *WITHIN, "--stuck", path, "-o", out, *PACE, "--read-rps", "10"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    ledger, found = f"file:{out}.batchrun/ledger.db?mode=ro", list[float]()
    while len(found) < len(counts):
        time.sleep(0.2)
        assert process.poll() is None, "it ended early"
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(ledger, uri=True)) as reader:
            if (reader.execute("SELECT max(seq) FROM record").fetchone()[0] or 0) >= counts[len(found)]:
                resident = subprocess.run(["ps", "-o", "rss=", "-p", str(process.pid)], capture_output=True, check=True)
                found.append(int(resident.stdout) / 1024)
    process.terminate()
    process.wait()
    return found


# --- how much of a quota is used ---

QUOTAS = {
    "12,000 records at 200/s, p50 5 s, p99 20 s": (12_000, 200, 1000, 200, 5, 20, 0.985),
    "the same, with the rate set 25 % too high": (12_000, 200, 1000, 250, 5, 20, 0.97),
    "2,000 records at 10/s and 50 polls/s, p50 20 s, p99 60 s": (2_000, 10, 50, 10, 20, 60, 0.985),
}


def quotas(folder: Path) -> list[str]:
    """Jobs against an emulator with quotas: the last, which mostly waits, beside the others one after the other."""
    *heavy, light = QUOTAS
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(under_quota, folder, light, *QUOTAS[light])
        return [*(under_quota(folder, name, *QUOTAS[name]) for name in heavy), waiting.result()]


def under_quota(
    folder: Path, name: str, count: int, rps: int, read_rps: int, asked: int, p50: float, p99: float, aim: float
) -> str:
    path, journal = write_records(folder / f"quota-{asked}.jsonl", count, start=asked), folder / f"{asked}.journal"
    out = folder / f"quota-{asked}.out.jsonl"
    pace = ("--rps", asked, "--read-rps", round(0.96 * read_rps), "--rph", "1000000")
    settings = (f"p50={p50}", f"p99={p99}", f"rps={rps}", f"read_rps={read_rps}")
    with emulator(*settings, journal=journal) as url:
        spend("-m", "batchrun", path, "-o", out, *pace, environ=at(url))
        with urllib.request.urlopen(f"{url}/_stats") as reply:
            stats = json.load(reply)
    operations = sorted(map(json.loads, journal.read_text().splitlines()), key=lambda each: each["accepted_at"])
    ideal_s = max(
        max(0, number - rps) / rps + each["finishes_at"] - each["accepted_at"]
        for number, each in enumerate(operations, 1)
    )
    with closing(sqlite3.connect(f"{out}.batchrun/ledger.db")) as ledger:
        finished = dict(ledger.execute("SELECT operation_id, finished_at FROM record").fetchall())
    makespan_s = max(finished.values()) - operations[0]["accepted_at"]
    lag_s = statistics.mean(finished[each["id"]] - each["finishes_at"] for each in operations)
    refused = stats["refused_quota"] / stats["submits_received"]
    return (
        f"| {name} | {ideal_s / makespan_s:.3f} | {aim} | {refused:.2%} | {stats['polls_refused_quota']} |"
        f" {stats['polls_received'] / count:.2f} | {lag_s:.2f} s |"
    )


# --- starting ---


def starting(folder: Path) -> list[str]:
    """CPU seconds of commands that do little, beside an interpreter that imports click: medians of seven."""
    path, out = write_records(folder / "start.jsonl", 1), folder / "start.out.jsonl"
    spend(*WITHIN, path, "-o", out, *PACE)
    commands: dict[str, Sequence[object]] = {
        "python -c 'import click'": ("-c", "import click"),
        "batchrun --help": ("-m", "batchrun", "--help"),
        "batchrun status": ("-m", "batchrun", "status", out),
        "a job that is finished": ("-m", "batchrun", path, "-o", out),
    }
    times: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(7):
        for name, words in commands.items():
            times[name].append(spend(*words).cpu_s)
    medians = {name: statistics.median(each) for name, each in times.items()}
    first = next(iter(medians.values()))
    return [f"| {name} | {cpu_s:.3f} s | {cpu_s / first:.1f} |" for name, cpu_s in medians.items()]


# --- the page ---


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        tables = {part.__name__: part(Path(name)) for part in (starting, cost, profile, quotas, size)}
    text = page({name: "\n".join(rows) for name, rows in tables.items()})
    PAGE.write_text(text, encoding="utf-8")
    print(text)


def page(tables: dict[str, str]) -> str:
    uvloop = "with" if _has_uvloop() else "without"
    return f"""# Benchmarks

Made by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores, {platform.machine()}, Python \
{platform.python_version()}, {uvloop} uvloop, everything on (ledger synced at each commit). The machine is shared with
other work: read CPU seconds and ratios, not wall time. Peaks and counters are exact. No network is used.

## What a record costs

The emulator is a process of its own that answers at once. The bare exchanges keep nothing.

| what | figure | aim |
| --- | --- | --- |
{tables["cost"]}

The bare exchanges of aiohttp alone come to about the aim here. What would come nearest to it is a transport of our own,
a protocol class under asyncio that speaks to this one service: a job would then cost little more than the line without
an HTTP library, the storage thread and the rest together. It is not built: at the service's quotas all of this is a few
hundredths of one core, and a library that others keep sound is worth more than that.

Where the time without HTTP goes (own time under the profiler, which makes many small calls look dearer than they are):

| room | share |
| --- | --- |
{tables["profile"]}

## What size costs

The service is inside the process here, so a million records take minutes.

| what | figure | aim |
| --- | --- | --- |
{tables["size"]}

## How much of a quota is used

The emulator refuses what is over its quota; the last job runs beside the others. Efficiency is the ideal makespan over
the real one; the ideal sends the first second's worth at once and sees each answer the moment it is there. Ours spaces
its requests evenly, so the last of 12,000 leaves a second later: 1.2 % of the first two jobs. Bursts would win it, and
meet more 429s on a network that is not even.

| job | efficiency | aim | 429s | polls refused | polls per operation | mean lag |
| --- | --- | --- | --- | --- | --- | --- |
{tables["quotas"]}

A night, a day with restarts, and a million records are simulated: [pace.md](pace.md).

## Starting

| command | CPU | ratio |
| --- | --- | --- |
{tables["starting"]}
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
