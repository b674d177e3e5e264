"""`evoxtral export`: an adapter with a model card made only from the records of its runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.evaluation import ExportConfig
from ..errors import EvoxtralError, UsageError
from ..families.checkpoint import family_for, family_named
from ..files import fingerprint_files, write_atomic
from ..modeling.adapter_record import FILE as RECORD
from ..modeling.adapter_record import AdapterRecord
from ..modeling.adapter_thresholds import THRESHOLDS, Calibration, find_calibration, write_calibration
from ..modeling.adapters import Adapter, check_base, find_adapter
from ..modeling.bases import Base, open_base
from ..modeling.release import write_merged, write_vllm_names
from ..plain_text import without_places
from ..reading import read_record
from ..records import read_jsonl
from ..reporting.model_card import Evaluated, ModelCard, Trained, model_card, public_name
from ..runs import Options, Run, check_plan, read_run, require_complete
from ..tracking import Tracker
from .report import Report


def run(config: ExportConfig, options: Options) -> Report:
    """Writes the adapter's files and `README.md`; on request also `merged/` and `vllm/`, and pushes to the hub.

    Raises UsageError if the evaluation is of another adapter, or the adapter is for another base.
    """
    resolved = config.model_dump(mode="json")
    adapter = find_adapter(config.adapter)
    if adapter.method == "full" and config.vllm_names:
        raise UsageError("a full model has no adapter to rename", where="vllm_names", fix="set it to false")
    evaluated, calibration = _evaluated(config, adapter), find_calibration(adapter)
    facts: dict[str, Any] = {"adapter": config.adapter, "output": config.output}
    facts["figures"] = f"{config.system} of {config.evaluation}" if evaluated else "none: no evaluation was given"
    if config.format == "mistral":
        family_for(config.model.base, config.model.revision, config.model.family)[0].require_mistral_format()
    if options.dry_run:
        check_plan(config.output, "export", resolved, options)
        return Report("plan: export", facts | {"push to": config.push_to or "nowhere"})
    base = open_base(config.model)
    check_base(adapter, base.fingerprint, config.model.base)
    inputs = {"adapter": adapter.fingerprint, "base": base.fingerprint}
    if config.evaluation:
        inputs["evaluation"] = require_complete(config.evaluation, "eval", "evoxtral eval …")
    run = Run.open(config.output, "export", resolved, inputs, options, [config.adapter, config.evaluation, base.family.folder])
    with Tracker(config.tracking, "export", run.path, config) as tracker:
        release = run.path / "release"
        release.mkdir(exist_ok=True)
        if adapter.method == "full":
            shutil.copytree(adapter.folder, release, ignore=shutil.ignore_patterns(THRESHOLDS), dirs_exist_ok=True)
        else:
            _copy_adapter(adapter, config.model.base, release)
        if calibration:  # the release's config, and so its fingerprint, is not the run's
            write_calibration(release, replace(calibration, adapter=find_adapter(release).fingerprint))
            facts["thresholds"] = config.output / "release" / THRESHOLDS
        write_atomic(release / "README.md", _card(config, base, adapter, evaluated, calibration).content)
        if config.format != "adapter":
            merged = run.path / "merged"
            write_merged(base, config.model.dtype, adapter, config.format, merged)
            facts["merged"] = config.output / "merged"
            if calibration:
                write_calibration(merged, replace(calibration, adapter=find_adapter(merged).fingerprint))
            if record := AdapterRecord.read(adapter.folder):
                record.write(merged)  # `transcribe` reads there whether it writes tags
                facts["when it writes"] = record.restore_layout().note  # other engines may begin after the prompt of 39 tokens
        if config.vllm_names:
            write_vllm_names(adapter, release / "adapter_config.json", run.path / "vllm")
            facts["vLLM names"] = f"{config.output / 'vllm'}: untested, never loaded in vLLM"
        if config.push_to:
            facts["pushed to"] = _push(release, config.push_to, config.private)
        tracker.summary({"measured": bool(evaluated)})
    run.finish({"measured": bool(evaluated), "pushed_to": config.push_to}, fingerprint_files(release.iterdir()))
    return Report("export", facts | {"card": config.output / "release" / "README.md"})


def _copy_adapter(adapter: Adapter, base: str, release: Path) -> None:
    shutil.copyfile(adapter.folder / "adapter_model.safetensors", release / "adapter_model.safetensors")
    if (adapter.folder / RECORD).is_file():
        shutil.copyfile(adapter.folder / RECORD, release / RECORD)
    settings = json.loads((adapter.folder / "adapter_config.json").read_text("utf-8"))
    settings = without_places(settings) | {"base_model_name_or_path": public_name(base)}
    write_atomic(release / "adapter_config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def _card(
    config: ExportConfig, base: Base, adapter: Adapter, evaluated: Evaluated | None, calibration: Calibration | None
) -> ModelCard:
    try:
        return model_card(config, base.family, adapter.method, _trained(config.adapter), evaluated, calibration)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the records of its runs cannot be read: {type(error).__name__}: {error}"
        raise UsageError(what, where=str(config.adapter), fix="export only the adapter's folder, without records") from None


def _evaluated(config: ExportConfig, adapter: Adapter) -> Evaluated | None:
    if config.evaluation is None:
        return None
    require_complete(config.evaluation, "eval", "evoxtral eval …")
    metrics, evaluation = (read_record(config.evaluation / name) for name in ("metrics.json", "config.yaml"))
    try:
        systems = {system["name"]: system for system in evaluation["systems"]}
    except TypeError:
        what, fix = "its `systems` are not a list of systems", "evaluate the adapter again with --overwrite"
        raise UsageError(what, where=str(config.evaluation / "config.yaml"), fix=fix) from None
    if config.system not in systems:
        raise UsageError(f"has no system {config.system!r}", where=str(config.evaluation), fix=f"it has {', '.join(systems)}")
    recorded = read_run(config.evaluation)["inputs"].get(f"adapter {systems[config.system]['adapter']}")
    if recorded != adapter.fingerprint:
        raise UsageError(
            f"system {config.system!r} of this evaluation is another adapter than {config.adapter}",
            where=str(config.evaluation),
            fix="evaluate this adapter, or set `system` to its name in the evaluation",
        )
    with_thresholds = bool(systems[config.system].get("thresholds"))
    if with_thresholds:
        _require_same_thresholds(config, adapter, f"thresholds {systems[config.system]['adapter']}")
    dataset = read_run(config.evaluation)["inputs"]["dataset"]
    return Evaluated(config.system, metrics, evaluation["dataset"], dataset, with_thresholds)


def _require_same_thresholds(config: ExportConfig, adapter: Adapter, name: str) -> None:
    path = adapter.folder / THRESHOLDS
    if not path.is_file() or read_run(config.evaluation)["inputs"].get(name) != fingerprint_files([path]):
        what = f"system {config.system!r} of this evaluation has other thresholds than {path}"
        raise UsageError(what, where=str(config.evaluation), fix="evaluate it again with --overwrite")


def _trained(path: Path) -> list[Trained]:
    """The runs that made the adapter, oldest first, as far as they still exist; none for a bare PEFT folder."""
    if not (path / "run.json").is_file():
        return []
    config, metrics = (read_record(path / name) for name in ("config.yaml", "metrics.json"))
    record = read_run(path)
    own = Trained(record["stage"], config, metrics, record, _data(Path(config["dataset"]), record["inputs"]["dataset"]))
    return [*_started_from(config, record), own]


def _started_from(config: dict[str, Any], record: dict[str, Any]) -> list[Trained]:
    if not config.get("adapter"):
        return []
    start = Path(config["adapter"])
    try:
        same = find_adapter(start).fingerprint == record["inputs"]["adapter"]
    except UsageError:
        return []
    return _trained(start) if same else []


def _data(dataset: Path, fingerprint: str) -> dict[str, Any]:
    """The packed dataset's own records; {} if it is gone or has been replaced."""
    if not (dataset / "dataset.json").is_file():
        return {}
    content = read_record(dataset / "dataset.json")
    if content["fingerprint"] != fingerprint:
        return {}
    data = {name: content[name] for name in ("rows", "layout", "target", "fingerprint")}
    data["layout_note"] = family_named(content["family"]).restore_layout(content).note
    manifest = Path(read_record(dataset / "config.yaml")["manifest"])
    recorded = read_run(dataset)["inputs"]["manifest"]
    if manifest.is_file() and fingerprint_files([manifest]) == recorded:
        rows = [row for _, row in read_jsonl(manifest)]
        data["sources"] = sorted({str(row.get("source") or "not given") for row in rows})
        data["licenses"] = sorted({str(row.get("license") or "not given") for row in rows})
        data["speakers"] = len({str(row["speaker"]) for row in rows if row.get("speaker")})
    return data


def _push(folder: Path, repository: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload adapter and model card"))
    except HFValidationError as error:
        raise UsageError(str(error), where="push_to", fix="use owner/name") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise EvoxtralError(
            f"could not be pushed: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            where=repository,
            fix=f"everything is in {folder}; set HF_TOKEN, then resume with --resume",
        ) from None
