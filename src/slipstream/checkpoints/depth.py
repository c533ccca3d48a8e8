"""The depth Transformer's tensors in Kyutai's PyTorch files, and in those of the Rust server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slipstream.checkpoints.tables import Entries, Same, Shape, Stacked
from slipstream.checkpoints.tensors import Array, Tensors
from slipstream.errors import CheckpointError
from slipstream.model.config import DepthConfig


@dataclass(frozen=True, slots=True)
class Flat:
    """The rows of all sets of weights below each other: the first two axes as one."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        return [(shape[0] * shape[1], *shape[2:]) for shape in ours]

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        return [theirs[0].reshape(ours[0])]

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        return [ours[0].reshape(self.shapes([ours[0].shape])[0])]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A copy for each codebook: number `{k}` holds set `schedule[k]`, or with `shared` the one tensor that all use.

    `lead`: additional axes of length 1 of each copy.
    """

    name: str
    schedule: tuple[int, ...]
    shared: bool = False
    lead: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name.replace("{k}", str(k)) for k in range(len(self.schedule)))

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        shape = ours[0] if self.shared else ours[0][1:]
        return [(1,) * self.lead + shape] * len(self.schedule)

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        first: dict[int, Array] = {}
        for k, (number, array) in enumerate(zip(self.schedule, theirs, strict=True)):
            kept = first.setdefault(0 if self.shared else number, array)
            if not np.array_equal(kept, array):
                raise CheckpointError(
                    f"{self.names[k]} differs from that of an earlier codebook, but in the configuration they share "
                    "their weights: check weights_per_step_schedule"
                )
        arrays = [first[number].reshape(first[number].shape[self.lead :]) for number in sorted(first)]
        return arrays if self.shared else [np.stack(arrays)]

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        copies = [ours[0] if self.shared else ours[0][number] for number in self.schedule]
        return [copy.reshape((1,) * self.lead + copy.shape) for copy in copies]


def depth_entries(config: DepthConfig) -> Entries:
    """The depth Transformer's tensors as the `moshi` package names them."""
    K, W, layer = config.num_codebooks, config.num_weights, "depformer.layers.{i}."
    norm = "{norm}.alpha" if config.transformer.norm == "rms_norm" else "{norm}.{part}"
    lead = 2 if config.transformer.norm == "rms_norm" else 0
    ours_norm = "{norm}.weight" if lead else "{norm}.{part}"
    return {
        "depth.in_proj.weight": Stacked("depformer_in.{k}.weight", W),
        "depth.text_emb.{projection}.weight": Same("depformer_text_emb.{projection}.weight"),
        "depth.text_emb.weight": Same("depformer_text_emb.weight"),
        "depth.audio_emb.weight": Stacked("depformer_emb.{k}.weight", K - 1),
        "depth.audio_emb.low_rank": Stacked("depformer_emb.{k}.low_rank.weight", K - 1),
        "depth.layers.{i}.attn.in_proj.weight": Flat(layer + "self_attn.in_proj_weight"),
        "depth.layers.{i}.attn.out_proj.weight": Flat(layer + "self_attn.out_proj.weight"),
        "depth.layers.{i}.ffn.{linear}.weight": Stacked(layer + "gating.{k}.{linear}.weight", W),
        "depth.layers.{i}." + ours_norm: Same(layer + norm, lead=lead),
        "depth.out_norms.weight": (
            Stacked("depformer_norms.{k}.alpha", K, lead=2)
            if config.output_norm == "rms_norm"
            else Stacked("depformer_norms.{k}.weight", K)
        ),
        "depth.out_norms.bias": Stacked("depformer_norms.{k}.bias", K),
        "depth.linears.weight": Stacked("linears.{k}.weight", K),
    }


def rust_depth_entries(config: DepthConfig) -> Entries:
    """The depth Transformer's tensors as the Rust server names them: a whole Transformer for each codebook."""
    K, schedule = config.num_codebooks, config.schedule
    layer = "depformer.{k}.transformer.layers.{i}."
    return {
        "depth.in_proj.weight": Scheduled("depformer.{k}.linear_in.weight", schedule),
        "depth.text_emb.low_rank.weight": Same("depformer.0.emb.low_rank.weight"),
        "depth.text_emb.weight": Same("depformer.0.emb.weight"),
        "depth.audio_emb.weight": Stacked("depformer.{k}.emb.weight", K - 1, first=1),
        "depth.audio_emb.low_rank": Stacked("depformer.{k}.emb.low_rank.weight", K - 1, first=1),
        "depth.layers.{i}.attn.in_proj.weight": Scheduled(layer + "self_attn.in_proj_weight", schedule),
        "depth.layers.{i}.attn.out_proj.weight": Scheduled(layer + "self_attn.out_proj.weight", schedule),
        "depth.layers.{i}.ffn.{linear}.weight": Scheduled(layer + "gating.{linear}.weight", schedule),
        "depth.layers.{i}.{norm}.weight": Scheduled(layer + "{norm}.alpha", schedule, shared=True, lead=2),
        "depth.linears.weight": Stacked("depformer.{k}.linear_out.weight", K),
    }


_PER_STEP = re.compile(r"(depformer\.layers\.\d+\.self_attn\.(?:in|out)_proj)s\.(\d+)\.weight$")


def joined(tensors: Tensors) -> dict[str, Array]:
    """Join the projections of each codebook, as the modules of newer versions name them, to the files' one tensor."""
    out, parts = dict(tensors), dict[str, dict[int, Array]]()
    for name in tensors:
        if match := _PER_STEP.match(name):
            usual = match[1] + ("_weight" if match[1].endswith("in_proj") else ".weight")
            parts.setdefault(usual, {})[int(match[2])] = out.pop(name)
    for name, rows in parts.items():
        if name in out:  # the alias of the first one
            rows[0] = out.pop(name)
    return out | {name: np.concatenate([rows[k] for k in sorted(rows)]) for name, rows in parts.items()}
