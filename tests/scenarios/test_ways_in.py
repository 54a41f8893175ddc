"""Inputs that are no plain file of JSON lines: packed, streamed, tables, and prompts made by a template."""

from __future__ import annotations

import gzip
import os
import pty
import signal
import sys
from collections.abc import Callable
from importlib import import_module

import pytest

from tests.scenarios.bench import Bench, Ran, record, wait_until
from tests.scenarios.disks import fill, small_disk, with_changes

zstd = import_module("backports.zstd" if sys.version_info < (3, 14) else "compression.zstd")
PLAIN = ("-m", "batchrun")
PACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}


def lines(*texts: str) -> bytes:
    return "".join(f"{record(text)}\n" for text in texts).encode()


def run(bench: Bench, name: str, *options: str, feed: bytes | None = None, program: tuple[str, ...] = PLAIN) -> Ran:
    """Run the job of this input; with ``feed``, these bytes are standard input."""
    bench.input = bench.state / "spool"  # what ``check`` shall read
    within: tuple[str, ...] = ()
    if feed is not None:
        (bench.folder / "feed").write_bytes(feed)
        within = ("sh", "-c", 'cat feed | "$@"', "sh")
    words = [name, *bench.command(*options)[1:]]
    return bench.spawn(*words, within=within, program=program).wait()


def left(bench: Bench) -> set[str]:
    return {path.name for path in bench.folder.rglob("*")} - {
        "captured",
        "feed",
        "0.out",
        "0.err",
        "1.out",
        "1.err",
        "2.out",
        "2.err",
    }


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_input_is_an_input_like_any_other(bench: Bench, suffix: str) -> None:
    """Fails if the copy's places are not those the ledger keeps, or if an archive that changed is not read again."""
    archive = bench.folder / f"in.jsonl{suffix}"
    archive.write_bytes(PACK[suffix](lines("a", "b")))
    assert run(bench, archive.name).is_silent
    bench.check()
    copy = (bench.state / "spool").stat()
    assert (copy.st_mode & 0o777, (bench.state / "spool.part").exists()) == (0o600, False)
    assert run(bench, archive.name).exit_code == 0
    assert (bench.state / "spool").stat().st_ino == copy.st_ino, "read again without need"
    archive.write_bytes(PACK[suffix](lines("a", "b")) + PACK[suffix](lines("c")))
    away = bench.folder / "away"
    away.mkdir()
    there = [f"../{archive.name}", "-o", "../out.jsonl", *bench.command()[3:]]
    assert bench.spawn(*there, within=("sh", "-c", 'cd away && exec "$@"', "sh")).wait().exit_code == 0
    assert bench.emulator.submissions == dict.fromkeys("abc", 1)
    bench.check()
    archive.write_bytes(PACK[suffix](lines("a", "changed", "c")))
    assert run(bench, archive.name).exit_code == 3
    assert (bench.state / "spool").read_bytes() == lines("a", "b", "c")
    bench.check()
    bench.input = bench.folder / "in.jsonl"
    bench.records("a", "b", "c")
    assert bench.run().exit_code == 0
    assert not (bench.state / "spool").exists()
    bench.check()


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("fault", ["torn", "damaged", "none"])
def test_a_torn_archive_is_refused_and_nothing_is_left_behind(bench: Bench, suffix: str, fault: str) -> None:
    """Fails if what could be unpacked is sent, or if the end of an archive is not asked for."""
    packed = PACK[suffix](lines(*(f"text {number}" for number in range(200))))
    middle = len(packed) // 2
    spoilt = {"torn": packed[:-3], "damaged": packed[:middle] + b"\xa5" * 8 + packed[middle + 8 :], "none": lines("a")}
    (bench.folder / f"in.jsonl{suffix}").write_bytes(spoilt[fault])
    ran = run(bench, f"in.jsonl{suffix}")
    assert (ran.exit_code, len(ran.stderr.splitlines())) == (3, 2)
    assert left(bench) == {f"in.jsonl{suffix}"}
    assert bench.is_untouched()


