"""One decoder: greedy as stock `generate`; what a row writes depends on the row alone."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from evoxtral_train.decoding import decoder
from evoxtral_train.decoding.decoder import Decoder, Decoding, decode, requests_of
from evoxtral_train.decoding.known_tags import KnownTags
from evoxtral_train.decoding.sampling import Sampling
from evoxtral_train.errors import EvoxtralError
from evoxtral_train.modeling.audio_cache import LiveAudio
from evoxtral_train.text.tags import find_tags


def run(network, split, requests=None, **named):
    named = {"candidates": 1, "sampling": Sampling(), "max_new_tokens": 24, "batch_tokens": 800, **named}
    requests = requests if requests is not None else list(requests_of(split))
    audio = named.pop("audio", None) or LiveAudio(network, split)
    completions = [each for batch in decode(network, audio, requests, Decoding(**named)) for each in batch]
    return {(each.utterance_id, each.candidate_id): each for each in completions}


@pytest.mark.parametrize("with_adapter", [False, True])
def test_greedy_equals_stock_generate_token_for_token(network, adapted, stock, subject, split, with_adapter):
    found, eos_id = run(adapted if with_adapter else network, split), split.layout.eos_id
    written = 0
    for request in requests_of(split):
        length = min(len(request.prompt) + 24, request.end)
        inputs = subject.inputs(split, request.index, length)
        ids = torch.tensor([request.prompt])
        whole = stock[with_adapter].generate(input_ids=ids, **inputs, do_sample=False, max_length=length)
        whole = whole[0, len(request.prompt) :].tolist()
        expected = whole[: whole.index(eos_id)] if eos_id in whole else whole
        assert found[request.utterance_id, 0].token_ids == expected
        assert found[request.utterance_id, 0].finish_reason == ("eos" if eos_id in whole else "length")
        written += len(expected)
    if with_adapter or not split.layout.hears_whole_clip:  # a base that has heard the clip may have nothing left to write
        assert written > 50, "a system must write something for this to mean anything"


def test_both_halves_are_the_stock_forward(network, adapted, stock, subject, split):
    for with_adapter, system in ((False, network), (True, adapted)):
        prompt = split.layout.prompt_ids(split.clip(0))
        more = torch.randint(40, 2000, (1, 40), generator=torch.Generator().manual_seed(1))
        ids = torch.cat([torch.tensor([prompt]), more], dim=1)
        inputs = subject.inputs(split, 0, ids.shape[1])
        with torch.inference_mode():
            logits = stock[with_adapter](input_ids=ids, **inputs).logits
            hidden = system.hidden(ids, system.audio_embeddings(inputs["input_features"], ids.shape[1]))
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
    shares = run(adapted, split, requests[::2], **SAMPLED) | run(adapted, split, requests[1::2], **SAMPLED)  # two processes
    assert {key: each.token_ids for key, each in shares.items()} == {key: each.token_ids for key, each in expected.items()}
    fewer = run(adapted, split, **{**SAMPLED, "candidates": 2})
    assert all(fewer[key].token_ids == expected[key].token_ids for key in fewer)
    other_seed = run(adapted, split, **{**SAMPLED, "sampling": Sampling(0.9, 0.95, 0, seed=5)})
    assert any(other_seed[key].token_ids != expected[key].token_ids for key in expected)


@pytest.fixture
def steps(network, monkeypatch):
    """What the language model read: (rows, tokens of each row) of every forward pass."""
    seen, real = [], type(network).hidden

    def spy(self, ids, *arguments, **named):
        seen.append(tuple(ids.shape))
        return real(self, ids, *arguments, **named)

    monkeypatch.setattr(type(network), "hidden", spy)
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
    budget = 4 * 3 * max(min(each.end, len(each.prompt) + 12) for each in requests)
    run(adapted, split, **SAMPLED, batch_tokens=budget)
    assert max(rows for rows, tokens in steps if tokens == 1) <= 4 * 3 + 3
    assert sum(rows for rows, tokens in steps if tokens > 1) == len(requests)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_step_writes_the_same_tokens(adapted, split):
    """Two rows that end together: one shape to compile, which takes 25 s where nothing is cached."""
    if split.layout.hears_whole_clip:
        pytest.skip("the step knows no layout: one is enough")
    settings = {**SAMPLED, "candidates": 2, "requests": list(requests_of(split))[:1]}
    expected = run(adapted, split, **settings)
    assert [len(each.token_ids) for each in expected.values()] == [12, 12]
    found = run(adapted, split, **settings, compiled=True)
    assert {key: each.token_ids for key, each in found.items()} == {key: each.token_ids for key, each in expected.items()}


@pytest.mark.parametrize("place", ["table", "prompt", "step"])
def test_out_of_memory_halves_the_batch_and_loses_nothing(adapted, split, expected, monkeypatch, capsys, place):
    requests = list(requests_of(split))
    real_empty, real_forward, limit = decoder.RowTable.empty, type(adapted).hidden, 1500
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
    monkeypatch.setattr(type(adapted), "hidden", forward)
    audio = LiveAudio(adapted, split)
    handed_over = [each for batch in decode(adapted, audio, requests, Decoding(**SAMPLED, batch_tokens=6000)) for each in batch]
    assert len(handed_over) == 3 * len(requests), "every candidate once"
    assert {(each.utterance_id, each.candidate_id): each.token_ids for each in handed_over} == {
        key: each.token_ids for key, each in expected.items()
    }
    said = capsys.readouterr().err
    assert "out of memory with" in said
    assert "continuing with" in said


def test_out_of_memory_for_one_clip_is_an_error(adapted, split, monkeypatch):
    monkeypatch.setattr(decoder.RowTable, "empty", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    with pytest.raises(EvoxtralError, match="no smaller batch is possible — use a device with more memory"):
        run(adapted, split, **SAMPLED, batch_tokens=6000)


def test_a_row_ends_at_its_own_clock(adapted, split):
    [first, second, *_] = requests_of(split)
    short = replace(first, end=len(first.prompt) + 3)
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


def test_mean_logprob_is_the_models_own(network, stock, subject, split):
    request = next(requests_of(split))
    found = run(network, split, [request], max_new_tokens=6)[request.utterance_id, 0]
    written = found.token_ids + ([split.layout.eos_id] if found.finish_reason == "eos" else [])
    ids = torch.tensor([request.prompt + written])
    with torch.inference_mode():
        logits = stock[False](input_ids=ids, **subject.inputs(split, request.index, ids.shape[1])).logits[0].log_softmax(-1)
    start = len(request.prompt) - 1
    expected = np.mean([logits[start + i, token].item() for i, token in enumerate(written)])
    assert found.mean_logprob == pytest.approx(expected, abs=1e-4)


def test_only_known_tags_are_written_and_rows_that_are_not_bound_do_not_change(adapted, family, split):
    """A hot sample of what the automaton refuses; with it, every tag is known, and an unbound row draws the same tokens."""
    hot = {"sampling": Sampling(2.0, 1.0, 0, seed=5), "max_new_tokens": 40, "batch_tokens": 4000, "candidates": 4}
    brackets = [token for token in range(1000, family.tokenizer.n_words) if b"[" in family.tokenizer.id_to_byte_piece(token)]
    head = adapted.stock.lm_head.weight
    before = head.data.clone()
    try:
        head.data[brackets] *= 3.0
        requests = list(requests_of(split))
        free = run(adapted, split, requests, **hot)
        known = KnownTags(family.tokenizer, ["sighs", "clears throat"])
        bound = run(adapted, split, requests, **hot, known_tags=known)
        unbound = run(adapted, split, [replace(request, bound=False) for request in requests], **hot, known_tags=known)
    finally:
        head.data.copy_(before)

    def tags_of(completions):
        return [tag for each in completions.values() for tag in find_tags(family.tokenizer.decode(each.token_ids))]

    assert {key: each.token_ids for key, each in unbound.items()} == {key: each.token_ids for key, each in free.items()}
    assert set(tags_of(bound)) <= {"sighs", "clears throat"}
    assert any(bound[key].token_ids != free[key].token_ids for key in free), "something must have been refused"
