"""The laws of streams for text to speech: steps equal the whole, a batch its parts, a pause changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.models import noise_and_tones  # noqa: E402
from tests.speaking import continuing_config, late_codec, make_runner, tiny_tokenizer, voice  # noqa: E402

from slipstream.engine.reading import Audio, Reading, SpeechOptions  # noqa: E402
from slipstream.errors import ConfigError  # noqa: E402
from slipstream.model.numerics import UNGENERATED  # noqa: E402
from slipstream.nn.sampling import row_noise  # noqa: E402
from slipstream.testing import small_tts_config  # noqa: E402

TEXTS = ["the fox", 'sea <break time="0.2s"/> sea', "l'été"]
LATE = continuing_config().model_copy(update={"codec": late_codec()})
CONFIGS = {"voices": small_tts_config(), "recordings": continuing_config(), "a late encoder": LATE}


class Batch:
    """Readings in the slots of a runner, stepped without an engine."""

    def __init__(self, runner) -> None:
        self.runner = runner
        self.readings: dict[int, Reading] = {}
        self.samples: dict[int, list[np.ndarray]] = {}

    def start(self, slot: int, number: int) -> None:
        options = SpeechOptions(seed=number, final_padding=2)
        who = voice(number, self.runner.config)
        reading = Reading(self.runner, tiny_tokenizer(), who, options)
        reading.feed(TEXTS[number])
        reading.end()
        self.runner.reset(slot, who, number)
        self.readings[slot], self.samples[slot] = reading, []

    def step(self, slots: list[int]) -> None:
        active_B = np.zeros(self.runner.slots, np.bool_)
        active_B[slots] = True

        def decide(token_B):
            text_B, forced_BK = token_B.copy(), np.full((len(token_B), self.runner.codebooks), UNGENERATED)
            for slot in slots:
                text_B[slot], forced_BK[slot] = self.readings[slot].decide(int(token_B[slot]))
            return text_B, forced_BK

        output = self.runner.step(decide, active_B)
        for slot in slots:
            pcm = output.pcm_BS[slot].copy() if output.audio_B[slot] else None
            events = self.readings[slot].advance(pcm)
            self.samples[slot] += [event.samples for event in events if isinstance(event, Audio)]

    def speech(self, slot: int, steps: int = 10**6) -> np.ndarray:
        while not self.readings[slot].finished and steps:
            self.step([slot])
            steps -= 1
        return np.concatenate(self.samples[slot])


def alone(config, number: int, **options) -> np.ndarray:
    batch = Batch(make_runner(config, **options))
    batch.start(0, number)
    return batch.speech(0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_equals_its_parts_and_pauses_and_resets_change_nothing(config) -> None:
    guidance = 2.0
    expected = [alone(config, number, guidance=guidance) for number in range(3)]
    batch = Batch(make_runner(config, slots=3, guidance=guidance))
    for slot in range(3):
        batch.start(slot, slot)
    rng = np.random.default_rng(0)
    while any(not reading.finished for reading in batch.readings.values()):
        slots = [slot for slot, reading in batch.readings.items() if not reading.finished and rng.random() < 0.7]
        if slots:
            batch.step(slots)
        if rng.random() < 0.02:
            batch.start(1, 1)  # again, from its beginning
    for slot in range(3):
        np.testing.assert_allclose(np.concatenate(batch.samples[slot]), expected[slot], atol=1e-4)


def test_a_slot_that_does_not_advance_keeps_every_bit() -> None:
    batch = Batch(make_runner(slots=2))
    for slot in range(2):
        batch.start(slot, slot)
    for _ in range(9):
        batch.step([0, 1])
    before = batch.runner.snapshot(1)
    for _ in range(5):
        batch.step([0])
    batch.start(0, 2)
    batch.step([0])
    after = batch.runner.snapshot(1)
    assert after.step == before.step
    for name in ("generation", "codec", "voice", "seed"):
        for old, new in zip(tails(before.state[name]), tails(after.state[name]), strict=True):
            assert old.equal(new)


def tails(state) -> list:
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tail for part in parts for tail in tails(part)]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_copy_continues_in_another_slot_as_the_original_does(config) -> None:
    batch = Batch(make_runner(config, slots=2))
    batch.start(0, 0)
    for _ in range(14):
        batch.step([0])
    batch.runner.restore(1, batch.runner.snapshot(0))
    batch.readings[1], batch.samples[1] = batch.readings[0].copy(), list(batch.samples[0])
    np.testing.assert_allclose(batch.speech(1), batch.speech(0), atol=1e-4)


def test_steps_equal_the_whole_sequence() -> None:
    """The scores of each step are those of one pass over all tokens, past the end of the attention's context."""
    runner = make_runner(sampling=small_tts_config().sampling)
    batch, model, scores = Batch(runner), runner.lm, []
    batch.start(0, 0)
    seen, reads = [], model.forward

    def forward(text, audio, state, condition, cross):
        seen.append(torch.cat([text, audio[..., 0]], dim=1))
        hidden, state = reads(text, audio, state, condition, cross)
        scores.append(model.text_logits(hidden)[:, 0])
        return hidden, state

    model.forward = forward
    batch.speech(0)
    del model.forward
    assert len(seen) > model.config.transformer.context
    tokens = torch.stack(seen, dim=-1)
    conditions = runner._conditions()
    with torch.inference_mode():
        hidden, _ = model(tokens[:, 0], tokens[:, 1:], None, conditions.sum_BD, conditions.cross)
        torch.testing.assert_close(torch.stack(scores, dim=1), model.text_logits(hidden), atol=2e-4, rtol=0)


