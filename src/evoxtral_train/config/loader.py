"""YAML to a frozen config: strict about keys, plain about what is wrong.

Unknown keys at any depth name the nearest known one, duplicate keys are an error, `2e-4` is a
number, and `--set a.b=c` obeys the same rules as the file. All problems are reported at once.
"""

import difflib
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import ConfigError
from ..reading import is_open_stream, is_writable, shown, why_not_a_file
from .fields import description_of, field_at, item_of, model_of

ConfigT = TypeVar("ConfigT", bound=BaseModel)
_MOST_VALUES = 10_000  # that aliases may add to a document


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with floats as in JSON, and with duplicate keys refused."""

    def construct_mapping(self, node, deep=False):
        seen = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # PyYAML refuses it below
            if key in seen:
                raise ConfigError(
                    f"duplicate key {key!r} in lines {seen[key]} and {key_node.start_mark.line + 1}",
                    where=str(node.start_mark.name),
                    fix="keep one of the two",
                )
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `on`, `off`, `yes` and `no` as truth values; here only `true` and `false` are.
_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    letter: [resolver for resolver in resolvers if resolver[0] != _BOOL]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|false|False)$"), list("tTfF"))

# YAML 1.1 reads `2e-4` as a string; researchers mean a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(path: Path | None, schema: type[ConfigT], overrides: list[str] | None = None) -> ConfigT:
    """Read `path` (None: the defaults), apply `--set` overrides in order, validate. Raises ConfigError."""
    content = {} if path is None else read_yaml(path)
    for override in overrides or []:
        _apply(content, override)
    content = _at_home(content)
    unknown = _unknown_keys(content, schema, ())
    if unknown:
        raise ConfigError("; ".join(unknown), where=str(path or "the call"))
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'config'}: {_plain(each, schema)}" for each in error.errors()]
        raise ConfigError("; ".join(problems), where=str(path or "the call")) from None


def _at_home(content: Any) -> Any:
    """`~/runs` is in the home folder, as in a shell; without this it would be a folder called "~" here."""
    if isinstance(content, dict):
        return {key: _at_home(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_at_home(value) for value in content]
    return str(Path(content).expanduser()) if isinstance(content, str) and content.startswith("~/") else content


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = read_document(path)
    except FileNotFoundError:
        fix = "copy the shipped ones into this folder with: evoxtral init"
        raise ConfigError("no such config file", where=str(path), fix=fix) from None
    if not isinstance(content, dict):
        raise ConfigError("a config is a mapping of keys to values", where=str(path))
    return content


def read_document(path: Path) -> Any:
    """What a YAML file holds. Raises FileNotFoundError, or ConfigError when it cannot be read or is out of bounds."""
    reason = None if is_open_stream(path) else why_not_a_file(path)
    if reason == "does not exist":
        raise FileNotFoundError(path)
    if reason:
        raise ConfigError(reason, where=str(path))
    try:
        return _parse(path.read_text("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        fix = "save it as UTF-8" if isinstance(error, UnicodeDecodeError) else None
        raise ConfigError(f"cannot be read: {error}", where=str(path), fix=fix) from None
    except ValueError as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from None


def _parse(text: str, name: str) -> Any:
    """Raises ValueError with what is wrong in the text, or ConfigError for a duplicate key."""
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # half a character, or NUL
        raise ValueError(str(error)) from None
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply, or holds itself") from None
    except (AttributeError, LookupError, TypeError) as error:  # `!!timestamp x`, `!!bool x`
        raise ValueError(f"a value is not what its type says: {error}") from None
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Raises ValueError where aliases (`*name`) make a small file a huge document, and for text that cannot be written."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        if id(node) not in sizes:
            if isinstance(node, yaml.ScalarNode):
                if "\0" in node.value or not is_writable(node.value):
                    raise ValueError(f"line {node.start_mark.line + 1}: {shown(node.value)} is no text")
                sizes[id(node)] = 1
            else:
                parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
                sizes[id(node)] = 1 + sum(map(size_of, parts))  # one that holds itself recurses for ever
        return sizes[id(node)]

    added = size_of(root) - len(sizes)
    if added > _MOST_VALUES:
        raise ValueError(f"its aliases (*name) add {added:,} values to it, {_MOST_VALUES:,} are allowed — write them out")


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one value in place: `train.epochs=3`, an item of a list by its number (`systems.0.name=x`; the number after the
    last adds one), a key of a section that is null or not there."""
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r} is not of the form a.b=value")
    try:
        parsed = _parse(value, "--set")
    except ValueError as error:
        raise ConfigError(f"--set {override!r}: not a YAML value: {' '.join(str(error).split())}") from None
    place: Any = content
    for depth, part in enumerate(parts[:-1]):
        name = ".".join(parts[: depth + 1])
        slot = _slot(place, part, name, override)
        inner = place[slot]
        if inner is None:
            inner = place[slot] = [] if parts[depth + 1].isdecimal() else {}
        if not isinstance(inner, dict | list):
            raise ConfigError(f"--set {override!r}: {name!r} holds a value, not further keys")
        place = inner
    place[_slot(place, parts[-1], key.strip(), override)] = parsed


def _slot(place: dict[str, Any] | list, part: str, name: str, override: str) -> str | int:
    """The key or the index that `part` means in `place`; one that is new is there afterwards, and holds None."""
    if isinstance(place, dict):
        place.setdefault(part, None)
        return part
    if not part.isdecimal() or int(part) > len(place):
        of = name.rpartition(".")[0]
        raise ConfigError(
            f"--set {override!r}: {of!r} is a list of {len(place)}, and {part!r} is none of its numbers",
            fix=f"use {of}.0 to {of}.{len(place) - 1}, or {of}.{len(place)} to add one" if place else f"use {of}.0 to add one",
        )
    if int(part) == len(place):
        place.append(None)
    return int(part)


def _unknown_keys(content: Any, schema: Any, path: tuple[str, ...]) -> list[str]:
    """One line for each key that the schema lacks, at any depth."""
    model = model_of(schema)
    if model is None and isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        return [line for name, item in items for line in _unknown_keys(item, item_of(schema), (*path, str(name)))]
    if model is None or not isinstance(content, dict):
        return []
    lines = []
    for key, value in content.items():
        name = ".".join((*path, str(key)))
        if key in model.model_fields:
            lines += _unknown_keys(value, model.model_fields[key].annotation, (*path, str(key)))
        else:
            nearest = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0.0)[0]
            lines.append(f"unknown key {name!r}, did you mean {'.'.join((*path, nearest))!r}?")
    return lines


def _plain(error: dict, schema: type[BaseModel]) -> str:
    """What is wrong, and what the key means."""
    field = field_at(schema, error["loc"])
    meaning = f" ({description_of(field).rstrip('.')})" if field and not model_of(field.annotation) else ""
    if error["type"] == "missing":
        return f"is required and missing{meaning}"
    if not error["loc"]:  # of keys that do not go together: the message names them
        return error["msg"].removeprefix("Value error, ")
    return f"{error['msg']}, got {shown(error['input'])}{meaning}"
