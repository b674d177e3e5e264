"""Run directories: nothing half-written is taken for whole."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from conftest import REPO
from evoxtral_train.errors import EvoxtralError, UsageError
from evoxtral_train.records import Candidate, JsonlAppender, read_jsonl, read_rows
from evoxtral_train.runs import Options, Run, require_complete, require_same_config, require_same_input, write_atomic


def open_run(path, config=None, inputs=None, **options):
    return Run.open(path, "sft", config or {"a": 1}, inputs or {"dataset": "x"}, Options(**options))


def test_a_finished_run_is_kept(tmp_path):
    open_run(tmp_path / "run").finish({"loss": 1.0}, "abc")
    assert require_complete(tmp_path / "run", "sft", "evoxtral sft") == "abc"
    for options in ({}, {"resume": True}):
        with pytest.raises(UsageError, match="this run is finished — use --overwrite"):
            open_run(tmp_path / "run", **options)
    open_run(tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "complete.json").exists()


def test_what_a_run_records(tmp_path):
    run = open_run(tmp_path / "run", config={"lora": {"r": 16}})
    content = json.loads((run.path / "run.json").read_text("utf-8"))
    assert (content["stage"], content["inputs"]) == ("sft", {"dataset": "x"})
    assert content["versions"]["transformers"]
    assert (run.path / "config.yaml").read_text("utf-8") == "lora:\n  r: 16\n"


def test_resume_refuses_another_config_or_input_and_says_which(tmp_path):
    open_run(tmp_path / "run", config={"train": {"epochs": 1, "seed": 0}})
    with pytest.raises(UsageError, match="changed since this run began: input dataset, train.epochs —"):
        open_run(tmp_path / "run", config={"train": {"epochs": 2, "seed": 0}}, inputs={"dataset": "y"}, resume=True)
    assert open_run(tmp_path / "run", config={"train": {"epochs": 1, "seed": 0}}, resume=True).resumed


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="holds files that no run wrote"):
            open_run(tmp_path, **options)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    Run.open(tmp_path / "e", "eval", {}, {}, Options())
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="holds a run of `eval`"):
            open_run(tmp_path / "e", **options)
    assert (tmp_path / "e" / "run.json").is_file()


def test_a_kill_at_the_very_start_leaves_a_folder_that_can_be_used(tmp_path):
    open_run(tmp_path / "run")
    (tmp_path / "run" / "run.json").rename(tmp_path / "run" / ".run.json.part")
    assert open_run(tmp_path / "run").path == tmp_path / "run"
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["stage"] == "sft"


def test_inputs_are_checked_and_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist — first run: evoxtral sft"):
        require_complete(tmp_path / "run", "sft", "evoxtral sft")
    open_run(tmp_path / "run", config={"generate": {"seed": 0}})
    with pytest.raises(UsageError, match="is not finished — finish it with: evoxtral sft --resume"):
        require_complete(tmp_path / "run", "sft", "evoxtral sft")
    with pytest.raises(UsageError, match="another dataset than data/b"):
        require_same_input(tmp_path / "run", "dataset", "y", "data/b")
    with pytest.raises(UsageError, match="generate.seed differ"):
        require_same_config(tmp_path / "run", {"generate": {"seed": 1}}, ["generate"])


def test_appended_rows_survive_a_cut_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    with JsonlAppender(path) as rows:
        rows.append([{"a": 1}, {"a": 2}])
    with path.open("a") as file:
        file.write('{"a": 3, "b"')
    with JsonlAppender(path) as rows:
        rows.append([{"a": 4}])
    assert [row["a"] for _, row in read_jsonl(path)] == [1, 2, 4]


def test_rows_of_the_wrong_shape_say_where(tmp_path):
    path = tmp_path / "candidates.jsonl"
    path.write_text('{"utterance_id": "a"}\n')
    with pytest.raises(UsageError, match=r"candidates.jsonl:1: not a Candidate row: missing 6 required"):
        read_rows(path, Candidate)


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "scores.jsonl"
    write_atomic(path, "old\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(EvoxtralError, match="could not be written: .* — free some space"):
            write_atomic(path, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "old\n"


SYNTH = [
    sys.executable, "-m", "evoxtral_train.cli", "data", "synth", "configs/demo/synth.yaml",
    "--set", "clips={train: 150, validation: 2, test: 2}", "--set", "tracking.mode=disabled",
]  # fmt: skip


def test_a_kill_in_the_middle_of_a_stage_is_resumed(tmp_path):
    output = ["--set", f"output={tmp_path / 'data'}"]
    process = subprocess.Popen([*SYNTH, *output], cwd=REPO, stderr=subprocess.DEVNULL)
    part = tmp_path / "data" / "manifest.part.jsonl"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.read_bytes().count(b"\n") > 20):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "data" / "manifest.jsonl").exists()
    assert not (tmp_path / "data" / "complete.json").exists()
    done = part.read_bytes().count(b"\n")
    assert 20 < done < 154
    refused = subprocess.run([*SYNTH, *output], cwd=REPO, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "an unfinished run is here — use --resume" in refused.stderr
    subprocess.run([*SYNTH, *output, "--resume"], cwd=REPO, check=True, capture_output=True)
    assert (tmp_path / "data" / "manifest.jsonl").read_bytes().count(b"\n") == 154


def test_a_full_disk_in_the_middle_of_a_stage(tmp_path):
    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    output = ["--set", f"output={tmp_path / 'data'}"]
    done = subprocess.run(
        [*SYNTH, *output], cwd=REPO, preexec_fn=small_disk, capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 1
    assert "could not be" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "complete.json").exists()
    subprocess.run([*SYNTH, *output, "--resume"], cwd=REPO, check=True, capture_output=True)
