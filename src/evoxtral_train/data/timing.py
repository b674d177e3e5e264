"""When each word and tag of a transcript has been heard, from the times in the manifest.

A word has been heard at its end. In a `tags` target, a tag has been heard at the end of its event. In a
`tagged_text` target a tag goes before what it describes: a tag that spans words (an emotion, a delivery)
is written with the first of them, and a sound at its own end:

    text    [whispers] come closer. [laughs]       words    come 0.2–0.5  closer 0.5–1.0
    events  whispers 0.2–1.0  laughs 1.2–1.9
    tags          whispers at 1.0, laughs at 1.9
    tagged_text   whispers at 0.5, come at 0.5, closer. at 1.0, laughs at 1.9
"""

from itertools import accumulate

from ..errors import RowError
from ..reading import shown
from ..text.tags import canonical, parse
from ..units import TOKEN_S
from .manifest import ManifestRow, span_of

Timed = tuple[str, float]
"""A word or tag, and the time in seconds at which it has been heard."""


def timed_target(row: ManifestRow, target: str) -> list[Timed]:
    """The words and tags of the target in writing order, with non-decreasing times.

    Raises RowError if a word or tag of the target has no time.
    """
    tags, words = [], []
    place = 0
    for piece in parse(row.text):
        if piece.kind == "tag":
            tags.append((place, piece.value))
        else:
            piece_words = words_of(piece.value)
            words += piece_words
            place += len(piece_words)
    events = _spans_of(row, [tag for _, tag in tags]) if target != "text" else []
    if target == "tags":
        heard = [(f"[{tag}]", end) for (_, tag), (_, end) in zip(tags, events, strict=True)]
        return sorted(heard, key=lambda timed: timed[1])
    ends = _word_ends(row, words)
    timed: list[Timed] = []
    tagged = iter([(at, tag, event) for (at, tag), event in zip(tags, events, strict=target == "tagged_text")])
    upcoming = next(tagged, None)
    for index in range(len(words) + 1):
        while upcoming and upcoming[0] == index:
            _, tag, (start, end) = upcoming
            spoken = [word_end for word_end in ends if word_end > start]
            timed.append((f"[{tag}]", min([end, *spoken[:1]])))
            upcoming = next(tagged, None)
        if index < len(words):
            timed.append((words[index], ends[index]))
    times = accumulate((time for _, time in timed), max)
    return [(text, time) for (text, _), time in zip(timed, times, strict=True)]


def events_of(row: ManifestRow) -> list[tuple[str, float, float]]:
    """(tag, start_s, end_s) of the row's events."""
    return [(canonical(event["tag"]), *span_of(event)) for event in row.events]


def check_ends(row: ManifestRow, duration_s: float) -> None:
    """Raises RowError for a word or event that ends more than one audio token (80 ms) after the clip."""
    for entry in (*row.words, *row.events):
        if span_of(entry)[1] > duration_s + TOKEN_S:
            what = entry.get("word") or f"[{entry['tag']}]"
            raise RowError(
                f"{shown(what)} ends at {entry['end_s']:.6g} s, but the clip ends at {duration_s:.2f} s",
                fix="check that this is the right audio, and complete",
            )


def words_of(text: str) -> list[str]:
    """Words with their punctuation; a free-standing mark joins the word before it."""
    words: list[str] = []
    for word in text.split():
        if any(letter.isalnum() for letter in word) or not words:
            words.append(word)
        else:
            words[-1] += f" {word}"
    return words


def _word_ends(row: ManifestRow, words: list[str]) -> list[float]:
    if len(row.words) != len(words):
        raise RowError(
            f"layout aligned needs the time of every word: the text has {len(words)}, `words` has {len(row.words)}",
            fix="give each word of the text its start_s and end_s, or use layout deferred",
        )
    return [span_of(word)[1] for word in row.words]


def _spans_of(row: ManifestRow, tags: list[str]) -> list[tuple[float, float]]:
    """The span of each tag: the k-th [laughs] of the text is the k-th of the events."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for tag, start, end in events_of(row):
        spans.setdefault(tag, []).append((start, end))
    for name in {*tags, *spans}:
        if len(spans.get(name, ())) != tags.count(name):
            raise RowError(
                f"layout aligned needs the time of every tag: the text has [{name}] {tags.count(name)} times, "
                f"`events` {len(spans.get(name, ()))} times",
                fix="give each tag of the text its start_s and end_s, or use layout deferred",
            )
    ordered = {name: iter(sorted(tag_spans)) for name, tag_spans in spans.items()}
    return [next(ordered[tag]) for tag in tags]
