"""Thresholds: the filter by hand, the fit on literal examples and its invariants, `calibrate` end to end, and who reads them."""

import json

import pytest

from evoxtral_train.errors import UsageError
from evoxtral_train.modeling.adapters import Adapter
from evoxtral_train.modeling.thresholds import (
    Calibration,
    find_calibration,
    find_thresholds,
    require_thresholds,
    write_calibration,
)
from evoxtral_train.scoring.tag_filter import NEVER, TagFilter, Thresholds


def test_the_filter_by_hand():
    tags, confidences = ["sighs", "pause", "sighs", "calm"], [0.4, 0.9, 0.7, 0.6]
    by_tag = Thresholds(0.65, {"sighs": 0.4, "pause": NEVER})
    assert TagFilter().kept(tags, None) == [0, 1, 2, 3]
    assert TagFilter(min_confidence=0.6).kept(tags, confidences) == [1, 2, 3]
    assert TagFilter(thresholds=by_tag).kept(tags, confidences) == [0, 2], "a threshold is reached by its own value"
    assert TagFilter(min_confidence=0.5, thresholds=by_tag).kept(tags, confidences) == [2], "both must be reached"
    assert TagFilter(top_k=2).kept(tags, None) == [0, 1]
    assert TagFilter(top_k=2, top_k_by="confidence").kept(tags, confidences) == [1, 2]
    assert TagFilter(top_k=1, thresholds=by_tag).kept(tags, confidences) == [0], "the first of those that reach their threshold"
    assert TagFilter(thresholds=by_tag).kept([], []) == []
    assert TagFilter(thresholds=Thresholds(1.0)).kept(["calm"], [1.0]) == [0]
    for needing in (TagFilter(min_confidence=0.1), TagFilter(thresholds=by_tag), TagFilter(top_k=1, top_k_by="confidence")):
        with pytest.raises(ValueError, match="no confidences"):
            needing.kept(tags, None)


def test_thresholds_in_and_out_of_json():
    thresholds = Thresholds(0.4, {"sighs": 0.55, "calm": NEVER})
    assert thresholds.as_json() == {"default": 0.4, "by_tag": {"calm": 1.01, "sighs": 0.55}}
    assert Thresholds.from_json(json.loads(json.dumps(thresholds.as_json()))) == thresholds
    for bad in (None, {}, {"default": 0.4}, {"default": 0.4, "by_tag": []}, {"default": 0.4, "by_tag": {}, "more": 1}):
        with pytest.raises(ValueError, match="written as"):
            Thresholds.from_json(bad)
    for bad in (-0.1, 1.02, float("nan"), float("inf"), "0.5", True, None):
        with pytest.raises(ValueError, match="the threshold of 'sighs'|the threshold of sighs"):
            Thresholds(0.4, {"sighs": bad})


MEASURED = {"micro_f1": 0.5, "micro_precision": None, "micro_recall": 0.5, "false_tags_per_untagged_clip": 0.0}
CALIBRATION = Calibration(
    "abc", "def", "validation", 12, "the highest micro F1", {"default": 0.4, "by_tag": {"sighs": 0.55}}, *[MEASURED] * 3
)


def test_thresholds_lie_beside_the_weights_and_are_refused_for_others(tmp_path):
    adapter = Adapter(tmp_path, "abc", None)
    assert find_thresholds(adapter) is None
    with pytest.raises(UsageError, match="no thresholds were fitted for this adapter .* evoxtral calibrate"):
        require_thresholds(adapter)
    path = write_calibration(tmp_path, CALIBRATION)
    assert path == tmp_path / "thresholds.json"
    assert find_calibration(adapter) == CALIBRATION
    assert find_thresholds(adapter) == require_thresholds(adapter) == Thresholds(0.4, {"sighs": 0.55})
    with pytest.raises(UsageError, match=r"fitted for another adapter \(fingerprint abc\) than the one here \(xyz\)"):
        find_thresholds(Adapter(tmp_path, "xyz", None))


@pytest.mark.parametrize("content", [
    "", "[]", "{", "\ud83d", '{"adapter": "abc"}', json.dumps({"adapter": "abc", "adapter2": 1}), "[" * 100_000,
    '{"adapter": "abc", "adapter": "abc"}',
])  # fmt: skip
def test_a_malformed_file_is_refused(content, tmp_path):
    (tmp_path / "thresholds.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(UsageError, match=r"thresholds.json: these thresholds cannot be read: .* — fit them again with"):
        find_thresholds(Adapter(tmp_path, "abc", None))


@pytest.mark.parametrize("change", [
    {"thresholds": {}}, {"thresholds": {"default": 2, "by_tag": {}}}, {"thresholds": {"default": 0.5, "by_tag": {"sighs": "a"}}},
    {"clips": "12"}, {"before": {"micro_f1": float("inf")}}, {"adapter": 5}, {"unknown": 1},
])  # fmt: skip
def test_a_file_with_a_bad_value_is_refused(change, tmp_path):
    path = write_calibration(tmp_path, CALIBRATION)
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(UsageError, match="these thresholds cannot be read"):
        find_thresholds(Adapter(tmp_path, "abc", None))


def test_a_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / "thresholds.json").mkdir()
    with pytest.raises(UsageError, match="is a folder, not a file"):
        find_thresholds(Adapter(tmp_path, "abc", None))
