"""Run directories: the settings of a stage, what its result was made from, and whether it finished.

    runs/sft            a finished run: a folder of this name is never half done
      config.yaml       the resolved config
      run.json          stage, versions, git commit, inputs and their fingerprints, seed
      metrics.json      what was measured
      files.txt         every file that the run wrote
      complete.json     the marker, written last, with the fingerprint of the result
    runs/sft.partial    the same, while it is made; `finish` renames it
    runs/.sft.lock      held by the process that makes it

An unfinished run resumes with `--resume`, and only with the config and the inputs that it was started with. `--overwrite` makes
the new run beside the finished one and puts it in its place at the end; of the old one only what `files.txt` lists is removed,
and everything else that lay there is kept in the new folder. So a run that is refused, fails or is killed leaves what was there.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import shipped
from .errors import EvoxtralError, UsageError
from .files import disk_errors, open_atomic, write_atomic
from .records import dump_row
from .run_folders import COMPLETE, FILES, files_in, is_complete, lock, partial, put_in_place, real_path, recover, release, remove

_PACKAGES = ("evoxtral", "torch", "transformers", "peft", "accelerate", "datasets", "mistral-common", "jiwer", "numpy")
_HARMLESS = {
    "tracking", "device", "batch_tokens", "compile", "audio_cache", "processes", "max_characters", "usd_per_1000_characters",
    "concurrent_requests", "max_retries", "timeout_s", "paid_audio", "base_url",
}  # settings that do not change a run's result  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What every stage takes beside its config."""

    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Run:
    """An open run. `path`: where its files are written until `finish` puts the folder in its place, `output`. `resumed`:
    whether it continues earlier work."""

    output: Path
    path: Path
    stage: str
    resumed: bool

    @classmethod
    def open(
        cls, output: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options,
        sources: Iterable[Path | str | None] = (),
    ) -> "Run":  # fmt: skip
        """`config`: the settings that the result depends on, as written to YAML. `inputs`: name -> fingerprint of everything that
        the stage reads; `sources`: where that lies.

        Raises UsageError when another process makes this run, when the output holds a finished run, an unfinished one without
        `--resume`, anything that is not a run of this stage, or one of `sources`.
        """
        output = real_path(output)
        check_output(output, stage, config, inputs, options, sources)
        lock(output)
        check_output(output, stage, config, inputs, options, sources)  # what another process finished meanwhile
        path = partial(output)
        resumed = options.resume and (path / "run.json").is_file()
        if not resumed and path.is_dir():
            remove(path)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(output, path, stage, resumed)
        if not resumed:
            run.write_text("config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            run.write_json("run.json", {"stage": stage, "inputs": inputs, **provenance()})
        return run

    def write_text(self, name: str, text: str) -> None:
        write_atomic(self.path / name, text)

    def write_json(self, name: str, content: Any) -> None:
        """Raises EvoxtralError for a number that is not finite: it is no JSON, and no result."""
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise EvoxtralError("a number that was measured is not finite", where=str(self.path / name)) from None
        write_atomic(self.path / name, text + "\n")

    def write_rows(self, name: str, rows: Iterable[Any]) -> None:
        """One after the other: `rows` may be more than memory holds."""
        with open_atomic(self.path / name) as file:
            for row in rows:
                file.write(dump_row(row).encode("utf-8"))

    def finish(self, metrics: dict[str, Any], fingerprint: str) -> None:
        """Mark the run as finished and put it in its place. `fingerprint` identifies the run's result; later stages compare it.
        Called when nothing writes into the folder any more, the tracker included."""
        self.write_json("metrics.json", metrics)
        self.write_text(FILES, "".join(f"{name}\n" for name in sorted({*files_in(self.path), FILES, COMPLETE})))
        self.write_json(COMPLETE, {"stage": self.stage, "fingerprint": fingerprint})
        with disk_errors(self.output):
            put_in_place(self.output)
        release(self.output)


def check_output(
    output: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options,
    sources: Iterable[Path | str | None] = (),
) -> None:  # fmt: skip
    """The refusals of `Run.open`, without making anything (also part of every dry run)."""
    where, output = str(output), real_path(output)
    if output.exists() and not output.is_dir():
        raise UsageError("is a file, not a folder", where=where, fix="choose another `output`")
    if Path.cwd().is_relative_to(output) or os.path.ismount(output):
        what = "the current folder, or one above it" if Path.cwd().is_relative_to(output) else "a mount point"
        raise UsageError(f"is {what}, which cannot be replaced whole", where=where, fix="choose a folder inside it as `output`")
    for source in sources:
        if source is not None and Path(source).exists() and real_path(Path(source)).is_relative_to(output):
            what = f"the output holds what this stage reads: {source}"
            raise UsageError(what, where=where, fix="choose another `output`")
    recover(output)
    if output.is_dir() and any(output.iterdir()):
        if not is_complete(output):
            raise UsageError("holds files that no finished run wrote", where=where, fix="choose another `output`")
        _require_stage(output, stage, where)
        if not options.overwrite and not (options.resume and (partial(output) / "run.json").is_file()):
            raise UsageError("this run is finished", where=where, fix="use --overwrite to do it again, or another `output`")
    _check_partial(output, stage, config, inputs, options)


def _check_partial(output: Path, stage: str, config: dict[str, Any], inputs: dict[str, str], options: Options) -> None:
    path = partial(output)
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / "run.json").is_file():
        if {child.name for child in path.iterdir()} <= {"config.yaml", ".config.yaml.part", ".run.json.part"}:
            return  # all that a kill at the very start leaves
        raise UsageError("holds files that no run wrote", where=str(path), fix="move it away, or choose another `output`")
    earlier = _require_stage(path, stage, str(path))
    if options.overwrite:
        return
    if not options.resume:
        fix = "use --resume to continue it, or --overwrite to start again"
        raise UsageError("an unfinished run is here", where=str(path), fix=fix)
    changed = _changed_keys(yaml.safe_load((path / "config.yaml").read_text("utf-8")), config)
    changed += [f"input {name}" for name in {*earlier["inputs"], *inputs} if earlier["inputs"].get(name) != inputs.get(name)]
    if changed:
        raise UsageError(
            f"cannot resume: changed since this run began: {', '.join(sorted(changed))}",
            where=str(path),
            fix="put them back, or use --overwrite",
        )


