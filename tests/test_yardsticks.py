"""The two rows that systems are measured against: `chance`, exact; `probe`, on arrays and on spoken clips, through `eval`."""

import json
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import REPO, TINY_BASE, rows_of
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.modeling.audio_cache import LiveAudio
from evoxtral_train.modeling.pooling import pooled_audio
from evoxtral_train.modeling.probe import COSTS, LabelledClips, Probe
from evoxtral_train.records import Prediction, read_rows
from evoxtral_train.scoring.chance import best_constant_answer
from evoxtral_train.text.tags import find_tags, format_tags


def micro_f1(references: list[list[str]], answer: list[str] | str) -> float:
    matched = sum((Counter(tags) & Counter(answer)).total() for tags in references)
    size = sum(map(len, references)) + len(answer) * len(references)
    return 2 * matched / size if size else 0.0


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_no_constant_answer_is_better_than_chance(references):
    answer = best_constant_answer([format_tags(tags) for tags in references])
    # No clip has more than four tags of a name, and a fifth would never match.
    every = ["a" * first + "b" * second + "c" * third for first, second, third in product(range(5), repeat=3)]
    best = max(micro_f1(references, tags) for tags in every)
    assert micro_f1(references, answer) == best
    assert len(answer) == min(len(tags) for tags in every if micro_f1(references, tags) == best)


def test_chance_by_hand():
    # [a]: 3 of 4 clips, F1 6/9. [a] [b]: 2 × 5 / (8 + 5). [a] [a]: 2 × 4 / (8 + 5).
    assert best_constant_answer(["[a] x [b]", "[a] [a]", "[a] [b]", "x"]) == ["a", "b"]
    assert best_constant_answer(["[a] [a]", "[a] [a]"]) == ["a", "a"]
    assert best_constant_answer(["no tag", ""]) == []


def clips(seed: int, count: int = 300) -> tuple[np.ndarray, list[set[str]]]:
    """Vectors of 12 numbers whose signs are the tags."""
    features = np.random.default_rng(seed).normal(size=(count, 12))
    features[:, :3] += 0.3 * np.sign(features[:, :3])
    return features, [{"abc"[place] for place in range(3) if row[place] > 0} for row in features]


def test_the_probe_hears_what_a_plane_separates_and_nothing_in_shuffled_tags():
    train, validation, test = (LabelledClips(*clips(seed)) for seed in range(3))
    scaled = LabelledClips(train.features * 1000 + 5, train.tags)  # neither scale nor place of a feature matters
    best = Probe.fit_best(train, validation)
    assert best.micro_f1(test) > 0.99
    assert best.micro_f1(validation) == max(Probe.fit(train, cost).micro_f1(validation) for cost in COSTS)
    np.testing.assert_allclose(
        Probe.fit(scaled).probabilities(test.features * 1000 + 5), Probe.fit(train).probabilities(test.features), atol=1e-6
    )
    order = np.random.default_rng(3).permutation(300)
    shuffled = Probe.fit_best(LabelledClips(train.features, [train.tags[place] for place in order]), validation)
    constant = max(micro_f1(list(map(sorted, test.tags)), answer) for answer in ("a", "ab", "abc"))
    assert shuffled.micro_f1(test) < constant + 0.02


def test_what_the_probe_writes():
    probe = Probe(("a", "b", "c"), (), np.eye(3), np.zeros(3), 1.0)
    assert probe.heard(np.array([[1.0, 2.0, -1.0], [-1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]])) == [
        {"b": pytest.approx(0.8808, abs=1e-4), "a": pytest.approx(0.7311, abs=1e-4)}, {"c": 0.5}, {},
    ]  # fmt: skip
    assert list(probe.heard(np.array([[1.0, 2.0, 0.0]]))[0]) == ["b", "a", "c"], "the most probable first"


def test_a_tag_with_too_few_clips_is_never_written():
    features, tags = clips(0, 40)
    tags = [of_clip | {"always"} | ({"rare"} if place < 4 else set()) for place, of_clip in enumerate(tags)]
    probe = Probe.fit(LabelledClips(features, tags))
    assert (probe.tags, probe.too_rare) == (("a", "b", "c"), ("always", "rare"))
    none = Probe.fit(LabelledClips(features, [set()] * 40))
    assert (none.tags, none.heard(features[:2])) == ((), [{}, {}])


def test_a_clip_is_pooled_over_its_own_sound(packed, network):
    split = PackedSplit(packed["packed"], "test")
    live = LiveAudio(network, split)
    found = pooled_audio(live, split)
    assert found.shape == (6, 2 * 192)
    whole = live.embeddings([2], [int(split.row_tokens[2])])[0].numpy()
    sound = whole[32 : 32 + int(split.utterance_tokens[2])]
    np.testing.assert_allclose(found[2], [*sound.mean(0), *sound.std(0)], rtol=0, atol=1e-5)


