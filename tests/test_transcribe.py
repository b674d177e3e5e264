"""`transcribe`: the words and tags of evaluation, for any files, in any company; nothing is lost when it is interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import REPO, TINY_BASE
from evoxtral_train.data.audio import read_audio
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Completion, Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.errors import RowError
from evoxtral_train.modeling.adapter_thresholds import Calibration, write_calibration
from evoxtral_train.modeling.adapters import find_adapter
from evoxtral_train.modeling.audio_cache import LiveAudio
from evoxtral_train.scoring.tag_filter import NEVER, Thresholds
from evoxtral_train.stages.transcribe import find_recordings, stems_of
from evoxtral_train.text.tags import format_tags
from evoxtral_train.transcription.transcriber import Transcriber

EVERY_TAG = ("--set", "kept_tags.thresholds=false", "--set", "tracking.mode=disabled")


@pytest.fixture(scope="module")
def adapter(tagging) -> Path:
    return tagging


@pytest.fixture(scope="module")
def clips(spoken) -> list[Path]:
    """The recordings whose tags the adapter knows."""
    return sorted((spoken / "audio").glob("train-*.flac"))


@pytest.fixture(scope="module")
def transcribed(call, clips, adapter, tmp_path_factory) -> Path:
    """The held-out recordings, transcribed in one call."""
    folder = tmp_path_factory.mktemp("transcribed") / "out"
    result = call("transcribe", *clips, "--adapter", adapter, "--output", folder, "--format", "txt,json,srt,vtt,tsv", *EVERY_TAG)
    assert result.exit_code == 0, result.stderr
    assert f"transcribed  {len(clips)}" in result.stdout
    return folder


def _json(path: Path) -> dict:
    content = json.loads(path.read_text("utf-8"))
    del content["timings"]
    return content


def test_the_tags_are_those_of_eval(transcribed, adapter, packed, call, tmp_path):
    settings = [f"output={tmp_path}/eval", f"dataset={packed['deferred']}", "split=train"]
    settings += [f"systems=[{{name: base}}, {{name: mine, adapter: {adapter}}}]", "tracking.mode=disabled"]
    result = call("eval", REPO / "configs/demo/eval-sft.yaml", *(part for each in settings for part in ("--set", each)))
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "eval/predictions/mine.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 12 and sum(bool(row["prediction"]) for row in rows) >= 6
    for row in rows:
        found = _json(transcribed / f"{row['id']}.json")
        assert format_tags([tag["tag"] for tag in found["tags"]]) == row["prediction"]
        assert [tag["confidence"] for tag in found["tags"]] == row["confidences"]


def test_the_words_are_those_of_the_base_alone(transcribed, packed, family, network):
    split = PackedSplit(packed["deferred"], "train")
    requests = requests_of(split, family.own_layout(split.layout.room_tokens))
    decoded = decode(network, LiveAudio(network, split), requests, Decoding(1, Sampling(), 64, 8192))
    texts = {done.utterance_id: family.tokenizer.decode(done.token_ids).strip() for batch in decoded for done in batch}
    assert sum(map(bool, texts.values())) == 12
    for identity, text in texts.items():
        found = _json(transcribed / f"{identity}.json")
        assert found["text"] == text
        assert found["merged"].removeprefix("".join(f"[{tag['tag']}] " for tag in found["tags_filtered"])) == text
        assert [word["word"] for word in found["words"]] == text.split()
        ends = [word["end_s"] for word in found["words"]]
        assert ends == sorted(ends) and all(0 <= end <= found["duration_s"] + 0.6 for end in ends)


def test_each_format_is_written_and_listed(transcribed, clips):
    rows = [json.loads(line) for line in (transcribed / "recordings.jsonl").read_text("utf-8").splitlines()]
    assert [row["file"] for row in rows] == [str(clip) for clip in clips]
    for row in rows:
        for name in ("txt", "json", "srt", "vtt", "tsv"):
            assert (transcribed / f"{row['stem']}.{name}").is_file()
        text = (transcribed / f"{row['stem']}.txt").read_text("utf-8").strip()
        assert text == _json(transcribed / f"{row['stem']}.json")["merged"]
    assert (transcribed / "failed.jsonl").read_text("utf-8") == ""


def test_without_an_output_the_text_is_printed(call, clips, adapter, transcribed):
    result = call("transcribe", clips[0], "--adapter", adapter, *EVERY_TAG)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.rstrip().endswith((transcribed / f"{clips[0].stem}.txt").read_text("utf-8").strip())


def test_bad_files_are_listed_and_the_good_ones_go_on(call, clips, adapter, transcribed, tmp_path):
    folder = tmp_path / "talks"
    (folder / "inner").mkdir(parents=True)
    shutil.copyfile(clips[0], folder / "inner" / "good.flac")
    (folder / "corrupt.wav").write_bytes(b"RIFF" + bytes(200))
    (folder / "empty.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("not audio", "utf-8")
    soundfile.write(folder / "silent.wav", np.zeros(32_000, np.float32), 16_000)
    samples, rate_hz = soundfile.read(clips[1])
    stereo = np.repeat(np.interp(np.arange(0, len(samples), rate_hz / 44_100), np.arange(len(samples)), samples)[:, None], 2, 1)
    soundfile.write(folder / "stereo.wav", stereo, 44_100)
    whole = clips[2].read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    result = call("transcribe", folder, "--adapter", adapter, "--output", tmp_path / "out", *EVERY_TAG)
    assert result.exit_code == 1
    assert "transcribed  3" in result.stdout and "not transcribed: 3 " in result.stdout
    failed = {Path(row["file"]).name: row["reason"] for row in map(json.loads, (tmp_path / "out/failed.jsonl").open())}
    assert set(failed) == {"corrupt.wav", "empty.wav", "cut.flac"}
    assert "cut short" in failed["cut.flac"]
    good, expected = _json(tmp_path / "out/good.json"), _json(transcribed / f"{clips[0].stem}.json")
    assert good | {"file": None} == expected | {"file": None}
    silent = _json(tmp_path / "out/silent.json")
    assert (silent["text"], silent["tags"], silent["merged"], silent["duration_s"]) == ("", [], "", 2.0)
    assert _json(tmp_path / "out/stereo.json")["duration_s"] == pytest.approx(len(samples) / rate_hz, abs=0.01)


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_files(call, clips, adapter, transcribed, tmp_path):
    out, started = tmp_path / "out", time.monotonic()
    arguments = ["transcribe", *map(str, clips), "--adapter", str(adapter), "--output", str(out), *EVERY_TAG]
    arguments += ["--set", "decode.batch_tokens=300", "--format", "txt,json,srt,vtt,tsv"]  # one row at a time
    process = subprocess.Popen([sys.executable, "-m", "evoxtral_train.cli", *arguments], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out.partial").glob("train-*.json")):
        assert time.monotonic() - started < 60 and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("train-*.json")}
    assert 1 <= len(before) < len(clips)
    assert call(*arguments).exit_code == 2, "an unfinished run needs --resume"
    assert call(*arguments, "--resume").exit_code == 0
    for path in transcribed.glob("train-*"):
        mine = out / path.name
        assert _json(mine) == _json(path) if path.suffix == ".json" else mine.read_bytes() == path.read_bytes()
    finished = [name for name, written in before.items() if (out / name).stat().st_mtime_ns == written]
    assert len(finished) >= len(before) - 1, "what was finished is not done again"


def test_from_python_as_documented(clips, adapter, transcribed):
    transcriber = Transcriber.of(adapters=[adapter], kept_tags={"thresholds": False})
    sources = [clips[0], str(clips[1]), read_audio(clips[2], 30.0)]
    found = [transcript.as_json() for transcript in transcriber.transcribe(sources)]
    for one, clip, file in zip(found, clips, (str(clips[0]), str(clips[1]), None), strict=False):
        del one["timings"]
        assert one["file"] == file
        assert json.loads(json.dumps(one)) | {"file": None} == _json(transcribed / f"{clip.stem}.json") | {"file": None}
    with pytest.raises(RowError, match="no such audio file"):
        list(transcriber.transcribe(["nowhere.wav"]))


@pytest.mark.slow
def test_two_adapters_at_once_write_what_each_writes_alone(clips, adapter, tmp_path):
    other = tmp_path / "half"  # the same adapter with half its strength
    shutil.copytree(adapter / "adapter", other)
    settings = json.loads((other / "adapter_config.json").read_text("utf-8"))
    (other / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": settings["lora_alpha"] / 2}), "utf-8")
    settings = {"kept_tags": {"thresholds": False}}
    alone = [list(Transcriber.of(adapters=[path], **settings).transcribe(clips)) for path in (adapter, other)]
    together = list(Transcriber.of(adapters=[adapter, other], **settings).transcribe(clips))
    assert any(first.tags != second.tags for first, second in zip(*alone, strict=True))
    for both, first, second in zip(together, *alone, strict=True):
        assert both.text == first.text == second.text
        names = [(tag.adapter, tag.tag, tag.confidence) for tag in both.tags]
        assert names == [
            (str(path), tag.tag, tag.confidence)
            for path, one in ((adapter, first), (other, second)) for tag in one.tags
        ]  # fmt: skip


def test_a_long_recording_is_its_utterances(clips, adapter):
    """Joined by quiet of 3 s: each clip is a segment, and its words and tags are those of the clip alone, on the joint clock."""
    sounds, starts, gap = [read_audio(clip, 30.0) for clip in clips], [], np.zeros(48_000, np.float32)
    joined = np.zeros(0, np.float32)
    for sound in sounds:
        starts.append(len(joined) / 16_000)
        joined = np.concatenate([joined, sound, gap])
    transcriber = Transcriber.of(adapters=[adapter], kept_tags={"thresholds": False})
    [whole] = transcriber.transcribe([joined])
    alone = list(transcriber.transcribe(sounds))
    assert len(whole.segments) == len(clips)
    assert whole.duration_s == pytest.approx(len(joined) / 16_000)
    ends = [word.end_s for word in whole.words]
    assert ends == sorted(ends)
    same = sum(segment.text == one.text for segment, one in zip(whole.segments, alone, strict=True))
    assert same >= 0.8 * len(clips), "margins of silence may change a word"
    for segment, start_s, sound in zip(whole.segments, starts, sounds, strict=True):
        assert start_s - 0.6 <= segment.start_s and segment.end_s <= start_s + len(sound) / 16_000 + 0.6


def test_tags_of_an_aligned_adapter_stand_where_they_were_heard(family, tmp_path, adapter):
    """An adapter's row in the layout that has times: [STREAMING_WORD] at token p means (p − 38) × 80 ms of the segment."""
    folder = tmp_path / "aligned"
    shutil.copytree(adapter / "adapter", folder)
    record = json.loads((folder / "evoxtral.json").read_text("utf-8"))
    (folder / "evoxtral.json").write_text(json.dumps(record | {"layout": family.layout("aligned", 65).record()}), "utf-8")
    transcriber = Transcriber.of(adapters=[folder])
    assert transcriber.merge == "timed"
    clock, ids = family.clock, family.tokenizer.encode(" [sighs]", bos=False, eos=False)
    tokens = [clock.streaming_pad_id] * 24 + [clock.streaming_word_id, *ids] + [clock.streaming_pad_id] * 5
    completion = Completion("0", 0, tokens, "eos", -0.1, [-0.01] * len(tokens), 1)
    [tag] = transcriber.tags_of(transcriber.rows[1], completion, start_s=100.0)
    assert (tag.tag, tag.at_s, tag.ends_stretch) == ("sighs", pytest.approx(100.0 + (39 + 24 - 38) * 0.08), False)


