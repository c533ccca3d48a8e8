"""Evaluation: counts that can be done by hand, and a whole report from a Runner that plays a script."""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.fakes import tiny_tokenizer

from slipstream.arrays import BoolArray, FloatArray
from slipstream.data.manifest import Recording
from slipstream.errors import AudioError, SlipstreamError
from slipstream.evaluate.datasets import read_recordings
from slipstream.evaluate.endurance import LongStream, invented_words, long_stream
from slipstream.evaluate.report import evaluate, to_html, to_json, to_text
from slipstream.evaluate.scores import ends_of_turn, error_rates, groups, need_words, normalise, word_times
from slipstream.evaluate.transcribe import Heard, Speed, hear
from slipstream.events import Word
from slipstream.model.config import PAD_ID
from slipstream.model.runner import State, StepOutput
from slipstream.model.text import encode_stream

pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")


def _words(text: str, step: float = 0.5) -> tuple[Word, ...]:
    return tuple(Word(word, i * step, (i + 1) * step) for i, word in enumerate(text.split()))


def _heard(said: str, written: str, **about: str) -> Heard:
    words = _words(said)
    recording = Recording(Path("a.wav"), said, words, **about)
    heard = Heard(recording, 3.0, 2.0, list(_words(written)), [w.end + 0.4 for w in _words(written)])
    heard.pause_TH = np.zeros((60, 4), np.float32)
    return heard


def test_errors_are_counted_by_kind() -> None:
    rates = error_rates([_heard("red blue green pink", "red black green"), _heard("cat dog", "cat dog bird")])
    assert (rates.words.substitutions, rates.words.deletions, rates.words.insertions) == (1, 1, 1)
    assert rates.words.reference == 6
    assert rates.words.rate == 0.5
    assert rates.words.low <= 0.5 <= rates.words.high


def test_the_interval_narrows_with_more_recordings() -> None:
    few, many = ([_heard("a b", "a b"), _heard("a b", "a x")] * n for n in (5, 80))
    few_words, many_words = error_rates(few).words, error_rates(many).words
    assert many_words.high - many_words.low < (few_words.high - few_words.low) / 2
    assert many_words.rate == few_words.rate == 0.25


def test_case_and_punctuation_are_no_errors() -> None:
    assert error_rates([_heard("Mr. Brown, don't!", "mister brown do not")]).words.rate == 0
    assert normalise("L'été, déjà !", "fr") == "l été déjà"


def test_recordings_without_text_are_not_counted() -> None:
    assert error_rates([_heard("", "noise")]).words.recordings == 0


def test_groups_are_sorted_by_their_name() -> None:
    parts = groups([_heard("a", "a", lang="fr"), _heard("a", "b", lang="en")], lambda h: h.recording.lang)
    assert list(parts) == ["en", "fr"]


def test_word_times_are_of_the_words_that_are_right() -> None:
    heard = _heard("a b c", "a x c")
    heard.words[2] = Word("c", 1.1, 1.5)
    times = word_times([heard])
    assert times.matched == 2
    assert times.start_error == pytest.approx(0.05)
    assert times.delay == pytest.approx(0.4)
    assert times.f1[0.08] == pytest.approx(2 * 1 / 6)
    assert times.f1[0.2] == pytest.approx(2 * 2 / 6)


def test_an_end_of_turn_is_late_after_the_last_word_and_false_before_it() -> None:
    good, hasty = _heard("a b c d", "a b c d"), _heard("a b c d", "a b c d")  # the last word from 1.5 to 2 s
    good.pause_TH[31:, 2] = 0.75  # 32 frames heard: 2.56 s
    hasty.pause_TH[14:16, 2] = 0.75
    hasty.pause_TH[26:, 2] = 0.95  # 27 frames heard: 2.16 s
    by_threshold = {turn.threshold: turn for turn in ends_of_turn([good, hasty], 12.5, 2)}
    low, high = by_threshold[0.6], by_threshold[0.8]
    assert (low.found, low.false_alarms) == (1.0, 0.5)
    assert low.median == pytest.approx((0.56 + 0.16) / 2)
    assert (high.found, high.false_alarms) == (0.5, 0.0)
    assert high.median == pytest.approx(0.16)


