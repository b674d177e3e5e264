"""Weights & Biases in every stage. It cannot fail a run, and uploads no audio or transcript unless asked.

Online with a key, offline without. Every call is guarded: the first failure is reported, and after that nothing
is logged.
"""

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from . import processes
from .config.sections import Tracking
from .plain_text import one_line, without_places


class Tracker:
    """One W&B run for one stage. Use it as a context manager, which closes the run."""

    def __init__(self, settings: Tracking, stage: str, folder: Path, config: BaseModel):
        self._run, self._uploads_media = None, settings.upload_media
        if not processes.is_first() or settings.mode == "disabled" or os.environ.get("WANDB_MODE") == "disabled":
            return
        self._guard(self._start, settings, stage, folder, config)

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Numbers under their names; nested dicts become names with slashes."""
        if self._run is not None:
            self._guard(self._run.log, flatten(metrics), step=step)

    def summary(self, metrics: dict[str, Any]) -> None:
        if self._run is not None:
            self._guard(self._run.summary.update, flatten(metrics))

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table of numbers and names. Transcripts go to `media_table`."""
        if self._run is not None:
            self._guard(self._log_table, name, columns, rows)

    def media_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table with transcripts or predictions; needs `tracking.upload_media`."""
        if self._uploads_media:
            self.table(name, columns, rows)

    def artifact(self, name: str, kind: str, paths: list[Path]) -> None:
        """Small result files: tables, pictures, adapters. Audio and transcripts go to `media_artifact`."""
        if self._run is not None:
            self._guard(self._log_artifact, name, kind, paths)

    def media_artifact(self, name: str, kind: str, paths: list[Path]) -> None:
        """Files with audio, transcripts or predictions; needs `tracking.upload_media`."""
        if self._uploads_media:
            self.artifact(name, kind, paths)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, error_type, *_) -> None:
        if self._run is not None:
            self._guard(self._run.finish, exit_code=0 if error_type is None else 1)

    def _start(self, settings: Tracking, stage: str, folder: Path, config: BaseModel) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # W&B's own crash reports; read on import
        import wandb

        mode = settings.mode
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_SILENT", "true")
        self._run = wandb.init(
            project=settings.project,
            name=f"{stage}: {folder.name.removesuffix('.partial')}",
            group=folder.parent.name,
            job_type=stage,
            dir=str(folder),
            mode=mode,
            reinit="create_new",  # beside `raft run`'s own, which the next one would end
            config=without_places(config.model_dump(mode="json")),
            # Do not upload printed output (it quotes clips), the command line, the user, the machine or the code.
            settings=wandb.Settings(
                console="off", disable_code=True, disable_git=True, x_disable_meta=True, x_disable_machine_info=True
            ),
        )

    def _log_table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=columns, data=rows)})

    def _log_artifact(self, name: str, kind: str, paths: list[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for path in paths:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def _guard(self, call, *arguments, **named) -> None:
        try:
            call(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - tracking must never fail a run
            self._run = None
            print(f"W&B is off for this run: {type(error).__name__}: {one_line(error, 200)}", file=sys.stderr)


def has_key() -> bool:
    """An API key in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "api.wandb.ai" in netrc.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"micro": {"f1": 0.5}} -> {"micro/f1": 0.5}; None is left out."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        elif value is not None:
            flat[prefix + name] = value
    return flat
