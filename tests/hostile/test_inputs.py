"""Inputs that hang or blow up: pipes, devices, sockets, YAML aliases, Parquet bombs, folders that may not be read."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from evoxtral_train.config.loader import read_document
from evoxtral_train.errors import ConfigError
from hostile.limits import REPO, assert_plain, evoxtral, sets, within

PREDICTIONS = '{"id": "a", "reference": "[sighs] x", "prediction": "[sighs]"}\n'


@pytest.fixture
def special(tmp_path):
    """A pipe that nobody writes to, a socket, and a device without an end."""
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    yield {tmp_path / "pipe": "a pipe", tmp_path / "socket": "a socket", Path("/dev/zero"): "a device", tmp_path: "a folder"}
    server.close()


READERS = {
    "config": (["data", "check"], None),
    "manifest": (["data", "check", "configs/demo/pack.yaml"], "manifest={}"),
    "manifest of pack": (["data", "pack", "configs/demo/pack.yaml"], "manifest={}"),
    "manifest of stats": (["data", "stats", "configs/stats.yaml"], "manifest={}"),
    "tags": (["data", "stats", "configs/stats.yaml"], "tags.table={}"),
    "scripts": (["data", "synth", "configs/synth.yaml"], "scripts={}"),
    "grammar": (["data", "synth", "configs/synth.yaml"], "grammar={}"),
    "jsonl": (["data", "import", "configs/import.yaml"], "source.path={} source.kind=jsonl"),
    "csv": (["data", "import", "configs/import.yaml"], "source.path={}"),
    "parquet": (["data", "import", "configs/import.yaml"], "source.path={} source.kind=parquet"),
    "dataset": (["data", "import", "configs/import.yaml"], "source.path={} source.kind=dataset"),
    "folder": (["data", "import", "configs/import.yaml"], "source.path={} source.kind=folder"),
    "predictions": (["eval-predictions"], None),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_before_it_is_opened(special, call, tmp_path, reader):
    command, overrides = READERS[reader]
    for path, kind in special.items():
        if kind == "a folder" and reader in ("csv", "parquet", "dataset", "folder", "jsonl"):
            continue  # a folder may be a source, or is refused as the wrong kind
        more = (
            sets(*overrides.format(*[path] * overrides.count("{}")).split(), f"output={tmp_path / 'out'}")
            if overrides
            else [path]
        )
        with within(10):
            result = call(*command, *more)
        assert result.exit_code == 2, (path, result.stdout, result.stderr)
        assert_plain(result.stderr)
        assert f"{path}: is {kind}" in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


def test_an_audio_file_that_is_none_is_its_rows_fault(special, call, tmp_path):
    soundfile.write(tmp_path / "good.wav", 0.1 * np.ones(8_000), 16_000)
    rows = [{"id": "good", "audio": "good.wav"}, *({"id": kind, "audio": str(path)} for path, kind in special.items())]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row | {"text": "well.", "split": "train"}) + "\n" for row in rows), "utf-8")
    with within(60):
        arguments = sets(f"manifest={manifest}", f"output={tmp_path / 'packed'}")
        result = call("data", "pack", REPO / "configs/demo/pack.yaml", *arguments)
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in (tmp_path / "packed/rejected.jsonl").read_text("utf-8").splitlines()]
    assert [(row["id"], row["reason"].partition(":")[0]) for row in found] == [
        ("a pipe", "the audio file is a pipe, not a file"), ("a socket", "the audio file is a socket, not a file"),
        ("a device", "the audio file is a device, not a file"), ("a folder", "no such audio file"),
    ]  # fmt: skip
    with within(60):
        where = (f"source.path={manifest}", f"output={tmp_path / 'imported'}", "source.kind=jsonl")
        result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert "5 = 1 imported + 4 rejected" in result.stdout, result.stderr


def test_a_folder_of_clips_passes_over_pipes(special, call, tmp_path):
    os.mkfifo(tmp_path / "clip.wav")
    os.mkfifo(tmp_path / "good.txt")
    soundfile.write(tmp_path / "good.wav", 0.1 * np.ones(8_000), 16_000)
    (tmp_path / "good.json").write_text('{"text": "well."}', "utf-8")
    with within(60):
        where = (f"source.path={tmp_path}", f"output={tmp_path.parent / 'imported'}", "source.kind=folder")
        result = call("data", "import", REPO / "configs/import.yaml", *sets(*where), "--overwrite")
    assert "1 = 1 imported + 0 rejected" in result.stdout, result.stderr


def test_predictions_may_come_from_standard_input_and_from_the_shell(tmp_path):
    done = evoxtral("eval-predictions", "/dev/stdin", "--bootstrap-samples", 10, input=PREDICTIONS)
    assert json.loads(done.stdout)["micro"]["f1"]["value"] == 1.0
    (tmp_path / "p.jsonl").write_text(PREDICTIONS, "utf-8")
    command = f"{sys.executable} -m evoxtral_train.cli eval-predictions <(cat {tmp_path / 'p.jsonl'}) --bootstrap-samples 10"
    done = subprocess.run(["bash", "-c", command], cwd=REPO, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["clips"] == 1
    done = evoxtral("eval-predictions", "/dev/stdin", input=PREDICTIONS + '{"id": "b"}\n')
    assert done.returncode == 2
    assert "/dev/stdin:2: `reference` is missing or not text" in done.stderr


def bomb(key: str, levels: int = 9) -> str:
    """Ten aliases of ten aliases …: a few hundred bytes, 10^levels values."""
    lines = ["x0: &x0 lol"] + [f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join([*lines, f"{key}: [{', '.join([f'*x{levels - 1}'] * 10)}]"]) + "\n"


YAML = {
    "aliases under a known key": (bomb("manifest"), "its aliases (*name) add 1,234,567,890 values"),
    "aliases of keys": ("a: &a {k: v}\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9)) + bomb("tags"), "its aliases"),
    "holds itself": ("manifest: &m [*m]\n", "nested too deeply, or holds itself"),
    "deep": ("manifest: " + "[" * 50_000 + "]" * 50_000, "nested too deeply"),
    "long integer": (f"processes: {'9' * 5_000}\n", "not YAML: Exceeds the limit"),
    "no date": ("manifest: 2024-99-99\n", "not YAML: month must be in 1..12"),
    "tag": ("manifest: !!timestamp x\n", "a value is not what its type says"),
    "key": ("[1, 2]: x\n", "unhashable key"),
    "half a character": ('manifest: "\\uD83D"\n', "line 1: '\\ud83d' is no text"),
    "NUL": ('manifest: "a\\0b"\n', "line 1: 'a\\x00b' is no text"),
    "long value": (f"processes: {'x' * 1_000_000}\n", "Input should be a valid integer"),
    "long key": (f"? {'x' * 1_000_000}\n: 1\n", "unknown key"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_yaml_that_blows_up_is_refused(call, tmp_path, name):
    text, reason = YAML[name]
    (tmp_path / "config.yaml").write_text(text, "utf-8")
    with within(20):
        result = call("data", "check", tmp_path / "config.yaml")
    assert result.exit_code == 2, result.stderr
    assert_plain(result.stderr.replace("ConstructorError", ""))
    assert reason in result.stderr, result.stderr[:2000]
    assert name == "long key" or len(result.stderr) < 2_000


NUMBERS = {
    "audio.prepad_samples=1000000000000000": "audio.prepad_samples: Value error, the number is too large",
    "layout.room_tokens=1000000000000": "layout.room_tokens: Value error, the number is too large",
    "audio.max_seconds=1e300": "audio.max_seconds: Value error, the number is too large",
    "check.letters_per_second=[30, 3]": "the first number must not be greater than the second",
    'manifest="\ud800"': "not a YAML value: unacceptable character #xd800",
}


@pytest.mark.parametrize("override", NUMBERS)
def test_a_value_that_no_stage_can_work_with_is_refused_by_name(call, override):
    """They ended as "there is not enough memory", an OverflowError or a ReaderError, seconds or hours later."""
    result = call("data", "check", REPO / "configs/demo/pack.yaml", "--set", override)
    assert result.exit_code == 2
    assert NUMBERS[override] in result.stderr


def test_a_home_folder_is_the_home_folder(tmp_path, monkeypatch):
    """`output: ~/runs` made a folder called "~"."""
    from evoxtral_train.config.data import StatsConfig
    from evoxtral_train.config.loader import load_config

    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(REPO / "configs/stats.yaml", StatsConfig, ["output=~/runs/stats", "manifest=a~/b"])
    assert (config.output, config.manifest) == (tmp_path / "runs/stats", Path("a~/b"))


def test_findings_replace_no_file_that_no_check_wrote(call, tmp_path):
    """`--findings manifest.jsonl` emptied the manifest."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.ones(8_000), 16_000)
    manifest, found = tmp_path / "manifest.jsonl", tmp_path / "found.jsonl"
    manifest.write_text('{"id": "a", "audio": "a.wav", "text": "well.", "split": "train"}\n', "utf-8")
    check = ("data", "check", REPO / "configs/demo/pack.yaml", *sets(f"manifest={manifest}"), "--findings")
    for path in (manifest, tmp_path):
        result = call(*check, path)
        assert result.exit_code == 2
        assert f"{path}: " in result.stderr and "for --findings" in result.stderr
    assert manifest.read_text("utf-8").startswith('{"id": "a"')
    for _ in range(2):  # its own file it replaces
        assert call(*check, found, "--set", "check.silent_dbfs=0").exit_code == 1
        assert '"kind": "silent"' in found.read_text("utf-8")


