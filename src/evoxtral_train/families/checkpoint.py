"""Find a base model on disk or in the hub's cache, refuse one that contains code, and open it as its family.

A checkpoint comes in transformers' format (config.json, *.safetensors and the processor's files) or in Mistral's own
(params.json, consolidated.safetensors and tekken.json). A folder that holds both is read in transformers' format.
"""

import hashlib
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from .. import shipped
from ..errors import EvoxtralError, UsageError
from ..files import fingerprint_files
from ..plain_text import one_line
from .base import Family

FAMILIES = {"voxtral_realtime": "realtime.family.Realtime", "voxtral": "offline.family.Offline"}
"""`model_type` in a checkpoint's config.json -> the class, imported on first use."""
DEFAULT = "voxtral_realtime"

FEATURE_FILES = ("preprocessor_config.json", "processor_config.json")
_PROCESSOR_FILES = ("tekken.json", *FEATURE_FILES)
_COMPLETE = "(config.json and *.safetensors, or params.json, consolidated.safetensors and tekken.json)"
_SAMPLE_BYTES = 1 << 20
_MAY_NAME_CODE = ("config.json", "params.json", "tokenizer_config.json", "generation_config.json", *FEATURE_FILES)


def resolve_base(base: str, revision: str | None, *, weights: bool = True) -> Path:
    """A folder with the checkpoint's files. `weights=False`: only those of the processor and the config.

    A local folder is used as it is, and `data/tiny-base` comes with evoxtral. Anything else is a hub id, read from the
    cache or downloaded. Raises UsageError, with the download command, if that fails; also for a base that contains code.
    """
    folder = _find_base(base, revision, weights)
    _refuse_code(folder)
    return folder


def _find_base(base: str, revision: str | None, weights: bool) -> Path:
    folder = shipped.find(Path(base))
    if folder.is_dir():
        return folder
    if base.startswith((".", "/")) or base.count("/") != 1:
        raise UsageError(f"no such model folder: {base}", fix="set `base` to a folder or to a hub id such as mistralai/…")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors"] if weights else ["*.json"]
    try:
        folder = Path(snapshot_download(base, revision=revision, allow_patterns=patterns, ignore_patterns=["consolidated*"]))
        if weights and in_mistral_layout(folder):
            snapshot_download(base, revision=revision, allow_patterns=["consolidated.safetensors"])
        return folder
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        at = f" --revision {revision}" if revision else ""
        raise UsageError(
            f"the model {base} is not a folder here and could not be downloaded from the hub{offline}: {type(error).__name__}",
            fix=f"on a machine with network run: hf download {base}{at} --exclude 'consolidated*', "
            "or set `base` to a folder that contains it",
        ) from None


def _refuse_code(folder: Path) -> None:
    """`auto_map` names Python files that transformers would run with `trust_remote_code`."""
    for path in (folder / name for name in _MAY_NAME_CODE if (folder / name).is_file()):
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"cannot be read: {error}", where=str(path), fix="is this a Voxtral checkpoint?") from None
        if _holds_key(content, "auto_map"):
            raise UsageError(
                "this base contains Python code (`auto_map`), which evoxtral does not run",
                where=str(path),
                fix="use a base that transformers knows, such as mistralai/Voxtral-Mini-4B-Realtime-2602",
            )
    if (folder / "adapter_config.json").is_file():  # transformers would open the base named there instead
        raise UsageError("is an adapter, not a base", where=str(folder), fix="set `base` to the model that it was trained on")


def _holds_key(content: Any, key: str) -> bool:
    if isinstance(content, dict):
        return key in content or any(_holds_key(value, key) for value in content.values())
    return isinstance(content, list) and any(_holds_key(value, key) for value in content)


def in_mistral_layout(folder: Path) -> bool:
    return (folder / "params.json").is_file() and not (folder / "config.json").is_file()


def config_file(folder: Path) -> Path:
    return folder / ("params.json" if in_mistral_layout(folder) else "config.json")


def read_config_file(folder: Path) -> dict[str, Any]:
    """The content of `config_file`. Raises UsageError when it is missing or damaged."""
    path = config_file(folder)
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no keys")
    except (OSError, ValueError, RecursionError) as error:
        fix = f"is this a complete Voxtral checkpoint {_COMPLETE}?"
        raise UsageError(f"cannot be read: {type(error).__name__}: {error}", where=str(path), fix=fix) from None
    return content


def load_processor(folder: Path, load=None):
    """The checkpoint's processor, by `load(folder)` if it is not in transformers' format. Raises EvoxtralError when it cannot be
    loaded."""
    from transformers import AutoProcessor

    try:
        return load(folder) if load else AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        what = f"its processor cannot be loaded: {one_line(error, 200)}"
        raise EvoxtralError(what, where=str(folder), fix="is this a Voxtral checkpoint?") from None


