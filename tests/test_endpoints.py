"""Utterances of a stream: they begin and end where they should, whatever the chunks, and no sound is lost."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evoxtral_train.config.transcription import Segmentation
from evoxtral_train.data.audio import read_audio
from evoxtral_train.data.endpoints import Ended, Endpointer, Sounded, Started
from evoxtral_train.data.segments import segments_of

RATE_HZ = 16_000


def tone(seconds: float, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def noise(seconds: float, amplitude: float, seed: int = 0) -> np.ndarray:
    return (amplitude * np.random.default_rng(seed).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def endpointer(patience_s: float = 2.0, **named) -> Endpointer:
    return Endpointer(Segmentation(**named), patience_s)


def heard(ear: Endpointer, samples: np.ndarray, chunk: int = 1280) -> list:
    return [event for start in range(0, len(samples), chunk) for event in ear.hear(samples[start : start + chunk])]


def bounds(events: list) -> list:
    return [event for event in events if not isinstance(event, Sounded)]


def utterances(samples: np.ndarray, chunk: int = 1280, **named) -> list[tuple[int, int, str]]:
    """(start, end, reason) of a stream that is committed at its end; they alternate and do not overlap."""
    ear = endpointer(**named)
    events = bounds(heard(ear, samples, chunk)) + ear.commit()
    starts, ends = events[::2], events[1::2]
    assert all(isinstance(each, Started) for each in starts)
    assert all(isinstance(each, Ended) for each in ends)
    spans = [(start.at_samples, end.at_samples, end.reason) for start, end in zip(starts, ends, strict=True)]
    flat = [at for start, end, _ in spans for at in (start, end)]
    assert flat == sorted(flat)
    assert all(start < end and type(start) is type(end) is int for start, end, _ in spans)
    return spans


def spans_s(samples: np.ndarray, **named) -> list[tuple[float, float, str]]:
    return [(start / RATE_HZ, end / RATE_HZ, reason) for start, end, reason in utterances(samples, **named)]


def test_each_event_comes_with_the_frame_that_tells_it():
    ear = endpointer()
    assert heard(ear, silence(3), 320) == []
    first, *sounded = heard(ear, tone(1), 320)
    assert first == Started(43_200)  # 3.0 s - 0.3 s
    assert sounded == [Sounded(at) for at in range(48_320, 64_001, 320)]
    assert ear.is_open
    assert heard(ear, silence(1.96), 320) == []
    assert ear.hear(silence(0.02)) == [Ended(68_800, "silence")]  # 4.0 s + 0.3 s
    assert not ear.is_open
    assert heard(ear, silence(60), 320) == []
    assert ear.commit() == []


def test_one_chunk_may_tell_everything():
    ear = endpointer()
    samples = np.concatenate([tone(1), silence(2), tone(1), silence(2), tone(1)])
    assert ear.hear(samples) == [
        Started(0), Ended(20_800, "silence"), Started(43_200), Ended(68_800, "silence"), Started(91_200), Sounded(112_000)
    ]  # fmt: skip
    assert ear.commit() == [Ended(112_000, "commit")]


def test_the_first_utterance_begins_with_the_stream_if_its_sound_comes_within_the_patience():
    assert spans_s(np.concatenate([silence(1.9), tone(1)])) == [(0.0, 2.9, "commit")]
    assert spans_s(np.concatenate([silence(2.1), tone(1)])) == [(1.8, 3.1, "commit")]


def test_margins_never_overlap():
    samples = np.concatenate([tone(1), silence(1.0), tone(1), silence(1.0), tone(1)])
    assert spans_s(samples, patience_s=0.8, margin_s=1.0) == [
        (0.0, 1.38, "silence"),
        (1.62, 3.38, "silence"),
        (3.62, 5.0, "commit"),
    ]


@pytest.mark.parametrize("gap_s", [2.0, 2.5])
@pytest.mark.parametrize("offset", [0, 1, 160, 319])
def test_a_silence_as_long_as_the_patience_ends_an_utterance_wherever_it_begins(gap_s, offset):
    samples = np.concatenate([silence(offset / RATE_HZ), tone(1), silence(gap_s), tone(1)])
    assert len(utterances(samples)) == 2


def test_a_pause_does_not():
    assert spans_s(np.concatenate([tone(1), silence(1.9), tone(1)])) == [(0.0, 3.9, "commit")]


@pytest.mark.parametrize("samples", [silence(0.0), silence(0.01), silence(40), noise(40, 0.0005), noise(40, 0.001)])
def test_silence_has_no_utterance(samples):
    assert utterances(samples) == []


def test_ten_minutes_of_silence_take_no_memory():
    ear, minute = endpointer(), silence(60)
    assert heard(ear, minute, 8000) == []
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(9):
        assert heard(ear, minute, 8000) == []
    assert tracemalloc.get_traced_memory()[0] - before < 10_000
    tracemalloc.stop()


@pytest.mark.parametrize("samples", [tone(60), noise(60, 0.1)], ids=["tone", "noise"])
def test_twenty_minutes_of_sound_are_cut_into_pieces_that_follow_each_other(samples):
    spans = utterances(np.tile(samples, 20), chunk=16_000)
    assert [reason for *_, reason in spans] == ["length"] * (len(spans) - 1) + ["commit"]
    assert [start for start, *_ in spans] == [0] + [end for _, end, _ in spans[:-1]]
    assert spans[-1][1] == 1200 * RATE_HZ
    assert all(29 * RATE_HZ <= end - start <= 30 * RATE_HZ for start, end, _ in spans[:-1])


def test_as_long_as_max_s_is_not_cut_and_one_sample_more_is():
    assert spans_s(tone(30)) == [(0.0, 30.0, "commit")]
    assert len(utterances(np.append(tone(30), tone(0.01)[1]))) == 2
    assert utterances(tone(7.01), max_s=7.01) == [(0, 112_160, "commit")]


def test_a_long_utterance_is_cut_in_the_first_late_silence_that_is_no_pause():
    #                          0        15   15.5     20.5  21.5    23    23.12      24.12  24.52
    parts = [tone(15), silence(0.5), tone(5), silence(1.0), tone(1.5), silence(0.12), tone(1), silence(0.4), tone(3)]
    assert spans_s(np.concatenate(parts)) == [(0.0, 24.32, "length"), (24.32, 27.52, "commit")]


def test_a_cut_at_the_longest_leaves_the_beginning_of_a_pause_to_what_follows():
    before = np.concatenate([tone(29), silence(1.5)])
    assert spans_s(np.concatenate([before, tone(2)])) == [(0.0, 29.1, "length"), (29.1, 32.5, "commit")]
    assert spans_s(np.concatenate([before, silence(1), tone(2)])) == [(0.0, 29.1, "length"), (31.2, 33.5, "commit")]
    assert spans_s(before) == [(0.0, 29.1, "length")]


def test_without_a_silence_the_cut_is_where_the_last_second_was_quietest():
    samples = tone(40)
    samples[int(29.4 * RATE_HZ) : int(29.42 * RATE_HZ)] *= 0.5
    samples[int(20.4 * RATE_HZ) : int(20.42 * RATE_HZ)] *= 0.2
    assert spans_s(samples) == [(0.0, 29.4, "length"), (29.4, 40.0, "commit")]


def test_a_commit_ends_the_utterance_at_the_sample_and_begins_a_new_stream():
    ear = endpointer()
    ear.hear(tone(1.2345))
    assert ear.commit() == [Ended(19_752, "commit")]
    assert not ear.is_open
    assert ear.commit() == []
    assert ear.hear(silence(1.5)) == []
    assert ear.hear(tone(0.02)) == [Started(19_752), Sounded(19_752 + 24_320)]
    assert ear.commit() == [Ended(19_752 + 24_320, "commit")]


def test_a_commit_hears_the_samples_that_fill_no_frame():
    ear = endpointer()
    assert ear.hear(tone(0.01)) == []
    assert ear.commit() == [Started(0), Ended(160, "commit")]
    assert ear.hear(silence(3)) + ear.hear(tone(0.01)) == []
    assert ear.commit() == [Started(160 + 48_000 - 4800), Ended(48_320, "commit")]


def test_a_commit_in_silence_says_nothing():
    ear = endpointer()
    assert bounds(ear.hear(np.concatenate([tone(1), silence(3)]))) == [Started(0), Ended(20_800, "silence")]
    assert ear.commit() == []


@pytest.mark.parametrize("chunk", [160, 1280, 16_000])
def test_works_in_hum_in_noise_and_with_an_offset(chunk):
    clean = np.concatenate([silence(3), tone(2), silence(3), tone(2), silence(3)])
    hum = 0.03 * np.sin(2 * np.pi * 50 * np.arange(len(clean)) / RATE_HZ).astype(np.float32)
    for background in (hum, noise(13, 0.001), np.float32(0.1)):
        assert utterances(clean + background, chunk) == [(43_200, 84_800, "silence"), (123_200, 164_800, "silence")]


def test_loud_noise_is_sound_until_something_rises_out_of_it():
    clean = np.concatenate([silence(3), tone(2), silence(4), tone(2), silence(3)])
    assert spans_s(clean + noise(14, 0.02)) == [(0.0, 5.3, "silence"), (8.7, 11.3, "silence")]


def test_a_stream_that_begins_loud_hears_what_is_20_db_quieter():
    voice = np.concatenate([tone(2), silence(3)] * 3)
    samples = np.concatenate([voice, voice * np.float32(0.1)])
    assert spans_s(samples) == [(max(5.0 * i - 0.3, 0.0), 5.0 * i + 2.3, "silence") for i in range(6)]


@pytest.mark.parametrize("gap_s", [2.0, 5.0])
def test_faint_noise_after_digital_silence_is_silence(gap_s):
    """A second of it is needed to know: until then it may begin an utterance, but it does not keep one open."""
    between = noise(gap_s, 0.001)
    samples = np.concatenate([silence(2.5), tone(1), silence(0.5), tone(1), between, tone(1), between])
    assert [reason for *_, reason in utterances(samples)] == ["silence", "silence"]
    ((opened, ended, _),) = utterances(np.concatenate([silence(10), noise(20, 0.001)]))
    assert (opened, ended) == (155_200, 163_840)


def test_a_faint_sound_that_is_not_steady_is_heard():
    swell = noise(1, 1.0) * np.float32(0.001) * np.sin(np.linspace(0, np.pi, RATE_HZ, dtype=np.float32))
    samples = np.concatenate([silence(3), np.tile(swell, 4), silence(3)])
    ((start, end, _),) = utterances(samples)
    assert start <= 3 * RATE_HZ and end >= 7 * RATE_HZ


PARTS = st.lists(st.tuples(st.floats(0.05, 9.0), st.sampled_from([0.0, 0.3])), min_size=1, max_size=8)


@given(parts=PARTS, chunk=st.integers(300, 40_000), max_s=st.sampled_from([8.0, 30.0]), background=st.sampled_from([0, 0.002]))
@settings(max_examples=25, deadline=None)
def test_invariants(parts, chunk, max_s, background):
    clean = np.concatenate([tone(seconds, amplitude) for seconds, amplitude in parts])
    samples = clean + noise(len(clean) / RATE_HZ, background)[: len(clean)]
    spans = utterances(samples, chunk, max_s=max_s)
    assert spans == utterances(samples, len(samples), max_s=max_s)
    assert all(end - start <= max_s * RATE_HZ for start, end, _ in spans)
    if not background:
        for start, end, _ in spans:
            clean[start:end] = 0
        assert not clean.any()


SHORT = st.lists(st.tuples(st.integers(5, 150), st.integers(1, 98) | st.integers(100, 200)), min_size=1, max_size=4)


@given(parts=SHORT, lead=st.integers(0, 98) | st.integers(100, 200), trail=st.integers(0, 319))
@settings(max_examples=25, deadline=None)
def test_equals_the_segments_of_a_short_recording(parts, lead, trail):
    """Up to 20 s, frame by frame."""
    samples = [silence(lead / 50)] + [part for sound, quiet in parts for part in (tone(sound / 50), silence(quiet / 50))]
    samples = np.concatenate([*samples, silence(trail / RATE_HZ)])[: 20 * RATE_HZ]
    expected = [(each.start_samples, each.end_samples) for each in segments_of([samples], Segmentation())]
    assert [(start, end) for start, end, _ in utterances(samples, 3000)] == expected


@pytest.mark.parametrize("between", [silence(2), noise(2, 0.001)], ids=["digital", "-60 dBFS"])
@pytest.mark.parametrize("scale", [1.0, 0.03])
def test_clips_of_the_demo_corpus_joined_by_two_seconds_of_quiet(spoken, between, scale):
    """Each is one utterance, which holds all its words and events; alone, it is whole."""
    if scale < 1 and between.any():
        pytest.skip("the noise would be as loud as the voice")
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()]
    parts, expected, length = [], [], 0
    for row in rows:
        samples = read_audio(spoken / row["audio"], 60) * np.float32(scale)
        assert utterances(samples, 777) == [(0, len(samples), "commit")]
        timed = row["words"] + (row.get("events") or [])
        expected.append(
            [length + at * RATE_HZ for at in (min(each["start_s"] for each in timed), max(each["end_s"] for each in timed))]
        )
        parts += [samples, between]
        length += len(samples) + len(between)
    spans = utterances(np.concatenate(parts))
    assert len(spans) == len(rows)
    assert all(start <= first and last <= end + 16 for (start, end, _), (first, last) in zip(spans, expected, strict=True))
