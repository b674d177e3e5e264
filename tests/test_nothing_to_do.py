"""A stage or a plan that would do nothing says so and exits with 2; what was rejected can be read."""

import json

import pytest

from conftest import REPO
from corpora import write_rows

DEMO = REPO / "configs/demo"


@pytest.fixture
def stage(call, tmp_path):
    """A command into tmp_path/out, as it is and as a plan -> the error of both, which say the same."""

    def stage(command: str, config: str, *overrides: str) -> str:
        sets = [part for each in (*overrides, f"output={tmp_path / 'out'}") for part in ("--set", each)]
        planned = call(*command.split(), REPO / config, *sets, "--dry-run")
        assert not (tmp_path / "out").exists()
        done = call(*command.split(), REPO / config, *sets)
        assert (planned.exit_code, done.exit_code) == (2, 2), (planned.stdout, done.stdout)
        assert done.stderr.startswith(planned.stderr.strip()), (planned.stderr, done.stderr)
        assert not (tmp_path / "out" / "complete.json").exists()
        return done.stderr.strip()

    return stage


def rejected(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out.partial/rejected.jsonl").read_text("utf-8").splitlines()]


def test_synth(stage, tmp_path):
    path = write_rows(tmp_path / "scripts.jsonl", [{"text": "[sihgs] oh."}, {"words": "oh"}])
    said = stage("data synth", "configs/synth.yaml", f"scripts={path}")
    assert f"error: {path}: no script can be spoken: all 2 are rejected — first reason: {path}:1: unknown tag [sihgs]" in said
    assert said.endswith(f"all of them: {tmp_path / 'out.partial/rejected.jsonl'}")
    assert [row["line"] for row in rejected(tmp_path)] == [1, 2]


def test_synth_of_an_empty_file(stage, tmp_path):
    path = write_rows(tmp_path / "scripts.jsonl", [])
    assert f"{path}: contains no scripts" in stage("data synth", "configs/synth.yaml", f"scripts={path}")


def test_import(stage, tmp_path):
    source = ("source.kind=jsonl", f"source.path={tmp_path / 'clips.jsonl'}")
    write_rows(tmp_path / "clips.jsonl", [])
    assert "contains no rows" in stage("data import", "configs/import.yaml", *source)
    write_rows(tmp_path / "clips.jsonl", [{"audio": f"{name}.wav", "text": "oh."} for name in "abc"])
    said = stage("data import", "configs/import.yaml", *source)
    assert f"no row can be imported: all 3 are rejected — first reason: {tmp_path / 'clips.jsonl'}:1: no such audio file" in said
    assert len(rejected(tmp_path)) == 3


def test_pack_check_and_stats(stage, call, clip_row, write_manifest, tmp_path):
    manifest = write_manifest([clip_row("a", text="[sighs"), clip_row("b", text="[sighs")])
    said = stage("data stats", "configs/stats.yaml", f"manifest={manifest}")
    assert "no row can be read: all 2 are rejected — first reason: unclosed bracket" in said
    checked = call("data", "check", DEMO / "pack.yaml", "--set", f"manifest={manifest}")
    assert checked.exit_code == 2
    assert checked.stdout.endswith("no row is good: there would be nothing to pack\n")
    assert f"{manifest}:2: b: rejected: unclosed bracket" in checked.stdout


def test_pack(stage, clip_row, write_manifest, tmp_path):
    manifest = write_manifest([clip_row("a", text="[sighs")])
    said = stage("data pack", "configs/demo/pack.yaml", f"manifest={manifest}")
    assert f"no row can be packed: the only one is rejected — first reason: {manifest}:1: unclosed bracket" in said
    assert [row["id"] for row in rejected(tmp_path)] == ["a"]


def test_align(stage, clip_row, write_manifest, tmp_path):
    timed = clip_row("a") | {"words": [{"word": "i", "start_s": 0.1, "end_s": 0.2}]}
    model = ("model.base=data/tiny-base", "model.dtype=float32")
    said = stage("data align", "configs/align.yaml", f"manifest={write_manifest([timed])}", *model)
    assert "nothing to align: 1 rows have times — use the manifest as it is, or set keep_given_times to false" in said
    manifest = write_manifest([clip_row("a", text="[sighs")])
    assert "no row can be aligned" in stage("data align", "configs/align.yaml", f"manifest={manifest}", *model)
    assert [row["id"] for row in rejected(tmp_path)] == ["a"]


@pytest.fixture
def test_split_alone(call, clip_row, write_manifest, tmp_path):
    """A packed dataset whose only row is in the split `test`."""
    manifest, folder = write_manifest([clip_row("a") | {"split": "test"}]), tmp_path / "packed"
    result = call("data", "pack", DEMO / "pack.yaml", *(f"--set={key}" for key in (f"manifest={manifest}", f"output={folder}")))
    assert result.exit_code == 0, result.stderr
    return folder


def test_an_empty_split(stage, call, test_split_alone, tmp_path):
    dataset = f"dataset={test_split_alone}"
    empty = "has no rows — splits with rows: test (1)"
    assert f"the split 'train' {empty}" in stage("sft", "configs/demo/sft.yaml", dataset)
    assert f"the split 'validation' {empty}" in stage("eval", "configs/demo/eval-sft.yaml", dataset, "split=validation")
    assert f"the split 'raft' {empty}" in stage("raft generate", "configs/demo/raft.yaml", dataset)
    assert "the dataset has no split 'validation'" in stage("raft run", "configs/demo/raft.yaml", dataset, "split=test")
    keys = (dataset, "split=test", "gate.split=test", "curate.drop_lowest_share=0.5", f"output={tmp_path / 'raft'}")
    for step in ("train", "run"):
        planned = call("raft", step, DEMO / "raft.yaml", *(f"--set={key}" for key in keys), "--dry-run")
        assert planned.exit_code == 2
        assert "curate.drop_lowest_share: none of the 1 clips would be kept — drop a smaller share" in planned.stderr
