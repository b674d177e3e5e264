"""When each word and tag of a transcript has been heard, from the times in the manifest.

A word has been heard at its end. A tag of a `tags` target has been heard at the end of its event. Among
words a tag stands before what it describes, so a tag that spans words (an emotion, a delivery) is
written with the first of them, and a sound at its own end:

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
"""What is written, and the second at which it has been heard."""


def timed_target(row: ManifestRow, target: str) -> list[Timed]:
    """The pieces of the target in the order in which they are written, at times that never fall.

    Raises RowError when a word or a tag that the target needs has no time.
    """
    tags, words = [], []
    place = 0
    for piece in parse(row.text):
        if piece.kind == "tag":
            tags.append((place, piece.value))
        else:
            found = words_of(piece.value)
            words += found
            place += len(found)
    events = _spans_of(row, [tag for _, tag in tags]) if target != "text" else []
    if target == "tags":
        heard = [(f"[{tag}]", end) for (_, tag), (_, end) in zip(tags, events, strict=True)]
        return sorted(heard, key=lambda each: each[1])
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
    """Raises RowError for a word or event that ends after the clip, by more than one audio token (80 ms)."""
    for entry in (*row.words, *row.events):
        if span_of(entry)[1] > duration_s + TOKEN_S:
            what = entry.get("word") or f"[{entry['tag']}]"
            raise RowError(
                f"{shown(what)} ends at {entry['end_s']:.6g} s, but the clip at {duration_s:.2f} s",
                fix="is this the right audio, and all of it?",
            )


def words_of(text: str) -> list[str]:
    """Words with their punctuation; a mark that stands alone goes with the word before it."""
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
    return [span_of(each)[1] for each in row.words]


def _spans_of(row: ManifestRow, tags: list[str]) -> list[tuple[float, float]]:
    """The span of each tag: the k-th [laughs] of the text is the k-th of the events."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for tag, start, end in events_of(row):
        spans.setdefault(tag, []).append((start, end))
    for name in {*tags, *spans}:
        if len(spans.get(name, ())) != tags.count(name):
            raise RowError(
                f"layout aligned needs the time of every tag: [{name}] stands {tags.count(name)} times in the text, "
                f"{len(spans.get(name, ()))} times in `events`",
                fix="give each tag of the text its start_s and end_s, or use layout deferred",
            )
    ordered = {name: iter(sorted(found)) for name, found in spans.items()}
    return [next(ordered[tag]) for tag in tags]
