from collections import Counter

import pytest

from conftest import REPO
from evoxtral_train.config.sections import Tags
from evoxtral_train.errors import RowError, UsageError
from evoxtral_train.text import tags
from evoxtral_train.text.taxonomy import TagRules, Taxonomy, describe_changes

TABLE = REPO / "data/tags.yaml"


def rules(**settings) -> TagRules:
    return TagRules.of(Tags(table=TABLE, **settings))


def test_the_shipped_table_has_the_base_tags_in_their_groups():
    taxonomy = Taxonomy.load(TABLE)
    assert taxonomy.tags == tags.BASE_TAGS
    assert {taxonomy.groups[tag] for tag in tags.EMOTION_TAGS} == {"emotion"}
    assert {taxonomy.groups[tag] for tag in tags.SOUND_TAGS} == {"sound"}
    assert [tag for tag in taxonomy.tags if taxonomy.lies_between_words(tag)] == [*tags.SOUND_TAGS, tags.PAUSE_TAG]
    assert taxonomy.aliases["giggles"] == "laughs"
    assert taxonomy.aliases["clears his throat"] == "clears throat"


@pytest.mark.parametrize(
    ("settings", "text", "expected", "changes"),
    [
        ({}, "[Giggles]  oh, [SIGHS] no.", "[laughs] oh, [sighs] no.", {"[giggles] → [laughs]": 1}),
        ({}, "plain words,  as they are", "plain words, as they are", {}),
        ({"unknown": "keep"}, "[coughs] oh.", "[coughs] oh.", {"[coughs] kept, unknown": 1}),
        ({"unknown": "drop"}, "oh [coughs], no. [coughs]", "oh , no.", {"[coughs] dropped": 2}),
        ({"map": {"Coughs": "clears throat"}}, "[coughs] oh.", "[clears throat] oh.", {"[coughs] → [clears throat]": 1}),
        ({"map": {"laughs": None}}, "[laughs] oh.", "oh.", {"[laughs] dropped": 1}),
    ],
)  # fmt: skip
def test_what_becomes_of_a_tag(settings, text, expected, changes):
    tally = Counter()
    assert rules(**settings).apply(text, tally) == expected
    assert describe_changes(tally) == changes


def test_an_unknown_tag_names_the_nearest_and_counts_nothing():
    tally = Counter()
    with pytest.raises(
        RowError, match=r"unknown tag \[sihgs\] — did you mean \[sighs\]\? known tags: excited, .*; or set tags\.map"
    ):
        rules().apply("[giggles] [sihgs] oh", tally)
    with pytest.raises(RowError, match="unclosed bracket"):
        rules(unknown="drop").apply("[giggles oh", tally)
    assert not tally


def test_a_map_to_a_tag_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match=r"tags.map: \[cough\] is mapped to \[coughs\], which is not in"):
        rules(map={"cough": "coughs"})


def test_a_taxonomy_of_ones_own_takes_the_tables_place(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("noise: {coughs: [cough], sneezes: []}\nvoice: {croaky: [creaky voice]}\n", "utf-8")
    mine = TagRules.of(Tags(table=path))
    assert mine.apply("[Cough] oh. [creaky voice] no.") == "[coughs] oh. [croaky] no."
    with pytest.raises(RowError, match=r"unknown tag \[laughs\]"):
        mine.apply("[laughs] oh.")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("sound: {laughs: [giggles], sighs: [giggles]}", "'giggles' is listed twice"),
        ("sound: [laughs]", "the group 'sound' is not a mapping"),
        ("sound: {'[laughs]': []}", "cannot be a tag"),
        ("[1", "not YAML"),
        ("", "not a tag table"),
    ],
)
def test_what_is_no_table(tmp_path, content, reason):
    (tmp_path / "tags.yaml").write_text(content, "utf-8")
    with pytest.raises(UsageError, match=reason):
        Taxonomy.load(tmp_path / "tags.yaml")
    with pytest.raises(UsageError, match="no such tag table"):
        Taxonomy.load(tmp_path / "none.yaml")
