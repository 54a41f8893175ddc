from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.emulator import Settings
from batchrun.emulator.faults import Draws, ending, latency_s

from .client import ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Settings()),
        (" p50=2 , p99 = 10,", Settings(p50=2, p99=10)),
        ("lost=0.05,fail=1,fail_code=8", Settings(lost=0.05, fail=1, fail_code=8)),
        ("api_key=AQVN=x,folder=b1g", Settings(api_key="AQVN=x", folder="b1g")),
        ("rps=10,rph=5000,read_rps=50", Settings(rps=10, rph=5000, read_rps=50)),
        ("omit_null=1,status=503,seed=4", Settings(omit_null=1, status=503, seed=4)),
        ("lost=1,lost=0", Settings()),
    ],
)
def test_settings_are_read_from_one_line(text: str, expected: Settings) -> None:
    assert Settings.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lsot=1", "unknown setting `lsot`; the settings are p50"),
        ("lost", "`lost=`: must be a number"),
        ("lost=often", "must be a number"),
        ("lost=nan", "between 0 and 1"),
        ("lost=1.5", "between 0 and 1"),
        ("slow=inf", "between 0 and"),
        ("rps=1.5", "must be a whole number"),
        ("fail_code=17", "between 1 and 16"),
        ("status=200", "between 300 and 599"),
        ("omit_null=-1", "between 0 and"),
    ],
)
def test_a_wrong_setting_is_refused_in_plain_words(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("(", "\\(")):
        Settings.parse(text)


def test_the_page_for_users_names_every_setting() -> None:
    page = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")
    assert [each.name for each in fields(Settings) if f"`{each.name}`" not in page] == []


@given(st.text(), st.integers(0, 5))
def test_a_chance_of_0_never_hits_and_a_chance_of_1_always(request: str, occurrence: int) -> None:
    assert not Draws(Settings(lost=0), request, occurrence).hit("lost")
    assert Draws(Settings(lost=1), request, occurrence).hit("lost")


def test_draws_spread_as_their_chance_says_and_differ_by_seed_request_occurrence_poll_and_fault() -> None:
    hits = sum(Draws(Settings(seed=7, lost=0.3), str(number), 0).hit("lost") for number in range(4000))
    assert 1100 < hits < 1300
    seven, eight = Settings(seed=7), Settings(seed=8)
    draws = [
        *(Draws(seven, "a", 0), Draws(eight, "a", 0), Draws(seven, "b", 0), Draws(seven, "a", 1)),
        Draws(seven, "a", 0, poll=1),
    ]
    assert len({each.of(fault).random() for each in draws for fault in ("lost", "fail")}) == 10


def test_latencies_follow_p50_and_p99() -> None:
    settings = Settings(p50=2, p99=20)
    seconds = sorted(latency_s(Draws(settings, str(number), 0)) for number in range(4000))
    assert 1.8 < seconds[2000] < 2.2
    assert 15 < seconds[3960] < 27


@pytest.mark.parametrize(("line", "expected"), [("p50=0,p99=9", 0), ("p50=0", 0), ("p50=4,p99=4", 4), ("p50=5", 5)])
def test_latency_can_be_nothing_or_constant(line: str, expected: float) -> None:
    assert latency_s(Draws(Settings.parse(line), "x", 0)) == expected


def test_a_request_fails_no_more_often_than_fail_times() -> None:
    settings = Settings(fail=1, fail_times=2)
    endings = [ending(Draws(settings, "x", occurrence)) for occurrence in range(4)]
    assert endings == ["fail", "fail", "final", "final"]
