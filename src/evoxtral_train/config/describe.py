"""What the shipped configs and `docs/configuration.md` say about their keys, written from the models.

`make configs` (`python -m evoxtral_train.config.describe`) writes both again after a change to a description.
"""

import json
import re
import textwrap
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .. import shipped
from ..files import write_atomic
from .data import AlignConfig, ImportConfig, PackConfig, StatsConfig, SynthConfig
from .evaluation import CalibrateConfig, DiagnoseConfig, EvalConfig, ExportConfig, ProbeConfig
from .fields import description_of, item_model_of, model_of, source_of
from .serving import ServeConfig
from .training import RaftConfig, SftConfig, TinyBaseConfig
from .transcription import TranscribeConfig

CONFIGS = {
    "import": ImportConfig, "synth": SynthConfig, "stats": StatsConfig, "align": AlignConfig, "pack": PackConfig,
    "sft": SftConfig, "raft": RaftConfig, "eval": EvalConfig, "probe": ProbeConfig,
    "diagnose": DiagnoseConfig, "calibrate": CalibrateConfig,
    "transcribe": TranscribeConfig, "serve": ServeConfig, "export": ExportConfig, "tiny-base": TinyBaseConfig,
}  # fmt: skip
"""The shipped YAML files, in `configs/` and the folders below it, and the class that each is read into."""

_COLUMN, _WIDTH = 32, 130  # where comments begin, and where their lines end
_BELOW = re.compile(rf" {{{_COLUMN},}}#")  # a comment's second line
_SOURCES = re.compile(r"\s*# ((?:\[(?:RL|3B|code|ours)\] ?)*\[(?:RL|3B|code|ours)\])")


def commented(text: str, config: type[BaseModel]) -> str:
    """A YAML file in which every key's comment is its description.

    What belongs to the file stays: comment lines above a key, comments of list items, and the sources of its values ([RL] …).

    >>> print(commented("lora:\\n  # Twice the card's.\\n  r: 32 # [ours] old words\\n", SftConfig), end="")
    lora:                           # The LoRA adapter.
      # Twice the card's.
      r: 32                         # [ours] Rank of the matrices.
    """
    lines = text.splitlines()
    for key, value, field in reversed(list(keys_with_a_line(yaml.compose(text, Loader=yaml.SafeLoader), config))):
        first = last = key.start_mark.line
        while last + 1 < len(lines) and _BELOW.match(lines[last + 1]):
            last += 1
        on_this_line = value.start_mark.line == first and value.start_mark.index > key.end_mark.index
        end = value.end_mark.column if on_this_line else key.end_mark.column + 1
        setting, old = lines[first][:end], lines[first][end:]
        sources = f"{found[1]} " if (found := _SOURCES.match(old)) else ""
        start = setting.ljust(_COLUMN) if len(setting) < _COLUMN else f"{setting}   "
        comment = _wrapped(f"{start}# ", sources + description_of(field))
        if isinstance(value, yaml.SequenceNode) and (item := item_model_of(field.annotation)):
            for name, part in item.model_fields.items():
                comment += _wrapped(f"{' ' * _COLUMN}#   {name}: ", description_of(part))
        lines[first : last + 1] = comment
    return "\n".join(lines) + "\n"


def keys_with_a_line(node: yaml.Node, model: type[BaseModel]) -> Iterator[tuple[yaml.Node, yaml.Node, FieldInfo]]:
    """(key, value, field) of every key that has a line of its own."""
    for key, value in node.value:
        field = model.model_fields[key.value]
        yield key, value, field
        section = model_of(field.annotation)
        if section and isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from keys_with_a_line(value, section)


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=f"{' ' * _COLUMN}# ", break_on_hyphens=False)


_HEAD = """\
# Configuration

Every key of every config, written from the models in `src/evoxtral_train/config/` by `make configs`. `--set a.b=value` changes
one for a run; `systems.N.name` is an item of a list by its number, `limits.TAG` one of a mapping by its name.

Sources of defaults: RL is the Evoxtral-Realtime RL model card, 3B the Evoxtral LoRA card for Voxtral-Mini-3B, code the original
project's training code. Without a source, the default is this project's choice.
"""


def reference() -> str:
    """`docs/configuration.md`: a table for each config, and one for each section that several of them use."""
    uses = Counter(section for config in CONFIGS.values() for section in set(_sections(config)))
    shared = [section for section, count in uses.most_common() if count > 1]
    tables = [(f"{name}.yaml", section) for name, section in CONFIGS.items()]
    tables += [(section.__name__, section) for section in sorted(shared, key=lambda each: each.__name__)]
    parts = [_HEAD]
    for title, section in tables:
        rows = ["| key | default | meaning | source |", "|---|---|---|---|", *_rows(section, None, "", shared)]
        parts.append(f"## {title}\n\n{section.__doc__}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """All sections below this one."""
    for field in section.model_fields.values():
        if inner := model_of(field.annotation) or item_model_of(field.annotation):
            yield inner
            yield from _sections(inner)


def _rows(section: type[BaseModel], defaults: BaseModel | None, prefix: str, shared: list[type[BaseModel]]) -> Iterator[str]:
    """`defaults`: the section as the one above it fills it in."""
    for name, field in section.model_fields.items():
        key, default = prefix + name, field.default if defaults is None else getattr(defaults, name)
        one, several = model_of(field.annotation), item_model_of(field.annotation)
        inner, meaning = one or several, description_of(field)
        if inner in shared:
            meaning += f" See [{inner.__name__}](#{inner.__name__.lower()})."
        cells = (f"`{key}`", "" if inner else _shown(default), meaning, source_of(field) or "")
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
        if inner and inner not in shared:
            item = "" if one else "TAG." if typing.get_origin(field.annotation) is dict else "N."
            yield from _rows(inner, default if isinstance(default, inner) else None, f"{key}.{item}", shared)


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    return f"`{default}`" if isinstance(default, str | Path) else f"`{json.dumps(default, ensure_ascii=False)}`"


def write() -> None:
    """Brings the comments of all shipped configs and the reference up to date."""
    root = shipped.root()
    for path in sorted((root / "configs").rglob("*.yaml")):
        write_atomic(path, commented(path.read_text("utf-8"), config_of(path)))
    write_atomic(root / "docs" / "configuration.md", reference())


def config_of(path: Path) -> type[BaseModel]:
    """The class of a shipped file: `configs/demo/eval-sft.yaml` is an EvalConfig, `configs/published/offline-sft.yaml` an
    SftConfig."""
    name = "import" if path.parent.name == "import" else path.stem
    return CONFIGS[name] if name in CONFIGS else next(CONFIGS[part] for part in name.split("-") if part in CONFIGS)


if __name__ == "__main__":
    write()
