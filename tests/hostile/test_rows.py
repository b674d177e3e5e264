"""Bad rows, one of each kind: all are rejected with file, row, id and reason, and the good ones go on, in every stage."""

import json
import re
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from evoxtral_train.data.manifest import FIELDS, ManifestRow, Rejected, iter_manifest
from evoxtral_train.errors import RowError
from evoxtral_train.reading import file_name, parse_json, writable
from evoxtral_train.records import Candidate, Prediction, read_rows, typed_row
from hostile.limits import REPO, assert_plain, sets

HALF = "\ud83d"  # of an emoji: JSON may say so, UTF-8 cannot
DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5_000


def good(identity: str) -> dict:
    return {"id": identity, "audio": "tone.wav", "text": "[sighs] i told you.", "split": "train"}


def spans(kind: str, **changes) -> list[dict]:
    return [{kind: "sighs", "start_s": 0.1, "end_s": 0.4} | changes]


# name -> (what the row has in place of the good one's, the reason); the row's id is the name where it has one
FIELD_FAULTS = {
    "half-text": ({"text": f"well {HALF} yes"}, "`text` contains half of a character"),
    "half-id": ({"id": f"half-id{HALF}"}, "`id` contains half of a character"),
    "half-audio": ({"audio": f"{HALF}.wav"}, "`audio` contains half of a character"),
    "half-speaker": ({"speaker": HALF}, "`speaker` contains half of a character"),
    "half-tag": ({"text": f"[{HALF}] yes"}, "`text` contains half of a character"),
    "half-event": ({"events": spans("tag", tag=HALF)}, "`tag` contains half of a character"),
    "half-word": ({"words": spans("word", word=HALF)}, "`word` contains half of a character"),
    "nul": ({"text": "well\0 yes"}, r"`text` contains the control character '\\x00'"),
    "lines": ({"source": "mine\n## Results"}, r"`source` contains the control character '\\n'"),
    "escape": ({"speaker": "\x1b[31mann"}, r"`speaker` contains the control character '\\x1b'"),
    "speaker-object": ({"speaker": {}}, "`speaker` is {}, not text"),
    "speaker-number": ({"speaker": 7}, "`speaker` is 7, not text"),
    "license-number": ({"license": 5}, "`license` is 5, not text"),
    "source-list": ({"source": ["a"]}, r"`source` is \['a'\], not text"),
    "language-true": ({"language": True}, "`language` is True, not text"),
    "split-list": ({"split": ["train"]}, r"`split` is \['train'\], not text"),
    "split-unknown": ({"split": "dev"}, "unknown split 'dev'"),
    "text-number": ({"text": 5}, "`text` is 5, not text"),
    "audio-object": ({"audio": {"bytes": "x"}}, "`audio` is {'bytes': 'x'}, not text"),
    "id-number": ({"id": 5}, "`id` is 5, not text"),
    "id-null": ({"id": None}, "`id` is missing or empty"),
    "id-empty": ({"id": ""}, "`id` is missing or empty"),
    "id-blank": ({"id": "  "}, "`id` is missing or empty"),
    "id-list": ({"id": []}, "`id` is missing or empty"),
    "long-name": ({"audio": "x" * 300 + ".wav"}, "the audio file cannot be read: File name too long"),
    "nul-name": ({"audio": "x\0.wav"}, "`audio` contains the control character"),
    "words-number": ({"words": 5}, "`words` is not a list of objects"),
    "words-texts": ({"words": ["well"]}, "`words` is not a list of objects"),
    "word-number": ({"words": spans("word", word=5)}, "`word` is 5, not text"),
    "word-time": ({"words": spans("word", start_s="0.1")}, "bad times of a word or event"),
    "tag-missing": ({"events": [{"start_s": 0.1, "end_s": 0.2}]}, "`tag` is None, not text"),
    "time-true": ({"events": spans("tag", start_s=True)}, "bad times of a word or event"),
    "time-nan": ({"events": spans("tag", end_s=float("nan"))}, "bad times of a word or event"),
    "time-infinite": ({"events": spans("tag", end_s=float("inf"))}, "bad times of a word or event"),
    "time-negative": ({"events": spans("tag", start_s=-1)}, "0 ≤ start_s ≤ end_s must hold"),
    "time-backwards": ({"words": spans("word", start_s=1, end_s=0.5)}, "0 ≤ start_s ≤ end_s must hold"),
    "event-after-the-end": ({"events": spans("tag", end_s=2.2)}, r"'\[sighs\]' ends at 2.2 s, but the clip ends at 2.00 s"),
    "word-after-the-end": ({"words": spans("word", end_s=1e300)}, r"'sighs' ends at 1e\+300 s, but the clip ends at 2.00 s"),
    "unknown-field": ({f"x{HALF}": 1}, "unknown field"),
    "tag-without-end": ({"text": f"[{'a' * 1_000_000}] yes"}, r"unknown tag \[aaa"),
    "huge-integer": ({"speaker": "LONG"}, "`speaker` is inf, not text"),
    "huge-time": ({"events": spans("tag", end_s="LONG")}, "bad times of a word or event"),
    "beyond-a-float": ({"events": spans("tag", end_s="1e400")}, "bad times of a word or event"),
}  # fmt: skip
LINE_FAULTS = {
    "deep": (f'{{"id": "deep", "words": {DEEP}}}', "nested too deeply"),
    "half a row": ('{"id": "half a row", ', "not JSON"),
    "an array in the middle": ("[1, 2]", "this row is not a JSON object"),
    "null": ("null", "this row is not a JSON object"),
    "a key twice": ('{"id": "a", "audio": "tone.wav", "text": "a.", "text": "b."}', "not JSON: the key 'text' is there twice"),
    "not UTF-8": ('{"id": "é"}'.encode("latin-1"), "not UTF-8 text"),
}
FAULTS = FIELD_FAULTS | LINE_FAULTS


