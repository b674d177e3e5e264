"""Decoding while people speak: the tokens of `Decoder`, one step for each 80 ms that were heard.

An utterance has a slot of the audio path and one row of the language model for each of its row kinds (the base, an adapter). All
of them are at the utterance's own position, and every step takes one audio token of each utterance that has one. Rows begin
after the left padding, whose keys and values are the same for every utterance: they are computed once and copied.

    position      0 … 30                31 … 38                      39 …
    the row has   BOS and pads: copied  pads, while audio is heard   what it writes
    it hears      the left padding      the clip's first 560 ms      the rest of the clip, then silence

EOS ends a row only where the utterance ends. Before that it is read as a pad, and what follows is withheld. If there is sound
later, EOS was wrong, and the row goes on; if not, EOS was right, and what was withheld is dropped. So an utterance that ends in
silence has the tokens of offline decoding, however late its end is known.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from ..families.base import Layout, Network, StreamEncoder
from ..families.placed_keys import PlacedKeys, visible_in_ring
from ..modeling.row_adapters import RowAdapters
from ..units import TOKEN_SAMPLES
from .decoder import Completion, Decoding, Request, compiled, step
from .known_tags import KnownTags


@dataclass(frozen=True)
class LiveRowKind:
    """How a row is laid out. `adapter`: its number in the decoder's `RowAdapters`; 0 is the base. `bound`: whether it may write
    known tags only. The layout writes while it listens (`has_times`)."""

    adapter: int
    layout: Layout
    prepad_samples: int
    bound: bool = False


@dataclass
class LiveRow:
    """`token_ids` and `log_probs`: what was written after the prompt. `eos_at`: where it wrote EOS, if nothing has sounded since.
    `eos_samples`: what it had heard then.
    `blanks`: how many fillers it has written in a row, and `blank_lead` the sum of their leads over the second choice, in
    logits."""

    kind: LiveRowKind
    number: int
    next_id: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    eos_at: int | None = None
    eos_samples: int = 0
    finish_reason: str | None = None
    tag_state: int = KnownTags.free
    blanks: int = 0
    blank_lead: float = 0.0

    @property
    def written(self) -> int:
        """How many of the tokens are certain to stay."""
        return len(self.token_ids) if self.eos_at is None else self.eos_at

    def finish(self, reason: str) -> None:
        self.finish_reason = reason
        del self.token_ids[self.written :], self.log_probs[self.written :]


class LiveUtterance:
    """One utterance on its slot. Made by `LiveDecoder.seat`. `position`: of the next audio token, as in the row.
    `sound_samples`: how far there was sound. `has_failed`: the model's output was not finite; leave it."""

    def __init__(self, slot: int, rows: list[LiveRow], start_tokens: int, encoder: StreamEncoder):
        self.slot, self.rows, self.position = slot, rows, start_tokens
        self.end_samples: int | None = None
        self.sound_samples = 0
        self.has_failed = False
        self._start_tokens = start_tokens
        self._samples, self._used = np.zeros(encoder.lead_samples, np.float32), 0  # those before `_used` are no longer needed
        self._later: list[np.ndarray] = []
        self._heard_samples = 0
        self._window_samples = encoder.window_samples
        self._waiting_samples = encoder.lead_samples

    def hear(self, samples: np.ndarray) -> None:
        """The next samples, float32 at 16 kHz."""
        if self.end_samples is None and len(samples):
            self._later.append(samples)
            self._heard_samples += len(samples)
            self._waiting_samples += len(samples)

    def sounded(self, until_samples: int) -> None:
        """There was sound up to there: a row that wrote EOS before was wrong."""
        self.sound_samples = max(self.sound_samples, until_samples)
        for row in self.rows:
            if row.eos_at is not None and self.sound_samples > row.eos_samples:
                row.eos_at = None

    def end(self, end_samples: int) -> None:
        """The utterance ends there; what was heard after it counts as silence."""
        self.end_samples = end_samples
        self._merge()
        surplus = self._heard_samples - end_samples
        if surplus > 0:
            self._samples[max(len(self._samples) - surplus, self._used) :] = 0.0

    @property
    def is_finished(self) -> bool:
        return all(row.finish_reason for row in self.rows)

    @property
    def is_ready(self) -> bool:
        """Whether its next token can be computed."""
        return not self.is_finished and (self.end_samples is not None or self._waiting_samples >= self._window_samples)

    @property
    def decoded_samples(self) -> int:
        """How much of its sound the model has heard."""
        return max(self._heard_samples - self._waiting_samples, 0)

    @property
    def waiting_samples(self) -> int:
        """How much of its sound the model has not heard yet."""
        return self._heard_samples - self.decoded_samples

    @property
    def read_samples(self) -> int:
        """How much the model has read, in whole tokens; silence after the end counts too."""
        return (self.position - self._start_tokens) * TOKEN_SAMPLES

    def next_window(self) -> np.ndarray:
        """float32 [window_samples]; silence after the end."""
        if len(self._samples) - self._used < self._window_samples:
            self._merge()
        window = self._samples[self._used : self._used + self._window_samples]
        window = np.pad(window, (0, self._window_samples - len(window)))
        used = min(self._used + TOKEN_SAMPLES, len(self._samples))
        self._waiting_samples -= used - self._used
        self._used = used
        return window

    def _merge(self) -> None:
        self._samples = np.concatenate([self._samples[self._used :], *self._later])
        self._used, self._later = 0, []


