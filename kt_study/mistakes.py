"""Messages for invalid values in a study file, in the file's own notation: where, what, and which values are valid."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from kt_study.nearest import nearest

LARGEST = 2**63 - 1
"""Largest value of a column of whole numbers."""

_READABLE = {r"'^[\\w.-]+$'": "letters, digits, . _ - only"}
"""Descriptions of the records' patterns."""


def explained(message: str, root: type[msgspec.Struct]) -> str:
    """msgspec's message about a tree that is no `root`, with the place and, for an unknown key, the closest known one."""
    reason, _, path = message.partition(" - at `")
    path = path.rstrip("`")
    if unknown := re.search(r"unknown field `([^`]+)`", reason):
        known = _struct(_annotation(root, path)).__struct_fields__
        return f"{place(path)}unknown key {unknown[1]!r}{nearest(unknown[1], known)}"
    if missing := re.search(r"missing required field `([^`]+)`", reason):
        return f"{place(path)}{missing[1]!r} is missing"
    return place(path) + readable(reason, _annotation(root, path))


def readable(reason: str, annotation: Any) -> str:
    """msgspec's reason why a value does not fit `annotation`, with the valid choices or a description of the pattern."""
    reason = reason[0].lower() + reason[1:]
    if wrong := re.fullmatch(r"invalid enum value '(.*)'", reason, re.DOTALL):
        choices = list(_choices(annotation))
        return f"{reason}{nearest(wrong[1], choices)} (it may be {', '.join(choices)})"
    expected, _, pattern = reason.partition(" matching regex ")
    return f"{expected} of {_READABLE.get(pattern, pattern)}" if pattern else reason


def unusable_number(value: Any, path: str = "$") -> str:
    """The first infinite, undefined or too large number of a TOML tree, and its place; empty when there is none."""
    for where, number in _numbers(value, path):
        if isinstance(number, int) and abs(number) > LARGEST:
            return f"{place(where)}a whole number of more than 64 bits"
        if not math.isfinite(number):
            return f"{place(where)}{number} is not a finite number"
    return ""


def place(path: str) -> str:
    """`$.transfer.epochs` as `[transfer] epochs: `."""
    parts = _keys(path)
    if not parts:
        return ""
    depth = 2 if parts[:2] == ["fine_tuning", "dataset"] else 1
    head = "[[model]]" if parts[0] == "model" else f"[{'.'.join(parts[:depth])}]"
    return " ".join([head, *parts[depth:]]) + ": "


def _keys(path: str) -> list[str]:
    return [part for part in re.sub(r"\[[^]]*\]", "", path).removeprefix("$").split(".") if part]


def _annotation(root: type[msgspec.Struct], path: str) -> Any:
    """The annotation of the key that a path leads to."""
    found: Any = root
    for key in _keys(path):
        found = get_type_hints(_struct(found), include_extras=True).get(key, Any)
    return found


def _struct(annotation: Any) -> type[msgspec.Struct]:
    """The record in an annotation such as `list[ModelTable]`."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    inner = (found for part in get_args(annotation) if (found := _struct(part)) is not msgspec.Struct)
    return next(inner, msgspec.Struct)


def _choices(annotation: Any) -> Iterator[str]:
    """The valid values of an annotation."""
    simple = {bool: ("true", "false"), int: ("a whole number",)}
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif isinstance(annotation, type) and annotation in simple:
        yield from simple[annotation]
    else:
        for part in get_args(annotation):
            yield from _choices(part)


def _numbers(value: Any, path: str) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, path)
    elif isinstance(value, int | float):
        yield path, value