def as_line(row: dict) -> str:
    return json.dumps(row).replace('"LONG"', LONG).replace('"1e400"', "1e400")


def lines_of(row_of=good) -> list[str | bytes]:
    """A good row, each fault, and a good row again."""
    faults = [as_line(row_of(name) | changes) for name, (changes, _) in FIELD_FAULTS.items()]
    return [as_line(row_of("first")), *faults, *(line for line, _ in LINE_FAULTS.values()), as_line(row_of("last"))]


def write_lines(path, lines) -> None:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    tone = 0.1 * np.sin(2 * np.pi * 220 * np.arange(2 * 16_000) / 16_000)
    soundfile.write(folder / "tone.wav", tone, 16_000)
    write_lines(folder / "manifest.jsonl", lines_of())
    return folder


@pytest.fixture(scope="module")
def pack(call, corpus):
    """What `data pack` said of the rows above, what it packed and what it rejected."""
    config = REPO / "configs/demo/pack.yaml"
    arguments = sets(f"manifest={corpus / 'manifest.jsonl'}", f"output={corpus / 'packed'}")
    return call("data", "pack", config, *arguments), read_lines(corpus / "packed/rejected.jsonl")


@pytest.fixture(scope="module")
def check(call, corpus):
    config = REPO / "configs/demo/pack.yaml"
    result = call("data", "check", config, *sets(f"manifest={corpus / 'manifest.jsonl'}"), "--findings", corpus / "found.jsonl")
    return result, [row for row in read_lines(corpus / "found.jsonl") if row["kind"] == "rejected"]


def test_rows_in_are_packed_and_rejected(pack, corpus):
    result, rejected = pack
    assert result.exit_code == 0, result.stderr
    assert_plain(result.stderr)
    metrics = json.loads((corpus / "packed/metrics.json").read_text("utf-8"))
    assert (metrics["packed"], metrics["rejected"], len(rejected)) == (2, len(FAULTS), len(FAULTS))
    assert [row["line"] for row in rejected] == list(range(2, 2 + len(FAULTS)))


@pytest.mark.parametrize("name", FAULTS)
def test_each_is_named_with_its_reason(pack, corpus, name):
    row = pack[1][list(FAULTS).index(name)]
    assert row["file"] == str(corpus / "manifest.jsonl")
    assert re.search(FAULTS[name][1], row["reason"]), row["reason"]
    assert len(row["reason"]) <= 1100
    identity = FIELD_FAULTS.get(name, ({"id": None},))[0].get("id", name)
    assert row["id"] == (writable(identity) if isinstance(identity, str) else None)


def test_check_finds_what_pack_rejects(pack, check):
    result, found = check
    assert result.exit_code == 1
    assert_plain(result.stderr)
    result.stdout.encode("utf-8")
    places = ("line", "id", "reason")
    assert [[row[name] for name in places] for row in found] == [[row[name] for name in places] for row in pack[1]]


