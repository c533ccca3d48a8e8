"""Conditions under Kyutai's names: the attributes of each stream, and their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from slipstream.backends.torch.lm import Conditioner


class ConditionType(NamedTuple):
    """A condition of each stream, `[B, 1, dim]`, and whether it has a value, `[B, 1]`."""

    condition: Tensor
    mask: Tensor


ConditionTensors: TypeAlias = dict[str, ConditionType]


@dataclass(frozen=True)
class TensorCondition:
    """A vector from the caller, `[1, 1, dim]`, and whether it is used, `[1, 1]`."""

    tensor: Tensor
    mask: Tensor

    @staticmethod
    def from_tensor(tensor: Tensor) -> TensorCondition:
        """Return a condition that is used everywhere.

        Args:
            tensor: The vector, `[1, 1, dim]`.
        """
        return TensorCondition(tensor, torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device))


@dataclass
class ConditionAttributes:
    """What one stream is conditioned on, by conditioner name; a missing name or None gives the learnt padding."""

    text: dict[str, str | float | None] = field(default_factory=dict)
    tensor: dict[str, TensorCondition] = field(default_factory=dict)


Prepared: TypeAlias = dict[str, list[str | float | Tensor | None]]


class ConditionProvider:
    """Turns the attributes of each stream into conditions."""

    def __init__(self, conditioners: nn.ModuleDict) -> None:
        self.conditioners = conditioners

    def prepare(self, inputs: Sequence[ConditionAttributes]) -> Prepared:
        """Return the value of each conditioner for each stream.

        Args:
            inputs: The attributes of each stream.

        Raises:
            ValueError: No conditioner has this name.
        """
        given = {name for attributes in inputs for name in (*attributes.text, *attributes.tensor)}
        unknown = sorted(given - set(self.conditioners))
        if unknown:
            raise ValueError(f"unknown condition {', '.join(unknown)}; this model has: {', '.join(self.conditioners)}")
        return {name: [_value(attributes, name) for attributes in inputs] for name in self.conditioners}

    def __call__(self, prepared: Mapping[str, Sequence[str | float | Tensor | None]]) -> ConditionTensors:
        conditions = {}
        for name, values in prepared.items():
            conditioner = cast(Conditioner, self.conditioners[name])
            condition_BD = torch.cat([conditioner(value) for value in values])
            given_B = torch.tensor([value is not None for value in values], device=condition_BD.device)
            conditions[name] = ConditionType(condition_BD[:, None], given_B[:, None])
        return conditions

    def prepare_and_provide(self, inputs: Sequence[ConditionAttributes]) -> ConditionTensors:
        """Return the conditions `[B, 1, dim]` by conditioner name.

        Args:
            inputs: The attributes of each stream.

        Raises:
            ValueError: No conditioner has this name.
        """
        return self(self.prepare(inputs))


def _value(attributes: ConditionAttributes, name: str) -> str | float | Tensor | None:
    if name not in attributes.tensor:
        return attributes.text.get(name)
    given = attributes.tensor[name]
    return given.tensor if bool(given.mask.all()) else None
