"""Transcripts as files: a library reads the subtitles back, cues are readable and in order, the docs' example is real."""

import html
import io
import json
import re

import pytest
import webvtt
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import REPO
from evoxtral_train.transcription.formats import CUE_LINES, FORMATS, LINE_CHARACTERS, LONGEST_CUE_S, Cue, cues
from evoxtral_train.transcription.transcript import Segment, Tag, Transcript, heard_words
from test_transcript import segments

TEXT = "come back at five, our neighbor is tired."
WORDS = heard_words(list(zip(TEXT.split(), [0.56, 0.88, 1.04, 1.6, 3.52, 3.84, 4.0, 4.56], strict=True)), 0.0)
TAGS = [
    Tag("whispers", 0.91, 1.6, ends_stretch=True),
    Tag("pause", 0.84, 2.56),
    Tag("sighs", 0.22, 3.12, kept=False),
]


def talk(merge: str = "timed") -> Transcript:
    return Transcript("talk.wav", 4.81, [Segment(0.0, 4.81, TEXT, WORDS, TAGS)], merge, {"seconds": 0.41204})


def untimed(text: str, merge: str = "front", end_s: float = 20.0) -> Transcript:
    return Transcript("talk.wav", end_s, [Segment(0.0, end_s, text)], merge)


def test_the_example_in_the_docs():
    page = (REPO / "docs" / "transcription.md").read_text("utf-8")
    [example] = re.findall(r"```json\n(\{\n \"file\".*?)```", page, re.DOTALL)
    assert json.loads(example) == json.loads(FORMATS["json"](talk()))
    for merge in ("front", "timed", "none"):
        assert f"| `{merge}` | `{talk(merge).merged}`" in page


def test_what_is_not_known_is_null_and_an_adapter_is_named_if_there_are_several():
    [tag] = Transcript(None, 1.0, [Segment(0, 1, "", tags=[Tag("sad", adapter="a")])]).as_json()["tags"]
    assert tag == {"tag": "sad", "confidence": None, "at_s": None, "kept": True, "adapter": "a", "segment": 0}


def test_txt():
    assert FORMATS["txt"](talk("front")) == "[whispers] [pause] come back at five, our neighbor is tired.\n"
    assert FORMATS["txt"](talk("none")) == "[whispers] [pause]\ncome back at five, our neighbor is tired.\n"
    assert FORMATS["txt"](untimed("Hello.", "none")) == "Hello.\n"


def test_srt_and_tsv_break_at_the_silence():
    assert FORMATS["srt"](talk()) == (
        "1\n00:00:00,000 --> 00:00:01,600\n[whispers] come back at five,\n\n"
        "2\n00:00:02,520 --> 00:00:04,560\n[pause] our neighbor is tired.\n"
    )
    assert FORMATS["tsv"](talk()) == (
        "start\tend\ttext\n0\t1600\t[whispers] come back at five,\n2520\t4560\t[pause] our neighbor is tired.\n"
    )


def test_vtt_escapes_what_would_be_markup():
    transcript = untimed("R&B <i> a --> b", end_s=3.0)
    assert FORMATS["vtt"](transcript) == "WEBVTT\n\n00:00:00.000 --> 00:00:03.000\nR&amp;B &lt;i&gt; a --&gt; b\n"


def test_times_beyond_an_hour():
    words = heard_words([("late.", 36_000.5)], 35_999.0)
    transcript = Transcript(None, 36_010.0, [Segment(35_999.0, 36_010.0, "late.", words)])
    assert "09:59:59,500 --> 10:00:00,500" in FORMATS["srt"](transcript)


def test_an_empty_transcript():
    empty = Transcript("silence.wav", 2.0, [])
    assert {name: FORMATS[name](empty) for name in ("txt", "srt", "vtt", "tsv")} == {
        "txt": "\n", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n",
    }  # fmt: skip


def test_a_tag_after_the_last_word_joins_it_or_stands_alone_after_a_silence():
    def shown(at_s: float) -> list[Cue]:
        words = heard_words([("come", 0.5), ("back.", 1.5)], 0.0)
        return cues(Transcript(None, 9.0, [Segment(0, 9, "come back.", words, [Tag("clears throat", 0.9, at_s)])], "timed"))

    assert shown(2.5) == [Cue(0, 2500, ("come back. [clears throat]",))]
    assert shown(6.0) == [Cue(0, 1500, ("come back.",)), Cue(5000, 6000, ("[clears throat]",))]


def test_without_times_cues_share_the_time_of_the_segment():
    text = "It is an estimate, and a long sentence is cut at a comma, or in the middle, so that it can be read. So it is."
    assert cues(untimed(text)) == [
        Cue(0, 3303, ("It is an estimate,",)),
        Cue(3303, 6972, ("and a long sentence",)),
        Cue(6972, 10459, ("is cut at a comma,",)),
        Cue(10459, 13761, ("or in the middle,",)),
        Cue(13761, 18165, ("so that it can be read.",)),
        Cue(18165, 20000, ("So it is.",)),
    ]


def test_tags_stay_whole_and_with_their_word():
    tags = [Tag("clears throat"), Tag("frustrated"), Tag("stammers")]
    text = "neighborhoods and neighbors were talking about nothing else for the whole of that week"
    [first, *_] = cues(Transcript(None, 6.0, [Segment(0, 6, text, tags=tags)]))
    assert first.lines == ("[clears throat] [frustrated]", "[stammers] neighborhoods and")


@given(st.lists(segments(), max_size=3), st.sampled_from(["front", "timed", "none"]))
def test_cues_are_in_order_readable_and_hold_every_word(parts, merge):
    transcript = Transcript(None, 30.0, parts, merge)
    made = cues(transcript)
    shown = Transcript(None, 30.0, parts, "front" if merge == "none" else merge)
    assert " ".join(line for cue in made for line in cue.lines).split() == shown.merged.split()
    assert all(earlier.end_ms <= later.start_ms for earlier, later in zip(made, made[1:], strict=False))
    for cue in made:
        assert 0 < cue.end_ms - cue.start_ms <= LONGEST_CUE_S * 1000
        assert len(cue.lines) <= CUE_LINES


words = st.text("abcdefghij<>&-,.é7", min_size=1, max_size=12)


@given(st.lists(words, max_size=60).map(" ".join))
@example("1 00:00:01,000 --> a <b> & 7")
def test_a_library_reads_subtitles_back(text):
    made = cues(untimed(text))
    assert all(len(line) <= LINE_CHARACTERS for cue in made for line in cue.lines)
    subtitles = webvtt.from_buffer(io.StringIO(FORMATS["srt"](untimed(text))), format="srt") if made else []
    captions = webvtt.WebVTT.from_string(FORMATS["vtt"](untimed(text)))
    expected = [(cue.start_ms, cue.end_ms, "\n".join(cue.lines)) for cue in made]
    assert [(_ms(each.start), _ms(each.end), each.raw_text) for each in subtitles] == expected
    assert [(_ms(each.start), _ms(each.end), html.unescape(each.raw_text)) for each in captions] == expected


@pytest.mark.parametrize("merge", ["front", "timed", "none"])
def test_a_library_reads_back_the_tags_of_every_merge(merge):
    read = webvtt.from_buffer(io.StringIO(FORMATS["srt"](talk(merge))), format="srt")
    assert " ".join(caption.text.replace("\n", " ") for caption in read) == talk("front" if merge == "none" else merge).merged


def _ms(clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return round((int(hours) * 3600 + int(minutes) * 60 + float(seconds)) * 1000)
