"""Data made to hurt: lines, replies, ledgers, folders and options that somebody else wrote."""

from __future__ import annotations

import os

import hypothesis

IS_LONG = os.environ.get("FAULTS") == "all"


def drawn(examples: int) -> hypothesis.settings:
    """So many examples, the same ones every time; with ``FAULTS=all`` ten times as many, and new ones every time."""
    return hypothesis.settings(
        max_examples=examples * 10 if IS_LONG else examples,
        derandomize=not IS_LONG,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),  # making one smaller would be a run each
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
    )
