"""Where on the 80 ms clock a target is written: one builder for training rows and prompts.

A row has `clock_tokens` positions. Its first `prompt_tokens` ids are known beforehand (BOS and
streaming pads), the target and EOS follow, `<pad>` fills the rest. Labels stand under the
target and EOS alone, -100 elsewhere (transformers shifts labels itself).

Worked example, with left_pad_tokens = 2, delay_tokens = 1 (the real ones are 32 and 6), a clip
of 3 audio tokens, target ids [70, 71], BOS 1, EOS 2, pad 11, streaming pad P = 32:

    packed    ids     1  P  P  P 70 71  2 11 11 11      the prompt, then the target at once
              labels  .  .  .  . 70 71  2  .  .  .
    deferred  ids     1  P  P  P  P  P 70 71  2 11      as many pads as it takes to hear the clip
              labels  .  .  .  .  .  . 70 71  2  .      out, plus the delay; then the target
    aligned   ids     1  P  P  P  P  W 70 71  2 11      each piece once it has been heard (here at the
              labels  .  .  .  .  P  W 70 71  2  .      clip's second token): see `lay_out_stream`

Nothing after the last label can change the loss (the model is causal), so a training row may be
cut there, its mel frames with it; `Row.needed_tokens` says where.
"""

from dataclasses import dataclass

from ...errors import RowError
from ...units import TOKEN_S
from .clock import Clock

LAYOUTS = ("packed", "deferred", "aligned")
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """`ids` and `labels`: `clock_tokens` ints each; the first `prompt_tokens` ids are the prompt."""

    ids: list[int]
    labels: list[int]
    prompt_tokens: int
    needed_tokens: int


def prompt_tokens(layout: str, clock: Clock, utterance_tokens: int) -> int:
    """How many ids are known before the first target token is written.

    `utterance_tokens`: audio tokens that cover the clip, without any padding.
    """
    if layout in ("packed", "aligned"):
        return clock.prompt_tokens
    if layout == "deferred":
        return clock.written_at(utterance_tokens)
    raise ValueError(f"unknown layout {layout!r}")


def room_start(layout: str, clock: Clock, utterance_tokens: int) -> int:
    """Where the room for text begins: `room_tokens` and `max_new_tokens` are counted from here. `aligned`
    writes while the clip is heard, and has its room after it, as `deferred` does."""
    return clock.prompt_tokens if layout == "packed" else clock.written_at(utterance_tokens)


def clock_tokens(layout: str, clock: Clock, samples: int, utterance_tokens: int, prepad_samples: int, room_tokens: int) -> int:
    """Length of a clip's row: what the stock processor would make, and for `deferred` and `aligned` at
    least `room_tokens` positions after the utterance, so that a clip as long as the pre-padding
    still has time to write."""
    stock = clock.stock_tokens(samples, prepad_samples)
    if layout == "packed":
        return stock
    return max(stock, room_start(layout, clock, utterance_tokens) + room_tokens)


def lay_out(layout: str, clock: Clock, utterance_tokens: int, row_tokens: int, target_ids: list[int]) -> Row:
    """The training row of a clip. `target_ids` come without EOS; EOS is added and learned. For `aligned`
    they are what `stream_ids` made: pads, words and tags, one for each 80 ms.

    Raises RowError when target and EOS do not fit: a target is never cut.
    """
    start = prompt_tokens(layout, clock, utterance_tokens)
    written = [*target_ids, clock.eos_id]
    if start + len(written) > row_tokens:
        raise RowError(
            f"the target has {len(target_ids)} tokens and EOS, but only {max(row_tokens - start, 0)} fit after the "
            f"prompt of {start} in a row of {row_tokens}",
            fix="shorten the text, or raise layout.room_tokens (deferred) or audio.prepad_samples (packed)",
        )
    return _row(clock, start, written, row_tokens)


def stream_ids(clock: Clock, pieces: list[tuple[list[int], float]], utterance_tokens: int, row_tokens: int) -> list[int]:
    """The `aligned` target: what `lay_out_stream` writes after the prompt, without EOS. Raises RowError."""
    row = lay_out_stream(clock, pieces, utterance_tokens, row_tokens)
    return row.ids[row.prompt_tokens : row.needed_tokens - 1]


def prompt_ids(layout: str, clock: Clock, utterance_tokens: int) -> list[int]:
    """What decoding starts from: the same first ids as `lay_out` gives."""
    return _prompt(clock, prompt_tokens(layout, clock, utterance_tokens))


def lay_out_stream(clock: Clock, words: list[tuple[list[int], float]], utterance_tokens: int, row_tokens: int) -> Row:
    """The base model's own form: each word when it has been heard plus the delay.

    `words`: (subword ids, end in seconds) in order of time. One token per 80 ms: `[STREAMING_PAD]`
    while there is nothing to say; words due by then share one `[STREAMING_WORD]` and follow it
    (arXiv 2602.11298, section 3.1). EOS follows the last word, not before the utterance's end.
    Raises RowError when the words do not fit.
    """
    due = [(clock.written_at(-(-round(end_s * 1000) // round(TOKEN_S * 1000))), ids) for ids, end_s in words]
    ids = _prompt(clock, clock.prompt_tokens)
    index = 0
    end = clock.written_at(utterance_tokens)
    while index < len(due) or len(ids) < end:
        ready = index
        while ready < len(due) and due[ready][0] <= len(ids):
            ready += 1
        if ready == index:
            ids.append(clock.streaming_pad_id)
            continue
        ids.append(clock.streaming_word_id)
        for _, word_ids in due[index:ready]:
            ids.extend(word_ids)
        index = ready
    ids.append(clock.eos_id)
    if len(ids) > row_tokens:
        raise RowError(f"the transcript takes {len(ids)} tokens, the clip has {row_tokens}", fix="shorten the text")
    return _row(clock, clock.prompt_tokens, ids[clock.prompt_tokens :], row_tokens)


def _prompt(clock: Clock, tokens: int) -> list[int]:
    return [clock.bos_id] + [clock.streaming_pad_id] * (tokens - 1)


def _row(clock: Clock, start: int, written: list[int], row_tokens: int) -> Row:
    rest = row_tokens - start - len(written)
    return Row(
        ids=_prompt(clock, start) + written + [clock.pad_id] * rest,
        labels=[IGNORED] * start + written + [IGNORED] * rest,
        prompt_tokens=start,
        needed_tokens=start + len(written),
    )
