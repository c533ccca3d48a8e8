"""Optimisers over full-precision master weights, and the schedule of their rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.errors import CheckpointError, ConfigError
from slipstream.train.muon import Muon
from slipstream.train.sharding import is_sharded, part_of, whole

AGE_RATE = 30.0
"""Factor on the rate of what a Whisper decoder adds to scores by the age of a frame: numbers from 0 to about -5."""

_ENCODER = "codec.encoder."
_OTHER_ORDER = (
    "the checkpoint is of another version of Slipstream, which kept the optimiser's state in another order: give this "
    "run another run.out"
)


def rate_of(name: str, rates: Mapping[str, float]) -> float:
    """Factor on the rate of a weight: that of the last pattern of `rates` that its name matches.

    Example:
        >>> rate_of("lm.transformer.layers.0.cross.q_proj.weight", {"lm.*": 0.2, "*.cross.*": 0.5})
        0.5
    """
    matching = [factor for pattern, factor in rates.items() if fnmatchcase(name, pattern)]
    usual = AGE_RATE if name.endswith(".age") else 1.0
    return matching[-1] if matching else usual


def freeze(module: nn.Module, rates: Mapping[str, float]) -> None:
    """Let the weights whose factor is 0 not learn. Raises `ConfigError` for a pattern that no name matches."""
    names = dict(module.named_parameters())
    for pattern in rates:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"run.rates: no weight of the model matches {pattern!r}; one is named {min(names)!r}")
    for name, parameter in names.items():
        if rate_of(name, rates) == 0:
            parameter.requires_grad_(False)


class MasterWeights:
    """Float32 weights that the optimiser moves, while the module computes in bfloat16.

    bfloat16 keeps 8 bits: a step smaller than 1/256 of a weight would be lost in it. With `dtype` float32 the module's
    own parameters are the masters. Weights that do not learn are in `dtype` too, without a master. Buffers, the
    quantiser's codebooks among them, stay as they are.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.masters: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            if dtype == torch.float32:
                self.masters[name] = parameter
            else:
                self.masters[name] = parameter.detach().float().clone().requires_grad_()
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)

    def collect(self) -> None:
        """Move the module's gradients to the masters."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter and parameter.grad is not None:
                master.grad = parameter.grad.float()
                parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the module."""
        moved = [(p, self.masters[name]) for name, p in self.parameters.items() if self.masters[name] is not p]
        if moved:
            torch._foreach_copy_([p for p, _ in moved], [master for _, master in moved])


