"""Training of text to speech: rows are what a speaker reads, a pass is what it computes, a model learns to speak."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fakes import tiny_tokenizer, tokenizer_path
from tests.speaking import continuing_config, late_codec, make_runner, save_model, speaking_model
from tests.train.world import rows
from typer.testing import CliRunner

import slipstream
from slipstream.arrays import IntArray
from slipstream.checkpoints.kyutai_tts import dump_tts, parse_tts
from slipstream.checkpoints.speech import read_speech, resolve_speech
from slipstream.cli import train as train_cli
from slipstream.data.pack_codec import codec_fingerprint
from slipstream.data.packs import Clip, Pack, PackCodec, PackKind, write_pack
from slipstream.data.speech_rows import SpeechBatch, SpeechSampler
from slipstream.engine.reading import Reading, SpeechOptions
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, SamplingConfig
from slipstream.model.numerics import UNGENERATED
from slipstream.model.tts_config import TTSConfig
from slipstream.nn.build import build_codec, build_lm
from slipstream.nn.generation import Conditions, Generator, Hooks
from slipstream.nn.lm import LM
from slipstream.nn.state import commit
from slipstream.testing import small_tts_config
from slipstream.train.artifacts import export_codec
from slipstream.train.launch import load_codec, run_tts
from slipstream.train.options import TTSLossOptions, TTSRun, read_run
from slipstream.train.tts import SpeakTask, spoken_hidden

SILENCE = (1, 2, 3, 4)
SECONDS = 3.2
CARD = tiny_tokenizer().vocab_size + 1


def two_streams() -> TTSConfig:
    config = continuing_config()
    return config.model_copy(update={"lm": config.lm.model_copy(update={"text_vocab": CARD - 1})})


def one_stream() -> TTSConfig:
    """Without a second text stream; a codebook more is read than written."""
    config = two_streams()
    lm = config.lm.model_copy(update={"demux_text": False, "num_codebooks": 5, "delays": (0, 0, 2, 2, 2, 1)})
    return config.model_copy(update={"lm": lm, "second_stream_ahead": 0})


def one_codebook() -> TTSConfig:
    config = one_stream()
    assert config.lm.depth is not None
    depth = config.lm.depth.model_copy(update={"num_codebooks": 1, "schedule": (0,)})
    return config.model_copy(update={"lm": config.lm.model_copy(update={"depth": depth})})


def late(lookahead: int = 4) -> TTSConfig:
    return one_stream().model_copy(update={"codec": late_codec(lookahead)})


CONFIGS = pytest.mark.parametrize("config", [two_streams(), one_stream()], ids=["two-streams", "one-stream"])


def clip(text: str, start: float, step: float) -> Clip:
    words = tuple((w, start + i * step, start + i * step + 0.2) for i, w in enumerate(text.split()))
    return Clip(0, 0, text, "en", "read", "ann", words)


CLIPS = (clip("the fox jumps", 0.4, 0.32), clip("brown", 0.0, 0.2))


def codes(seed: int, frames: int = 18) -> IntArray:
    return np.random.default_rng(seed).integers(0, 32, (frames, 4))


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    kind = PackKind("tokens", 4, 12.5, SILENCE)
    write_pack(tmp_path / "pack", kind, [(codes(n), one) for n, one in enumerate(CLIPS)])
    return Pack(tmp_path / "pack")


def late_pack(folder: Path, config: TTSConfig, clips: Sequence[Clip] = CLIPS) -> Pack:
    """The same tokens, after those that hold no audio."""
    blank = config.codec.blank_frames
    made_with = PackCodec("c", codec_fingerprint(build_codec(config.codec, speaking_model(config)[1])), blank)
    items = [(np.vstack([codes(9, blank), codes(n)]), one) for n, one in enumerate(clips)]
    write_pack(folder, PackKind("tokens", 4, 12.5, SILENCE), items, codec=made_with)
    return Pack(folder)


def sampler_of(config: TTSConfig, pack: Pack, **data: object) -> SpeechSampler:
    return SpeechSampler([pack], tiny_tokenizer(), rows(SECONDS, {"read": 1.0}, **data), config)


def both(sampler: SpeechSampler) -> tuple[SpeechBatch, list[int]]:
    """A batch of a row of each clip, and the clips' numbers."""
    drawn = [sampler.batch(n, 1) for n in range(20)]
    firsts = [int(np.flatnonzero((batch.text_BT[0] % CARD) > 3)[0]) for batch in drawn]
    assert len(set(firsts)) == 1, "the first word always begins in the first step in which one can"
    by_length = {int(batch.known_BKT.sum()): batch for batch in drawn}
    order = sorted(by_length)
    parts = [by_length[length] for length in order]
    return SpeechBatch(*(np.concatenate([getattr(p, f) for p in parts]) for f in SpeechBatch.__slots__)), order