def test_stats_and_align_count_what_the_manifest_rejects(call, corpus):
    arguments = sets(f"manifest={corpus / 'manifest.jsonl'}", f"output={corpus / 'stats'}")
    result = call("data", "stats", REPO / "configs/stats.yaml", *arguments)
    assert result.exit_code == 0, result.stderr
    stats = json.loads((corpus / "stats/stats.json").read_text("utf-8"))
    # What only shows against the clip's end is not looked at there.
    assert (sum(stats["clips"].values()), stats["rejected"]) == (4, len(FAULTS) - 2)


IMPORTED = ("id", "split", "speaker", "license", "words", "events")
TAKEN = {
    "speaker-number", "license-number", "id-number", "source-list", "language-true", "lines", "unknown-field",
    "event-after-the-end", "word-after-the-end",
}  # fmt: skip


def test_an_import_goes_on_after_every_bad_row(call, corpus, tag_rules):
    """Columns that are not asked for may hold anything, and a number is a name; all else is rejected as in a manifest."""
    write_lines(corpus / "rows.jsonl", lines_of(lambda name: good(name) | dict.fromkeys(IMPORTED) | good(name)))
    where = (f"source.path={corpus / 'rows.jsonl'}", f"output={corpus / 'imported'}", "source.kind=jsonl")
    columns = [f"columns.{name}={name}" for name in IMPORTED]
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where, *columns))
    assert result.exit_code == 0, result.stderr
    assert_plain(result.stderr)
    rows, rejected = read_lines(corpus / "imported/manifest.jsonl"), read_lines(corpus / "imported/rejected.jsonl")
    assert {row["id"] for row in rows} == {"first", "last", "5", *TAKEN} - {"id-number"}
    by_line = {row["line"]: row for row in rejected}
    assert len(by_line) == len(rejected) == len(FAULTS) - len(TAKEN)
    for line, name in enumerate(FAULTS, start=2):
        assert (line not in by_line) == (name in TAKEN), (name, by_line.get(line))
    assert by_line[2 + list(FAULTS).index("split-list")]["reason"].startswith("`split` is ['train'], not a name")
    assert all(isinstance(row, ManifestRow) for row in iter_manifest(corpus / "imported/manifest.jsonl", tag_rules))


ARRAYS = {
    "good": ({"array": [0.1, -0.1] * 8_000, "sampling_rate": 16_000}, None),
    "two channels": ({"array": [[0.1] * 8_000, [0.3] * 8_000], "sampling_rate": 16_000}, None),
    "frames first": ({"array": [[0.1, 0.3]] * 8_000, "sampling_rate": 16_000}, None),
    "ragged": ({"array": [[0.1], [0.1, 0.2]], "sampling_rate": 16_000}, "not an array of numbers"),
    "texts": ({"array": ["a", "b"], "sampling_rate": 16_000}, "not an array of numbers"),
    "objects": ({"array": {"a": 1}, "sampling_rate": 16_000}, "not an array of numbers"),
    "number": ({"array": 0.5, "sampling_rate": 16_000}, r"has shape \(\)"),
    "empty": ({"array": [], "sampling_rate": 16_000}, r"has shape \(0,\)"),
    "deep": ({"array": [[[0.1]]], "sampling_rate": 16_000}, r"has shape \(1, 1, 1\)"),
    "no rate": ({"array": [0.1] * 100}, "`sampling_rate` of the audio is None"),
    "rate of text": ({"array": [0.1] * 100, "sampling_rate": "16000"}, "`sampling_rate` of the audio is '16000'"),
    "rate 0": ({"array": [0.1] * 100, "sampling_rate": 0}, "sample rate of 0 Hz"),
    "rate below 0": ({"array": [0.1] * 100, "sampling_rate": -16_000}, "sample rate of -16000 Hz"),
    "rate of a radio": ({"array": [0.1] * 100, "sampling_rate": 10**12}, "sample rate of 1000000000000 Hz"),
    "rate infinite": ({"array": [0.1] * 100, "sampling_rate": float("inf")}, "`sampling_rate` of the audio is inf"),
    "not a number": ({"array": [0.1, float("nan")], "sampling_rate": 16_000}, "1 samples that are not finite"),
    "integers": ({"array": [12_000, -12_000] * 100, "sampling_rate": 16_000}, "reaches 1.2e\\+04 times full scale"),
    "bytes of text": ({"bytes": 5, "path": None}, "there is no audio in this row"),
    "path of a number": ({"bytes": None, "path": 5}, "there is no audio in this row"),
    "pathless": ({}, "there is no audio in this row"),
    "list": ([1, 2], "there is no audio in this row"),
    "half": (f"{HALF}.wav", "its name is not valid text"),
    "long": ("x" * 300, "File name too long"),
}  # fmt: skip


