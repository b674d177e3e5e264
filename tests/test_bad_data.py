"""Bad rows and bad audio: each is rejected with file, line, id and reason, the good ones go on."""

import json

import numpy as np
import pytest
import soundfile

from conftest import TINY_BASE
from evoxtral_train.config.data import Layout, PackConfig
from evoxtral_train.config.sections import Tracking
from evoxtral_train.data.audio import read_audio
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.dataset.writer import FORMAT
from evoxtral_train.errors import RowError, UsageError
from evoxtral_train.runs import Options
from evoxtral_train.stages.data import check, pack


def config(manifest, tmp_path, **named) -> PackConfig:
    return PackConfig(
        manifest=manifest, output=tmp_path / "packed", base=str(TINY_BASE), tracking=Tracking(mode="disabled"), **named
    )


def rejected(tmp_path) -> dict:
    rows = [json.loads(line) for line in (tmp_path / "packed" / "rejected.jsonl").read_text("utf-8").splitlines()]
    return {row["line"]: (row["id"], row["reason"]) for row in rows}


def test_every_fault_is_found_and_the_good_rows_go_on(clip_row, write_manifest, tmp_path):
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    broken = noise.copy()
    broken[77] = np.nan
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF\x00\x00 this is no audio")
    rows = [
        clip_row("good"),
        clip_row("stereo", samples=np.stack([noise, -0.5 * noise], axis=1)),
        clip_row("8khz", samples=noise[:8_000], rate_hz=8_000),
        clip_row("nan", samples=broken),
        clip_row("empty", samples=noise[:0]),
        clip_row("40s", samples=np.zeros(40 * 16_000)),
        {"id": "corrupt", "audio": "corrupt.wav", "text": "hello"},
        {"id": "missing", "audio": "none.wav", "text": "hello"},
        clip_row("good", text="again"),
        clip_row("unknown-tag", text="[sihgs] hello"),
        clip_row("unclosed", text="[sighs hello"),
        clip_row("no-text", text="  "),
        '{"id": "half a row',
        {**clip_row("typo"), "txet": "x"},
        {**clip_row("split"), "split": "dev"},
        clip_row("long", text="[frustrated] " * 40 + "hello"),
        clip_row("untagged", text="hello there"),
    ]
    manifest = write_manifest(rows)
    report = pack.run(config(manifest, tmp_path), Options())
    found = rejected(tmp_path)
    assert {line: identity for line, (identity, _) in found.items()} == {
        4: "nan", 5: "empty", 6: "40s", 7: "corrupt", 8: "missing", 9: "good", 10: "unknown-tag", 11: "unclosed",
        12: "no-text", 13: None, 14: "typo", 15: "split", 16: "long",
    }  # fmt: skip
    for line, reason in {
        4: "1 samples that are not finite", 5: "audio is empty", 6: "audio lasts 40.0 s, the limit is 30 s",
        7: "audio cannot be read", 8: "no such audio file", 9: "duplicate id, first seen in row 1",
        10: "unknown tag [sihgs] — did you mean [sighs]?", 11: "unclosed bracket at character 0",
        12: "`text` is missing or empty", 13: "not JSON", 14: "unknown field 'txet'", 15: "unknown split 'dev'",
        16: "tokens and EOS, but only",
    }.items():  # fmt: skip
        assert reason in found[line][1], found[line]
    assert (report.facts["rows"], report.facts["packed"], report.facts["rejected"]) == (17, 4, 13)


def test_check_finds_what_pack_would_reject(clip_row, write_manifest, tmp_path):
    manifest = write_manifest([clip_row("good"), clip_row("bad", text="[sighs"), clip_row("short", samples=np.zeros(0))])
    report = check.run(config(manifest, tmp_path))
    assert report.exit_code == 1
    assert report.facts["rows"] == "3 = 1 good + 2 rejected"
    lines = report.table.splitlines()
    assert lines[0].startswith(f"{manifest}:2: bad: rejected: unclosed bracket")
    assert lines[1].startswith(f"{manifest}:3: short: rejected: audio is empty")
    assert not (tmp_path / "packed").exists()


