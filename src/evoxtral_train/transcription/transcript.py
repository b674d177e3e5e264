"""What a transcription holds, and how an adapter's tags are merged with the base's words.

Merging only inserts. Each kept tag becomes "[tag] " before a word, or " [tag]" after the last one; an empty text becomes
the tags alone. Removing what was inserted therefore gives back the base's text, character for character.

    text    come back at five, our neighbor is tired.
    front   [clears throat] [whispers] come back at five, our neighbor is tired.
    timed   [whispers] come back at five, [clears throat] our neighbor is tired.

An adapter may write the words as well. Under "written" the text is its words, and each tag stands where it wrote it.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Literal

from ..text.normalize import ends_sentence, normalize_words
from ..units import TOKEN_S

Merge = Literal["front", "timed", "written", "none"]

LONGEST_WORD_S = 1.0
# Base and adapter each hear on a grid of 80 ms, and miss by a token or two. Times that differ by less are taken for equal.
# On the demo's clips, 0.2 s puts every tag in its place by the manifest's times, and most tags with times that are off.
SLACK_S = 0.2
_TOKEN = re.compile(r"\S+")


@dataclass(frozen=True)
class Word:
    """A word of the base and its time on the recording's clock. `end_s`: when it had been heard."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Tag:
    """A tag that an adapter wrote.

    `at_s`: when it had been heard, on the recording's clock; None without times. `adapter`: its name, if there are several.
    `kept`: whether it passed the filters. `ends_stretch`: whether `at_s` is the end of the words that it describes (a manner
    of speaking in a `tags` target), not the place where it is written (a sound or a pause; every tag of `tagged_text`).
    `offset`: where it stands among the words that its adapter wrote, in characters.
    """

    tag: str
    confidence: float | None = None
    at_s: float | None = None
    adapter: str | None = None
    kept: bool = True
    ends_stretch: bool = False
    offset: int = 0

    def as_json(self) -> dict:
        content = {"tag": self.tag, "confidence": self.confidence, "at_s": _rounded(self.at_s), "kept": self.kept}
        return content | ({"adapter": self.adapter} if self.adapter is not None else {})


@dataclass(frozen=True)
class Segment:
    """At most 30 s of a recording. `text`: the base's, unchanged; under `merge: written` the adapter's words. `words`: empty if
    the base gives no times. `is_cut`: whether a row had more to write when it reached its last token."""

    start_s: float
    end_s: float
    text: str
    words: Sequence[Word] = ()
    tags: Sequence[Tag] = ()
    is_cut: bool = False

    @property
    def tags_filtered(self) -> list[Tag]:
        return [tag for tag in self.tags if tag.kept]

    def placed(self, merge: Merge) -> list[tuple[int, Tag]]:
        """(offset in the text, tag) of each kept tag, in order; in front under "front", as the published system writes it:
        "[whispers] [pause] Listen, I know"; also under "none"."""
        if merge == "timed":
            return places(self.text, self.words, self.tags)
        return [(tag.offset if merge == "written" else 0, tag) for tag in self.tags_filtered]

    def merged(self, merge: Merge) -> str:
        """The text with its kept tags; under "none", the text."""
        return self.text if merge == "none" else insert(self.text, self.placed(merge))


@dataclass(frozen=True)
class Transcript:
    """A recording's segments in order. `file`: None for an array. `timings`: seconds by name; see docs/transcription.md."""

    file: str | None
    duration_s: float
    segments: Sequence[Segment]
    merge: Merge = "front"
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The base's words: the texts of the segments, joined by a space."""
        return _joined(segment.text for segment in self.segments)

    @property
    def merged(self) -> str:
        return _joined(segment.merged(self.merge) for segment in self.segments)

    @property
    def words(self) -> list[Word]:
        return [word for segment in self.segments for word in segment.words]

    @property
    def cut_segments(self) -> int:
        """How many had more to write."""
        return sum(segment.is_cut for segment in self.segments)

    @property
    def tags(self) -> list[Tag]:
        return [tag for segment in self.segments for tag in segment.tags]

    @property
    def tags_filtered(self) -> list[Tag]:
        return [tag for segment in self.segments for tag in segment.tags_filtered]

    def as_json(self) -> dict:
        """The fields of docs/transcription.md, "Output"; null is what is not known."""
        tags = [tag.as_json() | {"segment": index} for index, segment in enumerate(self.segments) for tag in segment.tags]
        segments = [
            {
                "start_s": _rounded(segment.start_s), "end_s": _rounded(segment.end_s), "text": segment.text,
                "merged": segment.merged(self.merge), "tags": [tag.as_json() for tag in segment.tags],
            } | ({"is_cut": True} if segment.is_cut else {})
            for segment in self.segments
        ]  # fmt: skip
        return {
            "file": self.file,
            "duration_s": _rounded(self.duration_s),
            "text": self.text,
            "tags": tags,
            "tags_filtered": [tag for tag in tags if tag["kept"]],
            "merge": self.merge,
            "merged": self.merged,
            "words": [
                {"word": word.word, "start_s": _rounded(word.start_s), "end_s": _rounded(word.end_s)} for word in self.words
            ],
            "segments": segments,
            "timings": {name: _rounded(seconds) for name, seconds in self.timings.items()},
        }