class Optimizer:
    """Muon (momentum, orthogonalised) for the Transformers' matrices, AdamW for everything else; or AdamW for all.

    Muon's updates are scaled to AdamW's size, so that one learning rate serves both. Norms and biases do not decay.
    With `slow_encoder` a codec's encoder has its own rate, and its matrices learn by AdamW. `rates`: see
    `rate_of`. `muon_dtype`: type of Muon's products.
    """

    def __init__(
        self,
        masters: dict[str, Tensor],
        kind: str,
        weight_decay: float,
        betas: tuple[float, float],
        slow_encoder: bool = False,
        rates: Mapping[str, float] | None = None,
        muon_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.masters, self.kind = masters, kind
        groups: dict[tuple[bool, bool, bool, float], dict[str, Tensor]] = {}
        for name, weight in masters.items():
            encoder = slow_encoder and name.startswith(_ENCODER)
            age = name.endswith(".age")
            orthogonal = kind == "muon" and weight.dim() == 2 and ".layers." in name and not (encoder or age)
            key = orthogonal, encoder, weight.dim() > 1 and not age, rate_of(name, rates or {})
            groups.setdefault(key, {})[name] = weight
        parts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for (orthogonal, encoder, decays, factor), chosen in groups.items():
            decay = weight_decay if decays else 0.0
            options = {"weight_decay": decay, "encoder": encoder, "factor": factor}
            parts[orthogonal].append({"params": [*chosen.values()], "names": [*chosen], **options})
        self.parts: list[torch.optim.Optimizer] = []
        if parts[True]:
            self.parts.append(Muon(parts[True], weight_decay, dtype=muon_dtype))
        if parts[False]:
            self.parts.append(torch.optim.AdamW(parts[False], lr=0.0, betas=betas, fused=True))

    def step(self, lr: float, clip: float, encoder_rate: float = 1.0) -> Tensor:
        """One step at rate `lr` with gradients clipped to a norm of `clip`; returns their norm before. Clears them.

        Nothing waits for the device, so a norm that is not finite has spoilt the weights: look at it before they are
        written. `encoder_rate`: factor on the rate of a slow encoder.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._with_grad(), clip)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group["factor"] * (encoder_rate if group["encoder"] else 1.0)
            part.step()
            part.zero_grad(set_to_none=True)
        return norm.full_tensor() if is_sharded(norm) else norm

    def _with_grad(self) -> Iterable[Tensor]:
        return [w for w in self.masters.values() if w.grad is not None]

    def state_dict(self) -> list[dict[str, Any]]:
        """What `load_state_dict` takes, on the first process with whole tensors, however they are sharded."""
        return [
            {**state, "state": {n: {k: whole(v) for k, v in values.items()} for n, values in state["state"].items()}}
            for state in (part.state_dict() for part in self.parts)
        ]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take the moments of each weight by its name, and the type of Muon's products; decay and factors stay.

        A weight that did not learn before, or learned by the other of the two algorithms, starts without moments.
        Raises `ConfigError` for the states of another `kind`, and `CheckpointError` for those of an earlier version,
        without names, that do not fit in their order.
        """
        saved = {_kind_of(state["param_groups"]): state for state in states}
        self._check_kind(saved)
        for part in self.parts:
            own = part.state_dict()["param_groups"]
            named = _by_name(saved[kind], own) if (kind := _kind_of(own)) in saved else {}
            moments = {}
            for group, numbered in zip(part.param_groups, own, strict=True):
                for name, number, weight in zip(group["names"], numbered["params"], group["params"], strict=True):
                    values = named.get(name, {})
                    if any(value.dim() and value.shape != weight.shape for value in values.values()):
                        raise CheckpointError(_OTHER_ORDER)
                    # A number, the count of steps, is no part of anything.
                    moments[number] = {k: part_of(v, weight if v.dim() else v) for k, v in values.items()}
                if kind == "muon" and kind in saved:
                    numbered["dtype"] = saved[kind]["param_groups"][0].get("dtype", numbered["dtype"])
            part.load_state_dict({"state": moments, "param_groups": own})

    def _check_kind(self, saved: Mapping[str, dict[str, Any]]) -> None:
        before = "muon" if "muon" in saved else self.kind
        if self.kind == "muon" and "muon" not in saved:
            # Its matrices did not learn, or learned by AdamW: all of them, not only those of a slow encoder.
            by_adamw = {n for group in saved["adamw"]["param_groups"] for n in group.get("names", ())}
            ours = {n for part in self.parts if isinstance(part, Muon) for g in part.param_groups for n in g["names"]}
            before = "adamw" if any(not name.startswith(_ENCODER) for name in ours & by_adamw) else "muon"
        if before != self.kind:
            raise ConfigError(
                f'run.optimizer = "{self.kind}", but the run in run.out learned with "{before}", which keeps other '
                f'moments: set run.optimizer = "{before}" to resume it, or give this run another run.out'
            )


def _kind_of(groups: list[dict[str, Any]]) -> str:
    return "muon" if "momentum" in groups[0] else "adamw"


def _by_name(state: dict[str, Any], own: list[dict[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """The moments in a saved state. `own`: the groups whose names hold for a state without names."""
    saved = state["param_groups"]
    if any("names" not in group for group in saved):
        if [len(group["params"]) for group in saved] != [len(group["params"]) for group in own]:
            raise CheckpointError(_OTHER_ORDER)
        saved = own
    numbers = {name: n for group in saved for name, n in zip(group["names"], group["params"], strict=True)}
    return {name: state["state"][number] for name, number in numbers.items() if number in state["state"]}


def trapezoid(progress: float, warmup: float, decay: float) -> float:
    """Share of the peak learning rate: up over the first `warmup` of the run, down to zero over the last `decay`."""
    if progress < warmup:
        return progress / warmup
    if progress > 1 - decay:
        return max(0.0, 1 - progress) / decay
    return 1.0
