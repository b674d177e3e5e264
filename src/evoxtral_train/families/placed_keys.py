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


def visible_in_ring(positions: torch.Tensor, active: torch.Tensor, places: int, window: int | None) -> torch.Tensor:
    """[rows, 1, T, places + 1] bool: which keys each position of a step may see, in rings of `places` keys.

    `positions` [rows, T]: consecutive; their own keys are already in the ring. `active` [rows]: the others take part in no step;
    they see only the last column, where they write, because softmax needs something to see. `window`: of the attention, if any.
    """
    newest = positions[:, -1:, None]
    held = newest - (newest - torch.arange(places, device=positions.device)) % places  # the position whose key is there
    visible = (held >= 0) & (held <= positions[..., None])
    if window is not None:
        visible &= held > positions[..., None] - window
    idle = (~active)[:, None, None].expand(-1, positions.shape[1], 1)
    return torch.cat([visible, idle], dim=-1)[:, None]
