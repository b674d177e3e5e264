"""Rows and records that somebody edited between two stages: refused by name, never mixed with what was made from others."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow


def edit(path, change) -> None:
    """`change`: of the rows of a JSONL."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)), "utf-8")


def first(**changes):
    return lambda rows: [rows[0] | changes, *rows[1:]]


STEPS = {
    "a candidate's text, before its score": ("score", "candidates", first(text="[laughs] another")),
    "a candidate less": ("score", "candidates", lambda rows: rows[:-1]),
    "a candidate's text, after its score": ("curate", "candidates", first(text="[laughs] another")),
    "a score": ("curate", "scores", first(reward=99.0)),
    "a score, for pairs": ("pairs", "scores", first(reward=99.0)),
    "a target": ("train", "curated", first(target_text="[laughs] another")),
    "a target twice": ("train", "curated", lambda rows: rows + rows),
}


@pytest.mark.parametrize("name", STEPS)
def test_rows_that_were_edited_go_no_further(raft, name):
    """They were scored, curated and trained on as if the model had written them."""
    step, source, change = STEPS[name]
    edit(raft.folder / f"round-1/{source}/{source}.jsonl", change)
    result = raft(step, "--overwrite")
    assert result.exit_code == 2
    assert f"round-1/{source}: was edited after it was made: {source}.jsonl — put back what the run wrote" in result.stderr


def test_another_call_of_raft_removes_its_own_steps_alone(raft):
    """Whatever held a `run.json` was taken for one of them."""
    notes = raft.folder / "round-1/notes"
    notes.mkdir()
    for name in ("run.json", "mine.txt"):
        (notes / name).write_text("irreplaceable", "utf-8")
    assert raft("run", "--overwrite").exit_code == 0
    assert (notes / "mine.txt").read_text("utf-8") == "irreplaceable"


@pytest.fixture
def evaluation(demo, tmp_path):
    shutil.copytree(demo / "runs/eval-raft", tmp_path / "eval", ignore=shutil.ignore_patterns("wandb"))
    return tmp_path / "eval"


def test_predictions_that_were_edited_are_not_compared(call, evaluation):
    edit(evaluation / "predictions/RAFT.jsonl", lambda rows: rows[1:])
    result = call("compare", evaluation)
    assert result.exit_code == 2
    assert "eval: was edited after it was made: " in result.stderr


EDITS = [
    ("metrics.json", "{}"), ("metrics.json", '{"split": "test", "systems": {}}'), ("run.json", "{}"), ("config.yaml", "{}"),
    ("config.yaml", "["),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), EDITS)
def test_records_of_an_evaluation_that_were_edited(call, evaluation, name, content):
    (evaluation / name).write_text(content, "utf-8")
    result = call("compare", evaluation)
    assert result.exit_code == 2
    reasons = ("was edited or damaged", "its config cannot be read", "holds no system")
    assert any(reason in result.stderr for reason in reasons), result.stderr
    assert str(evaluation) in result.stderr


def test_a_comparison_replaces_no_file_that_it_did_not_write(call, evaluation, tmp_path):
    """`--output notes` replaced notes.md, and `--output v1.2` wrote v1.md."""
    (tmp_path / "notes.md").write_text("irreplaceable", "utf-8")
    result = call("compare", evaluation, "--output", tmp_path / "notes")
    assert result.exit_code == 2
    assert f"{tmp_path}/notes.md: no comparison wrote this file — choose another --output" in result.stderr
    assert (tmp_path / "notes.md").read_text("utf-8") == "irreplaceable"
    for _ in range(2):  # its own files it replaces
        assert call("compare", evaluation, "--output", tmp_path / "v1.2").exit_code == 0
    assert {path.name for path in tmp_path.glob("v1*")} == {"v1.2.md", "v1.2.json", "v1.2.html"}


def test_predictions_with_another_number_of_confidences_are_refused(call, demo, evaluation, tmp_path):
    path = tmp_path / "given.jsonl"
    shutil.copy(evaluation / "predictions/RAFT.jsonl", path)
    edit(path, first(prediction="[sighs] [laughs]", confidences=[0.5]))
    result = call(
        "eval", demo / "configs/eval-raft.yaml", "--set", f"systems=[{{name: P, predictions: {path}}}]", "--set",
        f"output={tmp_path / 'new'}", "--set", "tracking.mode=disabled",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "given.jsonl: clip 'test-00000' has 1 `confidences` for 2 tags — write one for each tag" in result.stderr


def test_predictions_of_another_corpus_are_refused(call, demo, evaluation, tmp_path):
    """Ids alone were compared; what tags the reference has, and how it is spelt, does not matter."""
    path, out = tmp_path / "given.jsonl", tmp_path / "new"
    shutil.copy(evaluation / "predictions/RAFT.jsonl", path)
    command = ("eval", demo / "configs/eval-raft.yaml", "--set", f"systems=[{{name: P, predictions: {path}}}]", "--set",
               f"output={out}", "--set", "tracking.mode=disabled")  # fmt: skip
    edit(path, lambda rows: [{**row, "reference": f"[sighs] {row['reference'].upper()}"} for row in rows])
    assert call(*command, "--dry-run").exit_code == 0
    assert call(*command).exit_code == 0
    edit(path, first(reference="another sentence."))
    result = call(*command, "--overwrite")
    assert result.exit_code == 2
    assert "given.jsonl: clip 'test-00000' has a different `reference` in " in result.stderr


def test_a_name_that_no_file_can_have_is_refused_before_decoding(call, demo, tmp_path):
    config = demo / "configs/eval-raft.yaml"
    result = call("eval", config, "--set", f"systems.0.name={'x' * 300}", "--set", f"output={tmp_path}/new")
    assert result.exit_code == 2
    assert "systems.0.name: String should have at most 60 characters" in result.stderr


SHARDS = {
    "record": ("shards/00000.json", "{}", "00000.json: this record of a run was edited or damaged: `fingerprint` is missing"),
    "rows": ("shards/00000-train.arrow", "x", "00000-train.arrow: this shard is gone or damaged"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_that_was_damaged_before_packing_resumed(call, clip_row, write_manifest, tmp_path, name):
    file, content, reason = SHARDS[name]
    manifest = write_manifest([clip_row("a")])
    pack = ("data", "pack", "configs/demo/pack.yaml", "--set", f"manifest={manifest}", "--set", f"output={tmp_path / 'packed'}",
            "--set", "tracking.mode=disabled", "--set", "processes=1")  # fmt: skip
    assert call(*pack).exit_code == 0
    (tmp_path / "packed").rename(tmp_path / "packed.partial")
    (tmp_path / "packed.partial/complete.json").unlink()
    (tmp_path / "packed.partial" / file).write_text(content, "utf-8")
    result = call(*pack, "--resume")
    assert result.exit_code in (1, 2)
    assert reason in result.stderr