def test_an_adapter_from_elsewhere_needs_its_layout(call, adapter, clips, tmp_path):
    folder = tmp_path / "peft"
    shutil.copytree(adapter / "adapter", folder)
    (folder / "evoxtral.json").unlink()
    result = call("transcribe", clips[0], "--adapter", folder, "--base", TINY_BASE, *EVERY_TAG)
    assert result.exit_code == 2 and "does not record its layout" in result.stderr and "deferred" in result.stderr
    result = call("transcribe", clips[0], "--adapter", folder, "--base", TINY_BASE, "--set", "layout=deferred", *EVERY_TAG)
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nothing to transcribe"),
        (("nowhere.wav",), "no such file"),
        (("nowhere/*.wav",), "no such file"),
        (("docs",), "no audio file in this folder"),
        (("README.md", "--format", "doc"), "formats"),
        (("README.md", "--set", "merge=timed"), "its layout has no times"),
        (("README.md", "--adapter", "nowhere"), "no adapter here"),
    ],
)
def test_what_cannot_be_done_is_said(call, adapter, arguments, message):
    named = () if "--adapter" in arguments else ("--adapter", adapter)
    result = call("transcribe", *arguments, *named, *EVERY_TAG)
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_dry_run_says_what_it_will_take(call, adapter, clips, tmp_path):
    result = call("transcribe", *clips, "--adapter", adapter, "--output", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "recordings" in result.stdout and "weights" in result.stdout and not (tmp_path / "out").exists()


def test_names_of_transcripts_never_clash():
    files = [Path(name) for name in ("a/talk.wav", "b/talk.wav", "talk.mp3", "other.flac", "run.wav", "x/Other.flac")]
    assert stems_of(files, ["json"]) == {
        files[0]: "a_talk.wav", files[1]: "b_talk.wav", files[2]: "talk.mp3", files[3]: "other.flac", files[4]: "run.wav",
        files[5]: "x_Other.flac",
    }  # fmt: skip


def test_files_folders_and_globs_are_found_once(tmp_path):
    for name in ("b.wav", "a.flac", "sub/c.MP3", ".hidden.wav", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in find_recordings([str(tmp_path)])]
    assert names == ["a.flac", "b.wav", "sub/c.MP3"]
    found = find_recordings([f"{tmp_path}/*.wav", str(tmp_path / "b.wav"), str(tmp_path / "notes.txt")])
    assert [path.name for path in found] == ["b.wav", "notes.txt"]


def test_thresholds_decide_which_tags_are_kept(call, adapter, clips, transcribed, tmp_path):
    """One tag is never kept here, every other always."""
    run = tmp_path / "sft"
    shutil.copytree(adapter, run)
    found = find_adapter(run)
    names = [tag["tag"] for path in transcribed.glob("train-*.json") for tag in _json(path)["tags"]]
    dropped, others = names[0], set(names) - {names[0]}
    thresholds = Thresholds(0.0, {dropped: NEVER}).as_json()
    write_calibration(found.folder, Calibration(found.fingerprint, "d", "validation", 1, "none", thresholds, {}, {}, {}))
    result = call("transcribe", *clips, "--adapter", run, "--output", tmp_path / "out", "--set", "tracking.mode=disabled")
    assert result.exit_code == 0, result.stderr
    rows = [_json(path) for path in (tmp_path / "out").glob("train-*.json")]
    assert {tag["tag"] for row in rows for tag in row["tags"]} == set(names)
    assert {tag["tag"] for row in rows for tag in row["tags_filtered"]} == others
    assert all(f"[{dropped}]" not in row["merged"] for row in rows)
