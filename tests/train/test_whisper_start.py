"""An LM that starts as a Whisper decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.train.whispers import (
    LAYERS,
    PROMPT,
    VOCABULARY,
    D,
    decoder,
    small_tokenizer,
    whispers,
    write_checkpoint,
)

from slipstream.errors import ConfigError
from slipstream.model.config import PAD_ID, WORD_ID, LMConfig, STTConfig, WhisperDecoderConfig
from slipstream.model.text import Tokenizer
from slipstream.nn.decoder import WhisperDecoderLayer
from slipstream.testing import small_config
from slipstream.train.model import SpeechModel
from slipstream.train.whisper_start import (
    chosen_layers,
    decoder_start,
    later_ages,
    start_audio_input,
    start_from,
    start_languages,
    start_model,
    start_prefix,
    start_spread,
)

V_BIAS = "transformer.layers.0.cross.v_proj.bias"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def config(tokenizer: Tokenizer, layers: int = LAYERS, vectors: int = 1, languages: tuple[str, ...] = ()) -> STTConfig:
    whisper = WhisperDecoderConfig(audio_context=8, prefix=4, num_positions=30, vectors=vectors, languages=languages)
    small = small_config(codec="whisper", decoder=True)
    shape = small.lm.transformer.model_copy(update={"num_layers": layers, "context": 12})
    changes = {"transformer": shape, "whisper": whisper, "text_vocab": tokenizer.vocab_size}
    return small.model_copy(update={"lm": LMConfig.model_validate(dict(small.lm) | changes)})


@torch.no_grad()
@pytest.mark.parametrize("vectors", [1, 4])
def test_before_training_it_predicts_what_whisper_predicts(tokenizer: Tokenizer, vectors: int):
    weights, whole = decoder(), config(tokenizer, vectors=vectors)
    model, mean = SpeechModel(whole, phones=3), torch.randn(D)
    start_model(model, decoder_start(whole.lm, weights, VOCABULARY, tokenizer, age=2), mean)
    if vectors > 1:
        features_NF = torch.randn(50, 4 * D)
        start_spread(model, features_NF - features_NF.mean(dim=0), mean)
    ids = [VOCABULARY[token] for token in PROMPT]
    prompt_4D = torch.from_numpy(weights.tensors["embedding"][ids] + weights.tensors["positions"][:4])
    start_prefix(model.lm, prompt_4D[None])
    text = tokenizer.encode("hello abc")
    theirs = [VOCABULARY[token] for token in ("Ġhello", "Ġ", "a", "b", "c")]
    assert len(text) == len(theirs)
    hidden, _ = model.lm.embedded(torch.tensor([text]), torch.zeros(1, len(text), D))
    ours = model.lm.text_logits(hidden)[0][:, text]
    expected = whispers(weights, ids + theirs, mean)[4:][:, theirs]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_model_for_a_longer_delay_attends_to_the_same_audio(tokenizer: Tokenizer):
    known, moved = SpeechModel(config(tokenizer), phones=3).lm, SpeechModel(config(tokenizer), phones=3).lm
    for layer in known.transformer.layers:
        layer.age.normal_()
    weights = later_ages(known.state_dict(), 2)
    for name in weights:
        if name.endswith(".age"):
            torch.testing.assert_close(weights[name][:, 1], known.state_dict()[name][:, 0] - 0.2)
            weights[name][:, :2] = -1e4  # the audio that the shorter delay does not have
    moved.load_state_dict(weights)
    text_BT, audio_BTD = torch.full((1, 5), PAD_ID), torch.randn(1, 5, D)
    expected, _ = known.embedded(text_BT, audio_BTD)
    later, _ = moved.embedded(F.pad(text_BT, (2, 0), value=PAD_ID), F.pad(audio_BTD, (0, 0, 0, 2)))
    torch.testing.assert_close(later[:, 2:], expected)


def test_a_shorter_delay_drops_the_youngest_ages():
    age_HC = torch.arange(8.0)[None]
    assert later_ages({"lm.transformer.layers.0.age": age_HC, "x": age_HC}, -3) == {
        "lm.transformer.layers.0.age": pytest.approx(torch.tensor([[3.0, 4, 5, 6, 7, 7, 7, 7]])),
        "x": pytest.approx(age_HC),
    }


@torch.no_grad()
def test_in_a_language_the_prefix_is_that_of_its_prompt(tokenizer: Tokenizer):
    weights, whole = decoder(), config(tokenizer, languages=("en", "fr"))
    model = SpeechModel(whole, phones=3)
    start_model(model, decoder_start(whole.lm, weights, VOCABULARY, tokenizer, age=2), None)
    prompt_LPD = torch.randn(2, 4, D)
    start_prefix(model.lm, prompt_LPD)
    start_languages(model.lm, prompt_LPD, prompt_LPD)
    layers = [layer for layer in model.lm.transformer.layers if isinstance(layer, WhisperDecoderLayer)]
    both = [layer.prefix + layer.languages for layer in layers]
    for number in range(2):
        start_prefix(model.lm, prompt_LPD[[number]])
        for layer, prefix_L2HPd in zip(layers, both, strict=True):
            torch.testing.assert_close(prefix_L2HPd[number], layer.prefix)
    assert both[0][0].ne(both[0][1]).any()


def test_pieces_take_the_rows_of_whispers_tokens(tokenizer: Tokenizer):
    weights, whole = decoder(), config(tokenizer)
    start = decoder_start(whole.lm, weights, VOCABULARY, tokenizer, age=2)
    table = weights.tensors["embedding"]
    (hello,) = tokenizer.encode("hello")
    np.testing.assert_array_equal(start["text_emb.weight"][hello], table[VOCABULARY["Ġhello"]])
    np.testing.assert_array_equal(start["text_linear.weight"][hello], table[VOCABULARY["Ġhello"]])
    np.testing.assert_array_equal(start["text_linear.weight"][PAD_ID], table[VOCABULARY["<|endoftext|>"]])
    np.testing.assert_array_equal(start["text_linear.weight"][WORD_ID], table[VOCABULARY["Ġ"]])
    for token in (PAD_ID, WORD_ID, tokenizer.vocab_size):
        assert not start["text_emb.weight"][token].any()


def test_the_age_of_a_word_scores_highest(tokenizer: Tokenizer):
    start = decoder_start(config(tokenizer).lm, decoder(), VOCABULARY, tokenizer, age=2)
    assert (start["transformer.layers.1.age"].argmax(axis=1) == 2).all()


@pytest.mark.parametrize(("wanted", "expected"), [(6, [0, 1, 2, 3, 4, 5]), (4, [0, 2, 3, 5]), (2, [0, 5]), (1, [0])])
def test_layers_are_taken_at_even_distances(wanted: int, expected: list[int]):
    assert list(chosen_layers(6, wanted)) == expected


def test_more_layers_than_the_decoder_has_are_refused():
    with pytest.raises(ConfigError, match=r"num_layers=7: the decoder has 6 layers"):
        chosen_layers(6, 7)


def test_other_widths_are_refused(tokenizer: Tokenizer):
    whole = config(tokenizer)
    wider = whole.lm.transformer.model_copy(update={"ffn_dim": 50})
    with pytest.raises(ConfigError, match=r"feed-forward width 40: model.lm.transformer must agree"):
        decoder_start(whole.lm.model_copy(update={"transformer": wider}), decoder(), VOCABULARY, tokenizer, age=2)


@torch.no_grad()
def test_the_audio_input_is_the_latent_where_the_projections_keep_all_of_it(tokenizer: Tokenizer):
    model = SpeechModel(config(tokenizer), phones=3)
    quantizer = model.codec.quantizer
    latent = torch.randn(2, 5, 24)
    basis = torch.linalg.qr(torch.randn(24, 24))[0][:20]
    quantizer.semantic.input_proj.weight.copy_(2 * basis[:10])
    quantizer.acoustic.input_proj.weight.copy_(3 * basis[10:])
    start_audio_input(model)
    heard = [F.linear(latent, half.input_proj.weight) for half in (quantizer.semantic, quantizer.acoustic)]
    audio = model.audio_input(*heard)[:, 1:]
    torch.testing.assert_close(audio, (latent @ basis.T @ basis)[:, :-1], atol=1e-4, rtol=1e-4)


def test_latents_start_as_means_of_a_frames_features(tokenizer: Tokenizer):
    model = SpeechModel(config(tokenizer), phones=3)
    start_model(model, decoder_start(config(tokenizer).lm, decoder(), VOCABULARY, tokenizer, age=2))
    features = torch.randn(1, 24, 16)
    latent, _ = model.codec.downsample(features)
    torch.testing.assert_close(latent, features.unflatten(2, (4, 4)).mean(dim=3), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "mean", [None, torch.linspace(-3, 3, D)], ids=["whole features", "features without their mean"]
)
def test_vectors_start_as_what_principal_components_keep_of_a_frames_features(
    tokenizer: Tokenizer, mean: torch.Tensor | None
):
    model = SpeechModel(config(tokenizer, vectors=4), phones=3)
    start = decoder_start(config(tokenizer).lm, decoder(), VOCABULARY, tokenizer, age=2)
    start_model(model, start, mean)
    # Features of 4 * D numbers that vary in D directions only.
    features_NF = 5 + torch.randn(200, D) @ torch.randn(D, 4 * D)
    start_spread(model, features_NF, mean)
    latent, _ = model.codec.downsample(features_NF[:6].view(1, 24, D).transpose(1, 2))
    vectors_1TD = model.lm.transformer.spread(latent.transpose(1, 2)).view(1, 24, D)
    lacking = 0 if mean is None else mean
    torch.testing.assert_close(vectors_1TD, features_NF[:6].view(1, 24, D) + lacking, atol=1e-3, rtol=1e-3)
    np.testing.assert_array_equal(model.lm.transformer.layers[0].cross.v_proj.bias, start[V_BIAS])


def test_vectors_that_are_not_the_features_of_a_frame_are_refused(tokenizer: Tokenizer):
    model = SpeechModel(config(tokenizer, vectors=3), phones=3)
    with pytest.raises(ConfigError, match=r"vectors=3: a run with model.decoder needs 1 vector per frame, or 4, the"):
        start_from(model, "whisper:nowhere", tokenizer, ["en"], no_features)


def test_several_vectors_need_an_encoder_of_the_decoders_width(tokenizer: Tokenizer):
    whole = config(tokenizer, vectors=4)
    assert whole.codec.whisper is not None
    wide = whole.codec.model_copy(update={"whisper": whole.codec.whisper.model_copy(update={"dim": 48})})
    with pytest.raises(ConfigError, match=r"model.codec.whisper.dim=48 must be model.lm.transformer.dim=24"):
        start_spread(SpeechModel(whole.model_copy(update={"codec": wide}), phones=3), torch.randn(9, 4 * 48))


def no_features() -> torch.Tensor:
    raise AssertionError("features are for several vectors per frame")


@pytest.mark.parametrize("vectors", [1, 4])
def test_a_checkpoints_files_are_read(tokenizer: Tokenizer, tmp_path: Path, vectors: int):
    weights, whole = decoder(), config(tokenizer, layers=2, vectors=vectors)
    write_checkpoint(weights, VOCABULARY, tmp_path)
    model = SpeechModel(whole, phones=3)
    features = torch.randn(50, 4 * D)
    take = no_features if vectors == 1 else lambda: features
    start_from(model, f"whisper:{tmp_path}", tokenizer, ["en", "xx"], take)
    layer = model.lm.transformer.layers[1]
    assert isinstance(layer, WhisperDecoderLayer)
    np.testing.assert_array_equal(layer.ffn.linear_in.weight.detach(), weights.tensors["layers.2.ffn.linear_in.weight"])
    assert layer.prefix.abs().sum() > 0
    kept = model.codec.downsample.weight.flatten(1)
    torch.testing.assert_close(kept @ kept.T, torch.eye(D) / (1 if vectors == 4 else 4), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="none of the languages xx"):
        start_from(model, f"whisper:{tmp_path}", tokenizer, ["xx"], take)
    several = SpeechModel(config(tokenizer, layers=2, vectors=vectors, languages=("en", "xx")), phones=3)
    with pytest.raises(ConfigError, match=r"model\.lm\.whisper\.languages: Whisper does not have xx"):
        start_from(several, f"whisper:{tmp_path}", tokenizer, ["en"], take)
