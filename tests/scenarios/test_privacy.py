"""What other users of the machine can see of a run."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.scenarios.bench import KEY, Bench, wait_until


def test_a_run_keeps_its_state_and_its_memory_to_itself(bench: Bench) -> None:
    """Fails if the ledger's file is left to SQLite to make, or if ``main`` leaves out ``setrlimit``."""
    bench.records("a")
    bench.expect("a", p50=2, p99=2)
    running = bench.start("--log-file", "run.log", before=lambda: os.umask(0) and None)
    wait_until(lambda: bench.states()["open"] == 1, "a is accepted", while_alive=running)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (bench.state, *bench.state.iterdir())}
    assert modes.pop(bench.state.name) == 0o700
    assert set(modes) >= {"lock", "ledger.db", "ledger.db-wal", "ledger.db-shm"}
    assert set(modes.values()) == {0o600}
    process = Path("/proc") / str(running.pid)
    if process.exists():
        assert KEY.encode() not in (process / "cmdline").read_bytes()
        limits = (process / "limits").read_text().splitlines()
        assert [line.split()[4:6] for line in limits if line.startswith("Max core file size")] == [["0", "0"]]
    assert running.wait().exit_code == 0
    bench.check()
