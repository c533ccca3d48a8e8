"""Checkpoints between ours and Hugging Face `transformers`: loaded whole, with the logits and codes of `moshi`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.models import codec_config, lm_config, load_checkpoint, noise_and_tones, random_model, stt_config
from tests.oracles.moshi_oracle import moshi, torch

from slipstream.backends.torch.runner import TorchRunner
from slipstream.checkpoints.checkpoint import Checkpoint, convert, save_checkpoint
from slipstream.model.config import STTConfig
from slipstream.nn.build import build_codec, build_lm

transformers = pytest.importorskip(
    "transformers", reason="the reference package transformers is not installed: `make oracles` installs it"
)

SMALL = lm_config().transformer.model_copy(update={"dim": 64, "num_heads": 4, "ffn_dim": 168, "context": 30})
CONFIGS = {
    "odd": stt_config(),
    "small": STTConfig(
        codec=codec_config(num_residual_layers=2, num_semantic=2, num_codebooks=5),
        lm=lm_config(transformer=SMALL, conditioners=(), pause_heads=0),
        delay_seconds=2.5,
        delay_frames=32,
        silence_prefix_seconds=1.0,
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def saved(config: STTConfig, folder: Path) -> Checkpoint:
    lm, codec = random_model(config)
    tokenizer = folder / "spm.model"
    tokenizer.write_bytes(b"")
    checkpoint = Checkpoint(config, lm, codec, tokenizer)
    save_checkpoint(checkpoint, folder / "transformers", "transformers")
    save_checkpoint(checkpoint, folder / "kyutai", "kyutai")
    return checkpoint


def from_pretrained(folder: Path):
    model, info = transformers.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    return model.requires_grad_(False)


def from_kyutai(folder: Path, config: STTConfig):
    """The `moshi` package's LM and codec for a folder in Kyutai's layout."""
    info = moshi.models.loaders.CheckpointInfo.from_hf_repo(
        "not/reached",
        config_path=folder / "config.json",
        mimi_config_path=folder / "mimi.json",
        moshi_weights=folder / "model.safetensors",
        mimi_weights=folder / config.files.codec,
        tokenizer=folder / "spm.model",
    )
    mimi = info.get_mimi()
    mimi.set_num_codebooks(config.codec.num_codebooks)
    return info.get_moshi(dtype=torch.float32).requires_grad_(False), mimi.requires_grad_(False)


def assert_same_logits(model, lm, config: STTConfig) -> None:
    # Without a cache, theirs attends to everything; so no further than the context.
    T = config.lm.transformer.context
    text = torch.randint(0, config.lm.text_vocab + 1, (2, T, 1))
    audio = torch.randint(0, config.lm.audio_vocab + 1, (2, T, config.lm.num_codebooks))
    tokens = torch.cat([text, audio], dim=-1)
    unread = torch.randint(0, config.lm.audio_vocab, (2, T, config.codec.num_codebooks - config.lm.num_codebooks))
    ours = model(input_ids=torch.cat([tokens, unread], dim=-1)).logits
    theirs = lm.forward_text(tokens.transpose(1, 2))[1][:, 0]
    assert not ours[..., -1].any(), "the initial token is never written"
    assert float((ours[..., :-1] - theirs).abs().max() / theirs.abs().max()) < 1e-4


@every_config
def test_what_we_write_loads_whole_and_gives_the_logits_and_codes_of_moshi(config: STTConfig, tmp_path: Path) -> None:
    if config.lm.conditioners:  # the `moshi` package has no continuous ones, `transformers` none at all
        config = config.model_copy(update={"lm": config.lm.model_copy(update={"conditioners": ()})})
    saved(config, tmp_path)
    model = from_pretrained(tmp_path / "transformers")
    lm, mimi = from_kyutai(tmp_path / "kyutai", config)
    assert_same_logits(model, lm, config)
    audio = torch.from_numpy(noise_and_tones(3.2))[None, None]
    codes = model.codec_model.encode(audio).audio_codes
    assert codes.shape == (1, config.codec.num_codebooks, 40)
    assert float((codes == mimi.encode(audio)).float().mean()) > 0.999
    decoded, expected = model.codec_model.decode(codes).audio_values, mimi.decode(codes)
    assert float((decoded - expected).abs().max() / expected.abs().max()) < 1e-4


@every_config
def test_we_read_what_it_saves(config: STTConfig, tmp_path: Path) -> None:
    checkpoint = saved(config, tmp_path)
    folder = tmp_path / "transformers"
    from_pretrained(folder).save_pretrained(folder)  # its own spelling of names and of config.json
    loaded = load_checkpoint(folder)
    assert loaded.config.model_copy(update={"files": config.files}) == config
    for ours, theirs in ((checkpoint.lm, loaded.lm), (checkpoint.codec, loaded.codec)):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_model_with_another_shape_is_converted_with_its_logits(tmp_path: Path) -> None:
    config = CONFIGS["small"]
    saved(config, tmp_path)
    its_config = transformers.AutoConfig.from_pretrained(tmp_path / "transformers")
    torch.manual_seed(1)
    model = transformers.KyutaiSpeechToTextForConditionalGeneration(its_config).requires_grad_(False)
    model.lm_head.weight[-1] = 0
    model.save_pretrained(tmp_path / "transformers")
    convert(tmp_path / "transformers", tmp_path / "converted", "kyutai")
    converted = load_checkpoint(tmp_path / "converted").config
    lm, _ = from_kyutai(tmp_path / "converted", converted)
    assert_same_logits(model, lm, config)


def test_its_feature_extractor_knows_the_delay(tmp_path: Path) -> None:
    saved(CONFIGS["small"], tmp_path)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "transformers")
    assert type(extractor).__name__ == "KyutaiSpeechToTextFeatureExtractor"
    assert (extractor.audio_delay_seconds, extractor.audio_silence_prefix_seconds) == (2.5, 1.0)
    assert extractor.sampling_rate == 24_000


@pytest.mark.parametrize("codebooks", [5, 8])
def test_it_generates_from_what_we_write_what_our_runner_does(codebooks: int, tmp_path: Path) -> None:
    small = CONFIGS["small"]
    config = small.model_copy(update={"codec": small.codec.model_copy(update={"num_codebooks": codebooks})})
    checkpoint = saved(config, tmp_path)
    frames = 40  # past the wrap of both contexts
    audio = noise_and_tones(frames * 0.08)
    model = from_pretrained(tmp_path / "transformers")
    theirs = model.generate(input_values=torch.from_numpy(audio)[None, None], do_sample=False)[0]
    assert theirs.shape == (1 + frames,)
    assert int(theirs[0]) == config.lm.text_initial_id
    codec, lm = build_codec(config.codec, checkpoint.codec), build_lm(config.lm, checkpoint.lm)
    runner = TorchRunner(config, codec, lm, slots=1)
    active = np.ones(1, bool)
    ours = [int(runner.step(frame[None], active).token_B[0]) for frame in np.split(audio, frames)]
    # Their first new token comes before any audio.
    assert ours[:-1] == theirs[2:].tolist()
    assert len(set(ours)) > 3