@CONFIGS
def test_a_row_equals_the_text_that_a_speaker_gives_the_model(config: TTSConfig, pack: Pack) -> None:
    batch, _ = both(sampler_of(config, pack))
    runner = make_runner(config)
    texts = []
    for text_T, asked_T in zip(batch.text_BT, batch.asked_BT, strict=True):
        options = SpeechOptions(padding_between=0, max_padding=1000)
        for one in CLIPS:
            reading = Reading(runner, tiny_tokenizer(), None, options)
            reading.feed(one.text)
            reading.end()
            # Where the machine does not listen, it makes no difference what the model writes.
            read_T = [reading.decide(0 if token == UNGENERATED else int(token))[0] for token in asked_T]
            if read_T == text_T.tolist():
                texts.append(one.text)
    assert sorted(texts) == sorted(one.text for one in CLIPS)


@CONFIGS
def test_a_row_has_recordings_of_one_speaker(config: TTSConfig, tmp_path: Path) -> None:
    kind = PackKind("tokens", 4, 12.5, SILENCE)
    clips = [replace(CLIPS[n % 2], speaker=name) for n, name in enumerate(["ann", "ann", "bob", "bob", ""])]
    write_pack(tmp_path / "pack", kind, [(np.full((18, 4), 10 + n), one) for n, one in enumerate(clips)])
    options = rows(6.4, {"read": 1.0}, gaps=((0.16, 0.4),), gap_shares=(1.0,))
    batch = SpeechSampler([Pack(tmp_path / "pack")], tiny_tokenizer(), options, config).batch(0, 24)
    runner, found = make_runner(config), set()
    for text_T, asked_T, audio_KT in zip(batch.text_BT, batch.asked_BT, batch.audio_BKT, strict=True):
        changes = np.flatnonzero(np.diff(audio_KT[0], prepend=-1))
        spans = [(int(audio_KT[0, at]), n) for at, n in zip(changes, np.diff(changes, append=80), strict=True)]
        numbers = [code - 10 for code, _ in spans if code >= 10]
        found.add(tuple(sorted({clips[n].speaker for n in numbers})))
        assert len(numbers) == (1 if clips[numbers[0]].speaker == "" else 3)
        pauses = [n for code, n in spans[1:-1] if code == SILENCE[0]]
        assert all(2 <= n <= 5 for n in pauses[-len(numbers) + 1 :])
        reading = Reading(runner, tiny_tokenizer(), None, SpeechOptions(padding_between=0, max_padding=1000))
        reading.feed(" ".join(clips[n].text for n in numbers))
        reading.end()
        read_T = [reading.decide(0 if token == UNGENERATED else int(token))[0] for token in asked_T]
        assert read_T == text_T.tolist()
    assert found == {("ann",), ("bob",), ("",)}