def test_standard_input_goes_on_by_the_same_command(bench: Bench) -> None:
    """Fails if an empty stream is taken for an empty input, or if a changed one takes the copy's place."""
    assert run(bench, "-", feed=lines("a", "b")).is_silent
    bench.check()
    assert run(bench, "-").exit_code == 0  # nothing comes: the copy is read
    assert run(bench, "/dev/stdin", feed=lines("a", "b", "c")).exit_code == 0
    bench.check()
    ran = run(bench, "-", feed=lines("a", "other", "c"))
    assert (ran.exit_code, ran.stderr.splitlines()[0]) == (3, "error: -:2: gone since it was sent")
    assert run(bench, "-", "--dry-run", feed=lines("a", "b", "c", "d")).stdout.count("to send      1") == 1
    assert run(bench, "-", "--collect-only").exit_code == 0
    assert (bench.state / "spool").read_bytes() == lines("a", "b", "c")
    assert bench.spawn("status", "out.jsonl").wait().stdout.count("written          3") == 1
    assert bench.spawn("resume", "out.jsonl").wait().is_silent
    assert bench.spawn("export", "out.jsonl", "--with-errors", "-o", "-").wait().stdout.count("\n") == 3
    bench.check()
    assert run(bench, "-", "--new-run", feed=lines("other")).exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1, "other": 1}
    assert bench.result_ids() == {"other"}


def test_a_stream_that_is_refused_at_the_first_start_leaves_nothing_behind(bench: Bench) -> None:
    """Fails if the copy stays where the job does not."""
    assert run(bench, "-", feed=b"{oops\n").exit_code == 3
    assert run(bench, "-", feed=gzip.compress(lines("a"))).stderr.startswith("error: -: a gzip file: name it .gz")
    no_output = "def refuse(*_): raise DiskProblem('no output', remedy='mend it')"
    late = with_changes(
        f"from batchrun import tail\nfrom batchrun.errors import DiskProblem\n{no_output}\ntail.lock_output = refuse"
    )
    assert run(bench, "-", feed=lines("a"), program=late).exit_code == 74
    assert left(bench) == set()
    assert bench.is_untouched()


def test_a_start_that_is_refused_leaves_the_copy_of_a_job_whose_ledger_is_away(bench: Bench) -> None:
    """Fails if a start that has not made the folder deletes the only copy of a stream that is in it."""
    assert run(bench, "-", "--limit", "1", feed=lines("a", "b")).exit_code == 0
    ledger, away = bench.state / "ledger.db", bench.folder / "away"
    ledger.rename(away)
    assert run(bench, "-").exit_code == 3
    away.rename(ledger)
    assert run(bench, "-").exit_code == 0
    bench.check()


def test_a_job_whose_copy_of_the_input_is_gone_is_collected_and_that_is_said(bench: Bench) -> None:
    """Fails if the archive itself is taken for the lines that were sent."""
    (bench.folder / "in.jsonl.gz").write_bytes(gzip.compress(lines("a")))
    bench.emulator.change(poll_status=503)
    running = bench.spawn("in.jsonl.gz", *bench.command()[1:])
    bench.wait_for(running, open=1)
    running.stop(signal.SIGKILL)
    bench.emulator.change(poll_status=0)
    (bench.state / "spool").unlink()
    ran = bench.spawn("resume", "out.jsonl", "--collect-only").wait()
    assert (ran.exit_code, [result["meta"] for result in bench.results()]) == (0, [None])
    assert "; 1 of them without meta or input: their lines are gone or changed\n" in ran.stderr


