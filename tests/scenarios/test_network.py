"""What the network does wrong, between the run and the service. Payments, output and ledger must agree each time.

The run is sent through a proxy; the emulator behind it counts the payments.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from tests.scenarios.bench import KEY, Bench, record, wait_until
from tests.scenarios.emulator import operations_in
from tests.scenarios.proxy import (
    Exchange,
    Proxy,
    Script,
    closed_as_it_was_reused,
    late,
    passed_on,
    refused_for_a_while,
    reply_cut,
    reply_lost,
    reply_reset,
    reset_at_its_head,
    reset_unsent,
    silent,
    trickling,
    with_body,
)

MIB = 1 << 20
HTML = b"<!DOCTYPE html><html><title>Welcome</title>Please accept the terms of this hotel.</html>"

IMPATIENT = """
from batchrun.pacing import Gate, backoff_s
from batchrun.providers.http import Http
Http.connect_s, Http.post_s, Http.post_silence_s, Http.get_s = 5.0, 3.0, 2.0, 3.0
Gate.FIRST_WAIT_S = 0.2
backoff_s.__kwdefaults__["base_s"] = 0.1
from batchrun.__main__ import main
main()
"""
"""The program with shorter waits: 3 s for a POST, 2 s of silence in it, 3 s for a GET, 0.2 s before a probe,
a fifth of the usual waits before a repetition."""


NOTHING: Mapping[str, Script] = {}
Proxies = Callable[..., Proxy]


@pytest.fixture
def proxies(bench: Bench) -> Iterator[Proxies]:
    """Makes proxies before the emulator."""
    made: list[Proxy] = []

    def make(tls: ssl.SSLContext | None = None) -> Proxy:
        made.append(Proxy(bench.emulator.url, tls))
        return made[-1]

    yield make
    for proxy in made:
        proxy.end()


@pytest.fixture
def proxy(bench: Bench, proxies: Proxies) -> Proxy:
    """The proxy through which the runs of the bench are sent. It does not listen yet."""
    made = proxies()
    bench.endpoint = made.url
    return made


def once(posts: Mapping[str, Script], polls: Mapping[str, Script] = NOTHING) -> Script:
    """These happen to the first POST, and the first poll, of the prompts they are given for; all else is passed on."""
    waiting = {"POST": dict(posts), "GET": dict(polls)}

    async def script(exchange: Exchange) -> None:
        await waiting[exchange.method].pop(await exchange.prompt(), passed_on)(exchange)

    return script


def answering(status: str, body: bytes = b"", *headers: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.answer(status, body, *headers)

    return script


def answering_after_acceptance(status: str) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.forward()
        await exchange.answer(status)

    return script


def unreachable(bench: Bench) -> int:
    """How many POSTs the log calls certainly not sent."""
    log = bench.folder / "run.log"
    return log.read_text().count('reply="Unreachable"') if log.exists() else 0


def maybe_paid(bench: Bench) -> dict[str, int]:
    return {row["id"]: row["maybe_paid"] for row in bench.rows()}


# --- no connection ---


def test_while_connections_are_refused_nothing_is_in_doubt_and_the_run_goes_on_by_itself(
    bench: Bench, proxy: Proxy
) -> None:
    """Fails if ``_exchange`` calls a POST that never left ``Ambiguous``."""
    bench.records("a", "b", "c")
    running = bench.start("-v", "--log-file", "run.log")
    wait_until(lambda: unreachable(bench) >= 3, "three POSTs were refused", while_alive=running)
    proxy.listen()
    assert running.wait().exit_code == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1}
    assert maybe_paid(bench) == {"a": 0, "b": 0, "c": 0}
    bench.check()


def test_a_name_that_is_not_found_lets_nothing_out_and_leaves_a_job_that_can_go_on(bench: Bench) -> None:
    """Fails if a failed lookup ends the run, or counts as ambiguous."""
    bench.records("a", "b")
    here, bench.endpoint = bench.endpoint, "https://nobody.invalid"
    quick = {**bench.environment, "RES_OPTIONS": "timeout:1 attempts:1"}
    running = bench.start("-v", "--log-file", "run.log", env=quick)
    wait_until(lambda: unreachable(bench) >= 2, "two POSTs have failed", while_alive=running)
    assert running.stop(signal.SIGTERM).exit_code == 143
    assert set(bench.states()) == {"new"}
    assert bench.is_untouched()
    bench.endpoint = here
    assert bench.resume().exit_code == 0
    assert maybe_paid(bench) == {"a": 0, "b": 0}
    bench.check()


# --- connections that break ---


def test_a_connection_reset_anywhere_in_a_post_is_flagged_and_the_record_sent_once_more(
    bench: Bench, proxy: Proxy
) -> None:
    """Fails if a request counts as sent only when a reply begins, or if a lost reply goes back to NEW unflagged."""
    long_prompt = "\N{GRINNING FACE}" * 90_000  # 360 kB on the wire
    bench.lines(*map(record, ("healthy", "unsent", "lost", "half")), record("long", prompt=long_prompt))
    by_prompt = once({"unsent": reset_unsent, "lost": reply_lost, "half": reply_reset})
    is_first = iter([True])

    async def script(exchange: Exchange) -> None:
        broken = exchange.length > 300_000 and next(is_first, False)
        await (reset_at_its_head if broken else by_prompt)(exchange)

    proxy.script = script
    proxy.listen()
    assert bench.run().exit_code == 0
    assert maybe_paid(bench) == {"healthy": 0, "unsent": 1, "lost": 1, "half": 1, "long": 1}
    assert bench.emulator.submissions == {"healthy": 1, "unsent": 1, "lost": 2, "half": 2, long_prompt[:200]: 1}
    assert {row["attempt"] - row["maybe_paid"] for row in bench.rows()} == {1}
    bench.check()


def test_a_kept_connection_that_closes_as_it_is_used_again_puts_a_post_in_doubt_and_no_poll(
    bench: Bench, proxy: Proxy
) -> None:
    """Fails if such a POST is retried below the ledger, as the HTTP library does with GETs."""
    bench.records("a", "b", "c")
    broken = Counter[str]()

    async def script(exchange: Exchange) -> None:
        strikes = exchange.is_reused and broken[exchange.method] < 2
        broken[exchange.method] += strikes
        await (closed_as_it_was_reused if strikes else passed_on)(exchange)

    proxy.script = script
    proxy.listen()
    assert bench.run("--concurrency", "1", "-v", "--log-file", "run.log").exit_code == 0
    assert broken == {"POST": 2, "GET": 2}
    assert sum(maybe_paid(bench).values()) == 2
    assert maybe_paid(bench)["a"] == 0
    assert bench.emulator.submissions == {"a": 1, "b": 1, "c": 1}
    assert 'reply="PollFailed"' not in (bench.folder / "run.log").read_text()
    bench.check()


def test_a_reply_delivered_twice_answers_no_other_record(bench: Bench, proxy: Proxy) -> None:
    """Fails if a POST uses a connection on which replies and requests no longer belong together.

    The second copy of a's reply is read as b's, then b's reply as c's: c would be given the answer to b's prompt.
    """
    bench.records("a", "b", "c", "d")
    waiting = b""

    async def script(exchange: Exchange) -> None:
        nonlocal waiting
        reply = await exchange.forward()
        if exchange.method == "POST":
            reply, waiting = waiting if exchange.is_reused else reply, reply
        await exchange.say(reply)

    proxy.script = script
    proxy.listen()
    assert bench.run("--concurrency", "1").exit_code in (0, 4)
    bench.check()


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable", "400 Bad Request"])
def test_a_refusal_that_stands_before_the_reply_shifts_no_other(bench: Bench, proxy: Proxy, status: str) -> None:
    """Fails if a connection is used again after anything but an acceptance: each reply would be the one before."""
    bench.records("a", "b", "c", "d", "e")
    lagging: dict[object, bytes] = {}
    posts = 0

    async def script(exchange: Exchange) -> None:
        nonlocal posts
        reply = await exchange.forward()
        if exchange.method == "POST":
            posts += 1
            if posts == 2:
                reply, lagging[exchange.connection] = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode(), reply
            elif exchange.connection in lagging:
                reply, lagging[exchange.connection] = lagging[exchange.connection], reply
        await exchange.say(reply)

    proxy.script = script
    proxy.listen()
    assert bench.run("--concurrency", "1").exit_code in (0, 1)
    assert not {row["id"] for row in bench.rows() if row["state"] == "held"}
    answered = {row["id"]: row["operation_id"] for row in bench.rows() if row["state"] == "done"}
    accepted = {operation["id"]: operation["text"] for operation in operations_in(bench.emulator.journal())}
    assert {id: accepted[operation] for id, operation in answered.items()} == {id: id for id in answered}
    assert len(answered) >= 4, "the second may be refused for good"


# --- replies that are none ---


def test_a_captive_portal_puts_few_records_in_doubt_and_costs_nothing(bench: Bench, proxy: Proxy) -> None:
    """Fails if a page with status 200 does not count for the gate, or if a poll that meets it fails its record."""
    bench.records(*(f"prompt {each}" for each in range(40)))
    proxy.listen()
    running = bench.start("--rps", "20")
    wait_until(lambda: bench.states()["open"] >= 3, "some are accepted", while_alive=running)
    proxy.script = answering("200 OK", HTML, "Content-Type: text/html")
    polls = proxy.count("GET")

    def gate_is_closed() -> bool:
        last_post = max(request.at for request in proxy.arrived if request.method == "POST")
        return time.monotonic() - last_post > 2.5 and proxy.count("GET") > polls

    wait_until(gate_is_closed, "no POST has come for long, and a poll has", while_alive=running)
    proxy.script = passed_on
    assert running.wait().exit_code in (0, 1)
    assert set(bench.kinds().values()) <= {"no_reply"}, "the same record may meet the portal three times"
    posts = [request.at for request in proxy.arrived if request.method == "POST"]
    assert max(after - at for at, after in pairwise(posts)) > 4, "the gate waits 5 s"
    assert 5 <= len(posts) - 40 < 20, "without the gate there are 40 and more"
    assert bench.emulator.submissions == dict.fromkeys(bench.result_ids(), 1)
    assert sum(maybe_paid(bench).values()) == len(posts) - len(bench.results())
    bench.check()


def test_a_reply_that_is_cut_or_trickles_or_never_comes_or_never_ends_is_given_up(bench: Bench, proxy: Proxy) -> None:
    """Fails if a POST or a GET has no total limit, or if ``_read`` goes on beyond 32 MiB."""
    faults = ("cut", "trickles", "silent", "floods")
    bench.records("healthy", *(f"{what} {fault}" for what in ("post", "poll") for fault in faults))
    flooded_mib: list[int] = []

    async def flooding(exchange: Exchange) -> None:
        await exchange.forward()
        await exchange.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        sent_mib = 0
        try:
            while True:
                await exchange.say(b" " * MIB)
                sent_mib += 1
        finally:
            flooded_mib.append(sent_mib)

    scripts = dict(zip(faults, (reply_cut, trickling, silent, flooding), strict=True))
    posts, polls = ({f"{what} {fault}": script for fault, script in scripts.items()} for what in ("post", "poll"))
    proxy.script = once(posts, polls)
    proxy.listen()
    running = bench.start(program=("-c", IMPATIENT))
    wait_until(lambda: len(flooded_mib) >= 2, "two floods are over", while_alive=running)
    peak_kib = int(re.findall(r"VmHWM:\s*(\d+)", Path(f"/proc/{running.pid}/status").read_text())[0])
    assert running.wait().exit_code == 1
    assert max(flooded_mib) < 64
    assert peak_kib < 256 << 10
    assert bench.kinds() == {"poll floods": "oversize"}
    flags = maybe_paid(bench)
    assert {name for name, times in flags.items() if times} == set(posts)
    assert bench.emulator.submissions == {name: 1 + times for name, times in flags.items()}
    bench.check()


def test_every_5xx_of_a_burst_is_flagged_whether_it_came_before_or_after_acceptance(bench: Bench, proxy: Proxy) -> None:
    """Fails if one of these statuses counts as a refusal."""
    bench.records("healthy", "500", "502", "503", "504")
    answers: dict[str, Script] = {
        "500": answering("500 Internal Server Error"),
        "502": answering_after_acceptance("502 Bad Gateway"),
        "503": answering("503 Service Unavailable", b"", "Retry-After: 1"),
        "504": answering_after_acceptance("504 Gateway Timeout"),
    }
    proxy.script = once(answers, answers)
    proxy.listen()
    assert bench.run().exit_code == 0
    assert maybe_paid(bench) == {"healthy": 0, "500": 1, "502": 1, "503": 1, "504": 1}
    assert bench.emulator.submissions == {"healthy": 1, "500": 1, "502": 2, "503": 1, "504": 2}
    bench.check()


def test_a_redirect_to_another_host_is_not_followed(bench: Bench, proxy: Proxy, proxies: Proxies) -> None:
    """Fails if ``allow_redirects`` is not turned off: the prompt, and the key, would be sent there."""
    bench.records("a", "b", "c", "d")
    elsewhere = proxies()
    elsewhere.listen()
    redirect = answering("307 Temporary Redirect", b"", f"Location: {elsewhere.url}/operations/elsewhere")
    proxy.script = redirect
    proxy.listen()
    ran = bench.run()
    assert ran.exit_code == 2
    assert "refused the first 3 requests alike (307" in ran.stderr
    assert set(bench.states()) == {"new"}
    proxy.script = once({}, {"a": redirect, "b": redirect})
    assert bench.run().exit_code == 0
    assert elsewhere.connections == 0
    assert maybe_paid(bench) == dict.fromkeys("abcd", 0)
    assert bench.emulator.submissions == dict.fromkeys("abcd", 1)
    bench.check()


ODD_TEXTS = {
    "nul": (rb"a\u0000b", "a\0b"),
    "separators": ("a\u2028b\u2029c\u0085d".encode(), "a\u2028b\u2029c\u0085d"),
    "line ends": (rb"a\r\nb\u000b\u000c\u001cc", "a\r\nb\v\f\x1cc"),
    "half a pair": (rb"a\ud800b\udfffc", "a\ufffdb\ufffdc"),
    "a pair": (rb"\ud83d\ude00", "\N{GRINNING FACE}"),
    "not UTF-8": (b"a\xffb", "a\ufffdb"),
    "a mark and a delete": ("\ufeffa\x7f\u202eb".encode(), "\ufeffa\x7f\u202eb"),
}
"""An answer's text as it stands in the JSON of the service, and as it must be read from the output. What is no
character cannot stand there."""


def test_an_answer_of_odd_characters_is_one_line_of_strict_json_and_comes_back_equal(
    bench: Bench, proxy: Proxy
) -> None:
    """Fails if ``one_line`` leaves U+2028 or U+0085 raw, or if half a surrogate pair makes an answer unreadable."""
    bench.records(*ODD_TEXTS)

    async def script(exchange: Exchange) -> None:
        reply = await exchange.forward()
        if exchange.method == "GET":
            operation = json.loads(reply.partition(b"\r\n\r\n")[2])
            operation["response"]["alternatives"][0]["message"]["text"] = "THE TEXT"
            odd, _ = ODD_TEXTS[await exchange.prompt()]
            reply = with_body(reply, json.dumps(operation).encode().replace(b"THE TEXT", odd))
        await exchange.say(reply)

    proxy.script = script
    proxy.listen()
    assert bench.run().exit_code == 0
    output = bench.output.read_bytes().decode()
    assert len(output.splitlines()) == len(ODD_TEXTS)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", output)
    assert {line["id"]: line["text"] for line in map(orjson.loads, output.splitlines())} == {
        name: text for name, (_, text) in ODD_TEXTS.items()
    }
    assert bench.emulator.submissions == dict.fromkeys(ODD_TEXTS, 1)
    bench.check()


# --- who is at the other end ---


@contextlib.contextmanager
def meeting_one(tls: ssl.SSLContext) -> Iterator[str]:
    """A server that shakes one hand. (asyncio's would hang up without an alert when it cannot.)"""
    listener = socket.create_server(("127.0.0.1", 0))

    def meet() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            tls.wrap_socket(connection, server_side=True).close()

    with listener:
        thread = threading.Thread(target=meet, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


def test_a_certificate_that_does_not_verify_lets_nothing_out_whatever_the_environment_says(
    bench: Bench, proxies: Proxies
) -> None:
    """Fails if ``ssl=False`` is given to the connector, or if ``_refuse_bad_tls`` lets such an error pass."""
    pytest.importorskip("cryptography", reason="needs cryptography to make certificates")
    from tests.scenarios.certificates import Authority

    ours = Authority(bench.folder)
    here, expired = proxies(ours.tls()), proxies(ours.tls(is_expired=True))
    here.listen()
    expired.listen()
    careless = {
        **dict.fromkeys(("PYTHONHTTPSVERIFY", "NODE_TLS_REJECT_UNAUTHORIZED", "SSL_VERIFY"), "0"),
        **dict.fromkeys(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), "/nonexistent"),
    }
    trusting = {**careless, "SSL_CERT_FILE": str(ours.file)}
    bench.records("a", "b")
    with meeting_one(ours.tls(is_outdated=True)) as outdated:
        for bench.endpoint, environment in (
            (here.url, careless),
            (here.url.replace("127.0.0.1", "localhost"), trusting),
            (expired.url, trusting),
            (outdated, trusting),
        ):
            ran = bench.run(env={**bench.environment, **environment})
            assert ran.exit_code == 5, bench.endpoint
            assert "no trusted TLS connection to" in ran.stderr
            assert set(bench.states()) == {"new"}
    assert here.arrived == expired.arrived == []
    bench.endpoint = here.url
    assert bench.run(env={**bench.environment, **trusting}).exit_code == 0
    assert maybe_paid(bench) == {"a": 0, "b": 0}
    assert bench.emulator.submissions == {"a": 1, "b": 1}
    bench.check()


def test_proxies_and_logins_of_the_environment_are_not_used(bench: Bench, proxy: Proxy, proxies: Proxies) -> None:
    """Fails if the session trusts the environment."""
    bench.records("a", "b")
    decoy = proxies()
    decoy.listen()
    proxy.listen()
    netrc = bench.folder / ".netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\ndefault login someone password else\n")
    netrc.chmod(0o600)
    names = [f"{scheme}_proxy" for scheme in ("http", "https", "all", "ws", "wss")]
    environment = {
        **bench.environment,
        **dict.fromkeys([*names, *map(str.upper, names)], decoy.url),
        "NETRC": str(netrc),
    }
    assert bench.run(env=environment).exit_code == 0
    assert decoy.connections == 0
    assert {request.authorization for request in proxy.arrived} == {f"Api-Key {KEY}"}
    bench.check()


