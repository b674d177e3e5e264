"""RAFT through the command line: every row accounted for, resuming, refusals, rounds, the gate, preference pairs."""

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
import yaml

from evoxtral_train.config.training import RaftConfig
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import UsageError
from evoxtral_train.modeling.adapters import find_adapter
from evoxtral_train.records import REFERENCE, Candidate, CuratedRow, DroppedRow, PreferencePair, ScoredCandidate, read_rows
from evoxtral_train.runs import read_run
from evoxtral_train.stages.raft.rounds import RaftRound
from evoxtral_train.stages.raft.train import targets_of
from evoxtral_train.training.dataset import TrainingSet


def test_every_row_is_accounted_for(demo):
    raft = demo / "runs/raft/round-1"
    candidates = read_rows(raft / "candidates/candidates.jsonl", Candidate)
    scores = read_rows(raft / "scores/scores.jsonl", ScoredCandidate)
    curated = read_rows(raft / "curated/curated.jsonl", CuratedRow)
    dropped = read_rows(raft / "curated/dropped.jsonl", DroppedRow)
    keys = [(each.utterance_id, each.candidate_id) for each in candidates]
    assert keys == [(f"raft-{clip:05d}", number) for clip in range(24) for number in range(2)]
    assert keys == [(each.utterance_id, each.candidate_id) for each in scores]
    assert sorted(keys) == sorted((each.utterance_id, each.candidate_id) for each in [*curated, *dropped])
    assert len(curated) == 21  # floor(24 × 0.9)
    metrics = json.loads((raft / "train/metrics.json").read_text("utf-8"))
    assert (metrics["train_rows"], metrics["steps"]) == (21, 3)


def test_what_is_trained_on_is_what_was_sampled(demo, tmp_path):
    """Token for token, also where the text alone would be encoded otherwise; EOS follows, also where decoding was cut."""
    raft, split = demo / "runs/raft/round-1", PackedSplit(demo / "runs/packed", "raft")
    candidates = {(row.utterance_id, row.candidate_id): row for row in read_rows(raft / "candidates/candidates.jsonl", Candidate)}
    curated = read_rows(raft / "curated/curated.jsonl", CuratedRow)
    assert [row.token_ids for row in curated] == [candidates[row.utterance_id, row.candidate_id].token_ids for row in curated]
    curated[0] = replace(curated[0], target_text="ab", token_ids=[137, 138])  # "a", "b"; as a text it is one token, 441
    rows = TrainingSet(split, targets_of(curated, split))
    for number, row in enumerate(curated):
        laid_out = rows.row(number)
        assert [label for label in laid_out.labels if label != -100] == [*row.token_ids, split.layout.eos_id]
        assert laid_out.ids[: laid_out.prompt_tokens] == split.layout.prompt_ids(split.clip(split.index_of[row.utterance_id]))


def test_a_candidate_that_fills_its_row_is_refused_before_training(demo):
    split = PackedSplit(demo / "runs/packed", "raft")
    room = split.clip(0).row_tokens - split.layout.prompt_tokens(split.clip(0))
    row = CuratedRow("raft-00000", 1, "aaa", [137] * (room - 1), 1.0)
    assert len(targets_of([row], split)) == 1
    with pytest.raises(UsageError, match="candidate 1 of clip 'raft-00000' fills its row, so EOS does not fit after it — set it"):
        targets_of([replace(row, token_ids=[137] * room)], split)


def test_a_length_that_leaves_no_place_for_eos_is_refused_before_anything_is_generated(raft):
    for step, *options in (("generate",), ("generate", "--dry-run"), ("run",), ("run", "--dry-run")):
        refused = raft(step, *options, "--overwrite", "--set", "generate.max_new_tokens=400")
        assert refused.exit_code == 2
        assert "generate.max_new_tokens: a candidate of 400 tokens would leave no place for EOS: the dataset" in refused.stderr
    assert (raft.folder / "round-1/candidates/candidates.jsonl").is_file()
    assert "at most 64 tokens" in raft("generate", "--dry-run", "--overwrite", "--set", "generate.max_new_tokens=null").stdout


