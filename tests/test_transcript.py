"""Merging: the base's words never change, and each tag stands where it was heard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import REPO, rows_of
from evoxtral_train.text.tags import strip_tags
from evoxtral_train.text.taxonomy import Taxonomy
from evoxtral_train.transcription.transcript import (
    Segment,
    Tag,
    Transcript,
    Word,
    heard_words,
    insert,
    locate,
    places,
    tokens_of,
)  # fmt: skip

TEXT = "come back at five, our neighbor is tired. they left."
ENDS_S = [0.55, 0.84, 1.02, 1.55, 3.49, 3.84, 3.98, 4.52, 5.0, 5.4]
WORDS = heard_words(list(zip(TEXT.split(), ENDS_S, strict=True)), 0.0)


def merge_front(text: str, tags: list[Tag]) -> str:
    return Segment(0.0, 30.0, text, tags=tags).merged("front")


def merge_timed(text: str, words: list[Word], tags: list[Tag]) -> str:
    return Segment(0.0, 30.0, text, words, tags).merged("timed")


def sound(tag: str, at_s: float | None) -> Tag:
    return Tag(tag, 0.9, at_s)


def manner(tag: str, at_s: float) -> Tag:
    return Tag(tag, 0.9, at_s, ends_stretch=True)


def test_front_is_the_published_form():
    tags = [Tag("whispers"), Tag("calm", kept=False), Tag("pause")]
    assert merge_front("Listen, I know you're in a meeting", tags) == "[whispers] [pause] Listen, I know you're in a meeting"


@pytest.mark.parametrize(
    ("tag", "merged"),
    [
        (sound("sighs", 0.2), "[sighs] come back at five, our neighbor is tired. they left."),
        (sound("pause", 2.57), "come back at five, [pause] our neighbor is tired. they left."),
        (sound("laughs", 6.2), "come back at five, our neighbor is tired. they left. [laughs]"),
        (sound("gasps", None), "[gasps] come back at five, our neighbor is tired. they left."),
        (manner("angry", 1.55), "[angry] come back at five, our neighbor is tired. they left."),
        (manner("angry", 4.56), "[angry] come back at five, our neighbor is tired. they left."),
        (manner("stammers", 4.9), "come back at five, our neighbor is tired. [stammers] they left."),
        (manner("angry", 9.0), "come back at five, our neighbor is tired. [angry] they left."),
        # of a `tagged_text` target: at the end of the first word that it describes
        (Tag("whispers", 0.9, 3.52), "come back at five, [whispers] our neighbor is tired. they left."),
    ],
)
def test_a_timed_tag_stands_before_what_it_describes(tag, merged):
    assert merge_timed(TEXT, WORDS, [tag]) == merged


def test_tags_at_one_place_are_in_the_order_of_their_times():
    tags = [manner("angry", 4.5), sound("sighs", 0.2), manner("calm", 5.4), Tag("pause", 0.5, 2.5, kept=False)]
    assert merge_timed(TEXT, WORDS, tags) == (
        "[sighs] [angry] come back at five, our neighbor is tired. [calm] they left."
    )  # fmt: skip


def test_without_words_or_text_a_tag_stands_in_front():
    assert merge_timed("come back.", [], [sound("sighs", 3.0)]) == "[sighs] come back."
    assert merge_timed("", [], [sound("sighs", 3.0), sound("laughs", 4.0)]) == "[sighs] [laughs]"
    assert merge_timed("", [], []) == ""


def test_words_are_found_where_the_text_differs_from_them():
    words = [Word("Come", 0, 0.5), Word("uh", 0.5, 0.7), Word("back", 0.7, 1.0), Word("home", 3.0, 3.4)]
    located = locate(tokens_of("come  back — to\nHome!"), words)
    assert [word.word if word else None for word in located] == ["Come", "back", None, None, "home"]
    assert merge_timed("come  back — to\nHome!", words, [sound("sighs", 2.5)]) == "come  back — to\n[sighs] Home!"


def test_a_word_starts_at_most_a_second_before_it_was_heard():
    words = heard_words([("i", 10.4), ("know", 10.8), ("you", 14.0)], 10.0)
    assert words == [Word("i", 10.0, 10.4), Word("know", 10.4, 10.8), Word("you", 13.0, 14.0)]


def test_a_word_starts_after_the_silence_before_it():
    quiet = [(10.0, 10.2), (10.6, 10.75), (11.0, 11.5), (13.5, 13.95)]
    words = heard_words([("i", 10.4), ("know", 10.8), ("you", 11.9), ("do", 14.0)], 10.0, quiet)
    # the silence until 10.75 lies within 80 ms of the end of "know", and the last one of "do": they follow these words
    assert words == [Word("i", 10.2, 10.4), Word("know", 10.4, 10.8), Word("you", 11.5, 11.9), Word("do", 13.0, 14.0)]


texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["come", "[sighs]", "back.", "[", "] ", "\u3000", "né", " ", "\n", "—"]), max_size=12).map(" ".join),
)
seconds = st.floats(0, 30)
tags = st.lists(
    st.builds(
        Tag, st.sampled_from(["sighs", "clears throat", "angry"]), st.just(0.5), st.none() | seconds,
        kept=st.booleans(), ends_stretch=st.booleans(),
    ),
    max_size=4,
)  # fmt: skip


@st.composite
def segments(draw) -> Segment:
    text = draw(texts)
    heard = [(word, draw(seconds)) for word in text.split() if draw(st.booleans())]
    return Segment(0.0, 30.0, text, heard_words(heard, 0.0), draw(tags))


def without_tags(merged: str, placed: list[tuple[int, Tag]], length: int) -> str:
    """`merged` without what `insert` put in; `length`: the text's."""
    for offset, tag in placed:  # what was inserted before this place is gone
        piece = f"[{tag.tag}] " if offset < length else f" [{tag.tag}]"
        assert merged[offset:].startswith(piece if length else piece.strip())
        merged = merged[:offset] + merged[offset + len(piece) :]
    return merged


