"""What is written in another tag's place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import REPO
from evoxtral_train.records import Prediction
from evoxtral_train.scoring.confusion import NOTHING, by_group, confusion, shares
from evoxtral_train.text.tags import BASE_TAGS, find_tags
from evoxtral_train.text.taxonomy import Taxonomy

TAXONOMY = Taxonomy.load(REPO / "data/tags.yaml")


def test_by_hand():
    table = confusion([Prediction("a", "[sighs] [pause] [laughs] x", "[gasps] [laughs]"), Prediction("b", "x", "[calm]")])
    assert table == {
        "laughs": {"laughs": 1}, "pause": {"gasps": 0.5, NOTHING: 0.5}, "sighs": {"gasps": 0.5, NOTHING: 0.5},
        NOTHING: {"calm": 1},
    }  # fmt: skip
    assert by_group(table, TAXONOMY) == {
        "sound": {"sound": 1.5, NOTHING: 0.5}, "pause": {"sound": 0.5, NOTHING: 0.5}, NOTHING: {"emotion": 1},
    }  # fmt: skip
    assert shares(table, TAXONOMY) == pytest.approx(
        {"right": 1 / 3, "same_group": 0.5 / 3, "other_group": 0.5 / 3, "missed": 1 / 3}
    )
    assert by_group(confusion([Prediction("a", "[sighs] x", "[angrustrated]")]), TAXONOMY) == {"sound": {"other": 1}}
    assert shares({}, TAXONOMY) == {}


tags = st.lists(st.sampled_from(BASE_TAGS[:5]), max_size=5).map(lambda found: " ".join(f"[{tag}]" for tag in found))


@given(st.lists(st.tuples(tags, tags), max_size=8))
def test_rows_sum_to_the_references_and_columns_to_the_predictions(pairs):
    table = confusion([Prediction(str(index), *pair) for index, pair in enumerate(pairs)])
    for tag in BASE_TAGS[:5]:
        wanted = sum(find_tags(reference).count(tag) for reference, _ in pairs)
        written = sum(find_tags(prediction).count(tag) for _, prediction in pairs)
        assert sum(table.get(tag, {}).values()) == pytest.approx(wanted)
        assert sum(row.get(tag, 0) for row in table.values()) == pytest.approx(written)
    groups = by_group(table, TAXONOMY)
    assert sum(sum(row.values()) for row in groups.values()) == pytest.approx(sum(sum(row.values()) for row in table.values()))
