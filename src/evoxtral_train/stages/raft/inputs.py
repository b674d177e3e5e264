"""What the steps that run a model read: the clips, the base and the adapter that the round starts from."""

from dataclasses import dataclass
from pathlib import Path

from ...config.training import RaftConfig
from ...dataset.reader import PackedSplit
from ...modeling.adapters import Adapter
from ...modeling.bases import Base, open_adapter, open_base_of


@dataclass(frozen=True)
class RoundInputs:
    """`sources`: where they lie."""

    split: PackedSplit
    base: Base
    adapter: Adapter
    sources: list[Path]

    @classmethod
    def open(cls, config: RaftConfig, split: PackedSplit) -> "RoundInputs":
        """Without weights. Raises UsageError when split, base and adapter do not belong together."""
        base = open_base_of(split, config.model)
        adapter = open_adapter(config.adapter, base, config.model)
        return cls(split, base, adapter, [config.dataset, base.folder, config.adapter])

    @property
    def fingerprints(self) -> dict[str, str]:
        return {"dataset": self.split.fingerprint, "base": self.base.fingerprint, "adapter": self.adapter.fingerprint}
