"""What a step launches on a device: nothing that waits for the host, and less with the kernels."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks.gpu.launches import DEVICE, Launches, count  # noqa: E402

from slipstream.model.config import STTConfig  # noqa: E402
from slipstream.nn.lm import LM  # noqa: E402
from slipstream.testing import small_config  # noqa: E402


def heads_of_16() -> STTConfig:
    """A model whose heads the kernels have."""
    config, small = small_config(conditioners=()), {"dim": 32, "num_heads": 2}
    codec, lm = (
        part.model_copy(update={"transformer": part.transformer.model_copy(update=small)})
        for part in (config.codec, config.lm)
    )
    return config.model_copy(update={"codec": codec, "lm": lm})


CONFIG = heads_of_16()


def test_the_kernels_launch_less_and_gather_without_copies_of_rings() -> None:
    plain, fast, gathered = (
        count(CONFIG, kernels=kernels, gathered=far) for kernels, far in ((False, False), (True, False), (True, True))
    )
    assert fast.total() < plain.total()
    layers = CONFIG.lm.transformer.num_layers + CONFIG.codec.transformer.num_layers
    assert fast["append"] == fast["attend"] == layers
    assert not fast["index_put_"]
    # Its tails are copied out and back; its rings stay where they are.
    assert gathered["index_select"] - fast["index_select"] == gathered["index_put_"]
    assert gathered["attend"] == layers


def test_the_number_of_operations_does_not_depend_on_the_rows() -> None:
    assert count(CONFIG, kernels=True, rows=2) == count(CONFIG, kernels=True, rows=64)


def test_a_step_that_would_wait_for_the_host_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    text_logits = LM.text_logits

    def reads_the_host(lm: LM, hidden: torch.Tensor) -> torch.Tensor:
        return text_logits(lm, hidden) + torch.zeros(1, device="cpu").to(DEVICE)

    monkeypatch.setattr(LM, "text_logits", reads_the_host)
    with pytest.raises(RuntimeError, match="on the host"):
        count(CONFIG, kernels=False)
    with Launches(), pytest.raises(RuntimeError, match="meta tensors"):
        torch.ones(3, device=DEVICE).sum().item()
