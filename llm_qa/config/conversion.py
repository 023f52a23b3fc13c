"""A value from YAML or the command line -> the type that a setting wants; and how a bad one is shown."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal

from llm_qa.config.strict_yaml import read_yaml


def convert(value: Any, hint: Any) -> Any:
    """Convert a YAML or command-line value to a type hint; ValueError says what was expected.

    YAML 1.1 reads `5e-5` as text and the command line knows only text, so text is converted where the hint asks.
    """
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and type(None) in arguments):
            if type(None) in arguments:
                return None
            raise ValueError("must be given")
        errors = []
        for argument in sorted((a for a in arguments if a is not type(None)), key=lambda a: a is str):
            try:
                return convert(value, argument)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError(" or ".join(errors))
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"is not one of {', '.join(map(str, arguments))}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1"):
            return True
        if isinstance(value, str) and value.lower() in ("false", "no", "off", "0"):
            return False
        raise ValueError("is not true or false")
    if hint in (int, float):
        if isinstance(value, bool):
            raise ValueError("is not a number")
        try:
            number = float(value)
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError
            if hint is int and number != int(number):
                raise ValueError
            return hint(value) if isinstance(value, str) and value.lstrip("+-").isdigit() else hint(number)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("is not a whole number" if hint is int else "is not a number") from None
    if hint is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise ValueError("is not text")
    if origin is list or hint is list:
        items = _parse_yaml(value) if isinstance(value, str) and value.startswith("[") else value
        items = items.split(",") if isinstance(items, str) else items
        if not isinstance(items, list):
            raise ValueError("is not a list")
        return [convert(item, arguments[0]) for item in items] if arguments else items
    if origin is dict or hint is dict:
        mapping = _parse_yaml(value) if isinstance(value, str) else value
        if not isinstance(mapping, dict):
            raise ValueError("is not a mapping")
        return mapping
    if isinstance(hint, type) and issubclass(hint, Enum) and issubclass(hint, str):  # transformers' string enums
        return convert(value, Literal[tuple(member.value for member in hint)])
    return value


def _parse_yaml(text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ValueError(f"is not readable YAML ({error})") from None


def shown(value: Any, form: Callable[[Any], str] = str) -> str:
    """A value for a sentence: not endless, and as escapes where it cannot be printed."""
    text = form(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return text if text.isprintable() else ascii(text)


def printable(value: Any) -> bool:
    """False for a text, or a list or mapping with one, that has control characters, direction marks or broken ones."""
    if isinstance(value, dict):
        return all(printable(item) for pair in value.items() for item in pair)
    if isinstance(value, list):
        return all(map(printable, value))
    return not isinstance(value, str) or value.isprintable()