def test_a_pipe_that_is_written_late_is_waited_for(bench: Bench) -> None:
    """Fails if a pipe without a writer is taken for one at its end."""
    os.mkfifo(bench.folder / "pipe")
    running = bench.spawn("pipe", *bench.command()[1:])
    wait_until((bench.state / "spool.part").exists, "it is about to read", while_alive=running)
    with (bench.folder / "pipe").open("wb") as pipe:
        pipe.write(lines("a"))
    assert running.wait().exit_code == 0
    assert bench.emulator.submissions == {"a": 1}
    bench.input = bench.state / "spool"
    bench.check()


def test_a_run_that_waits_for_its_input_ends_at_the_deadline_and_by_a_signal(bench: Bench) -> None:
    """Fails if ``in_time`` does not ring while a stream is copied, or if ``on_signals`` comes only after that."""
    os.mkfifo(bench.folder / "pipe")
    words = ["pipe", *bench.command()[1:]]
    with os.fdopen(os.open(bench.folder / "pipe", os.O_RDWR), "wb", buffering=0) as pipe:
        pipe.write(lines("a"))  # and more may come
        ran = bench.spawn(*words, "--deadline", "1s").wait()
        assert (ran.exit_code, ran.is_silent) == (75, True)
        running = bench.spawn(*words)
        wait_until((bench.state / "spool.part").exists, "it reads", while_alive=running)
        assert running.stop(signal.SIGTERM).exit_code == 143
    assert left(bench) == {"pipe"}
    assert bench.is_untouched()


def test_a_terminal_is_no_input(bench: Bench) -> None:
    """Fails if it is read: nobody would see that batchrun waits."""
    here, there = pty.openpty()
    ran = bench.spawn("-", *bench.command()[1:], within=("sh", "-c", f'exec "$@" < {os.ttyname(there)}', "sh")).wait()
    assert (ran.exit_code, ran.stderr) == (2, "error: - is a terminal\n  pipe a file into it, or name one\n")
    os.close(here)
    os.close(there)
    assert left(bench) == set()


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILLED = {
    "while it is copied": "import batchrun.spool as at\n"
    f"at.write_at = lambda fd, data, place: (os.pwrite(fd, data[:30], 0), {KILL})",
    "before the rename": f"os.replace = lambda *names: {KILL}",
    "after the rename": f"replace = os.replace\nos.replace = lambda *names: (replace(*names), {KILL})",
    "before the first POST": f"from batchrun import submitter as at\nat.Submitter.run = lambda *_: {KILL}",
}


EVERY_ONE = os.environ.get("FAULTS") == "all"
STREAMED = [("-", moment) for moment in KILLED]
PACKED = [("in.jsonl.gz", moment) for moment in KILLED if EVERY_ONE or moment == "after the rename"]


@pytest.mark.parametrize(("name", "moment"), [*STREAMED, *PACKED])
def test_a_kill_while_a_new_copy_takes_the_place_of_the_old_costs_nothing(bench: Bench, name: str, moment: str) -> None:
    """Fails if half a copy is read, or if the ledger trusts places that are those of another copy."""

    def again(*texts: str, program: tuple[str, ...] = PLAIN) -> Ran:
        if name == "-":
            return run(bench, name, feed=lines(*texts), program=program)
        (bench.folder / name).write_bytes(gzip.compress(lines(*texts)))
        return run(bench, name, program=program)

    begins_at_kill = moment == "while it is copied"  # a first copy, too
    if not begins_at_kill:
        assert again("b", "c").exit_code == 0
    killed = with_changes(f"import os, signal\n{KILLED[moment]}")
    assert again("a", "b", "c", program=killed).exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if name == "-" and not begins_at_kill:
        assert run(bench, "-").exit_code == 0  # with nothing new to read
        bench.check()
    assert again("a", "b", "c").exit_code == 0
    assert not (bench.state / "spool.part").exists()
    assert bench.emulator.submissions == dict.fromkeys("abc", 1)
    bench.check()