def test_voices_and_seeds_change_the_speech_and_fewer_codebooks_run() -> None:
    runner = make_runner(codebooks=3)
    speeches = []
    for who, seed in ((0, 0), (1, 0), (0, 1)):
        batch = Batch(runner)
        batch.start(0, 0)
        runner.reset(0, voice(who), seed)
        speeches.append(batch.speech(0)[:20_000])
    assert not np.array_equal(speeches[0], speeches[1])
    assert not np.array_equal(speeches[0], speeches[2])


def test_noise_of_a_row_is_exponential_and_does_not_depend_on_the_batch() -> None:
    seeds, counts = torch.arange(40), torch.full((40,), 7)
    noise = row_noise(seeds, counts, 2000)
    assert noise[3:4].equal(row_noise(seeds[3:4], counts[3:4], 2000))
    assert abs(float(noise.mean()) - 1) < 0.02
    assert abs(float(noise.var()) - 1) < 0.05
    assert abs(float(torch.corrcoef(noise[:2])[0, 1])) < 0.1
    assert not row_noise(seeds, counts + 1, 2000).equal(noise)


def test_codes_of_a_recording_are_those_of_its_own_frames() -> None:
    """The tokens of a late encoder belong to earlier frames, and the last of them to missing audio."""
    runner = make_runner(LATE)
    pcm_S = noise_and_tones(20 * 0.08)
    with torch.inference_mode():
        codes, _ = runner.codec.encode(torch.from_numpy(pcm_S)[None], None, 4)
    assert runner.encode(pcm_S).tolist() == codes[0, :, 3:].tolist()
    assert runner.encode(pcm_S[: 16 * 1920]).tolist() == codes[0, :, 3:16].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 3.0}, "this model takes 1.0, 2.0"),
        ({"codebooks": 5}, "this model has up to 4"),
        ({"codebooks": 1}, "this model has up to 4, and needs 2"),
        ({"config": continuing_config(), "guidance": float("nan")}, "guidance=nan: expected a finite number"),
    ],
)
def test_settings_that_the_model_does_not_have(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_runner(**options)


def test_voices_of_another_model() -> None:
    runner = make_runner()
    with pytest.raises(ConfigError, match=r"the voices of this model are embeddings"):
        runner.reset(0, voice(0, continuing_config()), 0)
    with pytest.raises(ConfigError, match=r"has shape \[8, 6\]: expected \[8, up to 4\]"):
        make_runner(voice_frames=4).reset(0, voice(0), 0)
