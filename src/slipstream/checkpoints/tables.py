"""Tables of tensors: which tensors of a layout hold the same numbers as which canonical ones, in both directions.

A table is data that is computed from a configuration. It has the name and shape of every tensor on both sides before a
file is opened, so that one error can report everything that is wrong with the file.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from slipstream.checkpoints.eight_bit import EightBit
from slipstream.checkpoints.tensors import Array, Tensors, is_finite
from slipstream.errors import CheckpointError
from slipstream.model.names import Shapes

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]


class Form(Protocol):
    """How a layout stores one or more canonical tensors: under which names, and in which shape.

    A name can contain the placeholders of the entry's key, such as `{i}`.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        """The layout's shapes, in the order of `names`, for these canonical ones."""
        ...

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        """The canonical arrays, of shapes `ours`."""
        ...

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        """The layout's arrays."""
        ...


@dataclass(frozen=True, slots=True)
class Same:
    """The same numbers in the same order, with `lead` or `trail` additional axes of length 1."""

    name: str
    lead: int = 0
    trail: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        return [(1,) * self.lead + shape + (1,) * self.trail for shape in ours]

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        return [theirs[0].reshape(ours[0])]

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        return [ours[0].reshape(self.shapes([ours[0].shape])[0])]


@dataclass(frozen=True, slots=True)
class Stacked:
    """The rows of one canonical tensor, each a separate tensor; `{k}` in the name is the row's number plus `first`.

    `lead`: additional axes of length 1 of each.
    """

    name: str
    count: int
    first: int = 0
    lead: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.name.replace("{k}", str(self.first + k)) for k in range(self.count))

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        return [(1,) * self.lead + ours[0][1:]] * self.count

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        if not theirs:
            return [np.zeros(ours[0], np.float32)]
        return [np.stack([array.reshape(ours[0][1:]) for array in theirs])]

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        return [row.reshape((1,) * self.lead + row.shape) for row in ours[0]]


@dataclass(frozen=True, slots=True)
class Joined:
    """The rows of several canonical tensors in one, followed by a row of zeros."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def shapes(self, ours: Sequence[Shape]) -> Sequence[Shape]:
        return [(sum(_rows(shape) for shape in ours) + 1, ours[0][-1])]

    def read(self, theirs: Sequence[Array], ours: Sequence[Shape]) -> Sequence[Array]:
        ends = np.cumsum([_rows(shape) for shape in ours])
        parts = np.split(theirs[0], ends)[:-1]
        return [part.reshape(shape) for part, shape in zip(parts, ours, strict=True)]

    def write(self, ours: Sequence[Array]) -> Sequence[Array]:
        width = ours[0].shape[-1]
        rows = [array.reshape(-1, width) for array in ours]
        return [np.concatenate([*rows, np.zeros((1, width), rows[0].dtype)])]


@dataclass(frozen=True, slots=True)
class Rule:
    """Some canonical tensors and the layout's tensors that hold the same numbers."""

    ours: Shapes
    theirs: Shapes
    form: Form


