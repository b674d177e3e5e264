"""Training: invariants of rows, batches and adapters."""

import json

import pytest
import torch

from conftest import REPO, TINY_BASE
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.schema import Lora, Model, SftConfig, Train
from evoxtral_train.data.packing import PackedSplit
from evoxtral_train.modeling.adapters import add_lora, checkpoint_language_model
from evoxtral_train.modeling.realtime import describe_model, load_model, sizes
from evoxtral_train.training.dataset import Collator, Target, TrainingSet
from evoxtral_train.training.trainer import last_whole_checkpoint, optimizer_steps

CONFIG = Model(base=str(TINY_BASE), dtype="float32", device="cpu")


@pytest.fixture(params=["packed", "deferred"])
def rows(request, packed, clock):
    return TrainingSet(PackedSplit(packed[request.param], "train"), clock)


def test_a_batch_literally(packed, clock):
    split = PackedSplit(packed["packed"], "train")
    rows = TrainingSet(split, clock, [Target(0, [70, 71]), Target(1, [])])
    batch = Collator(clock)([rows[0], rows[1]])
    prompt = [1] + [32] * 38
    assert batch["input_ids"].tolist() == [[*prompt, 70, 71, 2], [*prompt, 2, 11, 11]]
    assert batch["labels"].tolist() == [[-100] * 39 + [70, 71, 2], [-100] * 39 + [2, -100, -100]]
    assert batch["input_features"].shape == (2, 128, 42 * 8)
    assert (batch["input_features"][1, :, 40 * 8 :] == -0.625).all()
    assert batch["num_delay_tokens"] == 6


def test_cutting_a_row_after_its_last_label_changes_no_logit_before_it(model, clock, rows):
    index = 3
    row = rows.rows[index]
    cut = Collator(clock)([rows[index]])
    whole_mel = torch.from_numpy(rows._split.mel_of(index, len(row.ids)))[None]
    with torch.inference_mode():
        short = model(**cut)
        whole = model(
            input_ids=torch.tensor([row.ids]), input_features=whole_mel, labels=torch.tensor([row.labels]), num_delay_tokens=6
        )
    torch.testing.assert_close(short.logits, whole.logits[:, : row.needed_tokens], rtol=0, atol=2e-5)
    torch.testing.assert_close(short.loss, whole.loss, rtol=0, atol=1e-5)


def test_a_batch_is_its_rows_one_by_one(model, clock, rows):
    items = [rows[index] for index in range(6)]
    collate = Collator(clock)
    with torch.inference_mode():
        together = model(**collate(items)).loss
        single = [(model(**collate([item])).loss, int((item["labels"] != -100).sum())) for item in items]
    mean = sum(loss * count for loss, count in single) / sum(count for _, count in single)
    torch.testing.assert_close(together, mean, rtol=0, atol=1e-5)


def test_configs_sft_trains_exactly_9371648_parameters():
    config = load_config(REPO / "configs/sft.yaml", SftConfig)
    model, _ = describe_model(config.model.base, config.model.revision)
    assert sizes(model)["parameters"] == 4_429_679_360
    wrapped = add_lora(model.requires_grad_(False), config.lora, config.model)
    assert sizes(wrapped)["trainable_parameters"] == 9_371_648
    assert all("language_model" in name for name, each in wrapped.named_parameters() if each.requires_grad)


def test_the_published_recipe_trains_both_towers():
    config = load_config(REPO / "configs/published/sft.yaml", SftConfig)
    model, _ = describe_model(config.model.base, config.model.revision)
    wrapped = add_lora(model.requires_grad_(False), config.lora, config.model)
    assert sizes(wrapped)["trainable_parameters"] == 16_187_392


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.train()
    model(**batch).loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


def test_gradient_checkpointing_gives_equal_gradients(clock, rows):
    batch = Collator(clock)([rows[0], rows[1]])
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = add_lora(load_model(CONFIG), Lora(), CONFIG)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        if checkpointing:
            checkpoint_language_model(model)
        found.append(gradients(model, batch))
    assert found[0].keys() == found[1].keys()
    assert all(each.abs().sum() > 0 for each in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0)


def test_727_rows_make_46_steps():
    train = Train(epochs=1, batch_size=2, gradient_accumulation=8, learning_rate=5e-5)
    assert optimizer_steps(727, train) == 46
    assert optimizer_steps(808, Train(epochs=3, learning_rate=1e-4)) == 153


def test_a_checkpoint_that_a_kill_cut_short_is_passed_over(tmp_path):
    for step, names in (
        (5, ["trainer_state.json", "optimizer.pt", "scheduler.pt", "adapter_model.safetensors"]),
        (10, ["optimizer.pt"]),
    ):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    assert last_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert last_whole_checkpoint(tmp_path / "none") is None


def sft(call, packed, output, *more, epochs=2):
    return call(
        "sft", "configs/demo/sft.yaml", "--set", f"dataset={packed['deferred']}", "--set", f"output={output}",
        "--set", f"train.epochs={epochs}", "--set", "train.batch_size=4", "--set", "train.evaluate_every_steps=2",
        "--set", "train.warmup_steps=1", "--set", "tracking.mode=disabled", *more,
    )  # fmt: skip


def test_resumed_equals_uninterrupted(call, packed, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from evoxtral_train.training import trainer

    assert sft(call, packed, tmp_path / "whole").exit_code == 0
    real = trainer._Watcher.on_step_end

    def stop_at_three(self, args, state, control, **named):
        if state.global_step == 3:
            raise KeyboardInterrupt
        return real(self, args, state, control, **named)

    monkeypatch.setattr(trainer._Watcher, "on_step_end", stop_at_three)
    cut = sft(call, packed, tmp_path / "cut")
    assert cut.exit_code == 130, cut.stderr
    assert not (tmp_path / "cut" / "complete.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(REPO)
    refused = sft(call, packed, tmp_path / "cut", "--resume", epochs=3)
    assert refused.exit_code == 2
    assert "changed since this run began: train.epochs" in refused.stderr
    resumed = sft(call, packed, tmp_path / "cut", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert "resumed from step" in resumed.stdout
    whole, again = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=1e-6)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "cut")]
    assert metrics[0]["steps"] == metrics[1]["steps"] == 6
    assert metrics[0]["train_loss"] == pytest.approx(metrics[1]["train_loss"], abs=1e-5)
    assert metrics[0]["best_validation_loss"] == pytest.approx(metrics[1]["best_validation_loss"], abs=1e-5)