def test_bombs_elsewhere_than_in_a_config(call, tmp_path):
    (tmp_path / "bomb.yaml").write_text(bomb("slots"), "utf-8")
    config, pack = REPO / "configs/synth.yaml", REPO / "configs/demo/pack.yaml"
    deep = "[" * 5_000 + "]" * 5_000
    for command in (
        ("synth", config, *sets(f"grammar={tmp_path / 'bomb.yaml'}", f"output={tmp_path / 'out'}")),
        ("check", pack, *sets(f"tags.table={tmp_path / 'bomb.yaml'}")),
        ("check", pack, "--set", f"tags.map={bomb('x').replace(chr(10), ' ')}"),
        ("check", pack, "--set", f"tags.map={deep}"),
        ("check", pack, "--set", f"processes={'9' * 5_000}"),
    ):
        with within(20):
            result = call("data", *command)
        assert result.exit_code == 2, result.stderr
        assert "Traceback" not in result.stderr and "--debug" not in result.stderr
        assert len(result.stderr) < 15_000


def test_a_few_aliases_are_welcome(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [1, 2]\nb: *a\nc: [*a, *a]\n", "utf-8")
    assert read_document(tmp_path / "a.yaml") == {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}
    (tmp_path / "a.yaml").write_text("a: &a [" + "1, " * 999 + "1]\nb: [" + "*a, " * 12 + "*a]\n", "utf-8")
    with pytest.raises(ConfigError, match=r"its aliases \(\*name\) add 13,013 values to it, 10,000 are allowed"):
        read_document(tmp_path / "a.yaml")


def write_parquet(path: Path, audio, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"audio": audio, "text": [f"clip {path} {number}." for number in range(len(audio))]})
    pyarrow.parquet.write_table(table, path, **options)
    return path