def test_arrays_of_every_shape(call, tmp_path):
    rows = [{"audio": audio, "text": name} for name, (audio, _) in ARRAYS.items()]
    write_lines(tmp_path / "rows.jsonl", map(json.dumps, rows))
    where = (f"source.path={tmp_path / 'rows.jsonl'}", f"output={tmp_path / 'imported'}", "source.kind=jsonl")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert result.exit_code == 0, result.stderr
    assert_plain(result.stderr)
    found = {row["line"]: row["reason"] for row in read_lines(tmp_path / "imported/rejected.jsonl")}
    for line, (name, (_, reason)) in enumerate(ARRAYS.items(), start=1):
        assert bool(reason) == (line in found) and re.search(reason or "", found.get(line, "")), (name, found.get(line))
    for row in read_lines(tmp_path / "imported/manifest.jsonl")[1:]:
        samples, _ = soundfile.read(tmp_path / "imported" / row["audio"])
        assert (len(samples), round(samples[0], 2)) == (8_000, 0.2)


def test_a_bad_cell_of_a_table_is_its_rows_fault_alone(call, corpus, tmp_path):
    with (tmp_path / "rows.csv").open("wb") as file:
        file.write(b"audio,text,events,note\n")
        file.write(b"tone.wav,one.,[],caf\xe9\n")  # a column that nobody asks for
        file.write(b"tone.wav,caf\xe9.,[],\n")
        file.write(b'tone.wav,"three"x,[],\n')
        file.write(b'tone.wav,four.,"[{""tag"": ""sighs""",\n')
        file.write(f'tone.wav,five.,"{DEEP}",\n'.encode())
        file.write(b"tone.wav,six.,,,one field more\n")
        file.write(b"tone.wav,seven.,[],\n")
    shutil.copy(corpus / "tone.wav", tmp_path)
    where = (f"source.path={tmp_path / 'rows.csv'}", f"output={tmp_path / 'imported'}", "columns.events=events")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert result.exit_code == 0, result.stderr
    assert [row["text"] for row in read_lines(tmp_path / "imported/manifest.jsonl")] == ["one.", "seven."]
    found = {row["line"]: row["reason"] for row in read_lines(tmp_path / "imported/rejected.jsonl")}
    reasons = ["half of a character", "not CSV", "not JSON", "nested too deeply", "more fields than the header"]
    assert [line for line in found] == [3, 4, 5, 6, 7]
    assert all(reason in found[line] for line, reason in enumerate(reasons, start=3)), found


def test_two_columns_of_one_name_are_refused(call, corpus, tmp_path):
    """A row kept the last of them."""
    (tmp_path / "rows.csv").write_text("audio,text,text\ntone.wav,one.,two.\n", "utf-8")
    columns = [pyarrow.array([each]) for each in ("tone.wav", "one.", "two.")]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["audio", "text", "text"]), tmp_path / "rows.parquet")
    for kind in ("csv", "parquet"):
        where = (f"source.path={tmp_path / f'rows.{kind}'}", f"output={tmp_path / 'imported'}", f"source.kind={kind}")
        result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
        assert result.exit_code == 2
        assert f"rows.{kind}: has two columns called 'text' — rename one of them" in result.stderr


CSV = {
    "utf-16": ("audio,text\ntone.wav,one.\n".encode("utf-16"), "its header is not UTF-8 text — save the file as UTF-8"),
    "unclosed": (b'audio,text\ntone.wav,"one.\ntone.wav,two.\n', "no row can be imported: the only one is rejected"),
}


@pytest.mark.parametrize("name", CSV)
def test_a_csv_that_is_none_says_so(call, tmp_path, name):
    """Not that it has no column 'audio'."""
    (tmp_path / "rows.csv").write_bytes(CSV[name][0])
    where = (f"source.path={tmp_path / 'rows.csv'}", f"output={tmp_path / 'imported'}", "source.kind=csv")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert result.exit_code == 2
    assert CSV[name][1] in result.stderr


