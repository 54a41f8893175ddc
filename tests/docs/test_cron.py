"""docs/cron.md: its lines run as cron and systemd would run them."""

from __future__ import annotations

import configparser
import fcntl
import json
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks
from tests.scenarios.emulator import Emulator

PAGE = ROOT / "docs" / "cron.md"


class Machine:
    """A home with the folder of the page in it, and nothing in the environment but what cron gives."""

    def __init__(self, home: Path, endpoint: str) -> None:
        self.home = home
        self.folder = home / "reviews"
        for name in ("in", "out", ".venv"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / ".venv" / "bin").symlink_to(sysconfig.get_path("scripts"))
        tonight = [f"{date.today() + timedelta(days)}" for days in (0, 1)]  # it may be close to midnight
        for name in ("today", *tonight):
            (self.folder / "in" / f"{name}.jsonl").write_text('"one"\n"two"\n')
        self.account = {"YC_API_KEY": "any", "YC_FOLDER_ID": "b1gcron", "BATCHRUN_ENDPOINT": endpoint}
        (self.folder / "night.env").write_text("".join(f"{name}={value}\n" for name, value in self.account.items()))

    def cron(self, line: str) -> tuple[int, str]:
        """Run the command of a crontab's line; the exit code, and what would be in the mail."""
        command = re.split(r"\s+", line, maxsplit=5)[5]
        assert not re.search(r"(?<!\\)%", command), "cron takes it for a line end"
        given = {"HOME": str(self.home), "LOGNAME": "reviews", "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"}
        return self._run(["/bin/sh", "-c", command.replace("\\%", "%")], given, self.home)

    def systemd(self, unit: dict[str, str]) -> tuple[int, str]:
        """Run the command of a unit."""
        resolved = {name: value.replace("%h", str(self.home)).replace("%%", "%") for name, value in unit.items()}
        assert Path(resolved["environmentfile"]) == self.folder / "night.env"
        given = {"HOME": str(self.home), **self.account}
        return self._run(shlex.split(resolved["execstart"]), given, Path(resolved["workingdirectory"]))

    def _run(self, command: list[str], environment: dict[str, str], folder: Path) -> tuple[int, str]:
        given = [f"{name}={value}" for name, value in environment.items()]
        ran = subprocess.run(["env", "-i", *given, *command], cwd=folder, capture_output=True, text=True, timeout=60)
        return ran.returncode, ran.stdout + ran.stderr

    def texts(self) -> int:
        """How many answers there are."""
        lines = [line for path in (self.folder / "out").glob("*.jsonl") for line in path.read_text().splitlines()]
        return sum(bool(json.loads(line)["text"]) for line in lines)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    emulator = Emulator(tmp_path)
    emulator.begin()
    yield Machine(tmp_path / "home", emulator.url)
    emulator.end()


def test_the_lines_for_cron_send_no_mail_when_all_is_well_or_another_run_is_at_work(machine: Machine) -> None:
    begin, go_on = [line for line in blocks(PAGE, "crontab")[0].splitlines() if line[0].isdigit()]
    assert machine.cron(begin) == (0, "")
    assert machine.texts() == 2
    assert machine.cron(go_on) == (0, "")
    [lock] = (machine.folder / "out").glob("*.batchrun/lock")
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert machine.cron(go_on) == (75, "")


def test_the_unit_for_systemd_begins_the_next_job_under_the_same_name(machine: Machine) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(blocks(PAGE, "ini")[0])
    service = dict(unit["Service"])
    assert service["successexitstatus"] == "75"
    for nights in (1, 2):
        assert machine.systemd(service) == (0, "")
        assert len(list((machine.folder / "out").glob("today.jsonl*"))) == 2 * nights
    assert machine.texts() == 2
