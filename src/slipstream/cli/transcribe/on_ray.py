"""`slipstream transcribe --ray`: recordings on a Ray cluster, to one file or folder of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from slipstream.cli.console import counted, fail, notice
from slipstream.cli.extras import needs_extra
from slipstream.cli.progress import counting_bar
from slipstream.cli.transcribe.sources import find_jobs
from slipstream.errors import AudioError


def transcribe_on_ray(files: Sequence[str], address: str, output: Path, **options: Any) -> None:
    """Transcribe recordings, and write a row for each to `output`.

    Args:
        files: As for `slipstream transcribe`, on a file system that all nodes share.
        address: Of the cluster; `auto` finds one, `local` starts one on this machine.
        output: See `slipstream.ray.data.save`.
        **options: As for `slipstream.ray.transcribe`.
    """
    with needs_extra("ray", "--ray"):
        import ray
        from slipstream.ray.data import save

    jobs = find_jobs(files)
    if pipes := [job.name for job in jobs if job.is_pipe or job.path is None]:
        raise AudioError(f"{pipes[0]}: other machines cannot read a pipe: save it to a file first")
    paths = [str(job.path.absolute()) for job in jobs if job.path is not None]
    ray.init(address, log_to_driver=False, ignore_reinit_error=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with counting_bar("Transcribing") as progress:
        skipped, failures = save(paths, output, progress=progress, **options)
    if skipped:
        notice(f"{skipped} of {len(paths)} were already done.")
    notice(f"{counted(len(paths) - skipped - len(failures), 'transcript')} in {output}.")
    if failures:
        fail(f"{len(failures)} of {len(paths)} failed:\n" + "\n".join(f"  {failure}" for failure in failures))
        raise typer.Exit(1)
