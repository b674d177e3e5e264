"""The one way to turn audio into tokens: RAFT, evaluation and everything later use it.

A batch of clips takes its audio embeddings (computed now, or read back from the cache), is
prefilled once up to its shortest prompt, and its key-value cache is then repeated for the
candidates of each clip. From there all rows step along one clock. A row whose prompt is longer
is fed its own pads until they end: no left padding, no mask, and every row sees exactly the
tokens that it was trained with. A row ends at EOS, at `max_new_tokens` or at the end of its own
clock, whatever the longest clip of the batch does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from ..data.clock import Clock
from ..data.layouts import prompt_ids
from ..data.packing import PackedSplit
from ..modeling.audio_cache import AudioSource
from ..modeling.realtime import language_model_hidden, stock
from .sampling import Sampling, choose, row_key


@dataclass(frozen=True)
class Request:
    """One clip to decode: its prompt, the length of its row, and which clip of the audio source it is."""

    utterance_id: str
    prompt: list[int]
    row_tokens: int
    index: int


@dataclass(frozen=True)
class Completion:
    """`token_ids` without EOS. `finish_reason`: "eos" or "length". `mean_logprob`: over the written
    tokens, EOS included, under the model's own distribution (temperature 1)."""

    utterance_id: str
    candidate_id: int
    token_ids: list[int]
    finish_reason: str
    mean_logprob: float


def requests_of(split: PackedSplit, clock: Clock) -> list[Request]:
    """Every clip of a packed split, laid out as its training row is."""
    return [
        Request(example.id, prompt_ids(split.layout, clock, example.utterance_tokens), example.row_tokens, index)
        for index, example in enumerate(split.examples)
    ]


@torch.inference_mode()
def decode(
    model,
    clock: Clock,
    audio: AudioSource,
    requests: Sequence[Request],
    *,
    candidates: int,
    sampling: Sampling,
    max_new_tokens: int,
    batch_clips: int,
) -> Iterator[list[Completion]]:
    """Completions of `batch_clips` clips at a time, `candidates` of each. Clips with prompts of
    similar length are batched together; within a batch they come in the order of `requests`."""
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    for start in range(0, len(order), batch_clips):
        batch = [requests[i] for i in sorted(order[start : start + batch_clips])]
        lengths = [min(request.row_tokens, len(request.prompt) + max_new_tokens) for request in batch]
        embeddings = audio.embeddings([request.index for request in batch], lengths)
        yield _decode_batch(model, clock, batch, lengths, embeddings, candidates, sampling)


def _decode_batch(
    model, clock: Clock, batch: list[Request], lengths: list[int], audio: torch.Tensor, candidates: int, sampling: Sampling
) -> list[Completion]:
    assert audio.shape[1] == max(lengths), "audio and ids run on one clock"
    inner = stock(model)
    device = inner.device
    shared = min(len(request.prompt) for request in batch)
    cache = DynamicCache(config=inner.config.text_config)
    ids = torch.tensor([request.prompt[:shared] for request in batch], device=device)
    hidden = language_model_hidden(model, ids, audio[:, :shared], clock.delay_tokens, cache)[:, -1]
    if candidates > 1:
        cache.batch_repeat_interleave(candidates)
        hidden = hidden.repeat_interleave(candidates, dim=0)
    rows = [(request, candidate) for request in batch for candidate in range(candidates)]
    clip_of_row = torch.arange(len(batch), device=device).repeat_interleave(candidates)
    keys = torch.tensor([row_key(sampling.seed, each.utterance_id, number) for each, number in rows], device=device)
    prompt_ends = torch.tensor([len(each.prompt) for each, _ in rows], device=device)
    row_ends = torch.tensor([length for length in lengths for _ in range(candidates)], device=device)
    written, log_probs = [], []
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for position in range(shared, max(lengths)):
        logits = inner.lm_head(hidden).float()
        tokens = choose(logits, sampling, keys, position)
        in_prompt = position < prompt_ends
        tokens = torch.where(in_prompt, clock.streaming_pad_id, tokens)
        live = ~in_prompt & ~done & (position < row_ends)
        scores = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        written.append(torch.where(live, tokens, -1))
        log_probs.append(torch.where(live, scores, 0.0))
        done |= (live & (tokens == clock.eos_id)) | (position + 1 >= row_ends)
        if bool(done.all()):
            break
        step_audio = audio[clip_of_row, position : position + 1]
        hidden = language_model_hidden(model, tokens[:, None], step_audio, clock.delay_tokens, cache)[:, -1]
    return _collect(clock, rows, torch.stack(written, 1).tolist(), torch.stack(log_probs, 1).double().sum(1).tolist())


def _collect(clock: Clock, rows, written: list[list[int]], log_probs: list[float]) -> list[Completion]:
    completions = []
    for (request, candidate), tokens, log_prob in zip(rows, written, log_probs, strict=True):
        tokens = [token for token in tokens if token >= 0]
        ended = bool(tokens) and tokens[-1] == clock.eos_id
        mean = log_prob / max(len(tokens), 1)
        ids = tokens[:-1] if ended else tokens
        completions.append(Completion(request.utterance_id, candidate, ids, "eos" if ended else "length", mean))
    return completions
