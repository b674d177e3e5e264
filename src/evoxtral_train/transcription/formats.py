"""A transcript as text, JSON, subtitles (SRT, WebVTT) or a table (TSV).

Subtitles hold the merged text, in cues of at most two lines of 42 characters and 7 s. A cue ends at a silence, at the end of a
sentence, or where it would grow too long, best at a comma and in the middle. A tag is never cut, nor parted from its word.
"""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, zip_longest

import numpy as np

from ..text.normalize import ends_sentence
from ..text.tags import format_tags
from .transcript import LONGEST_WORD_S, Merge, Segment, Tag, Transcript, locate, tokens_of

LINE_CHARACTERS = 42
CUE_LINES = 2
LONGEST_CUE_S = 7.0
SHORTEST_CUE_S = 1.0
SILENCE_S = 0.5


@dataclass(frozen=True)
class Cue:
    """What is shown at once, on the recording's clock."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def txt(transcript: Transcript) -> str:
    """The merged text; under `merge: none`, a line of tags (if there are any), then the text."""
    tags = format_tags([tag.tag for tag in transcript.tags_filtered]) if transcript.merge == "none" else ""
    return "".join(f"{line}\n" for line in ([tags] if tags else []) + [transcript.merged])


def json_(transcript: Transcript) -> str:
    return json.dumps(transcript.as_json(), ensure_ascii=False, indent=1) + "\n"


def srt(transcript: Transcript) -> str:
    blocks = [
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n" + "".join(f"{line}\n" for line in cue.lines)
        for number, cue in enumerate(cues(transcript), start=1)
    ]
    return "\n".join(blocks)


def vtt(transcript: Transcript) -> str:
    blocks = [
        f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n"
        + "".join(f"{html.escape(line, quote=False)}\n" for line in cue.lines)
        for cue in cues(transcript)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def tsv(transcript: Transcript) -> str:
    """Like Whisper's: a header, then a row per cue with its start and end in milliseconds, and its text."""
    rows = [f"{cue.start_ms}\t{cue.end_ms}\t{' '.join(cue.lines)}\n" for cue in cues(transcript)]
    return "".join(["start\tend\ttext\n", *rows])


FORMATS = {"txt": txt, "json": json_, "srt": srt, "vtt": vtt, "tsv": tsv}


def cues(transcript: Transcript) -> list[Cue]:
    """The transcript's cues in order, without overlap. Under `merge: none` a segment's tags stand in front, too.

    A cue without a word's time shares its segment's time by the number of characters.
    """
    groups = [
        part
        for segment in transcript.segments
        for group in _groups(_units(segment, transcript.merge))
        for part in _split(group)
    ]
    made: list[Cue] = []
    shown_until_ms = 0
    for group, following in zip_longest(groups, groups[1:]):
        start_ms = max(_ms(group[0].start_s), shown_until_ms)
        free_until_ms = _ms(following[0].start_s if following else transcript.duration_s)
        end_ms = max(_ms(group[-1].end_s), min(start_ms + _ms(SHORTEST_CUE_S), free_until_ms), start_ms + 1)
        shown_until_ms = min(end_ms, start_ms + _ms(LONGEST_CUE_S))
        made.append(Cue(start_ms, shown_until_ms, _lines(group)))
    return made


@dataclass(frozen=True)
class _Unit:
    """A word with the tags before it and the marks and tags after it."""

    pieces: tuple[str, ...]
    start_s: float
    end_s: float