def heard_words(
    heard: Sequence[tuple[str, float]], start_s: float, quiet: Sequence[tuple[float, float]] = ()
) -> list[Word]:
    """Words from the times at which they had been heard, in a segment that begins at `start_s`. `quiet`: its silences.

    A word starts where the word before it or the last silence ended, but at most LONGEST_WORD_S before its own end. A silence
    within the last token (80 ms) follows the word, whose end is known no better."""
    words, previous_s = [], start_s
    for word, end_s in heard:
        silences = (silence_end_s for _, silence_end_s in quiet if silence_end_s <= end_s - TOKEN_S)
        words.append(Word(word, max(previous_s, end_s - LONGEST_WORD_S, *silences), end_s))
        previous_s = end_s
    return words


def insert(text: str, placed: Sequence[tuple[int, Tag]]) -> str:
    """`placed`: (offset in the text, tag) in order. The only way in which tags get into a text."""
    pieces, done = [], 0
    for offset, tag in placed:
        pieces += [text[done:offset], f"[{tag.tag}] " if offset < len(text) else f" [{tag.tag}]"]
        done = offset
    merged = "".join([*pieces, text[done:]])
    return merged if text else merged.strip()


def places(text: str, words: Sequence[Word], tags: Sequence[Tag]) -> list[tuple[int, Tag]]:
    """(offset in the text, tag) of each kept tag, in writing order. Tags stand before what they describe.

    A tag stands before the first word that had not been heard at `at_s`. One that ends a stretch describes that word's
    sentence, and stands before the sentence. Without times, a tag stands in front.
    """
    tokens = tokens_of(text)
    timed = [(index, word) for index, word in enumerate(locate(tokens, words)) if word]
    ends = [*accumulate((word.end_s for _, word in timed), max)]
    placed = []
    for tag in tags:
        if not tag.kept:
            continue
        if tag.at_s is None or not timed:
            placed.append((0, tag))
            continue
        following = bisect_left(ends, tag.at_s - SLACK_S)
        if tag.ends_stretch:
            index = timed[min(following, len(timed) - 1)][0]
            while index > 0 and not ends_sentence(tokens[index - 1].group()):
                index -= 1
        else:
            index = timed[following][0] if following < len(timed) else len(tokens)
        placed.append((tokens[index].start() if index < len(tokens) else len(text), tag))
    return sorted(placed, key=lambda place: (place[0], place[1].at_s or 0.0))


def tokens_of(text: str) -> list[re.Match]:
    """What spaces separate, with its place in the text."""
    return [*_TOKEN.finditer(text)]


def locate(tokens: Sequence[re.Match], words: Sequence[Word]) -> list[Word | None]:
    """The word that each token of the text is; None for a token that the words lack. Case and punctuation do not matter."""
    keys = [_key(token.group()) for token in tokens]
    located: list[Word | None] = [None] * len(keys)
    matcher = SequenceMatcher(None, keys, [_key(word.word) for word in words], autojunk=False)
    for at, first, count in matcher.get_matching_blocks():
        located[at : at + count] = words[first : first + count]
    return located


def _key(word: str) -> str:
    return normalize_words(word) or word


def _joined(texts: Iterable[str]) -> str:
    return " ".join(text for text in texts if text)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
