"""The loss of training rows, from hidden states."""

import torch

from .base import IGNORED


def loss_of(model, hidden: torch.Tensor, labels: torch.Tensor, label_weights: torch.Tensor | None, items_total=None) -> dict:
    """{"loss"}: as the stock forward's, but `lm_head` runs only where there is a label, without T × vocabulary logits.

    hidden [B, T, hidden]; labels [B, T], -100 where nothing is learned. `label_weights` [B, T]: the weight of each label.
    `items_total`: the Trainer's `num_items_in_batch`; None: the mean of this batch.
    """
    learned = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][learned])
    if label_weights is not None:
        weights = label_weights[:, 1:][learned]
        losses = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][learned], reduction="none")
        return {"loss": (losses * weights).sum() / (weights.sum() if items_total is None else items_total)}
    loss = model.loss_function(
        logits=logits,
        labels=None,
        shift_labels=labels[:, 1:][learned],
        vocab_size=model.config.text_config.vocab_size,
        num_items_in_batch=items_total,
    )
    return {"loss": loss}
