"""Our encoder and log-mels against those of Hugging Face `transformers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr
from tests.models import noise_and_tones

torch = pytest.importorskip("torch")
transformers = pytest.importorskip(
    "transformers", reason="the reference package transformers is not installed: `make oracles` installs it"
)

from slipstream.checkpoints.whisper import read_whisper  # noqa: E402
from slipstream.model.config import WhisperConfig  # noqa: E402
from slipstream.nn.mel import LogMel  # noqa: E402
from slipstream.nn.whisper import WhisperEncoder  # noqa: E402


def test_the_bidirectional_encoder_is_whispers(tmp_path: Path):
    shape = {
        "num_mel_bins": 20,
        "d_model": 64,
        "encoder_layers": 3,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
    }
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 8, "vocab_size": 60}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1)
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(**shape, **decoder, **tokens, max_source_positions=60)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    config, weights = read_whisper(f"whisper:{tmp_path}")
    encoder = WhisperEncoder(config).eval()
    encoder.load_state_dict({name.removeprefix("encoder."): torch.from_numpy(w) for name, w in weights.items()})
    # Our convolutions are causal: position t is centred on frame 2 t - 1, so theirs reads the frames one later.
    ours = torch.randn(2, 20, 120)
    ours[..., -1] = 0  # Whisper's padding
    theirs = torch.nn.functional.pad(ours, (1, -1))
    with torch.inference_mode():
        expected = model.get_encoder()(theirs).last_hidden_state
        found = encoder.hidden(ours, bidirectional=True)[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.3


def test_log_mels_are_whispers_of_the_resampled_audio():
    extractor = transformers.WhisperFeatureExtractor()
    audio = noise_and_tones(4.0)
    front_end = LogMel(WhisperConfig(mel_floor=-10.0), 24_000)
    np.testing.assert_allclose(front_end.bands.numpy(), extractor.mel_filters.T, atol=1e-7)
    with torch.inference_mode():
        ours = front_end(torch.from_numpy(audio)[None, None])[0][0].numpy()
    # Our window ends with a frame, theirs is centred on its start: 300 samples of silence make frame f + 1 of theirs
    # frame f of ours.
    delayed = soxr.resample(np.concatenate([np.zeros(300, np.float32), audio]), 24_000, 16_000)
    power = (
        torch.stft(torch.from_numpy(delayed), 400, 160, window=torch.hann_window(400), return_complex=True).abs() ** 2
    )
    theirs = ((torch.from_numpy(extractor.mel_filters.T).float() @ power).clamp(min=1e-10).log10() + 4).numpy() / 4
    # Near 8 kHz the resampler removes a part.
    np.testing.assert_allclose(ours[:76, 5:390], theirs[:76, 6:391], atol=1e-3)
