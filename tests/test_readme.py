"""Each command of the README runs in a test, or says that it needs a GPU or the network."""

import csv
import re

import pytest

from conftest import REPO, make, rows_of

README = (REPO / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = {re.split(r"\s+#", line)[0].strip(): line.partition("#")[2].strip() for line in LINES}

RUN_ELSEWHERE = {
    "make demo": "tests/test_pipeline.py runs it, cut small",
    "make test": "is running now",
    "make serve": "tests/test_serve.py",
    "evoxtral transcribe talk.wav --adapter runs/demo/sft": "tests/test_transcribe.py",
    "evoxtral transcribe talks/ --adapter runs/demo/sft --output transcripts --format txt,json,srt,vtt,tsv": "the same",
}
RUN_HERE = {
    "evoxtral doctor": (),
    "evoxtral sft configs/sft.yaml --dry-run": (),
    "evoxtral data synth configs/synth.yaml": ("--set", "clips.train=8", "--set", "clips.validation=1", "--set", "clips.test=1"),
    "evoxtral data import configs/import.yaml": ("--set", "source.path={table}"),
    "evoxtral data stats configs/stats.yaml --set manifest=data/imported/corpus/manifest.jsonl": (
        "--set", "manifest={corpus}/manifest.jsonl",
    ),
}  # fmt: skip


def test_every_command_is_run_or_says_what_it_needs():
    assert len(COMMANDS) == 27
    for command, comment in COMMANDS.items():
        if "needs a GPU" not in comment and "needs the network" not in comment:
            assert command in RUN_ELSEWHERE or command in RUN_HERE, command
    assert set(RUN_ELSEWHERE) | set(RUN_HERE) <= set(COMMANDS)


@pytest.mark.parametrize("command", RUN_HERE)
def test_command(command, call, spoken, tmp_path):
    """On a small corpus, where the command needs one: clips, and a table of them."""
    table = tmp_path / "clips.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("audio", "text"), *((row["audio"], row["text"]) for row in rows_of(spoken))])
    output = ("--set", f"output={tmp_path / 'out'}") if " data " in command else ()
    arguments = [argument.format(corpus=spoken, table=table) for argument in RUN_HERE[command]]
    result = call(*command.split()[1:], *arguments, *output)
    assert result.exit_code == 0, result.stderr


def test_every_command_of_the_table_exists(call):
    named = re.findall(r"^\| `evoxtral ([a-z -]+?)(?: (?:CONFIG|FILE|RUN|DIR)[^`]*)?` \|", README, re.MULTILINE)
    assert len(named) == 26
    for command in named:
        assert call(*command.split(), "--help").exit_code == 0, command


def test_make_test_and_ci_are_one_command():
    assert "make test" in (REPO / ".ci/run").read_text("utf-8")
    assert ".ci/run" in (REPO / ".github/workflows/ci.yml").read_text("utf-8")
    plan = make("-n", "test")
    assert plan.returncode == 0, plan.stderr
    assert "pytest" in plan.stdout


def test_the_demos_last_lines_are_those_that_it_prints():
    """In the form of `last_lines`, with the demo's systems (its figures are one run's)."""
    [printed] = re.findall(r"```text\n(said → written by RAFT .*?)```", README, re.DOTALL)
    printed, _, transcripts = printed.partition("\n…\n")
    assert transcripts.count("runs/demo/data/audio/test-") == 3
    lines = printed.splitlines()
    assert sum(line.startswith("  → ") for line in lines) == 3
    table = lines.index("system  micro F1          precision         recall            false tags")
    for line, system in zip(lines[table + 1 :], ("SFT", "RAFT"), strict=False):
        assert re.match(rf"{system} +\d\.\d\d \[\d\.\d\d–\d\.\d\d\]  ", line), line
    assert lines[-1] == "Open in a browser: runs/demo/comparison.html"
