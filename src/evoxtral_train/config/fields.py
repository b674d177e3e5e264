"""What a config's models say about their fields."""

import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SOURCE = re.compile(r"\s*\[((?:RL|3B|code|ours|measured)\b[^]]*)\]$")


def description_of(field: FieldInfo) -> str:
    """What the field means, or its section's docstring, on one line and without the source of the default."""
    section = model_of(field.annotation) or item_model_of(field.annotation)
    text = field.description or (section and section.__doc__) or ""
    return " ".join(_SOURCE.sub("", text).split())


def source_of(field: FieldInfo) -> str | None:
    """Where the default comes from: "RL", "3B", "code", "ours: why" or "measured: docs/…"."""
    found = _SOURCE.search(field.description or "")
    return found[1] if found else None


def field_at(model: type[BaseModel], path: Iterable[str | int]) -> FieldInfo | None:
    """The field that a path such as ("systems", 0, "name") leads to, or the last on the way there."""
    annotation, field = model, None
    for part in path:
        section = model_of(annotation)
        if section is None:
            annotation = item_of(annotation)
        elif part in section.model_fields:
            field = section.model_fields[part]
            annotation = field.annotation
        else:
            break
    return field


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also an optional one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((model for each in typing.get_args(annotation) if (model := model_of(each))), None)
    return None


def item_of(annotation: Any) -> Any:
    """The annotation of a list's items, or of a mapping's values."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((item for each in arguments if (item := item_of(each))), None)
    return arguments[-1] if typing.get_origin(annotation) in (list, dict) and arguments else None


def item_model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that each item of a list is, or each value of a mapping."""
    return model_of(item_of(annotation))
