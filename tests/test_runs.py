"""Run directories: nothing half-written is taken for whole, nothing of anybody else's is touched."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import REPO
from evoxtral_train.config.training import SftConfig
from evoxtral_train.errors import EvoxtralError, UsageError
from evoxtral_train.files import write_atomic
from evoxtral_train.jobs import Job
from evoxtral_train.records import Candidate, JsonlAppender, read_jsonl, read_rows
from evoxtral_train.run_folders import release_all
from evoxtral_train.runs import Options, Run, require_complete, require_same_config, require_same_input


def open_run(path, config=None, inputs=None, **options):
    return Run.open(path, "sft", config or {"a": 1}, inputs or {"dataset": "x"}, Options(**options))


def test_a_finished_run_is_kept(tmp_path):
    open_run(tmp_path / "run").finish({"loss": 1.0}, "abc")
    assert require_complete(tmp_path / "run", "sft", "evoxtral sft") == "abc"
    for options in ({}, {"resume": True}):
        with pytest.raises(UsageError, match="this run is finished — use --overwrite"):
            open_run(tmp_path / "run", **options)
    again = open_run(tmp_path / "run", overwrite=True)
    assert require_complete(tmp_path / "run", "sft", "evoxtral sft") == "abc", "until the new one is finished"
    again.finish({"loss": 0.5}, "def")
    assert require_complete(tmp_path / "run", "sft", "evoxtral sft") == "def"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "run"]


def test_a_job_finishes_its_run_when_its_block_ends(tmp_path):
    config = SftConfig(output=tmp_path / "run", dataset="d", model={"base": "b"}, train={"epochs": 1, "learning_rate": 1e-4},
                       tracking={"mode": "disabled"})  # fmt: skip
    job = Job("sft", config.output, {"seed": 0}, config, Options())
    with pytest.raises(KeyboardInterrupt), job.opened({"dataset": "x"}):
        raise KeyboardInterrupt
    release_all()
    assert not config.output.exists()
    with pytest.raises(UsageError, match="there is an unfinished run here"):
        job.check({"dataset": "x"})
    with replace(job, options=Options(resume=True)).opened({"dataset": "x"}) as work:
        assert work.run.resumed
        work.done({"loss": 1.0}, "abc")
        assert not config.output.exists(), "the tracker still writes"
    assert require_complete(config.output, "sft", "evoxtral sft") == "abc"
    with pytest.raises(UsageError, match="this run is finished"):
        job.check({"dataset": "x"})


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
    for name, content in (("thesis.tex", "years of work"), ("config.yaml", "# my comments")):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(content)
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(UsageError, match="contains files that are not from a finished run"):
                open_run(folder, **options)
        assert (folder / name).read_text() == content
    Run.open(tmp_path / "e", "eval", {}, {}, Options())
    release_all()
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="contains a run of `eval`"):
            open_run(tmp_path / "e", **options)
    assert (tmp_path / "e.partial" / "run.json").is_file()


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(tmp_path):
    run = open_run(tmp_path / "run")
    run.write_text("adapter/weights", "1")
    run.write_text("adapter/old", "1")
    run.finish({}, "abc")
    (tmp_path / "run/adapter/notes.txt").write_text("mine")
    (tmp_path / "run/adapter/thresholds.json").write_text("fitted for the old weights")
    (tmp_path / "run/listen").mkdir()
    (tmp_path / "run/listen/clip.txt").write_text("mine too")
    (tmp_path / "run/adapter/new").write_text("mine, of a name that the new run will have")
    (tmp_path / "run/audio-cache/x").mkdir(parents=True)
    (tmp_path / "run/audio-cache/x/rows.bin").write_text("made from the old run")
    again = open_run(tmp_path / "run", overwrite=True)
    again.write_text("adapter/weights", "2")
    again.write_text("adapter/new", "2")
    again.finish({}, "def")
    kept = {
        str(path.relative_to(tmp_path)): path.read_text()
        for path in tmp_path.rglob("*")
        if path.suffix in ("", ".txt") and path.is_file()
    }
    assert not list(tmp_path.rglob("thresholds.json"))
    assert kept.pop("run/files.txt").splitlines() == [
        "adapter/new", "adapter/weights", "complete.json", "config.yaml", "files.txt", "metrics.json", "run.json",
    ]  # fmt: skip
    assert kept == {
        "run/adapter/weights": "2", "run/adapter/new": "2", "run/adapter/notes.txt": "mine", "run/listen/clip.txt": "mine too",
        "run.old-1/adapter/new": "mine, of a name that the new run will have",
    }  # fmt: skip


def test_a_list_of_files_reaches_nothing_outside_its_run(tmp_path):
    """It may come from a stranger, and what it names is removed by `--overwrite`."""
    open_run(tmp_path / "run").finish({}, "abc")
    (tmp_path / "mine").mkdir()
    outside = [tmp_path / "mine/a", tmp_path / "mine/b", tmp_path / "mine/c"]
    for path in outside:
        path.write_text("irreplaceable")
    (tmp_path / "run/link").symlink_to(tmp_path / "mine")
    with (tmp_path / "run/files.txt").open("a") as file:
        file.write(f"../mine/a\n{outside[1]}\nlink/c\nlink/..\n.\n")
    open_run(tmp_path / "run", overwrite=True).finish({}, "def")
    assert all(path.read_text() == "irreplaceable" for path in outside)
    assert require_complete(tmp_path / "run", "sft", "evoxtral sft") == "def"


RECORDS = {"complete.json": "{}", "run.json": "[]", "config.yaml": "a: ["}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_was_edited_is_named(tmp_path, name):
    """They were a KeyError, a TypeError and a ParserError."""
    open_run(tmp_path / "run", config={"seed": 0}).finish({}, "abc")
    (tmp_path / "run" / name).write_text(RECORDS[name])
    with pytest.raises(UsageError, match=rf"run/{name}: this record of a run was edited or damaged: .* — put it back"):
        require_complete(tmp_path / "run", "sft", "evoxtral sft")
        require_same_input(tmp_path / "run", "dataset", "x", "now")
        require_same_config(tmp_path / "run", {"seed": 0}, ["seed"])


def test_a_lock_that_cannot_be_made_is_not_held_by_another(tmp_path):
    with pytest.raises(UsageError, match="/proc/nothing: could not be written: No such file"):
        open_run(Path("/proc/nothing"))


def test_a_run_without_a_list_of_its_files_loses_nothing(tmp_path):
    run = open_run(tmp_path / "run")
    run.write_text("adapter/weights", "1")
    run.finish({}, "abc")
    (tmp_path / "run/files.txt").unlink()
    open_run(tmp_path / "run", overwrite=True).finish({}, "def")
    assert (tmp_path / "run.old-1/adapter/weights").read_text() == "1"
    assert not (tmp_path / "run/adapter").exists()


@pytest.mark.parametrize("step", range(40))
def test_a_kill_anywhere_in_the_swap_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch, step):
    """Every rename and every removal of `finish` is, in turn, the last thing that happens."""
    run = open_run(tmp_path / "run")
    run.write_text("adapter/weights", "1")
    run.finish({}, "old")
    (tmp_path / "run/notes.txt").write_text("mine")
    again = open_run(tmp_path / "run", overwrite=True)
    again.write_text("adapter/weights", "2")
    calls = []

    def killed(function):
        def call(*arguments, **named):
            if len(calls) == step:
                raise KeyboardInterrupt
            calls.append(function)
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        for name in ("replace", "unlink", "rmdir"):
            patched.setattr(Path, name, killed(getattr(Path, name)))
        again.finish({}, "new")
    release_all()
    found = require_complete(tmp_path / "run", "sft", "evoxtral sft")
    assert (tmp_path / "run/adapter/weights").read_text() == {"old": "1", "new": "2"}[found]
    notes = [path for path in tmp_path.rglob("notes.txt")]
    assert [path.read_text() for path in notes] == ["mine"]
    if len(calls) < step:
        assert found == "new"
        assert notes == [tmp_path / "run/notes.txt"]


def test_an_output_must_be_a_folder_that_can_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        open_run(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    for here in (Path(), tmp_path, tmp_path.parent):
        with pytest.raises(UsageError, match="is the current folder, or one above it"):
            open_run(here)
    with pytest.raises(UsageError, match="is a mount point"):
        open_run(Path("/proc"))


def test_an_output_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "big-disk" / "run")
    open_run(tmp_path / "run").finish({}, "abc")
    open_run(tmp_path / "run", overwrite=True).finish({}, "def")
    assert (tmp_path / "run").is_symlink()
    assert require_complete(tmp_path / "big-disk/run", "sft", "evoxtral sft") == "def"


def test_an_output_may_not_hold_what_the_stage_reads(tmp_path):
    open_run(tmp_path / "out").finish({}, "abc")
    (tmp_path / "out/raw").mkdir()
    (tmp_path / "out/raw/recording.wav").write_text("irreplaceable")
    with pytest.raises(UsageError, match="the output contains an input of this stage: .*out/raw"):
        Run.open(tmp_path / "out", "sft", {}, {}, Options(overwrite=True), [tmp_path / "out/raw"])
    assert (tmp_path / "out/raw/recording.wav").read_text() == "irreplaceable"


def test_a_number_that_is_not_finite_is_no_result(tmp_path):
    run = open_run(tmp_path / "run")
    with pytest.raises(EvoxtralError, match="a measured number is not finite"):
        run.finish({"loss": float("inf")}, "abc")
    release_all()
    assert not (tmp_path / "run").exists()


def test_a_kill_at_the_very_start_leaves_a_folder_that_can_be_used(tmp_path):
    path = open_run(tmp_path / "run").path
    release_all()
    (path / "run.json").rename(path / ".run.json.part")
    assert open_run(tmp_path / "run").path == path == tmp_path / "run.partial"
    assert json.loads((path / "run.json").read_text("utf-8"))["stage"] == "sft"


def test_inputs_are_checked_and_named(tmp_path):
    with pytest.raises(UsageError, match="does not exist — first run: evoxtral sft"):
        require_complete(tmp_path / "run", "sft", "evoxtral sft")
    open_run(tmp_path / "run", config={"generate": {"seed": 0}})
    with pytest.raises(UsageError, match="is not finished — finish it with: evoxtral sft --resume"):
        require_complete(tmp_path / "run", "sft", "evoxtral sft")
    with pytest.raises(UsageError, match="another dataset than data/b"):
        require_same_input(tmp_path / "run.partial", "dataset", "y", "data/b")
    with pytest.raises(UsageError, match="which differs in: generate.seed"):
        require_same_config(tmp_path / "run.partial", {"generate": {"seed": 1}}, ["generate"])


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
    assert list(tmp_path.iterdir()) == [path], "nor does it leave a part"


SYNTH = [
    sys.executable, "-m", "evoxtral_train.cli", "data", "synth", "configs/demo/synth.yaml",
    "--set", "clips={train: 150, validation: 2, test: 2}", "--set", "tracking.mode=disabled",
]  # fmt: skip


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_stage_is_resumed(tmp_path):
    output = ["--set", f"output={tmp_path / 'data'}"]
    process = subprocess.Popen([*SYNTH, *output], cwd=REPO, stderr=subprocess.DEVNULL)
    part = tmp_path / "data.partial" / "manifest.part.jsonl"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.read_bytes().count(b"\n") > 20):
        assert time.monotonic() < deadline
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "data").exists()
    done = part.read_bytes().count(b"\n")
    assert 20 < done < 154
    refused = subprocess.run([*SYNTH, *output], cwd=REPO, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "there is an unfinished run here — use --resume" in refused.stderr
    subprocess.run([*SYNTH, *output, "--resume"], cwd=REPO, check=True, capture_output=True)
    assert (tmp_path / "data" / "manifest.jsonl").read_bytes().count(b"\n") == 154


@pytest.mark.slow
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
    assert not (tmp_path / "data").exists()
    subprocess.run([*SYNTH, *output, "--resume"], cwd=REPO, check=True, capture_output=True)


@pytest.mark.slow
def test_two_processes_never_make_one_run(tmp_path):
    """The second is refused at once, whatever its options; when the first was killed, its lock is gone with it."""
    output = ["--set", f"output={tmp_path / 'data'}"]
    first = subprocess.Popen([*SYNTH, *output], cwd=REPO, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        part, deadline = tmp_path / "data.partial" / "manifest.part.jsonl", time.monotonic() + 60
        while not part.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # so that it cannot finish before the second is refused
        for option in ("--overwrite", "--resume"):
            second = subprocess.run([*SYNTH, *output, option], cwd=REPO, capture_output=True, text=True, check=False, timeout=60)
            assert second.returncode == 2
            assert "another process is making this run" in second.stderr
    finally:
        first.kill()
        first.wait()
    subprocess.run([*SYNTH, *output, "--resume"], cwd=REPO, check=True, capture_output=True)
    assert (tmp_path / "data" / "manifest.jsonl").read_bytes().count(b"\n") == 154
