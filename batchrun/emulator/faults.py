"""What the emulator is told to do wrong, and the draws that decide when. Pure: no clock, no state."""

import difflib
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from statistics import NormalDist
from typing import Any, Self

_NORMAL = NormalDist()
_Z99 = _NORMAL.inv_cdf(0.99)

LOWEST_FAULTY_STATUS = 300  # a success is not a fault
FOR_ALL_REQUESTS = frozenset({"seed", "rps", "rph", "read_rps", "api_key", "folder"})
"""Settings that a rule for some requests cannot change."""


def _chance() -> float:
    return field(default=0.0, metadata={"least": 0, "most": 1, "counted": True})


def _seconds(default: float = 0.0, *, counted: bool = False) -> float:
    return field(default=default, metadata={"least": 0, "most": sys.float_info.max, "counted": counted})


def _whole(default: int = 0, *, least: int = 0, most: int = 2**63) -> int:
    return field(default=default, metadata={"least": least, "most": most})


def _status() -> int:
    return field(default=0, metadata={"least": 0, "most": 599, "counted": True})


def _switch() -> int:
    return _whole(most=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the emulator behaves. The defaults: a service in good health, without quotas, that takes any key.

    Raises:
        ValueError: a value is out of its range, or ``p99`` is below ``p50``.
    """

    p50: float = _seconds(0.3)  # half of the operations finish within p50 seconds; 0 = all at once
    p99: float = _seconds(1.0)
    seed: int = _whole(least=-(2**63))
    retention: float = _seconds(259_200.0)
    rps: int = _whole()  # quotas: 0 = off
    rph: int = _whole()
    read_rps: int = _whole()
    api_key: str = ""  # "" = any
    folder: str = ""
    retry_after: int = _whole()  # seconds, sent with every 429; 0 = not sent

    status: int = _status()  # 0 = off, else the HTTP status of every submit
    reset: float = _chance()
    refuse: float = _chance()
    error_before: float = _chance()
    slow: float = _seconds(counted=True)
    lost: float = _chance()
    cut: float = _chance()
    garbled: float = _chance()
    error_after: float = _chance()
    same_id: float = _chance()

    missing: float = _chance()
    stuck: float = _chance()
    fail: float = _chance()
    fail_code: int = _whole(13, least=1, most=16)
    fail_times: int = _whole(-1, least=-1)  # per distinct request; -1 = no limit
    neither: float = _chance()
    filter: float = _chance()
    truncate: float = _chance()

    poll_status: int = _status()
    poll_reset: float = _chance()
    poll_refuse: float = _chance()
    poll_error: float = _chance()
    poll_slow: float = _seconds(counted=True)
    poll_garbled: float = _chance()

    omit_null: int = _switch()
    null_timestamps: int = _switch()
    no_reasoning_details: int = _switch()
    random_key_order: int = _switch()

    def __post_init__(self) -> None:
        for name, limits in _LIMITS.items():
            value = getattr(self, name)
            if not limits["least"] <= value <= limits["most"]:
                span = f"between {limits['least']:g} and {limits['most']:g}"
                raise ValueError(f"`{name}={value}`: must lie {span}")
        for name in ("status", "poll_status"):
            value = getattr(self, name)
            if 0 < value < LOWEST_FAULTY_STATUS:
                raise ValueError(f"`{name}={value}`: must be 0 (off) or an HTTP status from 300 to 599")
        if self.p99 < self.p50:
            raise ValueError(f"`p99={self.p99:g}` is below `p50={self.p50:g}`: set both")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``k=v`` pairs separated by commas, as in ``p50=2,p99=10,lost=0.05``.

        Raises:
            ValueError: in plain words, with the nearest name when one was misspelt.
        """
        given: dict[str, str] = {}
        for pair in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (part.strip() for part in pair.partition("="))
            if not equals:
                raise ValueError(f"`{pair}` has no value: write `{pair}=...`")
            if name in given:
                raise ValueError(f"`{name}` is given twice")
            given[name] = value
        return cls().updated(given)

    def updated(self, values: Mapping[str, object]) -> Self:
        """These settings with ``values`` (text, or what JSON holds) in place of those named."""
        return replace(self, **{name: _coerced(name, value) for name, value in values.items()})


_DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(Settings)}
_LIMITS = {each.name: each.metadata for each in fields(Settings) if each.metadata}
COUNTED_FAULTS = tuple(each.name for each in fields(Settings) if each.metadata.get("counted"))
"""Faults with a counter of their own, under their own name, in the statistics."""