YARDSTICKS = "{name: probe, yardstick: probe}, {name: chance, yardstick: chance}"


@pytest.fixture
def evaluate(call, tmp_path):
    """evoxtral eval of `systems` on a dataset -> the result, and the folder."""

    def evaluate(dataset, name: str = "eval", systems: str = YARDSTICKS, *overrides):
        sets = [f"dataset={dataset}", f"output={tmp_path / name}", f"systems=[{systems}]", f"model.base={TINY_BASE}"]
        sets += ["tracking.mode=disabled", "bootstrap.samples=50", "bootstrap.permutations=199", "decode.max_new_tokens=8"]
        call_sets = [part for each in (*sets, *overrides) for part in ("--set", each)]
        return call("eval", REPO / "configs/demo/eval-sft.yaml", *call_sets), tmp_path / name

    return evaluate


def written(folder, name: str) -> list[Prediction]:
    return read_rows(folder / f"predictions/{name}.jsonl", Prediction)


@pytest.mark.slow
def test_yardsticks_through_eval(evaluate, one_tag):
    systems = f"{{name: base}}, {YARDSTICKS}, {{name: mine, yardstick: probe, top_k: 1}}"
    result, folder = evaluate(one_tag("packed"), "packed", systems)
    assert result.exit_code == 0, result.stderr
    assert "1 of 3 tags fitted, C " in result.stdout
    assert "never written, as too few training clips have or lack them: [gasps] [laughs]" in result.stdout
    content = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert list(content["systems"]) == ["probe", "chance", "mine", "base"], "yardsticks first"
    assert content["yardsticks"] == ["probe", "chance", "mine"]
    assert content["comparisons"] == [], "yardsticks are compared with nobody"
    [answer] = {row.prediction for row in written(folder, "chance")}
    assert find_tags(answer) == best_constant_answer([row.reference for row in written(folder, "chance")])
    for row, first in zip(written(folder, "probe"), written(folder, "mine"), strict=True):
        assert len(row.confidences) == len(find_tags(row.prediction))
        assert row.confidences == sorted(row.confidences, reverse=True)
        assert min(row.confidences, default=1.0) >= 0.5
        assert find_tags(first.prediction) == find_tags(row.prediction)[:1]
    assert any(row.prediction for row in written(folder, "probe"))
    # The layout says where tags are written, not what is heard; nor does it matter whether the audio is cached.
    for name, dataset, override in (("cached", "deferred", "audio_cache=on"), ("live", "deferred", "audio_cache=off")):
        result, other = evaluate(one_tag(dataset), name, YARDSTICKS, override)
        assert result.exit_code == 0, result.stderr
        for one, two in zip(written(folder, "probe"), written(other, "probe"), strict=True):
            assert (one.id, one.prediction) == (two.id, two.prediction)
            assert one.confidences == pytest.approx(two.confidences, abs=2e-4)
        assert written(other, "chance") == written(folder, "chance")


def test_the_probe_needs_training_clips_that_are_not_measured(evaluate, packed, spoken, call, tmp_path, write_manifest):
    result, folder = evaluate(packed["deferred"], "train", YARDSTICKS, "split=train")
    assert result.exit_code == 2
    assert "split: the probe is fitted on 'train' itself" in result.stderr
    assert not folder.exists()
    result, _ = evaluate(packed["deferred"], "validation", YARDSTICKS, "split=validation")
    assert result.exit_code == 0, result.stderr
    assert "C 0.3" in result.stdout, "what is measured chooses nothing"

    held_out = write_manifest([row for row in rows_of(spoken) if row["split"] == "test"])
    sets = (f"manifest={held_out}", f"output={tmp_path / 'held-out'}", "target=tagged_text", "tracking.mode=disabled")
    result = call("data", "pack", REPO / "configs/demo/pack.yaml", *(part for each in sets for part in ("--set", each)))
    assert result.exit_code == 0, result.stderr
    result, folder = evaluate(tmp_path / "held-out", "none")
    assert result.exit_code == 2
    assert "the probe is fitted on the split 'train', which has no rows here" in result.stderr
    assert not folder.exists()
    result, folder = evaluate(tmp_path / "held-out", "words", "{name: chance, yardstick: chance}")
    assert result.exit_code == 0, result.stderr
    systems = json.loads((folder / "metrics.json").read_text("utf-8"))["systems"]
    assert list(systems) == ["chance", "base"]
    assert "wer" in systems["base"]
    assert "wer" not in systems["chance"], "it has no words to be wrong"


def test_a_system_is_one_thing(evaluate, packed):
    result, _ = evaluate(packed["deferred"], "two", "{name: two, yardstick: probe, adapter: runs/sft}")
    assert result.exit_code == 2
    assert "system 'two' is one thing, not adapter and yardstick" in result.stderr
