"""Text to speech equals the published `moshi` package: depth Transformer, delays, guidance, scripts."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.fakes import tokenizer_path  # noqa: E402
from tests.oracles.moshi_oracle import moshi, random_events  # noqa: E402
from tests.oracles.tts_oracle import their_tts, tts_pair  # noqa: E402

import slipstream.moshi.models as ours_models  # noqa: E402
import slipstream.moshi.models.tts as our_tts  # noqa: E402
from slipstream.checkpoints.speech import SpeechCheckpoint, save_speech  # noqa: E402
from slipstream.checkpoints.tensors import write_tensors  # noqa: E402
from slipstream.model.config import ConditionerConfig  # noqa: E402
from slipstream.model.script import Entry, ScriptMachine, TokenIds, script_to_entries  # noqa: E402
from slipstream.moshi.conditioners import ConditionAttributes, TensorCondition, dropout_all_conditions  # noqa: E402
from slipstream.moshi.utils.utils import cross_entropy  # noqa: E402
from slipstream.testing import random_model, small_tts_config, tts_lm_config  # noqa: E402

import moshi.conditioners as their_conditioners  # noqa: E402  # isort: skip
from moshi.utils.utils import cross_entropy as their_cross_entropy  # noqa: E402  # isort: skip

SLOTS = 3
PLAIN = {"conditioners": (), "cross_position_scale": 0.0}


def plain(**changes):
    """A model without conditions."""
    transformer = tts_lm_config().transformer.model_copy(update={"cross_attention": False})
    return tts_lm_config(**{"transformer": transformer, **PLAIN, **changes})


def depth(**changes):
    return tts_lm_config().depth.model_copy(update=changes)


MODELS = {
    "schedule, low rank and two text streams": plain(),
    "weights of its own for each codebook": plain(depth=depth(schedule=(0, 1, 2, 3))),
    "full rank": plain(depth=depth(low_rank=None)),
    "one text stream": plain(demux_text=False),
    "output norms": plain(depth=depth(output_norm="rms_norm")),
    "output layer norms": plain(depth=depth(output_norm="layer_norm")),
    "sines": plain(depth=depth(transformer=depth().transformer.model_copy(update={"positions": "sin"}))),
    "few text outputs": plain(text_outputs=5),
}


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def random_text(config, *shape):
    text = torch.randint(0, config.text_vocab + 1, shape)
    if config.demux_text:
        text = text + (config.text_vocab + 1) * torch.randint(0, config.text_vocab + 2, shape)
    return torch.where(torch.rand(shape) < 0.2, -1, text)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_depth_transformer_by_steps(config):
    ours, theirs = tts_pair(config)
    hidden = torch.randn(SLOTS, 1, config.transformer.dim)
    token, keys = random_text(config, SLOTS), []
    with theirs.depformer.streaming(SLOTS):
        for k in range(theirs.dep_q):
            expected = theirs.forward_depformer(k, token[:, None, None], hidden)[:, 0, 0]
            logits, keys = ours.lm.depth.step(k, hidden[:, 0], token, keys)
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
            token = torch.randint(-1, config.audio_vocab, (SLOTS,))


# Their training pass does not run with such norms.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "output norms"])
def test_scores_of_whole_sequences(name):
    config = MODELS[name]
    ours, theirs = tts_pair(config)
    codes = torch.cat(
        [random_text(config, SLOTS, 1, 9), torch.randint(-1, config.audio_vocab, (SLOTS, config.num_codebooks, 9))], 1
    )
    out, expected = ours(codes), theirs(codes)
    for name in ("logits", "text_logits"):
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), atol=2e-5, rtol=0, equal_nan=True)
    losses = [module(out.logits, codes[:, 1:], out.mask) for module in (cross_entropy, their_cross_entropy)]
    torch.testing.assert_close(losses[0], losses[1])
    assert out.mask.equal(expected.mask)
    assert out.text_mask.equal(expected.text_mask)


@pytest.mark.parametrize(("written", "support_out_of_sync"), [(4, True), (2, True), (4, False)])
def test_150_steps_of_streams_reset_and_paused_at_random(written, support_out_of_sync):
    ours, theirs = tts_pair(plain(delays=(0, 0, 1, 2, 3)))
    ours.dep_q = theirs.dep_q = written
    options = {"temp": 0.0, "temp_text": 0.0, "support_out_of_sync": support_out_of_sync}
    one, other = ours_models.LMGen(ours, **options), moshi.models.LMGen(theirs, **options)
    complete = 0
    with one.streaming(SLOTS), other.streaming(SLOTS):
        for step, (reset, active) in enumerate(random_events(150, SLOTS)):
            given = torch.randint(-1, 32, (SLOTS, 4 - written, 1))
            for lm_gen in (one, other):
                if step % 3 < 2:
                    lm_gen.set_exec_mask(active)
                if reset.any():  # which also lets them advance
                    lm_gen.reset_streaming(reset)
            replaced = torch.randint(-1, 32, (SLOTS, written, 1)) if step % 7 == 0 else None
            own, expected = one.step(given, replaced), other.step(given, replaced)
            assert (own is None) == (expected is None)
            if own is not None:
                assert own.equal(expected)
                complete += int((own >= 0).all(dim=1).sum())
    assert complete > 100


# ---------------------------------------------------------------------------------------- conditions and guidance


def attributes(module, condition):
    """Two streams, with voices of different lengths."""
    rng = np.random.default_rng(3)
    out = []
    for length, cfg in ((6, "2.0"), (4, None)):
        tensor = torch.from_numpy(rng.standard_normal((1, length, 8)).astype(np.float32))
        mask = torch.arange(length)[None] < length - 1
        out.append(module(text={"control": "ok", "cfg": cfg}, tensor={"speaker_wavs": condition(tensor, mask)}))
    return out


def both_conditions(ours, theirs, guided):
    own = attributes(ConditionAttributes, TensorCondition)
    reference = attributes(their_conditioners.ConditionAttributes, their_conditioners.TensorCondition)
    if guided:
        own = own + dropout_all_conditions(own)
        reference = reference + their_conditioners.dropout_all_conditions(reference)
    return ours.condition_provider.prepare_and_provide(own), theirs.condition_provider.prepare_and_provide(reference)


def test_conditions_and_their_fusion():
    ours, theirs = tts_pair(tts_lm_config())
    own, reference = both_conditions(ours, theirs, guided=True)
    assert own.keys() == reference.keys()
    for name in own:
        torch.testing.assert_close(own[name].condition, reference[name].condition)
        assert own[name].mask.bool().equal(reference[name].mask.bool())
    torch.testing.assert_close(ours.fuser.get_sum(own), theirs.fuser.get_sum(reference))
    torch.testing.assert_close(ours.fuser.get_cross(own), theirs.fuser.get_cross(reference), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "guidance",
    [
        {},
        {"cfg_coef": 2.0},
        {"cfg_coef": 1.5, "cfg_is_no_text": True},
        {"cfg_coef": 3.0, "cfg_is_no_text": True, "cfg_is_masked_until": [9, 4]},
    ],
    ids=["conditions", "guidance", "no text", "masked"],
)
def test_generation_with_conditions_and_guidance(guidance):
    ours, theirs = tts_pair(tts_lm_config())
    own, reference = both_conditions(ours, theirs, guided="cfg_coef" in guidance)
    one = ours_models.LMGen(ours, use_sampling=False, condition_tensors=own, **guidance)
    other = moshi.models.LMGen(theirs, use_sampling=False, condition_tensors=reference, **guidance)
    given = torch.zeros(2, 0, 1, dtype=torch.long)
    with one.streaming(2), other.streaming(2):
        for _ in range(40):
            own_tokens, expected = one.step(given), other.step(given)
            assert (own_tokens is None) == (expected is None)
            assert own_tokens is None or own_tokens.equal(expected)


def test_weights_load_under_the_names_of_their_modules():
    config = tts_lm_config()
    ours, theirs = tts_pair(config, seed=1)
    fresh = ours_models.LMModel(tts_pair(config, seed=2)[0].lm)
    fresh.load_state_dict(theirs.state_dict())
    for name, tensor in ours.lm.state_dict().items():
        assert fresh.lm.state_dict()[name].equal(tensor), name


# ---------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("ahead", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_the_machine_on_random_tokens(ahead, seed):
    rng = np.random.default_rng(seed)
    script = [
        ([], "", int(rng.integers(0, 9)))
        if rng.random() < 0.2
        else (rng.integers(1, 400, rng.integers(1, 5)).tolist(), f"word{i}", int(rng.integers(0, 4)))
        for i in range(rng.integers(0, 30))
    ]
    options = {"second_stream_ahead": ahead, "max_padding": int(rng.integers(1, 9)), "initial_padding": seed % 3}
    ours, theirs = ScriptMachine(TokenIds(401), **options), their_tts.StateMachine(their_tts.TokenIds(401), **options)
    state = ours.new_state([Entry(list(t), w, p) for t, w, p in script])
    their_state = theirs.new_state([their_tts.Entry(list(t), w, p) for t, w, p in script])
    for step in range(300):
        token = int(rng.choice([0, 3, 3, 17, 399]))
        assert ours.process(step, state, token) == theirs.process(step, their_state, token)
    for name in ("end_step", "consumption_times", "transcript", "remaining_padding", "forced_padding"):
        assert getattr(state, name) == getattr(their_state, name)


SCRIPTS = [
    ["It\u2019s (quite) late: good night", "Good  night!", "", "And\tyou?"],
    ['one<break time="0.5s"/>two <break time="3s" /> three', '<break time="1.2s"/>'],
    ["l'été dernier, nous sommes allés à la plage"],
    [],
]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("options", [{}, {"multi_speaker": False, "padding_between": 2}])
def test_scripts_become_the_same_entries(script, options):
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(str(tokenizer_path()))
    own = script_to_entries(tokenizer, TokenIds(401), 12.5, script, **options)
    theirs = their_tts.script_to_entries(tokenizer, their_tts.TokenIds(401), 12.5, script, **options)
    assert [(e.tokens, e.text, e.padding) for e in own] == [(e.tokens, e.text, e.padding) for e in theirs]


# ------------------------------------------------------------------------------------------- whole generation

TEXTS = ["the quick brown fox jumps over the lazy dog", 'she sells <break time="0.4s"/> sea shells']


def checkpoint(folder, config):
    """A model with random weights in Kyutai's format, and two voices; words begin often."""
    # The codec's ring is never full: theirs loses a key then.
    transformer = config.codec.transformer.model_copy(update={"context": 300})
    config = config.model_copy(update={"codec": config.codec.model_copy(update={"transformer": transformer})})
    lm, codec = random_model(config, seed=5)
    lm["text_linear.weight"][[0, 3]] *= 3
    save_speech(SpeechCheckpoint(config, lm, codec, tokenizer_path()), folder)
    rng = np.random.default_rng(0)
    for name in ("ann", "bob"):
        embedding = rng.standard_normal((1, 8, 5)).astype(np.float32)
        write_tensors(folder / f"{name}.5117e570@1.safetensors", {"speaker_wavs": embedding})
    return folder


