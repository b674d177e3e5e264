"""Scoring without references: the verifier's reward by hand and in expectation, files of probabilities, `evoxtral probe`, and
RAFT on clips whose text nobody reads."""

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from conftest import REPO, TINY_BASE
from evoxtral_train.config.loader import load_config
from evoxtral_train.config.training import RaftConfig
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.errors import ConfigError, UsageError
from evoxtral_train.raft import reward, verifier
from evoxtral_train.raft.detections import Detections
from evoxtral_train.raft.verifier import Unreferenced, score, weights_of, word_agreement
from evoxtral_train.records import Prediction, PreferencePair, ScoredCandidate, dump_row, iter_rows, read_rows
from evoxtral_train.stages import probe as probe_stage
from evoxtral_train.stages.raft.scoring import plan_scoring
from evoxtral_train.text.tags import find_tags, format_tags


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        ("[sighs]", 0.0),  # the best: 0.65. F1 0.8 × (0.7 + 0.3 × 2/3) = 0.72, extra 0.2, missing 0.3
        ("", -0.62),  # 0.03 − 0.65. F1 0.2 × 0.7, missing 1.1
        ("[sighs] [laughs]", -0.1766666667),  # F1 0.8 × (0.7 × 2/3 + 0.3 / 2) + 0.3 × (0.2 × 2/3 + 0.8 / 2), extra 0.9
        ("[sighs] [sighs]", -0.4266666667),  # F1 0.8 × (0.7 × 2/3 + 0.3 / 2), extra 1.2, missing 0.3
        ("[sighs] [gasps]", 0.0),  # the detector does not know gasps: no reward, no price
        ("[gasps] [gasps]", -0.96),  # but a copy is one too many: extra 1, missing 1.1
    ],
)
def test_the_reward_by_hand(candidate, expected):
    assert score(weights_of("tags"), Unreferenced(candidate, {"sighs": 0.8, "laughs": 0.3}))[0] == expected


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1), min_size=1),
    st.lists(st.sampled_from("abcd"), max_size=5),
)
@settings(deadline=None, max_examples=40)
def test_the_reward_is_that_of_profile_counts_in_expectation_below_the_best(probabilities, written):
    """Over all sets of tags that the clip may have; only tags that the detector knows are written here."""
    written = [tag for tag in written if tag in probabilities]
    weights, tags = reward.weights_of("counts", "tags"), list(probabilities)
    sets = [list(part) for part in chain.from_iterable(combinations(tags, size) for size in range(len(tags) + 1))]

    def expected(answer: list[str]) -> float:
        total = 0.0
        for present in sets:
            chance = math.prod(probabilities[tag] if tag in present else 1 - probabilities[tag] for tag in tags)
            total += chance * reward.score(weights, reward.Answer(format_tags(present), format_tags(answer), False))[0]
        return total

    found, components = score(weights_of("tags"), Unreferenced(format_tags(written), probabilities))
    assert found == pytest.approx(expected(written) - max(map(expected, sets)), abs=1e-8)
    assert 0 <= components["expected_tag_f1"] <= 1 + 1e-9
    once = Unreferenced(format_tags(sorted(set(written))), probabilities)
    assert found <= score(weights_of("tags"), once)[0] + 1e-9, "copies never pay"


def test_words_are_judged_by_the_other_candidates():
    others = ["I told you so", "[sighs] i told you no"]
    assert word_agreement(Unreferenced("I told you so.", {}, others)) == pytest.approx((1 + 0.75) / 2)
    assert word_agreement(Unreferenced("", {}, others)) == 0
    assert word_agreement(Unreferenced("alone", {})) == 1
    assert weights_of("tagged_text")["word_agreement"] == 0.4
    assert "word_agreement" not in weights_of("tags")
    assert set(weights_of("text")) == set(verifier.COMPONENTS)


