"""Sampling whose noise belongs to the row, not to the batch.

A token is drawn by Gumbel-max: argmax of log-probability plus Gumbel noise is distributed like a draw
from the distribution. The noise is a hash of (seed, utterance, candidate, position, token id), so a
row's tokens are the same in any batch, order or number of processes. Temperature, top-k and
top-p cut the distribution as Hugging Face's processors do, in that order.
"""

import hashlib
from dataclasses import dataclass

import torch

_SHORTLIST = 256  # most likely tokens; they nearly always contain the whole nucleus
_WHOLE_ROWS = 64  # rows at a time if they do not: the whole vocabulary is sorted


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch those filters off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


def row_key(seed: int, utterance_id: str, candidate_id: int) -> int:
    """A signed 64-bit key of one candidate."""
    digest = hashlib.sha256(f"{seed}\0{utterance_id}\0{candidate_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def choose(logits: torch.Tensor, sampling: Sampling, row_keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """logits [R, V] float32, row_keys [R] int64, positions [R] int64 -> the tokens there, [R] int64."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    log_probs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    vocabulary = log_probs.shape[-1]
    tokens, unsure = _choose_among(log_probs, min(_SHORTLIST, vocabulary), sampling, row_keys, positions)
    rows = unsure.nonzero()[:, 0]
    for part in rows.split(_WHOLE_ROWS) if len(rows) else ():
        tokens[part] = _choose_among(log_probs[part], vocabulary, sampling, row_keys[part], positions[part])[0]
    return tokens


def _choose_among(
    log_probs: torch.Tensor, size: int, sampling: Sampling, row_keys: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from the `size` most likely tokens: (tokens, the rows for which a token outside of them could be drawn)."""
    values, ids = torch.topk(log_probs, size, dim=-1)
    keep = torch.ones_like(values, dtype=torch.bool)
    short = size < log_probs.shape[-1]
    unsure = torch.full(values.shape[:1], short, device=values.device)
    if sampling.top_k:
        keep[:, sampling.top_k :] = False
        unsure &= sampling.top_k > size
        # Hugging Face renormalises after top-k, before top-p
        values = values - torch.logsumexp(values.masked_fill(~keep, -torch.inf), dim=-1, keepdim=True)
    if sampling.top_p < 1:
        mass = values.exp().masked_fill(~keep, 0.0).cumsum(dim=-1)
        unsure &= mass[:, -1] < sampling.top_p
        before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
        keep &= before < sampling.top_p
    noisy = values.double() + gumbel_noise(row_keys, positions, ids)
    best = noisy.masked_fill(~keep, -torch.inf).argmax(dim=-1, keepdim=True)
    return ids.gather(-1, best)[:, 0], unsure


def gumbel_noise(row_keys: torch.Tensor, positions: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """row_keys [R], positions [R], token_ids [R, K] -> standard Gumbel noise [R, K], float64."""
    stream = _mix(row_keys + positions * _GOLDEN)
    mixed = _mix(stream[:, None] + token_ids * _GOLDEN)
    uniform = ((_shift(mixed, 11)).double() + 0.5) / 2**53
    return -torch.log(-torch.log(uniform))


# splitmix64 (Steele, Lea and Flood, 2014), in int64 arithmetic that wraps around.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FACTOR_1 = 0xBF58476D1CE4E5B9 - 2**64
_FACTOR_2 = 0x94D049BB133111EB - 2**64


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = value + _GOLDEN
    value = (value ^ _shift(value, 30)) * _FACTOR_1
    value = (value ^ _shift(value, 27)) * _FACTOR_2
    return value ^ _shift(value, 31)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
