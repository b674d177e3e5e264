"""Training rows and adapters: what must not change the loss, and that the stock class reads what is saved."""

import pytest
import torch
from peft import PeftModel

from evoxtral_train.modeling.adapters import find_adapter, load_adapter
from evoxtral_train.training.dataset import TrainingSet

from .conftest import with_random_adapter


@pytest.fixture
def rows(split):
    return TrainingSet(split)


def test_cutting_a_row_after_its_last_label_changes_no_logit_before_it(stock, subject, rows, split, network):
    index = 3
    row = rows.row(index)
    cut = network.collate([rows[index]])
    inputs = subject.inputs(split, index, len(row.ids))
    with torch.inference_mode():
        short = stock[False](**cut)
        whole = stock[False](input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels]), **inputs)
    torch.testing.assert_close(short.logits, whole.logits[:, : row.needed_tokens], rtol=0, atol=2e-5)
    torch.testing.assert_close(short.loss, whole.loss, rtol=0, atol=1e-5)


def test_a_batch_is_its_rows_one_by_one(stock, rows, network):
    items = [rows[index] for index in range(6)]
    collate = network.collate
    with torch.inference_mode():
        together = stock[False](**collate(items)).loss
        single = [(stock[False](**collate([item])).loss, int((item["labels"] != -100).sum())) for item in items]
    mean = sum(loss * count for loss, count in single) / sum(count for _, count in single)
    torch.testing.assert_close(together, mean, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def saved_adapter(subject, family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    with_random_adapter(family.load("float32"), subject, spread=0.05).model.save_pretrained(folder)
    return folder


def test_the_stock_class_reads_a_saved_adapter(saved_adapter, subject, family, rows, split, network):
    ours = load_adapter(family.load("float32"), find_adapter(saved_adapter))
    theirs = PeftModel.from_pretrained(subject.stock(), saved_adapter).eval()
    batch = network.collate([rows[0], rows[1]])
    with torch.inference_mode():
        found, expected = ours.model(**batch).logits, theirs(**batch).logits
        plain = network.model(**batch).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (expected - plain).abs().max() > 0.01, "the adapter changes something"


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.train()
    model(**batch)["loss"].backward()
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


@pytest.mark.parametrize("cached", [False, True], ids=["stock forward", "cached audio"])
@pytest.mark.parametrize("kind", ["fresh", "loaded"])
def test_gradient_checkpointing_gives_equal_gradients(rows, split, saved_adapter, subject, family, kind, cached, network):
    if split.layout.name != subject.layouts[0]:
        pytest.skip("checkpointing knows no layout: one is enough")
    batch = network.collate([rows[0], rows[1]])
    if cached:
        with torch.no_grad():
            batch["audio_embeds"] = network.audio_embeddings(batch.pop("input_features"), batch["input_ids"].shape[1])
    found = []
    for checkpointing in (False, True):
        if kind == "fresh":
            adapted = with_random_adapter(family.load("float32"), subject, spread=0.05)
        else:
            adapted = load_adapter(family.load("float32"), find_adapter(saved_adapter), trainable=True)
        if checkpointing:
            adapted.checkpoint_language_model()
        found.append(gradients(adapted.model, batch))
    assert found[0].keys() == found[1].keys()
    assert all(each.abs().sum() > 0 for each in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0)
