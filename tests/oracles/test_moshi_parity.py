"""The arithmetic equals the published `moshi` package's: Mimi, the LM, its heads and conditions, streams side by side.

Where their streaming deviates from their own offline forward, ours equals the offline forward.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.models import codec_config, lm_config, noise_and_tones  # noqa: E402
from tests.oracles.moshi_oracle import lm_pair, mimi_pair, moshi, random_events  # noqa: E402

from slipstream.backends.torch.runner import TorchRunner  # noqa: E402
from slipstream.model.config import CodecConfig, ConditionerConfig, LMConfig, STTConfig, TransformerConfig  # noqa: E402
from slipstream.moshi.models import LMGen, LMModel, MimiModel  # noqa: E402

SLOTS = 4

NEARLY = 1e-5
"""Relative difference that the order of float32 sums may make."""


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def lm_of_shape(dim: int, heads: int, layers: int, ffn: int, context: int, **fields) -> LMConfig:
    transformer = TransformerConfig(
        dim=dim,
        num_heads=heads,
        num_layers=layers,
        ffn_dim=ffn,
        context=context,
        max_period=100_000.0,
        norm="rms_norm",
        gated=True,
    )
    return LMConfig(transformer=transformer, pause_heads=4, **fields)


LM_CONFIGS = {
    "small": lm_of_shape(64, 4, 3, 176, 40, text_vocab=64, audio_vocab=48, num_codebooks=8),
    "odd": lm_of_shape(42, 3, 2, 50, 7, text_vocab=40, audio_vocab=32, num_codebooks=5),
    "a layer of stt-1b": lm_of_shape(2048, 16, 1, 5632, 750, text_vocab=48, audio_vocab=16, num_codebooks=32),
}

TRANSFORMER = codec_config().transformer
MIMI_CONFIGS = {
    "small": codec_config(
        num_filters=8,
        transformer=TRANSFORMER.model_copy(update={"dim": 32, "num_heads": 4, "context": 64}),
        num_codebooks=8,
    ),
    "odd": codec_config(
        transformer=TRANSFORMER.model_copy(update={"dim": 42, "context": 7}), num_codebooks=5, codebook_dim=11
    ),
}


def noise(frames: int, frame_size: int, seed: int = 0) -> torch.Tensor:
    """Other noise and tones for each slot, `[SLOTS, 1, frames * frame_size]`."""
    seconds = frames * frame_size / 24_000
    return torch.stack([torch.from_numpy(noise_and_tones(seconds, seed + slot)) for slot in range(SLOTS)])[:, None]


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours == theirs).float().mean())


# ------------------------------------------------------------------------------------------------------------ Mimi


def test_mimi_of_the_published_size_over_30_seconds():
    codec, theirs = mimi_pair(CodecConfig())
    ours = MimiModel(codec)
    audio = torch.from_numpy(noise_and_tones(30.0))[None, None]
    codes = theirs.encode(audio)
    assert codes.shape == (1, 32, 375)
    assert all(len(book.unique()) > 20 for book in codes[0]), "codes that hardly vary would prove little"
    assert agreement(ours.encode(audio), codes) >= 0.999
    # Decoding and streaming, until ten frames after the ring of ten seconds is full.
    codes = codes[..., :135]
    assert relative_difference(ours.decode(codes), theirs.decode(codes)) < NEARLY
    with ours.streaming(1):
        frames = [ours.encode(frame) for frame in audio.split(ours.frame_size, dim=-1)[:135]]
    assert agreement(torch.cat(frames, dim=-1), codes) >= 0.999


@pytest.mark.parametrize("config", MIMI_CONFIGS.values(), ids=MIMI_CONFIGS)
def test_mimi_offline_for_audio_that_is_no_whole_frames(config):
    codec, theirs = mimi_pair(config)
    ours = MimiModel(codec)
    audio = noise(41, theirs.frame_size)[..., :-700]
    codes = theirs.encode(audio)
    assert codes.shape[-1] == 41
    encoded = ours.encode(audio)
    assert agreement(encoded, codes) >= 0.998  # a near tie, which some CPUs decide otherwise, is one of 820 codes
    for quantize in (False, True):
        if quantize and not torch.equal(encoded, codes):
            continue
        latent = theirs.encode_to_latent(audio, quantize)
        assert relative_difference(ours.encode_to_latent(audio, quantize), latent) < NEARLY
    assert relative_difference(ours.decode(codes), theirs.decode(codes)) < NEARLY


def test_mimi_streams_reset_and_paused_at_random():
    # A context that is never full, so that their streaming is as their offline forward.
    config = codec_config(transformer=TRANSFORMER.model_copy(update={"context": 200}))
    codec, theirs = mimi_pair(config)
    ours = MimiModel(codec)
    audio = noise(90, theirs.frame_size)
    different = total = 0
    with ours.streaming(SLOTS), theirs.streaming(SLOTS):
        for frame, (reset, active) in zip(
            audio.split(theirs.frame_size, dim=-1), random_events(90, SLOTS), strict=True
        ):
            for mimi in (ours, theirs):
                mimi.reset_streaming(reset)
                mimi.set_exec_mask(active)
            codes = theirs.encode(frame)
            different += int((ours.encode(frame) != codes)[active].sum())
            total += codes[active].numel()
            our_audio, their_audio = ours.decode(codes), theirs.decode(codes)
            for slot in active.nonzero()[:, 0]:
                assert relative_difference(our_audio[slot], their_audio[slot]) < NEARLY
    assert total > 1000
    assert different / total <= 0.001


@pytest.mark.parametrize("config", MIMI_CONFIGS.values(), ids=MIMI_CONFIGS)
def test_mimi_streams_reset_and_paused_at_random_equal_their_offline_codes_past_the_wrap(config):
    codec, theirs = mimi_pair(config)
    ours = MimiModel(codec)
    audio = noise(100, theirs.frame_size)
    heard = [[(torch.empty(1, 1, 0), torch.empty(1, config.num_codebooks, 0, dtype=torch.long))] for _ in range(SLOTS)]
    with ours.streaming(SLOTS):
        for frame, (reset, active) in zip(audio.split(ours.frame_size, dim=-1), random_events(100, SLOTS), strict=True):
            ours.reset_streaming(reset)
            ours.set_exec_mask(active)
            codes = ours.encode(frame)
            for slot, segments in enumerate(heard):
                if reset[slot]:
                    segments.append((torch.empty(1, 1, 0), torch.empty(1, config.num_codebooks, 0, dtype=torch.long)))
                if active[slot]:
                    before, written = segments[-1]
                    segments[-1] = (
                        torch.cat([before, frame[slot : slot + 1]], dim=-1),
                        torch.cat([written, codes[slot : slot + 1]], dim=-1),
                    )
    segments = [(x, codes) for slot in heard for x, codes in slot if codes.shape[-1]]
    assert len(segments) > SLOTS
    assert max(codes.shape[-1] for _, codes in segments) > 2 * config.transformer.context / config.stride
    for x, codes in segments:
        assert agreement(codes, theirs.encode(x)) >= 0.999


def test_their_mimi_loses_a_key_once_its_ring_is_full_and_ours_does_not():
    # A step writes two keys into their ring of `context` columns, the second over the oldest key that the first
    # query may still see: from then on their streaming sees one key fewer than their offline forward.
    config = codec_config()
    codec, theirs = mimi_pair(config)
    ours = MimiModel(codec)
    frames = 40
    audio = noise(frames, theirs.frame_size)
    offline = theirs.encode_to_latent(audio, quantize=False)

    def streamed(mimi) -> torch.Tensor:
        with mimi.streaming(SLOTS):
            pieces = [mimi.encode_to_latent(x, quantize=False) for x in audio.split(mimi.frame_size, dim=-1)]
        return torch.cat(pieces, dim=-1)

    full = config.transformer.context // config.stride
    their_stream = streamed(theirs)
    assert relative_difference(their_stream[..., :full], offline[..., :full]) < NEARLY
    assert relative_difference(their_stream[..., full:], offline[..., full:]) > 1e-3
    assert relative_difference(streamed(ours), offline) < NEARLY


# ---------------------------------------------------------------------------------------------------------- the LM


@pytest.mark.parametrize("config", LM_CONFIGS.values(), ids=LM_CONFIGS)
def test_lm_over_300_steps_of_streams_reset_and_paused_at_random(config):
    lm, theirs = lm_pair(config)
    logits: dict[str, torch.Tensor] = {}
    token: dict[str, torch.Tensor] = {}

    def force(own: torch.Tensor) -> None:
        # Teacher forcing: both go on with their token, so that one difference would not hide the steps after it.
        token["ours"] = own.clone()
        own.copy_(token["theirs"])

    reference = moshi.models.LMGen(
        theirs,
        use_sampling=False,
        on_text_logits_hook=lambda x: logits.update(theirs=x),
        on_text_hook=lambda x: token.update(theirs=x),
    )
    ours = LMGen(
        LMModel(lm).eval(),
        use_sampling=False,
        on_text_logits_hook=lambda x: logits.update(ours=x),
        on_text_hook=force,
    )
    codes = torch.randint(0, config.audio_vocab, (300, SLOTS, config.num_codebooks, 1))
    seen = set()
    with reference.streaming(SLOTS), ours.streaming(SLOTS):
        for step, (reset, active) in enumerate(random_events(300, SLOTS)):
            for lm_gen in (reference, ours):
                lm_gen.reset_streaming(reset)
                lm_gen.set_exec_mask(active)
            their_text, their_pause = reference.step_with_extra_heads(codes[step])
            our_text, our_pause = ours.step_with_extra_heads(codes[step])
            for slot in active.nonzero()[:, 0]:
                assert relative_difference(logits["ours"][slot], logits["theirs"][slot]) < NEARLY
            assert token["ours"][active].equal(token["theirs"][active])
            assert our_text.equal(their_text)
            pause_difference = torch.stack(our_pause)[:, active] - torch.stack(their_pause)[:, active]
            assert pause_difference.numel() == 0 or pause_difference.abs().max() < 1e-5
            seen.update(their_text[active].flatten().tolist())
    assert len(seen) > 10, "tokens that hardly vary would prove little"


@pytest.mark.parametrize("name", ["small", "odd"])
def test_lm_offline(name):
    config = LM_CONFIGS[name]
    lm, theirs = lm_pair(config)
    text = torch.randint(-1, config.text_vocab + 1, (2, 1, 100))
    codes = torch.randint(-1, config.audio_vocab + 1, (2, config.num_codebooks, 100))
    their_hidden, their_logits = theirs.forward_text(torch.cat([text, codes], dim=1))
    hidden, logits = LMModel(lm).forward_text(torch.cat([text, codes], dim=1))
    assert relative_difference(hidden, their_hidden) < NEARLY
    assert relative_difference(logits, their_logits) < NEARLY


def test_summed_conditions():
    conditioners = (
        ConditionerConfig(name="control", kind="lut", dim=6, num_bins=4, possible_values=("good", "bad")),
        ConditionerConfig(name="speaker", kind="tensor", dim=10),
    )
    config = lm_config(conditioners=conditioners)
    lm, theirs = lm_pair(config)
    vectors = torch.randn(3, 1, 1, 10)
    given = ["good", None, "bad"]

    def conditions(module, model):
        attributes = [
            module.ConditionAttributes(
                text={"control": value},
                tensor={"speaker": module.TensorCondition(vector, torch.full((1, 1), value is not None))},
            )
            for value, vector in zip(given, vectors, strict=True)
        ]
        return model.condition_provider.prepare_and_provide(attributes)

    import moshi.conditioners

    from slipstream.moshi import conditioners as our_conditioners

    ours = LMModel(lm).eval()
    codes = torch.randint(0, config.audio_vocab, (3, config.num_codebooks, 12))
    tokens, logits = {}, {}
    for name, make, module, model in (
        ("theirs", moshi.models.LMGen, moshi.conditioners, theirs),
        ("ours", LMGen, our_conditioners, ours),
    ):
        scores = logits.setdefault(name, [])
        lm_gen = make(
            model,
            use_sampling=False,
            condition_tensors=conditions(module, model),
            on_text_logits_hook=lambda x, scores=scores: scores.append(x.clone()),
        )
        with lm_gen.streaming(3):
            tokens[name] = torch.cat([lm_gen.step(frame) for frame in codes.split(1, dim=-1)], dim=-1)
    assert relative_difference(torch.cat(logits["ours"]), torch.cat(logits["theirs"])) < NEARLY
    assert tokens["ours"].equal(tokens["theirs"])


def test_bf16_is_as_close_to_f32_as_theirs():
    config = lm_of_shape(256, 4, 4, 704, 50, text_vocab=200, audio_vocab=64, num_codebooks=16)
    lm, theirs = lm_pair(config)
    lm_bf16, theirs_bf16 = lm_pair(config, torch.bfloat16)
    text = torch.randint(0, config.text_vocab, (4, 1, 200))
    sequence = torch.cat([text, torch.randint(0, config.audio_vocab, (4, config.num_codebooks, 200))], dim=1)
    _, exact = theirs.forward_text(sequence)
    _, our_exact = LMModel(lm).forward_text(sequence)

    def error(logits: torch.Tensor, exact: torch.Tensor) -> float:
        assert logits.dtype == torch.bfloat16
        return float((logits.float() - exact).square().mean().sqrt())

    their_error = error(theirs_bf16.forward_text(sequence)[1], exact)
    our_error = error(LMModel(lm_bf16).forward_text(sequence)[1], our_exact)
    assert their_error > 0.001, "bf16 must cost something here, else there is nothing to compare"
    assert our_error < 1.1 * their_error


# ------------------------------------------------------------------------------------------------------ the Runner


def test_runner_equals_their_codec_and_lm():
    config = STTConfig(
        codec=codec_config(transformer=TRANSFORMER.model_copy(update={"context": 200})),
        lm=LM_CONFIGS["odd"],
        delay_seconds=0.5,
        delay_frames=6,
    )
    lm, their_lm = lm_pair(config.lm)
    codec, their_mimi = mimi_pair(config.codec)
    runner = TorchRunner(config, codec, lm, slots=SLOTS)
    their_mimi.set_num_codebooks(config.lm.num_codebooks)
    reference = moshi.models.LMGen(their_lm, use_sampling=False)
    fresh = torch.ones(SLOTS, dtype=torch.bool)
    audio = noise(90, their_mimi.frame_size)
    with their_mimi.streaming(SLOTS), reference.streaming(SLOTS):
        for frame, (reset, active) in zip(audio.split(1920, dim=-1), random_events(90, SLOTS, seed=1), strict=True):
            runner.reset(reset.nonzero()[:, 0].tolist())
            for module in (their_mimi, reference):
                module.reset_streaming(reset)
                module.set_exec_mask(active)
            fresh |= reset
            codes = their_mimi.encode(frame)
            # Their first step sees the initial tokens and not the frame, so they are given it twice.
            reference.set_exec_mask(active & fresh)
            reference.step(codes)
            fresh &= ~active
            reference.set_exec_mask(active)
            text, pause = reference.step_with_extra_heads(codes)
            output = runner.step(frame[:, 0].numpy(), active.numpy())
            ours = torch.from_numpy(output.token_B)
            assert ours[active].equal(text[active, 0, 0])
            difference = torch.from_numpy(output.pause_BH)[active] - torch.cat(pause, dim=1)[active, :, 0]
            assert difference.numel() == 0 or difference.abs().max() < 1e-5
