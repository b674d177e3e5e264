"""Why a tag is weak: the verdicts, and `evoxtral diagnose` on spoken clips."""

import json

import numpy as np
import pytest

from conftest import REPO, TINY_BASE
from evoxtral_train.config.evaluation import Bootstrap, EvalConfig, System
from evoxtral_train.config.sections import Model
from evoxtral_train.data.prosody import describe_clip
from evoxtral_train.dataset.reader import PackedSplit
from evoxtral_train.files import fingerprint_files
from evoxtral_train.records import Prediction
from evoxtral_train.runs import Options, Run
from evoxtral_train.scoring.diagnosis import diagnose, verdict
from evoxtral_train.text.tags import find_tags, format_tags


def f1(low: float | None, high: float | None) -> dict:
    return {"value": None if low is None else (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("lost", "adapter", "probes", "expected"),
    [
        ({"adapter"}, f1(0.5, 0.7), f1(0.9, 1.0), "adapter"),
        ({"adapter"}, f1(0.7, 0.8), f1(0.9, 1.0), "fine"),  # also where a probe finds more
        ({"adapter", "base", "both"}, f1(0.1, 0.2), f1(0.9, 1.0), "adapter"),  # the nearest cause first
        ({"base", "both"}, f1(0.1, 0.2), f1(0.9, 1.0), "base"),
        ({"base"}, f1(0.7, 0.9), f1(0.9, 1.0), "fine"),  # the adapter finds what a linear probe does not
        (set(), f1(0.61, 0.9), f1(0.2, 0.9), "fine"),
        (set(), f1(0.1, 0.5), f1(0.1, 0.59), "data"),
        (set(), f1(0.1, 0.61), f1(0.1, 0.5), "unclear"),  # it may be heard
        (set(), f1(0.1, 0.5), f1(None, None), "unclear"),
    ],
)
def test_verdicts(lost, adapter, probes, expected):
    assert verdict(lost, adapter, (probes, probes), 0.6, fitted=True) == expected


def test_a_tag_without_a_classifier_is_not_called_inaudible():
    silent = (f1(0.0, 0.0), f1(0.0, 0.0))
    assert verdict(set(), f1(0.1, 0.5), silent, 0.6, fitted=False) == "rare"
    assert verdict(set(), f1(0.7, 0.9), silent, 0.6, fitted=False) == "fine"


def test_a_tag_that_the_adapter_does_not_write_is_lost_by_it_and_chance_is_not():
    right = [Prediction(f"{number}", *(["[sad]" if number < 12 else ""] * 2)) for number in range(40)]
    deaf = [Prediction(row.id, row.reference, "") for row in right]
    once = [Prediction(row.id, row.reference, "" if row.id == "0" else row.prediction) for row in right]
    settings = Bootstrap(samples=200, permutations=999), 0.6, ["sad"]
    found = diagnose("sad", {"sound": right, "probe": right, "adapter": deaf}, *settings)
    assert (found["clips"], found["verdict"], found["f1"]["adapter"]["value"]) == (12, "adapter", 0.0)
    assert (found["lost"]["adapter"]["value"], found["lost"]["base"]["value"]) == (1.0, 0.0)
    assert diagnose("sad", {"sound": right, "probe": deaf, "adapter": deaf}, *settings)["verdict"] == "base"
    assert diagnose("sad", {"sound": deaf, "probe": deaf, "adapter": deaf}, *settings)["verdict"] == "data"
    assert diagnose("sad", {"sound": right, "probe": right, "adapter": once}, *settings)["verdict"] == "fine"


def test_a_description_follows_pitch_and_loudness_and_survives_silence():
    times = np.arange(16_000) / 16_000
    low, high = (0.3 * np.sin(2 * np.pi * hertz * times).astype(np.float32) for hertz in (110, 220))
    pitch, loudness = 6, 0  # the first features of their tracks: means
    described = {name: describe_clip(samples) for name, samples in {"low": low, "high": high, "soft": 0.1 * low}.items()}
    assert described["high"][pitch] - described["low"][pitch] == pytest.approx(1.0, abs=0.02), "an octave"
    assert described["low"][loudness] - described["soft"][loudness] == pytest.approx(20.0, abs=0.1), "in dB"
    for samples in (np.zeros(16_000, np.float32), np.zeros(1, np.float32), 0.1 * np.ones(200, np.float32)):
        assert np.isfinite(describe_clip(samples)).all()


def test_a_diagnosis_through_the_command_line(call, one_tag, probed, tmp_path):
    def diagnosis(*more: str):
        sets = [f"output={tmp_path / 'diagnose'}", f"evaluations=[{tmp_path / 'eval'}]", f"probe={probed('deferred')}"]
        sets += ["bootstrap.samples=50", "bootstrap.permutations=199", "tracking.mode=disabled", *more]
        return call("diagnose", REPO / "configs/demo/diagnose.yaml", *(part for each in sets for part in ("--set", each)))

    early = diagnosis()
    assert early.exit_code == 2
    assert "first run: evoxtral eval …" in early.stderr
    split = PackedSplit(one_tag("deferred"), "test")
    rows = list(split.examples)

    def evaluation(folder: str, name: str) -> None:
        systems = [System(name=name, predictions=tmp_path / "mute.jsonl")]
        config = EvalConfig(output=tmp_path / folder, dataset=split.folder, model=Model(base=str(TINY_BASE)), systems=systems)
        made = Run.open(config.output, "eval", config.model_dump(mode="json"), {"dataset": split.fingerprint}, Options())
        made.write_rows(f"predictions/{name}.jsonl", [Prediction(row.id, row.text, "") for row in rows])
        made.write_text("table.md", "")
        made.finish({}, fingerprint_files([made.path / "table.md", made.path / f"predictions/{name}.jsonl"]))

    evaluation("eval", "mute")
    evaluation("named-alike", "frozen audio")
    alike = diagnosis(f"evaluations=[{tmp_path / 'named-alike'}]")
    assert (alike.exit_code, "the name 'frozen audio' of a system is that of one of" in alike.stderr) == (2, True)
    result = diagnosis()
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "diagnose/metrics.json").read_text("utf-8"))
    present = {tag for row in rows for tag in find_tags(row.text)}
    assert metrics["tags"].keys() == present
    assert {tag for tag in present if metrics["tags"][tag]["verdict"] == "rare"} == present - {"sighs"}
    assert list(metrics["tags"]["sighs"]["f1"]) == ["acoustic features", "frozen audio", "mute"]
    verdicts = {row["verdict"] for row in metrics["tags"].values()}
    assert all(f"{name}: " in result.stdout for name in verdicts)
    assert format_tags(["sighs"]) in (tmp_path / "diagnose/report.html").read_text("utf-8")
    other = diagnosis("system=SFT", f"output={tmp_path / 'other'}")
    assert (other.exit_code, "system: 'SFT' is none of mute" in other.stderr) == (2, True)
    with (tmp_path / "eval/predictions/mute.jsonl").open("a") as file:
        file.write("\n")
    edited = diagnosis(f"output={tmp_path / 'other'}")
    assert (edited.exit_code, "was edited after it was made" in edited.stderr) == (2, True)
