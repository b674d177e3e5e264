"""A recording as a stream of blocks: what `read_audio` returns, and through PyAV what libsndfile does not read."""

import sys

import av
import numpy as np
import pytest
import soundfile

from evoxtral_train.data.audio import read_audio
from evoxtral_train.data.recordings import open_recording
from evoxtral_train.errors import RowError

RATE_HZ = 48_000
STEREO = np.random.default_rng(0).standard_normal((3 * 44_100, 2)).astype(np.float32) * 0.1


def whole(source) -> np.ndarray:
    return np.concatenate(list(open_recording(source).blocks()))


def voice(seconds: float = 6.0) -> np.ndarray:
    """A tone of 220 Hz that swells and fades; mono at 48 kHz."""
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (0.2 * np.sin(2 * np.pi * 220 * time_s) * (1 - np.cos(2 * np.pi * time_s))).astype(np.float32)


def encode(path, codec: str, start_s: tuple[float, ...] = (0.0,), container: str | None = None, **options):
    """Encodes equal shares of `voice` with the given start times, in stereo."""
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=RATE_HZ)
        stream.layout = "stereo"
        to_codec = av.AudioResampler(format="flt" if codec == "libopus" else "fltp", layout="stereo", rate=RATE_HZ)
        for samples, at_s in zip(np.split(voice(), len(start_s)), start_s, strict=True):
            for first in range(0, len(samples), 960):
                frame = av.AudioFrame.from_ndarray(np.stack([samples[first : first + 960]] * 2), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = RATE_HZ, round(at_s * RATE_HZ) + first
                for converted in to_codec.resample(frame):
                    file.mux(stream.encode(converted))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("name", "rate_hz"), [("a.wav", 16_000), ("a.flac", 44_100), ("a.ogg", 48_000), ("a.mp3", 22_050)])
def test_the_blocks_are_what_read_audio_returns(tmp_path, name, rate_hz):
    soundfile.write(tmp_path / name, STEREO, rate_hz)
    recording = open_recording(tmp_path / name)
    blocks = list(recording.blocks())
    assert all(block.dtype == np.float32 and 0 < len(block) <= 2 * 8192 for block in blocks)
    assert np.array_equal(np.concatenate(blocks), read_audio(tmp_path / name, 60))
    assert recording.duration_s == pytest.approx(len(STEREO) / rate_hz, abs=0.1)
    assert np.array_equal(whole(tmp_path / name), np.concatenate(blocks))


def test_an_array_passes_through():
    samples = voice()
    recording = open_recording(samples)
    assert recording.duration_s == 18.0
    assert np.array_equal(np.concatenate(list(recording.blocks())), samples)
    assert next(open_recording(samples.astype(np.float64)).blocks()).dtype == np.float32


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "audio is empty"),
        (np.zeros((2, 100), np.float32), "an array of 2 × 100 float32 values"),
        (np.zeros(100, np.int16), "an array of 100 int16 values"),
        (np.array([0.0, np.nan]), "1 samples that are not finite"),
        (np.array([20_000.0]), "2e\\+04 times full scale"),
    ],
)
def test_a_bad_array_is_refused(samples, message):
    with pytest.raises(RowError, match=message):
        whole(samples)


@pytest.mark.parametrize("name", ["cut.wav", "cut.flac", "cut.ogg", "cut.mp3"])
def test_a_truncated_file_is_refused(tmp_path, name):
    path = tmp_path / name
    soundfile.write(path, STEREO, 44_100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(RowError, match="audio is cut short"):
        whole(path)


def test_a_fault_far_inside_shows_when_it_is_reached(tmp_path):
    samples = np.zeros(20_000, np.float32)
    samples[15_000] = np.inf
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    blocks = open_recording(tmp_path / "a.wav").blocks()
    assert len(next(blocks)) == 8192
    with pytest.raises(RowError, match="not finite"):
        next(blocks)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.wav", None, "no such audio file"),
        ("text.m4a", b"this is a text, not a sound", "neither libsndfile nor FFmpeg knows its format"),
        ("empty.wav", b"", "audio cannot be read"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n", "neither libsndfile nor FFmpeg knows its format"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RowError, match=message):
        open_recording(tmp_path / name)


CONTAINERS = [
    ("a.m4a", "aac", {}),
    ("start.m4a", "aac", {"movflags": "faststart"}),
    ("parts.mp4", "aac", {"movflags": "frag_keyframe+empty_moov", "frag_duration": "1000000"}),
    ("a.webm", "libopus", {}),
    ("a.aac", "aac", {"container": "adts"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS)
def test_pyav_reads_what_libsndfile_does_not(tmp_path, name, codec, options):
    path = encode(tmp_path / name, codec, **options)
    recording = open_recording(path)
    samples = np.concatenate(list(recording.blocks()))
    assert recording.duration_s == pytest.approx(6.0, abs=1.0 if name == "a.aac" else 0.1)  # AAC has no header: a guess
    assert len(samples) / 16_000 == pytest.approx(6.0, abs=0.1)
    expected = voice()[::3]
    lags = [np.corrcoef(samples[lag : lag + 80_000], expected[:80_000])[0, 1] for lag in range(0, 1200, 4)]
    assert max(lags) > 0.99
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(RowError, match="audio is cut short"):
        whole(path)


def test_a_gap_in_the_timestamps_is_silence(tmp_path):
    """Times stay the recording's own: 3 s, nothing for 4 s, and 3 s more."""
    samples = whole(encode(tmp_path / "gap.webm", "libopus", start_s=(0.0, 7.0)))
    assert len(samples) / 16_000 == pytest.approx(10.0, abs=0.1)
    assert np.abs(samples[int(3.1 * 16_000) : int(6.9 * 16_000)]).max() < 0.001
    assert np.abs(samples[int(7.2 * 16_000) : int(9.8 * 16_000)]).max() > 0.3


def test_a_damaged_packet_is_refused(tmp_path):
    path = encode(tmp_path / "a.aac", "aac", container="adts")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(RowError, match="audio is cut short: it cannot be decoded further"):
        whole(path)


def test_without_pyav_the_error_names_the_extra(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.m4a", "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RowError, match=r"Format not recognised.*pip install 'evoxtral\[av\]'"):
        open_recording(path)
