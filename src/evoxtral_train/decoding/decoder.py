"""The one way to turn audio into tokens: RAFT, evaluation and everything later use it.

A clip's prompt is read once, in one parallel prefill, and shared by its candidates. The rows then
step together in a table (`rows.py`), each at its own position; a row leaves when it writes EOS, when
it has `max_new_tokens`, or at the end of its own clip, and its place goes to the next clip. How many
rows there are is a matter of memory: a budget of tokens, rows × width.

Requests come as a stream: `WINDOW` of them are held at a time, sorted by length and decoded to their end, so memory does not grow
with their number. While the last rows of a window end the table is partly idle: little, since a table has hundreds of rows and a
window thousands.

No row sees another's padding, length or order: what it writes depends on its clip, its candidate
number and the seed alone, but for rounding, which in bfloat16 may change a token now and then.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import torch
from transformers import DynamicCache

from ..dataset.reader import PackedSplit
from ..errors import EvoxtralError
from ..families.base import Clip, Layout
from ..families.network import Network
from ..modeling.audio_cache import AudioSource
from ..modeling.batching import leading_batch
from ..modeling.memory import shrink
from .rows import RowTable
from .sampling import Sampling, choose, row_key

WINDOW = 8192  # requests
_PREFILL_TOKENS = 8192  # read in one forward pass: enough to keep any device busy


@dataclass(frozen=True)
class Request:
    """One clip to decode: its prompt, the length of its row, and which clip of the audio source it is.
    `max_new_tokens` are counted from `room_start`."""

    utterance_id: str
    prompt: list[int]
    row_tokens: int
    index: int
    room_start: int

    @classmethod
    def of(cls, utterance_id: str, layout: Layout, clip: Clip, index: int) -> "Request":
        """Laid out as the clip's training row is."""
        return cls(utterance_id, layout.prompt_ids(clip), clip.row_tokens, index, layout.room_start(clip))


@dataclass(frozen=True)
class Completion:
    """`token_ids` without EOS, and the log-probability of each under the model's own distribution (temperature 1).
    `finish_reason`: "eos" or "length". `mean_logprob`: over the written tokens, EOS included."""

    utterance_id: str
    candidate_id: int
    token_ids: list[int]
    finish_reason: str
    mean_logprob: float
    token_logprobs: list[float]


@dataclass(frozen=True)
class Decoding:
    """`batch_tokens`: rows × width that are held at once; the candidates of one clip always are.
    `compiled`: the step goes through `torch.compile`. Neither changes a token in float32; in bfloat16 a product of
    another shape may round otherwise."""

    candidates: int
    sampling: Sampling
    max_new_tokens: int
    batch_tokens: int
    compiled: bool = False


def requests_of(split: PackedSplit, layout: Layout | None = None) -> Iterator[Request]:
    """Every clip of a packed split, in its own layout or in another."""
    for identity, index in split.index_of.items():
        yield Request.of(identity, layout or split.layout, split.clip(index), index)


