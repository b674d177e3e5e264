"""`evoxtral cache`: what is listed, what is removed, and what never is."""

import json
import re
import shutil

import pytest
from filelock import FileLock

NAME = "0123456789abcdef-float32-cpu"


@pytest.fixture
def tree(packed, tmp_path):
    """Two datasets with a cache each: one valid, one made from an earlier version of its dataset. Files of others around them."""
    for name in ("valid", "old"):
        shutil.copytree(packed["deferred"], tmp_path / name, ignore=shutil.ignore_patterns("audio-cache"))
        fingerprint = json.loads((tmp_path / name / "complete.json").read_text("utf-8"))["fingerprint"]
        folder = tmp_path / name / "audio-cache" / NAME
        folder.mkdir(parents=True)
        (folder / "train.bin").write_bytes(bytes(4 * 10 * 25_000))
        record = {"base": NAME[:16], "dataset": fingerprint if name == "valid" else "another", "dtype": "torch.float32"}
        (folder / "train.json").write_text(json.dumps(record | {"tokens": 10, "whole": True}))
        (folder / "notes.txt").write_text("mine")
    (tmp_path / "audio-cache/mine").mkdir(parents=True)
    (tmp_path / "audio-cache/mine/train.bin").write_text("not a cache of ours")
    return tmp_path


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_list_says_size_origin_and_state(call, tree):
    done = call("cache", "list", tree)
    assert done.exit_code == 0, done.stderr
    rows = [re.split("  +", line.strip()) for line in done.stdout.splitlines() if NAME[:16] in line]
    assert rows == [
        [str(tree / name), "train", NAME[:16], "float32", "cpu", "1.0 MB", state]
        for name, state in (("old", "made from an earlier version of the dataset"), ("valid", "valid"))
    ]
    assert "caches  2" in done.stdout
    assert "size    2.0 MB" in done.stdout
    assert call("cache", "list", tree / "valid").stdout.count(NAME[:16]) == 1


def test_only_what_is_no_longer_valid_goes_and_nothing_else(call, tree):
    before = files(tree)
    assert "removed  nothing" in call("cache", "remove", tree).stdout, "nobody answered"
    assert files(tree) == before
    done = call("cache", "remove", tree, "--yes")
    assert done.exit_code == 0, done.stderr
    assert "freed    1.0 MB" in done.stdout
    gone = {f"old/audio-cache/{NAME}/train.{kind}" for kind in ("bin", "json")}
    assert before - files(tree) == gone
    assert files(tree) <= before
    assert "nothing: all caches here are valid" in call("cache", "remove", tree, "--yes").stdout
    call("cache", "remove", tree, "--yes", "--all")
    assert before - files(tree) == gone | {f"valid/audio-cache/{NAME}/train.{kind}" for kind in ("bin", "json")}
    assert (tree / "audio-cache/mine/train.bin").is_file()


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [
        ("train.json", "{", "the record is damaged"),
        ("train.json", None, "train.json is missing"),
        ("train.bin", "cut", "not whole"),
        ("train.bin", None, "not whole"),
    ],
)
def test_a_damaged_cache_is_not_valid(call, tree, name, content, state):
    path = tree / "valid/audio-cache" / NAME / name
    path.unlink() if content is None else path.write_text(content)
    assert state in call("cache", "list", tree / "valid").stdout


def test_a_cache_that_is_being_filled_stays(call, tree):
    with FileLock(tree / "old/audio-cache" / NAME / "train.lock"):
        done = call("cache", "remove", tree, "--yes")
    assert done.exit_code == 1
    assert "another process is filling this cache" in done.stderr
    assert (tree / "old/audio-cache" / NAME / "train.bin").is_file()


def test_a_folder_that_is_not_there(call, tmp_path):
    done = call("cache", "list", tmp_path / "none")
    assert done.exit_code == 2
    assert "no such folder" in done.stderr
