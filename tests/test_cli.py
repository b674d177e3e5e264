"""The command line: quick help, plain errors, exit codes."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

EVOXTRAL = Path(sys.executable).with_name("evoxtral")


def test_help_answers_without_loading_torch():
    """Its time is a benchmark's business; that it loads nothing heavy is what a test can hold."""
    code = (
        "import sys; sys.argv = ['evoxtral', '--help']\n"
        "from evoxtral_train.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'wandb', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = re.findall(r"^│ ([a-z-]+) ", done.stdout.partition("Commands")[2], re.MULTILINE)
    assert names == [
        "init", "data", "sft", "raft", "eval", "eval-predictions", "compare", "probe", "diagnose", "calibrate", "transcribe",
        "serve", "export", "cache", "doctor", "tiny-base",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("group", "commands"),
    [
        ("data", ["import", "synth", "join", "check", "stats", "align", "pack"]),
        ("raft", ["generate", "score", "curate", "train", "run", "pairs"]),
    ],
)
def test_groups_list_their_commands_in_the_order_of_use(call, group, commands):
    assert re.findall(r"^│ ([a-z]+) ", call(group, "--help").stdout.partition("Commands")[2], re.MULTILINE) == commands


def test_version(call):
    assert call("--version").stdout == f"evoxtral {metadata.version('evoxtral')}\n"


def test_the_shell_completes():
    asked = {"_EVOXTRAL_COMPLETE": "complete_bash", "COMP_WORDS": "evoxtral eval", "COMP_CWORD": "1"}
    done = subprocess.run([EVOXTRAL], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["eval", "eval-predictions"]


def test_a_missing_extra_names_what_to_install(monkeypatch, call, tmp_path):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    result = call("data", "synth", "configs/demo/synth.yaml", "--set", f"output={tmp_path / 'out'}")
    assert result.exit_code == 2
    assert "espeak-ng is not installed — run: pip install 'evoxtral[synth]'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sft", "none.yaml"], 2, "error: none.yaml: no such config file"),
        (["sft", "configs/sft.yaml", "--set", "trian.epochs=1"], 2, "unknown key 'trian', did you mean 'train'?"),
        (["sft", "configs/sft.yaml", "--resume", "--overwrite"], 2, "--resume and --overwrite exclude each other"),
        (["eval-predictions", "none.jsonl"], 2, "none.jsonl: no such file"),
        (["data", "check", "configs/pack.yaml", "--set", "manifest=none.jsonl"], 2, "none.jsonl: no such manifest"),
        (["data", "pack", "configs/pack.yaml", "--set", "manifest=none.jsonl"], 2, "none.jsonl: no such manifest"),
        (["data", "stats", "configs/stats.yaml", "--set", "manifest=none.jsonl"], 2, "none.jsonl: no such manifest"),
        (["data", "align", "configs/align.yaml", "--set", "manifest=none.jsonl"], 2, "none.jsonl: no such manifest"),
        (["data", "import", "configs/import.yaml"], 2, "corpus/clips.csv: no such file or folder"),
        (["data", "synth", "configs/synth.yaml", "--engine", "festival"], 2, "Input should be 'espeak' or 'elevenlabs'"),
        (["nonsense"], 2, "No such command 'nonsense'"),
    ],
)
def test_errors_are_plain_and_exit_with_2(call, arguments, code, message):
    result = call(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_traceback_only_under_debug(tmp_path):
    command = [EVOXTRAL, "sft", tmp_path / "none.yaml"]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    debug = subprocess.run([EVOXTRAL, "--debug", *command[1:]], capture_output=True, text=True, check=False)
    assert (plain.returncode, debug.returncode) == (2, 2)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_an_unexpected_error_is_one_line_and_exit_code_1(call, monkeypatch):
    from evoxtral_train.stages import doctor

    def broken():
        raise RuntimeError("the unforeseen\nin two lines")

    monkeypatch.setattr(doctor, "run", broken)
    result = call("doctor")
    assert result.exit_code == 1
    assert result.stderr == "error: RuntimeError: the unforeseen — run `evoxtral --debug …` for the traceback\n"


def test_check_fails_when_a_row_is_bad(call, clip_row, write_manifest):
    manifest = write_manifest([clip_row("good"), clip_row("bad", text="[sighs")])
    result = call("data", "check", "configs/demo/pack.yaml", "--set", f"manifest={manifest}")
    assert result.exit_code == 1
    assert "2 = 1 good + 1 rejected" in result.stdout
    assert f"{manifest}:2: bad: rejected: unclosed bracket at character 0" in result.stdout


def test_doctor_says_what_will_not_work(call):
    result = call("doctor")
    assert result.exit_code == 0, result.stderr
    assert "HF_HUB_OFFLINE is set: the 4B model works only if it is already in the hub's cache" in result.stdout
    assert "no W&B key: logs stay in each run's folder" in result.stdout
    assert "2.13.0" in result.stdout


def test_tracking_cannot_fail_a_run(monkeypatch, tmp_path, capsys):
    import wandb

    from evoxtral_train.config.sections import Section, Tracking
    from evoxtral_train.tracking import Tracker

    def broken(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(wandb, "init", broken)
    with Tracker(Tracking(), "sft", tmp_path, Section()) as tracker:
        tracker.log({"loss": 1.0}, step=1)
        tracker.table("t", ["a"], [[1]])
        tracker.summary({"a": {"b": 1.0}})
    assert capsys.readouterr().err.count("W&B is off for this run: ConnectionError") == 1


def test_a_stage_within_a_stage_does_not_end_its_tracking(tmp_path, capsys):
    """`raft run` lost its rounds: the tracking of its first step ended its own."""
    from evoxtral_train.config.sections import Section, Tracking
    from evoxtral_train.tracking import Tracker

    with Tracker(Tracking(mode="offline"), "raft run", tmp_path / "outer", Section()) as outer:
        with Tracker(Tracking(mode="offline"), "raft score", tmp_path / "inner", Section()) as inner:
            inner.log({"reward": 1.0}, step=1)
        outer.log({"rounds/gate": 1.0}, step=1)
    assert "W&B is off" not in capsys.readouterr().err
