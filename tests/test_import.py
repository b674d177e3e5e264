"""Every shape a corpus has: imported, checked, packed and trained on for one step; and what is said where it does not fit."""

import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import yaml

from conftest import REPO
from corpora import (
    csv_table,
    disfluency_speech,
    expresso,
    folder_of_files,
    hub,
    jsonl,
    librispeech,
    multimed,
    nonverbal_tts,
    parquet,
    saved_dataset,
    scripts,
    write_rows,
)
from evoxtral_train.config.data import Transcript
from evoxtral_train.corpus.transcripts import forbids_commercial_use, tagged_transcript

CLIPS = 8
PUBLIC = ("disfluency-speech", "nonverbal-tts", "expresso", "librispeech", "multimed", "scripts")


@pytest.fixture(scope="module")
def clips(spoken) -> list[dict]:
    """Spoken clips: {audio (a path), text, speaker}."""
    rows = [json.loads(line) for line in (spoken / "manifest.jsonl").read_text("utf-8").splitlines()][:CLIPS]
    return [row | {"audio": spoken / row["audio"]} for row in rows]


KINDS = {"jsonl": jsonl, "csv": csv_table, "folder": folder_of_files, "parquet": parquet, "dataset": saved_dataset, "hub": hub}
PRESETS = {
    "disfluency-speech": disfluency_speech, "nonverbal-tts": nonverbal_tts, "expresso": expresso, "librispeech": librispeech,
    "multimed": multimed, "scripts": scripts,
}  # fmt: skip


def test_every_preset_is_tested():
    own = {"recordings"}  # in test_unlabelled.py
    assert {path.stem for path in (REPO / "configs/import").glob("*.yaml")} == set(PRESETS) | own


def sets(*overrides) -> list[str]:
    return [each for override in (*overrides, "tracking.mode=disabled") for each in ("--set", override)]


@pytest.fixture
def data_import(call, tmp_path):
    """evoxtral data import CONFIG into tmp_path/imported."""

    def data_import(config: str, path, *overrides, options=()):
        everything = sets(f"source.path={path}", f"output={tmp_path / 'imported'}", *overrides)
        return call("data", "import", REPO / "configs" / f"{config}.yaml", *everything, *options)

    return data_import


def manifest(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "imported/manifest.jsonl").read_text("utf-8").splitlines()]


def rejected(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "imported/rejected.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", [*KINDS, *PRESETS])
def test_imported_checked_packed_and_trained_for_one_step(name, clips, data_import, call, tmp_path):
    source, overrides = (KINDS | PRESETS)[name](clips, tmp_path / "source")
    config = f"import/{name}" if name in PRESETS else "import"
    kind = [] if name in PRESETS else [f"source.kind={name}"]
    result = data_import(config, source, *kind, *overrides)
    assert result.exit_code == 0, result.stderr
    rows = manifest(tmp_path)
    assert len(rows) == CLIPS, rejected(tmp_path)
    train = sum(row["split"] == "train" for row in rows)
    target = "text" if name in ("librispeech", "multimed") else "tags"
    pack = sets(
        f"manifest={tmp_path / 'imported/manifest.jsonl'}", f"output={tmp_path / 'packed'}", f"target={target}",
        "check.allow=[near_duplicate_text, too_much_speech, speaker_in_two_splits]",  # texts here are not what is said
        *(["check.letters_per_second=[0.1, 1000]"] if name in PRESETS else []),
    )  # fmt: skip
    result = call("data", "check", REPO / "configs/demo/pack.yaml", *pack)
    assert result.exit_code == 0, result.stdout + result.stderr
    result = call("data", "pack", REPO / "configs/demo/pack.yaml", *pack)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "packed/metrics.json").read_text("utf-8"))["packed"] == CLIPS
    sft = sets(f"dataset={tmp_path / 'packed'}", f"output={tmp_path / 'sft'}", "train.epochs=1", "train.batch_size=8")
    result = call("sft", REPO / "configs/demo/sft.yaml", *sft)
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "sft/metrics.json").read_text("utf-8"))
    assert (metrics["steps"], metrics["train_rows"]) == (1, train)