# --- everything at once ---


STORM = (
    late,
    reset_at_its_head,
    reset_unsent,
    reply_lost,
    reply_cut,
    reply_reset,
    closed_as_it_was_reused,
    refused_for_a_while,
    answering("200 OK", HTML),
    answering_after_acceptance("502 Bad Gateway"),
    answering("429 Too Many Requests"),
    answering("307 Temporary Redirect", b"", "Location: http://127.0.0.1:9/"),
)
EMULATOR_STORM = dict.fromkeys(
    ("reset", "error_before", "lost", "cut", "garbled", "error_after"), 0.02
) | dict.fromkeys(("refuse", "fail", "poll_reset", "poll_refuse", "poll_error", "poll_garbled"), 0.05)


def test_any_mixture_of_network_faults_costs_nothing(bench: Bench, proxy: Proxy, seed: int) -> None:
    """Fails if any of them is taken for a refusal, or any refusal for one of them.

    Whether a fault strikes is a matter of the seed, the prompt and how often it was met. The first two POSTs of a
    prompt and its first two polls may be struck, so the storm ends.
    """
    names = [f"prompt {each}" for each in range(40)]
    bench.records(*names)
    bench.emulator.change(seed=seed, **EMULATOR_STORM)
    met = Counter[str]()

    async def script(exchange: Exchange) -> None:
        what = f"{exchange.method} {await exchange.prompt()}"
        met[what] += 1
        draw = random.Random(f"{seed} {what} {met[what]}")
        strikes = met[what] <= 2 and draw.random() < 0.25
        await (draw.choice(STORM) if strikes else passed_on)(exchange)

    proxy.script = script
    proxy.listen()
    ran = bench.run(program=("-c", IMPATIENT))
    assert ran.exit_code in (0, 1), ran
    bench.check()