class Script:
    """A Runner of two slots that writes the same text stream into each, from its reset on."""

    frame_samples, frame_rate, slots, delay_frames = 1920, 12.5, 2, 4

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.at = tokens, [0, 0]

    def reset(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.at[slot] = 0

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        token_B = np.full(2, PAD_ID)
        for slot in np.flatnonzero(active_B).tolist():
            self.at[slot] += 1
            token_B[slot] = self.tokens[self.at[slot]] if self.at[slot] < len(self.tokens) else PAD_ID
        return StepOutput(token_B, np.zeros(2, np.float32), np.full((2, 4), 0.5, np.float32))

    def snapshot(self, slot: int) -> State:
        raise NotImplementedError

    def restore(self, slot: int, state: State) -> None:
        raise NotImplementedError


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    words = (Word("the", 0.4, 0.8), Word("dog", 1.2, 1.6))
    made = []
    for number, seconds in enumerate((2.0, 2.5, 1.9)):
        path = tmp_path / f"{number}.wav"
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(24_000)
            out.writeframes(np.full(round(24_000 * seconds), 3000, "<i2").tobytes())
        made.append(Recording(path, "the dog", words, dataset=f"set{number % 2}", speaker=f"s{number}"))
    return made


def test_every_recording_is_heard_from_its_start_to_its_last_word(recordings: list[Recording]) -> None:
    spm = tiny_tokenizer()
    runner = Script(encode_stream(recordings[0].words, spm, 4, 40).tolist())
    heard, speed = hear(runner, spm, recordings)
    assert sorted(one.recording.audio.name for one in heard) == ["0.wav", "1.wav", "2.wav"]
    for one in heard:
        assert one.text == "the dog"
        assert len(one.pause_TH) >= (one.seconds + 2.9) * 12.5
        assert one.came[0] > 0.4 + 4 / 12.5
    assert speed.audio == pytest.approx(6.4)
    evaluation = evaluate(heard, speed, model="m", manifest="x.jsonl", frame_rate=12.5)
    assert evaluation.overall.words.rate == 0
    assert evaluation.times.start_error == pytest.approx(0.02, abs=0.03)
    assert list(evaluation.datasets) == ["set0", "set1"]
    assert json.loads(to_json(evaluation))["overall"]["words"]["recordings"] == 3
    assert "baseline" not in json.loads(to_json(evaluation))
    assert "x real time" in to_text(evaluation)


def test_json_has_each_rate_with_its_interval() -> None:
    heard = [_heard("the cat sat on the mat", "the cat sat on a mat"), _heard("good morning", "good morning")]
    speed = Speed(8.0, 2.0, 1)
    evaluation = evaluate(heard, speed, model="m", manifest="x.jsonl", frame_rate=12.5)
    body = json.loads(to_json(evaluation, baseline=evaluation, stream=LongStream(8.0, [evaluation.overall.words])))
    overall = body["overall"]
    assert overall["words"] == {
        "substitutions": 1, "deletions": 0, "insertions": 0, "reference": 8, "recordings": 2
    }  # fmt: skip
    low, high = evaluation.overall.words.low, evaluation.overall.words.high
    assert overall["wer"] == {"rate": 1 / 8, "low": low, "high": high}
    assert low <= 1 / 8 <= high
    assert overall["cer"]["rate"] == pytest.approx(evaluation.overall.characters.rate)
    assert overall["cer"].keys() == {"rate", "low", "high"}
    for name in ("datasets", "languages", "speakers"):
        assert all(group.keys() == overall.keys() for group in body[name].values())
    assert body["baseline"]["overall"] == overall
    assert body["stream"] == {"seconds": 8.0, "wer": [overall["wer"]]}


def test_what_cannot_be_read_is_left_out_and_told(recordings: list[Recording], tmp_path: Path) -> None:
    spm = tiny_tokenizer()
    runner = Script(encode_stream(recordings[0].words, spm, 4, 40).tolist())
    missing = Recording(tmp_path / "missing.wav", "the dog")
    left_out: list[Recording] = []
    some = [recordings[0], missing, recordings[1]]
    heard, speed = hear(runner, spm, some, on_error=lambda recording, _: left_out.append(recording))
    assert left_out == [missing]
    assert [one.text for one in heard] == ["the dog"] * 2
    evaluation = evaluate(heard, speed, model="m", manifest="x.jsonl", frame_rate=12.5, left_out=len(left_out))
    for written in (to_text(evaluation), to_html(evaluation)):
        assert "recordings left out, as their audio cannot be read: 1" in written
    with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
        hear(runner, spm, some)


def test_errors_are_a_share_of_words_that_must_be_there() -> None:
    silent, said = Recording(Path("a.wav"), "?!"), Recording(Path("a.wav"), "a word")
    need_words([silent, said], "all.jsonl")
    with pytest.raises(SlipstreamError, match=r"all\.jsonl: of 2 recordings none has a text with words"):
        need_words([silent, silent], "all.jsonl")


def test_the_page_escapes_what_was_said() -> None:
    heard = [_heard("a <b> & c", "a", dataset="<x>"), _heard("b", "b", dataset="y")]
    page = to_html(evaluate(heard, Speed(1, 1, 1), model="m", manifest="n", frame_rate=12.5))
    assert "&lt;b&gt; &amp; c" in page
    assert "<x>" not in page


def test_a_long_stream_is_judged_part_by_part(recordings: list[Recording]) -> None:
    spm = tiny_tokenizer()
    long = recordings[:2] * 5
    words, at = [], 0.0
    for recording in long[:5]:  # and mute after that
        words += [Word(w.text, w.start + at, w.end + at) for w in recording.words]
        at += 1.0 + (2.0, 2.5)[recording.audio.name == "1.wav"]
    stream = long_stream(Script(encode_stream(words, spm, 4, 400).tolist()), spm, long)
    assert [part.rate for part in stream.parts] == [0.0] * 5 + [1.0] * 5
    assert stream.seconds == pytest.approx(5 * (3.0 + 3.5))


def test_invented_words_are_counted_by_the_hour() -> None:
    spm = tiny_tokenizer()
    script = Script(encode_stream([Word("the", 0.4, 0.5), Word("dog", 1.0, 1.2)], spm, 4, 60).tolist())
    assert invented_words(script, spm, 0.1) == dict.fromkeys(
        ("silence", "white noise", "brown noise", "music"), pytest.approx(1200)
    )


def test_audio_of_the_hub_is_there_after_its_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"audio": {"sampling_rate": 8000, "array": [0.0, 0.5]}, "text": "a"}] * 2
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    recordings = list(read_recordings("hf:somebody/speech"))
    assert [(recording.text, recording.audio.exists()) for recording in recordings] == [("a", True)] * 2
