"""Only tags that exist: once a bracket is open, nothing but the rest of a known tag's name and its closing bracket may follow.

An automaton reads the bytes of the tokens. Its states, for the tags "sad" and "sighs":

    FREE ↺        a row that is not bound: anything may follow
    OUTSIDE ↺     text; a "[" leads to the state of the empty prefix
    "" ─s─► "s" ─a─► "sa" ─d─► "sad" ─]─► OUTSIDE
                └─i─► "si" ─g─► "sig" ─h─► "sigh" ─s─► "sighs" ─]─► OUTSIDE

A token may be part of a name, a whole one, or close one tag and open the next ("] ["). Special tokens, EOS among them, are
allowed outside of brackets only. Names are matched exactly: in lower case, with single spaces.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

_FORBIDDEN = -1


class KnownTags:
    """Which tokens may follow, for each row of a batch. A row begins in `start`, or in `free` if it is not bound.

    `kind` [V] int64: two tokens are of one kind if they lead from every state to the same next state. Nearly the
    whole vocabulary is one kind, plain text. `next_state` [states, kinds] int64: -1 where the token is forbidden.
    Both are on `device`. Every state allows some token, since each single byte is a token.

    It decides which token is written, not how likely it was: log-probabilities and confidences come from the
    logits as the model gave them. A row that ends at its length limit may end within a tag ("[sig"), which is not a tag.
    """

    free, start = 0, 1  # zero is free, so rows that hold no clip cost nothing

    def __init__(self, tokenizer, tags: Sequence[str], device: torch.device | str = "cpu"):
        """`tokenizer`: mistral-common's. `tags`: canonical names, without brackets."""
        names = [tag.encode() for tag in tags]
        byte_step = _byte_automaton(names)
        plain = np.full(len(byte_step) - 1, _FORBIDDEN)
        plain[[self.free, self.start]] = self.free, self.start
        inside = {name[i:j] for name in names for i in range(len(name)) for j in range(i + 1, len(name) + 1)}
        kinds, kind = {plain.tobytes(): 0}, np.zeros(tokenizer.n_words, dtype=np.int64)
        for token in range(tokenizer.num_special_tokens, tokenizer.n_words):
            piece = tokenizer.id_to_byte_piece(token)
            if piece in inside or b"[" in piece or b"]" in piece:
                reached = np.arange(len(plain))
                for byte in piece:
                    reached = byte_step[reached, byte]
                kind[token] = kinds.setdefault(reached.tobytes(), len(kinds))
        columns = [np.frombuffer(column, dtype=np.int64) for column in kinds]
        self.kind = torch.from_numpy(kind).to(device)
        self.next_state = torch.from_numpy(np.stack(columns, axis=1)).to(device)

    def advance(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The states [R] after the tokens [R]; -1 where the token is forbidden."""
        return self.next_state[states, self.kind[tokens]]

    def masked(self, logits: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """logits [R, V] with -inf for what the states [R] forbid."""
        forbidden = (self.next_state < 0)[states].index_select(1, self.kind)
        return logits.masked_fill(forbidden, -torch.inf)

    def choose(
        self, logits: torch.Tensor, states: torch.Tensor, draw: Callable[[torch.Tensor, torch.Tensor | slice], torch.Tensor]
    ) -> torch.Tensor:
        """logits [R, V], states [R] -> allowed tokens [R]. `draw(logits [N, V], rows)` -> tokens [N]; `rows` [N] says which.

        All rows are drawn as usual, and only those with a forbidden token again, from the masked logits. Usually there
        are none, so the vocabulary is not masked in most steps; it takes one synchronisation with the device.

        Greedy and pure sampling give the tokens of masking first: both take the maximum of a score that each token has
        by itself (its logit, or its log-probability plus the noise of its row, position and id). Masking removes tokens
        and shifts the other log-probabilities by one constant, so a maximum that is allowed remains the maximum.
        Top-k and top-p, however, filter the model's own distribution first, and the masked one when a row is drawn again.
        """
        tokens = draw(logits, slice(None))
        refused = (self.advance(states, tokens) < 0).nonzero()[:, 0]
        if len(refused):
            tokens[refused] = draw(self.masked(logits[refused], states[refused]), refused)
        return tokens


def _byte_automaton(names: Sequence[bytes]) -> np.ndarray:
    """The next state by state and byte, [states + 1, 256]. The last row is that of the forbidden state, -1."""
    prefixes = sorted({name[:end] for name in names for end in range(len(name) + 1)})
    state_of = {prefix: state for state, prefix in enumerate(prefixes, start=2)}
    step = np.full((2 + len(prefixes) + 1, 256), _FORBIDDEN)
    step[KnownTags.free] = KnownTags.free
    step[KnownTags.start] = KnownTags.start
    step[KnownTags.start, ord("[")] = state_of.get(b"", _FORBIDDEN)
    for prefix, state in state_of.items():
        if prefix:
            step[state_of[prefix[:-1]], prefix[-1]] = state
    for name in names:
        step[state_of[name], ord("]")] = KnownTags.start
    return step
