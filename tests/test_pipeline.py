"""The whole pipeline, as a newcomer starts it: `make demo`, on a corpus cut small, and what it leaves behind."""

import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoProcessor, VoxtralRealtimeForConditionalGeneration

from conftest import TINY_BASE, make
from evoxtral_train.records import Candidate, Prediction, read_rows
from wandb_files import read_run


def test_it_ends_with_the_table(demo):
    comparison = json.loads((demo / "runs/comparison.json").read_text("utf-8"))
    assert list(comparison["systems"]) == ["chance", "probe", "SFT", "RAFT"]
    for report in comparison["systems"].values():
        assert report["clips"] == 10
        assert {"card", "micro", "macro", "per_tag", "false_tags_per_untagged_clip"} <= set(report)
        assert "wer" not in report  # the target holds no words
    table = (demo / "runs/comparison.md").read_text("utf-8")
    assert "| measure | chance | probe | SFT | RAFT |" in table
    printed = (demo / "stdout.txt").read_text("utf-8").splitlines()
    transcripts = max(number for number, line in enumerate(printed) if line == "transcribe")
    last = printed[max(number for number, line in enumerate(printed) if line.startswith("said → written by ")) : transcripts]
    assert len(last) <= 30, "one screen"
    table = next(number for number, line in enumerate(last) if line.startswith("system  micro F1 "))
    assert [line.split()[0] for line in last[table + 1 : table + 3]] == ["SFT", "RAFT"]
    said = " ".join(last)
    assert said.count(" against ") + said.count(" wrote the same as ") == len(comparison["comparisons"]) == 1
    assert last[-1] == f"Open in a browser: {demo}/runs/comparison.html"


def test_then_three_held_out_recordings_are_transcribed(demo):
    printed = (demo / "stdout.txt").read_text("utf-8").splitlines()
    last = printed[max(number for number, line in enumerate(printed) if line == "transcribe") :]
    assert len(last) <= 20
    for number in range(3):
        name = f"test-0000{number}"
        content = json.loads((demo / f"runs/transcripts/{name}.json").read_text("utf-8"))
        place = last.index(f"{demo}/runs/data/audio/{name}.flac")
        assert last[place + 1] == f"  {content['merged'] or '(nothing)'}"


def test_a_finished_demo_is_not_done_again(demo):
    again = make("-n", "demo", f"DEMO={demo / 'runs'}", f"CONFIGS={demo / 'configs'}")
    assert again.returncode == 0, again.stderr
    assert ".venv/bin/evoxtral" not in again.stdout


def test_the_adapter_loads_into_the_stock_class_and_writes_the_same(demo):
    """Nothing of ours but the packed row: transformers, peft and `generate`."""
    model = VoxtralRealtimeForConditionalGeneration.from_pretrained(TINY_BASE, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, demo / "runs/sft/adapter").eval()
    processor = AutoProcessor.from_pretrained(TINY_BASE)
    from evoxtral_train.dataset.reader import PackedSplit

    split = PackedSplit(demo / "runs/packed", "test")
    predictions = {row.id: row for row in read_rows(demo / "runs/eval-sft/predictions/SFT.jsonl", Prediction)}
    assert len(predictions) == 10
    for index, example in enumerate(split.examples):
        prompt = torch.tensor([[1] + [32] * (32 + example.utterance_tokens + 6 - 1)])
        mel = torch.from_numpy(split.mel_of(index, prompt.shape[1] + 20))[None]
        out = model.generate(
            input_ids=prompt, input_features=mel, num_delay_tokens=6, do_sample=False, max_length=prompt.shape[1] + 20
        )
        text = processor.batch_decode(out[:, prompt.shape[1] :], skip_special_tokens=True)[0].strip()
        assert text == predictions[example.id].prediction
        assert example.text == predictions[example.id].reference


def test_systems_evaluated_together_write_what_they_write_alone(demo, call, tmp_path):
    runs = demo / "runs"
    systems = f"systems=[{{name: RAFT, adapter: {runs}/raft/round-1/train}}, {{name: SFT, adapter: {runs}/sft}}]"
    result = call("eval", demo / "configs/eval-sft.yaml", "--set", systems, "--set", f"output={tmp_path}/eval",
                  "--set", "decode.batch_tokens=500", "--set", "tracking.mode=disabled")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    for name, alone in (("SFT", "eval-sft"), ("RAFT", "eval-raft")):
        together = read_rows(tmp_path / f"eval/predictions/{name}.jsonl", Prediction)
        assert together == read_rows(runs / alone / f"predictions/{name}.jsonl", Prediction)