def test_parquet_values_that_python_cannot_read(call, corpus, tmp_path):
    text = pyarrow.Array.from_buffers(  # written without a check, as other programs do
        pyarrow.string(), 3, [None, pyarrow.py_buffer(np.array([0, 4, 8, 12], np.int32)), pyarrow.py_buffer(b"one.caf\xe9two.")]
    )
    when = pyarrow.array([1, 2**62, 3], pyarrow.timestamp("us"))
    table = pyarrow.table({"audio": ["tone.wav"] * 3, "text": text, "when": when})
    shutil.copy(corpus / "tone.wav", tmp_path)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    where = (f"source.path={tmp_path / 'rows.parquet'}", f"output={tmp_path / 'imported'}", "source.kind=parquet")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert result.exit_code == 0, result.stderr
    assert [row["text"] for row in read_lines(tmp_path / "imported/manifest.jsonl")] == ["one.", "two."]
    [row] = read_lines(tmp_path / "imported/rejected.jsonl")
    assert (row["line"], "contains a value that cannot be read" in row["reason"]) == (2, True)


IDS = ("a/b", "a b", "a-b", "a_b", "A-B", "../../up", "..", ".hidden", "-dash", "日本", "é", "x" * 5_000, "x" * 5_001, "a-b~1")


def test_every_id_has_its_own_file(call, tmp_path):
    """Ids `a/b` and `a b` were both audio/a-b.flac, and the first clip got the second's audio."""
    rows = [
        {"id": name, "audio": {"array": [0.02 * place] * 800, "sampling_rate": 16_000}, "text": f"row {place}."}
        for place, name in enumerate(IDS, start=1)
    ]
    write_lines(tmp_path / "rows.jsonl", map(json.dumps, rows))
    where = (f"source.path={tmp_path / 'rows.jsonl'}", f"output={tmp_path / 'imported'}", "source.kind=jsonl", "columns.id=id")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert result.exit_code == 0, result.stderr
    imported = read_lines(tmp_path / "imported/manifest.jsonl")
    assert [row["id"] for row in imported] == list(IDS)
    for place, row in enumerate(imported, start=1):
        samples, _ = soundfile.read(tmp_path / "imported" / row["audio"])
        assert round(samples[400], 2) == round(0.02 * place, 2), row
        assert row["audio"].startswith("audio/") and row["audio"].count("/") == 1
    assert [row["audio"] for row in imported][2:4] == ["audio/a-b.flac", "audio/a_b.flac"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_a_file_name_is_safe_and_short(identity):
    name = file_name(identity)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{,79}|[A-Za-z0-9_.-]{,80}~[0-9a-f]{16}", name)
    assert (name == identity) == ("~" not in name)
    assert len(name) <= 97


def test_scripts_with_any_id_are_spoken_and_bad_ones_rejected(call, tmp_path):
    rows = [
        {"id": "a/b", "text": "hello there."}, {"id": "a b", "text": "good morning."}, {"id": "../../up", "text": "good night."},
        {"id": 5, "text": "five."}, {"id": {}, "text": "six."}, {"text": HALF}, {"text": "well", "split": ["train"]},
        {"text": "[sihgs] no."}, {"tagged_text": "a", "plain_text": 5}, {"tagged_text": "a", "tags_used": 5}, {"text": "a\0b"},
        {"id": "a/b", "text": "again."}, {"id": HALF, "text": "x."},
    ]  # fmt: skip
    write_lines(tmp_path / "scripts.jsonl", [*map(json.dumps, rows), f'{{"text": {DEEP}}}'])
    where = (f"scripts={tmp_path / 'scripts.jsonl'}", f"output={tmp_path / 'spoken'}")
    result = call("data", "synth", REPO / "configs/synth.yaml", *sets(*where))
    assert result.exit_code == 0, result.stderr
    assert_plain(result.stderr)
    spoken = read_lines(tmp_path / "spoken/manifest.jsonl")
    assert [row["id"] for row in spoken] == ["a/b", "a b", "../../up"]
    assert {tmp_path / "spoken" / row["audio"] for row in spoken} == set((tmp_path / "spoken/audio").iterdir())
    assert [row["line"] for row in read_lines(tmp_path / "spoken/rejected.jsonl")] == list(range(4, 15))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20)
    | st.sampled_from(["[sighs] yes.", "train", "tone.wav", "en", 0.5, 10**300, [{"tag": "sighs", "start_s": 0, "end_s": 1}]]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["tag", "word", "start_s", "end_s"]) | st.text(st.characters()), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(row=st.dictionaries(st.sampled_from(FIELDS), VALUES), there=st.sets(st.sampled_from(["id", "audio", "text"])))
