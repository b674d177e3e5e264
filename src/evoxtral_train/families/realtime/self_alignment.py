"""Times for a transcript, from the words that the base model wrote while it listened.

The base writes each word when it has been heard. Its words are aligned with the transcript's by edit
distance. A word of the transcript takes the time of the word that it is aligned with; an unaligned
word lies between its neighbours.

    transcript   i  [sighs]  told  you.  [angry]  go  away.   heard   i 0.4   sold 1.3   you 1.6   go 2.0   away 2.4
    words        i 0.4   told 1.3   you. 1.6   go 2.0   away. 2.4
    events       sighs 0.4–1.3   angry 1.6–2.4

A sound or a pause lies between the word before it and the word after. Every other tag describes how
something is said. It covers the words up to the end of the sentence or to the next such tag: one word does not show a manner.
"""

from itertools import accumulate

from ...data.timing import words_of
from ...text.normalize import ends_sentence, normalize_words
from ...text.tags import parse
from ...text.taxonomy import Taxonomy
from ..base import Alignment


def align(text: str, heard: list[tuple[str, float]], duration_s: float, taxonomy: Taxonomy) -> Alignment:
    """`text`: a tagged transcript. `heard`: the base's words, each with the time in seconds at which it had been heard."""
    words, tags = [], []
    for piece in parse(text):
        if piece.kind == "tag":
            tags.append((len(words), piece.value))
        else:
            words += words_of(piece.value)
    places = [place for place, tag in tags if not taxonomy.lies_between_words(tag)]
    ends, exact = _word_ends(words, heard, duration_s)
    starts = [0.0, *ends]
    timed = [{"word": word, "start_s": start, "end_s": end} for word, start, end in zip(words, starts, ends, strict=False)]
    stops = [*ends, duration_s]
    events = []
    for place, tag in tags:
        last = place if taxonomy.lies_between_words(tag) else _last_word(words, place, places)
        events.append({"tag": tag, "start_s": starts[place], "end_s": max(starts[place], stops[last])})
    return Alignment(timed, events, exact)


def _last_word(words: list[str], place: int, places: list[int]) -> int:
    """The last word that a tag before word `place` applies to; len(words) when none follows it."""
    until = min([other for other in places if other > place], default=len(words))
    for index in range(place, until):
        if ends_sentence(words[index]):
            return index
    return max(until - 1, place)


def _word_ends(words: list[str], heard: list[tuple[str, float]], duration_s: float) -> tuple[list[float], list[bool]]:
    import jiwer

    spoken = [(token, index) for index, word in enumerate(words) for token in normalize_words(word).split()]
    listened = [(token, time) for word, time in heard for token in normalize_words(word).split()]
    known: dict[int, float] = {}
    exact = [False] * len(words)
    if spoken and listened:
        [chunks] = jiwer.process_words(
            " ".join(token for token, _ in spoken), " ".join(token for token, _ in listened)
        ).alignments
        for chunk in chunks:
            if chunk.type in ("equal", "substitute"):
                for offset in range(chunk.ref_end_idx - chunk.ref_start_idx):
                    index = spoken[chunk.ref_start_idx + offset][1]
                    known[index] = min(listened[chunk.hyp_start_idx + offset][1], duration_s)
                    exact[index] = chunk.type == "equal"
    anchors = [(-1, 0.0), *sorted(known.items()), (len(words), duration_s)]
    ends = []
    for (before, earlier), (after, later) in zip(anchors, anchors[1:], strict=False):
        gap = after - before
        ends += [earlier + (later - earlier) * step / gap for step in range(1, gap)]
        if after < len(words):
            ends.append(later)
    return [round(end, 3) for end in accumulate(ends, max)], exact
