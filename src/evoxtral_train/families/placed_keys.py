"""Keys and values at places that the caller chooses: rows of one batch are at different positions, and a ring overwrites its
oldest."""

import torch
from transformers.cache_utils import CacheLayerMixin


class PlacedKeys(CacheLayerMixin):
    """One layer. `keys` and `values`, each [rows, width, heads, head_dim]. `places` [rows × T]: row × width + column, where a
    step of T positions writes; all layers may share it."""

    is_sliding = False
    is_compileable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor):
        super().__init__()
        self.keys, self.values, self.places, self.is_initialized = keys, values, places, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_, **__):
        """[rows, heads, T, head_dim] of the step -> all keys and values, [rows, heads, width, head_dim]."""
        self.keys.flatten(0, 1).index_copy_(0, self.places, key_states.transpose(1, 2).flatten(0, 1))
        self.values.flatten(0, 1).index_copy_(0, self.places, value_states.transpose(1, 2).flatten(0, 1))
        return self.keys.transpose(1, 2), self.values.transpose(1, 2)

    def lazy_initialization(self, key_states, value_states) -> None:
        """Does nothing: the table is already allocated in full."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[1], 0

    def get_seq_length(self) -> int:
        return self.keys.shape[1]

    def get_max_length(self) -> int:
        return self.keys.shape[1]
