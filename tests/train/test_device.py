"""Training on a device other than the host: no step waits for it, and no tensor is on the wrong side.

The device is "meta", whose tensors have no numbers. In PyTorch's fake mode an operation on tensors of two devices
raises, and so does one whose result the host would wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.speaking import continuing_config
from tests.train import world
from tests.train.test_waves import WHISPER
from tests.train.test_waves import config as whisper_config
from tests.train.whispers import VOCABULARY, decoder
from torch._subclasses.fake_tensor import FakeTensorMode

from slipstream.data.options import SampleAugment
from slipstream.data.rows import Targets
from slipstream.data.sampler import Batch, TokenBatch
from slipstream.data.speech_rows import SpeechBatch
from slipstream.data.waves import WaveBatch
from slipstream.model.config import CodecConfig
from slipstream.nn.lm import LM
from slipstream.nn.whisper import WhisperEncoder
from slipstream.train.adversary import Discriminator
from slipstream.train.distil import Distilled, DistilTask, Teacher
from slipstream.train.joint import WhisperJointTask
from slipstream.train.keep import OldModel
from slipstream.train.model import SpeechModel
from slipstream.train.optim import MasterWeights, Optimizer
from slipstream.train.options import LossOptions, QuantiserOptions, TTSLossOptions
from slipstream.train.reconstruction import Crops, ReconstructionTask, WaveCodec
from slipstream.train.tasks import JointTask, PhoneTask, TextTask
from slipstream.train.text_teacher import TextTeacher
from slipstream.train.transfer import Receipt
from slipstream.train.tts import SpeakTask

DEVICE = "meta"
B, SECONDS, PHONES = 3, 3.2, 7
T = round(12.5 * SECONDS)
NOW = QuantiserOptions(start=0, share=0.5)


def integers(*shape: int, below: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, below, shape)


def targets() -> Targets:
    flags, draw_B = np.ones((B, T), np.bool_), np.linspace(0, 0.9, B, dtype=np.float32)
    return Targets(integers(B, T), flags, integers(B, T, 4, below=2), np.full(B, 6), integers(B, T), draw_B, flags)


def mel_rows(first_row: int, rows: int) -> Batch:
    mel = np.zeros((B, round(100 * SECONDS), 24), np.float32)
    return Batch(mel, targets(), integers(B, 2 * T, below=PHONES), integers(9, below=PHONES) + 1, np.array([2, 3, 4]))


def wave_rows(first_row: int, rows: int) -> WaveBatch:
    samples = np.zeros((B, round(24_000 * SECONDS)), np.float32)
    labelled, phones = np.array([True, False, True]), integers(B, 4 * T, below=2)
    textual = np.array([False, False, True])
    lengths = np.array([2, 3, 4])
    return WaveBatch(samples, samples, targets(), integers(9) + 1, lengths, labelled, phones, integers(B, T), textual)


def sampler(batch: Callable[[int, int], Any]) -> Any:
    data = SimpleNamespace(seconds=SECONDS, augment_samples=SampleAugment(frequency_masks=2, time_masks=2))
    return SimpleNamespace(
        data=data, frame_rate=12.5, phone_rate=25.0, batch=batch, clean=lambda first, n: batch(first, n).clean_BS
    )


def phones() -> Any:
    return PhoneTask(SpeechModel(world.config(), PHONES), sampler(mel_rows), LossOptions())


def joint() -> Any:
    return JointTask(SpeechModel(world.config(), PHONES), sampler(mel_rows), LossOptions(), NOW)


def text() -> Any:
    lm, old = (LM(world.config(conditioned=True).lm) for _ in range(2))
    tokens = sampler(lambda first, n: TokenBatch(integers(B, 4, T, below=64), targets()))
    return TextTask(lm, tokens, LossOptions(base=1.0), 0.3, OldModel(old.requires_grad_(False), 60))


def teacher() -> Any:
    encoder = WhisperEncoder(WHISPER)
    return WHISPER, {f"encoder.{n}": np.zeros(w.shape, np.float32) for n, w in encoder.state_dict().items()}


def distil() -> Any:
    model, rows = Distilled(whisper_config()), sampler(wave_rows)
    return DistilTask(model, teacher(), rows, LossOptions(ctc=0.5), torch.float32)


def whisper_joint() -> Any:
    model, old = (SpeechModel(whisper_config(), PHONES) for _ in range(2))
    rows = sampler(wave_rows)
    taught = Teacher(teacher(), WHISPER, model.codec.mel, rows.clean, torch.float32)
    pieces = [None] * 4 + [(b"", b"hello"), (b"lo",)]
    tokenizer: Any = SimpleNamespace(vocab_size=6, segments=pieces.__getitem__)
    writer = TextTeacher(decoder(dim=32, heads=2), VOCABULARY, tokenizer, ["en"], torch.float32), 0.5
    return WhisperJointTask(
        model,
        rows,
        LossOptions(base=1.0, spoken=0.5),
        NOW,
        True,
        taught,
        OldModel(old.requires_grad_(False), 60),
        writer,
    )


def reconstruction() -> Any:
    codec = CodecConfig(
        num_filters=4, ratios=(8, 6, 5, 4), transformer=world.config().codec.transformer, codebook_dim=16,
        codebook_size=16, num_codebooks=4,
    )  # fmt: skip
    crops = Crops(np.zeros((B, 8 * 1920), np.float32), integers(B, 8, below=2), np.full(B, 0.5, np.float32))
    rows = SimpleNamespace(seconds=0.64, batch=lambda first, n: crops)
    module = WaveCodec(codec, 2, Discriminator((256, 128), 4))
    return ReconstructionTask(module, rows, LossOptions(), QuantiserOptions(start=0, codebook_dropout=0.5))


def speak() -> Any:
    config = continuing_config()
    rows = sampler(
        lambda first, n: SpeechBatch(
            integers(B, T), integers(B, T, below=2), integers(B, 4, T), integers(B, 4, T, below=2) > 0,
            np.linspace(0, 0.9, B),
        )
    )  # fmt: skip
    rows.config, rows.codebooks = config, 4
    return SpeakTask(LM(config.lm), rows, TTSLossOptions(), 0.5)


def given(task: Any) -> list[torch.nn.Module]:
    """The other models of a task."""
    teacher, old = getattr(task, "teacher", None), getattr(task, "old", None)
    writer = getattr(task, "text_teacher", None)
    others = [*([teacher._encoder] if teacher else []), *([writer[0]._decoder] if writer else [])]
    return [*others, *([old.module] if old else [])]


def move_buffers(module: torch.nn.Module) -> None:
    """Move what was made from arrays, which `module.to` cannot do in fake mode."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(DEVICE)