def test_what_the_presets_make_of_a_row(clips, data_import, tmp_path):
    expected = {
        "disfluency-speech": [
            "so, [laughs] i left the key at home.",
            "i [sighs] i, uh, told you.",
            "plain words here.",
            "well yes.",
        ],
        "nonverbal-tts": ["well [laughs] that is fine.", "[angry] leave me alone.", "[sad] oh [sighs] again.", "plain words."],
        "expresso": ["[whispers] sentence number 0.", "[laughs] sentence number 1.", "sentence number 2.", "sentence number 3."],
        "librispeech": ["chapter 0 of the book"],
        "multimed": ["the patient has 0 complaints"],
    }
    for name, texts in expected.items():
        source, overrides = PRESETS[name](clips, tmp_path / name)
        result = data_import(f"import/{name}", source, *overrides, options=("--overwrite",))
        assert result.exit_code == 0, result.stderr
        rows = manifest(tmp_path)
        assert [row["text"] for row in rows][: len(texts)] == texts
        assert {row["license"] for row in rows} == {
            yaml.safe_load((REPO / f"configs/import/{name}.yaml").read_text("utf-8"))["license"]
        }
    assert "tags [lipsmack] dropped" not in result.stdout


def test_each_language_of_multimed_by_two_settings(clips, data_import, tmp_path):
    """The names of configurations and splits on the public card."""
    for name, code in {"German": "de", "French": "fr", "Chinese": "zh", "Vietnamese": "vi"}.items():
        source, _ = multimed(clips, tmp_path / name, name, "dev" if name == "Vietnamese" else "eval")
        splits = ["source.splits={train: train, dev: validation, test: test}"] if name == "Vietnamese" else []
        overrides = [f"source.name={name}", f"language={code}", *splits]
        result = data_import("import/multimed", source, *overrides, options=("--overwrite",))
        assert result.exit_code == 0, result.stderr
        assert [(row["language"], row["split"]) for row in manifest(tmp_path)] == [
            *[(code, "train")] * 6, (code, "validation"), (code, "test"),
        ]  # fmt: skip


def test_languages_of_rows_as_codes_and_mixed(clips, data_import, call, tmp_path):
    given = ["de", "de-DE", "deu", "German", "zh_TW", "", "Klingon", 7]
    rows = [
        {"audio": str(clip["audio"]), "text": f"{index}.", "spoken": language}
        for index, (clip, language) in enumerate(zip(clips, given, strict=True))
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    result = data_import("import", source, "source.kind=jsonl", "columns.language=spoken", "language=en")
    assert result.exit_code == 0, result.stderr
    assert [row["language"] for row in manifest(tmp_path)] == ["de", "de", "de", "de", "zh", "en"]
    assert [each["reason"] for each in rejected(tmp_path)] == [
        f"'{name}' is not a language with a code of two letters — write its ISO 639-1 code: en, de, fr, vi, zh …"
        for name in ("Klingon", 7)
    ]
    read = sets(f"manifest={tmp_path / 'imported/manifest.jsonl'}")
    result = call("data", "check", REPO / "configs/demo/pack.yaml", *read)
    assert re.search(r"languages +de 4, zh 1, en 1\n", result.stdout)
    result = call("data", "stats", REPO / "configs/stats.yaml", *read, *sets(f"output={tmp_path / 'stats'}"))
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "stats/stats.json").read_text("utf-8"))["languages"] == {"de": 4, "zh": 1, "en": 1}
    assert "<h2>Languages</h2>" in (tmp_path / "stats/report.html").read_text("utf-8")


def test_an_unknown_language_in_the_config_is_refused_before_anything_is_written(clips, data_import, tmp_path):
    source, _ = parquet(clips, tmp_path / "source")
    result = data_import("import", source, "source.kind=parquet", "language=xx")
    assert result.exit_code == 2
    assert "language: 'xx' is not a language with a code of two letters" in result.stderr
    assert not (tmp_path / "imported").exists()


