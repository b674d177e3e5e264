"""What a model wrote, as text."""

import re

_LANGUAGE = re.compile(r"\s*lang:[a-z]{2}")


def written_text(tokenizer, token_ids: list[int]) -> str:
    """The text of the tokens that a model wrote, without the language that the offline models may begin with."""
    return without_language(tokenizer.decode(token_ids)).strip()


def without_language(text: str) -> str:
    """Without the `lang:xx` at its start, if any: "lang:en Hello" -> "Hello"."""
    match = _LANGUAGE.match(text)
    return text[match.end() :].lstrip() if match else text