def test_any_row_is_good_or_rejected(row, there, tmp_path_factory, tag_rules, family):
    """Whatever JSON can say: never another error; a good row can be written and packed, and so can a rejection."""
    from evoxtral_train.config.data import PackConfig
    from evoxtral_train.dataset.rows import columns_of, with_family_defaults
    from evoxtral_train.dataset.writer import SCHEMA

    row |= {name: good("x")[name] for name in there}
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    [found] = iter_manifest(folder / "any.jsonl", tag_rules)
    if isinstance(found, ManifestRow):
        try:
            config = with_family_defaults(PackConfig(manifest=folder, output=folder, base="x"), type(family))
            columns = columns_of(found, 16_000, config, family)
        except RowError as error:
            found = Rejected.of("any.jsonl", 1, found.id, error)
        else:
            pyarrow.RecordBatch.from_pylist([columns | {"audio": "", "mel": b"", "mel_start": 0}], schema=SCHEMA)
            json.dumps(columns, ensure_ascii=False, allow_nan=False).encode("utf-8")
    if isinstance(found, Rejected):
        json.dumps(vars(found), ensure_ascii=False).encode("utf-8")
        assert found.reason.isprintable()


def test_json_numbers_beyond_all_bounds():
    assert parse_json(LONG) == float("inf")
    assert parse_json("1e400") == float("inf")
    assert parse_json("123456789012345678901234567890") == 123456789012345678901234567890
    with pytest.raises(RowError, match="nested too deeply"):
        parse_json(DEEP)


@pytest.mark.parametrize(
    ("row_type", "changes", "reason"),
    [
        (Prediction, {"prediction": None}, "`prediction` is None, not of type str"),
        (Prediction, {"prediction": ["a"]}, r"`prediction` is \['a'\], not of type str"),
        (Prediction, {"speaker": {}}, "`speaker` is {}, not of type str | None"),
        (Prediction, {"confidences": [0.5, None]}, r"`confidences` is \[0.5, None\]"),
        (Prediction, {"confidences": [float("nan")]}, r"`confidences` is \[nan\]"),
        (Prediction, {"id": HALF}, "`id` is '.ud83d'"),
        (Candidate, {"candidate_id": True}, "`candidate_id` is True, not of type int"),
        (Candidate, {"token_ids": [1, "2"]}, r"`token_ids` is \[1, '2'\], not of type list"),
        (Candidate, {"mean_logprob": float("inf")}, "`mean_logprob` is inf, not of type float"),
    ],
)
def test_a_record_has_the_types_of_its_class(row_type, changes, reason):
    rows = {
        Prediction: {"id": "a", "reference": "x", "prediction": "y"},
        Candidate: {"utterance_id": "a", "candidate_id": 0, "text": "x", "token_ids": [1], "seed": 0, "finish_reason": "eos",
                    "mean_logprob": -1},
    }  # fmt: skip
    typed_row(row_type, rows[row_type])
    with pytest.raises(RowError, match=reason):
        typed_row(row_type, rows[row_type] | changes)


PREDICTIONS = {
    '{"id": "b", "reference": "x", "prediction": null}': "`prediction` is missing or not text",
    '{"id": "b", "reference": "x", "prediction": "y", "speaker": {}}': "`speaker` is {}",
    '{"id": "b", "reference": "x", "prediction": "\\ud83d"}': "`prediction` is '\\ud83d'",
    '{"id": "\\ud83d", "reference": "x", "prediction": "y"}': "`id` is '\\ud83d'",
    f'{{"id": "b", "more": {DEEP}}}': "nested too deeply",
    f'{{"id": {LONG}}}': "`id` is missing or not text",
    '{"id": "a", "reference": "x", "prediction": "y"}': "duplicate id 'a', first seen in row 1",
}


@pytest.mark.parametrize("line", PREDICTIONS, ids=lambda line: PREDICTIONS[line][:20])
def test_a_bad_prediction_is_named(call, tmp_path, line):
    write_lines(tmp_path / "p.jsonl", ['{"id": "a", "reference": "[sighs] x", "prediction": "[sighs]"}', line])
    result = call("eval-predictions", tmp_path / "p.jsonl", "--unit", "speaker", "--bootstrap-samples", 10)
    assert result.exit_code == 2
    assert_plain(result.stderr)
    assert "p.jsonl:2: " in result.stderr and PREDICTIONS[line] in result.stderr
    if "duplicate" not in PREDICTIONS[line] and "id" not in PREDICTIONS[line][:4]:
        from evoxtral_train.errors import UsageError

        with pytest.raises(UsageError, match=r"p.jsonl:2: "):
            read_rows(tmp_path / "p.jsonl", Prediction)
