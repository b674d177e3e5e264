"""Thresholds: the filter by hand, the fit on literal examples and its invariants, `calibrate` end to end, and who reads them."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from conftest import TINY_BASE
from evoxtral_train.decoding.greedy import Written
from evoxtral_train.errors import UsageError
from evoxtral_train.modeling.adapter_thresholds import (
    Calibration,
    find_calibration,
    find_thresholds,
    require_thresholds,
    write_calibration,
)
from evoxtral_train.modeling.adapters import Adapter, find_adapter
from evoxtral_train.records import Prediction, read_rows
from evoxtral_train.scoring.calibration import filtered
from evoxtral_train.scoring.tag_filter import NEVER, TagFilter, Thresholds
from evoxtral_train.scoring.thresholds import CANDIDATES, NONE, ONE, fit, fit_shared, measure
from evoxtral_train.text.tags import find_tags, format_tags


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


def clips(*parts) -> list[Prediction]:
    """(reference, prediction, confidences) of each clip."""
    return [Prediction(f"clip-{number}", *part[:2], confidences=part[2]) for number, part in enumerate(parts)]


def kept(rows: list[Prediction], thresholds: Thresholds) -> list[Prediction]:
    return [filtered(row, TagFilter(thresholds=thresholds)) for row in rows]


FIVE = clips(
    ("[sighs] a", "[sighs] a", [0.9]), ("[sighs] b", "[sighs] b", [0.7]), ("[pause] c", "[pause] c", [0.4]),
    ("d", "[sighs] d", [0.5]), ("e", "[pause] e", [0.2]),
)  # fmt: skip


def test_one_threshold_by_hand():
    """Cuts and micro F1: all 6/8, from 0.4 on 6/7, from 0.5 on 4/6, from 0.7 on 4/5, from 0.9 on 2/4."""
    assert measure(FIVE) == {
        "micro_f1": 6 / 8, "micro_precision": 3 / 5, "micro_recall": 1.0, "false_tags_per_untagged_clip": 1.0,
    }  # fmt: skip
    assert fit_shared(FIVE, ONE) == Thresholds(0.3), "the middle of (0.2, 0.4]"
    assert fit_shared(FIVE, ONE, 0.5) == Thresholds(0.3), "one false tag in two untagged clips"
    assert fit_shared(FIVE, ONE, 0.0) == Thresholds(0.6), "the middle of (0.5, 0.7]"
    assert fit_shared(FIVE, NONE, 0.0) == Thresholds()


def test_own_thresholds_by_hand():
    """Sighs are right from 0.7 on, pauses from 0.4 on: both can be perfect, but not with one threshold."""
    own = fit_shared(FIVE, 0)
    assert own == Thresholds(0.3, {"sighs": 0.6, "pause": 0.3})
    assert measure(kept(FIVE, own))["micro_f1"] == 1.0
    assert fit_shared(FIVE, 0, 0.0) == Thresholds(0.6, {"sighs": 0.6, "pause": 0.3})
    assert fit_shared(FIVE, 1e9) == fit_shared(FIVE, ONE), "a tag that counts for nothing follows all tags"


def test_of_a_repeated_tag_the_surest_are_right():
    rows = clips(("[sighs] a", "[sighs] a [sighs]", [0.3, 0.8]), ("b", "b", []), ("c", "c", []), ("d", "d", []), ("e", "e", []))
    assert fit_shared(rows, ONE) == Thresholds(0.55)


def test_a_limit_is_a_budget_that_the_tags_share():
    """Each false tag bought by sighs brings one right tag, by pauses three: with one false tag, the pauses get it."""
    rows = clips(
        *[("[sighs] a", "[sighs] a", [0.3])], *[("[pause] b", "[pause] b", [0.3])] * 3,
        ("c", "[sighs] c", [0.4]), ("d", "[pause] d", [0.4]),
    )  # fmt: skip
    assert fit_shared(rows, 0, 0.5) == Thresholds(NEVER, {"sighs": NEVER, "pause": 0.15})
    assert fit_shared(rows, 0, 0.0).by_tag == {}, "nothing may be kept, by any tag"
    assert fit_shared(rows, 0, 0.0).default == NEVER


def test_without_tags_or_confidences():
    nothing = clips(*[("[sighs] a", "a", [])] * 4, ("b", "b", []))
    assert fit(nothing).thresholds == Thresholds()
    for rows, reason in (
        (FIVE[:4], "4 clips are too few"), (clips(*[("a", "", [])] * 5), "no clip has a reference tag"),
        ([*FIVE, Prediction("x", "[sighs]", "[sighs]")], "no confidences"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            fit(rows)
    with pytest.raises(ValueError, match="every clip has reference tags"):
        fit(clips(*[("[sighs] a", "[sighs] a", [0.5])] * 5), 0.1)


def simulated(seed: int, count: int, own: bool) -> list[Prediction]:
    """Right tags tend to be surer. `own`: tag 0 is right from 0.8 on, tag 1 from 0.3 on."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        reference, written, confidences = [], [], []
        for tag in random.permutation(6)[: random.integers(0, 3)]:
            confidence = round(float(random.random()), 4)
            right = random.random() < confidence
            if own:
                tag = tag % 2
                right = confidence >= (0.8, 0.3)[tag]
            written.append(f"[tag {tag}]")
            confidences.append(confidence)
            reference += [f"[tag {tag}]"] * bool(right)
        rows.append(Prediction(f"clip-{number}", " ".join([*reference, "a"]), " ".join(written), confidences=confidences))
    return rows


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("own", [False, True])
def test_invariants(seed, own):
    rows = simulated(seed, 60, own)
    before = measure(rows)
    one = measure(kept(rows, fit_shared(rows, ONE)))
    for shared in CANDIDATES:
        after = measure(kept(rows, fit_shared(rows, shared)))
        assert after["micro_f1"] >= before["micro_f1"], "never below no threshold on the clips of the fit"
        if shared is not NONE:
            assert after["micro_f1"] >= one["micro_f1"], "nor below one threshold"
            for most in (0.0, 0.05, 0.3):
                bound = measure(kept(rows, fit_shared(rows, shared, most)))
                assert bound["false_tags_per_untagged_clip"] <= most
    best = max(measure(kept(rows, Thresholds(value)))["micro_f1"] for row in rows for value in row.confidences)
    assert one["micro_f1"] == pytest.approx(best), "one threshold is exact"
    fitted = fit(rows, 0.05)
    assert fitted.after["false_tags_per_untagged_clip"] <= 0.05
    assert fit(rows, 0.05) == fitted, "the same folds every time"