def ctc_loss(log_probs: torch.Tensor, sequence: torch.Tensor, *lengths: torch.Tensor, **_: object) -> torch.Tensor:
    """In the place of PyTorch's, which has no fake: it needs the sequence on the device and the lengths on the host."""
    assert sequence.device == log_probs.device
    assert all(length.device.type == "cpu" for length in lengths)
    return log_probs.sum()


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("make", [phones, joint, text, distil, whisper_joint, reconstruction, speak])
def test_a_step_never_waits_for_the_device(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "ctc_loss", ctc_loss)
    with FakeTensorMode(), torch.device(DEVICE):
        task = make()
        for module in (task.module, *given(task)):
            move_buffers(module)
        loss, numbers = task.loss(task.batch(0, B), 3, 0.5)
        assert loss.device.type == DEVICE
        assert {number.device.type for number in numbers.values()} == {DEVICE}
        loss.backward()
        for number in numbers.values():
            assert not number.requires_grad
        gradients = [p.grad for p in task.module.parameters() if p.grad is not None]
        assert gradients
        assert {gradient.device.type for gradient in gradients} == {DEVICE}
        task.after_step()


def test_the_fake_device_notices_what_waits_for_it() -> None:
    with FakeTensorMode(), torch.device(DEVICE):
        number = torch.ones(())
        with pytest.raises(Exception, match="local_scalar_dense"):
            number.item()
        with pytest.raises(Exception, match="same device"):
            number[None] + torch.ones(1, device="cpu")


def test_an_optimiser_step_leaves_its_norm_on_the_device() -> None:
    with FakeTensorMode(), torch.device(DEVICE):
        module = torch.nn.Linear(4, 4)
        optimizer = Optimizer(MasterWeights(module, torch.float32).masters, "adamw", 0.01, (0.9, 0.98))
        for part in optimizer.parts:  # "meta" has no fused kernels
            for group in part.param_groups:
                group["fused"] = False
        module(torch.ones(2, 4)).sum().backward()
        assert optimizer.step(1e-3, 1.0).device.type == DEVICE


def test_numbers_are_read_as_they_were_when_they_were_sent() -> None:
    loss = torch.tensor(2.5)
    receipt = Receipt({"loss": loss, "count": torch.tensor(3)})
    loss += 1
    assert receipt.read() == {"loss": 2.5, "count": 3.0}