def test_what_was_done_to_tags_is_counted_and_reported(clips, data_import, tmp_path):
    texts = [
        "[giggles] one.",
        "[Giggles] two.",
        "[clears his throat] three.",
        "[cough] four.",
        "[coughs loudly] five.",
        "[laughs] six.",
    ]
    rows = [{"audio": str(clip["audio"]), "text": text} for clip, text in zip(clips, texts, strict=False)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    result = data_import("import", path, "source.kind=jsonl", "tags.map={cough: clears throat}")
    assert result.exit_code == 0, result.stderr
    assert [row["text"] for row in manifest(tmp_path)] == [
        "[laughs] one.", "[laughs] two.", "[clears throat] three.", "[clears throat] four.", "[laughs] six.",
    ]  # fmt: skip
    assert "unknown tag [coughs loudly]" in rejected(tmp_path)[0]["reason"]
    done = json.loads((tmp_path / "imported/metrics.json").read_text("utf-8"))["tags_changed"]
    assert done == {"[giggles] → [laughs]": 2, "[clears his throat] → [clears throat]": 1, "[cough] → [clears throat]": 1}
    for line in ("6 = 5 imported + 1 rejected", "tags [giggles] → [laughs]"):
        assert line in result.stdout
    for unknown, text, what in (("keep", "[coughs loudly] five.", "kept, unknown"), ("drop", "five.", "dropped")):
        result = data_import("import", path, "source.kind=jsonl", f"tags.unknown={unknown}", options=("--overwrite",))
        assert manifest(tmp_path)[4]["text"] == text
        assert f"[coughs loudly] {what}" in result.stdout


def test_audio_on_disk_is_not_copied_and_bytes_are_written_as_they_came(clips, data_import, tmp_path):
    source, overrides = jsonl(clips, tmp_path / "source")
    data_import("import", source, "source.kind=jsonl", *overrides)
    assert not (tmp_path / "imported/audio").exists()
    assert (tmp_path / "imported" / manifest(tmp_path)[0]["audio"]).resolve() == clips[0]["audio"]
    source, _ = parquet(clips, tmp_path / "parquet")
    data_import("import", source, "source.kind=parquet", options=("--overwrite",))
    first = tmp_path / "imported" / manifest(tmp_path)[0]["audio"]
    assert first.parent == tmp_path / "imported/audio"
    assert first.read_bytes() == clips[0]["audio"].read_bytes()


def test_audio_as_an_array_is_written_as_flac(clips, data_import, tmp_path):
    samples, rate_hz = soundfile.read(clips[0]["audio"], dtype="float32")
    source = write_rows(
        tmp_path / "rows.jsonl", [{"audio": {"array": samples.tolist(), "sampling_rate": rate_hz}, "text": "one."}]
    )
    assert data_import("import", source, "source.kind=jsonl").exit_code == 0
    again, _ = soundfile.read(tmp_path / "imported" / manifest(tmp_path)[0]["audio"], dtype="float32")
    assert abs(again - samples).max() < 1e-4


def test_a_missing_column_is_named_with_those_there_are(clips, data_import, tmp_path):
    source, _ = csv_table(clips, tmp_path / "source")
    result = data_import("import", source, "source.kind=csv", "columns.audio=file")
    assert result.exit_code == 2
    assert "has no column 'text' — its columns are 'file', 'transcript', 'who', 'when': set `columns`" in result.stderr
    source, _ = hub(clips, tmp_path / "hub")
    result = data_import("import", source, "source.kind=hub", "source.splits={dev: validation}")
    assert result.exit_code == 2
    assert "has no split 'dev' — its splits: train, test: set source.splits" in result.stderr
    assert not (tmp_path / "imported").exists(), "so that the next call, with the config mended, finds nothing in its way"


def test_a_license_without_commercial_use_is_said_and_must_be_accepted(clips, data_import, tmp_path):
    source, overrides = expresso(clips, tmp_path / "source")
    refused = data_import("import/expresso", source)
    assert refused.exit_code == 2
    assert "forbids commercial use" in refused.stderr
    assert "set accept_license: cc-by-nc-4.0" in refused.stderr
    assert not (tmp_path / "imported").exists()
    accepted = data_import("import/expresso", source, *overrides)
    assert "cc-by-nc-4.0: NO COMMERCIAL USE, accepted in the config" in accepted.stdout
    for name, forbidden in (
        ("cc-by-nc-4.0", 1),
        ("CC BY-NC-SA 3.0", 1),
        ("non-commercial", 1),
        ("mit", 0),
        ("cc-by-4.0", 0),
        ("ncsa", 0),
    ):
        assert forbids_commercial_use(name) == bool(forbidden), name


def test_a_license_of_each_row(clips, data_import, tmp_path):
    rows = [
        {"audio": str(clips[i]["audio"]), "text": f"{i}.", "terms": terms}
        for i, terms in enumerate(("mit", "cc-by-nc-2.0", "mit"))
    ]
    result = data_import("import", write_rows(tmp_path / "rows.jsonl", rows), "source.kind=jsonl", "columns.license=terms")
    assert "3 = 2 imported + 1 rejected" in result.stdout
    assert "cc-by-nc-2.0 forbids commercial use" in rejected(tmp_path)[0]["reason"]


def test_every_bad_row_is_rejected_with_its_place_and_reason(clips, data_import, tmp_path):
    good = {"id": "good", "audio": str(clips[0]["audio"]), "text": "[sighs] fine.", "tags": ["sighs"], "plain": "fine"}
    bad = {
        "twice": good,
        "no-audio": good | {"id": "no-audio", "audio": "none.wav"},
        "null": good | {"id": "null", "audio": None},
        "text": good | {"id": "text", "text": " "},
        "brackets": good | {"id": "brackets", "text": "[sighs fine."},
        "words": good | {"id": "words", "plain": "different words"},
        "tags": good | {"id": "tags", "tags": ["laughs"]},
        "no-id": good | {"id": ""},
        "split": good | {"id": "split", "part": "holdout"},
        "column": {"id": "column", "audio": good["audio"], "tags": ["sighs"]},
    }
    rows = [good | {"part": "train"}, *({"part": "train"} | row for row in bad.values())]
    columns = ("id=id", "split=part", "plain_text=plain", "tags_used=tags")
    path = write_rows(tmp_path / "rows.jsonl", rows)
    result = data_import("import", path, "source.kind=jsonl", *(f"columns.{each}" for each in columns))
    assert result.exit_code == 0, result.stderr
    assert [row["id"] for row in manifest(tmp_path)] == ["good"]
    reasons = {name: row["reason"] for name, row in zip(bad, rejected(tmp_path), strict=True)}
    expected = {
        "twice": "duplicate id, first seen in row 1", "no-audio": "no such audio file", "null": "there is no audio in this row",
        "text": "`text` is empty", "brackets": "unclosed bracket", "words": "`plain_text` and `tagged_text` have different words",
        "tags": "`tags_used` and the tags in `tagged_text` differ: laughs, sighs", "no-id": "`id` is empty",
        "split": "unknown split 'holdout'", "column": "there is no column 'text'",
    }  # fmt: skip
    for name, reason in expected.items():
        assert reason in reasons[name], name
    assert [row["line"] for row in rejected(tmp_path)] == list(range(2, 12))


def test_a_folder_reports_what_has_no_counterpart(clips, data_import, tmp_path):
    folder, _ = folder_of_files(clips[:2], tmp_path / "source")
    shutil.copy(clips[2]["audio"], folder / "mute.flac")
    (folder / "lonely.txt").write_text("nobody says this", "utf-8")
    (folder / "notes.md").write_text("not a transcript", "utf-8")
    result = data_import("import", folder, "source.kind=folder")
    assert "4 = 2 imported + 2 rejected" in result.stdout
    reasons = {Path(row["file"]).name: row["reason"] for row in rejected(tmp_path)}
    assert "there is no column 'text'" in reasons["mute.flac"]
    assert "no audio file has this name" in reasons["lonely.txt"]
    assert {row["id"] for row in manifest(tmp_path)} == {"b/0", "a/1"}


def test_resumed_equals_uninterrupted(clips, data_import, tmp_path, monkeypatch):
    from evoxtral_train.stages.data import import_ as import_corpus

    source, _ = parquet(clips, tmp_path / "source")
    (tmp_path / "whole").mkdir()
    assert data_import("import", source, "source.kind=parquet", "tags.unknown=drop").exit_code == 0
    (tmp_path / "imported").rename(tmp_path / "whole/imported")
    monkeypatch.setattr(import_corpus, "_AT_ONCE", 2)
    place, calls = import_corpus.place_audio, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return place(*arguments)

    monkeypatch.setattr(import_corpus, "place_audio", killed)
    assert data_import("import", source, "source.kind=parquet", "tags.unknown=drop").exit_code == 130
    result = data_import("import", source, "source.kind=parquet", "tags.unknown=drop", options=("--resume",))
    assert result.exit_code == 0, result.stderr
    assert len(calls) == 6 + CLIPS - 4
    for name in ("manifest.jsonl", "rejected.jsonl"):
        assert (tmp_path / "imported" / name).read_bytes() == (tmp_path / "whole/imported" / name).read_bytes()


def test_a_plan_shows_the_columns_and_writes_nothing(clips, data_import, tmp_path):
    source, _ = csv_table(clips, tmp_path / "source")
    result = data_import(
        "import", source, "source.kind=csv", "columns.audio=file", "columns.text=transcript", options=("--dry-run",)
    )
    assert result.exit_code == 0, result.stderr
    assert "file, transcript, who, when" in result.stdout
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("so, <laughter> i <throat_clearing> go", {"event_pattern": r"<(\w+)>"}, "so, [laughter] i [throat clearing] go"),
        ("oh😂😂 no", {"replace": {"😂": "laughs"}}, "oh [laughs] [laughs] no"),
        ("🗣️ yes 🗣", {"replace": {"🗣️": "clears throat"}}, "[clears throat] yes [clears throat]"),
        ("HELLO THERE", {"lower_case": True}, "hello there"),
        ("oh 😮‍💨😮", {"replace": {"😮": "gasps", "😮‍💨": "sighs"}}, "oh [sighs] [gasps]"),
    ],
)
def test_transcripts(text, settings, expected):
    assert tagged_transcript(text, {}, Transcript(**settings)) == expected


def test_an_event_pattern_needs_one_group(data_import, tmp_path):
    result = data_import("import", tmp_path, "transcript.event_pattern='<.*>'")
    assert result.exit_code == 2
    assert "it needs exactly one group" in result.stderr
