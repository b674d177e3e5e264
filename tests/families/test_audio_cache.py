"""Cached = uncached: the frozen audio path computed once changes nothing that can be seen."""

import shutil

import pytest
import torch

from evoxtral_train.config.training import Lora
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding.decoder import Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.modeling.audio_cache import LiveAudio, cached_stage, open_cache
from evoxtral_train.training.dataset import TrainingSet

from .conftest import with_random_adapter

CPU = torch.device("cpu")


@pytest.fixture
def copied(split, tmp_path):
    """A copy of the dataset: its cache lies beside it."""
    shutil.copytree(split.folder, tmp_path / "dataset", ignore=shutil.ignore_patterns("audio-cache"))
    return PackedSplit(tmp_path / "dataset", split.split)


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


PROJECTOR = Lora(target_modules=r".*language_model.*self_attn\.(q|k|v|o)_proj|.*multi_modal_projector\.linear_[12]")


def test_an_adapter_on_the_projector_learns_the_same_from_what_enters_it(copied, subject, family):
    split, found = copied, []
    for kind in ("stock forward", "cached"):
        network = with_random_adapter(family.load("float32"), subject, spread=0.05, lora=PROJECTOR)
        assert cached_stage(network) == "states"
        cache = open_cache(network, CPU, "base", split, "states") if kind == "cached" else None
        rows = TrainingSet(split, cache=cache)
        batch = network.collate([rows[index] for index in range(3)])
        if cache:
            assert batch["audio_states"].shape[2] == network.state_width
            network.drop_audio_path(projector=False)
        loss = network.model(**batch)["loss"]
        loss.backward()
        gradients = {name: each.grad for name, each in network.model.named_parameters() if each.requires_grad}
        found.append((loss.detach(), gradients))
    (expected, theirs), (loss, ours) = found
    torch.testing.assert_close(loss, expected, rtol=3e-7, atol=0)
    assert ours.keys() == theirs.keys()
    assert sum("multi_modal_projector" in name for name in ours) == 4
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_decoding_projects_what_the_cache_holds(copied, subject, family):
    split = copied
    system = with_random_adapter(family.load("float32"), subject, lora=PROJECTOR)
    settings = Decoding(candidates=1, sampling=Sampling(), max_new_tokens=6, batch_tokens=2000)
    requests = list(requests_of(split))[:3]
    live = [each for batch in decode(system, LiveAudio(system, split), requests, settings) for each in batch]
    cache = open_cache(system, CPU, "base", split, "states")
    system.drop_audio_path(projector=False)
    cached = [each for batch in decode(system, cache, requests, settings) for each in batch]
    assert [each.token_ids for each in cached] == [each.token_ids for each in live]


def test_an_adapter_on_the_tower_is_not_cached(subject, family):
    tower = with_random_adapter(family.load("float32"), subject, lora=Lora(target_modules=r".*\.q_proj"))
    assert cached_stage(tower) is None
    assert cached_stage(with_random_adapter(family.load("float32"), subject)) == "embeds"