def test_the_offline_tracking_runs_hold_config_losses_metrics_and_tables(demo):
    runs = demo / "runs"
    sft = read_run(runs / "sft")
    assert sft["config"]["lora"]["r"] == 16
    assert sft["config"]["train"]["learning_rate"] == 3e-3
    losses = [row["train/loss"] for row in sft["history"] if "train/loss" in row]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert any("train/eval_loss" in row for row in sft["history"])
    metrics = json.loads((runs / "sft/metrics.json").read_text("utf-8"))
    assert sft["summary"]["best_validation_loss"] == pytest.approx(metrics["best_validation_loss"])

    evaluated = read_run(runs / "eval-raft")
    report = json.loads((runs / "eval-raft/metrics.json").read_text("utf-8"))["systems"]["RAFT"]
    assert evaluated["summary"]["RAFT/micro/f1/value"] == pytest.approx(report["micro"]["f1"]["value"])

    assert read_run(runs / "raft/round-1/scores")["summary"]["mean_reward"] > 0
    for stage in ("data", "packed", "raft/round-1/candidates", "raft/round-1/curated", "raft/round-1/train", "eval-sft"):
        assert read_run(runs / stage)["config"], stage


def test_a_stage_before_its_input_exists(call, demo, tmp_path):
    config = demo / "configs"
    for arguments, hint in [
        (
            ("data", "pack", config / "pack.yaml", "--set", f"manifest={tmp_path}/none.jsonl"),
            "make one with: evoxtral data import",
        ),
        (("sft", config / "sft.yaml", "--set", f"dataset={tmp_path}/none"), "first run: evoxtral data pack"),
        (("raft", "generate", config / "raft.yaml", "--set", f"adapter={tmp_path}/none"), "make one with: evoxtral sft"),
        (("raft", "score", config / "raft.yaml"), "first run: evoxtral raft generate"),
        (("raft", "curate", config / "raft.yaml"), "first run: evoxtral raft score"),
        (("raft", "train", config / "raft.yaml"), "first run: evoxtral raft curate"),
        (("eval", config / "eval-sft.yaml", "--set", f"dataset={tmp_path}/none"), "first run: evoxtral data pack"),
    ]:
        result = call(*arguments, "--set", f"output={tmp_path}/out", "--set", "tracking.mode=disabled")
        assert result.exit_code == 2, result.stderr
        assert hint in result.stderr
        assert result.stderr.count("\n") == 1, "one line"
    assert "first run: evoxtral eval" in call("compare", tmp_path / "none").stderr


def test_an_adapter_from_another_base_is_refused(demo, call, tmp_path):
    """Another base: the same processor, other weights; and one of other shapes, with bare PEFT folders."""
    from evoxtral_train.tiny_bases.realtime import tiny_model

    other = tmp_path / "other-base"
    other.mkdir()
    for name in ("tekken.json", "preprocessor_config.json"):
        shutil.copy(TINY_BASE / name, other / name)
    tiny_model(2540, 64, 1, 96, 1).save_pretrained(other)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(demo / "runs/sft/adapter", elsewhere)
    (elsewhere / "evoxtral.json").unlink()  # as another program would have saved it
    for adapter, reason in [
        (demo / "runs/sft", "this adapter was trained on another base"),
        (demo / "runs/sft/adapter", "this adapter was trained on another base"),
        (elsewhere, "this adapter does not fit the base"),
    ]:
        result = call(
            "raft", "generate", demo / "configs/raft.yaml", "--set", f"model.base={other}", "--set", f"adapter={adapter}",
            "--set", f"output={tmp_path / 'out'}", "--set", "tracking.mode=disabled", "--overwrite",
        )  # fmt: skip
        assert result.exit_code == 2, result.stderr
        assert reason in result.stderr
    other_tokens = tmp_path / "other-tokens"
    shutil.copytree(TINY_BASE, other_tokens)
    content = json.loads((other_tokens / "tekken.json").read_text("utf-8"))
    content["audio"]["transcription_delay_ms"] = 560
    (other_tokens / "tekken.json").write_text(json.dumps(content), "utf-8")
    result = call("sft", demo / "configs/sft.yaml", "--set", f"model.base={other_tokens}", "--set", f"output={tmp_path / 'x'}")
    assert "packed with another processor" in result.stderr


def test_dry_runs_print_the_plan_and_write_nothing(demo, call, tmp_path):
    out = ("--dry-run", "--set", f"output={tmp_path / 'out'}")
    for arguments, expected in [
        (("data", "synth", "synth.yaml"), "train 48, validation 6, test 10, raft 24"),
        (("data", "pack", "pack.yaml"), "rows"),
        (("sft", "sft.yaml"), "12 (2 epochs at batch 8 × 1)"),
        (("raft", "generate", "raft.yaml"), "48 (2 per clip)"),
        (("raft", "run", "raft.yaml"), "3 (1 epochs at batch 8 × 1)"),
        (("eval", "eval-raft.yaml"), "RAFT"),
    ]:
        *command, name = arguments
        result = call(*command, demo / "configs" / name, *out)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("plan: ")
        assert expected in result.stdout
    assert not (tmp_path / "out").exists()
    finished = call("sft", demo / "configs/sft.yaml", "--dry-run")
    assert finished.exit_code == 2
    assert "this run is finished" in finished.stderr


