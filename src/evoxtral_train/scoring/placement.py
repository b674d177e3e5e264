"""Scores the position of tags: a tag counts if it is within a tolerance of its place.

Positions are measured in one of two units:

- Seconds, if the reference has timed events and the system reports when it wrote each tag. A tag's place is its event, from
  start to end.
- Words, if only text is known. A tag's place is a gap between words of the reference. The WER alignment maps a predicted tag to
  such a gap: before the reference word that its next word is aligned with, or, if none follows, after the reference word that the
  last word before it is aligned with.

    reference    i [sighs] told you        gap 1 of 0..3
    prediction   and i [sighs] sold        "and" is inserted; "sold" is aligned with "told", so the tag is in gap 1

If no word of the prediction is aligned, its tags have no place and never match. (If the reference has no words, there is only one
place.) Tags of one name are paired one to one, nearest first, so that as many as possible match.
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
    """A tag from `start` to `end`, in seconds or in number of words before it. For a point both are equal."""

    tag: str
    start: float
    end: float


def distance(first: Span, second: Span) -> float:
    """0 if they overlap or touch; 1.0–2.0 and 2.5–2.5 are 0.5 apart."""
    return max(0.0, first.start - second.end, second.start - first.end)


def pair(places: Sequence[Span], written: Sequence[Span], tolerance: float) -> list[tuple[int, int]]:
    """A maximum matching of equal tags at most `tolerance` apart, as (place, written) indices."""
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
    """Like `TagCounts.of`, but a misplaced tag counts as a false tag and a missed one."""
    matched = Counter(places[place].tag for place, _ in pair(places, written, tolerance))
    return TagCounts(Counter(span.tag for span in places), Counter(span.tag for span in written), matched)


def time_places(events: Sequence[dict], written: Sequence[dict]) -> tuple[list[Span], list[Span]]:
    """Both in seconds of the clip: {tag, start_s, end_s} of the reference, {tag, at_s} of the prediction."""
    places = [Span(event["tag"], event["start_s"], event["end_s"]) for event in events]
    return places, [Span(tag["tag"], tag["at_s"], tag["at_s"]) for tag in written]


def word_places(reference: str, prediction: str) -> tuple[list[Span], list[Span]]:
    """The tags of both texts, placed in the reference's word gaps; a tag without a place is in gap NOWHERE."""
    (reference_words, reference_tags), (words, tags) = _words_and_tags(reference), _words_and_tags(prediction)
    before, after = _aligned_gaps(reference_words, words)

    def gap_of(position: int) -> float:
        """`position`: the number of predicted words before the tag."""
        following = next((before[word] for word in range(position, len(words)) if word in before), None)
        if following is not None:
            return following
        return next((after[word] for word in range(position - 1, -1, -1) if word in after), NOWHERE)

    places = [Span(tag, gap, gap) for tag, gap in reference_tags]
    gaps = [gap_of(position) if reference_words else 0 for _, position in tags]
    return places, [Span(tag, gap, gap) for (tag, _), gap in zip(tags, gaps, strict=True)]


def _aligned_gaps(reference_words: list[str], words: list[str]) -> tuple[dict[int, int], dict[int, int]]:
    """For each predicted word that is aligned with a reference word: the gap before that word, and the gap after it."""
    import jiwer

    if not reference_words or not words:
        return {}, {}
    [chunks] = jiwer.process_words(" ".join(reference_words), " ".join(words)).alignments
    pairs = [
        (chunk.hyp_start_idx + offset, chunk.ref_start_idx + offset)
        for chunk in chunks
        if chunk.type in ("equal", "substitute")
        for offset in range(chunk.hyp_end_idx - chunk.hyp_start_idx)
    ]
    return dict(pairs), {word: reference_word + 1 for word, reference_word in pairs}


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