def _require_stage(path: Path, stage: str, where: str) -> dict[str, Any]:
    record = read_run(path)
    if record["stage"] != stage:
        raise UsageError(f"holds a run of `{record['stage']}`", where=where, fix="choose another `output`")
    return record


def check_plan(path: Path, stage: str, config: dict[str, Any], options: Options) -> None:
    """`check_output` for a dry run whose inputs may not exist yet: what can be refused without them."""
    if not options.resume:
        check_output(path, stage, config, {}, options)


def require_complete(path: Path, stage: str, hint: str) -> str:
    """The fingerprint of a finished run of `stage` at `path`. `hint`: the command that makes one."""
    recover(real_path(path))
    if not is_complete(path):
        begun = partial(real_path(path)).is_dir()
        fix = f"finish it with: {hint} --resume" if begun else f"first run: {hint}"
        raise UsageError(f"the input of this stage {'is not finished' if begun else 'does not exist'}", where=str(path), fix=fix)
    found = json.loads((path / COMPLETE).read_text("utf-8"))
    if found["stage"] != stage:
        raise UsageError(f"holds a run of `{found['stage']}`, not of `{stage}`", where=str(path), fix=f"first run: {hint}")
    return found["fingerprint"]


def read_run(path: Path) -> dict[str, Any]:
    """The `run.json` of a run."""
    try:
        return json.loads((path / "run.json").read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError("is not a run directory (no run.json)", where=str(path)) from None


def require_same_input(path: Path, name: str, fingerprint: str, now: str) -> None:
    """Refuse when the run at `path` was made from another `name` than the one at hand (`now`, its path)."""
    recorded = read_run(path)["inputs"].get(name)
    if recorded != fingerprint:
        raise UsageError(
            f"was made from another {name} than {now} ({recorded} there, {fingerprint} now)",
            where=str(path),
            fix="make it again from this one, or name the right one in the config",
        )


def require_same_config(path: Path, config: dict[str, Any], sections: Iterable[str]) -> None:
    """Refuse when one of `sections` of the config differs from that of the run at `path`."""
    earlier = yaml.safe_load((path / "config.yaml").read_text("utf-8"))
    changed = [key for name in sections for key in _changed_keys(earlier.get(name), config.get(name), name)]
    if changed:
        raise UsageError(
            f"was made with another config, which differs in: {', '.join(changed)}",
            where=str(path),
            fix="make it again with --overwrite, or put the config back",
        )


def provenance() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"versions": versions, "python": platform.python_version(), "git_commit": _git_commit()}


def _git_commit() -> str | None:
    """The commit of this clone; an installed package has none, and may lie in a repository of its user's."""
    if not shipped.is_checkout():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _changed_keys(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in {*before, *after} - _HARMLESS]
        return [line for key in keys for line in _changed_keys(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == after else [path]
