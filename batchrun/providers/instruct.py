"""The older API of the same service: one instruction and one request (``instructAsync``), the same operations."""

from __future__ import annotations

from typing import Any

from batchrun.providers.yandex import NO_ANSWER, Yandex, count
from batchrun.record import Answer, Finished, JsonObject, PollReply, Usage

INSTRUCTIONS = ("instructionText", "instruction_text", "instructionUri", "instruction_uri")


class Instruct(Yandex):
    """What differs from ``Yandex``. An instruction is optional: without a system message none is sent."""

    host = "https://llm.api.cloud.yandex.net"
    path = "/llm/v1alpha/instructAsync"
    options = ("generationOptions", "generation_options")

    def _body_of(self, text: str | None) -> JsonObject:
        return {"requestText": text}

    def _fill(self, body: JsonObject, model: str, system: str | None) -> None:
        if not body.get("model"):
            body["model"] = model
        if system and all(body.get(name) is None for name in INSTRUCTIONS):
            body["instructionText"] = system

    def _read_alternative(self, alternative: JsonObject, response: JsonObject) -> PollReply:
        """It has no status and no total; ``score`` has no place in a result."""
        text: Any = alternative.get("text")
        if not isinstance(text, str | None):
            return NO_ANSWER
        usage = Usage(count(response.get("numPromptTokens")), count(alternative.get("numTokens")))
        return Finished(Answer(text or "", "unspecified", usage))
