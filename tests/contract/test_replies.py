"""What the client takes for an answer is what the service's own definitions can say."""

from __future__ import annotations

import pytest

from batchrun.record import Finished, PollReply, StillRunning
from tests.unit.test_yandex import READS

json_format = pytest.importorskip("google.protobuf.json_format")
operations = pytest.importorskip("yandex.cloud.operation.operation_pb2")
pytest.importorskip("yandex.cloud.ai.foundation_models.v1.text_generation.text_generation_service_pb2")

BEYOND_THE_PROTOS = {
    # read leniently on purpose: a paid answer is not lost because the service has grown, or writes carelessly
    "a status yet to be invented",
    "a status of another style",
    "a status that is a novel",
    "a status that is an object",
    "an error of code 0 is none",
    "an empty error is none",
    "an error beside an answer",
    "without an ID",
    "usage that is nonsense loses no answer",
    "half a surrogate pair",
    "broken UTF-8",
}
"""Replies the client understands and the protos do not. Every other one that it understands must be theirs."""


def is_theirs(body: bytes) -> bool:
    try:
        json_format.Parse(body, operations.Operation())
    except (json_format.ParseError, UnicodeDecodeError):
        return False
    return True


UNDERSTOOD = {name: row for name, row in READS.items() if isinstance(row[1], Finished | StillRunning)}


@pytest.mark.parametrize(("name", "body", "reply"), [(name, *row) for name, row in UNDERSTOOD.items()], ids=UNDERSTOOD)
def test_a_reply_that_the_client_understands_is_one_that_the_service_can_give(
    name: str, body: bytes, reply: PollReply
) -> None:
    assert is_theirs(body) == (name not in BEYOND_THE_PROTOS)
