"""Report and count recordings that a command cannot use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from slipstream.data.manifest import Recording


class LeftOut:
    """Counts skipped recordings. Call it with a recording and a problem to report and count one."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, recording: Recording, problem: object) -> None:
        self.name(recording.explain(problem))

    def name(self, message: str) -> None:
        """Print `message`, which names a recording and its problem, and count it."""
        typer.echo(message, err=True)
        self.count += 1
