"""Audio that is cut, lies about its length, or holds what is no sound: rejected with a reason, never packed as whole."""

import json

import numpy as np
import pytest
import soundfile

from evoxtral_train.corpus.statistics import duration_histogram
from evoxtral_train.data.audio import LOUDEST, decode_audio, duration_of, read_audio
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import RowError
from hostile.limits import REPO, assert_plain, evoxtral, sets, within

RATE_HZ, SECONDS = 16_000, 12
FORMATS = {
    "a.wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "big-endian.wav": ("WAV", "PCM_16"),
    "long.wav": ("RF64", "PCM_16"), "adpcm.wav": ("WAV", "IMA_ADPCM"), "a.aiff": ("AIFF", "PCM_16"), "a.au": ("AU", "PCM_16"),
    "a.flac": ("FLAC", "PCM_16"), "a.mp3": ("MP3", "MPEG_LAYER_III"), "a.ogg": ("OGG", "VORBIS"), "a.opus": ("OGG", "OPUS"),
}  # fmt: skip


def noise(seconds: float = SECONDS) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ))).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with 12 s of noise in every format."""
    folder = tmp_path_factory.mktemp("whole")
    for name, (container, codec) in FORMATS.items():
        order = "BIG" if name.startswith("big") else "FILE"
        soundfile.write(folder / name, noise(), RATE_HZ, format=container, subtype=codec, endian=order)
    return folder


def with_total_samples(flac: bytes, samples: int) -> bytes:
    """The FLAC with another number of samples in its header; 0 is "unknown", as of one that was written to a stream."""
    field = int.from_bytes(flac[18:26], "big") >> 36 << 36
    return flac[:18] + (field | samples).to_bytes(8, "big") + flac[26:]


@pytest.fixture
def pack(call, tmp_path):
    """`data check` and `data pack` of rows -> {id: reason} of the rejected, which both of them name."""

    def pack(rows: list[dict], *overrides: str, packed: int) -> dict[str, str]:
        manifest, found, out = tmp_path / "manifest.jsonl", tmp_path / "found.jsonl", tmp_path / "packed"
        manifest.write_text(
            "".join(json.dumps({"text": "[sighs] well.", "split": "train"} | row) + "\n" for row in rows), "utf-8"
        )
        arguments = sets(f"manifest={manifest}", f"output={out}", *overrides)
        with within(60):
            checked = call("data", "check", REPO / "configs/demo/pack.yaml", *arguments, "--findings", found)
            result = call("data", "pack", REPO / "configs/demo/pack.yaml", *arguments)
        assert result.exit_code == (0 if packed else 2), result.stderr
        assert checked.exit_code in (1, 2)
        assert "Traceback" not in result.stderr + checked.stderr
        made = out if packed else tmp_path / "packed.partial"
        rejected = [json.loads(line) for line in (made / "rejected.jsonl").read_text("utf-8").splitlines()]
        if packed:
            metrics = json.loads((out / "metrics.json").read_text("utf-8"))
            assert (metrics["packed"], metrics["rejected"]) == (packed, len(rows) - packed)
        findings = [json.loads(line) for line in found.read_text("utf-8").splitlines()]
        assert [(each["line"], each["reason"]) for each in findings if each["kind"] == "rejected"] == [
            (each["line"], each["reason"]) for each in rejected
        ]
        assert {each["file"] for each in rejected} == {str(manifest)}
        return {each["id"]: each["reason"] for each in rejected}

    return pack


def test_what_is_cut_in_half_is_rejected_and_what_is_whole_is_packed(whole, pack, tmp_path):
    for name in FORMATS:
        content = (whole / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    rows = [{"id": f"whole {name}", "audio": str(whole / name)} for name in FORMATS]
    rows += [{"id": name, "audio": name} for name in FORMATS]
    reasons = pack(rows, packed=len(FORMATS))
    assert set(reasons) == set(FORMATS)
    for name, reason in reasons.items():
        said = "its last page is missing, " if name in ("a.ogg", "a.opus") else "its header says 12."
        assert reason.startswith(f"audio is cut short: {said}"), (name, reason)
    assert reasons["a.wav"].startswith("audio is cut short: its header says 12.0 s, but there are only 6.0 s")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.97])
def test_wherever_it_is_cut(whole, tmp_path, name, share):
    content = (whole / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(RowError, match="audio is cut short|audio is empty|audio cannot be read"):
        read_audio(tmp_path / name, 30)


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_bytes_more_or_less_are_no_fault(whole, tmp_path, name):
    """Sloppy headers count themselves, and tools add tags at the end: less than 80 ms is let pass, but for a page of Ogg."""
    content = (whole / name).read_bytes()
    (tmp_path / name).write_bytes(content + b"TAG and more")
    assert abs(len(read_audio(tmp_path / name, 30)) - SECONDS * RATE_HZ) < 0.08 * RATE_HZ
    if name in ("a.wav", "a.aiff", "a.au", "float.wav"):
        (tmp_path / name).write_bytes(content[:-44])
        assert abs(len(read_audio(tmp_path / name, 30)) - SECONDS * RATE_HZ) < 0.08 * RATE_HZ


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_from_a_pipe_has_no_length_to_believe(whole, tmp_path, size):
    content = bytearray((whole / "a.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    if size == 0:
        with pytest.raises(RowError, match="empty"):
            read_audio(tmp_path / "a.wav", 30)
    else:
        assert len(read_audio(tmp_path / "a.wav", 30)) == SECONDS * RATE_HZ


def test_a_flac_of_unknown_length_is_counted(whole, pack, tmp_path):
    flac = (whole / "a.flac").read_bytes()
    (tmp_path / "streamed.flac").write_bytes(with_total_samples(flac, 0))
    (tmp_path / "streamed-cut.flac").write_bytes(with_total_samples(flac, 0)[: len(flac) // 2])
    (tmp_path / "huge.flac").write_bytes(with_total_samples(flac, 2**36 - 1))
    names = ("streamed", "streamed-cut", "huge")
    reasons = pack([{"id": name, "audio": f"{name}.flac"} for name in names], packed=1)
    assert reasons["streamed-cut"].startswith("audio is cut short: it cannot be decoded further, but there are only 5.6 s")
    assert reasons["huge"].startswith("audio is cut short: its header says 4294967.3 s, but there are only 12.0 s")
    assert PackedSplit(tmp_path / "packed", "train").examples[0].utterance_tokens == SECONDS / 0.08
    assert np.array_equal(read_audio(tmp_path / "streamed.flac", 30), read_audio(whole / "a.flac", 30))
    with pytest.raises(RowError, match="audio lasts more than 5 s, the limit is 5 s"):
        read_audio(tmp_path / "streamed.flac", 5)


def test_no_header_sizes_a_histogram(whole, tmp_path):
    """A FLAC of unknown length was 5.8e14 s, for which `data stats` built 1.6e11 bins."""
    flac = (whole / "a.flac").read_bytes()
    (tmp_path / "streamed.flac").write_bytes(with_total_samples(flac, 0))
    (tmp_path / "huge.flac").write_bytes(with_total_samples(flac, 2**36 - 1))
    rows = [{"id": name, "audio": f"{name}.flac", "text": "well."} for name in ("streamed", "huge")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    arguments = sets(f"manifest={tmp_path / 'manifest.jsonl'}", f"output={tmp_path / 'stats'}")
    done = evoxtral("data", "stats", "configs/stats.yaml", *arguments, memory_bytes=4 * 2**30)
    assert done.returncode == 0, done.stderr
    assert_plain(done.stderr)
    stats = json.loads((tmp_path / "stats/stats.json").read_text("utf-8"))
    assert (stats["duration_s"]["longest"], stats["rejected"]) == (12.0, 1)
    assert duration_of(tmp_path / "streamed.flac") == 12.0
    assert len(duration_histogram([1.0, 5.8e14])) <= 31


def test_a_long_clip_is_counted_for_the_statistics(tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(3601 * 8_000, np.int16), 8_000)
    assert duration_of(tmp_path / "long.flac") == 3601.0


LOUD = {
    "1e38": "reaches 1e+38 times full scale, the limit is 16", "3e38": "reaches 3e+38 times", "17": "reaches 17 times full scale",
    "nan": "1 samples that are not finite", "inf": "1 samples that are not finite", "1e300": "1 samples that are not finite",
    "32768": "reaches 3.28e+04 times full scale, the limit is 16 — scale it to ±1",
}  # fmt: skip


def test_samples_that_are_no_sound_are_rejected(pack, tmp_path):
    """A float WAV near 1e38 was packed, and its mel was NaN."""
    for value in (*LOUD, "15.9", "1e-40"):
        samples = noise(2).astype(np.float64)
        samples[777] = float(value)
        with np.errstate(over="ignore"):
            soundfile.write(tmp_path / f"{value}.wav", samples, RATE_HZ, subtype="DOUBLE")
    reasons = pack([{"id": value, "audio": f"{value}.wav"} for value in (*LOUD, "15.9", "1e-40")], packed=2)
    assert set(reasons) == set(LOUD)
    for value, reason in LOUD.items():
        assert reason in reasons[value]
    split = PackedSplit(tmp_path / "packed", "train")
    assert all(np.isfinite(split.mel_of(index, 200)).all() for index in range(2))


def test_the_loudest_sound_of_any_form_has_a_finite_mel(family):
    """The bound of the samples bounds the mel: what `data check` passes, packing never finds to be NaN."""
    times = np.arange(2 * RATE_HZ) / RATE_HZ
    for samples in (np.full(32_000, LOUDEST), LOUDEST * np.sign(np.sin(440 * times)), LOUDEST * np.sin(2e4 * times)):
        assert np.isfinite(family.mel(samples.astype(np.float32), 800)).all()


def test_a_mel_that_is_not_finite_is_never_written(pack, tmp_path, monkeypatch, call):
    from evoxtral_train.families.realtime.family import Realtime

    soundfile.write(tmp_path / "good.wav", noise(2), RATE_HZ)
    monkeypatch.setattr(Realtime, "mel", lambda *_: np.full((128, 400), np.nan, np.float32))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": "a", "audio": "good.wav", "text": "well."}\n', "utf-8")
    result = call(
        "data",
        "pack",
        REPO / "configs/demo/pack.yaml",
        *sets(f"manifest={manifest}", f"output={tmp_path / 'packed'}", "processes=1"),
    )
    assert result.exit_code == 2
    assert "the mel of this audio is not finite" in result.stderr


@pytest.mark.parametrize(("rate_hz", "reason"), [(1, "sample rate of 1 Hz"), (999, "999 Hz"), (1_000, None), (768_000, None)])
def test_rates_that_no_recorder_has(tmp_path, rate_hz, reason):
    soundfile.write(tmp_path / "a.wav", np.zeros(max(rate_hz // 50, 20)), rate_hz)
    if reason:
        with pytest.raises(RowError, match=reason):
            read_audio(tmp_path / "a.wav", 30)
    else:
        assert len(read_audio(tmp_path / "a.wav", 30)) == 320


def test_events_and_words_end_with_the_clip(pack, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(2), RATE_HZ)

    def row(identity: str, **spans: float) -> dict:
        entries = {
            kind: [{kind[:-1].replace("event", "tag"): "sighs", "start_s": 0.1, "end_s": end}] for kind, end in spans.items()
        }
        return {"id": identity, "audio": "a.wav"} | entries

    rows = [row("in"), row("at the end", events=2.0, words=2.07), row("event", events=2.09), row("word", words=12.0)]
    reasons = pack(rows, packed=2)
    assert reasons == {
        "event": "'[sighs]' ends at 2.09 s, but the clip ends at 2.00 s — check that this is the right audio, and complete",
        "word": "'sighs' ends at 12 s, but the clip ends at 2.00 s — check that this is the right audio, and complete",
    }


def test_reading_in_blocks_reads_what_reading_at_once_does(whole):
    for name in FORMATS:
        at_once, _ = soundfile.read(whole / name, dtype="float32")
        assert np.abs(read_audio(whole / name, 30) - at_once).max() < 1e-6, name
        with (whole / name).open("rb") as file:
            assert np.array_equal(decode_audio(file), read_audio(whole / name, 30)), name


def test_raw_samples_need_a_header(tmp_path):
    (tmp_path / "a.raw").write_bytes(noise(1).tobytes())
    with pytest.raises(RowError, match="audio has no header|audio cannot be read"):
        read_audio(tmp_path / "a.raw", 30)