def _coerced(name: str, value: object) -> Any:
    if name not in _DEFAULTS:
        near = difflib.get_close_matches(name, _DEFAULTS, n=1)
        hint = f": did you mean `{near[0]}`?" if near else f"; the settings are {', '.join(_DEFAULTS)}"
        raise ValueError(f"unknown setting `{name}`{hint}")
    wanted = type(_DEFAULTS[name])
    try:
        if wanted is str and not isinstance(value, str):
            raise ValueError
        converted = wanted(value)
        if wanted is int and not isinstance(value, str) and converted != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        kind = {int: "a whole number", float: "a number", str: "text"}[wanted]
        raise ValueError(f"`{name}={value}`: must be {kind}") from None
    return converted


@dataclass(frozen=True, slots=True)
class Plan:
    """The settings in force, and those for requests whose last message holds a given text."""

    settings: Settings
    overrides: tuple[tuple[str, Mapping[str, object]], ...] = ()
    rules: tuple[tuple[str, Settings], ...] = ()

    def for_text(self, text: str) -> Settings:
        """The settings for one request: those of the first rule that matches, else the common ones."""
        return next((settings for part, settings in self.rules if part in text), self.settings)

    def updated(self, change: Mapping[str, object]) -> "Plan":
        """The plan after one ``PUT /_faults``. Rules stay, over the new settings, unless ``rules`` is named.

        Raises:
            ValueError: an unknown name, a value out of range, or a rule that is none.
        """
        named = {name: value for name, value in change.items() if name != "rules"}
        settings = self.settings.updated(named)
        overrides = _overrides(change["rules"]) if "rules" in change else self.overrides
        rules = tuple((part, settings.updated(values)) for part, values in overrides)
        return Plan(settings, overrides, rules)


def _overrides(rules: object) -> tuple[tuple[str, Mapping[str, object]], ...]:
    if not isinstance(rules, list):
        raise ValueError("`rules` must be a list of objects")
    return tuple(_override(rule) for rule in rules)


def _override(rule: object) -> tuple[str, Mapping[str, object]]:
    if not isinstance(rule, dict) or not isinstance(rule.get("text"), str):
        raise ValueError('a rule must be an object with a `"text"`')
    for name in sorted(FOR_ALL_REQUESTS & rule.keys()):
        raise ValueError(f"`{name}` holds for all requests: it cannot stand in a rule")
    return rule["text"], {name: value for name, value in rule.items() if name != "text"}


@dataclass(frozen=True, slots=True)
class Draws:
    """Chance without an order of arrival: the same request, seen equally often, draws the same numbers."""

    seed: int
    digest: bytes
    occasion: str  # how many times the request was seen before; for a poll also how many polls there were

    def number(self, name: str) -> float:
        """A number inside (0, 1), both ends excluded."""
        key = b"%d|%b|%b|%b" % (self.seed, self.digest, self.occasion.encode(), name.encode())
        bits = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 12
        return (bits + 0.5) / 2**52

    def hit(self, settings: Settings, fault: str) -> bool:
        chance: float = getattr(settings, fault)
        return chance > 0 and self.number(fault) < chance


def latency_s(settings: Settings, draws: Draws) -> float:
    """Seconds from acceptance to the end of one operation: lognormal through ``p50`` and ``p99``."""
    if settings.p50 == 0:
        return 0.0
    deviations = _NORMAL.inv_cdf(draws.number("latency")) / _Z99
    return float(settings.p50 * (settings.p99 / settings.p50) ** deviations)


class Ending(StrEnum):
    """How an operation ends. Those that can be drawn bear the name of their fault, the strongest first."""

    MISSING = "missing"
    STUCK = "stuck"
    FAIL = "fail"
    NEITHER = "neither"
    FILTER = "filter"
    TRUNCATE = "truncate"
    FINAL = "final"


def ending(settings: Settings, draws: Draws, *, failures: int) -> Ending:
    """How an operation accepted now will end.

    Args:
        failures: Operations of the same distinct request that were already made to fail.
    """
    for candidate in Ending:
        if candidate is Ending.FINAL:
            break
        may_fail = settings.fail_times < 0 or failures < settings.fail_times
        if (candidate is not Ending.FAIL or may_fail) and draws.hit(settings, candidate):
            return candidate
    return Ending.FINAL