def tone_bytes(level: float = 0.1) -> bytes:
    import io

    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(4_000, level), 16_000, format="WAV")
    return buffer.getvalue()


def test_a_parquet_that_repeats_one_large_value_takes_the_memory_of_one(tmp_path):
    """10 kB that hold one value of 50 MB, in 64 rows: read at once they were 3.3 GB."""
    value = pyarrow.array([tone_bytes() + bytes(50 * 2**20)], pyarrow.binary())
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 64, pyarrow.int32()), value)
    path = write_parquet(
        tmp_path / "rows.parquet", repeated, compression="zstd", dictionary_pagesize_limit=2**30,
        store_schema=False,
    )  # fmt: skip
    assert path.stat().st_size < 30_000
    where = (f"source.path={path}", f"output={tmp_path / 'imported'}", "source.kind=parquet", "source.max_rows=3")
    # Reading all 64 at once needs more than this.
    done = evoxtral("data", "import", "configs/import.yaml", *sets(*where), memory_bytes=3 * 2**30, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert "3 = 3 imported + 0 rejected" in done.stdout


def test_a_parquet_bomb_is_refused_by_its_metadata(call, tmp_path, monkeypatch):
    from evoxtral_train.corpus import sources

    monkeypatch.setattr(sources, "_BOMB_BYTES", 2**23)  # of a gigabyte, so that the test is cheap
    audio = pyarrow.array([bytes(2**20)] * 10, pyarrow.binary())
    path = write_parquet(tmp_path / "rows.parquet", audio, compression="zstd", use_dictionary=False)
    where = (f"source.path={path}", f"output={tmp_path / 'imported'}", "source.kind=parquet")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert result.exit_code == 2
    assert_plain(result.stderr)
    assert f"{path}: {path.stat().st_size:,} bytes expand to 10,48" in result.stderr
    assert not (tmp_path / "imported").exists()


def test_a_damaged_parquet_is_one_line(call, tmp_path):
    path = write_parquet(tmp_path / "rows.parquet", pyarrow.array([tone_bytes()] * 40, pyarrow.binary()), use_dictionary=False)
    content = bytearray(path.read_bytes())
    for damaged in (content[:100], content[: len(content) // 2], content[:8] + bytes(4_000) + content[4_008:]):
        path.write_bytes(damaged)
        where = (f"source.path={path}", f"output={tmp_path / 'imported'}", "source.kind=parquet")
        result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
        assert result.exit_code == 2, result.stderr
        assert_plain(result.stderr)
        assert f"{path}: not a Parquet file" in result.stderr


def test_the_hubs_own_layout(call, tmp_path):
    """`train/0000.parquet` and `test/0000.parquet` were duplicates of each other; now the folder is the split."""
    source = tmp_path / "source"
    for place, name in enumerate(("train/0000", "train/0001", "test/0000", "validation/0000", "other/0000"), start=1):
        write_parquet(source / "default" / f"{name}.parquet", pyarrow.array([tone_bytes(0.02 * place)] * 2, pyarrow.binary()))
    where = (f"source.path={source}", f"output={tmp_path / 'imported'}", "source.kind=parquet")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert "10 = 10 imported + 0 rejected" in result.stdout, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "imported/manifest.jsonl").read_text("utf-8").splitlines()]
    splits = {row["id"].removeprefix("default/").rpartition("-")[0]: row["split"] for row in rows}
    assert {part: split for part, split in splits.items() if not part.startswith("other")} == {
        "train/0000": "train", "train/0001": "train", "test/0000": "test", "validation/0000": "validation",
    }  # fmt: skip
    levels = [round(soundfile.read(tmp_path / "imported" / row["audio"])[0][0], 2) for row in rows]
    assert sorted(levels) == sorted(2 * [0.02, 0.04, 0.06, 0.08, 0.1])
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where, "source.splits={other: raft}"), "--overwrite")
    rows = [json.loads(line) for line in (tmp_path / "imported/manifest.jsonl").read_text("utf-8").splitlines()]
    assert [row["split"] for row in rows if "other" in row["id"]] == ["raft", "raft"]