def test_a_disk_that_fills_up_while_the_input_is_copied_ends_the_run_in_words(bench: Bench) -> None:
    """Fails if what could be copied is read, or if it stays and keeps the disk full."""
    (bench.folder / "in.jsonl.gz").write_bytes(
        gzip.compress(lines(*(f"{number} {'x' * 99}" for number in range(40_000))))
    )
    with small_disk(bench.folder / "small", 80) as disk:
        filler = fill(disk, leave_mib=2)
        there = ("--state-dir", "small/state", "--limit", "2")
        ran = run(bench, "in.jsonl.gz", *there)
        assert (ran.exit_code, ran.stderr.splitlines()[0]) == (
            74,
            "error: `small/state/spool.part` cannot be written (No space left on device); stopped",
        )
        assert not (disk / "state").exists()
        assert bench.is_untouched()
        filler.unlink()
        assert run(bench, "in.jsonl.gz", *there).exit_code == 0
    assert sum(bench.emulator.submissions.values()) == len(bench.results()) == 2


# --- tables ---


def test_a_table_is_read_row_by_row_and_each_keeps_its_line(bench: Bench) -> None:
    """Fails if the lines of a row are not counted as a person counts them, or if a bad row takes others with it."""
    rows = [
        "\ufeffid;prompt;sku",
        '1;"two',
        'lines";x',
        "",
        "2;too few",
        '3;"say ""hi""";y',
        "4;z\0;y",
        "5;\udcff;y",
        "6;last;y",
    ]
    table = bench.folder / "in.csv.gz"
    table.write_bytes(gzip.compress("\r\n".join(rows).encode(errors="surrogateescape")))
    assert run(bench, table.name, "--prompt-column", "prompt").exit_code == 1
    assert bench.emulator.submissions == {"two\r\nlines": 1, 'say "hi"': 1, "last": 1}
    results = {result["line"]: (result["id"], result["meta"]) for result in bench.results()}
    assert results == {2: ("1", {"sku": "x"}), 6: ("3", {"sku": "y"}), 9: ("6", {"sku": "y"})}
    assert {failure["line"]: failure["error"]["message"] for failure in bench.failures()} == {
        5: "the row has 2 cells, and there are 3 columns",
        7: "not UTF-8, or a NUL byte: save the table as UTF-8",
        8: "not UTF-8, or a NUL byte: save the table as UTF-8",
    }
    bench.check()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        pytest.param("prompt,prompt\n", "1: each column needs a name of its own", id="a name twice"),
        pytest.param("prompt,\n", "1: each column needs a name of its own", id="a name missing"),
        pytest.param('prompt,x\na,b\n"c,d\n', "3: not CSV: unexpected end of data", id="unclosed quote"),
        pytest.param('prompt,x\n"a"b,c\n', "2: not CSV: ',' expected after '\"'", id="stray quote"),
        pytest.param("prompt,x\ra,b\r", "1: line ends are CR only", id="CR only"),
        pytest.param("prompt\n" + "x" * (4 << 20) + "\n", "2: longer than 4 MiB", id="long line"),
        pytest.param(
            'prompt\n"' + "x\n" * (2 << 20) + "\n", "2: not CSV: field larger than field limit", id="long cell"
        ),
        pytest.param(
            'prompt,x\n"' + ("y" * (1 << 20) + '","\n') * 9, "9: a row is longer than 8 MiB", id="row without an end"
        ),
        pytest.param("prompt,x\na\n", "2: the row has 1 cells, and there are 2 columns", id="first row"),
        pytest.param(
            "pr\0mpt,x\n", "1: each column needs a name of its own, in UTF-8; these are: pr\\x00mpt, x", id="header"
        ),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(bench: Bench, table: str, said: str) -> None:
    """Fails if cells may come into the wrong column."""
    ran = run(bench, "-", "--format", "csv", "--prompt-column", "prompt", feed=table.encode())
    assert (ran.exit_code, len(ran.stderr.splitlines())) == (3, 2)
    assert f"-:{said}" in ran.stderr
    assert left(bench) == set()
    assert bench.is_untouched()


