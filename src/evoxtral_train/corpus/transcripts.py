"""Converts a source's notation for events to tags in brackets before the words.

    "so, <laughter> i don't know"       event_pattern "<(\\w+)>"         "so, [laughter] i don't know"
    "well 😂 maybe"                      replace {"😂": laughs}           "well [laughs] maybe"
    style whisper, "come closer"        leading_tag                      "[whispers] come closer"

Tags keep the source's names here; `text.taxonomy` renames them later.
"""

import re
from typing import Any

from ..config.data import Transcript
from ..errors import RowError

_EMOJI_STYLE = "\ufe0f"  # variation selector: follows some emoji and only changes their look


def tagged_transcript(text: str, columns: dict[str, Any], config: Transcript) -> str:
    """`text` with its events as tags. Raises RowError if the leading tag's column has an unmapped value."""
    text = text.replace(_EMOJI_STYLE, "")
    if config.lower_case:
        text = text.lower()
    if config.event_pattern:
        text = re.sub(config.event_pattern, lambda match: f" [{match.group(1).replace('_', ' ')}] ", text)
    symbols = {symbol.replace(_EMOJI_STYLE, ""): name for symbol, name in config.replace.items()}
    for symbol in sorted(symbols, key=len, reverse=True):
        text = text.replace(symbol, f" [{symbols[symbol]}] " if symbols[symbol] else " ")
    if config.leading_tag:
        column, tags = config.leading_tag.column, config.leading_tag.tags
        value = str(columns.get(column))
        if value not in tags:
            raise RowError(
                f"{column} {value!r} is not mapped",
                fix=f"add it to transcript.leading_tag.tags (null for no tag), which has {list(tags)}",
            )
        if tags[value]:
            text = f"[{tags[value]}] {text}"
    return " ".join(text.split())


def forbids_commercial_use(license_name: str | None) -> bool:
    """By its name: "cc-by-nc-4.0" -> True, "cc-by-4.0" -> False."""
    return bool(re.search(r"(^|[^a-z])nc([^a-z]|$)|non.?commercial", (license_name or "").lower()))
