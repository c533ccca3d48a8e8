"""`run.compile`: compiled layers compute the same gradients; without a compiler a run is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.train import world

from slipstream.data.packs import Pack
from slipstream.data.sampler import TokenSampler
from slipstream.errors import ConfigError
from slipstream.model.text import Tokenizer
from slipstream.nn.layers import Transformer
from slipstream.nn.lm import LM
from slipstream.train.launch import compile_layers
from slipstream.train.options import LossOptions
from slipstream.train.tasks import TextTask


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # what PyTorch does as it traces
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_compute_the_same_gradients(tmp_path: Path, checkpointing: bool) -> None:
    world.base_folder(tmp_path)
    torch.manual_seed(0)
    rows = world.rows(4.0, {"chords": 1.0})
    sampler = TokenSampler([Pack(tmp_path / "pack")], Tokenizer(tmp_path / "tokenizer.model"), rows)
    lm = LM(world.config().lm)
    task, batch = TextTask(lm, sampler, LossOptions(), 0.0), sampler.batch(0, 2)
    for module in lm.modules():
        if isinstance(module, Transformer):
            module.checkpointing = checkpointing

    def gradients() -> dict[str, torch.Tensor]:
        lm.zero_grad()
        task.loss(batch, 0, 0.0)[0].backward()
        return {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}

    expected = gradients()
    compile_layers(lm, backend="aot_eager")
    assert all(layer._compiled_call_impl is not None for layer in lm.transformer.layers)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_without_a_compiler_a_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"run\.compile = true needs a C\+\+ compiler"):
        compile_layers(torch.nn.Linear(1, 1))
