"""The studies: their own arithmetic by hand, a small one through the command line, and documents that show their results."""

import doctest
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPO

sys.path.insert(0, str(REPO / "benchmarks"))

import studies  # noqa: E402
import study_adapters  # noqa: E402
import study_families  # noqa: E402
import study_layouts  # noqa: E402
import study_raft  # noqa: E402
import study_selection  # noqa: E402
import study_stress  # noqa: E402
import study_thresholds  # noqa: E402
import study_words  # noqa: E402

from evoxtral_train.records import Prediction  # noqa: E402
from evoxtral_train.synthesis.synthesizer import Style  # noqa: E402

DOCUMENTS = {
    "adapters": study_adapters.sections,
    "families": study_families.sections,
    "layouts": study_layouts.sections,
    "raft": study_raft.sections,
    "selection": study_selection.sections,
    "stress": study_stress.sections,
    "thresholds": study_thresholds.sections,
    "words": study_words.sections,
}


def test_recall_by_the_time_of_the_event():
    def row(identity, prediction, *begins):
        events = [{"tag": "sighs", "start_s": begin, "end_s": begin + 0.5} for begin in begins]
        return Prediction(identity, "[sighs] " * len(begins) + "a", prediction, events)

    seed_0 = [row("a", "[sighs]", 3.0, 1.0), row("b", "", 2.0), row("c", "[sighs] [laughs]", 4.0)]
    seed_1 = [row("a", "[sighs] [sighs]", 3.0, 1.0), row("b", "[sighs]", 2.0), row("c", "", 4.0)]
    first, second = study_layouts.recall_by_time({"seed 0": seed_0, "seed 1": seed_1}, [0, 2.5, 4.5, 9], 1)
    # Clip a has two sighs; seed 0 wrote one, which counts for the earlier. Found at 1 s: both; 2 s: one; 3 s: one; 4 s: one.
    assert (first["from_s"], first["mean_s"], first["events"], first["value"]) == (0, 1.5, 2, 3 / 4)
    assert (second["to_s"], second["mean_s"], second["events"], second["value"]) == (4.5, 3.5, 2, 2 / 4)


def test_the_rate_is_searched_until_both_neighbours_are_worse():
    assert doctest.testmod(study_adapters) == (0, 1)


def test_half_strength_is_halfway_to_neutral_speech():
    assert study_stress.halfway(Style(rate=0.72, pitch=-22, pitch_range=8, gain_db=-10)) == Style(0.86, -11, 29, -5)


def test_a_document_keeps_its_prose_and_must_have_the_place():
    text = "before\n<!-- a -->\nold\n<!-- end -->\nbetween\n<!-- b -->\n<!-- end -->\n"
    assert studies.filled(text, {"a": "new"}) == text.replace("old", "new")
    with pytest.raises(SystemExit, match="no place for 'c'"):
        studies.filled(text, {"c": ""})


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_tables_are_those_of_their_results(name):
    path = REPO / "docs/studies" / f"{name}.md"
    text = path.read_text("utf-8")
    assert studies.filled(text, DOCUMENTS[name](json.loads(path.with_suffix(".json").read_text("utf-8")))) == text
    for figure in set(re.findall(r"\((\S+\.png)\)", text)):
        assert (path.parent / figure).is_file()


@pytest.mark.slow
def test_a_small_study_runs_and_goes_on_where_it_stopped(call, tmp_path, monkeypatch, capsys):
    """At first its commands run in this process, which has imported already what each of them would import for seconds;
    then one that was not finished, as the study itself runs it."""
    clips = '{"train": 16, "validation": 6, "test": 12}'
    small = ["--seeds", "0", "1", "--epochs", "1", "--clips", clips, "--fewest-events", "1", "--jobs", "1"]
    command = ["benchmarks/study_layouts.py", "--output", str(tmp_path), "--only", "packed", "aligned", *small]

    def run_here(command: studies.Command, *_) -> tuple[studies.Command, float]:
        done = call(*command.words, "--resume")
        assert done.exit_code == 0, done.stderr
        return command, 0.0

    with monkeypatch.context() as patch:
        patch.setattr(studies, "_run", run_here)
        patch.setattr(sys, "argv", command)
        study_layouts.main()
    printed = capsys.readouterr().out
    assert "12 commands" in printed
    assert "| layout | micro F1 | each seed |" in printed
    assert re.search(r"^\| chance \| 0\.\d{3} \[.*\] \| — \|", printed, re.MULTILINE)
    results = (tmp_path / "results.json").read_text("utf-8")
    content = json.loads(results)
    assert list(content["test"]) == ["chance", "probe", "packed", "aligned"]
    assert list(content["validation"]) == ["packed", "aligned"]
    assert len(content["test"]["packed"]["micro_f1_of_seeds"]) == 2
    assert (tmp_path / "recall-by-time.png").stat().st_size > 10_000
    commands = Path(tmp_path / "logs/commands.txt").read_text("utf-8").splitlines()
    assert commands[0].startswith("evoxtral data synth configs/demo/synth.yaml --set output=")
    shutil.rmtree(tmp_path / "eval/aligned/test")
    again = subprocess.run([sys.executable, *command], cwd=REPO, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "11 finished before" in again.stdout
    assert (tmp_path / "results.json").read_text("utf-8") == results
