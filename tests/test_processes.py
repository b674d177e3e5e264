"""Two processes = one: the same adapter and the same candidates, through the real launcher."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import CARD_SETS, launch
from evoxtral_train import processes
from evoxtral_train.records import Candidate, read_rows


@pytest.fixture(scope="module")
def runs(call, packed, made_once):
    """SFT and RAFT generation on a dataset of their own, which has no audio cache yet: {processes: folder}.
    The one process is this one."""

    def run(count: int, *arguments) -> str:
        done = call(*arguments) if count == 1 else launch(*arguments)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    def make(root: Path) -> None:
        for count in (1, 2):
            folder = root / str(count)
            shutil.copytree(packed["deferred"], folder / "packed", ignore=shutil.ignore_patterns("audio-cache"))
            common = ("--set", f"dataset={folder}/packed", "--set", "model.device=cpu", "--set", "tracking.mode=disabled")
            printed = run(
                count, "sft", "configs/demo/sft.yaml", *common, "--set", f"output={folder}/sft", "--set", "train.epochs=2",
                "--set", "train.batch_size=2", "--set", "train.gradient_accumulation=2", "--set", "train.warmup_steps=1",
                "--set", "train.evaluate_every_steps=3", "--set", "validation.decode.clips=5",
            )  # fmt: skip
            assert printed.count("training loss") == 1, "the first process speaks for all"
            run(
                count, "raft", "generate", "configs/demo/raft.yaml", *CARD_SETS, *common, "--set", f"output={folder}/raft",
                "--set", f"adapter={root}/1/sft", "--set", "generate.max_new_tokens=16",
            )  # fmt: skip

    root = made_once("processes", make)
    return {count: root / str(count) for count in (1, 2)}


@pytest.mark.slow
def test_the_adapter_is_the_same(runs):
    one, two = (load_file(runs[count] / "sft/adapter/adapter_model.safetensors") for count in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_validation_is_the_same(runs):
    one, two = (json.loads((runs[count] / "sft/metrics.json").read_text("utf-8")) for count in (1, 2))
    assert (one["best_step"], one["validation_clips"]) == (two["best_step"], two["validation_clips"]) == (6, 5)
    expected, found = (metrics["validation_at_best_step"] for metrics in (one, two))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert {name: value for name, value in found.items() if name != "loss"} == {
        name: value for name, value in expected.items() if name != "loss"
    }
    assert set(found) == {"loss", "micro_f1", "false_tags_per_untagged_clip"}


@pytest.mark.slow
def test_the_candidates_are_the_same_token_for_token(runs):
    one, two = (read_rows(runs[count] / "raft/round-1/candidates/candidates.jsonl", Candidate) for count in (1, 2))
    assert len(one) == 12 * 4
    keys = [(each.utterance_id, each.candidate_id, each.token_ids, each.text, each.finish_reason) for each in one]
    assert keys == [(each.utterance_id, each.candidate_id, each.token_ids, each.text, each.finish_reason) for each in two]
    assert not list((runs[2] / "raft/round-1/candidates").glob("*part*"))


@pytest.mark.slow
def test_both_processes_filled_the_audio_cache(runs):
    one, two = (next((runs[count] / "packed").glob("audio-cache/*/train.bin")) for count in (1, 2))
    found, expected = (torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32) for path in (two, one))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert not list(two.parent.glob("*.done"))


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_them_all(runs):
    again = launch(
        "raft", "generate", "configs/demo/raft.yaml", *CARD_SETS,
        "--set", f"dataset={runs[2]}/packed", "--set", f"output={runs[2]}/raft",
        "--set", f"adapter={runs[1]}/sft", "--set", "generate.max_new_tokens=16", "--set", "tracking.mode=disabled",
    )  # fmt: skip
    assert again.exit_code != 0
    assert again.stderr.count("this run is finished — use --overwrite") == 1


def test_shares_are_disjoint_and_whole(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(list(processes.share([10, 11, 12, 13, 14, 15, 16])))
    assert parts == [[10, 13, 16], [11, 14], [12, 15]]
