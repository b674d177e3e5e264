"""A stage's run from plan to result: checked, opened, tracked and finished in one way. SFT, RAFT's steps, `probe`,
`diagnose` and `transcribe` use it.

job = Job("sft", config.output, config.model_dump(mode="json"), config, options)
job.check()                                  a dry run stops here and writes nothing
with job.shared(inputs, sources) as work:    the run is checked, locked and tracked
    ...                                      writes below work.path, logs to work.tracker
    work.done(metrics, fingerprint)          the result; the run is finished when the block ends
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import processes
from .config.evaluation import DiagnoseConfig, ProbeConfig
from .config.training import RaftConfig, SftConfig
from .config.transcription import TranscribeConfig
from .runs import Options, Run, check_output, check_plan
from .tracking import Tracker


class Work:
    """An open run and its tracker. `path`: where the run's files are written."""

    def __init__(self, run: Run, tracker: Tracker):
        self.run, self.path, self.tracker = run, run.path, tracker
        self._started = time.monotonic()
        self.result: tuple[dict[str, Any], str] | None = None

    def seconds(self) -> float:
        """Seconds since the run was opened."""
        return time.monotonic() - self._started

    def done(self, metrics: dict[str, Any], fingerprint: str) -> None:
        """Set the result; the run is finished with it once the tracker is closed. Of several processes, the first must call it.
        `fingerprint` identifies the result."""
        self.result = metrics, fingerprint


@dataclass(frozen=True)
class Job:
    """The planned output of a stage. `settings`: the part of the config that the result depends on, as written to the
    run's config.yaml. `config`: the whole config, for the tracker."""

    stage: str
    output: Path
    settings: dict[str, Any]
    config: SftConfig | RaftConfig | TranscribeConfig | ProbeConfig | DiagnoseConfig
    options: Options

    def check(self, inputs: dict[str, str] | None = None) -> None:
        """For a dry run: raises UsageError if `Run.open` would. `inputs`: name -> fingerprint; None if they may not exist
        yet."""
        if inputs is None:
            check_plan(self.output, self.stage, self.settings, self.options)
        else:
            check_output(self.output, self.stage, self.settings, inputs, self.options)

    def opened(self, inputs: dict[str, str], sources: Iterable[Path | str | None] = ()) -> AbstractContextManager[Work]:
        """For a stage that runs in one process. `inputs` and `sources` as in `Run.open`, which may raise UsageError."""
        return self._opened(inputs, sources, lambda action: action())

    def shared(self, inputs: dict[str, str], sources: Iterable[Path | str | None] = ()) -> AbstractContextManager[Work]:
        """For a stage that runs in all processes: the first opens the run and finishes it."""
        return self._opened(inputs, sources, processes.first)

    @contextmanager
    def _opened(
        self, inputs: dict[str, str], sources: Iterable[Path | str | None], once: Callable[[Callable], Any]
    ) -> Iterator[Work]:
        run = once(lambda: Run.open(self.output, self.stage, self.settings, inputs, self.options, sources))
        with Tracker(self.config.tracking, self.stage, run.path, self.config) as tracker:
            work = Work(run, tracker)
            yield work
        once(lambda: run.finish(*work.result))