def decode(network: Network, audio: AudioSource, requests: Iterable[Request], wanted: Decoding) -> Iterator[list[Completion]]:
    """All candidates of every clip, handed over as whole clips end, the longest clips of each window first.

    When CUDA runs out of memory the budget is halved, and the clips that were not handed over start
    again, to the same tokens. Raises EvoxtralError when not even one clip fits, or when the model's output is not finite.
    """
    stream, remaining, budget = iter(requests), {}, wanted.batch_tokens
    while remaining := remaining or {request.utterance_id: request for request in islice(stream, WINDOW)}:
        decoder = _Decoder(network, audio, list(remaining.values()), wanted)
        try:
            for completions in decoder.run(budget):
                for each in completions:
                    remaining.pop(each.utterance_id, None)
                yield completions
            continue
        except torch.OutOfMemoryError:
            held, smallest = decoder.table_tokens, decoder.smallest_tokens
        del decoder  # after `except`: its traceback would have kept the table alive
        budget = shrink(held, held // 2 if held > smallest else None, "tokens")


class _Decoder:
    """One pass over `requests` under one budget."""

    def __init__(self, network: Network, audio: AudioSource, requests: list[Request], wanted: Decoding):
        self._network, self._audio, self._wanted, self._device = network, audio, wanted, network.device
        self._step = _compiled(_step) if wanted.compiled else _step
        # Longest first: the rows that follow fit into the table that is there.
        self._waiting = deque(sorted(requests, key=lambda request: (-self._reach(request), len(request.prompt))))
        self._seated: dict[int, tuple[Request, int]] = {}  # row -> clip, candidate
        self._table: RowTable | None = None
        self._written: dict[str, list[Completion]] = {}
        self._whole: list[Completion] = []
        self.smallest_tokens = wanted.candidates * self._reach(self._waiting[0])
        self.table_tokens = self.smallest_tokens  # the most that was held

    def _reach(self, request: Request) -> int:
        return min(request.row_tokens, request.room_start + self._wanted.max_new_tokens)

    @torch.inference_mode()
    def run(self, budget_tokens: int) -> Iterator[list[Completion]]:
        while self._waiting or self._seated:
            if self._is_time_to_reseat():
                if self._whole:
                    yield self._whole
                    self._whole = []
                self._reseat(budget_tokens)
            self._write()
            if self._seated:
                self._read()
        if self._whole:
            yield self._whole

    def _is_time_to_reseat(self) -> bool:
        """When a quarter of the table is free and clips wait; at the end, when half of it is free."""
        if self._table is None:
            return True
        free = self._table.rows - len(self._seated)
        if self._waiting:
            return free >= max(self._wanted.candidates, self._table.rows // 4)
        return free >= max(1, self._table.rows // 2)

    def _reseat(self, budget_tokens: int) -> None:
        """Lay out the table anew where that pays (at first, when the clips to come are much shorter, and at
        the end), then fill its free rows."""
        candidates, seated = self._wanted.candidates, [request for request, _ in self._seated.values()]
        width = max(self._reach(request) for request in [*seated, *islice(self._waiting, 1)])
        rows = len(seated)
        if self._waiting:
            wanted = rows + candidates * len(self._waiting)
            rows = max(candidates, rows, min(wanted, budget_tokens // width))
        if self._table is None or not self._waiting or 4 * rows > 5 * self._table.rows:
            self._resize(rows, width)
        while self._waiting and (room := (self._table.rows - len(self._seated)) // candidates):
            lengths = [self._reach(request) for request in islice(self._waiting, room)]
            count = leading_batch(lengths, min(_PREFILL_TOKENS, budget_tokens))
            self._seat([self._waiting.popleft() for _ in range(count)])

    def _resize(self, rows: int, width: int) -> None:
        self.table_tokens = max(self.table_tokens, rows * width)
        if self._table is None:
            network = self._network
            self._table = RowTable.empty(network.text_config, rows, width, network.dtype, self._device)
        else:
            self._table = self._table.moved(rows, width, list(self._seated))
            self._seated = dict(enumerate(self._seated.values()))

    def _seat(self, batch: list[Request]) -> None:
        """Read the prompts in one pass, padded on the right, and give each clip its rows."""
        reaches, lengths = [self._reach(request) for request in batch], [len(request.prompt) for request in batch]
        assert all(length < reach for length, reach in zip(lengths, reaches, strict=True)), "a row has room for a token"
        longest = max(lengths)
        ids = [request.prompt + [self._network.pad_id] * (longest - len(request.prompt)) for request in batch]
        audio = self._audio.embeddings([request.index for request in batch], reaches)
        filled = DynamicCache()
        hidden = self._network.hidden(torch.tensor(ids, device=self._device), audio[:, :longest], filled)
        last = torch.stack([row[length - 1] for row, length in zip(hidden, lengths, strict=True)])
        free = (row for row in range(self._table.rows) if row not in self._seated)
        placed = {next(free): (request, number) for request in batch for number in range(self._wanted.candidates)}
        keys = [row_key(self._wanted.sampling.seed, request.utterance_id, number) for request, number in placed.values()]
        self._table.seat(list(placed), filled, last, audio, lengths, reaches, keys)
        self._seated |= placed

    def _write(self) -> None:
        """Every row chooses its next token; those that end leave."""
        table = self._table
        logits = self._network.logits(table.hidden).float()
        tokens = choose(logits, self._wanted.sampling, table.noise_key, table.position + 1)
        log_probs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        ended = table.write(tokens, log_probs.double(), self._network.eos_id)
        if ended:
            columns = (table.written, table.token_log_probs, table.position, table.log_prob)
            columns = (each[ended].tolist() for each in columns)
            for row, written, log_probs, position, log_prob in zip(ended, *columns, strict=True):
                seated = self._seated.pop(row)
                here = slice(len(seated[0].prompt), position + 1)
                self._collect(*seated, written[here], log_probs[here], log_prob)

    def _collect(self, request: Request, candidate: int, tokens: list[int], log_probs: list[float], log_prob: float) -> None:
        if not math.isfinite(log_prob):
            raise EvoxtralError(
                f"what the model computes for clip {request.utterance_id!r} is not finite (NaN or infinite)",
                fix="check its audio, and the weights of the adapter and the base",
            )
        ended = tokens[-1] == self._network.eos_id
        ids, reason = (tokens[:-1], "eos") if ended else (tokens, "length")
        mean = log_prob / len(tokens)
        completion = Completion(request.utterance_id, candidate, ids, reason, mean, log_probs[: len(ids)])
        clip = self._written.setdefault(request.utterance_id, [])
        clip.append(completion)
        if len(clip) == self._wanted.candidates:
            self._whole += sorted(self._written.pop(request.utterance_id), key=lambda each: each.candidate_id)

    def _read(self) -> None:
        """One step of the language model over all rows."""
        table = self._table
        ids, audio, visible = table.next_inputs(self._network.text_config.sliding_window)
        table.hidden = self._step(
            self._network, ids, audio, table.cache, position_ids=table.position[:, None], attention_mask=visible
        )


def _step(network: Network, *inputs, **named) -> torch.Tensor:
    return network.hidden(*inputs, **named)[:, -1]


@cache
def _compiled(step):
    return torch.compile(step, fullgraph=True)
