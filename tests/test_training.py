"""Training: invariants of rows, batches and adapters."""

import json

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from conftest import REPO, TINY_BASE, load_tiny
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import SftConfig, Train
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import UsageError
from evoxtral_train.families.base import IGNORED
from evoxtral_train.families.realtime.model import RealtimeNetwork
from evoxtral_train.modeling.adapters import add_lora, find_adapter, load_adapter
from evoxtral_train.modeling.bases import describe_model
from evoxtral_train.training.dataset import EvenRows, StepSampler, Target, TrainingSet
from evoxtral_train.training.trainer import micro_batches, optimizer_steps

CONFIG = Model(base=str(TINY_BASE), dtype="float32", device="cpu")


def test_a_batch_literally(packed, network):
    split = PackedSplit(packed["packed"], "train")
    rows = TrainingSet(split, [Target(0, [70, 71], ["sighs"]), Target(1, [], [])])
    batch = network.collate([rows[0], rows[1]])
    prompt = [1] + [32] * 38
    assert batch["input_ids"].tolist() == [[*prompt, 70, 71, 2], [*prompt, 2, 11, 11]]
    assert batch["labels"].tolist() == [[-100] * 39 + [70, 71, 2], [-100] * 39 + [2, -100, -100]]
    assert batch["input_features"].shape == (2, 128, 42 * 8)
    assert (batch["input_features"][1, :, 40 * 8 :] == -0.625).all()
    assert batch["num_delay_tokens"] == 6


def test_configs_sft_trains_exactly_9371648_parameters():
    config = load_config(REPO / "configs/sft.yaml", SftConfig)
    network, _ = describe_model(config.model)
    assert network.sizes()["parameters"] == 4_429_679_360
    network.model.requires_grad_(False)
    adapted = add_lora(network, config.lora, config.model)
    assert adapted.sizes()["trainable_parameters"] == 9_371_648
    assert all("language_model" in name for name, each in adapted.model.named_parameters() if each.requires_grad)


def test_the_published_recipe_trains_both_towers():
    config = load_config(REPO / "configs/published/sft.yaml", SftConfig)
    network, _ = describe_model(config.model)
    network.model.requires_grad_(False)
    assert add_lora(network, config.lora, config.model).sizes()["trainable_parameters"] == 16_187_392


def test_727_rows_make_46_steps():
    train = Train(epochs=1, batch_size=2, gradient_accumulation=8, learning_rate=5e-5)
    assert optimizer_steps(727, train) == 46
    assert optimizer_steps(808, Train(epochs=3, learning_rate=1e-4)) == 153


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


@pytest.mark.slow
def test_out_of_memory_makes_the_batch_smaller_and_the_result_the_same(call, packed, tmp_path, monkeypatch):
    """Twice: at the first step, and once more after a checkpoint. The losses are compared, not the weights:
    where a gradient is nothing but rounding, Adam turns its sign into a whole step."""
    assert sft(call, packed, tmp_path / "whole").exit_code == 0
    real, forwards = RealtimeNetwork.hidden, []

    def limited(self, ids, *arguments, **named):
        if torch.is_grad_enabled():
            forwards.append(len(ids))
            if len(ids) > 2 or (len(ids) > 1 and len(forwards) > 7):
                raise torch.OutOfMemoryError
        return real(self, ids, *arguments, **named)

    monkeypatch.setattr(RealtimeNetwork, "hidden", limited)
    shrunk = sft(call, packed, tmp_path / "shrunk")
    assert shrunk.exit_code == 0, shrunk.stderr
    assert "out of memory with 4 rows at once; continuing with 2" in shrunk.stderr
    assert "out of memory with 2 rows at once; continuing with 1" in shrunk.stderr
    logs = []
    for name in ("whole", "shrunk"):
        [last] = (tmp_path / name).glob("checkpoints/checkpoint-6/trainer_state.json")
        logs.append(json.loads(last.read_text("utf-8"))["log_history"])
    for key in ("loss", "grad_norm", "eval_loss"):
        expected, found = ([entry[key] for entry in log if key in entry] for log in logs)
        assert found == pytest.approx(expected, rel=1e-5), key
    assert json.loads((tmp_path / "shrunk/metrics.json").read_text("utf-8"))["batch_size"] == 1


