"""What the emulator is told to do wrong, and the draws that decide when. Pure: no clock, no state."""

import math
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from random import Random
from statistics import NormalDist
from typing import Annotated, Any, NamedTuple, Self, get_args

Chance = Annotated[float, 0, 1]  # the least and the most that is taken beside the default
Seconds = Annotated[float, 0, 1e9]
Whole = Annotated[int, 0, 2**63]
Status = Annotated[int, 300, 599]  # a success is no fault


@dataclass(frozen=True, slots=True)
class Settings:
    """How the emulator behaves. The defaults: a service in good health, without quotas, that takes any key."""

    p50: Seconds = 0.3  # half of the operations finish within p50 seconds; 0 = all at once
    p99: Seconds = 1.0
    seed: Whole = 0
    retention: Seconds = 259_200.0
    rps: Whole = 0  # quotas: 0 = off
    rph: Whole = 0
    read_rps: Whole = 0
    api_key: str = ""  # "" = any
    folder: str = ""
    retry_after: Whole = 0  # seconds, sent with every 429; 0 = not sent

    status: Status = 0  # 0 = off, else the HTTP status of every submit
    reset: Chance = 0.0
    refuse: Chance = 0.0
    error_before: Chance = 0.0
    slow: Seconds = 0.0
    lost: Chance = 0.0
    cut: Chance = 0.0
    garbled: Chance = 0.0
    error_after: Chance = 0.0
    same_id: Chance = 0.0

    missing: Chance = 0.0
    stuck: Chance = 0.0
    fail: Chance = 0.0
    fail_code: Annotated[int, 1, 16] = 13
    fail_times: Whole = 0  # only so many first sendings of a request can fail; 0 = any
    neither: Chance = 0.0
    filter: Chance = 0.0
    truncate: Chance = 0.0

    poll_status: Status = 0
    poll_reset: Chance = 0.0
    poll_refuse: Chance = 0.0
    poll_error: Chance = 0.0
    poll_garbled: Chance = 0.0

    omit_null: Whole = 0  # 0 = off, as the next ones
    null_timestamps: Whole = 0
    no_reasoning_details: Whole = 0
    random_key_order: Whole = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``k=v`` pairs separated by commas, as in ``p50=2,p99=10,lost=0.05``; the last of a name counts.

        Raises:
            ValueError: in plain words.
        """
        pairs = (pair.partition("=") for pair in text.split(",") if pair.strip())
        return cls().updated({name.strip(): value.strip() for name, _, value in pairs})

    def updated(self, values: object, *, besides: str = "") -> Self:
        """These settings with ``values`` (text, or what JSON holds) in place of those named.

        Args:
            besides: A name among the values that is no setting.
        Raises:
            ValueError: no object, an unknown name, or a value that is none or out of its range.
        """
        if not isinstance(values, dict):
            raise ValueError(f"`{values}`: must be an object of settings")
        return replace(self, **{name: _checked(name, value) for name, value in values.items() if name != besides})


_KINDS = {each.name: (each.default, *get_args(each.type)[1:]) for each in fields(Settings)}
COUNTED_FAULTS = [each.name for each in fields(Settings) if each.type in (Chance, Status) or each.name == "slow"]
"""Faults with a counter of their own, under their own name, in the statistics."""


def _checked(name: str, value: object) -> Any:
    if name not in _KINDS:
        raise ValueError(f"unknown setting `{name}`; the settings are {', '.join(_KINDS)}")
    default, *limits = _KINDS[name]
    with suppress(ValueError):
        checked = type(default)(str(value))
        if not limits or checked == default or limits[0] <= checked <= limits[1]:
            return checked
    wanted = "a whole number" if isinstance(default, int) else "a number"
    raise ValueError(f"`{name}={value}`: must be {wanted} between {limits[0]:g} and {limits[1]:g}")


class Draws(NamedTuple):
    """Chance without an order of arrival: the same request, seen equally often, draws the same."""

    settings: Settings
    request: str
    occurrence: int  # how many times the request was seen before
    poll: int = 0  # which poll of its operation this is

    def of(self, name: str) -> Random:
        return Random(f"{self.settings.seed} {self.request} {self.occurrence} {self.poll} {name}")

    def hit(self, fault: str) -> bool:
        """Whether a fault happens: seconds and a status do whenever they are set."""
        value: float = getattr(self.settings, fault)
        return value > 0 and (fault == "slow" or self.of(fault).random() < value)


def latency_s(draws: Draws) -> float:
    """Seconds from acceptance to the end of one operation: lognormal through ``p50`` and ``p99``, or always ``p50``."""
    p50, p99 = draws.settings.p50, draws.settings.p99
    if p50 == 0 or p99 <= p50:
        return p50
    return draws.of("latency").lognormvariate(math.log(p50), math.log(p99 / p50) / NormalDist().inv_cdf(0.99))


ENDINGS = ("missing", "stuck", "fail", "neither", "filter", "truncate")
"""How an operation can end, under the name of the fault, the strongest first; the healthy end is ``final``."""


def ending(draws: Draws) -> str:
    """How an operation accepted now will end."""
    fail_times = draws.settings.fail_times
    may_fail = fail_times == 0 or draws.occurrence < fail_times
    return next((each for each in ENDINGS if draws.hit(each) and (may_fail or each != "fail")), "final")
