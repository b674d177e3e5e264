"""Where the four steps of RAFT keep their runs, and which part of the config each one answers for."""

from pathlib import Path

from ..config.schema import RaftConfig

_SECTIONS = {
    "generate": ("dataset", "split", "model", "adapter", "generate"),
    "score": ("dataset", "split", "score"),
    "curate": ("curate",),
    "train": ("dataset", "split", "model", "adapter", "train"),
}


def candidates(config: RaftConfig) -> Path:
    return config.output / "candidates"


def scores(config: RaftConfig) -> Path:
    return config.output / "scores"


def curated(config: RaftConfig) -> Path:
    return config.output / "curated"


def trained(config: RaftConfig) -> Path:
    return config.output / "train"


def asked(config: RaftConfig, step: str) -> dict:
    """The part of the config that `step` depends on: changing `train` leaves the candidates valid."""
    content = config.model_dump(mode="json")
    return {name: content[name] for name in _SECTIONS[step]}