def processor_fingerprint(folder: Path) -> str:
    """Changes when the tokenizer or the feature extractor changes: packed rows depend on both."""
    return fingerprint_files(folder / name for name in _PROCESSOR_FILES if (folder / name).is_file())


def copy_processor(folder: Path, target: Path) -> None:
    """The copy has the same `processor_fingerprint`, so a dataset packed for the one fits the other."""
    for name in (*_PROCESSOR_FILES, "tokenizer_config.json"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def family_named(model_type: str) -> type[Family]:
    """Raises KeyError for a type that is not in `FAMILIES`."""
    module, name = FAMILIES[model_type].rsplit(".", 1)
    return getattr(importlib.import_module(f".{module}", __package__), name)


def family_of(folder: Path) -> type[Family]:
    """The family of a checkpoint, from its config. Raises UsageError for any other type of model."""
    content = read_config_file(folder)
    model_type = _params_type(content) if in_mistral_layout(folder) else content.get("model_type")
    if model_type not in FAMILIES:
        what = f"is a model of type {model_type!r}"
        raise UsageError(what, where=str(folder), fix=f"use a base of type {' or '.join(FAMILIES)}")
    return family_named(model_type)


def _params_type(params: dict[str, Any]) -> str | None:
    """`params.json` names no type. vLLM's rule: with an audio encoder it is offline Voxtral, with a causal one Voxtral
    Realtime."""
    try:
        causal = params["multimodal"]["whisper_model_args"]["encoder_args"].get("causal")
    except (KeyError, TypeError, AttributeError):
        return None
    return "voxtral_realtime" if causal else "voxtral"


def family_for(base: str, revision: str | None, family: str | None = None) -> tuple[type[Family], Path | None]:
    """The family of a base, and its folder. For a hub id that is not in the cache and cannot be downloaded: `family` or the
    default family, and None. Raises UsageError for an unknown family, for one that is not the checkpoint's, and for a folder
    that is missing or is not a base."""
    if family is not None and family not in FAMILIES:
        raise UsageError(f"there is no family {family!r}", where="model.family", fix=f"use one of {', '.join(FAMILIES)}, or null")
    try:
        folder = resolve_base(base, revision, weights=False)
    except UsageError:
        if Path(base).exists() or base.startswith((".", "/")):
            raise
        return family_named(family or DEFAULT), None
    found = family_of(folder)
    if family not in (None, found.model_type):
        what = f"this checkpoint is of the family {found.model_type}, not {family}"
        raise UsageError(what, where="model.family", fix="set it to null: a checkpoint says it itself")
    return found, folder


def assumption(base: str, revision: str | None, family: str | None, key: str) -> str | None:
    """What a plan says of a family that neither the config's `key` nor the checkpoint names; None if one of them does."""
    found, folder = family_for(base, revision, family)
    if folder or family:
        return None
    others = " or ".join(name for name in FAMILIES if name != found.model_type)
    return f"{found.title}: assumed, as the checkpoint is not here; for another family set {key} to {others}"


def open_family(folder: Path) -> Family:
    """A checkpoint's data side: tokenizer, features, layouts. Raises UsageError, or EvoxtralError for a damaged processor."""
    return family_of(folder).open(folder)


def load_weights(model_class, folder: Path, dtype: str, **converted):
    """The checkpoint's weights in evaluation mode, frozen, on the CPU. Raises UsageError when they cannot be loaded.

    `converted`: its `config` and `state_dict`, if it is not in transformers' format."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = model_class.from_pretrained(
            None if converted else folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, **converted
        )
    except (OSError, ValueError, RuntimeError) as error:
        fix = f"is this a complete Voxtral checkpoint {_COMPLETE}?"
        if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
            fix = "pickled weights (*.bin) can run code and are not opened: convert them to safetensors"
        what = f"the checkpoint cannot be loaded: {str(error).splitlines()[0]}"
        raise UsageError(what, where=str(folder), fix=fix) from None
    return model.requires_grad_(False).eval()


def base_fingerprint(folder: Path) -> str:
    """Changes with the config, the weights or the layout. Reads the size and both ends of each weight file,
    instead of all 9 GB."""
    digest = hashlib.sha256(config_file(folder).read_bytes())
    weights = [path for path in folder.glob("*.safetensors") if path.name.startswith("consolidated") == in_mistral_layout(folder)]
    for path in sorted(weights):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(size - _SAMPLE_BYTES, 0))
            digest.update(file.read())
    return digest.hexdigest()[:16]
