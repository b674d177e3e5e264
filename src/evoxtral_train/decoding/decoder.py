"""The one way to turn audio into tokens: RAFT, evaluation and transcription all use it.

A clip's prompt is read once, in one parallel prefill, and shared by its candidates. The rows then step together in a table
(`row_table.py`), each at its own position. A row ends when it writes EOS, when it has `max_new_tokens`, or at the end of its own
clip; the next clip takes its place. A token budget limits the table: rows × width.

`Decoder` takes requests at any time and hands tokens over as they are written. `decode` is the batch job: it reads a stream of
requests, a window of them at a time and the longest first, so memory does not grow with their number.

Rows of the base and of several adapters can share a table: each request names its adapter (`RowAdapters`).

The tokens of a row depend only on its clip, its adapter, its candidate number and the seed, not on the padding, length or order
of other rows. Only rounding differs; in bfloat16 it occasionally changes a token.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import torch
from transformers import DynamicCache

from ..config.evaluation import Decode
from ..dataset.reader import PackedSplit
from ..errors import EvoxtralError
from ..families.base import ClipSize, Layout, Network
from ..modeling.audio_cache import AudioSource, leading_batch
from ..modeling.out_of_memory import shrink
from ..modeling.row_adapters import RowAdapters
from .known_tags import KnownTags
from .row_table import RowTable
from .sampling import Sampling, choose, row_key

WINDOW = 8192  # requests that are read and not handed over
HAND_OVER = 32  # callers write completions to disk
_PREFILL_TOKENS = 8192  # read in one forward pass: enough to keep any device busy


@dataclass(frozen=True)
class Request:
    """One clip to decode: its prompt, one past the last position of its row, and its `index` in the audio source.
    `max_new_tokens` are counted from `room_start`. `audio_tokens`: the positions that may have audio, `mel_frames`: what that is
    made from. `adapter`: its number in the decoder's `RowAdapters`; 0 without. `bound`:
    whether `Decoding.known_tags` applies."""

    utterance_id: str
    prompt: list[int]
    end: int
    index: int
    room_start: int
    audio_tokens: int
    mel_frames: int
    adapter: int = 0
    bound: bool = True

    @classmethod
    def of(
        cls, utterance_id: str, layout: Layout, clip: ClipSize, index: int, adapter: int = 0, bound: bool = True
    ) -> "Request":
        """Laid out like the clip's training row."""
        end = layout.end(clip)
        return cls(
            utterance_id, layout.prompt_ids(clip), end, index, layout.room_start(clip), layout.audio_tokens(clip, end),
            layout.mel_frames(clip, end), adapter, bound,
        )  # fmt: skip

    @property
    def key(self) -> tuple[str, int]:
        return self.utterance_id, self.adapter


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
    adapter: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """As the request's."""
        return self.utterance_id, self.adapter

    def is_cut(self, layout: Layout) -> bool:
        """Whether it had more to write when it reached its last token: a row that only waits is not cut."""
        return self.finish_reason == "length" and bool(self.token_ids) and self.token_ids[-1] != layout.filler_id


@dataclass(frozen=True)
class Decoding:
    """`batch_tokens`: limit on rows × width; one clip's candidates may exceed it.
    `compiled`: the step goes through `torch.compile`. Neither changes a token in float32; in bfloat16 a product of
    another shape may round differently. `known_tags`: on the network's device; None: any tag may be written."""

    candidates: int
    sampling: Sampling
    max_new_tokens: int
    batch_tokens: int
    compiled: bool = False
    known_tags: KnownTags | None = None

    @classmethod
    def greedy(cls, config: Decode, known_tags: KnownTags | None = None, default_new_tokens: int | None = None) -> "Decoding":
        """One candidate, the most probable tokens. `default_new_tokens`: the family's, for a config without `max_new_tokens`."""
        new_tokens = config.max_new_tokens or default_new_tokens
        return cls(1, Sampling(), new_tokens, config.batch_tokens, config.compile, known_tags)

    def reach(self, request: "Request") -> int:
        """One past the last possible position of a row of this clip."""
        return min(request.end, request.room_start + self.max_new_tokens)


def requests_of(split: PackedSplit, layout: Layout | None = None) -> Iterator[Request]:
    """Every clip of a packed split, in its own layout or in another."""
    for identity, index in split.index_of.items():
        yield Request.of(identity, layout or split.layout, split.clip(index), index)