def test_the_4b_plan_works_offline(call):
    result = call("sft", "configs/sft.yaml", "--dry-run")
    assert result.exit_code == 0, result.stderr
    facts = " ".join(result.stdout.split())
    for expected in (
        "the class's default config (the checkpoint is not here)", "4,429,679,360 frozen", "trainable parameters 9,371,648",
        "8.86 GB in bfloat16", "37.5 MB on disk",
    ):  # fmt: skip
        assert expected in facts


def test_every_plan_on_the_4b_model_works_offline_before_its_inputs_exist(call):
    for command, name in (
        ("sft", "sft"),
        ("raft generate", "raft"),
        ("raft train", "raft"),
        ("raft run", "raft"),
        ("eval", "eval"),
    ):
        for folder in ("", "published/"):
            result = call(*command.split(), f"configs/{folder}{name}.yaml", "--dry-run")
            assert result.exit_code == 0, result.stderr
            assert "4,429,679,360 frozen" in result.stdout
            assert "first run: evoxtral data pack" in result.stdout


def test_a_model_that_cannot_be_had_says_how_to_fetch_it(call, spoken, tmp_path):
    result = call("data", "pack", "configs/pack.yaml", "--set", f"manifest={spoken / 'manifest.jsonl'}",
                  "--set", f"output={tmp_path / 'out'}")  # fmt: skip
    assert result.exit_code == 2
    assert "hf download mistralai/Voxtral-Mini-4B-Realtime-2602" in result.stderr
    missing = call("sft", "configs/sft.yaml", "--set", "model.base=./no-such-folder", "--dry-run")
    assert "no such model folder: ./no-such-folder" in missing.stderr


@pytest.mark.parametrize("target", ["text", "tagged_text"])
def test_targets_with_words_are_evaluated_with_word_errors(call, spoken, demo, tmp_path, target):
    for arguments in (
        ("data", "pack", "configs/demo/pack.yaml", "--set", f"manifest={spoken}/manifest.jsonl", "--set", f"target={target}",
         "--set", "layout.kind=packed", "--set", f"output={tmp_path}/packed"),
        ("eval", "configs/demo/eval-sft.yaml", "--set", f"dataset={tmp_path}/packed", "--set", "systems=[{name: base}]",
         "--set", f"output={tmp_path}/eval", "--set", "bootstrap.samples=50", "--set", "decode.max_new_tokens=150"),
    ):  # fmt: skip
        result = call(*arguments, "--set", "tracking.mode=disabled")
        assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "eval/metrics.json").read_text("utf-8"))["systems"]["base"]
    # The base transcribes right after the prompt, in its own streaming form: it is a recogniser.
    assert report["wer"]["micro"]["value"] < 0.3
    assert report["cer"]["micro"]["value"] < 0.3


@pytest.mark.parametrize("recipe", ["configs", pytest.param("configs/published", marks=pytest.mark.slow)])
def test_the_full_recipes_run_on_the_tiny_base(call, spoken, tmp_path, recipe):
    """Only the model's and the data's names differ: bfloat16, checkpointing, batch 2 × 8, either layout."""
    base, off = f"model.base={TINY_BASE}", ("--set", "tracking.mode=disabled")
    dataset, adapter = f"dataset={tmp_path}/packed", f"adapter={tmp_path}/sft"
    pack = ("--set", f"base={TINY_BASE}", "--set", f"manifest={spoken}/manifest.jsonl", "--set", f"output={tmp_path}/packed")
    systems = f"systems=[{{name: base}}, {{name: SFT, adapter: {tmp_path}/sft}}, {{name: RAFT, adapter: {tmp_path}/raft/result}}]"
    for command, name, settings in (
        ("data pack", "pack", pack),
        ("sft", "sft", ("--set", dataset, "--set", base, "--set", f"output={tmp_path}/sft")),
        ("raft run", "raft", ("--set", dataset, "--set", base, "--set", adapter, "--set", f"output={tmp_path}/raft")),
        ("eval", "eval", ("--set", dataset, "--set", base, "--set", systems, "--set", f"output={tmp_path}/eval")),
    ):
        result = call(*command.split(), f"{recipe}/{name}.yaml", *settings, *off)
        assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "sft/metrics.json").read_text("utf-8"))
    assert metrics["steps"] == 3  # 12 clips are one step of 2 × 8, three epochs
    assert math.isfinite(metrics["train_loss"])
    assert len(read_rows(tmp_path / "raft/round-1/candidates/candidates.jsonl", Candidate)) == 48
