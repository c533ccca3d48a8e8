"""What scripts import from `moshi.run_inference`."""

from __future__ import annotations

from slipstream.moshi.conditioners import ConditionAttributes, ConditionTensors
from slipstream.moshi.models.lm import LMModel


def get_condition_tensors(model_type: str, lm: LMModel, batch_size: int, cfg_coef: float = 1.0) -> ConditionTensors:
    """The conditions of `batch_size` streams as the checkpoint's config sets them; empty for a model without any."""
    if model_type != "stt" or cfg_coef != 1.0:
        raise ValueError(f"model_type={model_type!r}, cfg_coef={cfg_coef}: expected 'stt' and 1, for speech to text")
    provider = lm.condition_provider
    if provider is None:
        return {}
    return provider.prepare_and_provide([ConditionAttributes(text=dict(lm.condition_values))] * batch_size)
