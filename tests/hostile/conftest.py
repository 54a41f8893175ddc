"""The emulator as a process, for the few tests that need one."""

from __future__ import annotations

from tests.scenarios.conftest import emulator

__all__ = ["emulator"]
