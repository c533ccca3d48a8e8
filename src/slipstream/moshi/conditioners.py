"""Conditions under Kyutai's names: the attributes of each stream, and their vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from slipstream.nn.lm import LM, Conditioner


class ConditionType(NamedTuple):
    """A condition of each stream, `[B, S, dim]`, and where it has a value, `[B, S]`. S is 1 for one that is added."""

    condition: Tensor
    mask: Tensor


ConditionTensors: TypeAlias = dict[str, ConditionType]


@dataclass(frozen=True)
class TensorCondition:
    """Vectors from the caller, `[B, S, dim]`, and which are used, `[B, S]`."""

    tensor: Tensor
    mask: Tensor

    @staticmethod
    def from_tensor(tensor: Tensor) -> TensorCondition:
        """Return a condition that is used everywhere.

        Args:
            tensor: The vectors, `[B, S, dim]`.
        """
        return TensorCondition(tensor, torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device))

    @staticmethod
    def cat(conditions: Sequence[TensorCondition]) -> TensorCondition:
        """Return the conditions of several streams as a batch; shorter ones are extended, and unused there.

        Args:
            conditions: One for each stream, `[1, S, dim]`.
        """
        length = max(condition.tensor.shape[1] for condition in conditions)
        tensor = conditions[0].tensor.new_zeros(len(conditions), length, conditions[0].tensor.shape[2])
        mask = torch.zeros(len(conditions), length, dtype=torch.bool, device=tensor.device)
        for row, condition in enumerate(conditions):
            tensor[row, : condition.tensor.shape[1]] = condition.tensor[0]
            mask[row, : condition.tensor.shape[1]] = condition.mask[0]
        return TensorCondition(tensor, mask)


@dataclass
class ConditionAttributes:
    """What one stream is conditioned on, by conditioner name; a missing name or None gives the learnt padding."""

    text: dict[str, str | float | None] = field(default_factory=dict)
    tensor: dict[str, TensorCondition] = field(default_factory=dict)


def dropout_all_conditions(attributes: Sequence[ConditionAttributes]) -> list[ConditionAttributes]:
    """Return the attributes of each stream with no value for any condition, as guidance needs them.

    Args:
        attributes: The attributes of each stream.
    """
    return [
        ConditionAttributes(
            dict.fromkeys(given.text),
            {
                name: TensorCondition(torch.zeros_like(condition.tensor), torch.zeros_like(condition.mask))
                for name, condition in given.tensor.items()
            },
        )
        for given in attributes
    ]


Prepared: TypeAlias = dict[str, list[str | float | Tensor | None] | TensorCondition]


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
        return {name: self._prepare(name, inputs) for name in self.conditioners}

    def _prepare(
        self, name: str, inputs: Sequence[ConditionAttributes]
    ) -> list[str | float | Tensor | None] | TensorCondition:
        conditioner = cast(Conditioner, self.conditioners[name])
        if conditioner.config.kind != "tensor":
            return [attributes.text.get(name) for attributes in inputs]
        weight = conditioner.output_proj.weight
        none = TensorCondition(weight.new_zeros(1, 1, weight.shape[1]), torch.zeros(1, 1, dtype=torch.bool))
        batch = TensorCondition.cat([attributes.tensor.get(name, none) for attributes in inputs])
        return TensorCondition(batch.tensor.to(weight.device), batch.mask.to(weight.device))

    def __call__(self, prepared: Prepared) -> ConditionTensors:
        conditions = {}
        for name, values in prepared.items():
            conditioner = cast(Conditioner, self.conditioners[name])
            if isinstance(values, TensorCondition):
                conditions[name] = ConditionType(conditioner.sequence(values.tensor, values.mask), values.mask)
                continue
            condition_BD = torch.cat([conditioner(value) for value in values])
            given_B = torch.tensor([value is not None for value in values], device=condition_BD.device)
            conditions[name] = ConditionType(condition_BD[:, None], given_B[:, None])
        return conditions

    def prepare_and_provide(self, inputs: Sequence[ConditionAttributes]) -> ConditionTensors:
        """Return the conditions `[B, S, dim]` by conditioner name.

        Args:
            inputs: The attributes of each stream.

        Raises:
            ValueError: No conditioner has this name.
        """
        return self(self.prepare(inputs))


class ConditionFuser:
    """Joins the conditions of a model."""

    def __init__(self, lm: LM) -> None:
        self._lm = lm

    def get_sum(self, conditions: Mapping[str, ConditionType]) -> Tensor | None:
        """Return what is added to every input, `[B, 1, dim]`; None if nothing is.

        Args:
            conditions: What the provider returned.
        """
        names = [c.name for c in self._lm.config.conditioners if c.fuse == "sum"]
        if not names:
            return None
        return torch.stack([conditions[name].condition for name in names]).sum(dim=0)

    def get_cross(self, conditions: Mapping[str, ConditionType]) -> Tensor | None:
        """Return what the layers attend to, `[B, S, dim]`; None if they do not.

        Args:
            conditions: What the provider returned.
        """
        return self._lm.fuse_cross({name: condition.condition for name, condition in conditions.items()})
