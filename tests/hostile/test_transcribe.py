"""`transcribe` as a stranger calls it: odd names, files that vanish, adapters that were edited, callers who stop halfway."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from evoxtral_train.config.transcription import Segmentation, TranscribeConfig
from evoxtral_train.data.audio import read_audio
from evoxtral_train.data.recordings import open_recording
from evoxtral_train.data.segments import segments_of
from evoxtral_train.decoding.decoder import Decoder
from evoxtral_train.errors import RowError, UsageError
from evoxtral_train.modeling.adapter_thresholds import Calibration, write_calibration
from evoxtral_train.modeling.adapters import find_adapter
from evoxtral_train.stages.transcribe import find_recordings, stems_of
from evoxtral_train.transcription.transcriber import Transcriber
from hostile.limits import REPO

BASE = ("--base", REPO / "data/tiny-base", "--set", "tracking.mode=disabled")
ODD_NAMES = (
    "with space", "ünï—日本", "😀", "q'uo\"te", "a=b,c:[d]", "{1: 2}", "new\nline", "line\u2028separator", "*", "null", "1e5",
    "é" * 120,
)  # fmt: skip


@pytest.fixture(scope="module")
def clips(spoken) -> list[Path]:
    return sorted((spoken / "audio").glob("train-*.flac"))[:4]


@pytest.fixture
def adapter(tagging, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tagging / "adapter", tmp_path / "adapter"))


def without_timings(transcripts) -> list[dict]:
    found = [transcript.as_json() for transcript in transcripts]
    for one in found:
        del one["timings"]
    return found


def silence(path: Path) -> Path:
    soundfile.write(path, np.zeros(1600, np.float32), 16_000)
    return path


def test_any_name_will_do(call, tmp_path):
    files = [silence(tmp_path / f"{name}.wav") for name in ODD_NAMES]
    result = call("transcribe", *files, *BASE, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/recordings.jsonl").read_text("utf-8").split("\n") if line]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert all((tmp_path / "out" / f"{row['stem']}.json").is_file() for row in rows)
    assert [row["stem"] for row in rows[:-1]] == [*ODD_NAMES[:-1]]


def test_a_name_that_is_not_utf8_is_refused_before_any_work(call, tmp_path):
    silence(tmp_path / "good.wav").rename(tmp_path / "bad\udcff.wav")
    result = call("transcribe", tmp_path, *BASE, "--output", tmp_path / "out")
    assert result.exit_code == 2 and "this name is not UTF-8" in result.stderr and "rename the file" in result.stderr
    assert not (tmp_path / "out.partial").exists()


def test_recordings_of_one_name_keep_their_own_transcripts():
    """`../talk.wav` and `talk.wav` have the same parts; `x/a_t` and `x_a/t` are joined to the same name."""
    names = ["talk.wav", "../talk.wav", "a/talk.wav", "a_talk.wav.wav", "x/a_t.wav", "x_a/t.wav", "x/a/t.wav", "TALK.wav"]
    names += ["Run.wav", *("y" * 240 + f"{number}.wav" for number in range(3))]
    stems = stems_of([Path(name) for name in names], ["json"])
    assert len({stem.lower() for stem in stems.values()}) == len(names)
    assert all(len(stem.encode()) < 240 for stem in stems.values()) and stems[Path("Run.wav")] == "Run.wav"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "srt"), "there is no output to write srt to"),
        (("--format", ""), "formats.0"),
        (("--set", "layout=nope"), "there is no layout 'nope'"),
        (("",), "an empty name"),
        (("a***",), "not a glob"),
    ],
)
def test_what_would_be_ignored_is_refused(call, tmp_path, arguments, message):
    result = call("transcribe", silence(tmp_path / "a.wav"), *BASE, *arguments)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_spaces_between_formats(call, tmp_path):
    result = call("transcribe", silence(tmp_path / "a.wav"), *BASE, "--format", "txt, srt", "--output", tmp_path / "out")
    assert result.exit_code == 0 and (tmp_path / "out/a.srt").is_file(), result.stderr


def test_globs_find_what_a_shell_finds(tmp_path):
    for name in ("a.wav", "sub/b.wav", "sub/.hidden/c.wav", ".d.wav", ".own/e.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_recordings([f"{tmp_path}/**/*.wav"])] == ["a.wav", "b.wav"]
    assert [path.name for path in find_recordings([f"{tmp_path}/.own/*.wav"])] == ["e.wav"]


def test_an_output_inside_the_input_is_not_an_input(call, tmp_path):
    silence(tmp_path / "a.wav")
    for more in ((), ("--overwrite",)):
        result = call("transcribe", tmp_path, *BASE, "--output", tmp_path / "out", *more)
        assert result.exit_code == 0 and "transcribed  1" in result.stdout, result.stderr


@pytest.mark.parametrize("name", ["a.flac", "a.m4a"])
def test_a_file_that_vanishes_is_a_bad_file(clips, tmp_path, name):
    file = tmp_path / name
    if file.suffix == ".m4a":
        av = pytest.importorskip("av")
        with av.open(str(file), "w") as container:
            stream = container.add_stream("aac", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16_000
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    else:
        shutil.copy(clips[0], file)
    recording = open_recording(file)
    file.unlink()
    with pytest.raises(RowError, match="cannot be read: No such file"):
        list(recording.blocks())


def test_new_thresholds_are_another_input(adapter):
    """A run that began with other thresholds must not resume."""
    before = Transcriber.of([adapter]).fingerprints
    measured = {"micro_f1": 0.5, "micro_precision": 0.5, "micro_recall": 0.5, "false_tags_per_untagged_clip": 0.0}
    thresholds = {"default": 0.5, "by_tag": {}}
    fingerprint = find_adapter(adapter).fingerprint
    write_calibration(
        adapter, Calibration(fingerprint, "data", "validation", 9, "the highest micro F1", thresholds, *3 * [measured])
    )
    assert Transcriber.of([adapter]).fingerprints != before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prepad_samples": 10**9}, "prepad_samples: Input should be less than or equal to 960000"),
        ({"target": "song"}, "target: Input should be 'tags', 'text' or 'tagged_text'"),
        ({"layout": {}}, "cannot be read"),
    ],
)
def test_an_edited_record_is_refused(adapter, changed, message):
    path = adapter / "evoxtral.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), "utf-8")
    with pytest.raises(UsageError, match=message):
        Transcriber.of([adapter])


def test_an_adapter_that_is_named_twice_is_refused(tagging):
    with pytest.raises(UsageError, match="named twice"):
        Transcriber.of([tagging, tagging / "adapter"])


def test_one_recording_is_no_list():
    transcriber = Transcriber.of(base=str(REPO / "data/tiny-base"))
    for sources in ("talk.wav", Path("talk.wav"), np.zeros(1600, np.float32)):
        with pytest.raises(TypeError, match="sources is a list"):
            next(transcriber.transcribe(sources))
    with pytest.raises(TypeError, match="adapters is a list"):
        Transcriber.of("runs/sft")
    with pytest.raises(TypeError, match="a path or a NumPy array, not Tensor"):
        next(transcriber.transcribe([torch.zeros(1600)]))


def test_an_error_names_its_recording(clips, tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(RowError, match=r"empty\.wav: audio"):
        list(Transcriber.of(base=str(REPO / "data/tiny-base")).transcribe([clips[0], tmp_path / "empty.wav"]))


@pytest.mark.slow
def test_callers_who_stop_halfway_or_run_two_at_once(clips, tagging):
    transcriber = Transcriber.of([tagging], decode={"batch_tokens": 600})
    whole = without_timings(transcriber.transcribe(clips))
    stopped = transcriber.transcribe(clips)
    next(stopped)
    stopped.close()
    forward, backward = transcriber.transcribe(clips), transcriber.transcribe(clips[::-1])
    pairs = list(zip(forward, backward, strict=True))
    assert without_timings(one for one, _ in pairs) == whole
    assert without_timings(other for _, other in pairs) == whole[::-1]


@pytest.mark.slow
def test_a_full_gpu_changes_no_transcript(clips, tagging, monkeypatch):
    """Rows of a segment start again after its embeddings were dropped."""
    transcriber, steps, step = Transcriber.of([tagging], decode={"batch_tokens": 6000}), [], Decoder.step
    whole = without_timings(transcriber.transcribe(clips))

    def fails_at_times(decoder: Decoder):
        steps.append(decoder)
        if len(steps) in (3, 60):
            raise torch.OutOfMemoryError("no memory")
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", fails_at_times)
    assert without_timings(transcriber.transcribe(clips)) == whole
    assert len(set(map(id, steps))) >= 2 and len(steps) > 60


def test_segments_under_any_settings():
    """In order, apart, and at most as long as they may be; all that is loud lies in one of them."""
    random = np.random.default_rng(0)
    for _ in range(20):
        patience_s = float(random.uniform(0.05, 2))
        settings = Segmentation(
            max_s=float(random.uniform(4, 12)), patience_s=patience_s, pause_s=patience_s * float(random.uniform(0.1, 1)),
            margin_s=patience_s * float(random.uniform(0, 0.5)),
        )  # fmt: skip
        loud = np.repeat(random.random(40) < 0.6, 16_000)
        sound = (random.normal(size=len(loud)) * np.where(loud, 0.1, 1e-5)).astype(np.float32)
        inside, end, parts = np.zeros(len(sound), bool), 0, list(segments_of(np.array_split(sound, 7), settings))
        for part in parts:
            assert part.start_samples >= end and 0 < len(part.samples) <= settings.max_s * 16_000
            end = part.end_samples
            inside[part.start_samples : end] = True
            assert np.array_equal(part.samples, sound[part.start_samples : end])
        assert inside[loud].all() and end <= len(sound)


def test_every_default_is_in_the_shipped_config():
    """Without a file the defaults hold; the shipped file differs only where a project begins: its output and adapter."""
    from evoxtral_train.config.loader import load_config

    shipped, plain = load_config(REPO / "configs/transcribe.yaml", TranscribeConfig), TranscribeConfig()
    differing = {name for name in TranscribeConfig.model_fields if getattr(shipped, name) != getattr(plain, name)}
    assert differing == {"output", "adapters"}


def test_a_sound_of_one_sample(call, tmp_path):
    soundfile.write(tmp_path / "one.wav", np.full(1, 0.1, np.float32), 16_000)
    soundfile.write(tmp_path / "fast.wav", np.full(1, 0.1, np.float32), 192_000)
    result = call("transcribe", tmp_path / "one.wav", tmp_path / "fast.wav", *BASE)
    assert result.exit_code == 1 and "fast.wav: audio is empty" in result.stdout, result.stdout
    assert len(read_audio(tmp_path / "one.wav", 30.0)) == 1


@pytest.mark.slow
def test_no_name_or_word_of_a_recording_is_tracked(call, tagging, spoken, tmp_path):
    shutil.copyfile(spoken / "audio" / "train-00003.flac", tmp_path / "dr-miller.flac")
    named = ("--adapter", tagging, "--output", tmp_path / "out", "--set", "tracking.mode=offline")
    result = call("transcribe", tmp_path / "dr-miller.flac", *named)
    assert result.exit_code == 0, result.stderr
    words = json.loads((tmp_path / "out/dr-miller.json").read_text("utf-8"))["text"].encode()
    logged = [path.read_bytes() for path in (tmp_path / "out").rglob("wandb/**/*") if path.is_file()]
    assert any(b"times_real_time" in content for content in logged) and len(words) > 10
    assert not any(b"miller" in content or words in content for content in logged)
