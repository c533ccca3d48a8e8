"""Recordings that a command cannot use: each is named on standard error, and counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from slipstream.data.manifest import Recording


class LeftOut:
    """What was left out so far. Calling it with a recording and a problem leaves that one out, too."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, recording: Recording, problem: object) -> None:
        self.name(recording.explain(problem))

    def name(self, message: str) -> None:
        """Leave out what `message` names and explains."""
        typer.echo(message, err=True)
        self.count += 1