@CONFIGS
def test_a_word_that_is_not_read_takes_no_step(config: TTSConfig, tmp_path: Path) -> None:
    kind = PackKind("tokens", 4, 12.5, SILENCE)
    brackets = replace(CLIPS[0], words=(("(", 0.08, 0.16), *CLIPS[0].words))
    batches = []
    for name, one in (("with", brackets), ("without", CLIPS[0])):
        write_pack(tmp_path / name, kind, [(codes(0), one)])
        batches.append(sampler_of(config, Pack(tmp_path / name)).batch(0, 2))
    for field in SpeechBatch.__slots__:
        np.testing.assert_array_equal(getattr(batches[0], field), getattr(batches[1], field))


@CONFIGS
def test_audio_is_late_by_the_delays_and_begins_with_the_words(config: TTSConfig, pack: Pack) -> None:
    batch, _ = both(sampler_of(config, pack))
    delay = config.delay_steps + np.array(config.lm.stream_delays[1:5])
    for audio_KT, known_KT in zip(batch.audio_BKT, batch.known_BKT, strict=True):
        for row_T, known_T, d in zip(audio_KT, known_KT, delay, strict=True):
            assert (row_T[:d] == -1).all()
            assert not known_T[:d].any()
        aligned = [(row[d:], known[d:]) for row, known, d in zip(audio_KT, known_KT, delay, strict=True)]
        frames = min(int(known.sum()) for _, known in aligned)
        heard = np.stack([row[:frames] for row, _ in aligned]).T
        # The first clip's word begins in frame 5, so that three frames are cut; the second's in frame 0.
        expected = [np.vstack([codes(0)[3:], [SILENCE] * 4]), np.vstack([[SILENCE] * 2, codes(1), [SILENCE] * 4])]
        assert any(np.array_equal(heard, one) for one in expected)


