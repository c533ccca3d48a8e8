"""Rows of waveforms, and what learns from them: distillation of Whisper's encoder, and an LM on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.train import world

from slipstream.data.augment import RowNoise, WaveAugment
from slipstream.data.options import SampleAugment
from slipstream.data.packs import Clip, Pack, PackKind, write_pack
from slipstream.data.phones import UNKNOWN, PhoneInventory, fold
from slipstream.data.rows import misread
from slipstream.data.sampler import TokenSampler
from slipstream.data.waves import WaveSampler
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import PAD_ID, STTConfig, WhisperConfig, WhisperDecoderConfig
from slipstream.model.numerics import NO_TOKEN
from slipstream.model.text import Tokenizer
from slipstream.nn.whisper import WhisperEncoder
from slipstream.train.distil import Distilled, DistilTask, Teacher
from slipstream.train.joint import WhisperJointTask, frame_features, masked
from slipstream.train.keep import old_model
from slipstream.train.loop import Trainer
from slipstream.train.lora import add_lora
from slipstream.train.model import SpeechModel, text_hidden
from slipstream.train.optim import freeze
from slipstream.train.options import LoraOptions, LossOptions, QuantiserOptions, RunOptions
from slipstream.train.text_teacher import TextTeacher
from slipstream.train.whisper_start import start_spread

WHISPER = WhisperConfig(n_mels=80, dim=32, num_heads=2, num_layers=2, ffn_dim=64, context=20, lookahead=4)
CLEAN = WaveAugment(reverb=0, noise=0, telephone=0, clip=0, gain=0)
QUIET = RowNoise(0.0, (5, 30))


def config() -> STTConfig:
    base = world.config()
    codec = base.codec.model_copy(update={"mel": None, "whisper": WHISPER})
    return STTConfig(codec=codec, lm=base.lm, delay_seconds=0.48, delay_frames=6)


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Eight utterances of chords with the times of their words, and one that nobody transcribed."""
    items = []
    for samples, words in world.utterances():
        timed = tuple((word.text, word.start, word.end) for word in words)
        text = " ".join(word.text for word in words)
        phones = tuple((word.text[0], word.start) for word in words)
        rows = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)[:, None]
        items.append((rows, Clip(0, 0, text, "en", "chords", "s", timed, phones)))
    items.append((items[0][0], Clip(0, 0, "", "en", "untranscribed", "s")))
    write_pack(tmp_path / "pack", PackKind("samples", 1, 24000.0, (0.0,)), items)
    return Pack(tmp_path / "pack")


def sampler(pack: Pack, folder: Path, weights: dict[str, float], **options: object) -> WaveSampler:
    rows = world.rows(3.2, weights)
    given: dict[str, object] = {"effects": CLEAN, "noise": QUIET, "speed": 1.0, **options}
    return WaveSampler([pack], Tokenizer(world.tokenizer(folder)), rows, **given)  # type: ignore[arg-type]


def test_a_row_has_the_utterances_and_their_texts(pack: Pack, tmp_path: Path) -> None:
    phones = PhoneInventory(["_", *sorted({word[0] for word in world.WORDS})])
    batch = sampler(pack, tmp_path, {"chords": 1.0}, phones=phones).batch(0, 2)
    assert batch.clean_BS.shape == (2, round(3.2 * 24000))
    assert np.array_equal(batch.clean_BS, batch.heard_BS)
    assert batch.labelled_B.all()
    assert len(batch.sequence) == batch.lengths_B.sum()
    assert (batch.targets.text_BT != PAD_ID).any(axis=1).all()
    assert set(batch.phones_BP.ravel()) > {UNKNOWN}


def test_another_speaker_talks_under_a_row_and_is_not_transcribed(pack: Pack, tmp_path: Path) -> None:
    alone = sampler(pack, tmp_path, {"chords": 1.0})
    augment = SampleAugment(**CLEAN.model_dump(), speed=1.0, overlap=1.0, overlap_db=(10.0, 10.0))
    under = alone.changed(alone.data.model_copy(update={"augment_samples": augment}))
    a, b = alone.batch(0, 2), under.batch(0, 2)
    assert np.array_equal(a.clean_BS, b.clean_BS)
    assert np.array_equal(a.sequence, b.sequence)
    other = b.heard_BS - a.heard_BS
    speaking = np.abs(other) > 1e-4
    level = np.sqrt(np.square(a.heard_BS).sum() / (a.heard_BS != 0).sum())
    assert 0.15 < np.sqrt(np.square(other[speaking]).mean()) / level < 0.6