def _units(segment: Segment, merge: Merge) -> list[_Unit]:
    placed = segment.placed(merge)
    tokens = tokens_of(segment.text)
    located = locate(tokens, segment.words)
    time_at = {0: segment.start_s, len(segment.text): segment.end_s}  # by character
    for token, word in zip(tokens, located, strict=True):
        if word:
            time_at |= {token.start(): word.start_s, token.end(): word.end_s}
    characters = sorted(time_at)
    seconds = [*accumulate((time_at[character] for character in characters), max)]
    units: list[_Unit] = []
    done = 0
    for token, word in zip(tokens, located, strict=True):
        tags = [_bracketed(tag) for offset, tag in placed if offset <= token.start()]
        placed = placed[len(tags) :]
        if units and not tags and not any(character.isalnum() for character in token.group()):
            units[-1] = replace(units[-1], pieces=(*units[-1].pieces, token.group()))
            continue
        start_s, end_s = np.interp([token.start() if word else done, token.end()], characters, seconds).tolist()
        done = token.end()
        units.append(_Unit((*tags, token.group()), start_s, end_s))
    return _with_last_tags(units, [tag for _, tag in placed], segment)


def _with_last_tags(units: list[_Unit], tags: list[Tag], segment: Segment) -> list[_Unit]:
    """The tags after the last word join it, or stand alone when they were heard after a silence."""
    if not tags:
        return units
    pieces = tuple(_bracketed(tag) for tag in tags)
    spoken_until_s = units[-1].end_s if units else segment.start_s
    heard_s = [tag.at_s for tag in tags if tag.at_s is not None]
    start_s = max(spoken_until_s, min(heard_s) - LONGEST_WORD_S) if heard_s else spoken_until_s
    end_s = max(start_s, *heard_s) if heard_s else segment.end_s
    if units and start_s - spoken_until_s < SILENCE_S:
        return [*units[:-1], replace(units[-1], pieces=units[-1].pieces + pieces, end_s=end_s)]
    return [*units, _Unit(pieces, start_s, end_s)]


def _groups(units: Sequence[_Unit]) -> Iterator[list[_Unit]]:
    """Stretches without a silence; sentences, but for very short ones."""
    group: list[_Unit] = []
    for unit in units:
        silent = group and unit.start_s - group[-1].end_s >= SILENCE_S
        ended = group and ends_sentence(group[-1].pieces[-1]) and group[-1].end_s - group[0].start_s >= SHORTEST_CUE_S
        if silent or ended:
            yield group
            group = []
        group.append(unit)
    if group:
        yield group


def _split(group: list[_Unit]) -> list[list[_Unit]]:
    """Parts that fit into a cue each."""
    lines = _lines(group)
    fits = len(lines) <= CUE_LINES and max(map(len, lines)) <= LINE_CHARACTERS
    if len(group) == 1 or (fits and group[-1].end_s - group[0].start_s <= LONGEST_CUE_S):
        return [group]
    sizes = [*accumulate(sum(map(len, unit.pieces)) for unit in group)]

    def cost(cut: int) -> float:
        """Balanced halves, best at a comma or a short silence. A comma is worth a third of the length."""
        imbalance = abs(2 * sizes[cut - 1] / sizes[-1] - 1)
        comma = group[cut - 1].pieces[-1].endswith((",", ";", ":", "—", "–"))
        return imbalance - comma / 3 - (group[cut].start_s - group[cut - 1].end_s)

    cut = min(range(1, len(group)), key=cost)
    return _split(group[:cut]) + _split(group[cut:])


def _lines(group: Sequence[_Unit]) -> tuple[str, ...]:
    """One line, or two of about the same length."""
    pieces = [*chain.from_iterable(unit.pieces for unit in group)]
    whole = " ".join(pieces)
    if len(whole) <= LINE_CHARACTERS or len(pieces) == 1:
        return (whole,)
    halves = [(" ".join(pieces[:cut]), " ".join(pieces[cut:])) for cut in range(1, len(pieces))]
    return min(halves, key=lambda lines: max(map(len, lines)))


def _bracketed(tag: Tag) -> str:
    return format_tags([tag.tag])


def _clock(time_ms: int, decimal: str) -> str:
    minutes, ms = divmod(time_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{decimal}{ms % 1000:03}"


def _ms(time_s: float) -> int:
    return round(time_s * 1000)
