"""Where a run's numbers go: lines for people, `log.jsonl` for programs, and experiment trackers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from slipstream.errors import BackendError, ConfigError

Settings = Mapping[str, Any]
"""The run's options, as plain values."""


class Tracker(Protocol):
    """Takes the numbers of a run. `write` gets those of a step; `close` is called once, at the end."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


OpenTracker = Callable[[Path, Settings], Tracker]
"""Opens a tracker for the run in a folder. A run that resumes opens it again."""


class TensorBoard:
    """Event files in `tensorboard`, below the run's folder."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        summary = _need("torch.utils.tensorboard", "tensorboard", "train")
        self._writer = summary.SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in the project that WANDB_PROJECT names; a resumed run continues it."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        wandb = _need("wandb", "wandb", "wandb")
        record = folder / "wandb-id"
        known = record.read_text(encoding="utf-8") if record.is_file() else None
        self._run = wandb.init(dir=str(folder), name=folder.name, config=dict(settings), id=known, resume="allow")
        record.write_text(self._run.id, encoding="utf-8")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, on the server and in the experiment of its environment variables (MLFLOW_TRACKING_URI)."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._mlflow = _need("mlflow", "mlflow-skinny", "mlflow")
        record = folder / "mlflow-id"
        known = record.read_text(encoding="utf-8") if record.is_file() else None
        run = self._mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        record.write_text(run.info.run_id, encoding="utf-8")
        if known is None:
            self._mlflow.log_params({key: str(value)[:500] for key, value in settings.items()})

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, OpenTracker] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def find_tracker(name: str) -> OpenTracker:
    """A tracker by its name, or by `module:callable`. Raises `ConfigError` where there is none."""
    if name in TRACKERS:
        return TRACKERS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(f"run.trackers: {name!r} is none of {', '.join(TRACKERS)}, and no module:callable")
    try:
        return cast(OpenTracker, getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"run.trackers: {name} cannot be imported: {error}") from error


class Log:
    """Lines for people, `log.jsonl`, and trackers; from the first process alone.

    Args:
        folder: of the run.
        trackers: names, as in `run.trackers`.
        settings: what a tracker records of the run.
        silent: for the other processes, which write nothing.
    """

    def __init__(
        self, folder: Path, trackers: Sequence[str] = (), settings: Settings | None = None, *, silent: bool = False
    ) -> None:
        self._file = None
        self._trackers: list[Tracker] = []
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        opened = [find_tracker(name) for name in trackers]
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        try:
            for open_tracker in opened:
                self._trackers.append(open_tracker(folder, settings or {}))
        except BaseException:
            self.close()
            raise

    def write(self, step: int, elapsed: float, numbers: Mapping[str, float], report: Callable[[str], None]) -> None:
        """Write the numbers of a step; `elapsed`: seconds of training."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "elapsed": round(elapsed, 1), **numbers}) + "\n")
        self._file.flush()
        report(f"{elapsed / 60:6.1f} min  step {step}  " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def close(self) -> None:
        """Close the file and the trackers."""
        if self._file is not None:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _need(module: str, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendError(
            f"run.trackers needs the package {package}: pip install 'slipstream-stt[{extra}]', or leave it out"
        ) from error