def test_some_rows_have_sounds_without_speech(pack: Pack, tmp_path: Path) -> None:
    spoken = sampler(pack, tmp_path, {"chords": 1.0})
    augment = SampleAugment(**CLEAN.model_dump(), speed=1.0, sounds_alone=0.5)
    batch = spoken.changed(spoken.data.model_copy(update={"augment_samples": augment})).batch(0, 24)
    alone = ~batch.clean_BS.any(axis=1)
    assert 5 < alone.sum() < 19
    assert batch.heard_BS.any(axis=1).all()
    assert not np.abs(batch.heard_BS).max() > 1
    assert np.array_equal((batch.targets.text_BT == PAD_ID).all(axis=1), alone)
    assert np.array_equal(batch.labelled_B, ~alone)
    assert not batch.targets.pause_BTH[alone].any()
    assert batch.targets.mask_BT.all()


def test_noise_is_in_the_input_and_not_in_the_target(pack: Pack, tmp_path: Path) -> None:
    sounds = np.random.default_rng(0).integers(-999, 999, 400_000).astype(np.int16)
    clean = sampler(pack, tmp_path, {"chords": 1.0}).batch(0, 1).heard_BS

    def noise(snr_db: float) -> float:
        batch = sampler(pack, tmp_path, {"chords": 1.0}, noise=RowNoise(1.0, (snr_db, snr_db), sounds)).batch(0, 1)
        assert np.array_equal(batch.clean_BS, clean)
        return float(np.square(batch.heard_BS - clean).mean())

    assert 10 * np.log10(noise(20) / noise(30)) == pytest.approx(10, abs=0.1)


def test_rows_of_untranscribed_speech_are_not_labelled(pack: Pack, tmp_path: Path) -> None:
    batch = sampler(pack, tmp_path, {"untranscribed": 1.0}).batch(0, 2)
    assert batch.clean_BS.any()
    assert not batch.labelled_B.any()
    assert not batch.lengths_B.any()


def test_rows_of_waves_depend_on_their_number_alone(pack: Pack, tmp_path: Path) -> None:
    rows = sampler(pack, tmp_path, {"chords": 1.0}, effects=WaveAugment(), speed=1.2)
    assert np.array_equal(rows.batch(4, 2).heard_BS[1], rows.batch(5, 1).heard_BS[0])


