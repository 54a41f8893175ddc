"""A prompt template: Jinja2 in a sandbox, with a head of settings in TOML between two lines of ``+++``."""

from __future__ import annotations

import io
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

from batchrun.errors import BatchrunError, UsageProblem
from batchrun.inputs import ID_FIELDS, names_of, parse
from batchrun.lines import MAX_LINE_BYTES, BadLine, shown, strict_json
from batchrun.record import JsonObject, Prompt

FENCE = "+++"
MISSING = "is not in the record"
_IN_HEAD = "system, model, schema, and under [options] temperature and max_tokens"
_SCHEMA_IS = "it is a table in the head, or the name of a file of JSON beside the template"


@dataclass(frozen=True, slots=True)
class Template:
    """``text`` makes prompts, the rest is what its head leaves open or settles. ``schema`` is JSON."""

    text: str
    options: Prompt
    schema: str | None


def text_in(path: Path, option: str) -> str:
    """The text of a file that an option names. Raises UsageProblem if there is none."""
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not UTF-8"
        raise UsageProblem(f"{path} cannot be read ({reason})", remedy=f"name a text file with {option}") from error


def read_template(path: Path) -> Template:
    """Read a template and its head, and see that both can be understood.

    Raises:
        UsageProblem: they cannot.
    """
    text = text_in(path, "-t")
    head, lines = "", text.split("\n")
    if lines[0].rstrip() == FENCE:
        end = next((at for at, line in enumerate(lines[1:], 1) if line.rstrip() == FENCE), None)
        if end is None:
            raise UsageProblem(f"{path}: the head has no end", remedy=f"put a line of {FENCE} after it")
        head = "\n".join(lines[1:end])
        text = "{#" + "\n" * (end + 1) + "#}" + "\n".join(lines[end + 1 :])  # lines keep their numbers
    template = _with_head(path, text, head)
    import jinja2

    try:
        compiled(text)
    except jinja2.TemplateSyntaxError as error:
        raise UsageProblem(
            f"{path}:{error.lineno}: {shown(error.message or '', 200)}", remedy="mend the template"
        ) from error
    except (RecursionError, MemoryError, OverflowError, SyntaxError, ValueError) as error:
        raise UsageProblem(f"{path}: nested too deep, or too long", remedy="make the template simpler") from error
    return template


def _with_head(path: Path, text: str, head: str) -> Template:
    try:
        given: JsonObject = tomllib.loads(head)
    except (ValueError, RecursionError) as error:
        raise UsageProblem(f"{path}: the head is no TOML: {error}", remedy='system = "…" is a line of one') from error
    schema = _schema(path, given.pop("schema", None))
    options = given.pop("options") if isinstance(given.get("options"), dict) else {}
    if unknown := given.keys() - {"system", "model"} | options.keys() - {"temperature", "max_tokens"}:
        raise UsageProblem(f"{path}: unknown in the head: {shown(min(unknown))}", remedy=f"it may have {_IN_HEAD}")
    try:
        line = json.dumps({"prompt": text or "-", **given, **options}, default=str)
        return Template(text, parse(line.encode()).prompt, schema)
    except (BadLine, ValueError) as bad:
        raise UsageProblem(f"{path}: in the head, {bad}", remedy="mend the head") from bad


def _schema(path: Path, given: Any) -> str | None:
    """A JSON Schema as one JSON text: from the head itself, or from a file beside the template."""
    try:
        if isinstance(given, str):
            file = path.with_name(given)
            if not file.is_file() or file.stat().st_size > MAX_LINE_BYTES:
                raise BadLine("not a file of at most 4 MiB")
            given = strict_json(file.read_bytes())
        if isinstance(given, dict | None):
            return None if given is None else json.dumps(given, default=str, allow_nan=False)
    except (OSError, ValueError, BadLine) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
        raise UsageProblem(f"{path}: the schema cannot be read: {reason}", remedy=_SCHEMA_IS) from error
    raise UsageProblem(f"{path}: a schema is an object", remedy=_SCHEMA_IS)


# --- making prompts ---


@cache
def compiled(text: str) -> Callable[[JsonObject], str]:
    """What makes the prompt of a record's fields; raises BadLine where they do not do.

    The sandbox keeps a template from the program around it. It is code of the user's, and takes its time.
    """
    from jinja2 import StrictUndefined, UndefinedError
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Missing(StrictUndefined):
        __slots__ = ()

        @property
        def _undefined_message(self) -> str:
            name = str(self._undefined_name)
            name = f"'{shown(name)}'" if name in text else "what it looks up"  # elsewhere it may be a prompt's text
            if self._undefined_exception is SecurityError:
                return f"{name} is not allowed"
            return self._undefined_hint or f"{name} {MISSING}"

    sandbox = ImmutableSandboxedEnvironment(undefined=Missing, autoescape=False, optimized=False)
    del sandbox.filters["random"], sandbox.globals["lipsum"]  # a record is one prompt, however often it is read
    template = sandbox.from_string(text)

    def render(fields: JsonObject) -> str:
        id_ = next((fields[name] for name in ID_FIELDS if name in fields), Missing(name="id"))
        names = {"record": fields, "id": id_, **fields}
        prompt = io.StringIO()
        try:
            for piece in template.generate(names):
                if prompt.tell() + len(piece) > MAX_LINE_BYTES:
                    raise BadLine("the template makes a prompt longer than 4 MiB")
                prompt.write(piece)
            prompt.getvalue().encode()
        except (BadLine, BatchrunError):  # a signal, or the deadline
            raise
        except Exception as error:  # the template is a program: anything may happen in it
            is_ours = isinstance(error, UndefinedError | SecurityError)  # the words of others may quote the record
            reason = str(error) if is_ours else "does not work with this record"
            if reason.endswith(MISSING):
                reason += (
                    f"; fields here: {names_of(fields)}. For one that may be missing: {{{{ NAME | default('') }}}}"
                )
            raise BadLine(f"template line {_line(error)}: {reason}") from error
        return prompt.getvalue()

    return render


def _line(error: BaseException) -> int:
    """The line of the template; Jinja puts it into the traceback."""
    places = [line for frame, line in walk_tb(error.__traceback__) if "__jinja_exception__" in frame.f_globals]
    return places[-1] if places else 1
