"""Estimate what a run needs, before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from slipstream.nn.layers import TransformerLayer
from slipstream.train.options import RunOptions
from slipstream.train.parallel import dtype_of, shards


@dataclass(frozen=True, slots=True)
class Estimate:
    """Parameters (all, and trained), bytes of memory, and audio hours and `flops` of a step."""

    parameters: int
    trained: int
    weights_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    hours_per_step: float
    flops: float

    def __str__(self) -> str:
        gib = 1 << 30
        total = self.weights_bytes + self.optimizer_bytes + self.activation_bytes
        return (
            f"{self.parameters / 1e6:.1f} M parameters, {self.trained / 1e6:.3g} M trained; memory about "
            f"{total / gib:.2f} GiB (weights {self.weights_bytes / gib:.2f}, gradients and optimiser "
            f"{self.optimizer_bytes / gib:.2f}, activations {self.activation_bytes / gib:.2f}); "
            f"{self.hours_per_step * 3600:.0f} s of audio and {self.flops / 1e12:.2f} TFLOP per step"
        )


def estimate(task: Any, options: RunOptions, rows: int) -> Estimate:
    """Memory and work of one process, whose batches have `rows` rows.

    Weights in the run's dtype; for each trained one its gradient, a float32 master where the dtype is another, and two
    float32 moments. Sharded: its part of these in float32, and what is put together to compute: all but the Transformer
    layers, and two of those. Activations: what each linear layer and convolution keeps for the backward pass, counted
    by the positions it sees at most; a third of that when layers are checkpointed. Within a factor of two in practice.
    """
    module: nn.Module = task.module
    width = dtype_of(options).itemsize
    everything = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    parts = shards(options)
    weights_bytes, optimizer_bytes = everything * width, trained * (width + 8 + (4 if width == 2 else 0))
    if parts > 1:
        layers = [sum(p.numel() for p in m.parameters()) for m in module.modules() if isinstance(m, TransformerLayer)]
        together = everything - sum(layers) + 2 * max(layers, default=0)
        weights_bytes, optimizer_bytes = everything * 4 // parts + together * width, trained * 12 // parts
    positions = rows * task.row_seconds * task.positions_per_second
    kept = sum(_outputs(layer) for layer in module.modules()) * positions * width * 2
    return Estimate(
        everything,
        trained,
        weights_bytes,
        optimizer_bytes,
        round(kept / (3 if options.checkpoint_layers else 1)),
        options.rows * task.row_seconds / 3600,
        6.0 * trained * positions / rows * options.rows,
    )


def _outputs(layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv1d) else 0