@pytest.fixture
def powerless():
    """The start of a command that may not read what its permissions forbid: root may otherwise."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root reads everything, and setpriv is not there")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@pytest.mark.slow
def test_a_folder_that_may_not_be_read(powerless, tmp_path):
    """`data pack` said "free some space" of it, and `data import` passed over it without a word."""
    locked = tmp_path / "clips" / "locked"
    locked.mkdir(parents=True)
    for folder in (locked, locked.parent):
        soundfile.write(folder / "a.wav", 0.1 * np.ones(8_000), 16_000)
        (folder / "a.txt").write_text("well.", "utf-8")
    rows = [{"id": path, "audio": f"clips/{path}", "text": "well.", "split": "train"} for path in ("a.wav", "locked/a.wav")]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    locked.chmod(0)
    try:
        where = sets(f"manifest={tmp_path / 'manifest.jsonl'}", f"output={tmp_path / 'packed'}", "processes=1")
        packed = evoxtral("data", "pack", "configs/demo/pack.yaml", *where, prefix=powerless, timeout_s=120)
        where = sets(f"source.path={tmp_path / 'clips'}", f"output={tmp_path / 'imported'}", "source.kind=folder")
        imported = evoxtral("data", "import", "configs/import.yaml", *where, prefix=powerless)
    finally:
        locked.chmod(stat.S_IRWXU)
    assert packed.returncode == 0, packed.stderr
    [row] = [json.loads(line) for line in (tmp_path / "packed/rejected.jsonl").read_text("utf-8").splitlines()]
    assert row["reason"] == f"the audio file cannot be read: Permission denied: {locked / 'a.wav'}"
    assert imported.returncode == 2
    assert f"{locked}: cannot be read: Permission denied" in imported.stderr
    assert_plain(imported.stderr)


def test_files_whose_names_are_no_text(call, tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in (b"good", b"caf\xe9"):
        path = os.fsencode(folder) + b"/" + name
        with open(path + b".wav", "wb") as file:  # noqa: PTH123 - names in bytes
            file.write(tone_bytes())
        with open(path + b".txt", "wb") as file:  # noqa: PTH123
            file.write(b"well.")
    where = (f"source.path={folder}", f"output={tmp_path / 'imported'}", "source.kind=folder")
    result = call("data", "import", REPO / "configs/import.yaml", *sets(*where))
    assert "2 = 1 imported + 1 rejected" in result.stdout, result.stderr
    [row] = [json.loads(line) for line in (tmp_path / "imported/rejected.jsonl").read_text("utf-8").splitlines()]
    assert (row["id"], "`id` contains half of a character" in row["reason"]) == ("caf\\udce9", True)
    assert row["file"].endswith("caf\\udce9.wav")