class LiveDecoder:
    """`slots` utterances at a time, with `rows` rows in all. An utterance may have at most `longest_tokens` positions.

    >>> utterance = decoder.seat(kinds)                  # doctest: +SKIP
    >>> utterance.hear(samples); utterance.end(16_000)   # doctest: +SKIP
    >>> while not utterance.is_finished:                 # doctest: +SKIP
    ...     decoder.step([utterance])
    >>> decoder.leave(utterance)                         # doctest: +SKIP

    A step runs all rows up to a power of two that holds those in use: few shapes, so that a compiled step is compiled a few
    times.
    """

    def __init__(
        self, network: Network, encoder: StreamEncoder, settings: Decoding, kinds: Sequence[LiveRowKind], slots: int, rows: int,
        longest_tokens: int, adapters: RowAdapters | None = None,
    ):  # fmt: skip
        self._network, self._encoder, self._settings, self._adapters = network, encoder, settings, adapters
        self._forward = compiled(step) if settings.compiled else step
        config, device = network.text_config, network.device
        self._window = config.sliding_window
        self._places = min(longest_tokens, self._window or longest_tokens)
        # One place more than the ring has: there the rows write that take no part in a step.
        shape = (rows, self._places + 1, config.num_key_value_heads, config.head_dim)
        layers = range(config.num_hidden_layers)
        self._keys = [torch.zeros(*shape, dtype=network.dtype, device=device) for _ in layers]
        self._values = [torch.zeros(*shape, dtype=network.dtype, device=device) for _ in layers]
        self._start_tokens = encoder.start_tokens
        self._prompts = {kind: kind.layout.prompt_ids(kind.layout.measure(0, kind.prepad_samples)) for kind in kinds}
        self._starts = {kind: self._start(kind) for kind in kinds}
        self._free_slots, self._free_rows = list(range(slots)), list(range(rows))
        self.window_samples = encoder.lead_samples + encoder.window_samples  # enough for a first step

    @staticmethod
    def bytes_per_row(network: Network, longest_tokens: int) -> int:
        config = network.text_config
        places = min(longest_tokens, getattr(config, "sliding_window", None) or longest_tokens) + 1
        elements = 2 * config.num_hidden_layers * places * config.num_key_value_heads * config.head_dim
        return elements * network.dtype.itemsize

    @torch.inference_mode()
    def _start(self, kind: LiveRowKind) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer, the keys and values of the left padding, each [start_tokens, heads, head_dim]."""
        ids = torch.tensor([self._prompts[kind][: self._start_tokens]], device=self._network.device)
        self._use([kind.adapter])
        cache = DynamicCache()
        self._network.hidden(ids, self._encoder.start_audio[None].to(self._network.device), cache)
        return [(layer.keys[0].transpose(0, 1).clone(), layer.values[0].transpose(0, 1).clone()) for layer in cache.layers]

    def has_room(self, rows: int) -> bool:
        return bool(self._free_slots) and len(self._free_rows) >= rows

    @torch.inference_mode()
    def seat(self, kinds: Sequence[LiveRowKind]) -> LiveUtterance:
        """Begin an utterance, on the lowest free slot and rows."""
        assert self.has_room(len(kinds)), "the caller counts its streams"
        slot, numbers = min(self._free_slots), sorted(self._free_rows)[: len(kinds)]
        self._free_slots.remove(slot)
        self._encoder.seat(slot)
        places = torch.arange(self._start_tokens, device=self._network.device)[-self._places :]
        rows = []
        for kind, number in zip(kinds, numbers, strict=True):
            self._free_rows.remove(number)
            for keys, values, (start_keys, start_values) in zip(self._keys, self._values, self._starts[kind], strict=True):
                keys[number, places % self._places] = start_keys[places]
                values[number, places % self._places] = start_values[places]
            state = KnownTags.start if kind.bound else KnownTags.free
            rows.append(LiveRow(kind, number, self._prompts[kind][self._start_tokens], tag_state=state))
        return LiveUtterance(slot, rows, self._start_tokens, self._encoder)

    def leave(self, utterance: LiveUtterance) -> None:
        """Free its slot and rows, finished or not."""
        if utterance.has_failed:  # a masked NaN still reaches the sum of attention
            for layer in (*self._keys, *self._values):
                layer[[row.number for row in utterance.rows]] = 0.0
        self._free_slots.append(utterance.slot)
        self._free_rows += [row.number for row in utterance.rows]

    @torch.inference_mode()
    def step(self, utterances: Sequence[LiveUtterance]) -> None:
        """One audio token for each of these, which are ready. `has_failed` says of which the model's output is not finite."""
        for utterance in utterances:
            self._finish_at_end(utterance)
        utterances = [utterance for utterance in utterances if not utterance.is_finished]
        if not utterances:
            return
        windows = np.stack([utterance.next_window() for utterance in utterances])
        audio = self._encoder.encode([utterance.slot for utterance in utterances], windows).to(self._network.device)
        running = [(row, u, index) for index, u in enumerate(utterances) for row in u.rows if not row.finish_reason]
        logits = self._read(running, audio)
        for (row, utterance, _), *chosen in zip(running, *self._choose(logits, [row for row, _, _ in running]), strict=True):
            self._write(row, utterance, *chosen)
        for utterance in utterances:
            utterance.position += 1
            self._finish_at_end(utterance)

    def completion(self, utterance: LiveUtterance, row: LiveRow, identity: str) -> Completion:
        """Of a finished row."""
        mean = math.fsum(row.log_probs) / max(len(row.log_probs), 1)
        return Completion(identity, 0, row.token_ids, row.finish_reason, mean, row.log_probs, row.kind.adapter)

    def _read(self, running: list[tuple[LiveRow, LiveUtterance, int]], audio: torch.Tensor) -> torch.Tensor:
        """The logits [n, V] of the running rows, after their next input."""
        device, numbers = self._network.device, [row.number for row, _, _ in running]
        count = min(1 << max(numbers).bit_length(), len(self._keys[0]))
        where = torch.tensor(numbers, device=device)
        columns = torch.zeros(4, count, dtype=torch.int64)
        given = [(row.next_id, utterance.position, row.kind.adapter, 1) for row, utterance, _ in running]
        columns[:, numbers] = torch.tensor(given).T
        ids, positions, adapters, active = columns.to(device)
        heard = audio.new_zeros(count, audio.shape[-1])
        heard[where] = audio[[index for _, _, index in running]]
        places = torch.where(active.bool(), positions % self._places, self._places)
        places = places + torch.arange(count, device=device) * (self._places + 1)
        layers = zip(self._keys, self._values, strict=True)
        cache = Cache(layers=[PlacedKeys(keys[:count], values[:count], places) for keys, values in layers])
        self._use(adapters)
        visible = visible_in_ring(positions[:, None], active.bool(), self._places, self._window)
        hidden = self._forward(
            self._network, ids[:, None], heard[:, None], cache, position_ids=positions[:, None], attention_mask=visible
        )
        return self._network.logits(hidden[where]).float()

    def _choose(self, logits: torch.Tensor, rows: list[LiveRow]) -> Iterator[list]:
        """For each row: its token, the token's log-probability, its lead over the second choice, and the state of its tags."""
        states = torch.tensor([row.tag_state for row in rows], device=logits.device)
        known = self._settings.known_tags
        if known is None:
            tokens = logits.argmax(dim=-1)
        else:
            tokens = known.choose(logits, states, lambda logits, _: logits.argmax(dim=-1))
            states = known.advance(states, tokens)
        best = logits.topk(2).values
        log_probs = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        columns = torch.stack([tokens.double(), log_probs.double(), (best[:, 0] - best[:, 1]).double(), states.double()]).tolist()
        return [[int(token) for token in columns[0]], columns[1], columns[2], [int(state) for state in columns[3]]]

    def _write(
        self, row: LiveRow, utterance: LiveUtterance, token: int, log_prob: float, lead: float, tag_state: int
    ) -> None:
        """The row's token at the utterance's position + 1."""
        prompt, layout = self._prompts[row.kind], row.kind.layout
        if utterance.position + 1 < len(prompt):
            row.next_id = prompt[utterance.position + 1]
            return
        if not math.isfinite(log_prob):
            utterance.has_failed = True
            return
        if token == layout.eos_id:
            if row.eos_at is None and utterance.sound_samples <= utterance.read_samples:
                row.eos_at, row.eos_samples = len(row.token_ids), utterance.read_samples
            token = layout.filler_id
        row.next_id, row.tag_state = token, tag_state
        row.token_ids.append(token)
        row.log_probs.append(log_prob)
        is_blank = token == layout.filler_id
        row.blanks, row.blank_lead = (row.blanks + 1, row.blank_lead + lead) if is_blank else (0, 0.0)

    def _finish_at_end(self, utterance: LiveUtterance) -> None:
        """Rows that had written EOS before the end was known, and rows without room."""
        if utterance.end_samples is None:
            return
        for row in utterance.rows:
            if row.finish_reason:
                continue
            clip = row.kind.layout.measure(utterance.end_samples, row.kind.prepad_samples)
            reach = self._settings.reach(Request.of("", row.kind.layout, clip, 0, row.kind.adapter))
            if row.eos_at is not None:
                row.finish("eos")
            elif utterance.position + 1 >= reach:
                row.finish("length")

    def _use(self, adapters: Sequence[int] | torch.Tensor) -> None:
        if self._adapters is not None:
            self._adapters.use(torch.as_tensor(adapters, device=self._network.device))
