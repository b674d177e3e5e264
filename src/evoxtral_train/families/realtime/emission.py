"""When words and tags were written: from token positions back to seconds of the clip.

Token j is written when j − `left_pad_tokens` audio tokens of the clip have been heard. In an `aligned` target,
a [STREAMING_WORD] comes before each word or tag, `delay_tokens` after the word or tag has been heard.
"""

from ...text.tags import find_tags
from ...units import TOKEN_S
from .clock import Clock


def written_tags(clock: Clock, tokenizer, prompt_tokens: int, token_ids: list[int]) -> list[dict]:
    """[{tag, at_s, written_s}] in order. `at_s`: the time in the clip that the tag refers to, its [STREAMING_WORD]
    minus the delay. `written_s`: how much of the clip had been heard when its closing bracket was written."""
    tags, group, begun = [], [], prompt_tokens
    for position, token in enumerate(token_ids, start=prompt_tokens):
        if token in (clock.streaming_pad_id, clock.streaming_word_id):
            group, begun = [], position
            continue
        group.append(token)
        for tag in find_tags(tokenizer.decode(group)):
            heard_tokens = begun - clock.left_pad_tokens - clock.delay_tokens
            written_tokens = position - clock.left_pad_tokens
            times = {"at_s": max(heard_tokens, 0) * TOKEN_S, "written_s": written_tokens * TOKEN_S}
            tags.append({"tag": tag} | {name: round(time, 3) for name, time in times.items()})
            group = []
    return tags


def written_words(clock: Clock, tokenizer, prompt_tokens: int, token_ids: list[int]) -> list[tuple[str, float]]:
    """(word, time in seconds at which it had been heard): its [STREAMING_WORD] minus the delay."""
    words, group, begun = [], [], prompt_tokens
    for position, token in enumerate([*token_ids, clock.streaming_pad_id], start=prompt_tokens):
        if token not in (clock.streaming_pad_id, clock.streaming_word_id):
            group.append(token)
            continue
        heard_s = max(begun - clock.left_pad_tokens - clock.delay_tokens, 0) * TOKEN_S
        words += [(word, round(heard_s, 3)) for word in tokenizer.decode(group).split()] if group else []
        group, begun = [], position
    return words
