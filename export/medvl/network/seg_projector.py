"""From the language model's [SEG] state to a prompt token of SAM2's mask decoder."""

from __future__ import annotations

from torch import nn


class SegProjector(nn.Sequential):
    """Linear(H, H), ReLU, Linear(H, C), as in Sa2VA; the weights are named ``0.*`` and ``2.*``.

    Maps [B, H], the hidden state after the final norm, to [B, C].
    """

    def __init__(self, hidden_size: int, channels: int) -> None:
        super().__init__(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, channels))
