"""`evoxtral probe`: a linear classifier on the frozen audio embeddings, its report, and the probabilities that score clips
without text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import numpy as np

from .. import processes
from ..config.evaluation import ProbeConfig, System
from ..config.sections import Placement
from ..dataset.reader import Example, PackedSplit, has_split
from ..decoding.greedy import Written
from ..errors import UsageError
from ..files import fingerprint_files
from ..jobs import Job, Work
from ..modeling.bases import open_base_of
from ..modeling.probe import FEWEST_CLIPS, Probe, fittable
from ..progress import format_seconds
from ..records import Prediction
from ..reporting.probe import own_sections, tag_table
from ..reporting.results import Evaluation, Training
from ..reporting.text import last_lines, markdown
from ..run_folders import is_complete
from ..runs import Options
from ..scoring.calibration import reliability_of
from ..scoring.chance import best_constant_answer
from ..scoring.confusion import errors
from ..scoring.summary import summarize
from ..text.tags import find_tags, format_tags
from ..text.taxonomy import Taxonomy
from .finished_runs import probe_files
from .plans import count_packed_rows, plan_labelled, plan_model
from .report import Report
from .report_pages import clip_audio, write_page
from .yardsticks import TRAIN, PooledClips, check_probe, fit_probe, probe_writes

_DIGITS = 4  # beyond these, rounding depends on the batch
_PROBE = "probe.safetensors"
_SYSTEMS = [System(name="chance", yardstick="chance"), System(name="probe")]


def run(config: ProbeConfig, options: Options) -> Report:
    """Writes `probe.safetensors`, `probabilities/<split>.jsonl`, `predictions/`, `metrics.json`, `table.md` and `report.html`
    with its pictures. Reads the text of the splits train, validation and `split`, and of no other."""
    job = Job("probe", config.output, config.model_dump(mode="json"), config, options)
    if options.dry_run:
        return _plan(job, config)
    # 1. What it reads.
    processes.join(config.model.device)
    taxonomy = Taxonomy.load(config.tags_table)
    tags = _require_tags(config)
    split = PackedSplit(config.dataset, config.split)
    measured = split.describe_labelled()
    labelled = [(place, example) for place, example in enumerate(split.examples) if example.labelled]
    judged = {name: PackedSplit(config.dataset, name) for name in config.probabilities}
    base = open_base_of(split, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint}
    with job.shared(inputs, [config.dataset, base.family.folder]) as work:
        # 2. The clips as vectors, and the probe.
        clips = PooledClips(config, base.family.load(config.model.dtype), base)
        probe = fit_probe(config, clips, config.split)
        fitted_s = work.seconds()
        processes.first(lambda: probe.save(work.path / _PROBE))
        for name, of_split in judged.items():
            rows = _probabilities(probe, clips.vectors(name), of_split)
            processes.first(partial(work.run.write_rows, f"probabilities/{name}.jsonl", rows))
        # 3. What it hears.
        vectors = clips.vectors(config.split)[[place for place, _ in labelled]]
        heard = _Heard(probe, vectors, [example for _, example in labelled])
        table = processes.first(lambda: _write(config, work, heard, split, taxonomy))
    # 4. The report.
    facts = _facts(config, measured, tags) | {
        "regularisation": f"C {probe.cost:g}",
        "model, audio and fit": format_seconds(fitted_s),
        "time": format_seconds(work.seconds()),
        "report": config.output / "report.html",
    }
    return Report("probe", facts, table=table)


def _plan(job: Job, config: ProbeConfig) -> Report:
    job.check()
    tags = _require_tags(config) if is_complete(config.dataset) else None
    facts = _facts(config, plan_labelled(config.dataset, config.split), tags)
    facts |= {f"clips, {name}": count_packed_rows(config.dataset, name) for name in config.probabilities}
    return Report("plan: probe", facts | plan_model(config.model) | {"output": config.output})


def _facts(config: ProbeConfig, measured: str, tags: tuple[list[str], list[str]] | None) -> dict:
    facts = {"fitted on": f"split {TRAIN}", "measured on": measured}
    if tags is not None:
        fitted, too_rare = tags
        facts["tags"] = f"{len(fitted)} of {len(fitted) + len(too_rare)} can be fitted"
        if too_rare:
            facts["never heard"] = f"{format_tags(too_rare)}: fewer than {FEWEST_CLIPS} training clips have or lack them"
    return facts | {"probabilities": ", ".join(config.probabilities) or "none"}


def _require_tags(config: ProbeConfig) -> tuple[list[str], list[str]]:
    """`fittable` of the training clips. Raises UsageError if there are no such clips, no such tag, or no clips of a split in
    `probabilities`."""
    check_probe(config)
    for name in config.probabilities:
        if not has_split(config.dataset, name):
            fix = "set it to [], or name splits that the dataset has"
            raise UsageError(f"the dataset {config.dataset} has no split {name!r}", where="probabilities", fix=fix)
    tags = fittable([find_tags(example.text) for example in PackedSplit(config.dataset, TRAIN).examples])
    if not tags[0]:
        what = f"no tag can be fitted: each is on fewer than {FEWEST_CLIPS} clips of split {TRAIN}, or on nearly all of them"
        raise UsageError(what, where=str(config.dataset), fix="label more clips")
    return tags


def _probabilities(probe: Probe, vectors: np.ndarray, split: PackedSplit) -> Iterator[dict]:
    """The rows of `probabilities/<split>.jsonl`: {id, tags: {tag: probability}}, with every fitted tag."""
    for clip, row in zip(split.index_of, probe.probabilities(vectors).round(_DIGITS).tolist(), strict=True):
        yield {"id": clip, "tags": dict(zip(probe.tags, row, strict=True))}


@dataclass(frozen=True)
class _Heard:
    """`vectors` [clips, features] of labelled clips, and the clips."""

    probe: Probe
    vectors: np.ndarray
    examples: Sequence[Example]

    def predictions(self) -> dict[str, list[Prediction]]:
        """Of each system: what the probe hears, and the best constant answer."""
        constant = Written(format_tags(best_constant_answer([example.text for example in self.examples])))
        written = zip(probe_writes(self.probe, self.vectors), self.examples, strict=True)
        return {
            "chance": [constant.prediction_of(example) for example in self.examples],
            "probe": [of_clip.prediction_of(example) for of_clip, example in written],
        }

    def judged(self) -> dict[str, list[tuple[float, bool]]]:
        """tag -> (its probability, whether the clip has it), for every clip."""
        clips_tags = [set(find_tags(example.text)) for example in self.examples]
        columns = self.probe.probabilities(self.vectors).T.tolist()
        return {
            tag: [(value, tag in tags) for value, tags in zip(column, clips_tags, strict=True)]
            for tag, column in zip(self.probe.tags, columns, strict=True)
        }


def _write(config: ProbeConfig, work: Work, heard: _Heard, split: PackedSplit, taxonomy: Taxonomy) -> str:
    """Measure, and write all other files; returns the last lines to print."""
    rows, judged = heard.predictions(), heard.judged()
    reports = {name: summarize(of_system, False, taxonomy, config.bootstrap, Placement()) for name, of_system in rows.items()}
    by_tag = {tag: _tag_row(tag, of_tag, reports["probe"]) for tag, of_tag in judged.items()}
    calibration = reliability_of([pair for of_tag in judged.values() for pair in of_tag])
    evaluation = Evaluation(
        f"Probe on {config.split}", str(config.output), _SYSTEMS, reports, rows, [], [], False, Training(),
        lambda identity: clip_audio(split, identity), config.clips_shown,
    )  # fmt: skip
    for name, of_system in rows.items():
        work.run.write_rows(f"predictions/{name}.jsonl", of_system)
    work.run.write_text("table.md", markdown(evaluation))
    pictures = write_page(work.path, evaluation, own_sections(by_tag, calibration, reports["probe"]["confusion"]["tags"]))
    metrics = {
        "split": config.split, "systems": reports, "cost": heard.probe.cost, "too_rare": list(heard.probe.too_rare),
        "tags": by_tag, "calibration": calibration, "seconds": work.seconds(),
    }  # fmt: skip
    tracker, name = work.tracker, config.output.name
    tracker.summary({"probe": reports["probe"], "cost": heard.probe.cost, "expected_error": calibration["expected_error"]})
    columns = ["tag", "clips", "f1", "expected_error", "mean_probability", "share"]
    table = [[tag, row["clips"], row["f1"]["value"], *(row[column] for column in columns[3:])] for tag, row in by_tag.items()]
    tracker.table("probe/per_tag", columns, table)
    tracker.artifact(f"{name}-tables", "report", [work.path / "table.md", *pictures])
    tracker.media_artifact(f"{name}-page", "report", [work.path / "report.html"])
    tracker.artifact(f"{name}-probe", "probe", [work.path / _PROBE])
    tracker.media_artifact(f"{name}-probabilities", "probe", sorted(work.path.glob("probabilities/*.jsonl")))
    work.done(metrics, fingerprint_files(probe_files(work.path)))
    files = [config.output / name for name in ("table.md", "metrics.json", "report.html")]
    return f"{tag_table(by_tag)}\n\n{last_lines(evaluation, files)}"


def _tag_row(tag: str, judged: Sequence[tuple[float, bool]], report: dict) -> dict:
    """What the probe's metrics say about a tag. `error`: what was heard instead most often, if anything was."""
    missed = [error for error in errors(report["confusion"]["tags"]) if error[0] == tag]
    row = report["per_tag"].get(tag, dict.fromkeys(("f1", "f1_low", "f1_high")) | {"support": 0, "predicted": 0})
    return {
        "clips": sum(has_tag for _, has_tag in judged),
        "f1": {"value": row["f1"], "low": row["f1_low"], "high": row["f1_high"]},
        "expected_error": reliability_of(judged)["expected_error"],
        "mean_probability": fmean(value for value, _ in judged),
        "share": fmean(has_tag for _, has_tag in judged),
        "error": {"heard": missed[0][1], "times": missed[0][2], "of": row["support"]} if missed else None,
    }
