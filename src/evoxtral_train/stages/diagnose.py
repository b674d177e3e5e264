"""`evoxtral diagnose`: whether a weak tag is the data's fault, the base's or the adapter's, and what to do. Needs no torch."""

from pathlib import Path

import numpy as np

from ..config.evaluation import DiagnoseConfig
from ..data.audio import read_audio
from ..data.prosody import describe_clip
from ..dataset.reader import PackedSplit
from ..errors import RowError, UsageError
from ..files import fingerprint_files, write_atomic
from ..jobs import Job
from ..modeling.acoustic_probe import heard_in_sound
from ..modeling.probe import LabelledClips, fittable
from ..progress import format_seconds, progress
from ..reading import read_record
from ..records import Prediction, read_rows
from ..reporting.diagnosis import ACOUSTICS, PROBE, last_lines, page
from ..runs import Options, require_complete, require_same_input
from ..scoring.diagnosis import diagnose
from ..text.tags import find_tags, format_tags
from .finished_runs import require_evaluation, require_probe
from .report import Report

_TRAIN = "train"


def run(config: DiagnoseConfig, options: Options) -> Report:
    """Writes `report.html`, its picture, `metrics.json`, and `predictions/acoustics.jsonl`."""
    job = Job("diagnose", config.output, config.model_dump(mode="json"), config, options)
    if options.dry_run:
        job.check()
        facts = {"probe": _state(config.probe, "probe")} | {f"eval {path}": _state(path, "eval") for path in config.evaluations}
        return Report("plan: diagnose", facts | {"output": config.output})
    # 1. What it reads: the same clips, heard by the probe and by adapters.
    inputs = {"probe": require_probe(config.probe)}
    about = read_record(config.probe / "config.yaml")
    split = PackedSplit(Path(about["dataset"]), about["split"])
    require_same_input(config.probe, "dataset", split.fingerprint, about["dataset"])
    probe = _predictions(config.probe, "probe")
    systems: dict[str, list[Prediction]] = {}
    for path in config.evaluations:
        inputs[f"eval {path}"] = require_evaluation(path)
        found = _systems(path, split)
        if taken := sorted({ACOUSTICS, PROBE} & found.keys()):
            what = f"the name {taken[0]!r} of a system is that of one of the two classifiers"
            raise UsageError(what, where=str(path), fix="rename the system, and evaluate it again")
        if twice := sorted(systems.keys() & found):
            raise UsageError(f"the name {twice[0]!r} is used for two systems", where=str(path), fix="rename one, or list one run")
        systems |= found
    diagnosed = _diagnosed(config, systems)
    systems[diagnosed] = systems.pop(diagnosed)  # the last
    clips = [row.id for row in probe]
    systems = {name: _in_order(rows, clips, name) for name, rows in systems.items()}
    with job.opened(inputs, [about["dataset"], config.probe, *config.evaluations]) as work:
        # 2. What the sound alone tells.
        train = PackedSplit(split.folder, _TRAIN)
        known = LabelledClips(_described(train, range(len(train))), [set(find_tags(example.text)) for example in train.examples])
        heard = heard_in_sound(known, _described(split, [split.index_of[clip] for clip in clips]))
        acoustics = [
            Prediction(row.id, row.reference, format_tags(list(tags)), confidences=list(tags.values()), speaker=row.speaker)
            for row, tags in zip(probe, heard, strict=True)
        ]
        work.run.write_rows("predictions/acoustics.jsonl", acoustics)
        # 3. Who hears what.
        fitted, _ = fittable(known.tags)
        listeners, tags = {ACOUSTICS: acoustics, PROBE: probe} | systems, {}
        for tag in sorted({tag for row in probe for tag in find_tags(row.reference)}):
            tags[tag] = diagnose(tag, listeners, config.bootstrap, config.heard_f1, fitted)
        # 4. The report.
        title = f"Why tags are weak: {diagnosed} on {split.split}"
        html, pictures = page(title, f"{len(clips)} clips. From {config.output}", tags)
        for name, png in pictures.items():
            write_atomic(work.path / f"{name}.png", png)
        write_atomic(work.path / "report.html", html)
        verdicts = {tag: row["verdict"] for tag, row in tags.items()}
        work.tracker.summary({"verdicts": verdicts})
        columns = ["tag", "clips", "verdict", *listeners]
        values = {tag: [measure["value"] for measure in row["f1"].values()] for tag, row in tags.items()}
        rows = [[tag, row["clips"], row["verdict"], *values[tag]] for tag, row in tags.items()]
        work.tracker.table("diagnosis", columns, rows)
        work.tracker.artifact(f"{config.output.name}-page", "report", [work.path / "report.html"])
        work.done({"system": diagnosed, "split": split.split, "tags": tags}, fingerprint_files([work.path / "report.html"]))
        facts = {"clips": f"{len(clips)} of split {split.split}", "diagnosed": diagnosed, "time": format_seconds(work.seconds())}
    facts["report"] = config.output / "report.html"
    return Report("diagnose", facts, table=last_lines(tags))


def _state(path: Path, stage: str) -> str:
    try:
        require_complete(path, stage, f"evoxtral {stage} …")
    except UsageError as error:
        return f"not there yet: {error}"
    return str(path)


def _predictions(folder: Path, system: str) -> list[Prediction]:
    return read_rows(folder / "predictions" / f"{system}.jsonl", Prediction)


def _systems(folder: Path, split: PackedSplit) -> dict[str, list[Prediction]]:
    """The predictions of an evaluation's systems, without filters, yardsticks and the base."""
    require_same_input(folder, "dataset", split.fingerprint, str(split.folder))
    about = read_record(folder / "config.yaml")
    if about["split"] != split.split:
        what = f"is an evaluation on {about['split']}, the probe was measured on {split.split}"
        raise UsageError(what, where=str(folder), fix="evaluate both on one split")
    filters = ("top_k", "min_confidence", "thresholds")
    own = [each["name"] for each in about["systems"]
           if (each["adapter"] or each["predictions"]) and not any(each[name] for name in filters)]  # fmt: skip
    return {name: _predictions(folder, name) for name in own}


def _diagnosed(config: DiagnoseConfig, systems: dict[str, list[Prediction]]) -> str:
    if not systems:
        raise UsageError("none of them measured an adapter without a filter", where="evaluations", fix="evaluate one")
    if config.system is not None and config.system not in systems:
        raise UsageError(f"{config.system!r} is none of {', '.join(systems)}", where="system", fix="name one of them")
    return config.system or list(systems)[-1]


def _in_order(rows: list[Prediction], clips: list[str], name: str) -> list[Prediction]:
    by_id = {row.id: row for row in rows}
    missing = [clip for clip in clips if clip not in by_id]
    if missing:
        what = f"system {name} has no answer for {len(missing)} of the probe's clips, the first is {missing[0]!r}"
        raise UsageError(what, where="evaluations", fix="evaluate it on the same clips")
    return [by_id[clip] for clip in clips]


def _described(split: PackedSplit, places) -> np.ndarray:
    """float32 [clips, features]. Raises UsageError when a clip's audio file is gone."""
    described = []
    with progress(f"listening to {split.split}", len(places), "clips") as bar:
        for place in places:
            try:
                described.append(describe_clip(read_audio(split.audio_of(place), float("inf"))))
            except RowError as error:
                fix = "put the recordings back where the manifest had them"
                raise UsageError(str(error), where=str(split.audio_of(place)), fix=fix) from None
            bar.advance(1)
    return np.stack(described)
