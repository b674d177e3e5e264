"""The known tags, their aliases, and what to do with unknown names."""

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .. import shipped
from ..config.loader import read_document
from ..config.sections import Tags
from ..errors import RowError, UsageError
from .tags import TAG, canonical, parse

_BETWEEN_WORDS = ("sound", "pause")


@dataclass(frozen=True)
class Taxonomy:
    """`groups`: tag -> group, in the table's order. `aliases`: alias -> tag."""

    groups: dict[str, str]
    aliases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Taxonomy":
        """Read a YAML of group -> tag -> aliases. Raises UsageError if it is malformed."""
        try:
            content = read_document(shipped.find(path))
        except FileNotFoundError:
            raise UsageError("no such tag table", where=str(path), fix="the shipped one is data/tags.yaml") from None
        form = "write group: {tag: [aliases]}"
        if not isinstance(content, dict) or not content:
            raise UsageError("not a tag table", where=str(path), fix=form)
        groups, aliases = {}, {}
        for group, tags in content.items():
            if not isinstance(tags, dict) or not all(isinstance(names, list | None) for names in tags.values()):
                raise UsageError(f"the group {group!r} is not a mapping of tags to lists", where=str(path), fix=form)
            for tag, names in tags.items():
                for name in (tag, *(names or [])):
                    name = canonical(str(name))
                    if not name or "[" in name or "]" in name:
                        raise UsageError(f"{name!r} cannot be a tag", where=str(path), fix="leave out the brackets")
                    if name in groups or name in aliases:
                        raise UsageError(f"{name!r} is listed twice", where=str(path), fix="remove one of the two")
                    if name == canonical(str(tag)):
                        groups[name] = str(group)
                    else:
                        aliases[name] = canonical(str(tag))
        return cls(groups, aliases)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.groups)

    def lies_between_words(self, tag: str) -> bool:
        """Whether it is a sound or a pause. Every other tag, including unknown ones, describes how words are said."""
        return self.groups.get(tag) in _BETWEEN_WORDS


@dataclass(frozen=True)
class TagRules:
    """A taxonomy and the user's overrides. `renamed`: name -> tag, or None to drop it; takes precedence over
    the taxonomy. `unknown`, for all other names: "error", "keep" or "drop"."""

    taxonomy: Taxonomy
    renamed: dict[str, str | None] = field(default_factory=dict)
    unknown: str = "error"

    @classmethod
    def of(cls, config: Tags) -> "TagRules":
        """Raises UsageError for an unreadable table, or a `map` to a tag that is not in the table."""
        taxonomy = Taxonomy.load(config.table)
        for name, tag in config.map.items():
            if tag is not None and tag not in taxonomy.groups and config.unknown != "keep":
                raise UsageError(
                    f"[{name}] is mapped to [{tag}], which is not in {config.table}", where="tags.map",
                    fix=f"known tags: {', '.join(taxonomy.tags)}",
                )  # fmt: skip
        return cls(taxonomy, config.map, config.unknown)

    def tag_of(self, name: str) -> str | None:
        """The tag that a name stands for; None to drop it. Raises RowError for an unknown name under "error"."""
        name = canonical(name)
        if name in self.renamed:
            return self.renamed[name]
        if name in self.taxonomy.groups:
            return name
        if name in self.taxonomy.aliases:
            return self.taxonomy.aliases[name]
        if self.unknown == "error":
            known = (*self.taxonomy.groups, *self.taxonomy.aliases)
            nearest = difflib.get_close_matches(name[:100], known, n=1)
            hint = f"did you mean [{self.taxonomy.aliases.get(nearest[0], nearest[0])}]? " if nearest else ""
            raise RowError(
                f"unknown tag [{name}]", fix=f"{hint}known tags: {', '.join(self.taxonomy.tags)}; or set tags.map or tags.unknown"
            )
        return name if self.unknown == "keep" else None

    def apply(self, tagged_text: str, tally: Counter | None = None) -> str:
        """The text with all tags renamed: "[Giggles] Oh." -> "[laughs] Oh.".

        `tally` counts the changes: (name, tag) for each renamed or dropped tag (tag None), and (name, name)
        for an unknown tag that was kept. Raises RowError for broken brackets and unknown tags.
        """
        parse(tagged_text)  # refuses broken brackets
        done: Counter = Counter()

        def renamed_tag(match: re.Match) -> str:
            name = canonical(match.group(1))
            tag = self.tag_of(name)
            if tag != name or tag not in self.taxonomy.groups:
                done[name, tag] += 1
            return f"[{tag}]" if tag is not None else " "

        text = " ".join(TAG.sub(renamed_tag, tagged_text).split())
        if tally is not None:
            tally.update(done)
        return text


def describe_changes(tally: Counter) -> dict[str, int]:
    """The changes in words, most frequent first: {"[giggles] → [laughs]": 12, "[cough] dropped": 3}."""
    lines = {}
    for (name, tag), count in sorted(tally.items(), key=lambda change: (-change[1], change[0][0])):
        if tag is None:
            lines[f"[{name}] dropped"] = count
        else:
            lines[f"[{name}] kept, unknown" if tag == name else f"[{name}] → [{tag}]"] = count
    return lines
