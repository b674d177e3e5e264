"""Tags and where they stand: a tag counts when it is within a tolerance of its place.

Two scales. Seconds, where the reference has events with times and the system says when it wrote
each tag; the place of a tag is its event, from start to end. Words, where only text is known; the
place of a tag is a gap between words of the reference, and a predicted tag is carried over by the
alignment that WER uses: it stands before the word of the reference that its next word was aligned with, or, where none
follows, after the one that the last word before it was aligned with.

    reference    i [sighs] told you        gap 1 of 0..3
    prediction   and i [sighs] sold        "and" is inserted; "sold" is aligned with "told", so the tag is in gap 1

Where no word of the prediction is aligned, its tags have no place and are nowhere right: tags without the words cannot score.
(Of a reference without words every place is the same.)

Tags of one name are paired one to one, the nearest first, so that as many as possible count.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..text.normalize import normalize_words
from ..text.tags import parse_leniently
from .tag_counts import TagCounts

NOWHERE = float("-inf")


@dataclass(frozen=True)
class Span:
    """A tag from `start` to `end`, in seconds or in words before it; a point has both equal."""

    tag: str
    start: float
    end: float


def distance(first: Span, second: Span) -> float:
    """0 when they touch: 1.0–2.0 against 2.5–2.5 is 0.5."""
    return max(0.0, first.start - second.end, second.start - first.end)


def pair(places: Sequence[Span], written: Sequence[Span], tolerance: float) -> list[tuple[int, int]]:
    """(place, written) indices of equal tags no further apart than `tolerance`; the most pairs that there can be."""
    options = [
        sorted(
            (index for index, span in enumerate(written) if span.tag == place.tag and distance(place, span) <= tolerance),
            key=lambda index, place=place: distance(place, written[index]),
        )
        for place in places
    ]
    taken: dict[int, int] = {}  # written -> place

    def seat(place: int, seen: set[int]) -> bool:
        for index in options[place]:
            if index not in seen:
                seen.add(index)
                if index not in taken or seat(taken[index], seen):
                    taken[index] = place
                    return True
        return False

    for place in range(len(places)):
        seat(place, set())
    return sorted((place, index) for index, place in taken.items())


def placed_counts(places: Sequence[Span], written: Sequence[Span], tolerance: float) -> TagCounts:
    """As `TagCounts.of`, but a tag away from its place is a false tag and a missed one."""
    matched = Counter(places[place].tag for place, _ in pair(places, written, tolerance))
    return TagCounts(Counter(span.tag for span in places), Counter(span.tag for span in written), matched)


def time_places(events: Sequence[dict], written: Sequence[dict]) -> tuple[list[Span], list[Span]]:
    """Both on the clip's seconds: {tag, start_s, end_s} of the reference, {tag, at_s} of the prediction."""
    places = [Span(each["tag"], each["start_s"], each["end_s"]) for each in events]
    return places, [Span(each["tag"], each["at_s"], each["at_s"]) for each in written]


def word_places(reference: str, prediction: str) -> tuple[list[Span], list[Span]]:
    """The tags of both texts on the reference's word gaps; one without a place is in gap NOWHERE."""
    (wanted_words, wanted_tags), (got_words, got_tags) = _words_and_tags(reference), _words_and_tags(prediction)
    before, after = _aligned_gaps(wanted_words, got_words)

    def gap_of(position: int) -> float:
        """`position`: how many words of the prediction stand before the tag."""
        following = next((before[word] for word in range(position, len(got_words)) if word in before), None)
        if following is not None:
            return following
        return next((after[word] for word in range(position - 1, -1, -1) if word in after), NOWHERE)

    places = [Span(tag, gap, gap) for tag, gap in wanted_tags]
    gaps = [gap_of(position) if wanted_words else 0 for _, position in got_tags]
    return places, [Span(tag, gap, gap) for (tag, _), gap in zip(got_tags, gaps, strict=True)]


def _aligned_gaps(wanted_words: list[str], got_words: list[str]) -> tuple[dict[int, int], dict[int, int]]:
    """For each word of the prediction that is aligned with one of the reference: the gap before that one, and the gap after."""
    import jiwer

    if not wanted_words or not got_words:
        return {}, {}
    [chunks] = jiwer.process_words(" ".join(wanted_words), " ".join(got_words)).alignments
    pairs = [
        (chunk.hyp_start_idx + offset, chunk.ref_start_idx + offset)
        for chunk in chunks
        if chunk.type in ("equal", "substitute")
        for offset in range(chunk.hyp_end_idx - chunk.hyp_start_idx)
    ]
    return {got: wanted for got, wanted in pairs}, {got: wanted + 1 for got, wanted in pairs}


def _words_and_tags(text: str) -> tuple[list[str], list[tuple[str, int]]]:
    """(normalised words, [(tag, words before it)])."""
    words: list[str] = []
    tags = []
    for piece in parse_leniently(text):
        if piece.kind == "tag":
            tags.append((piece.value, len(words)))
        else:
            words += normalize_words(piece.value).split()
    return words, tags