@pytest.mark.parametrize("cropped", [0.0, 1.0])
@pytest.mark.parametrize(("lookahead", "sooner"), [(4, 0.0), (2, 0.04)])
def test_late_tokens_are_moved_to_the_audio_that_they_hold(
    lookahead: int, sooner: float, cropped: float, tmp_path: Path
) -> None:
    """Where the encoder is 1.5 frames late, frames begin half a frame after the recording: words are as much sooner."""
    config = late(lookahead)
    moved = [replace(one, words=tuple((w, a - sooner, b - sooner) for w, a, b in one.words)) for one in CLIPS]
    write_pack(tmp_path / "p", PackKind("tokens", 4, 12.5, SILENCE), [(codes(n), one) for n, one in enumerate(moved)])
    expected = sampler_of(one_stream(), Pack(tmp_path / "p"), crop={"read": cropped}).batch(0, 8)
    found = sampler_of(config, late_pack(tmp_path / "late", config), crop={"read": cropped}).batch(0, 8)
    for field in SpeechBatch.__slots__:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def test_a_pack_without_the_late_tokens_of_the_ends_is_refused(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks the ends .* 0\.24 s late: make it again with `slipstream data pack"):
        sampler_of(late(), pack)
    sampler = sampler_of(late(), late_pack(tmp_path / "late", late()))
    with pytest.raises(ConfigError, match="lacks the ends"):
        sampler.held_out([pack])


def recording_generator(lm: LM, batch: SpeechBatch, guidance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of text `[B, T, V]` and audio `[B, K, T, V]` from steps in which each token is the row's."""
    scores: list[list[torch.Tensor]] = []
    text, audio = torch.from_numpy(batch.text_BT), torch.from_numpy(batch.audio_BKT)

    def pick(logits_BV: torch.Tensor, _: SamplingConfig, stream: int) -> torch.Tensor:
        scores[-1].append(logits_BV)
        step = len(scores) - 1
        return audio[:, stream - 1, step] if stream else text[:, step]

    sampling = SamplingConfig()
    generator = Generator(lm, 4, sampling, sampling, guidance, no_text=True, pick=pick)
    state, active = generator.init_state(len(text)), torch.ones(len(text), dtype=torch.bool)
    given = torch.full((len(text), lm.config.num_codebooks - 4), -1)
    condition, null = lm.condition({"control": "ok"}), lm.condition()
    conditions = Conditions(condition.expand(len(text), -1), None, null.expand(len(text), -1))
    for _ in range(text.shape[1]):
        scores.append([])
        update = generator.step(state, given, active, conditions, Hooks()).update
        commit({name: state[name] for name in update}, update, active)
    stacked = [torch.stack(part, dim=1) for part in zip(*scores, strict=True)]
    return stacked[0], torch.stack(stacked[1:], dim=1)


@CONFIGS
@pytest.mark.parametrize("dropped", [False, True])
@torch.inference_mode()
def test_a_pass_computes_what_generation_does_step_by_step(config: TTSConfig, pack: Pack, dropped: bool) -> None:
    batch, _ = both(sampler_of(config, pack))
    lm = build_lm(config.lm, speaking_model(config)[0])
    text, audio = torch.from_numpy(batch.text_BT), torch.from_numpy(batch.audio_BKT)
    hidden = spoken_hidden(lm, text, audio, torch.full((len(text),), dropped))
    # At factor 0 the audio is that of the null half; its text is never used.
    stepped_text, stepped_audio = recording_generator(lm, batch, 0.0 if dropped else 1.0)
    if not dropped:
        torch.testing.assert_close(lm.text_logits(hidden), stepped_text, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(lm.depth_logits(hidden, text, audio), stepped_audio, atol=1e-4, rtol=1e-4)


def test_the_semantic_codebook_weighs_more(pack: Pack) -> None:
    config = one_stream()
    torch.manual_seed(0)
    sampler = sampler_of(config, pack)
    task = SpeakTask(LM(config.lm), sampler, TTSLossOptions(semantic=9.0, text=0.5), 0.0)
    loss, parts = task.loss(sampler.batch(0, 2), 0, 0.0)
    expected = 0.5 * parts["text"] + parts["semantic"] + parts["acoustic"]
    torch.testing.assert_close(loss.detach(), expected)
    even = SpeakTask(task.module, sampler, TTSLossOptions(semantic=1.0), 0.0).loss(sampler.batch(0, 2), 0, 0.0)[1]
    torch.testing.assert_close(parts["semantic"], 3 * even["semantic"])
    torch.testing.assert_close(parts["acoustic"], even["acoustic"] / 3)


def toml(folder: Path, config: TTSConfig, **more: Any) -> Path:
    export_codec(build_codec(config.codec, speaking_model(config)[1]), folder / "codec")
    lm = json.loads(config.lm.model_dump_json(exclude_none=True))

    def table(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {table(part)}" for key, part in value.items()) + "}"
        return "[" + ", ".join(map(table, value)) + "]" if isinstance(value, list) else json.dumps(value)

    packs, run = [str(folder / "pack")], {"steps": 80, "rows": 4, "learning_rate": 5e-3, "log_every": 10}
    model = {"audio_delay": config.delay_seconds, "second_stream_ahead": config.second_stream_ahead}
    data = {"weights": {"read": 1.0}, "tokenizer": str(tokenizer_path()), "seconds": SECONDS}
    keys = {
        "condition_dropout": 0.0,
        "run": run | {"out": str(folder / "run"), "trackers": []},
        "model": model | {"codec": str(folder / "codec"), "lm": lm},
        "data": data | {"packs": packs, "valid": {"packs": packs, "rows": 4, "every": 40}},
        "loss": {"semantic": 1.0},
        **more,
    }
    path = folder / "tts.toml"
    path.write_text("\n".join(f"{key} = {table(value)}" for key, value in keys.items()))
    return path


@pytest.mark.parametrize("config", [two_streams(), one_stream(), late()], ids=["two-streams", "one-stream", "late"])
def test_a_model_learns_two_recordings_and_speaks_them(config: TTSConfig, pack: Pack, tmp_path: Path) -> None:
    if config.codec.blank_frames:
        late_pack(pack.folder, config)
    folder = run_tts(read_run(toml(tmp_path, config), TTSRun), lambda line: None)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    valid = [line["valid_loss"] for line in log if "valid_loss" in line]
    assert losses[-1] < losses[0] / 10
    assert valid[1] < valid[0]
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-to-speech" in card
    assert f"`{tmp_path / 'codec'}`, whose licence" in card
    with slipstream.load_speaker(folder, device="cpu", temperature=0, guidance=1) as speaker:
        options = SpeechOptions(padding_between=0, max_padding=20)
        spoken = [speaker.say(one.text, options=options) for one in CLIPS]  # style: allow
    codec = load_codec(str(tmp_path / "codec"))
    heard = [codes(0)[3:], np.vstack([[SILENCE] * 2, codes(1)])]
    for one, speech, expected in zip(CLIPS, spoken, heard, strict=True):
        assert [word.text for word in speech.words] == one.text.split()
        with torch.inference_mode():
            samples, _ = codec.decode(torch.from_numpy(expected.T.copy())[None], None)
        common = min(len(speech.samples), samples.shape[-1]) - 1920
        assert common > 1920 * 4
        np.testing.assert_allclose(speech.samples[:common], samples[0, :common].clip(-1, 1), atol=1e-3)


def test_a_pack_of_another_codec_is_refused(tmp_path: Path) -> None:
    made_with = PackCodec("other", "0123456789abcdef")
    write_pack(tmp_path / "pack", PackKind("tokens", 4, 12.5, SILENCE), [(codes(0), CLIPS[0])], codec=made_with)
    with pytest.raises(ConfigError, match="pack was made with the codec of other"):
        run_tts(read_run(toml(tmp_path, one_stream()), TTSRun), lambda line: None)


def test_a_check_draws_rows_and_does_not_train(pack: Pack, tmp_path: Path) -> None:
    path = toml(tmp_path, two_streams(), phase=[{"until": 0.5}, {"until": 1, "rate": [1.0, 0.0]}])
    result = CliRunner().invoke(train_cli.app, ["tts", str(path), "--check", "--row", "2"], catch_exceptions=False)
    assert re.search(r"parameters, .* trained; memory about", result.output)
    assert "s per step, 80 steps: " in result.output
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["check"]
    drawings = sorted((tmp_path / "run" / "check").iterdir())
    assert [path.name for path in drawings] == ["row-2.svg", "row-3.svg", "row-4.svg"]
    config, batch = two_streams(), sampler_of(two_streams(), pack).batch(2, 1)
    drawing = drawings[0].read_text(encoding="utf-8")
    assert f"audio {config.delay_steps} frames" in drawing
    second = int((batch.text_BT[0] // CARD > 0).sum())
    assert 0 < drawing.count('fill="#c00"') <= second


def test_phases_change_the_data_and_the_rate_of_a_run(pack: Pack, tmp_path: Path) -> None:
    told = [(codes(2), replace(CLIPS[0], dataset="told"))]
    write_pack(tmp_path / "told", PackKind("tokens", 4, 12.5, SILENCE), told)
    base = save_model(tmp_path / "base", one_stream())
    run = {"steps": 4, "rows": 1, "log_every": 1, "trackers": [], "warmup": 0, "decay": 0, "learning_rate": 0.01}
    data = {"packs": [tmp_path / "pack", tmp_path / "told"], "weights": {"read": 1.0}}
    phase = [{"until": 0.5, "weights": {"told": 2.0}}, {"until": 1, "rate": [1.0, 0.0]}]
    whole = {"run": run | {"out": tmp_path / "run"}, "model": {"base": str(base)}, "phase": phase}
    folder = run_tts(TTSRun.model_validate(whole | {"data": data | {"seconds": SECONDS}}), lambda line: None)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["rate"] for line in log] == pytest.approx([0.01, 0.01, 0.01, 0.005])
    card = (folder / "README.md").read_text()
    assert "| read |" in card
    assert "| told |" in card


def test_the_run_in_the_guide_is_one(tmp_path: Path) -> None:
    page = Path("docs/guides/speech.md").read_text(encoding="utf-8")
    path = tmp_path / "ann.toml"
    path.write_text(page.partition("## Train a model")[2].partition("```toml\n")[2].partition("```")[0])
    run = read_run(path, TTSRun)
    config = TTSConfig(codec=CodecConfig(), lm=run.model.lm, delay_seconds=run.model.audio_delay)
    assert parse_tts(dump_tts(config)).lm == run.model.lm


def test_packs_can_have_the_codec_of_a_model_that_speaks(tmp_path: Path) -> None:
    config = two_streams()
    expected = build_codec(config.codec, speaking_model(config)[1]).state_dict()
    found = load_codec(str(save_model(tmp_path / "base", config))).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])
    (tmp_path / "base" / "config.json").write_text('{"dep_q": 0, "wrong": 1}')
    with pytest.raises(ConfigError, match="wrong"):
        load_codec(str(tmp_path / "base"))


def test_a_run_continues_a_model(pack: Pack, tmp_path: Path) -> None:
    config = two_streams()
    base = save_model(tmp_path / "base", config)
    sampler, model = sampler_of(config, pack), build_lm(config.lm, read_speech(resolve_speech(base)).lm)
    with torch.no_grad():
        expected, _ = SpeakTask(model, sampler, TTSLossOptions(), 0.0).loss(sampler.batch(0, 2), 0, 0.0)
    run = {"out": tmp_path / "run", "steps": 1, "rows": 2, "log_every": 1, "trackers": []}
    data = {"packs": [tmp_path / "pack"], "weights": {"read": 1.0}, "seconds": SECONDS}
    whole = {"run": run, "model": {"base": str(base)}, "data": data, "condition_dropout": 0.0}
    run_tts(TTSRun.model_validate(whole), lambda line: None)
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small_tts_config(text_vocab=CARD - 1), "voices by embeddings"),
        (one_stream().model_copy(update={"multistream": True}), "codebooks of two speakers"),
        (one_codebook(), "num_codebooks=1: a voice needs more than the 1 semantic"),
    ],
)
def test_a_model_that_needs_what_packs_do_not_hold_is_refused(config: TTSConfig, message: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", config)
    data = {"packs": ["unread"], "weights": {"read": 1.0}}
    run = {"run": {"out": tmp_path, "steps": 1}, "model": {"base": str(base)}, "data": data}
    with pytest.raises(ConfigError, match=message):
        run_tts(TTSRun.model_validate(run))


def test_recordings_that_cannot_be_learnt_are_left_out(pack: Pack, tmp_path: Path) -> None:
    kind = PackKind("tokens", 4, 12.5, SILENCE)
    untimed = replace(CLIPS[0], words=())
    unread = replace(CLIPS[0], words=(("(:)", 0.1, 0.3),))
    clips = [(codes(0), CLIPS[0]), (codes(1), untimed), (codes(2, 40), CLIPS[1]), (codes(3), unread)]
    write_pack(tmp_path / "more", kind, clips)
    sampler = sampler_of(one_stream(), Pack(tmp_path / "more"))
    reasons = ["no word times; `slip", "longer than the 2.16", "no word that can be "]
    assert [line.split(": ")[1][:20] for line in sampler.remarks()] == reasons
    with pytest.raises(ConfigError, match=r"data\.seconds=0\.64 is too short: delays and silence take 1\.04 s"):
        SpeechSampler([pack], tiny_tokenizer(), rows(0.64, {"read": 1.0}), one_stream())
    write_pack(tmp_path / "narrow", replace(kind, width=3, silence=SILENCE[:3]), [(codes(0)[:, :3], CLIPS[0])])
    with pytest.raises(ConfigError, match="hold 3 codebooks, the model writes 4"):
        sampler_of(one_stream(), Pack(tmp_path / "narrow"))
