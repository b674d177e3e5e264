"""Long recordings: every sound lies in a segment, cuts stand in silences, and a short clip stays as it is."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evoxtral_train.config.transcription import Segmentation
from evoxtral_train.data.audio import read_audio
from evoxtral_train.data.segments import segments_of

RATE_HZ = 16_000


def tone(seconds: float, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def noise(seconds: float, amplitude: float) -> np.ndarray:
    return (amplitude * np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


def spoken_and_silent(*seconds: float) -> np.ndarray:
    """A tone, a silence, a tone …"""
    return np.concatenate([silence(each) if index % 2 else tone(each) for index, each in enumerate(seconds)])


def cut(samples: np.ndarray, **named) -> list:
    return list(segments_of([samples], Segmentation(**named)))


def spans_s(samples: np.ndarray, **named) -> list[tuple[float, float]]:
    found = [(segment.start_samples / RATE_HZ, segment.end_samples / RATE_HZ) for segment in cut(samples, **named)]
    return [(round(start_s, 2), round(end_s, 2)) for start_s, end_s in found]


def test_two_utterances_with_margins():
    samples = np.concatenate([silence(3), tone(2), silence(2), tone(1), silence(3)])
    assert spans_s(samples) == [(2.7, 5.3), (6.7, 8.3)]
    assert spans_s(samples, margin_s=0.0) == [(3.0, 5.0), (7.0, 8.0)]
    assert spans_s(samples, patience_s=2.5) == [(2.7, 8.3)]


def test_a_short_recording_is_one_segment_sample_for_sample():
    samples = np.concatenate([silence(1.9), tone(2), silence(1.9), tone(22.21), silence(1.9)])
    (segment,) = cut(samples)
    assert segment.start_samples == 0
    assert segment.samples.dtype == np.float32
    assert np.array_equal(segment.samples, samples)
    assert segment.quiet == ((0.0, 1.9), (3.9, 5.8), (28.02, len(samples) / RATE_HZ))


@pytest.mark.parametrize("samples", [silence(0.0), silence(0.01), silence(100), noise(60, 0.0005)])
def test_silence_has_no_segment(samples):
    assert cut(samples) == []


def test_a_long_utterance_is_cut_in_its_longest_silence_that_is_no_pause():
    #                          8    9.2  19.2  19.7 25.7 26  31   32  42
    samples = spoken_and_silent(8, 1.2, 10, 0.5, 6, 0.3, 5, 1.0, 10)
    assert spans_s(samples) == [(0.0, 19.44), (19.44, 42.0)]
    first, second = cut(samples)
    assert first.quiet == ((8.0, 9.2), (19.2, 19.44))
    assert second.quiet == ((19.44, 19.7), (25.7, 26.0), (31.0, 32.0))
    assert np.array_equal(np.concatenate([first.samples, second.samples]), samples)


def test_no_cut_inside_a_pause_even_where_every_silence_is_one():
    ends = [end for _, end in spans_s(spoken_and_silent(*[4, 1.2] * 9, 4))[:-1]]
    assert ends and all(end % 5.2 <= 4.0 for end in ends), ends


@pytest.mark.parametrize("samples", [tone(100), noise(100, 0.1)])
def test_sound_without_any_pause_is_cut_and_nothing_is_lost(samples):
    segments = cut(samples)
    assert all(5 <= len(segment.samples) / RATE_HZ <= 30 for segment in segments)
    assert np.array_equal(np.concatenate([segment.samples for segment in segments]), samples)


def test_works_in_hum_in_noise_and_with_an_offset():
    clean = np.concatenate([silence(3), tone(2), silence(3), tone(2), silence(3)])
    hum = 0.03 * np.sin(2 * np.pi * 50 * np.arange(len(clean)) / RATE_HZ).astype(np.float32)
    for background in (hum, noise(13, 0.02), np.float32(0.1)):
        assert spans_s(clean + background) == [(2.7, 5.3), (7.7, 10.3)]


def test_a_recording_that_becomes_30_db_quieter_loses_nothing():
    voice = np.concatenate([tone(2), silence(3)] * 6)
    assert spans_s(np.concatenate([voice, voice * 10**-1.5])) == [(5.0 * i - 0.3 * (i > 0), 5.0 * i + 2.3) for i in range(12)]


def test_reads_no_more_than_it_needs():
    """Memory does not grow with the length: of an endless recording, the first segment comes after about a minute."""
    read_s = 0.0

    def endless():
        nonlocal read_s
        while True:
            read_s += 7
            yield np.concatenate([tone(4), silence(3)])

    found = segments_of(endless(), Segmentation())
    for index in range(100):
        segment = next(found)
        assert len(segment.samples) <= 5 * RATE_HZ
        assert read_s - segment.end_samples / RATE_HZ < 80, index


def test_an_error_of_the_reader_passes_through_after_the_segments_before_it():
    def broken():
        for _ in range(20):
            yield np.concatenate([tone(4), silence(3)])
        raise OSError("gone")

    found = segments_of(broken(), Segmentation())
    assert next(found).start_samples == 0
    with pytest.raises(OSError, match="gone"):
        list(found)


PARTS = st.lists(st.tuples(st.floats(0.05, 12.0), st.sampled_from([0.0, 0.3])), min_size=1, max_size=12)


@given(parts=PARTS, block=st.integers(100, 400_000), max_s=st.sampled_from([8.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_invariants(parts, block, max_s):
    samples = np.concatenate([tone(seconds, amplitude) for seconds, amplitude in parts])
    rules = Segmentation(max_s=max_s)
    segments = list(segments_of([samples], rules))
    blocks = (samples[start : start + block] for start in range(0, len(samples), block))
    again = list(segments_of(blocks, rules))
    assert [segment.start_samples for segment in segments] == [segment.start_samples for segment in again]
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(segments, again, strict=True))
    end, rest = 0, samples.copy()
    for segment in segments:
        assert segment.start_samples >= end
        assert 0 < len(segment.samples) <= max_s * RATE_HZ
        end = segment.end_samples
        assert np.array_equal(segment.samples, samples[segment.start_samples : end])
        assert all(segment.start_samples / RATE_HZ <= first < last <= end / RATE_HZ for first, last in segment.quiet)
        rest[segment.start_samples : end] = 0
    assert not rest.any()


@pytest.mark.parametrize(("scale", "noise_amplitude"), [(1.0, 0.0), (0.03, 0.0), (1.0, 0.003)])
def test_every_event_and_word_of_the_demo_corpus_lies_inside_a_segment(spoken, scale, noise_amplitude):
    """Clip by clip, they are whole; joined with silences, each clip is one segment."""
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()]
    parts, spans, at, length = [], [], [], 0
    for row in rows:
        samples = read_audio(spoken / row["audio"], 60)
        (whole,) = cut(samples)
        assert np.array_equal(whole.samples, samples)
        spans += [(length / RATE_HZ + each["start_s"], length / RATE_HZ + each["end_s"]) for each in row["words"]]
        spans += [(length / RATE_HZ + each["start_s"], length / RATE_HZ + each["end_s"]) for each in row.get("events") or []]
        at.append((length, length + len(samples)))
        parts += [samples * np.float32(scale), silence(2.5)]
        length += len(samples) + len(parts[-1])
    joined = np.concatenate(parts)
    segments = cut(joined + noise(len(joined) / RATE_HZ, noise_amplitude))
    held = [(segment.start_samples / RATE_HZ, segment.end_samples / RATE_HZ) for segment in segments]
    missed = [span for span in spans if not any(first <= span[0] and span[1] <= last + 0.001 for first, last in held)]
    assert missed == []
    assert len(segments) == len(rows)
    assert all(sum(start < end_of and start_of < end for start_of, end_of in at) == 1
               for start, end in ((each.start_samples + 8000, each.end_samples - 8000) for each in segments))  # fmt: skip


@pytest.mark.parametrize("named", [{"pause_s": 2.5}, {"margin_s": 1.1}, {"max_s": 4.0, "patience_s": 2.1}, {"max_s": 3.0}])
def test_settings_that_contradict_each_other_are_refused(named):
    with pytest.raises(ValidationError):
        Segmentation(**named)