def test_stereo_and_8_khz_become_mono_at_16_khz(tmp_path):
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(8_000) / 8_000)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, np.zeros_like(tone)], axis=1), 8_000, subtype="FLOAT")
    samples = read_audio(tmp_path / "a.wav", 30)
    assert samples.shape == (16_000,)
    assert samples.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(samples[2_000:14_000]))
    assert np.argmax(spectrum) == 440 * 12_000 // 16_000
    assert np.abs(samples).max() == pytest.approx(0.25, abs=0.01)


def test_longer_clips_keep_their_length(clip_row, write_manifest, tmp_path):
    samples = np.random.default_rng(0).standard_normal(20 * 16_000) * 0.05
    pack.run(config(write_manifest([clip_row("20s", samples=samples)]), tmp_path, layout=Layout(kind="packed")), Options())
    from evoxtral_train.dataset.reader import PackedSplit

    [example] = PackedSplit(tmp_path / "packed", "train").examples
    assert (example.utterance_tokens, example.row_tokens) == (250, 32 + 250 + 17)


def test_a_packed_file_is_a_plain_arrow_stream(packed):
    from datasets import Dataset

    rows = Dataset.from_file(str(packed["deferred"] / "shards" / "00000-train.arrow"))
    assert len(rows) == 12
    assert rows.column_names[:3] == ["id", "text", "speaker"]


def test_text_target_without_words_is_rejected(clip_row, write_manifest, tmp_path):
    manifest = write_manifest([clip_row("tags-only", text="[laughs]"), clip_row("words")])
    pack.run(config(manifest, tmp_path, target="text"), Options())
    assert "no words to learn" in rejected(tmp_path)[1][1]


def test_no_row_at_all_is_an_error(write_manifest, tmp_path):
    with pytest.raises(UsageError, match="no row can be packed: the only one is rejected — first reason: .*: `audio` is missing"):
        pack.run(config(write_manifest([{"id": "a", "text": "b"}]), tmp_path), Options())
    with pytest.raises(UsageError, match="the manifest is empty"):
        pack.run(config(write_manifest([]), tmp_path), Options(overwrite=True))
    with pytest.raises(UsageError, match="no such manifest"):
        pack.run(config(tmp_path / "none.jsonl", tmp_path), Options(overwrite=True))


def test_a_folder_is_no_audio(tmp_path):
    with pytest.raises(RowError, match="no such audio file"):
        read_audio(tmp_path, 30)


def test_words_and_events_with_bad_times_are_reported(clip_row, write_manifest, tmp_path):
    good = {"events": [{"tag": "sighs", "start_s": 0.1, "end_s": 0.4}]}
    faults = {
        "no-list": {"events": {"tag": "sighs"}},
        "no-time": {"events": [{"tag": "sighs", "start_s": 0.1}]},
        "backwards": {"events": [{"tag": "sighs", "start_s": 2, "end_s": 1}]},
    }
    manifest = write_manifest([clip_row("good") | good, *(clip_row(name) | fault for name, fault in faults.items())])
    report = pack.run(config(manifest, tmp_path), Options())
    found = {identity: reason for identity, reason in rejected(tmp_path).values()}
    assert found.keys() == faults.keys()
    assert found["no-list"].startswith("`events` is not a list of objects — write each as {tag, start_s, end_s}")
    assert "bad times of a word or event" in found["no-time"]
    assert "0 ≤ start_s ≤ end_s" in found["backwards"]
    assert report.facts["packed"] == 1
    assert PackedSplit(tmp_path / "packed", "train").examples[0].events == good["events"]


def test_a_dataset_of_another_version_is_refused(clip_row, write_manifest, tmp_path):
    pack.run(config(write_manifest([clip_row("good")]), tmp_path), Options())
    path = tmp_path / "packed" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"format": FORMAT - 1}), "utf-8")
    with pytest.raises(UsageError, match="packed by another version of evoxtral — pack it again"):
        PackedSplit(tmp_path / "packed", "train")
