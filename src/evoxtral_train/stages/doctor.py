"""`evoxtral doctor`: what is installed, which devices and keys are present, and what will not work."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

from .. import shipped
from ..tracking import has_key
from .report import Report, gigabytes

_REQUIRED = (
    "torch", "transformers", "peft", "accelerate", "datasets", "jiwer", "mistral-common", "soundfile", "soxr",
    "pydantic", "typer", "wandb",
)  # fmt: skip
_EXTRAS = (
    ("elevenlabs", "elevenlabs", "`data synth --engine elevenlabs`"),
    ("audiomentations", "augment", "augmentation"),
    ("fastapi", "serve", "`evoxtral serve`"),
    ("av", "av", "reading M4A, MP4, WebM and AAC"),
)
_FULL_SIZE_BYTES = 8_859_358_720


def run() -> Report:
    kind = "clone" if shipped.is_checkout() else "installed"
    facts: dict[str, str] = {"evoxtral": f"{_version('evoxtral')}, {kind}; configs, tags and the tiny base in {shipped.root()}"}
    facts |= {"python": platform.python_version(), "system": platform.platform()}
    problems = []
    for package in _REQUIRED:
        version = _version(package)
        facts[package] = version or "missing"
        if version is None:
            problems.append(f"{package} is missing: run pip install {package}")
    facts["espeakng-loader"] = _version("espeakng-loader") or "missing"
    if facts["espeakng-loader"] == "missing":
        problems.append("`data synth` will not work: run pip install 'evoxtral[synth]' (an extra because espeak-ng is GPL)")
    for package, extra, what in _EXTRAS:
        facts[package] = _version(package) or f"missing: {what} will not work (extra `{extra}`)"
    facts["ElevenLabs key"] = "present" if os.environ.get("ELEVENLABS_API_KEY") else "not present"
    facts["devices"] = _devices(problems)
    facts["free disk here"] = gigabytes(shutil.disk_usage(Path.cwd()).free)
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
    token = bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")) or _token_file().is_file()
    facts["hub"] = f"{'offline' if offline else 'online'}, token {'present' if token else 'not present'}"
    if offline:
        problems.append("HF_HUB_OFFLINE is set: the 4B model works only if it is already in the hub's cache")
    facts["W&B key"] = "present" if has_key() else "not present"
    if not has_key():
        problems.append("no W&B key: logs stay in each run's folder (set WANDB_API_KEY, or run wandb login)")
    lines = "\n".join(f"- {problem}" for problem in problems)
    return Report("doctor", facts, table=f"limitations on this machine:\n{lines}" if problems else "no problems found")


def _devices(problems: list[str]) -> str:
    try:
        import torch
    except ImportError:
        return "unknown: no torch"
    if not torch.cuda.is_available():
        problems.append(f"no CUDA GPU: training the 4B model here is impractical (weights {gigabytes(_FULL_SIZE_BYTES)})")
        return f"cpu, {torch.get_num_threads()} threads"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        names.append(f"{properties.name} with {gigabytes(properties.total_memory)}")
        if properties.total_memory < 1.5 * _FULL_SIZE_BYTES:
            problems.append(f"the 4B model may not fit on {names[-1]}: its bf16 weights take {gigabytes(_FULL_SIZE_BYTES)}")
    return "; ".join(names)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _token_file() -> Path:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return home / "token"
