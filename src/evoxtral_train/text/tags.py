"""Tags inside transcripts: parse, check, strip, filter.

A tagged transcript is plain text with tags in square brackets before what they describe:
`[sighs] I told you. [whispers] Come closer.` The 15 base tags are those of the
Evoxtral-Realtime model card.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count

from ..errors import RowError

EMOTION_TAGS = ("excited", "sad", "angry", "nervous", "calm", "frustrated")
SOUND_TAGS = ("laughs", "sighs", "gasps", "clears throat", "crying")
DELIVERY_TAGS = ("whispers", "shouts", "stammers")
PAUSE_TAG = "pause"

BASE_TAGS = (*EMOTION_TAGS, *SOUND_TAGS, *DELIVERY_TAGS, PAUSE_TAG)

_BRACKET = re.compile(r"[\[\]]")
TAG = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Piece:
    """A stretch of plain text, or one tag (without its brackets), in reading order."""

    kind: str  # "text" or "tag"
    value: str


def parse(tagged_text: str) -> list[Piece]:
    """Split a tagged transcript: "[sighs] Oh." -> [tag "sighs", text "Oh."].

    Raises RowError for an unclosed, unopened, nested or empty bracket.
    """
    _check_brackets(tagged_text)
    pieces: list[Piece] = []
    end = 0
    for match in TAG.finditer(tagged_text):
        text = " ".join(tagged_text[end : match.start()].split())
        if text:
            pieces.append(Piece("text", text))
        name = canonical(match.group(1))
        if not name:
            raise RowError(f"empty tag at character {match.start()}", fix="write a tag's name inside the brackets")
        pieces.append(Piece("tag", name))
        end = match.end()
    text = " ".join(tagged_text[end:].split())
    if text:
        pieces.append(Piece("text", text))
    return pieces


def find_tags(text: str) -> list[str]:
    """Every well-formed tag of a text, in order. Lenient: model output may have broken
    brackets. "[laughs] a [sig" -> ["laughs"]."""
    names = (canonical(match.group(1)) for match in TAG.finditer(text))
    return [name for name in names if name]


def parse_leniently(text: str) -> list[Piece]:
    """Like `parse`, for model output: a broken bracket is text. "[laughs] a [sig" -> [tag "laughs", text "a [sig"]."""
    pieces, end = [], 0
    for match in [*TAG.finditer(text), None]:
        stretch = " ".join(text[end : match.start() if match else len(text)].split())
        if stretch:
            pieces.append(Piece("text", stretch))
        if match:
            end = match.end()
            if name := canonical(match.group(1)):
                pieces.append(Piece("tag", name))
    return pieces


def strip_tags(text: str) -> str:
    """The words alone: "[sighs] I told you." -> "I told you."."""
    return " ".join(TAG.sub(" ", text).split())


def tag_offsets(text: str) -> list[int]:
    """For each of `find_tags`, where it stands in `strip_tags(text)`: at the start of the word after it, or at the end.
    "[sighs] oh no [pause]" -> [0, 5]."""
    words, offsets = strip_tags(text), []
    for match in TAG.finditer(text):
        if canonical(match.group(1)):
            before = len(strip_tags(text[: match.start()]))
            offsets.append(before + (0 < before < len(words)))
    return offsets


def canonical(name: str) -> str:
    """Lower case, single spaces: "Clears  Throat" -> "clears throat"."""
    return " ".join(name.lower().split())


def format_tags(tags: list[str]) -> str:
    """["sighs", "pause"] -> "[sighs] [pause]"; no tags -> ""."""
    return " ".join(f"[{tag}]" for tag in tags)


def keep_tags(text: str, kept: Collection[int]) -> str:
    """Keep only the tags whose index among all tags is in `kept`; words stay: "[sighs] oh [pause]", {1} -> "oh [pause]"."""
    places = count()

    def keep(match: re.Match) -> str:
        if not canonical(match.group(1)):  # empty brackets are not a tag
            return match.group(0)
        return match.group(0) if next(places) in kept else " "

    return " ".join(TAG.sub(keep, text).split())


def _check_brackets(text: str) -> None:
    opened_at = None
    for match in _BRACKET.finditer(text):
        if match.group() == "[":
            if opened_at is not None:
                raise RowError(f"bracket opened inside a bracket at character {match.start()}", fix="close the tag first")
            opened_at = match.start()
        elif opened_at is None:
            raise RowError(f"bracket closed but never opened at character {match.start()}", fix="remove it or open it")
        else:
            opened_at = None
    if opened_at is not None:
        raise RowError(f"unclosed bracket at character {opened_at}", fix="close the tag with ]")
