"""The waveform codec's training: its output approaches its input, and quantiser dropout drops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train import world

from slipstream.data.augment import WaveAugment
from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.data.phones import UNKNOWN, PhoneInventory
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig
from slipstream.nn.mimi import SplitResidualVQ
from slipstream.train.adversary import Discriminator
from slipstream.train.codebooks import quantise, refresh, start_codebooks
from slipstream.train.loop import Trainer
from slipstream.train.options import LossOptions, QuantiserOptions, RunOptions
from slipstream.train.reconstruction import CropSampler, ReconstructionTask, WaveCodec

CODEC = CodecConfig(
    num_filters=4,
    ratios=(8, 6, 5, 4),
    transformer=world.config().codec.transformer,
    codebook_dim=16,
    codebook_size=16,
    num_codebooks=4,
)


def _pack(folder: Path) -> Pack:
    items = []
    for samples, words in world.utterances(4):
        phones = (("_", 0.0), *(("a", word.start) for word in words))
        clip = Clip(0, 0, "", "en", "chords", "sine", (), phones)
        items.append((np.round(samples * 32767).astype(np.int16)[:, None], clip))
    write_pack(folder, PackKind("samples", 1, 24_000.0, (0.0,)), items)
    return Pack(folder)


def _sampler(folder: Path, augment: WaveAugment | None = None) -> CropSampler:
    return CropSampler([_pack(folder)], PhoneInventory(["_", "a"]), CODEC, {"chords": 1.0}, 0.64, 0, augment)


def test_crops_hold_whole_frames_and_their_phones(tmp_path: Path) -> None:
    crops = _sampler(tmp_path).batch(0, 4)
    assert crops.samples_BS.shape == (4, 8 * 1920)
    assert crops.phones_BT.shape == (4, 8)
    assert set(crops.phones_BT.ravel()) <= {0, 1, UNKNOWN}
    assert 1 in crops.phones_BT


def test_augmented_crops_sound_otherwise_and_keep_their_phones(tmp_path: Path) -> None:
    plain = _sampler(tmp_path / "plain").batch(0, 4)
    augmented = _sampler(tmp_path / "augmented", WaveAugment(reverb=0.5, noise=0.5)).batch(0, 4)
    again = _sampler(tmp_path / "again", WaveAugment(reverb=0.5, noise=0.5)).batch(0, 4)
    assert augmented.samples_BS.dtype == np.float32
    assert augmented.samples_BS.shape == plain.samples_BS.shape
    assert not np.allclose(augmented.samples_BS, plain.samples_BS)
    assert np.array_equal(augmented.phones_BT, plain.phones_BT)
    assert np.array_equal(augmented.samples_BS, again.samples_BS)


def test_a_killed_run_with_a_discriminator_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def run(folder: Path, **changes: object) -> Trainer:
        torch.manual_seed(0)
        module = WaveCodec(CODEC, 2, Discriminator((512, 128), 4))
        sampler = CropSampler([pack], PhoneInventory(["_", "a"]), CODEC, {"chords": 1.0}, 0.64, 0, WaveAugment())
        task = ReconstructionTask(module, sampler, LossOptions(), QuantiserOptions(start=4, codebook_dropout=0.3))
        options = {"out": folder, "steps": 6, "rows": 4, "log_every": 2} | changes
        return Trainer(task, RunOptions.model_validate(options), lambda line: None)

    def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
        loaded: dict[str, torch.Tensor] = torch.load(trainer.run(), weights_only=True)["weights"]
        return loaded

    pack = _pack(tmp_path / "pack")
    first = run(tmp_path / "whole")
    before = {name: parameter.detach().clone() for name, parameter in first.task.module.named_parameters()}
    whole = weights(first)
    logged = json.loads((tmp_path / "whole" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert {"adversarial", "features", "discriminator"} <= logged.keys()
    matrices = [n for n, parameter in before.items() if n.startswith("discriminator.") and parameter.dim() > 1]
    assert matrices
    assert all(not torch.equal(before[name], whole[name]) for name in matrices)

    killed = run(tmp_path / "killed", checkpoint_every=3)
    world.kill_at(5, killed)
    resumed = weights(run(tmp_path / "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_output_of_the_codec_approaches_its_input(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = ReconstructionTask(
        WaveCodec(CODEC, 2),
        _sampler(tmp_path / "pack"),
        LossOptions(),
        QuantiserOptions(start=15, codebook_dropout=0.3),
    )
    losses: list[float] = []
    loss = task.loss

    def remembered(*arguments: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, numbers = loss(*arguments)  # type: ignore[arg-type]
        losses.append(numbers["spectral"].item())
        return total, numbers

    task.loss = remembered  # type: ignore[method-assign]
    options = RunOptions(out=tmp_path / "run", steps=40, rows=4, learning_rate=3e-3, decay=0.0)
    Trainer(task, options, lambda line: None).run()
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])
    assert any(float(b.std()) > 0 for b in task.moving())


def test_quantiser_dropout_keeps_the_first_codebooks() -> None:
    torch.manual_seed(0)
    quantizer = SplitResidualVQ(CODEC)
    latent = torch.randn(3, 20, CODEC.dim)
    start_codebooks(quantizer, latent.flatten(0, 1))
    _, (_, some), _ = quantise(quantizer, latent, update=False, kept_B=torch.tensor([0, 1, 3]))
    _, (_, whole), _ = quantise(quantizer, latent, update=False)
    assert torch.allclose(some[0], torch.zeros_like(some[0]), atol=1e-6)
    assert torch.allclose(some[2], whole[2], atol=1e-6)
    assert not torch.allclose(some[1], whole[1], atol=1e-3)


def test_codebooks_follow_the_vectors_assigned_to_them() -> None:
    torch.manual_seed(0)
    quantizer = SplitResidualVQ(CODEC)
    latent = torch.randn(8, 40, CODEC.dim)
    start_codebooks(quantizer, latent.flatten(0, 1), rounds=1)
    _, _, before = quantise(quantizer, latent, update=False)
    for _ in range(60):
        quantise(quantizer, latent, update=True)
    refresh(quantizer)
    _, _, after = quantise(quantizer, latent, update=False)
    assert after.item() < before.item()


def test_only_samples_train_a_waveform_codec(tmp_path: Path) -> None:
    kind = PackKind("tokens", 4, 12.5, (0.0,) * 4)
    write_pack(tmp_path, kind, [(np.zeros((3, 4)), Clip(0, 0, "", "en", "a", ""))])
    with pytest.raises(ConfigError, match="--samples"):
        CropSampler([Pack(tmp_path)], PhoneInventory(["_"]), CODEC, {"a": 1.0}, 0.64, seed=0)
