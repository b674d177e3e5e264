"""Two machines = one process: two groups of processes on this machine, which share a folder and meet at 127.0.0.1."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from conftest import CARD_SETS, REPO
from evoxtral_train.records import Candidate, Prediction, read_rows

SYSTEMS = "systems=[{{name: SFT, adapter: {}}}]"


def launch(*arguments) -> list[tuple[str, str, int]]:
    """The command on two machines with two processes each: (stdout, stderr, exit code) of each machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "4",
        "--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--mixed_precision", "no", "--dynamo_backend", "no",
        "--rdzv_backend", "static", "--machine_rank",
    ]  # fmt: skip
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(
            [*command, str(rank), "-m", "evoxtral_train.cli", *map(str, arguments)], cwd=REPO, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        return [(*machine.communicate(timeout=200), machine.returncode) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()


@pytest.fixture(scope="module")
def runs(call, packed, tmp_path_factory):
    """SFT, RAFT generation and evaluation, by this one process and by two machines: {name: folder}."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "machines")}
    for name, folder in folders.items():
        shutil.copytree(packed["deferred"], folder / "packed", ignore=shutil.ignore_patterns("audio-cache"))
        common = ("--set", f"dataset={folder}/packed", "--set", "model.device=cpu", "--set", "tracking.mode=disabled")
        adapter = folders["one"] / "sft"
        for arguments in (
            ("sft", "configs/demo/sft.yaml", "--set", f"output={folder}/sft", "--set", "train.epochs=2", "--set",
             "train.batch_size=2", "--set", "train.gradient_accumulation=2", "--set", "train.warmup_steps=1"),
            ("raft", "generate", "configs/demo/raft.yaml", *CARD_SETS,
             "--set", f"output={folder}/raft", "--set", f"adapter={adapter}",
             "--set", "generate.max_new_tokens=16"),
            ("eval", "configs/demo/eval-sft.yaml", "--set", f"output={folder}/eval", "--set", SYSTEMS.format(adapter),
             "--set", "decode.max_new_tokens=16", "--set", "bootstrap.samples=100", "--set", "split=test"),
        ):  # fmt: skip
            if name == "one":
                done = call(*arguments, *common)
                assert done.exit_code == 0, done.stderr
            else:
                (said, errors, code), (said_2, errors_2, code_2) = launch(*arguments, *common)
                assert (code, code_2) == (0, 0), errors + errors_2
                assert "output" in said or "report" in said or "adapter" in said
                own_lines = [line for line in said_2.splitlines() if "WANDB" not in line]  # transformers prints these
                assert own_lines == [], "the first process of the first machine speaks for all"
    return folders


@pytest.mark.slow
def test_the_adapter_is_the_same(runs):
    one, two = (load_file(runs[name] / "sft/adapter/adapter_model.safetensors") for name in ("one", "machines"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4)
    assert json.loads((runs["machines"] / "sft/metrics.json").read_text("utf-8"))["processes"] == 4


@pytest.mark.slow
def test_the_candidates_are_the_same_token_for_token(runs):
    one, two = (read_rows(runs[name] / "raft/round-1/candidates/candidates.jsonl", Candidate) for name in ("one", "machines"))
    assert len(one) == 12 * 4
    assert [(each.utterance_id, each.candidate_id, each.token_ids) for each in one] == [
        (each.utterance_id, each.candidate_id, each.token_ids) for each in two
    ]
    assert not list((runs["machines"] / "raft/round-1/candidates").glob("*part*"))


@pytest.mark.slow
def test_the_evaluation_is_the_same(runs):
    one, two = (read_rows(runs[name] / "eval/predictions/SFT.jsonl", Prediction) for name in ("one", "machines"))
    assert len(one) == 6
    assert [(each.id, each.prediction) for each in one] == [(each.id, each.prediction) for each in two]
    for name, folder in runs.items():
        assert (folder / "eval/report.html").is_file(), name


@pytest.mark.slow
def test_both_machines_filled_the_audio_cache_and_left_nothing(runs):
    [path] = (runs["machines"] / "packed").glob("audio-cache/*/train.bin")
    assert not list(path.parent.glob("*.done"))
    assert json.loads(path.with_name("train.json").read_text("utf-8"))["whole"]
    assert not list(runs["machines"].rglob("*.partial"))