def test_a_file_of_probabilities(tmp_path):
    path = tmp_path / "heard.jsonl"
    path.write_text('{"id": "b", "tags": {"Clears  Throat": 1, "sighs": 0.25}}\n{"id": "a", "tags": {}}\n{"id": "z", "tags": {}}')
    found = Detections.read(path, ["a", "b"], ["sighs", "laughs", "clears throat"])
    assert found.of("b") == {"clears throat": 1.0, "sighs": 0.25}
    assert found.of("a") == {"clears throat": 0.0, "sighs": 0.0}, "left out: not heard; laughs is never named: unknown"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a", "tags": {"sighs": NaN}}'], ":1: the probability of 'sighs' is nan, not a number from 0 to 1"),
        (['{"id": "a", "tags": {"sighs": 1.2}}'], ":1: the probability of 'sighs' is 1.2, not a number from 0 to 1"),
        (['{"id": "a", "tags": {"sighs": true}}'], ":1: the probability of 'sighs' is True, not a number"),
        (['{"id": "a", "tags": {"sigh": 0.1}}'], ":1: the dataset has no tag 'sigh', did you mean 'sighs'?"),
        (['{"id": "a", "tags": {"sighs": 0.1, "Sighs": 0.2}}'], ":1: the same tag is there twice, in another spelling"),
        (['{"id": "a", "tags": {"sighs": 0.1}}'] * 2, ":2: clip 'a' is there twice"),
        (['{"id": "a", "tags": [0.1]}'], ":1: a row needs `id`, a text, and `tags`, an object"),
        (['{"id": "a", "tags": {"sighs": 0.1}}'], ": 1 of 2 clips are missing, the first is 'b'"),
        (['{"id": "a", "tags": {}}', '{"id": "b", "tags": {}}'], ": no row names a tag"),
    ],
)
def test_bad_probabilities_are_refused_with_their_place(tmp_path, lines, message):
    path = tmp_path / "heard.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(UsageError) as caught:
        Detections.read(path, ["a", "b"], ["sighs"])
    assert f"{path}{message}" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["score.verifier=null"], "profile verifier needs `verifier`: a run of"),
        (["gate.measure=reward"], "the verifier would judge its own choice"),
        (["score.weights.tag_f1=2"], "weights of profile verifier are fixed"),
    ],
)
def test_configs_that_make_no_sense(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(REPO / "configs/demo/raft.yaml", RaftConfig, overrides)


@pytest.mark.parametrize("kind", ["deferred", pytest.param("transcription_request", marks=pytest.mark.slow)])
def test_a_probe_through_the_command_line(one_tag, probed, kind):
    folder, dataset = probed(kind), one_tag(kind)
    printed = (folder.parent / "stdout.txt").read_text("utf-8")
    assert "1 of 3 can be fitted" in printed
    assert "[gasps] [laughs]: fewer than 5 training clips have or lack them" in printed
    for name, count in (("raft", 4), ("validation", 6)):
        detections = Detections.read(folder / f"probabilities/{name}.jsonl", PackedSplit(dataset, name).index_of, ["sighs"])
        assert detections.probabilities.shape == (count, 1)
    metrics, split = json.loads((folder / "metrics.json").read_text("utf-8")), PackedSplit(dataset, "test")
    has_tag = ["sighs" in find_tags(example.text) for example in split.examples]
    assert metrics["tags"]["sighs"]["clips"] == sum(has_tag)
    assert metrics["calibration"]["tags"] == 6
    rows = read_rows(folder / "predictions/probe.jsonl", Prediction)
    matched = sum("sighs" in find_tags(row.prediction) and "sighs" in find_tags(row.reference) for row in rows)
    tags = sum((find_tags(row.prediction) + find_tags(row.reference)).count("sighs") for row in rows)
    assert metrics["tags"]["sighs"]["f1"]["value"] == pytest.approx(2 * matched / tags)
    assert load_file(folder / "probe.safetensors")["weights"].shape[1] == 1
    assert "Can its probabilities be trusted?" in (folder / "report.html").read_text("utf-8")


def test_a_probe_that_cannot_be_fitted_is_refused(call, packed, probed, monkeypatch, tmp_path):
    def probe(*overrides: str):
        sets = [f"dataset={packed['deferred']}", f"output={tmp_path / 'probe'}", f"model.base={TINY_BASE}", *overrides]
        return call("probe", REPO / "configs/demo/probe.yaml", *(part for each in sets for part in ("--set", each)), "--dry-run")

    result = probe()
    assert result.exit_code == 2
    assert "no tag can be fitted: each is on fewer than 5 clips of split train" in result.stderr
    assert "its probabilities there are too good: remove train" in probe("probabilities=[train]").stderr
    assert "this run is finished" in probe(f"output={probed('deferred')}").stderr
    monkeypatch.setattr(probe_stage, "has_split", lambda folder, split: split != "raft")
    assert f"probabilities: the dataset {packed['deferred']} has no split 'raft' — set it to []" in probe().stderr
    assert not (tmp_path / "probe").exists()


def test_a_probe_does_not_score_the_clips_that_it_was_fitted_on(one_tag, probed, tmp_path):
    train = PackedSplit(one_tag("deferred"), "train")
    sets = ["split=train", f"dataset={train.folder}", "score.profile=verifier", "gate.measure=micro_f1"]

    def plan(path) -> dict:
        config = load_config(REPO / "configs/demo/raft.yaml", RaftConfig, [*sets, f"score.verifier={path}"])
        return plan_scoring(config, train)[0]

    with pytest.raises(UsageError, match="split: the probe .* was fitted on train, .*set `split` to another, such as raft"):
        plan(probed("deferred"))
    assert "does not exist yet" in (planned := plan(tmp_path / "probe")["verifier"])
    assert "set `split` to another, such as raft" in planned


def test_raft_without_text(demo, raft, monkeypatch, tmp_path):
    """The same scores, curated rows and pairs, byte by byte, when nobody knows the text. Of a mixture, each clip by its rule."""
    split = PackedSplit(demo / "runs/packed", "raft")
    draw, heard = np.random.default_rng(0), tmp_path / "heard.jsonl"
    rows = [{"id": clip, "tags": dict(zip(split.tags[:10], draw.random(10).tolist(), strict=True))} for clip in split.index_of]
    heard.write_text("".join(map(dump_row, rows)), "utf-8")
    by_verifier = ["--set", f"score.verifier={heard}", "--set", "score.profile=verifier", "--set", "gate.measure=micro_f1"]
    by_counts = ["--set", "score.profile=counts"]
    folder = raft.folder / "round-1"

    def scores(*settings) -> list[ScoredCandidate]:
        result = raft("score", "--overwrite", *settings)
        assert result.exit_code == 0, result.stderr
        return read_rows(folder / "scores/scores.jsonl", ScoredCandidate)

    def results(*settings) -> list[bytes]:
        scores(*settings)
        for step in ("curate", "pairs"):
            result = raft(step, "--overwrite", *settings)
            assert result.exit_code == 0, result.stderr
        return [(folder / name).read_bytes() for name in ("scores/scores.jsonl", "curated/curated.jsonl", "pairs/pairs.jsonl")]

    counted, labelled = scores(*by_counts), results(*by_verifier)
    verified = read_rows(folder / "scores/scores.jsonl", ScoredCandidate)
    assert {row.profile for row in verified} == {"verifier"}
    (folder / "scores").rename(folder / "scores.partial")  # as if it had been stopped at the end
    (folder / "scores.partial/complete.json").unlink()
    resumed = raft("score", "--resume", "--dry-run", *by_verifier)
    assert resumed.exit_code == 0, resumed.stderr
    results(*by_verifier)
    for pair in iter_rows(folder / "pairs/pairs.jsonl", PreferencePair):
        assert (pair.profile, pair.chosen_reward > pair.rejected_reward) == ("verifier", True)
    plan = raft("generate", "--dry-run", *by_verifier, "--set", f"output={tmp_path / 'other'}")
    assert "verifier: 1 × expected_tag_f1 − 0.2 × expected_extra_tags − 0.1 × expected_missing_tags" in plan.stdout
    assert f"{format_tags(sorted(split.tags[10:]))}: unknown to the verifier" in plan.stdout

    def blank(share: int) -> None:
        """Remove the text of every `share`th clip, as if nobody had ever written it."""
        real = PackedSplit.__init__

        def unlabelled(self, *arguments):
            real(self, *arguments)
            gone = dict.fromkeys(("text", "target_text", "target_ids"))
            if self.split == "raft":
                self.examples = [
                    replace(example, **gone) if place % share == 0 else example for place, example in enumerate(self.examples)
                ]
                self.labelled = np.array([example.labelled for example in self.examples])

        monkeypatch.setattr(PackedSplit, "__init__", unlabelled)

    with monkeypatch.context():
        blank(1)
        assert results(*by_verifier) == labelled
        refused = raft("generate", "--overwrite", *by_counts)
        assert refused.exit_code == 2
        assert "score.verifier: 24 clips of split raft have no text, and profile counts needs one" in refused.stderr
    monkeypatch.undo()
    blank(2)
    mixed = scores(*by_counts, "--set", f"score.verifier={heard}")
    unlabelled = set(list(split.index_of)[::2])
    assert mixed == [
        by_text if by_text.utterance_id not in unlabelled else by_sound
        for by_text, by_sound in zip(counted, verified, strict=True)
    ]
    assert Counter(row.profile for row in mixed) == {"counts": 24, "verifier": 24}
    metrics = json.loads((folder / "scores/metrics.json").read_text("utf-8"))["profiles"]
    assert {profile: measured["clips"] for profile, measured in metrics.items()} == {"counts": 12, "verifier": 12}