@given(segments())
def test_merged_without_its_tags_is_the_text_character_for_character(segment):
    front = [(0, tag) for tag in segment.tags_filtered]
    timed = places(segment.text, segment.words, segment.tags)
    assert sorted(map(id, segment.tags_filtered)) == sorted(id(tag) for _, tag in timed)
    for merge, placed in (("front", front), ("timed", timed)):
        merged = segment.merged(merge)
        assert merged == insert(segment.text, placed)
        assert without_tags(merged, placed, len(segment.text)) == segment.text
    assert segment.merged("none") == segment.text


@given(st.lists(st.sampled_from(["", "come back.", "go on"]), max_size=4), st.data())
def test_a_recording_is_the_text_of_its_segments(texts, data):
    parts = [Segment(0.0, 30.0, text, heard_words([(w, 1.0) for w in text.split()], 0.0), data.draw(tags)) for text in texts]
    for merge in ("front", "timed"):
        transcript = Transcript("talk.wav", 90.0, parts, merge)
        assert transcript.text == " ".join(text for text in texts if text)
        assert strip_tags(transcript.merged) == transcript.text


def test_front_puts_the_tags_of_each_segment_before_its_text():
    parts = [Segment(0, 20, "one.", tags=[Tag("sighs")]), Segment(20, 30, "", tags=[Tag("pause")]), Segment(30, 40, "two.")]
    assert Transcript(None, 40, parts).merged == "[sighs] one. [pause] two."
    assert Transcript(None, 40, parts, merge="none").merged == "one. two."


@pytest.mark.parametrize("target", ["tags", "tagged_text"])
def test_every_tag_of_a_spoken_clip_finds_its_gap(spoken, target):
    """By the manifest's own times, on the decoder's grid of 80 ms."""
    taxonomy = Taxonomy.load(REPO / "data" / "tags.yaml")
    rows = [row for row in rows_of(spoken) if row["events"]]
    right = 0
    for row in rows:
        words = heard_words([(word["word"], _heard_s(word["end_s"])) for word in row["words"]], 0.0)
        ends_s = [word["end_s"] for word in row["words"]]
        tags = []
        for event in row["events"]:
            stretch = target == "tags" and not taxonomy.lies_between_words(event["tag"])
            spoken_s = [end_s for end_s in ends_s if end_s > event["start_s"]] if target == "tagged_text" else []
            tags.append(Tag(event["tag"], None, _heard_s(min([event["end_s"], *spoken_s[:1]])), ends_stretch=stretch))
        right += merge_timed(strip_tags(row["text"]), words, tags) == row["text"]
    assert len(rows) >= 20
    assert right >= 0.95 * len(rows)


def _heard_s(time_s: float) -> float:
    return -(-round(time_s * 1000) // 80) * 0.08