def test_replayed_references_carry_the_packed_tokens(demo, raft):
    result = raft("curate", "--overwrite", "--set", "curate.reference_replay=0.5")
    assert result.exit_code == 0, result.stderr
    split = PackedSplit(demo / "runs/packed", "raft")
    rows = read_rows(raft.folder / "round-1/curated/curated.jsonl", CuratedRow)[21:]
    assert len(rows) == 10
    for row in rows:
        example = split.examples[split.index_of[row.utterance_id]]
        assert (row.candidate_id, row.target_text, row.token_ids) == (REFERENCE, example.target_text, example.target_ids)


def test_generation_resumed_equals_uninterrupted(demo, raft, monkeypatch):
    import evoxtral_train.stages.raft.generate as stage

    shutil.rmtree(raft.folder)
    real, batches = stage.decode, []

    def stop_after_two(*arguments, **named):
        for batch in real(*arguments, **named):
            batches.append(batch)
            if len(batches) == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(stage, "decode", stop_after_two)
    small_batches = ("--set", "generate.batch_tokens=2000")
    assert raft("generate", *small_batches).exit_code == 130
    assert not (raft.folder / "round-1/candidates/candidates.jsonl").exists()
    refused = raft("score", *small_batches)
    assert refused.exit_code == 2
    assert "is not finished — finish it with: evoxtral raft generate" in refused.stderr
    monkeypatch.setattr(stage, "decode", real)
    resumed = raft("generate", *small_batches, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    found, expected = (
        read_rows(folder / "round-1/candidates/candidates.jsonl", Candidate) for folder in (raft.folder, demo / "runs/raft")
    )
    assert [(each.text, each.token_ids) for each in found] == [(each.text, each.token_ids) for each in expected]


def test_raft_run_does_all_four_and_resumes(raft):
    shutil.rmtree(raft.folder / "round-1/scores")
    shutil.rmtree(raft.folder / "round-1/curated")
    shutil.rmtree(raft.folder / "round-1/train")
    shutil.rmtree(raft.folder / "result")
    result = raft("run", "--resume")
    assert result.exit_code == 0, result.stderr
    steps = [line for line in result.stderr.splitlines() if line.startswith("round")]
    assert steps == [
        "round 1 of 1: generate, finished before", "round 1 of 1: score", "round 1 of 1: curate", "round 1 of 1: train",
    ]  # fmt: skip
    before_training = result.stderr.partition("round 1 of 1: train")[0]
    for fact in ("reward, greedy: ", "reward, mean of N: ", "reward, best of N: ", "clips without spread: "):
        assert f"\n  {fact}" in before_training
    assert (raft.folder / "round-1/train/adapter/adapter_model.safetensors").is_file()
    assert "this run is finished" in raft("run").stderr


def test_inputs_made_from_something_else_are_refused(raft, demo, call, packed, tmp_path):
    wrong = raft("score", "--overwrite", "--set", f"dataset={packed['deferred']}")
    assert wrong.exit_code == 2
    assert "was made from another dataset than" in wrong.stderr
    wrong = raft("score", "--overwrite", "--set", "generate.temperature=0.8")
    assert "was made with another config, which differs in: generate.temperature" in wrong.stderr
    wrong = raft("train", "--overwrite", "--set", "curate.drop_lowest_share=0.2")
    assert "was made with another config, which differs in: curate.drop_lowest_share" in wrong.stderr
    other = tmp_path / "other-adapter"
    shutil.copytree(demo / "runs/sft/adapter", other)
    with (other / "adapter_config.json").open("a") as file:
        file.write("\n")
    wrong = raft("train", "--overwrite", "--set", f"adapter={other}")
    assert "was made from another adapter than" in wrong.stderr
    wrong = call("compare", demo / "runs/eval-sft", demo / "runs/eval-sft", demo / "runs/sft")
    assert "contains a run of `sft`, not of `eval`" in wrong.stderr


TWO_ROUNDS = ("--set", "rounds=[{}, {candidates: 3, temperature: 1.1, top_p: 1.0}]")
NO_GATE = ("--set", "gate.split=null")


def rounds_of(folder) -> list[dict]:
    return json.loads((folder / "result/metrics.json").read_text("utf-8"))["rounds"]


def test_a_round_samples_from_the_adapter_of_the_round_before_with_its_own_settings(demo, raft):
    shutil.rmtree(raft.folder)
    result = raft("run", *TWO_ROUNDS, *NO_GATE)
    assert result.exit_code == 0, result.stderr
    first, second = (raft.folder / f"round-{number}" for number in (1, 2))
    trained = find_adapter(first / "train").fingerprint
    assert read_run(second / "candidates")["inputs"]["adapter"] == trained
    assert read_run(second / "train")["inputs"]["adapter"] == trained
    assert read_run(first / "train")["inputs"]["adapter"] == find_adapter(demo / "runs/sft").fingerprint
    sampling = [yaml.safe_load((folder / "candidates/config.yaml").read_text("utf-8"))["generate"] for folder in (first, second)]
    assert [(each["candidates"], each["temperature"], each["top_p"], each["seed"]) for each in sampling] == [
        (2, 1.3, 0.9, 0), (3, 1.1, 1.0, 1),
    ]  # fmt: skip
    assert len(read_rows(second / "candidates/candidates.jsonl", Candidate)) == 24 * 3
    assert find_adapter(raft.folder / "result").fingerprint == find_adapter(second / "train").fingerprint
    rounds = rounds_of(raft.folder)
    assert [(row["round"], row["gate"], row.get("candidates_per_clip")) for row in rounds] == [
        (0, None, None), (1, None, 2), (2, None, 3),
    ]  # fmt: skip
    for folder in (first, second):
        for name in ("candidates/candidates", "scores/scores", "curated/curated", "curated/dropped"):
            assert (folder / f"{name}.jsonl").is_file()
    assert "| round | N | greedy | mean of N | best of N |" in result.stdout


@pytest.mark.slow
def test_rounds_that_do_not_help_are_the_last_and_their_adapter_is_not_the_result(demo, raft):
    shutil.rmtree(raft.folder)
    settings = ("gate.min_gain=10", "gate.patience=1", "gate.measure=reward", "score.profile=counts")
    result = raft("run", *TWO_ROUNDS, *(part for setting in settings for part in ("--set", setting)))
    assert result.exit_code == 0, result.stderr
    assert re.search(r"rounds +1, ended by the gate: reward [+-]0\.\d{4} against the start\n", result.stdout)
    assert "no round helped" in result.stdout
    assert (raft.folder / "round-1/train/adapter").is_dir()
    assert not (raft.folder / "round-2").exists()
    assert find_adapter(raft.folder / "result").fingerprint == find_adapter(demo / "runs/sft").fingerprint
    rounds = rounds_of(raft.folder)
    assert [row["round"] for row in rounds] == [0, 1]
    patient = raft("run", "--overwrite", *TWO_ROUNDS, "--set", "gate.min_gain=10", "--set", "gate.patience=2")
    assert "rounds   2, ended by the gate" in patient.stdout
    assert find_adapter(raft.folder / "result").fingerprint == find_adapter(demo / "runs/sft").fingerprint


@contextmanager
def changed(path, old: str, new: str):
    """A text file with `old` replaced, for a while."""
    before = path.read_text("utf-8")
    path.write_text(before.replace(old, new), "utf-8")
    yield
    path.write_text(before, "utf-8")


@pytest.mark.slow
def test_rounds_added_later_give_what_they_give_at_once(raft, tmp_path):
    shutil.rmtree(raft.folder)
    heard = tmp_path / "heard.jsonl"
    heard.write_text("".join(f'{{"id": "raft-{clip:05d}", "tags": {{"sighs": 0.5}}}}\n' for clip in range(24)), "utf-8")
    gate = ("--set", "gate.measure=micro_f1", "--set", "gate.min_gain=-1", "--set", f"score.verifier={heard}",
            "--set", "score.profile=verifier")  # fmt: skip
    assert raft("run", *gate).exit_code == 0
    first = (raft.folder / "round-1/candidates/complete.json").stat().st_mtime_ns
    assert "this run is finished" in raft("run", "--resume", *gate).stderr
    with changed(heard, "0.5", "0.6"):
        mixed = raft("run", "--resume", *TWO_ROUNDS, *gate)
        assert (mixed.exit_code, "changed since this run began: input verifier" in mixed.stderr) == (2, True)
    later = raft("run", "--resume", *TWO_ROUNDS, *gate)
    assert later.exit_code == 0, later.stderr
    assert (raft.folder / "round-1/candidates/complete.json").stat().st_mtime_ns == first
    at_once = raft("run", *TWO_ROUNDS, *gate, "--set", f"output={tmp_path}/at-once")
    assert at_once.exit_code == 0, at_once.stderr
    assert rounds_of(raft.folder) == rounds_of(tmp_path / "at-once")
    assert find_adapter(raft.folder / "result").fingerprint == find_adapter(tmp_path / "at-once/result").fingerprint
    (raft.folder / "round-notes").mkdir()
    (raft.folder / "round-notes/mine.txt").write_text("kept", "utf-8")
    fewer = raft("run", "--overwrite", *NO_GATE)
    assert fewer.exit_code == 0, fewer.stderr
    assert not (raft.folder / "round-2").exists()
    assert (raft.folder / "round-notes/mine.txt").read_text("utf-8") == "kept"


def test_what_cannot_be_a_round_or_a_gate_is_refused(raft):
    assert "the dataset has no split 'dev'" in raft("run", "--resume", "--set", "gate.split=dev").stderr
    none = raft("score", "--round", "2")
    assert none.exit_code == 2
    assert "there is no round 2: the config has 1" in none.stderr
    assert "first run: evoxtral raft generate … --round 2" in raft("score", "--round", "2", *TWO_ROUNDS).stderr
    shutil.rmtree(raft.folder / "result")
    changed = raft("run", "--resume", "--set", "generate.temperature=0.8", *TWO_ROUNDS)
    assert changed.exit_code == 2
    assert "was made with another config, which differs in: generate.temperature" in changed.stderr
    within = raft("run", "--overwrite", "--set", f"adapter={raft.folder}/round-1/train")
    assert "the starting adapter is inside the output" in within.stderr
    assert (raft.folder / "round-1/train/adapter").is_dir()
    waiting = raft("generate", "--round", "2", *TWO_ROUNDS, "--dry-run")
    assert waiting.exit_code == 0, waiting.stderr
    assert "72 (3 per clip)" in waiting.stdout


def test_the_seeds_of_a_round_are_its_own():
    config = RaftConfig(output="out", dataset="d", model={"base": "b"}, adapter="a", rounds=[{}, {}, {}],
                        train={"epochs": 1, "learning_rate": 1e-4, "seed": 5}, generate={"seed": 2})  # fmt: skip
    rounds = [RaftRound.of(config, number).config for number in (1, 2, 3)]
    assert [(each.generate.seed, each.train.seed, str(each.adapter)) for each in rounds] == [
        (2, 5, "a"), (3, 6, "out/round-1/train"), (4, 7, "out/round-2/train"),
    ]  # fmt: skip


def test_preference_pairs_in_trl_s_names(demo, raft, processor, clock):
    import datasets

    result = raft("pairs")
    assert result.exit_code == 0, result.stderr
    path = raft.folder / "round-1/pairs/pairs.jsonl"
    pairs = read_rows(path, PreferencePair)
    rewards: dict[str, list[float]] = {}
    for each in read_rows(raft.folder / "round-1/scores/scores.jsonl", ScoredCandidate):
        rewards.setdefault(each.utterance_id, []).append(each.reward)
    spread = {clip: (max(values), min(values)) for clip, values in rewards.items() if max(values) > min(values)}
    assert {each.utterance_id: (each.chosen_reward, each.rejected_reward) for each in pairs} == spread
    assert f"24 = {len(spread)} pairs + 0 dropped + {24 - len(spread)} without" in result.stdout
    assert {each.profile for each in pairs} == {"card"}
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(raft.folder / "cache"))
    assert {"prompt", "chosen", "rejected", "prompt_ids", "chosen_ids", "rejected_ids", "audio"} <= set(loaded.column_names)
    for each in pairs:
        assert each.prompt == ""
        assert each.prompt_ids[:2] == [clock.bos_id, clock.streaming_pad_id]
        assert (each.chosen, each.rejected) == tuple(
            processor.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in (each.chosen_ids, each.rejected_ids)
        )
        assert each.audio.endswith(f"{each.utterance_id}.flac")
    half = raft("pairs", "--overwrite", "--set", "pairs.drop_lowest_share=0.5")
    assert half.exit_code == 0, half.stderr
    widest = sorted(pairs, key=lambda each: (each.rejected_reward - each.chosen_reward, each.utterance_id))
    kept = {each.utterance_id for each in widest[: len(pairs) - len(pairs) // 2]}
    assert read_rows(path, PreferencePair) == [each for each in pairs if each.utterance_id in kept]
