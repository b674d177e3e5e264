"""The benchmarks run as they stand, on small shapes: without a GPU the full-size one could otherwise rot."""

import json
import runpy
import sys

import pytest
import torch

from conftest import REPO, TINY_BASE

BENCHMARKS = REPO / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """bench("full_size.py", "--clips", 3): as `python benchmarks/full_size.py --clips 3`, in this process, which has
    imported already what each would import for seconds."""

    def bench(script: str, *arguments) -> None:
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")

    return bench


@pytest.mark.slow
def test_full_size_measures_both_ways(bench, tmp_path):
    small = ("--model", TINY_BASE, "--device", "cpu", "--clips", "3", "--plain-clips", "1", "--steps", "1", "--plain-steps", "1")
    bench("full_size.py", *small, "--batches", "2x8", "--layout", "deferred", "--json", tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert content["parameters"] == 2_691_264
    results = content["results"]
    assert list(results) == [
        "encode the audio of 3 clips once",
        "generate 3 × 4 candidates",
        "the same by a plain `generate` loop",
        "train 1 steps of 2 × 8, cached audio, checkpointing",
        "the same by the plain Trainer on the stock class, 2 × 8",
    ]
    assert all(each["seconds"] > 0 and each["peak_gb"] > 0.1 for each in results.values())
    assert results["the same by a plain `generate` loop"]["scaled_by"] == 3


@pytest.mark.slow
def test_rows_together_write_what_two_models_write(bench, spoken, tagging, capsys):
    bench("together.py", "--recordings", spoken / "audio", "--adapter", tagging, "--clips", "2", "--rounds", "1")
    printed = capsys.readouterr().out
    assert "× the base alone" in printed and "rows differ" not in printed
    assert "two models 17.72 GB" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_nothing_was_measured(bench):
    with pytest.raises(SystemExit, match="needs a CUDA GPU; nothing was measured"):
        bench("full_size.py")
    with pytest.raises(SystemExit, match="needs a CUDA GPU; nothing was measured"):
        bench("serving.py", "--full-size")


@pytest.mark.slow
def test_packing_measures_time_memory_and_disk(bench, tmp_path):
    small = ("--rows", 60, "--small", 30, "--clips", 30, "--rounds", 1, "--processes", 1)
    bench("packing.py", *small, "--json", tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert content["rows"] == 60
    assert set(content["reading"]) == {"30", "60"}
    assert content["reading"]["60"]["rows"] == 48
    assert content["times real time, one process"] > 1
    assert 30 < content["KB on disk per second of audio"] < 80


@pytest.mark.slow
def test_evaluation_measures_each_part(bench, tmp_path):
    bench("evaluation.py", "--clips", 12, "--json", tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert content["clips"] == 12
    assert content["seconds in all"] > 0


def test_the_figures_of_the_scaling_page_are_those_of_its_results():
    page = (REPO / "docs/scaling.md").read_text("utf-8")
    content = json.loads((REPO / "docs/scaling.json").read_text("utf-8"))
    low, high = content["peak memory of the largest process and of all together, MB"].values()
    figures = [
        f"{content['times real time, one process']:,} times real time",
        f"{content['times real time per core, 2 processes']:,} times real time",
        content["2 processes against one"],
        f"{low[0]} MB, {low[1]} MB", f"{high[0]} MB, {high[1]} MB", f"{content['KB on disk per second of audio']} KB",
        ", ".join(map(str, content["seconds, one process"])), ", ".join(map(str, content["seconds, 2 processes"])),
    ]  # fmt: skip
    for figure in figures:
        assert figure in page, figure