@pytest.mark.slow
def test_own_thresholds_are_chosen_only_where_they_hold_for_other_clips():
    with_own = [fit(simulated(seed, 400, own=True)).shared for seed in range(4)]
    assert all(shared not in (NONE, ONE) for shared in with_own)
    without = [fit(simulated(seed, 60, own=False)).shared for seed in range(10)]
    assert sum(shared not in (NONE, ONE) for shared in without) <= 3


@pytest.fixture(scope="module")
def calibrated(demo, call, tmp_path_factory):
    """A copy of the demo's adapter with thresholds: (its folder, what was printed, the run of calibrate)."""
    folder = tmp_path_factory.mktemp("calibrated")
    shutil.copytree(demo / "runs/sft", folder / "sft", ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    result = call("calibrate", demo / "configs/calibrate.yaml", *sets(adapter=folder / "sft", output=folder / "calibrate"))
    assert result.exit_code == 0, result.stderr
    return folder / "sft", result.stdout, folder / "calibrate"


def sets(**values) -> list[str]:
    values |= {"tracking.mode": "disabled"}
    return [part for name, value in values.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


def test_calibrate_writes_thresholds_beside_the_weights(calibrated, demo, call):
    adapter, printed, run = calibrated
    content = json.loads((adapter / "adapter/thresholds.json").read_text("utf-8"))
    assert json.loads((run / "thresholds.json").read_text("utf-8")) == content
    rows = read_rows(run / "predictions.jsonl", Prediction)
    assert (content["split"], content["clips"]) == ("validation", len(rows)) == ("validation", 6)
    assert content["before"] == measure(rows)
    assert content["after"] == measure(kept(rows, Thresholds.from_json(content["thresholds"])))
    for line in ("before ", "after ", "held out ", "thresholds ", f"{adapter}/adapter/thresholds.json"):
        assert line in printed, line
    again = ("calibrate", demo / "configs/calibrate.yaml", *sets(adapter=adapter, output=run))
    assert "this run is finished" in call(*again).stderr
    plan = call(*again, "--overwrite", "--dry-run")
    assert plan.exit_code == 0, plan.stderr
    assert "6 of split validation" in plan.stdout


def test_calibrate_resumes_without_decoding_again(calibrated, demo, call, monkeypatch):
    adapter, _, run = calibrated
    finished = run.with_name("killed.partial")
    shutil.copytree(run, finished)
    for name in ("complete.json", "files.txt", "metrics.json"):
        (finished / name).unlink()
    (adapter / "adapter/thresholds.json").unlink()
    monkeypatch.setattr("evoxtral_train.stages.calibrate.decode_greedily", None)
    settings = (finished / "config.yaml").read_text("utf-8").replace(str(run), str(run.with_name("killed")))
    (finished / "config.yaml").write_text(settings, "utf-8")
    changes = sets(adapter=adapter, output=run.with_name("killed"))
    result = call("calibrate", demo / "configs/calibrate.yaml", *changes, "--resume")
    assert result.exit_code == 0, result.stderr
    assert (adapter / "adapter/thresholds.json").read_bytes() == (run / "thresholds.json").read_bytes()


def test_what_calibrate_refuses(demo, call, tmp_path):
    def refused(**values) -> str:
        result = call("calibrate", demo / "configs/calibrate.yaml", *sets(output=tmp_path / "run", **values))
        assert result.exit_code == 2
        return result.stderr

    assert "`aim: false_tags` and `false_tags_per_untagged_clip_max` go together" in refused(aim="false_tags")
    assert "go together" in refused(false_tags_per_untagged_clip_max=0.1)
    assert "trained on do not hold for others — use validation" in refused(split="train")
    assert not (demo / "runs/sft/adapter/thresholds.json").exists()


def with_thresholds(demo, tmp_path, thresholds: Thresholds):
    """A copy of the demo's adapter, with these thresholds."""
    folder = tmp_path / "sft"
    shutil.copytree(demo / "runs/sft", folder, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    adapter = find_adapter(folder)
    write_calibration(adapter.folder, replace(CALIBRATION, adapter=adapter.fingerprint, thresholds=thresholds.as_json()))
    return folder


def writes(config, network, base, split, paths, adapters) -> dict:
    """In place of `decode_greedily`, as the demo's small adapter writes no tag: the reference's tags, and some more."""
    random = np.random.default_rng(len(split))

    def written(text: str) -> Written:
        tags = find_tags(text) + ["pause", "sighs"][: random.integers(0, 3)]
        return Written(format_tags(tags), confidences=random.random(len(tags)).round(4).tolist())

    return {path: {example.id: written(example.text) for example in split.examples} for path in paths}


def test_eval_filters_by_what_calibrate_fitted(demo, call, tmp_path, monkeypatch):
    for stage in ("calibrate", "eval"):
        monkeypatch.setattr(f"evoxtral_train.stages.{stage}.decode_greedily", writes)
    adapter = with_thresholds(demo, tmp_path, Thresholds(0.9))
    changes = sets(adapter=adapter, output=tmp_path / "calibrate", split="raft", aim="false_tags",
                   false_tags_per_untagged_clip_max=0.2)  # fmt: skip
    result = call("calibrate", demo / "configs/calibrate.yaml", *changes)
    assert result.exit_code == 0, result.stderr
    calibration = find_calibration(find_adapter(adapter))
    assert calibration.aim == "the highest micro F1 with at most 0.2 false tags per untagged clip"
    assert calibration.after["false_tags_per_untagged_clip"] <= 0.2 < calibration.before["false_tags_per_untagged_clip"]
    systems = f"[{{name: SFT, adapter: {adapter}}}, {{name: sure, adapter: {adapter}, thresholds: true}}]"
    command = ("eval", demo / "configs/eval-sft.yaml", *sets(systems=systems, output=tmp_path / "eval", clips_shown=0))
    result = call(*command)
    assert result.exit_code == 0, result.stderr
    whole, sure = (read_rows(tmp_path / f"eval/predictions/{name}.jsonl", Prediction) for name in ("SFT", "sure"))
    by_hand = [
        [tag for tag, value in zip(find_tags(row.prediction), row.confidences, strict=True)
         if value >= calibration.thresholds["by_tag"].get(tag, calibration.thresholds["default"])]
        for row in whole
    ]  # fmt: skip
    assert [find_tags(row.prediction) for row in sure] == by_hand
    assert 0 < sum(map(len, by_hand)) < sum(len(row.confidences) for row in whole)
    inputs = json.loads((tmp_path / "eval/run.json").read_text("utf-8"))["inputs"]
    assert re.fullmatch("[0-9a-f]{16}", inputs[f"thresholds {adapter}"])
    pairs = json.loads((tmp_path / "eval/metrics.json").read_text("utf-8"))["comparisons"]
    assert [(pair["before"], pair["after"]) for pair in pairs] == [("SFT", "sure")]
    write_calibration(adapter / "adapter", replace(calibration, adapter="abc"))
    assert "thresholds.json: fitted for another adapter (fingerprint abc)" in call(*command, "--overwrite").stderr
    (adapter / "adapter/thresholds.json").unlink()
    assert "no thresholds were fitted for this adapter" in call(*command, "--overwrite").stderr
    systems = "[{name: base, thresholds: true}]"
    assert "has `thresholds` but no adapter" in call(*command, "--set", f"systems={systems}", "--overwrite").stderr


def test_thresholds_of_the_old_adapter_do_not_survive_training_anew(demo, call, tmp_path):
    adapter = with_thresholds(demo, tmp_path, Thresholds(0.3))
    changes = sets(output=adapter, train__seed=7, train__epochs=1, train__warmup_steps=0)
    result = call("sft", demo / "configs/sft.yaml", *changes, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert not list(tmp_path.rglob("thresholds.json"))


def test_export_takes_the_thresholds_along_and_says_so(demo, call, tmp_path):
    adapter = with_thresholds(demo, tmp_path, Thresholds(0.3, {"sighs": 0.5}))
    changes = {"model.base": TINY_BASE, "model.dtype": "float32", "adapter": adapter, "output": tmp_path / "out"}
    systems = f"[{{name: SFT, adapter: {adapter}, thresholds: true}}]"
    result = call("eval", demo / "configs/eval-sft.yaml", *sets(systems=systems, output=tmp_path / "eval", clips_shown=0))
    assert result.exit_code == 0, result.stderr
    export = ("export", "configs/export.yaml", *sets(**changes, system="SFT", evaluation=tmp_path / "eval"))
    result = call(*export)
    assert result.exit_code == 0, result.stderr
    release = tmp_path / "out/release"
    assert find_thresholds(find_adapter(release)) == Thresholds(0.3, {"sighs": 0.5})
    card = " ".join((release / "README.md").read_text("utf-8").split())
    assert "fitted on 12 clips of split `validation`; aim: the highest micro F1. The figures above are with them." in card
    assert "| micro F1 | 0.500 | 0.500 | 0.500 |" in card
    write_calibration(adapter / "adapter", replace(find_calibration(find_adapter(adapter)), clips=13))
    result = call(*export, "--overwrite")
    assert result.exit_code == 2
    assert "system 'SFT' of this evaluation has other thresholds than" in result.stderr
