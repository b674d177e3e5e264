"""One decoder: greedy as stock `generate`, sampling that depends on the row alone."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    VoxtralRealtimeForConditionalGeneration,
)

from conftest import TINY_BASE, load_tiny
from evoxtral_train.config.sections import Model
from evoxtral_train.config.training import Lora
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.decoding import decoder
from evoxtral_train.decoding.decoder import Decoder, Decoding, decode, requests_of
from evoxtral_train.decoding.sampling import Sampling, choose, gumbel_noise, row_key
from evoxtral_train.errors import EvoxtralError
from evoxtral_train.families.realtime.model import RealtimeNetwork
from evoxtral_train.modeling.adapters import add_lora
from evoxtral_train.modeling.audio_cache import LiveAudio

CONFIG = Model(base=str(TINY_BASE), dtype="float32", device="cpu")


@pytest.fixture(scope="module", params=["packed", "deferred"])
def split(request, packed):
    return PackedSplit(packed[request.param], "train")


@pytest.fixture(scope="module")
def adapted():
    """The tiny base with an adapter of random weights, far from zero, so that it writes otherwise."""
    return with_random_adapter(load_tiny())


@pytest.fixture(scope="module")
def stock():
    """Transformers' own class, nothing of ours: {with adapter or not: system}."""
    plain, wrapped = (VoxtralRealtimeForConditionalGeneration.from_pretrained(TINY_BASE, dtype=torch.float32) for _ in range(2))
    return {False: plain.eval(), True: with_random_adapter(RealtimeNetwork(wrapped, delay_tokens=6)).model}


def with_random_adapter(network):
    torch.manual_seed(0)
    network = add_lora(network, Lora(), CONFIG)
    for name, parameter in network.model.eval().named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def run(network, split, requests=None, **named):
    named = {"candidates": 1, "sampling": Sampling(), "max_new_tokens": 24, "batch_tokens": 800, **named}
    requests = requests if requests is not None else list(requests_of(split))
    audio = named.pop("audio", None) or LiveAudio(network, split)
    completions = [each for batch in decode(network, audio, requests, Decoding(**named)) for each in batch]
    return {(each.utterance_id, each.candidate_id): each for each in completions}


@pytest.mark.parametrize("with_adapter", [False, True])
def test_greedy_equals_stock_generate_token_for_token(network, adapted, stock, clock, split, with_adapter):
    found = run(adapted if with_adapter else network, split)
    written = 0
    for request in requests_of(split):
        length = min(len(request.prompt) + 24, request.row_tokens)
        mel = torch.from_numpy(split.mel_of(request.index, length))[None]
        whole = stock[with_adapter].generate(
            input_ids=torch.tensor([request.prompt]), input_features=mel, num_delay_tokens=clock.delay_tokens, do_sample=False,
            max_length=length,
        )[0, len(request.prompt) :].tolist()  # fmt: skip
        expected = whole[: whole.index(clock.eos_id)] if clock.eos_id in whole else whole
        assert found[request.utterance_id, 0].token_ids == expected
        assert found[request.utterance_id, 0].finish_reason == ("eos" if clock.eos_id in whole else "length")
        written += len(expected)
    if with_adapter or split.layout.name == "packed":  # deferred, the base has nothing left to write but EOS
        assert written > 50, "a system must write something for this to mean anything"