def test_a_table_without_a_word_on_its_prompt_is_refused_with_its_columns(bench: Bench) -> None:
    """Fails if a column is taken for the prompt because of its name."""
    (bench.folder / "in.tsv").write_text("id\tprompt\n1\ta\n")
    said = "error: in.tsv:1: which column is the prompt? There are: id, prompt\n"
    assert run(bench, "in.tsv").stderr.startswith(said)
    assert run(bench, "in.tsv", "--prompt-column", "prompt").exit_code == 0
    assert bench.emulator.submissions == {"a": 1}
    bench.check()


# --- templates ---


def with_template(bench: Bench, text: str, *options: str) -> Ran:
    (bench.folder / "t.j2").write_text(text)
    return bench.run("-t", "t.j2", *options)


def test_a_template_makes_the_prompts_and_settles_the_job(bench: Bench) -> None:
    """Fails if the template is not pinned, or if it is known by its path."""
    head = '+++\nsystem = "S"\n[options]\ntemperature = 0.5\n+++\n'
    bench.lines('{"id": "a", "prompt": "{{ x }}", "sku": {"n": 1}}')
    assert with_template(bench, head + "{{ prompt }} of {{ id }}, {{ sku.n + 1 }}").exit_code == 0
    assert bench.emulator.submissions == {"{{ x }} of a, 2": 1}
    [result] = bench.results()
    assert result["meta"] == {"prompt": "{{ x }}", "sku": {"n": 1}}
    (bench.folder / "t.j2").rename(bench.folder / "moved.j2")
    assert bench.run("-t", "moved.j2").exit_code == 0
    ran = with_template(bench, head + "{{ prompt }}", "--temperature", "0.7")
    assert (ran.exit_code, "temperature 0.5, now 0.7; another template" in ran.stderr) == (3, True)
    assert bench.spawn("verify", "out.jsonl").wait().exit_code == 0


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param("{{ ''.__class__.__mro__ }}", "template line 1: '__class__' is not allowed", id="a class"),
        pytest.param("{{ cycler.__init__.__globals__ }}", "'__init__' is not allowed", id="globals"),
        pytest.param("{{ '{0.__class__}'.format(a) }}", "'__class__' is not allowed", id="format"),
        pytest.param("{{ record.update(b=1) }}", "'update' is not allowed", id="a change"),
        pytest.param("{% include '/etc/passwd' %}", "template line 1: does not work", id="another file"),
        pytest.param("{% for i in range(9999) %}{{ 'x' * 999 }}{% endfor %}", "longer than 4 MiB", id="length"),
        pytest.param(
            "\n\n{{ b }}", "in.jsonl:1: template line 3: 'b' is not in the record; fields here: a", id="field"
        ),
    ],
)
def test_a_template_gets_out_of_no_sandbox(bench: Bench, template: str, said: str) -> None:
    """Fails if a template may name what is not its own, or if its result has no bound."""
    bench.lines('{"a": "1"}')
    ran = with_template(bench, template)
    assert ran.exit_code == 3
    assert said in ran.stderr
    assert bench.is_untouched()
    assert not bench.state.exists()


def test_a_template_that_loops_on_and_on_ends_with_the_deadline(bench: Bench) -> None:
    """Fails if the deadline waits for a prompt, or is taken for a fault of the record."""
    bench.lines('{"a": "1"}')
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    assert with_template(bench, loop, "--deadline", "0.5s").exit_code == 75
    assert bench.is_untouched()
    assert not bench.state.exists()


def test_a_record_without_a_field_of_the_template_fails_alone(bench: Bench) -> None:
    """Fails if a missing field is taken for an empty text."""
    bench.lines('{"id": 1, "a": "x"}', '{"id": 2}', '{"id": 3, "a": "y", "b": "z"}')
    assert with_template(bench, "{{ a }}!{{ b | default('') }}").exit_code == 1
    assert bench.emulator.submissions == {"x!": 1, "y!z": 1}
    assert bench.kinds() == {None: "bad_input"}