def decode(
    network: Network, audio: AudioSource, requests: Iterable[Request], settings: Decoding, adapters: RowAdapters | None = None,
    window: int = WINDOW, hand_over: int = HAND_OVER,
) -> Iterator[list[Completion]]:  # fmt: skip
    """All candidates of every request, handed over as clips finish, at least `hand_over` completions together. At most `window`
    requests wait or are decoded; of those that are read together, the longest come first, so that later rows fit into the
    existing table.

    When CUDA runs out of memory, the budget is halved and the clips that were not handed over start
    again, with the same tokens. Raises EvoxtralError when not even one clip fits, or when the model's output is not finite.
    """
    stream, remaining, budget = iter(requests), {}, settings.batch_tokens
    while True:
        decoder, ended = Decoder(network, audio, settings, budget, adapters), []
        decoder.add(_longest_first(remaining.values(), settings))
        while True:
            if 4 * len(remaining) <= 3 * window:
                read = {request.key: request for request in islice(stream, window - len(remaining))}
                decoder.add(_longest_first(read.values(), settings))
                remaining |= read
            if not decoder.is_busy:
                return
            try:
                ended += decoder.step()
            except torch.OutOfMemoryError:
                break
            if len(ended) >= hand_over or not decoder.is_busy:
                for completion in ended:
                    remaining.pop(completion.key, None)
                yield ended
                ended = []
        held, smallest = decoder.table_tokens, decoder.smallest_tokens
        del decoder  # outside of `except`, whose traceback would have kept the table alive
        budget = shrink(held, held // 2 if held > smallest else None, "tokens")


def _longest_first(requests: Iterable[Request], settings: Decoding) -> list[Request]:
    return sorted(requests, key=lambda request: (-settings.reach(request), len(request.prompt)))


@dataclass(frozen=True)
class Token:
    """One token, as it is written. `position`: its place in the row, the prompt included."""

    utterance_id: str
    candidate_id: int
    position: int
    token_id: int
    logprob: float
    adapter: int = 0


class Decoder:
    """A table of rows that step together. Requests may be added at any time; a row takes its place when there is room.

    >>> decoder.add(requests)                                                      # doctest: +SKIP
    >>> while decoder.is_busy:                                                     # doctest: +SKIP
    ...     completions = decoder.step()    # of the clips whose candidates have all finished
    ...     tokens = decoder.newest()       # what each row wrote in this step
    """

    def __init__(
        self, network: Network, audio: AudioSource, settings: Decoding, budget_tokens: int, adapters: RowAdapters | None = None,
        step_tokens: int | None = None,
    ):  # fmt: skip
        """`step_tokens`: most tokens of new rows, with their audio, that one step reads; None: as many as have room."""
        self._network, self._audio, self._settings, self._budget_tokens = network, audio, settings, budget_tokens
        self._adapters, self._step_tokens = adapters, step_tokens
        self._is_seating = False  # more clips have room than the last step was allowed to read
        self._device = network.device
        self._forward = compiled(step) if settings.compiled else step
        self._waiting: deque[Request] = deque()
        self._seated: dict[int, tuple[Request, int]] = {}  # row -> clip, candidate
        self._table: RowTable | None = None
        self._written: dict[tuple[str, int], list[Completion]] = {}
        self._newest: list[tuple[Request, int, int]] = []  # clip, candidate, row
        self.smallest_tokens = self.table_tokens = 0  # smallest possible table, largest so far

    def add(self, requests: Iterable[Request]) -> None:
        """They are decoded in this order."""
        for request in requests:
            self._waiting.append(request)
            self.smallest_tokens = max(self.smallest_tokens, self._settings.candidates * self._settings.reach(request))
        self.table_tokens = max(self.table_tokens, self.smallest_tokens)

    def add_first(self, requests: Sequence[Request]) -> None:
        """They are decoded before those that wait."""
        waiting, self._waiting = self._waiting, deque()
        self.add(requests)
        self._waiting += waiting

    @torch.inference_mode()
    def drop(self, utterance_id: str) -> None:
        """Nobody needs this clip any more: free its rows."""
        self._waiting = deque(request for request in self._waiting if request.utterance_id != utterance_id)
        rows = [row for row, (request, _) in self._seated.items() if request.utterance_id == utterance_id]
        for row in rows:
            self._written.pop(self._seated.pop(row)[0].key, None)
            self._table.live[row] = False

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._seated)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Every row writes one token. Returns the candidates of the clips that finished with it, by candidate id."""
        if self._is_seating or self._is_time_to_reseat():
            self._reseat()
        completions = self._write()
        if self._seated:
            self._read()
        return completions

    def newest(self) -> list[Token]:
        """The tokens of the last step, one per row, EOS included."""
        table = self._table
        if not self._newest:
            return []
        rows = [row for _, _, row in self._newest]
        positions = table.position[rows]
        tokens, logprobs = (column[rows, positions].tolist() for column in (table.written, table.token_log_probs))
        parts = zip(self._newest, positions.tolist(), tokens, logprobs, strict=True)
        return [
            Token(request.utterance_id, number, position, token, logprob, request.adapter)
            for (request, number, _), position, token, logprob in parts
        ]

    def _is_time_to_reseat(self) -> bool:
        """When a quarter of the table is free and clips wait; at the end, when half of it is free."""
        if self._table is None:
            return True
        free = self._table.rows - len(self._seated)
        if self._waiting:
            return free >= max(self._settings.candidates, self._table.rows // 4)
        return free >= max(1, self._table.rows // 2)

    def _reseat(self) -> None:
        """Resize the table if it must be wider or if that saves work (at the start, before much shorter clips, at the end).
        Then fill its free rows."""
        candidates, seated = self._settings.candidates, [request for request, _ in self._seated.values()]
        width = max(self._settings.reach(request) for request in [*seated, *self._waiting])
        rows = len(seated)
        if self._waiting:
            useful = rows + candidates * len(self._waiting)
            rows = max(candidates, rows, min(useful, self._budget_tokens // width))
        if self._table is None or not self._waiting or width > self._table.width or 4 * rows > 5 * self._table.rows:
            self._resize(rows, width)
        self._is_seating = False
        while self._waiting and not self._is_seating and (room := (self._table.rows - len(self._seated)) // candidates):
            lengths = [self._settings.reach(request) for request in islice(self._waiting, room)]
            count = leading_batch(lengths, min(self._step_tokens or _PREFILL_TOKENS, self._budget_tokens))
            self._seat([self._waiting.popleft() for _ in range(count)])
            self._is_seating = self._step_tokens is not None and bool(self._waiting)

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
        reaches, lengths = [self._settings.reach(request) for request in batch], [len(request.prompt) for request in batch]
        assert all(length < reach for length, reach in zip(lengths, reaches, strict=True)), "a row has room for a token"
        longest = max(lengths)
        ids = [request.prompt + [self._network.pad_id] * (longest - len(request.prompt)) for request in batch]
        audio = self._audio.embeddings([request.index for request in batch], reaches)
        filled, adapters = DynamicCache(), torch.tensor([request.adapter for request in batch], device=self._device)
        self._use(adapters)
        hidden = self._network.hidden(torch.tensor(ids, device=self._device), audio[:, :longest], filled)
        last = torch.stack([row[length - 1] for row, length in zip(hidden, lengths, strict=True)])
        free = (row for row in range(self._table.rows) if row not in self._seated)
        placed = {next(free): (request, number) for request in batch for number in range(self._settings.candidates)}
        keys = [row_key(self._settings.sampling.seed, request.utterance_id, number) for request, number in placed.values()]
        states = [KnownTags.start if request.bound else KnownTags.free for request in batch]
        self._table.seat(list(placed), filled, last, audio, lengths, reaches, keys, adapters, states)
        self._seated |= placed

    def _write(self) -> list[Completion]:
        """Every row chooses its next token; finished rows are removed."""
        table = self._table
        logits = self._network.logits(table.hidden).float()
        tokens = self._choose(logits)
        log_probs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        self._newest = [(*seated, row) for row, seated in self._seated.items()]
        ended = table.write(tokens, log_probs.double(), self._network.eos_id)
        table.tag_state.masked_fill_(~table.live, KnownTags.free)
        whole: list[Completion] = []
        if ended:
            columns = (table.written, table.token_log_probs, table.position, table.log_prob)
            columns = (column[ended].tolist() for column in columns)
            for row, written, log_probs, position, log_prob in zip(ended, *columns, strict=True):
                request, candidate = self._seated.pop(row)
                span = slice(len(request.prompt), position + 1)
                whole += self._collect(request, candidate, written[span], log_probs[span], log_prob)
        return whole

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [R, V] -> the next token of each row, [R]"""
        table, known = self._table, self._settings.known_tags

        def draw(logits: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
            return choose(logits, self._settings.sampling, table.noise_key[rows], table.position[rows] + 1)

        if known is None:
            return draw(logits, slice(None))
        tokens = known.choose(logits, table.tag_state, draw)
        table.tag_state = known.advance(table.tag_state, tokens)
        return tokens

    def _collect(
        self, request: Request, candidate: int, tokens: list[int], log_probs: list[float], log_prob: float
    ) -> list[Completion]:
        """The clip's candidates if all have finished, else []."""
        if not math.isfinite(log_prob):
            raise EvoxtralError(
                f"the model's output for clip {request.utterance_id!r} is not finite (NaN or infinite)",
                fix="check its audio, and the weights of the adapter and the base",
            )
        ended = tokens[-1] == self._network.eos_id
        ids, reason = (tokens[:-1], "eos") if ended else (tokens, "length")
        mean = log_prob / len(tokens)
        completion = Completion(request.utterance_id, candidate, ids, reason, mean, log_probs[: len(ids)], request.adapter)
        clip = self._written.setdefault(request.key, [])
        clip.append(completion)
        if len(clip) < self._settings.candidates:
            return []
        return sorted(self._written.pop(request.key), key=lambda each: each.candidate_id)

    def _read(self) -> None:
        """One step of the language model over all rows."""
        table = self._table
        ids, audio, visible = table.next_inputs(getattr(self._network.text_config, "sliding_window", None))
        self._use(table.adapter)
        table.hidden = self._forward(
            self._network, ids, audio, table.cache, position_ids=table.position[:, None], attention_mask=visible
        )

    def _use(self, adapters: torch.Tensor) -> None:
        if self._adapters is not None:
            self._adapters.use(adapters)


def step(network: Network, *inputs, **named) -> torch.Tensor:
    return network.hidden(*inputs, **named)[:, -1]


@cache
def compiled(step):
    return torch.compile(step, fullgraph=True)