def test_both_halves_are_the_stock_forward(network, adapted, stock, clock, split):
    for with_adapter, system in ((False, network), (True, adapted)):
        mel = torch.from_numpy(split.mel_of(0, 80))[None]
        ids = torch.randint(40, 2000, (1, 80), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            logits = stock[with_adapter](input_ids=ids, input_features=mel, num_delay_tokens=clock.delay_tokens).logits
            hidden = system.hidden(ids, system.audio_embeddings(mel))
            torch.testing.assert_close(system.logits(hidden), logits, rtol=0, atol=0)


SAMPLED = {"candidates": 3, "sampling": Sampling(0.9, 0.95, 0, seed=4), "max_new_tokens": 12}


@pytest.fixture(scope="module")
def expected(adapted, split):
    """What SAMPLED writes: {(clip, candidate): completion}."""
    return run(adapted, split, **SAMPLED, batch_tokens=2000)


def test_candidates_do_not_depend_on_the_batch_or_its_order(adapted, split, expected):
    requests = list(requests_of(split))
    assert len({tuple(each.token_ids) for each in expected.values()}) > len(requests), "candidates differ"
    for tokens in (1, 5000):
        found = run(adapted, split, **SAMPLED, batch_tokens=tokens)
        assert {key: each.token_ids for key, each in found.items()} == {key: each.token_ids for key, each in expected.items()}
        for key, each in found.items():
            assert each.mean_logprob == pytest.approx(expected[key].mean_logprob, abs=1e-4)
    backwards = run(adapted, split, requests[::-1], **SAMPLED, batch_tokens=3000)
    assert {key: each.token_ids for key, each in backwards.items()} == {key: each.token_ids for key, each in expected.items()}
    fewer = run(adapted, split, **{**SAMPLED, "candidates": 2})
    assert all(fewer[key].token_ids == expected[key].token_ids for key in fewer)
    other_seed = run(adapted, split, **{**SAMPLED, "sampling": Sampling(0.9, 0.95, 0, seed=5)})
    assert any(other_seed[key].token_ids != expected[key].token_ids for key in expected)


@pytest.fixture
def steps(monkeypatch):
    """What the language model read: (rows, tokens of each row) of every forward pass."""
    seen, real = [], RealtimeNetwork.hidden

    def spy(self, ids, *arguments, **named):
        seen.append(tuple(ids.shape))
        return real(self, ids, *arguments, **named)

    monkeypatch.setattr(RealtimeNetwork, "hidden", spy)
    return seen


def test_a_prompt_is_read_once_and_rows_leave_when_they_end(adapted, split, steps):
    requests = list(requests_of(split))
    found = run(adapted, split, **SAMPLED, batch_tokens=100_000)
    prompts = [rows for rows, tokens in steps if tokens > 1]
    assert sum(prompts) == len(requests), "one row for each clip, not for each candidate"
    lengths = [len(each.token_ids) + (each.finish_reason == "eos") for each in found.values()]
    read = sum(rows for rows, tokens in steps if tokens == 1)
    # A row's last token is not read; at most half of the rows stand idle before they are left out.
    assert read <= 2 * sum(lengths)
    assert len([1 for _, tokens in steps if tokens == 1]) == max(lengths) - 1


def test_a_free_row_is_given_to_the_next_clip(adapted, split, steps):
    requests = list(requests_of(split))
    budget = 4 * 3 * max(min(each.row_tokens, len(each.prompt) + 12) for each in requests)
    run(adapted, split, **SAMPLED, batch_tokens=budget)
    assert max(rows for rows, tokens in steps if tokens == 1) <= 4 * 3 + 3
    assert sum(rows for rows, tokens in steps if tokens > 1) == len(requests)


def test_greedy_with_a_short_sliding_window(stock, clock, split, monkeypatch):
    """Beyond the window nothing is seen, as in the stock class."""
    ours = load_tiny()
    for each in (ours.model, stock[False]):
        monkeypatch.setattr(each.config.text_config, "sliding_window", 45)
    requests = list(requests_of(split))[:4]
    found = run(ours, split, requests)
    for request in requests:
        length = min(len(request.prompt) + 24, request.row_tokens)
        mel = torch.from_numpy(split.mel_of(request.index, length))[None]
        ids = request.prompt
        with torch.inference_mode():
            while len(ids) < length and (len(ids) == len(request.prompt) or ids[-1] != clock.eos_id):
                logits = stock[False](
                    input_ids=torch.tensor([ids]), input_features=mel[:, :, : 8 * len(ids)], num_delay_tokens=6, use_cache=False
                ).logits
                ids = [*ids, int(logits[0, -1].argmax())]
        assert found[request.utterance_id, 0].token_ids == [each for each in ids[len(request.prompt) :] if each != clock.eos_id]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_step_writes_the_same_tokens(adapted, packed):
    """The step knows no layout. Two rows that end together: one shape to compile, which takes 25 s where nothing is cached."""
    split = PackedSplit(packed["packed"], "train")
    settings = {**SAMPLED, "candidates": 2, "requests": list(requests_of(split))[:1]}
    expected = run(adapted, split, **settings)
    assert [len(each.token_ids) for each in expected.values()] == [12, 12]
    found = run(adapted, split, **settings, compiled=True)
    assert {key: each.token_ids for key, each in found.items()} == {key: each.token_ids for key, each in expected.items()}


@pytest.mark.parametrize("place", ["table", "prompt", "step"])
def test_out_of_memory_halves_the_batch_and_loses_nothing(adapted, split, expected, monkeypatch, capsys, place):
    requests = list(requests_of(split))
    real_empty, real_forward, limit = decoder.RowTable.empty, RealtimeNetwork.hidden, 1500
    held, steps = [], []

    def empty(config, rows, width, *arguments):
        held.append(rows * width)
        if place == "table" and held[-1] > limit:
            raise torch.OutOfMemoryError
        return real_empty(config, rows, width, *arguments)

    def forward(self, ids, *arguments, **named):
        steps.append(1)
        full = held[-1] > limit and (place == "prompt" if ids.shape[1] > 1 else place == "step" and len(steps) > 5)
        if full:
            raise torch.OutOfMemoryError
        return real_forward(self, ids, *arguments, **named)

    monkeypatch.setattr(decoder.RowTable, "empty", empty)
    monkeypatch.setattr(RealtimeNetwork, "hidden", forward)
    audio = LiveAudio(adapted, split)
    handed_over = [each for batch in decode(adapted, audio, requests, Decoding(**SAMPLED, batch_tokens=6000)) for each in batch]
    assert len(handed_over) == 3 * len(requests), "every candidate once"
    assert {(each.utterance_id, each.candidate_id): each.token_ids for each in handed_over} == {
        key: each.token_ids for key, each in expected.items()
    }
    said = capsys.readouterr().err
    assert "out of memory with" in said
    assert "going on with" in said


def test_out_of_memory_for_one_clip_is_an_error(adapted, split, monkeypatch):
    monkeypatch.setattr(decoder.RowTable, "empty", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(EvoxtralError, match="no smaller batch is possible — use a device with more memory"):
        run(adapted, split, **SAMPLED, batch_tokens=6000)


def test_a_row_ends_at_its_own_clock(adapted, split):
    [first, second, *_] = requests_of(split)
    short = replace(first, row_tokens=len(first.prompt) + 3)
    found = run(adapted, split, [short, second], max_new_tokens=20)
    whole = run(adapted, split, [first, second], max_new_tokens=20)
    assert found[first.utterance_id, 0].token_ids == whole[first.utterance_id, 0].token_ids[:3]
    assert found[second.utterance_id, 0].token_ids == whole[second.utterance_id, 0].token_ids


def test_requests_may_come_at_any_time_and_tokens_are_handed_over_as_they_are_written(adapted, split, expected):
    """A clip that comes late, when others are under way and longer than they are, is written as if it had been first."""
    by_length = sorted(requests_of(split), key=lambda request: len(request.prompt))
    audio, settings = LiveAudio(adapted, split), Decoding(**SAMPLED, batch_tokens=2000)
    decoder, completions, heard, steps = Decoder(adapted, audio, settings, 2000), [], {}, 0
    while by_length or decoder.is_busy:
        if steps % 3 == 0:
            decoder.add(by_length[:2])
            by_length = by_length[2:]
        completions += decoder.step()
        for token in decoder.newest():
            heard.setdefault((token.utterance_id, token.candidate_id), []).append(token)
        steps += 1
    assert len(completions) == len(expected)
    for completion in completions:
        key = completion.utterance_id, completion.candidate_id
        assert completion.token_ids == expected[key].token_ids
        tokens = heard[key]
        assert [token.token_id for token in tokens][: len(completion.token_ids)] == completion.token_ids
        assert len(tokens) == len(completion.token_ids) + (completion.finish_reason == "eos")
        assert [token.position for token in tokens] == list(range(tokens[0].position, tokens[0].position + len(tokens)))
        assert [token.logprob for token in tokens][: len(completion.token_ids)] == completion.token_logprobs


def test_mean_logprob_is_the_models_own(network, model, clock, split):
    request = next(requests_of(split))
    found = run(network, split, [request], max_new_tokens=6)[request.utterance_id, 0]
    written = found.token_ids + ([clock.eos_id] if found.finish_reason == "eos" else [])
    ids = torch.tensor([request.prompt + written])
    mel = torch.from_numpy(split.mel_of(request.index, ids.shape[1]))[None]
    with torch.inference_mode():
        logits = model(input_ids=ids, input_features=mel, num_delay_tokens=clock.delay_tokens).logits[0].log_softmax(-1)
    start = len(request.prompt) - 1
    expected = np.mean([logits[start + i, token].item() for i, token in enumerate(written)])
    assert found.mean_logprob == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(0.7, 0.9, 0), (1.0, 1.0, 0), (1.3, 0.8, 7), (0.5, 1.0, 3), (2.0, 0.99, 0)]
)
def test_filters_equal_hugging_faces(temperature, top_p, top_k):
    """Over many draws exactly the tokens that Hugging Face's warpers leave are drawn, as often as they should be."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, draws = 600, 60_000
    logits = torch.randn(1, vocabulary, generator=generator) * 3
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    warped = TopPLogitsWarper(top_p)(None, warped) if top_p < 1 else warped
    probabilities = warped.softmax(-1)[0]
    keys = torch.tensor([row_key(0, "a", i) for i in range(draws)])
    positions = torch.full((draws,), 50)
    drawn = choose(logits.expand(draws, -1), Sampling(temperature, top_p, top_k), keys, positions)
    shares = torch.bincount(drawn, minlength=vocabulary) / draws
    assert (shares[probabilities == 0] == 0).all()
    likely = probabilities > 0.002
    spread = (probabilities[likely] * (1 - probabilities[likely]) / draws).sqrt()
    assert ((shares[likely] - probabilities[likely]).abs() < 5 * spread).all()


def test_noise_is_standard_gumbel_and_differs_by_row_position_and_token():
    keys = torch.tensor([row_key(1, "clip", i) for i in range(300)])
    at = torch.full((300,), 40)
    noise = gumbel_noise(keys, at, torch.arange(300).expand(300, -1))
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.04)
    assert len(set(noise[:, 5].tolist())) == 300
    assert (gumbel_noise(keys, at + 1, torch.arange(300).expand(300, -1)) != noise).all()
    assert abs(np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]) < 0.02


def test_temperature_zero_is_greedy():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert choose(logits, Sampling(), torch.tensor([1]), torch.tensor([0])).tolist() == [1]
