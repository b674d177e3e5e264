"""Word and character error rates by jiwer, with no clip left out.

jiwer refuses an empty reference; such a clip is counted here: each word of its hypothesis is an
insertion. Texts are normalised by `text.normalize` and stripped of their tags first.
"""

from dataclasses import dataclass

from ..text.normalize import normalize_words
from ..text.tags import strip_tags


@dataclass(frozen=True)
class ErrorCount:
    """`errors`: substitutions + deletions + insertions; `length`: words or characters of the reference."""

    errors: int
    length: int

    @property
    def rate(self) -> float:
        """errors / length; with an empty reference 0 for an empty hypothesis, else 1."""
        if self.length:
            return self.errors / self.length
        return 1.0 if self.errors else 0.0


def count_word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Of two tagged texts: "[sighs] I told you" against "i sold you" -> 1 error in 3 words."""
    return _count(reference, hypothesis, characters=False)


def count_character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """As for words; the spaces between words count as characters."""
    return _count(reference, hypothesis, characters=True)


def _count(reference: str, hypothesis: str, characters: bool) -> ErrorCount:
    import jiwer

    wanted, got = normalize_words(strip_tags(reference)), normalize_words(strip_tags(hypothesis))
    if not wanted:
        return ErrorCount(len(got) if characters else len(got.split()), 0)
    measured = jiwer.process_characters(wanted, got) if characters else jiwer.process_words(wanted, got)
    errors = measured.substitutions + measured.deletions + measured.insertions
    return ErrorCount(errors, measured.hits + measured.substitutions + measured.deletions)
