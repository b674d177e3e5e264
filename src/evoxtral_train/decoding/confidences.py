"""How sure a model was of each tag that it wrote."""

import math
from bisect import bisect_left, bisect_right

from ..text.tags import TAG, canonical


def tag_confidences(tokenizer, token_ids: list[int], token_logprobs: list[float]) -> list[float]:
    """The probability of each tag in the text, in order: the product over the tokens of its name and brackets,
    each given all tokens before it. A token that two tags share ("] [") counts for both."""
    ends, tokens_of = [], []
    for count in range(1, len(token_ids) + 1):
        ends.append(len(tokenizer.decode(token_ids[:count])))
    text = tokenizer.decode(token_ids)
    for match in TAG.finditer(text):
        if canonical(match.group(1)):
            tokens_of.append((bisect_right(ends, match.start()), bisect_left(ends, match.end())))
    return [round(math.exp(min(sum(token_logprobs[first : last + 1]), 0.0)), 4) for first, last in tokens_of]
