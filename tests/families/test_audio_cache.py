"""Cached = uncached: the frozen audio path computed once changes nothing that can be seen."""

import shutil

import pytest
import torch

from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.modeling.audio_cache import LiveAudio, open_cache
from evoxtral_train.training.dataset import TrainingSet

from .conftest import with_random_adapter

CPU = torch.device("cpu")


@pytest.fixture
def copied(split, tmp_path):
    """A copy of the dataset: its cache lies beside it."""
    shutil.copytree(split.folder, tmp_path / "dataset", ignore=shutil.ignore_patterns("audio-cache"))
    return PackedSplit(tmp_path / "dataset", "train")


def test_loss_and_gradients_equal_the_stock_forwards(split, network, subject, family):
    """Given the same audio embeddings, through PEFT, in float32. The hidden states are equal bit by bit
    (test_decoding); `lm_head` on fewer rows may round the last bit of the loss otherwise."""
    ours = with_random_adapter(family.load("float32"), subject, spread=0.1)
    theirs = with_random_adapter(network.around(subject.stock()), subject, spread=0.1).model
    rows = TrainingSet(split)
    batch = network.collate([rows[index] for index in range(4)])
    expected = theirs(**batch).loss
    expected.backward()
    mels = batch.pop("input_features")
    with torch.no_grad():
        batch["audio_embeds"] = ours.audio_embeddings(mels, batch["input_ids"].shape[1])
    ours.drop_audio_path()
    found = ours.model(**batch)["loss"]
    found.backward()
    torch.testing.assert_close(found, expected, rtol=3e-7, atol=0)
    gradients = {name: each.grad for name, each in theirs.named_parameters() if each.requires_grad}
    for name, each in ours.model.named_parameters():
        if each.requires_grad:
            torch.testing.assert_close(each.grad, gradients[name], rtol=1e-4, atol=1e-7)


def test_the_cache_holds_what_the_tower_computes(copied, network):
    split = copied
    cache = open_cache(network, CPU, "base", split)
    live = LiveAudio(network, split)
    rows = TrainingSet(split)
    for index in range(len(rows)):
        row = rows.row(index)
        tokens = min(row.prompt_tokens + 64, len(row.ids))
        assert tokens >= row.needed_tokens
        torch.testing.assert_close(cache.row(index, tokens), live.embeddings([index], [tokens])[0], rtol=0, atol=2e-5)
    batch = cache.embeddings([3, 1], [40, 50])
    torch.testing.assert_close(batch[0, :40], cache.row(3, 40), rtol=0, atol=0)
    assert (batch[0, 40:] == 0).all()


def test_decoding_from_the_cache_writes_the_same_tokens_without_a_tower(copied, network, subject, family):
    split, system = copied, with_random_adapter(family.load("float32"), subject)
    sampling = Sampling(0.9, 0.95, 0, seed=4)
    settings = Decoding(candidates=3, sampling=sampling, max_new_tokens=12, batch_tokens=2000)
    requests = list(requests_of(split))
    live = [each for batch in decode(system, LiveAudio(system, split), requests, settings) for each in batch]
    cache = open_cache(network, CPU, "base", split)
    system.drop_audio_path()
    cached = [each for batch in decode(system, cache, requests, settings) for each in batch]
    assert [each.token_ids for each in cached] == [each.token_ids for each in live]