def test_an_optimizer_step_has_the_same_rows_on_any_number_of_processes(monkeypatch):
    train = Train(epochs=1, batch_size=2, gradient_accumulation=8, learning_rate=5e-5)
    expected = {1: (2, 8), 2: (2, 4), 4: (2, 2), 8: (2, 1), 16: (1, 1)}
    for count, (batch, accumulation) in expected.items():
        monkeypatch.setenv("WORLD_SIZE", str(count))
        assert micro_batches(train, largest=2) == (batch, accumulation)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="2 × 8 rows, which 3 processes cannot share"):
        micro_batches(train, largest=2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert micro_batches(Train(epochs=1, batch_size=6, gradient_accumulation=1, learning_rate=1e-4), largest=5) == (3, 2)


def test_the_validation_loss_is_the_mean_over_all_learned_tokens(call, packed, tmp_path, network):
    assert sft(call, packed, tmp_path / "sft", epochs=1).exit_code == 0
    metrics = json.loads((tmp_path / "sft/metrics.json").read_text("utf-8"))
    [state] = (tmp_path / "sft").glob(f"checkpoints/checkpoint-{metrics['best_step']}")
    adapted = load_adapter(load_tiny(), find_adapter(state)).model
    rows = TrainingSet(PackedSplit(packed["deferred"], "validation"))
    total = tokens = 0
    with torch.inference_mode():
        for index in range(len(rows)):
            batch = network.collate([rows[index]])
            count = int((batch["labels"] != -100).sum())
            total, tokens = total + adapted(**batch).loss.item() * count, tokens + count
    assert rows.label_weight == tokens
    assert metrics["best_validation_loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_a_step_has_the_random_orders_rows_the_longest_first():
    lengths = [5, 3, 9, 4, 9, 3, 5, 8, 7, 6]
    sampler = StepSampler(lengths, rows_per_step=4, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(epochs[0]) == list(range(10))
    plain = torch.randperm(10, generator=torch.Generator().manual_seed(3)).tolist()
    for start in (0, 4, 8):
        step = epochs[0][start : start + 4]
        assert set(step) == set(plain[start : start + 4])
        assert [lengths[row] for row in step] == sorted((lengths[row] for row in step), reverse=True)


def test_what_fills_up_the_last_batches_has_no_labels():
    rows = [{"labels": torch.tensor([IGNORED, each]), "label_weights": torch.tensor([0.0, 2.0])} for each in (7, 8, 9)]
    even = EvenRows(rows, 4)
    assert (len(even), len(EvenRows(rows, 3)), len(EvenRows(rows, 1))) == (4, 3, 3)
    assert [even[index]["labels"].tolist() for index in range(4)] == [[IGNORED, 7], [IGNORED, 8], [IGNORED, 9], [IGNORED] * 2]
    assert even[3]["label_weights"].tolist() == [0, 0]
    assert even[0]["label_weights"].tolist() == [0, 2]
    sampler = StepSampler([1, 2, 3], rows_per_step=2, seed=0, extra=1)
    assert sorted(sampler) == list(range(len(sampler))) == [0, 1, 2, 3]
    assert list(sampler)[-1] == 3


def test_a_process_that_resumes_within_an_epoch_has_that_epochs_order():
    """Accelerate then wraps the loader of a process so that it no longer finds the sampler."""
    def batches(resumed: bool) -> list[list[int]]:
        even = EvenRows([{"labels": torch.tensor([row])} for row in range(13)], 4)
        even.sampler = StepSampler([1] * 13, rows_per_step=4, seed=0, extra=3)
        loader = DataLoader(even, 2, sampler=even.sampler, collate_fn=lambda items: [int(each["labels"]) for each in items])
        shard = prepare_data_loader(loader, num_processes=2, process_index=1, put_on_device=False)
        shard = skip_first_batches(shard, 1) if resumed else shard
        shard.set_epoch(1)
        return list(shard)[0 if resumed else 1 :]

    whole = batches(resumed=False)
    assert len(whole) == 3
    assert batches(resumed=True) == whole