@dataclass(frozen=True, slots=True)
class Table:
    """One part (LM or codec) of a checkpoint in one layout.

    Attributes:
        constants: Tensors without information: written, and skipped when they are read.
        aliases: Patterns of other spellings that are read too, with the usual spelling.
        skipped: A pattern of names that belong to other parts.
        surplus: A pattern of names of which a file can have more than the configuration needs: a model can run with
            the first of its codebooks or pause heads.
        decode: Turns a file's tensors into plain ones (quantised weights), given the expected names and shapes.
        packed: Names of the tensors that hold whole numbers; the others are floats.
    """

    rules: tuple[Rule, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)
    aliases: tuple[tuple[str, str], ...] = ()
    skipped: str = r"(?!)"
    surplus: str = r"(?!)"
    decode: Callable[[Tensors, Shapes], Tensors] = lambda tensors, _: tensors
    packed: frozenset[str] = frozenset()

    @property
    def shapes(self) -> Shapes:
        """Names and shapes of the layout's tensors."""
        return {name: shape for rule in self.rules for name, shape in rule.theirs.items()}

    def spelled(self, name: str) -> str:
        """A file's name for a tensor, in the layout's usual spelling."""
        for pattern, usual in self.aliases:
            name = re.sub(pattern, usual, name)
        return name

    def read(self, tensors: Tensors, where: str, *, keep_int8: bool = False) -> dict[str, Array]:
        """Turn a file's tensors into canonical ones.

        Args:
            tensors: The file's tensors.
            where: What to call the file in messages.
            keep_int8: Leave matrices in 8 bits or fewer as `EightBit`; otherwise they become floats.

        Raises:
            CheckpointError: The message names every tensor that is missing, unknown, of a wrong shape or type, or holds
                NaN or infinity.
        """
        shapes = self.shapes
        found = self.decode({self.spelled(name): array for name, array in tensors.items()}, shapes)
        surplus = [name for name in found if name not in shapes and re.match(self.surplus, name)]
        if surplus:
            counts = Counter(name.partition(".")[0] for name in surplus)
            more = " and ".join(f"{count} more `{stem}`" for stem, count in counts.items())
            logger.warning("%s has %s than the configuration: they are not used", where, more)
        problems = {
            "missing": [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in found],
            "not known": [
                f"{name} {list(array.shape)}"
                for name, array in found.items()
                if name not in shapes and name not in self.constants and name not in surplus
                if not re.match(self.skipped, name)
            ],
            "of a wrong shape": [
                f"{name} {list(found[name].shape)}, expected {list(shape)}"
                for name, shape in shapes.items()
                if name in found and found[name].shape != shape
            ],
            "of a wrong type": [
                f"{name} {found[name].dtype}, expected floating point"
                for name in shapes
                if name in found and name not in self.packed and found[name].dtype.kind in "biu"
            ],
            "not finite (NaN or infinity)": [
                name
                for name in shapes
                if name in found and not isinstance(found[name], EightBit) and not is_finite(found[name])
            ],
        }
        if any(problems.values()):
            raise CheckpointError(_report(problems, where))
        out: dict[str, Array] = {}
        for rule in self.rules:
            arrays = rule.form.read([found[name] for name in rule.theirs], list(rule.ours.values()))
            out |= zip(rule.ours, arrays, strict=True)
        return out if keep_int8 else {name: np.asarray(array) for name, array in out.items()}

    def write(self, tensors: Tensors) -> dict[str, Array]:
        """Turn canonical tensors into the layout's, including its constants."""
        out: dict[str, Array] = {}
        for rule in self.rules:
            arrays = rule.form.write([tensors[name] for name in rule.ours])
            out |= zip(rule.theirs, arrays, strict=True)
        return out | dict(self.constants)


Entries = dict[str | tuple[str, ...], Form]
"""A layout's form for each canonical name, or for names that it merges."""


def make_rules(shapes: Shapes, entries: Entries, spell: Callable[[str], str] = str) -> tuple[Rule, ...]:
    """The rules for every tensor in `shapes`, from entries keyed by canonical names with placeholders.

    A placeholder `{i}` represents one part of a name between dots; the form's names can use it. A key of several
    names (without placeholders) is for tensors that a layout merges. `spell` turns a canonical name into what the
    keys are written in. Raises `CheckpointError` for tensors that no entry covers: the layout has no place for them.
    """
    rules = []
    rest = {spell(name): name for name in shapes}
    for key, form in entries.items():
        if isinstance(key, tuple):
            rules.append(_rule({rest.pop(spell(name)): shapes[name] for name in key}, form, {}))
            continue
        for spelled, placeholders in _matches(key, rest):
            name = rest.pop(spelled)
            rules.append(_rule({name: shapes[name]}, form, placeholders))
    if rest:
        raise CheckpointError(f"this layout has no place for {', '.join(rest.values())}")
    return tuple(rules)


def _matches(key: str, names: Collection[str]) -> list[tuple[str, dict[str, str]]]:
    """Names that an entry's key represents, each with the parts that its placeholders represent."""
    if "{" not in key:
        return [(key, {})] if key in names else []
    pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+)", re.escape(key)))
    return [(name, match.groupdict()) for name in names if (match := pattern.fullmatch(name))]


def _rows(shape: Shape) -> int:
    return int(np.prod(shape[:-1]))


def _rule(ours: Shapes, form: Form, placeholders: Mapping[str, str]) -> Rule:
    names = form.names
    for key, value in placeholders.items():
        names = tuple(name.replace(f"{{{key}}}", value) for name in names)
    return Rule(ours, dict(zip(names, form.shapes(list(ours.values())), strict=True)), form)


def _report(problems: Mapping[str, Sequence[str]], where: str) -> str:
    lines = [f"{where} does not fit its configuration:"]
    for problem, names in problems.items():
        if names:
            lines.append(f"  {len(names)} {problem}:")
            lines += (f"    {name}" for name in names)
    return "\n".join(lines)
