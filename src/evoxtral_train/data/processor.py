"""Find a base model on disk or in the hub's cache, and load its processor."""

import os
from pathlib import Path

from .. import shipped
from ..errors import EvoxtralError, UsageError
from ..files import fingerprint_files

_PROCESSOR_FILES = ("tekken.json", "preprocessor_config.json", "processor_config.json")


def resolve_base(base: str, revision: str | None, *, weights: bool = True) -> Path:
    """A folder with the checkpoint's files. `weights=False`: the processor's and config's alone.

    A local folder is taken as it is, and `data/tiny-base` comes with evoxtral; anything else is a hub id, taken from
    the cache or downloaded. Raises UsageError that says how to fetch it.
    """
    folder = shipped.find(Path(base))
    if folder.is_dir():
        return folder
    if base.startswith((".", "/")) or base.count("/") != 1:
        raise UsageError(f"no such model folder: {base}", fix="set `base` to a folder or to a hub id such as mistralai/…")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors"] if weights else ["*.json"]
    try:
        return Path(snapshot_download(base, revision=revision, allow_patterns=patterns, ignore_patterns=["consolidated*"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        at = f" --revision {revision}" if revision else ""
        raise UsageError(
            f"the model {base} is neither a folder here nor to be had from the hub{offline}: {type(error).__name__}",
            fix=f"on a machine with network run: hf download {base}{at} --exclude 'consolidated*', "
            "or set `base` to a folder that holds it",
        ) from None


def load_processor(folder: Path):
    """The checkpoint's VoxtralRealtimeProcessor. Raises EvoxtralError when its files do not fit."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise EvoxtralError(
            f"its processor cannot be loaded: {error}", where=str(folder), fix="is this a Voxtral Realtime checkpoint?"
        ) from None


def processor_fingerprint(folder: Path) -> str:
    """Changes when the tokenizer or the feature extractor changes: packed rows depend on both."""
    return fingerprint_files(folder / name for name in _PROCESSOR_FILES if (folder / name).is_file())
