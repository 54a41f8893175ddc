"""The copy of a stream, whatever the number of its file."""

from __future__ import annotations

import fcntl
import os
import resource
from pathlib import Path

from batchrun.cli.run import config_of, run
from batchrun.spool import Spool

MANY_FILES = 2048


def test_a_stream_is_copied_in_a_process_with_many_open_files(tmp_path: Path) -> None:
    config = config_of(run.make_context("run", ["-", "-o", str(tmp_path / "out.jsonl")]).params)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MANY_FILES), hard))
    here, there = os.pipe()
    high = fcntl.fcntl(here, fcntl.F_DUPFD_CLOEXEC, MANY_FILES - 1)
    try:
        os.write(there, b"a line\n")
        os.close(there)
        with Spool(config, high, for_good=False) as spool:
            spool.read_instead(high, None, (None, None, None))
            assert os.pread(high, 100, 0) == b"a line\n"
    finally:
        os.close(here)
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
