"""The one base of all models, and the one place where a validation error becomes words.

Every model is frozen, forbids unknown keys and takes no type for another (``"3"`` is not ``3``).
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from schemas.errors import Fault, InvalidInput
from schemas.ids import EXPECTED

SECRET_KEYS = (("token",), ("credential",))
"""Keys whose values no message repeats: an error is logged, shown and stored."""


class Model(BaseModel):
    """Frozen, strict, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


M = TypeVar("M", bound=Model)


def parse(model: type[M], data: object, what: str) -> M:
    """Turn plain data into ``model``. Lists count as tuples, since TOML and JSON have no tuples.

    Raises:
        InvalidInput: naming ``what`` and every key that is wrong.
    """
    try:
        return model.model_validate(_tuples(data))
    except ValidationError as error:
        faults = tuple(_fault(model, details) for details in error.errors(include_url=False))
        raise InvalidInput(what, faults) from None
    except RecursionError:
        raise InvalidInput(what, (Fault("", "nested too deeply"),)) from None


def parse_toml(model: type[M], text: str, what: str) -> M:
    """Turn TOML text into ``model``; raises ``InvalidInput`` also where the text is not TOML."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise InvalidInput(what, (Fault("", f"not valid TOML: {error}"),)) from None
    return parse(model, data, what)


def _tuples(data: object) -> object:
    if isinstance(data, Mapping):
        return {key: _tuples(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return tuple(_tuples(value) for value in data)
    return data


def _fault(model: type[BaseModel], details: ErrorDetails) -> Fault:
    path = tuple(str(part) for part in details["loc"])
    kind = details["type"]
    if kind == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known)) or 'none'}"
        return Fault(".".join(_visible(model, path)), f"unknown key; {hint}")
    if kind == "missing":
        return Fault(".".join(_visible(model, path)), "missing; this key is required")
    if kind.startswith("union_tag"):
        return _tag_fault(path, details)
    if kind == "string_pattern_mismatch":
        return Fault(".".join(_visible(model, path)), _pattern_fault(path, details))
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = repr(details["input"])
    is_quiet = kind == "value_error" or path[-1:] in SECRET_KEYS
    came = "" if is_quiet else f", got {shown[:80]}"
    return Fault(".".join(_visible(model, path)), message[:1].lower() + message[1:] + came + _nearest(details))


def _pattern_fault(path: tuple[str, ...], details: ErrorDetails) -> str:
    """A pattern in words; of a secret, its length alone."""
    pattern, came = details.get("ctx", {}).get("pattern", ""), str(details["input"])
    expected = EXPECTED.get(pattern, f"text that matches {pattern}")
    is_secret = path[-1:] in SECRET_KEYS
    return f"expected {expected}{'; ' if is_secret else ', '}got " + (
        f"{len(came)} characters" if is_secret else repr(came)[:80]
    )


def _nearest(details: ErrorDetails) -> str:
    """Where one of a few words was expected, the nearest to the one that came."""
    if details["type"] != "literal_error":
        return ""
    words = re.findall(r"'([^']*)'", str(details.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(details["input"]), words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _tag_fault(path: tuple[str, ...], details: ErrorDetails) -> Fault:
    """A union whose members are told apart by one key, and that key is missing or names none of them."""
    context = details.get("ctx", {})
    key = ".".join((*path, str(context.get("discriminator", "")).strip("'")))
    if "tag" not in context:
        return Fault(key, "missing; this key is required")
    tag, tags = str(context["tag"]), str(context["expected_tags"])
    near = difflib.get_close_matches(tag, [name.strip("' ") for name in tags.split(",")], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return Fault(key, f"expected one of {tags}, got {tag!r}{hint}")


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation may stand for: itself, or the members of its union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_of(part)]


def _walk(model: type[BaseModel], path: tuple[str, ...]) -> tuple[list[type[BaseModel]], list[str]]:
    """Follow ``path`` as far as fields go; pydantic's union tags are steps that no field answers to."""
    here, visible = [model], []
    for part in path:
        fields = [m.model_fields[part] for m in here if part in m.model_fields]
        if fields:
            visible.append(part)
            here = [found for field in fields for found in _models_of(field.annotation)]
        elif part.isdigit() or not here:
            visible.append(part)
        else:
            tagged = [m for m in here if any(part in get_args(f.annotation) for f in m.model_fields.values())]
            here = tagged or here
    return here, visible


def _fields_at(model: type[BaseModel], path: tuple[str, ...]) -> set[str]:
    here, _ = _walk(model, path)
    return {name for m in here for name in m.model_fields}


def _visible(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """``path`` as a person wrote it, without pydantic's union tags."""
    head, tail = path[:-1], path[-1:]
    here, visible = _walk(model, head)
    known = {name for m in here for name in m.model_fields}
    is_tag = (
        tail
        and tail[0] not in known
        and any(tail[0] in get_args(f.annotation) for m in here for f in m.model_fields.values())
    )
    return visible if is_tag else [*visible, *tail]