def tts_models(folder, **options):
    # Their reader downloads the configuration unless all files are given.
    files = [folder / "model.safetensors", folder / "mimi.safetensors", tokenizer_path()]
    made = []
    for loaders, model in (
        (ours_models.loaders, our_tts.TTSModel),
        (moshi.models.loaders, their_tts.TTSModel),
    ):
        named = [folder / "config.json", folder / "mimi.json"]
        info = loaders.CheckpointInfo.from_hf_repo(str(folder), *files, *named)
        made.append(model.from_checkpoint_info(info, device="cpu", dtype=torch.float32, **options))
    return made


def assert_equal_results(models, results):
    own, expected = results
    for name in ("end_steps", "all_transcripts", "all_consumption_times", "logged_text_tokens"):
        assert getattr(own, name) == getattr(expected, name), name
    assert len(own.frames) == len(expected.frames)
    assert torch.cat(own.frames, -1).equal(torch.cat(expected.frames, -1))
    audio = []
    for model, result in zip(models, results, strict=True):
        with model.mimi.streaming(len(result.end_steps)):
            audio.append(torch.cat([model.mimi.decode(f[:, 1:].clamp(min=0)) for f in result.frames], -1))
    torch.testing.assert_close(audio[0], audio[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("n_q", [4, 3])
def test_greedy_generation_with_voices(tmp_path, n_q):
    folder = checkpoint(tmp_path, small_tts_config())
    models = tts_models(folder, n_q=n_q, temp=0.0, max_speakers=2, max_gen_length=120)
    results = []
    for model in models:
        paths = [folder / f"{name}{model.voice_suffix}" for name in ("ann", "bob")]
        attributes = [model.make_condition_attributes(paths[:1], 2.0), model.make_condition_attributes(paths, 1.0)]
        entries = [model.prepare_script([text], padding_between=1) for text in TEXTS]
        results.append(model.generate(entries, attributes))
    assert all(end is not None for end in results[0].end_steps)
    assert_equal_results(models, results)


def test_greedy_generation_that_continues_recordings_with_guidance(tmp_path):
    config = small_tts_config(
        transformer=plain().transformer,
        conditioners=(ConditionerConfig(name="control", kind="lut", dim=42, num_bins=1, possible_values=("ok",)),),
        cross_position_scale=0.0,
        text_outputs=5,
    )
    models = tts_models(
        checkpoint(tmp_path, config), n_q=4, temp=0.0, cfg_coef=1.5, max_gen_length=120, padding_bonus=0.5
    )
    own, theirs = models
    prefixes = [torch.cat([torch.full((1, length), -1), torch.randint(0, 32, (4, length))]) for length in (7, 3)]
    results = []
    for model, attributes in ((own, ConditionAttributes), (theirs, their_conditioners.ConditionAttributes)):
        entries = [model.prepare_script([text]) for text in TEXTS]
        results.append(model.generate(entries, [attributes(text={"control": "ok"})] * 2, prefixes=prefixes))
    assert_equal_results(models, results)
