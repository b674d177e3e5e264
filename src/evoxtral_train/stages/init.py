"""`evoxtral init`: a working folder with the commented configs, the tag table and the grammar."""

import re
from pathlib import Path
from typing import Any

import yaml

from .. import shipped
from ..errors import UsageError
from ..files import write_atomic
from .report import Report

_FULL_SIZE = """\
evoxtral doctor                           # checks this machine: what works, what does not
evoxtral data synth configs/synth.yaml    # or: evoxtral data import configs/import.yaml
evoxtral data check configs/pack.yaml
evoxtral data pack configs/pack.yaml
evoxtral sft configs/sft.yaml
evoxtral raft run configs/raft.yaml
evoxtral eval configs/eval.yaml
evoxtral transcribe talk.wav --adapter runs/raft/result
evoxtral serve configs/serve.yaml --adapter runs/raft/result
evoxtral export configs/export.yaml"""

_TINY = """\
evoxtral data synth configs/synth.yaml
evoxtral data check configs/pack.yaml
evoxtral data pack configs/pack.yaml
evoxtral sft configs/sft.yaml
evoxtral eval configs/eval-sft.yaml
evoxtral probe configs/probe.yaml
evoxtral diagnose configs/diagnose.yaml
evoxtral calibrate configs/calibrate.yaml
evoxtral raft run configs/raft.yaml
evoxtral eval configs/eval-raft.yaml
evoxtral compare runs/eval-sft runs/eval-raft --output runs/comparison
evoxtral transcribe --config configs/transcribe.yaml"""

# Runs the demo in about a third of its time.
_TINY_SIZES = {
    "synth.yaml": {"clips.train": 300, "clips.validation": 60, "clips.test": 100, "clips.raft": 300},
    "sft.yaml": {"train.evaluate_every_steps": 60},
}


def run(folder: Path) -> Report:
    """Copies the full recipe's configs into `folder`. If one of the files exists, raises UsageError and writes nothing."""
    configs = shipped.root() / "configs"
    names = (path.relative_to(configs) for path in configs.rglob("*.yaml"))
    files = {name: configs / name for name in names if not {"demo", "tagger"} & set(name.parts)}
    return _write(folder, "init", {name: path.read_text("utf-8") for name, path in files.items()}, _FULL_SIZE)


def run_tiny(folder: Path) -> Report:
    """The same for a small project that runs the whole pipeline on a laptop: the demo's configs, scaled down."""
    configs = {}
    for path in (shipped.root() / "configs" / "demo").glob("*.yaml"):
        text = path.read_text("utf-8").replace("configs/demo/", "configs/")
        text = re.sub(r"runs/demo/(\S*)( +#)?", lambda path: f"runs/{path[1]}{' ' * 5 + path[2] if path[2] else ''}", text)
        for key, value in _TINY_SIZES.get(path.name, {}).items():
            text = with_value(text, key, value)
        configs[Path(path.name)] = text
    return _write(folder, "init --tiny", configs, _TINY)


def with_value(text: str, key: str, value: Any) -> str:
    """YAML with the scalar at `key` ("train.epochs") replaced; comments stay, in the same column."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in key.split("."):
        node = next(inner for name, inner in node.value if name.value == part)
    start, end = node.start_mark.index, node.end_mark.index
    padding = " " * (end - start - len(str(value))) if text[end : end + 1] == " " else ""
    return f"{text[:start]}{value}{padding}{text[end:]}"


def _write(folder: Path, title: str, configs: dict[Path, str], commands: str) -> Report:
    if folder.exists() and not folder.is_dir():
        raise UsageError("is a file, not a folder", where=str(folder), fix="name a folder; it is created if needed")
    files = {Path("configs") / name: text for name, text in configs.items()}
    files |= {path: (shipped.root() / path).read_text("utf-8") for path in (shipped.TAGS, shipped.GRAMMAR)}
    present = [str(name) for name in sorted(files) if (folder / name).exists()]
    if present:
        raise UsageError(
            f"nothing was written: {len(present)} of the files already exist: {', '.join(present)}",
            where=str(folder),
            fix="choose another folder, or move them away",
        )
    for name, text in files.items():
        write_atomic(folder / name, text)
    facts = {
        "configs": f"{len(configs)} in {folder / 'configs'}, with comments on every key",
        "tags": folder / shipped.TAGS,
        "grammar": folder / shipped.GRAMMAR,
    }
    enter = "" if folder.resolve() == Path.cwd() else f"cd {folder}\n"
    return Report(title, facts, table=f"Next, in this order:\n\n{enter}{commands}")
