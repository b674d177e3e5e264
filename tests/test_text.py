import pytest

from evoxtral_train.errors import RowError
from evoxtral_train.text import tags
from evoxtral_train.text.languages import _codes, language_code
from evoxtral_train.text.normalize import normalize_words
from evoxtral_train.text.tags import Piece
from evoxtral_train.text.written import without_language


def test_there_are_15_base_tags():
    assert tags.BASE_TAGS == (
        "excited", "sad", "angry", "nervous", "calm", "frustrated", "laughs", "sighs", "gasps", "clears throat",
        "crying", "whispers", "shouts", "stammers", "pause",
    )  # fmt: skip


def test_parse_keeps_the_order():
    assert tags.parse("[sighs] I told you. [Clears  Throat] Come") == [
        Piece("tag", "sighs"), Piece("text", "I told you."), Piece("tag", "clears throat"), Piece("text", "Come"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[sighs I told you", "unclosed bracket at character 0"),
        ("I [sighs [pause] told", "bracket opened inside a bracket at character 9"),
        ("I told] you", "bracket closed but never opened at character 6"),
        ("I [ ] told", "empty tag at character 2"),
    ],
)
def test_bad_brackets_say_where(text, reason):
    with pytest.raises(RowError, match=reason.replace("[", r"\[").replace("]", r"\]")):
        tags.parse(text)


def test_find_tags_forgives_what_a_model_writes():
    assert tags.find_tags("[laughs] a [sig [pause]] []") == ["laughs", "pause"]


def test_strip_and_filter():
    assert tags.strip_tags("[sighs] I told  you. [pause]") == "I told you."
    assert tags.keep_tags("[sighs] I [pause] told [laughs] you", {0, 1}) == "[sighs] I [pause] told you"
    assert tags.keep_tags("[sighs] [] I [pause] told [laugh", {1}) == "[] I [pause] told [laugh"
    assert tags.format_tags(["sighs", "clears throat"]) == "[sighs] [clears throat]"
    assert tags.format_tags([]) == ""


def test_normalize_words():
    assert normalize_words("I'm — well — FINE! 'Yes'  don’t") == "i'm well fine yes don't"
    assert normalize_words("…!?") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lang:en Hello", "Hello"), ("lang:enHello", "Hello"), (" lang:de[sighs] Na ja.", "[sighs] Na ja."), ("lang:en", ""),
        ("language is lang:en here", "language is lang:en here"), ("Lang: the film", "Lang: the film"), ("lang:1", "lang:1"),
        ("Hello", "Hello"), (" Hello ", " Hello "), ("", ""),
    ],
)  # fmt: skip
def test_a_transcript_never_begins_with_its_language(text, expected):
    assert without_language(text) == expected


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("en", "en"), ("DE", "de"), ("de-DE", "de"), ("zh_Hant_TW", "zh"), ("deu", "de"), ("ger", "de"), ("Vietnamese", "vi"),
        ("no", "no"),
    ],
)  # fmt: skip
def test_the_code_of_a_language(value, code):
    assert language_code(value) == code


@pytest.mark.parametrize("value", ["xx", "", "enc", "Klingon", "lang:en", "e", "-en"])
def test_what_is_no_language(value):
    with pytest.raises(RowError, match="is not a language with a code of two letters"):
        language_code(value)


def test_the_codes_are_those_that_the_tokenizer_accepts():
    from pydantic_extra_types.language_code import _index_by_alpha2

    assert set(_codes().values()) == set(_index_by_alpha2())
