"""`evoxtral calibrate`: fit the confidence that each tag needs to be kept, and write it beside the adapter."""


from .. import processes
from ..config.evaluation import CalibrateConfig
from ..dataset.reader import PackedSplit
from ..errors import UsageError
from ..families.base import Network
from ..files import fingerprint_files, write_atomic
from ..modeling.adapter_thresholds import THRESHOLDS, Calibration, write_calibration
from ..modeling.adapters import Adapter
from ..modeling.bases import Base, open_adapter, open_base_of
from ..records import Prediction, read_rows
from ..reporting import plots
from ..reporting.tables import aligned_table
from ..runs import Options, Run, check_plan
from ..scoring.calibration import filter_curves
from ..scoring.tag_filter import NEVER, Thresholds
from ..scoring.thresholds import FOLDS, ONE, Fitted, fit
from ..tracking import Tracker
from .greedy import decode_greedily
from .plans import plan_adapter, plan_decoded_audio, plan_decoding, plan_labelled, plan_model
from .report import Report

_PREDICTIONS = "predictions.jsonl"


def run(config: CalibrateConfig, options: Options) -> Report:
    """Writes `thresholds.json` into the adapter's folder, and to the run's own folder with `predictions.jsonl` and `filters.png`.

    A resumed run does not decode again. Raises UsageError if the split was trained on, or has too little to fit on.
    """
    settings = config.model_dump(mode="json")
    if config.split == "train":
        what = "thresholds fitted on clips that the adapter was trained on do not hold for others"
        raise UsageError(what, where="split", fix="use validation")
    facts = {"adapter": config.adapter, "clips": plan_labelled(config.dataset, config.split)}
    facts["aim"] = _aim(config)
    if options.dry_run:
        check_plan(config.output, "calibrate", settings, options)
        facts |= plan_model(config.model) | plan_decoding(config.model, config.decode.batch_tokens)
        facts |= plan_decoded_audio(config, [config.adapter])
        return Report("plan: calibrate", facts | plan_adapter(config.adapter) | {"output": config.output})
    processes.join(config.model.device)
    split = PackedSplit(config.dataset, config.split)
    base = open_base_of(split, config.model)
    adapter = open_adapter(config.adapter, base, config.model)
    inputs = {"dataset": split.fingerprint, "base": base.fingerprint, "adapter": adapter.fingerprint}
    sources = [config.dataset, base.family.folder, config.adapter]
    run = processes.first(lambda: Run.open(config.output, "calibrate", settings, inputs, options, sources))
    with Tracker(config.tracking, "calibrate", run.path, config) as tracker:
        if not processes.first((run.path / _PREDICTIONS).is_file):
            network = base.family.load(config.model.dtype)
            rows = _decode(config, network, base, split, adapter)
            processes.first(lambda: run.write_rows(_PREDICTIONS, rows))
        fitted = processes.first(lambda: _fit(config, run, split, adapter, tracker))
    metrics = {"shared": "none" if fitted.shared is None else "one" if fitted.shared == ONE else fitted.shared}
    metrics |= {"thresholds": fitted.thresholds.as_json()}
    metrics |= {"before": fitted.before, "after": fitted.after, "held_out": fitted.held_out}
    processes.first(lambda: run.finish(metrics, fingerprint_files([run.path / THRESHOLDS])))
    facts |= {
        "before": _sentence(fitted.before),
        "after": f"{_sentence(fitted.after)}; on the clips that they were fitted on",
        "held out": f"{_sentence(fitted.held_out)}; {FOLDS}-fold cross-validation",
        "thresholds": _thresholds(fitted),
        "written": adapter.folder / THRESHOLDS,
    }
    own = sorted(fitted.thresholds.by_tag.items())
    table = aligned_table(["tag", "threshold"], [[tag, _threshold(value)] for tag, value in own]) if own else ""
    return Report("calibrate", facts, table=table)


def _decode(config: CalibrateConfig, network: Network, base: Base, split: PackedSplit, adapter: Adapter) -> list[Prediction]:
    written = decode_greedily(config, network, base, split, [config.adapter], {config.adapter: adapter})[config.adapter]
    return [written[example.id].prediction_of(example) for example in split.labelled_examples()]


def _fit(config: CalibrateConfig, run: Run, split: PackedSplit, adapter: Adapter, tracker: Tracker) -> Fitted:
    """Fit, and write all files: the one beside the adapter last."""
    rows = read_rows(run.path / _PREDICTIONS, Prediction)
    try:
        fitted = fit(rows, config.false_tags_per_untagged_clip_max, config.seed)
    except ValueError as error:
        where = f"split {config.split} of {config.dataset}"
        raise UsageError(f"no thresholds can be fitted: {error}", where=where, fix="use a split with more clips") from None
    calibration = Calibration(
        adapter.fingerprint, split.fingerprint, config.split, len(rows), _aim(config), fitted.thresholds.as_json(),
        fitted.before, fitted.after, fitted.held_out,
    )  # fmt: skip
    write_atomic(run.path / "filters.png", _picture(rows))
    tracker.summary({"before": fitted.before, "after": fitted.after, "held_out": fitted.held_out})
    write_calibration(run.path, calibration)
    write_calibration(adapter.folder, calibration)
    return fitted


def _picture(rows: list[Prediction]) -> bytes:
    """Micro F1, precision and recall of one threshold for all tags, over the threshold."""
    points = filter_curves(rows)["least confidence"]
    names = {"f1": "micro F1", "precision": "micro precision", "recall": "micro recall"}
    series = {
        title: [(point["setting"], point[name]) for point in points if point[name] is not None] for name, title in names.items()
    }
    return plots.lines(series, "one threshold for all tags", "share", unit_square=True)


def _aim(config: CalibrateConfig) -> str:
    most = config.false_tags_per_untagged_clip_max
    return "the highest micro F1" + ("" if most is None else f" with at most {most:g} false tags per untagged clip")


def _sentence(measured: dict[str, float | None]) -> str:
    names = {"micro_f1": "micro F1", "micro_precision": "precision", "micro_recall": "recall"}
    parts = [f"{title} {measured[name]:.3f}" for name, title in names.items() if measured[name] is not None]
    false_tags = measured["false_tags_per_untagged_clip"]
    return ", ".join(parts + ([] if false_tags is None else [f"{false_tags:.3f} false tags per untagged clip"]))


def _thresholds(fitted: Fitted) -> str:
    if fitted.thresholds == Thresholds():
        return "none: these tags are best kept as they are"
    if not fitted.thresholds.by_tag:
        return f"{_threshold(fitted.thresholds.default)} for all tags; own ones did no better on held-out clips"
    return f"own ones for {len(fitted.thresholds.by_tag)} tags, {_threshold(fitted.thresholds.default)} for others"


def _threshold(value: float) -> str:
    return "never kept" if value == NEVER else f"{value:.2f}"