def test_a_student_that_starts_from_its_teacher_is_near_it(pack: Pack, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = WhisperEncoder(WHISPER)
    tensors = {f"encoder.{name}": w.numpy().copy() for name, w in encoder.state_dict().items()}
    student = Distilled(config())
    task = DistilTask(
        student, (WHISPER, tensors), sampler(pack, tmp_path, {"chords": 1.0}), LossOptions(ctc=0.5), torch.float32
    )
    batch = task.batch(0, 2)
    far = task.loss(batch, 0, 0.0)[1]["cosine"]
    student.codec.encoder.load_state_dict(encoder.state_dict())
    loss, numbers = task.loss(batch, 0, 0.0)
    assert numbers["cosine"] > far + 0.05
    loss.backward()
    assert all(p.grad is not None for n, p in student.codec.encoder.named_parameters() if "positions" not in n)
    assert student.ctc_head.weight.grad is not None
    task.place_codebooks()
    assert student.codec.quantizer.semantic.codebooks[0].vectors.any()


def decoder_config() -> STTConfig:
    """The same with a Whisper decoder as the LM."""
    base = config()
    shape = {"norm": "layer_norm", "gated": False, "positions": "none", "context": 8}
    changes = {"transformer": base.lm.transformer.model_copy(update=shape), "whisper": WhisperDecoderConfig()}
    return base.model_copy(update={"lm": base.lm.model_copy(update=changes)})


@torch.no_grad()
def test_vectors_start_nearer_to_the_features_than_a_mean_for_each_frame(pack: Pack, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = decoder_config()
    shape = whole.lm.transformer.model_copy(update={"dim": WHISPER.dim, "num_heads": 2})
    lm = whole.lm.model_copy(update={"transformer": shape, "whisper": WhisperDecoderConfig(vectors=4)})
    model = SpeechModel(whole.model_copy(update={"lm": lm}), 3)
    options = world.rows(3.2, {"chords": 1.0}, sentences=["Two three!"], text_share=0.3)
    rows = WaveSampler([pack], Tokenizer(world.tokenizer(tmp_path)), options, effects=CLEAN, noise=QUIET, speed=1.0)
    features_NF = frame_features(model, rows)
    audible = sum(not rows.batch(n, 1).textual_B[0] for n in range(64))
    assert 30 < audible < 64
    assert features_NF.shape == (audible * 40, 4 * WHISPER.dim)
    start_spread(model, features_NF)
    x_1PD = features_NF[:40].reshape(1, 160, WHISPER.dim)
    x_1PD = F.pad(x_1PD, (0, 0, 0, WHISPER.delay))  # which the latents lag behind
    kept = model.lm.transformer.spread(model.latent(x_1PD)[:, WHISPER.delay // 4 :]).reshape(1, 160, -1)
    means = x_1PD[:, :160].unflatten(1, (40, 4)).mean(dim=2).repeat_interleave(4, dim=1)
    assert F.mse_loss(kept, x_1PD[:, :160]) < 0.5 * F.mse_loss(means, x_1PD[:, :160])


def test_features_of_rows_of_text_alone_are_refused(pack: Pack, tmp_path: Path) -> None:
    options = world.rows(3.2, {"chords": 1.0}, sentences=["Two three!"], text_share=1.0)
    rows = WaveSampler([pack], Tokenizer(world.tokenizer(tmp_path)), options, effects=CLEAN, noise=QUIET, speed=1.0)
    with pytest.raises(ConfigError, match=r"the first 64 rows of the run are text alone.*lower data\.text_share"):
        frame_features(SpeechModel(decoder_config(), 3), rows)


def test_some_bands_and_stretches_are_hidden() -> None:
    torch.manual_seed(0)
    mel = torch.randn(3, 20, 200)
    hidden = masked(mel, 2, 3) != mel
    assert torch.equal(masked(mel, 0, 0), mel)
    bands, stretches = hidden.all(dim=2).sum(dim=1), hidden.all(dim=1).sum(dim=1)
    assert 0 < bands.max() <= 2 * (20 // 7)
    assert 0 < stretches.max() <= 3 * 30
    whole = masked(torch.arange(2.0)[:, None, None].expand(2, 20, 200), 2, 3)
    assert torch.equal(whole, torch.arange(2.0)[:, None, None].expand(2, 20, 200))  # a row's mean replaces it


@pytest.mark.parametrize("make", [config, decoder_config])
@pytest.mark.parametrize("learns", [True, False])
def test_an_lm_learns_with_a_trained_or_frozen_encoder(
    pack: Pack, tmp_path: Path, learns: bool, make: Callable[[], STTConfig]
) -> None:
    torch.manual_seed(0)
    phones = PhoneInventory(["_", "o", "t"])
    model = SpeechModel(make(), len(phones))
    before = {name: w.clone() for name, w in model.state_dict().items()}
    rows = sampler(pack, tmp_path, {"chords": 1.0}, phones=phones)
    task = WhisperJointTask(model, rows, LossOptions(spoken=0.5), QuantiserOptions(start=2), learns)
    options = RunOptions(out=tmp_path / "run", steps=4, rows=2, encoder_rate=float(learns))
    Trainer(task, options, lambda line: None).run()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("codec.encoder.") for name in moved) == learns
    assert {"lm.text_linear.weight", "phone_head.weight", "token_head.weight", "codec.downsample.weight"} <= moved
    assert "codec.quantizer.semantic.codebooks.0.embedding_sum" in moved


def test_a_run_in_bfloat16_keeps_the_projections_that_it_starts_from(pack: Pack, tmp_path: Path) -> None:
    def weights_of(train: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = SpeechModel(decoder_config(), 3)
        rows = sampler(pack, tmp_path, {"chords": 1.0})
        task = WhisperJointTask(model, rows, LossOptions(), QuantiserOptions(start=2), True)
        if train:
            options = RunOptions(
                out=tmp_path / "run", steps=2, rows=2, dtype="bfloat16", learning_rate=1e-6, checkpoint_every=1
            )
            Trainer(task, options, lambda line: None).run()
        else:
            task.prepare()
        return {name: weight.float() for name, weight in model.state_dict().items()}

    started, trained = weights_of(False), weights_of(True)
    for name in ("codec.quantizer.semantic.input_proj.weight", "semantic_in.weight"):
        torch.testing.assert_close(trained[name], started[name], rtol=0.02, atol=1e-3)


def test_a_resumed_run_keeps_projections_that_do_not_learn(pack: Pack, tmp_path: Path) -> None:
    def projection(steps: int) -> torch.Tensor:
        torch.manual_seed(0)
        model = SpeechModel(config(), 3)
        task = WhisperJointTask(
            model, sampler(pack, tmp_path, {"chords": 1.0}), LossOptions(), QuantiserOptions(start=2), True
        )
        drawn = model.codec.quantizer.semantic.input_proj.weight.detach().clone()
        options = RunOptions(out=tmp_path / "run", steps=steps, rows=2, rates={"*.input_proj.*": 0.0})
        Trainer(task, options, lambda line: None).run()
        kept = model.codec.quantizer.semantic.input_proj.weight.detach()
        assert not torch.equal(kept, drawn)
        return kept

    torch.testing.assert_close(projection(1), projection(2))


def test_whispers_decoder_learns_through_adapters(pack: Pack, tmp_path: Path) -> None:
    lm = SpeechModel(decoder_config(), 3).lm
    add_lora(lm, LoraOptions(rank=2))
    targets = sampler(pack, tmp_path, {"chords": 1.0}).batch(0, 2).targets
    audio_BTD = torch.randn(*targets.text_BT.shape, lm.config.transformer.dim)
    text_hidden(lm, audio_BTD, targets, 12.5).square().mean().backward()
    learning = {name for name, parameter in lm.named_parameters() if parameter.grad is not None}
    assert all(".down." in name or ".up." in name for name in learning)
    assert any(".cross." in name for name in learning)


def test_an_encoder_that_learns_with_the_lm_keeps_to_its_teacher(pack: Pack, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, rows = SpeechModel(config(), 3), sampler(pack, tmp_path, {"chords": 1.0})
    tensors = {f"encoder.{n}": w.numpy().copy() for n, w in model.codec.encoder.state_dict().items()}
    teacher = Teacher((WHISPER, tensors), WHISPER, model.codec.mel, rows.clean, torch.float32)
    nothing = LossOptions(text=0, spoken=0, pause=0, commitment=0, frame_phones=0)
    task = WhisperJointTask(model, rows, nothing, QuantiserOptions(start=0), True, teacher)
    loss, numbers = task.loss(rows.batch(0, 2), 0, 0.0)
    loss.backward()
    weight = model.codec.encoder.conv1.weight
    assert weight.grad is not None
    assert weight.grad.any()
    assert "cosine" in numbers
    task.encoder_learns = False
    assert "cosine" not in task.loss(rows.batch(0, 2), 0, 0.0)[1]


def test_the_text_follows_the_decoder_of_the_teacher(pack: Pack, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, rows = SpeechModel(config(), 3), sampler(pack, tmp_path, {"chords": 1.0})
    tensors = {f"encoder.{n}": w.numpy().copy() for n, w in model.codec.encoder.state_dict().items()}
    teacher = Teacher((WHISPER, tensors), WHISPER, model.codec.mel, rows.clean, torch.float32)
    batch, heard = rows.batch(0, 2), []

    class Decoder:
        def loss(self, logits_BTV: torch.Tensor, text_BT: Any, mask_BT: Any, features_BPD: torch.Tensor) -> Any:
            heard.append((text_BT, mask_BT, features_BPD))
            return -logits_BTV.sum()

    alone = LossOptions(spoken=0, pause=0, commitment=0, frame_phones=0, distil=0)
    task = WhisperJointTask(
        model, rows, alone, QuantiserOptions(start=0), True, teacher, text_teacher=(cast(TextTeacher, Decoder()), 0.5)
    )
    total, numbers = task.loss(batch, 0, 0.0)
    torch.testing.assert_close(total, numbers["text"] + numbers["taught"])
    assert numbers["taught"] != 0
    np.testing.assert_array_equal(heard[0][0], batch.targets.text_BT)
    np.testing.assert_array_equal(heard[0][1], batch.targets.mask_BT)
    torch.testing.assert_close(heard[0][2], teacher.features(batch.clean_BS))


@pytest.mark.parametrize("learns", [True, False])
def test_the_divergence_from_the_base_counts_what_has_changed(pack: Pack, tmp_path: Path, learns: bool) -> None:
    torch.manual_seed(0)
    model = SpeechModel(config(), 3)
    loss = LossOptions(base=2.0, commitment=0.0, spoken=0.0, pause=0.0)
    old = old_model(model, loss, None)
    rows = sampler(pack, tmp_path, {"chords": 1.0})
    task = WhisperJointTask(model, rows, loss, QuantiserOptions(start=0, share=1.0), learns, old=old)
    batch = rows.batch(0, 2)
    assert task.loss(batch, 0, 0.0)[1]["base"].item() == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        model.lm.text_linear.weight.add_(0.1 * torch.randn_like(model.lm.text_linear.weight))
    total, numbers = task.loss(batch, 0, 0.0)
    assert numbers["base"] > 1e-3
    assert total.item() == pytest.approx((numbers["text"] + 2 * numbers["base"]).item(), rel=1e-4)


def test_only_the_frames_of_replayed_datasets_are_kept(pack: Pack, tmp_path: Path) -> None:
    tokenizer, both = Tokenizer(world.tokenizer(tmp_path)), {"chords": 1.0, "untranscribed": 1.0}
    kept = {}
    for name, replay in (("none", ()), ("one", ("untranscribed",)), ("both", tuple(both))):
        options = world.rows(3.2, both, replay=replay)
        rows = WaveSampler([pack], tokenizer, options, effects=CLEAN, noise=QUIET, speed=1.0)
        kept[name] = rows.batch(0, 8).targets.kept_BT
    assert kept["none"].all()
    assert 0 < kept["one"].sum() < kept["both"].sum() < kept["none"].sum()
    assert not (kept["one"] & ~kept["both"]).any()


def test_the_encoder_reads_only_rows_that_have_audio(pack: Pack, tmp_path: Path) -> None:
    model = SpeechModel(config(), 3)
    rows = WaveSampler(
        [pack],
        Tokenizer(world.tokenizer(tmp_path)),
        world.rows(3.2, {"chords": 1.0}, sentences=["Two three!"], text_share=0.5),
        effects=CLEAN,
        noise=QUIET,
        speed=1.0,
    )
    task = WhisperJointTask(model, rows, LossOptions(), QuantiserOptions(start=0, share=1.0), True)
    textual = rows.batch(0, 8).textual_B
    assert {*textual} == {True, False}
    heard: list[int] = []
    model.codec.encoder.conv1.register_forward_hook(lambda module, given, result: heard.append(len(given[0])))
    books = {name: buffer.clone() for name, buffer in model.codec.quantizer.named_buffers()}
    number = int(textual.nonzero()[0][0])
    loss, numbers = task.loss(rows.batch(number, 1), 0, 0.0)
    assert loss.isfinite()
    assert "commitment" not in numbers
    assert all(torch.equal(books[name], b) for name, b in model.codec.quantizer.named_buffers())
    loss, numbers = task.loss(rows.batch(0, 8), 0, 0.0)
    assert heard == [8 - textual.sum()]
    assert loss.isfinite()


def test_the_latent_is_that_of_a_stream(pack: Pack) -> None:
    model = SpeechModel(config(), 3).eval()
    samples = torch.from_numpy(pack.rows(pack.clips[0])[: 24000 * 2, 0] / 32768).float()[None]
    with torch.inference_mode():
        mel, _ = model.codec.mel(samples[:, None])  # type: ignore[misc]
        trained = model.latent(model.positions(mel))
        served, _ = model.codec.latent(samples)
    assert torch.allclose(trained.transpose(1, 2), served, atol=1e-5)


def test_text_is_misread_where_words_are() -> None:
    text = np.full(1000, PAD_ID)
    text[::4] = np.arange(10, 260)
    seen = misread(text, 0.0, 0.2, np.random.default_rng(0))
    wrong = np.flatnonzero(seen != text)
    assert set(wrong) <= set(range(0, 1000, 4))
    assert 0.1 < len(wrong) / 250 < 0.3
    assert set(seen) <= set(text)
    hidden = misread(text, 0.3, 0.0, np.random.default_rng(0))
    assert set(hidden[hidden != text]) == {NO_TOKEN}
    assert 0.2 < (hidden == NO_TOKEN).mean() < 0.4


def test_some_rows_are_text_alone(tmp_path: Path) -> None:
    kind = PackKind("tokens", 2, 12.5, (0.0, 0.0))
    said = Clip(0, 0, "one", "en", "a", "s", (("one", 0.1, 0.4),))
    write_pack(tmp_path / "pack", kind, [(np.ones((20, 2), np.int64), said)])
    tokenizer = Tokenizer(world.tokenizer(tmp_path))
    options = world.rows(8.0, {"a": 1.0}, sentences=["Two three!"], text_share=0.5)
    batch = TokenSampler([Pack(tmp_path / "pack")], tokenizer, options).batch(0, 40)
    silent = (batch.codes_BKT == NO_TOKEN).all(axis=(1, 2))
    assert 8 < silent.sum() < 32
    one, two = tokenizer.encode("one")[0], tokenizer.encode("two")[0]
    for row, text in zip(silent, batch.targets.text_BT, strict=True):
        assert (two in text) == row
        assert (one in text) != row


def test_allophones_are_one_phone_and_language_flags_none() -> None:
    clip = Clip(0, 0, "x", "en", "a", "s", (), tuple((name, 0.0) for name in ("aI", "aI3", "(fr)", "n-", "n", "t[")))
    inventory = PhoneInventory.of([clip])
    assert inventory.names == ("_", "aI", "n", "t")
    assert inventory.number("aI3") == inventory.number("aI")
    assert inventory.number("(fr)") == 0
    assert fold("3") == "3"


def test_a_rate_of_zero_freezes_and_a_pattern_that_matches_nothing_is_refused() -> None:
    model = SpeechModel(config(), 3)
    freeze(model, {"lm.text_emb.*": 0.0})
    assert not model.lm.text_emb.weight.requires_grad
    assert model.lm.text_linear.weight.requires_grad
    with pytest.raises(ConfigError, match=r"no weight of the model matches 'text_emb\*'; one is named 'acoustic_in"):
        freeze(model, {"text_emb*": 0.0})


def test_a_run_stops_where_the_loss_is_not_finite(pack: Pack, tmp_path: Path) -> None:
    model = SpeechModel(config(), 3)
    task = WhisperJointTask(
        model, sampler(pack, tmp_path, {"chords": 1.0}), LossOptions(), QuantiserOptions(start=0), True
    )
    with torch.no_grad():
        model.lm.text_linear.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="step 0, rows 0 to 1: the loss is nan"):
        Trainer(task, RunOptions(out=tmp_path / "run", steps=2, rows=2), lambda line: None).run()


def test_the_model_is_the_average_of_a_run_that_asks_for_it(pack: Pack, tmp_path: Path) -> None:
    def trained(average: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = SpeechModel(config(), 3)
        rows = sampler(pack, tmp_path, {"chords": 1.0})
        task = WhisperJointTask(model, rows, LossOptions(), QuantiserOptions(start=1), False)
        run = Trainer(
            task, RunOptions(out=tmp_path / str(average), steps=3, rows=1, average=average), lambda line: None
        )
        run.run()
        assert (run.average is None) == (average == 0)
        return model.lm.text_linear.weight.detach().clone()

    torch.manual_seed(0)
    start = SpeechModel(config(), 3).lm.text_linear.weight.detach()
    assert 0 < (trained(0.99) - start).norm() < (trained(0.0) - start).norm()
