"""Reads protobuf text format (``config.pbtxt``) into plain dictionaries, without the protobuf runtime.

Only reading: configurations are written by export with Triton's own protobuf classes. A field that occurs is always a
list; messages are dictionaries; scalars are str, int, float, bool; enum values are str.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from hilum_inference.errors import ModelError

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<word>[A-Za-z_][\w.]*)"""
    r"""|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)f?|(?P<mark>[{}\[\]<>:,;-])"""
)
_DEEPEST = 32

Message = dict[str, list[Any]]


def parse_pbtxt(text: str) -> Message:
    """A message from its text form.

    Raises:
        ModelError: not protobuf text format.

    >>> parse_pbtxt('name: "a" dims: [ 1, -1 ] parameters { key: "k" value { string_value: "v" } }')
    {'name': ['a'], 'dims': [1, -1], 'parameters': [{'key': ['k'], 'value': [{'string_value': ['v']}]}]}
    """
    tokens = _Tokens(text)
    return _message(tokens, "", 0)


class _Tokens:
    def __init__(self, text: str) -> None:
        self._items = [(m.lastgroup, m.group(m.lastgroup)) for m in _scan(text) if m.lastgroup]
        self._next = 0

    def peek(self) -> tuple[str, str]:
        kind, value = self._items[self._next] if self._next < len(self._items) else ("end", "")
        return kind or "end", value

    def take(self) -> tuple[str, str]:
        item = self.peek()
        self._next += 1
        return item


def _scan(text: str) -> list[re.Match[str]]:
    matches, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            raise ModelError(f"config.pbtxt cannot be read at line {line}.", code="bad_config")
        matches.append(match)
        place = match.end()
    return matches


def _message(tokens: _Tokens, closing: str, depth: int) -> Message:
    if depth > _DEEPEST:
        raise ModelError("config.pbtxt is nested too deeply.", code="bad_config")
    message: Message = {}
    while True:
        kind, value = tokens.take()
        if value == closing and kind in ("mark", "end"):
            return message
        if value in (",", ";") and kind == "mark":
            continue
        if kind != "word":
            raise ModelError(f"config.pbtxt: expected a field name, got {value!r}.", code="bad_config")
        message.setdefault(value, []).extend(_values(tokens, depth))


def _values(tokens: _Tokens, depth: int) -> list[Any]:
    if tokens.peek()[1] == ":":
        tokens.take()
    if tokens.peek() != ("mark", "["):
        return [_value(tokens, depth)]
    tokens.take()
    values: list[Any] = []
    while tokens.peek() != ("mark", "]"):
        if tokens.peek()[0] == "end":
            raise ModelError("config.pbtxt ends inside a list.", code="bad_config")
        if tokens.peek() == ("mark", ","):
            tokens.take()
            continue
        values.append(_value(tokens, depth))
    tokens.take()
    return values


def _value(tokens: _Tokens, depth: int) -> Any:
    kind, value = tokens.take()
    if kind == "mark" and value in "{<":
        return _message(tokens, "}" if value == "{" else ">", depth + 1)
    if kind == "string":
        text = ast.literal_eval("b" + value).decode()
        while tokens.peek()[0] == "string":  # adjacent strings are one
            text += ast.literal_eval("b" + tokens.take()[1]).decode()
        return text
    if kind == "number":
        return float(value) if re.search(r"[.eE]", value) else int(value)
    if kind == "word":
        return {"true": True, "false": False}.get(value, value)
    raise ModelError(f"config.pbtxt: expected a value, got {value!r}.", code="bad_config")
