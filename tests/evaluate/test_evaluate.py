"""Evaluation: scores that can be counted by hand, and a whole report from a scripted Runner."""

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
from tests.models import random_model, stt_config

from slipstream.arrays import BoolArray, FloatArray
from slipstream.audio import load
from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.data.manifest import Recording
from slipstream.errors import AudioError, SlipstreamError
from slipstream.evaluate.datasets import read_recordings
from slipstream.evaluate.endurance import LongStream, invented_words, long_stream
from slipstream.evaluate.page import to_html
from slipstream.evaluate.report import evaluate, to_json, to_text
from slipstream.evaluate.scores import ends_of_turn, error_rates, groups, need_words, normalise, word_times
from slipstream.evaluate.transcribe import Hypothesis, Speed, transcribe_recordings, transcribe_samples
from slipstream.events import Word
from slipstream.hints import Hints
from slipstream.model.config import PAD_ID
from slipstream.model.runner import State, StepOutput, StepwiseRunner
from slipstream.model.text import encode_stream
from slipstream.transcriber import Transcriber

pytest.importorskip("jinja2")
pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")


def _words(text: str, step: float = 0.5) -> tuple[Word, ...]:
    return tuple(Word(word, i * step, (i + 1) * step) for i, word in enumerate(text.split()))


def _hypothesis(reference: str, written: str, **about: str) -> Hypothesis:
    words = _words(reference)
    recording = Recording(Path("a.wav"), reference, words, **about)
    hypothesis = Hypothesis(recording, 3.0, 2.0, list(_words(written)), [w.end + 0.4 for w in _words(written)])
    hypothesis.pause_TH = np.zeros((60, 4), np.float32)
    return hypothesis


def test_errors_are_counted_by_kind() -> None:
    rates = error_rates([_hypothesis("red blue green pink", "red black green"), _hypothesis("cat dog", "cat dog bird")])
    assert (rates.words.substitutions, rates.words.deletions, rates.words.insertions) == (1, 1, 1)
    assert rates.words.reference == 6
    assert rates.words.rate == 0.5
    assert rates.words.low <= 0.5 <= rates.words.high


def test_the_interval_narrows_with_more_recordings() -> None:
    few, many = ([_hypothesis("a b", "a b"), _hypothesis("a b", "a x")] * n for n in (5, 80))
    few_words, many_words = error_rates(few).words, error_rates(many).words
    assert many_words.high - many_words.low < (few_words.high - few_words.low) / 2
    assert many_words.rate == few_words.rate == 0.25


def test_case_and_punctuation_do_not_count() -> None:
    assert error_rates([_hypothesis("Mr. Brown, don't!", "mister brown do not")]).words.rate == 0
    assert normalise("L'été, déjà !", "fr") == "l été déjà"


def test_recordings_without_text_are_not_counted() -> None:
    assert error_rates([_hypothesis("", "noise")]).words.recordings == 0


def test_groups_are_sorted_by_their_name() -> None:
    parts = groups([_hypothesis("a", "a", lang="fr"), _hypothesis("a", "b", lang="en")], lambda h: h.recording.lang)
    assert list(parts) == ["en", "fr"]


def test_word_times_count_correct_words_only() -> None:
    hypothesis = _hypothesis("a b c", "a x c")
    hypothesis.words[2] = Word("c", 1.1, 1.5)
    times = word_times([hypothesis])
    assert times.matched == 2
    assert times.start_error == pytest.approx(0.05)
    assert times.delay == pytest.approx(0.4)
    assert times.f1[0.08] == pytest.approx(2 * 1 / 6)
    assert times.f1[0.2] == pytest.approx(2 * 2 / 6)
    assert times.within == {0.08: 0.5, 0.2: 1.0}


def test_the_median_error_of_starts_has_a_sign() -> None:
    hypothesis = _hypothesis("a b c d e", "a b x d e")
    for number, error in ((0, -0.12), (1, -0.08), (3, -0.3), (4, 0.5)):
        word = hypothesis.words[number]
        hypothesis.words[number] = Word(word.text, word.start + error, word.end)
    times = word_times([hypothesis])
    assert times.start_shift == pytest.approx(-0.1)
    assert times.start_error == pytest.approx(0.25)
    assert times.within == {0.08: 0.25, 0.2: 0.5}  # a difference of exactly 80 ms is within 80 ms


def test_word_times_without_a_correct_word_are_none() -> None:
    times = word_times([_hypothesis("a b", "x y")])
    assert times.start_error is times.start_shift is times.delay is None
    assert times.within == {}


def test_reports_have_the_error_of_word_starts() -> None:
    hypothesis = _hypothesis("a b c d", "a b c d")
    hypothesis.words[:] = [Word(w.text, w.start + 0.3 - 0.1 * i, w.end) for i, w in enumerate(hypothesis.words)]
    evaluation = evaluate([hypothesis], Speed(1.0, 1.0, 1), model="m", manifest="x.jsonl", frame_rate=12.5)
    expected = "word starts of the 4 correct words: median error +150 ms, 25% within 80 ms, 75% within 200 ms"
    assert expected in to_text(evaluation)
    times = json.loads(to_json(evaluation))["times"]
    assert times["start_shift"] == pytest.approx(0.15)
    assert times["within"] == {"0.08": 0.25, "0.2": 0.75}
    assert "+150 ms" in to_html(evaluation)


def test_an_end_of_turn_is_late_after_the_last_word_and_false_before_it() -> None:
    good, hasty = _hypothesis("a b c d", "a b c d"), _hypothesis("a b c d", "a b c d")  # the last word from 1.5 to 2 s
    good.pause_TH[31:, 2] = 0.75  # 32 frames processed: 2.56 s
    hasty.pause_TH[14:16, 2] = 0.75
    hasty.pause_TH[26:, 2] = 0.95  # 27 frames processed: 2.16 s
    by_threshold = {turn.threshold: turn for turn in ends_of_turn([good, hasty], 12.5, 2)}
    low, high = by_threshold[0.6], by_threshold[0.8]
    assert (low.found, low.false_alarms) == (1.0, 0.5)
    assert low.median == pytest.approx((0.56 + 0.16) / 2)
    assert (high.found, high.false_alarms) == (0.5, 0.0)
    assert high.median == pytest.approx(0.16)


class Script(StepwiseRunner):
    """A Runner of two slots that write the same text stream after each reset."""

    frame_samples, frame_rate, slots, delay_frames = 1920, 12.5, 2, 4

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens, self.at = tokens, [0, 0]

    def reset(self, slots: Sequence[int], first_frame: int = 0) -> None:
        for slot in slots:
            self.at[slot] = 0

    def step(self, pcm_BS: FloatArray, active_B: BoolArray) -> StepOutput:
        token_B = np.full(2, PAD_ID)
        for slot in np.flatnonzero(active_B).tolist():
            self.at[slot] += 1
            token_B[slot] = self.tokens[self.at[slot]] if self.at[slot] < len(self.tokens) else PAD_ID
        return StepOutput(token_B, np.zeros(2, np.float32), np.full((2, 4), 0.5, np.float32))

    def snapshot(self, slot: int) -> State:
        return self.at[slot]

    def restore(self, slot: int, state: State) -> None:
        self.at[slot] = state


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


def test_every_recording_is_transcribed_from_its_start_to_its_last_word(recordings: list[Recording]) -> None:
    spm = tiny_tokenizer()
    runner = Script(encode_stream(recordings[0].words, spm, 4, 40).tolist())
    with Transcriber(runner, spm, model="m") as transcriber:
        hypotheses, speed = transcribe_recordings(transcriber, recordings)
    assert [one.recording.audio.name for one in hypotheses] == ["0.wav", "1.wav", "2.wav"]
    for one in hypotheses:
        assert one.text == "the dog"
        assert len(one.pause_TH) >= (one.seconds + 2.9) * 12.5
        assert one.emitted[0] > 0.4 + 4 / 12.5 - 0.01  # later by a frame for each further piece of the word
    assert speed.audio == pytest.approx(6.4)
    evaluation = evaluate(hypotheses, speed, model="m", manifest="x.jsonl", frame_rate=12.5)
    assert evaluation.overall.words.rate == 0
    assert evaluation.times.start_error == pytest.approx(0.02, abs=0.03)
    assert list(evaluation.datasets) == ["set0", "set1"]
    assert json.loads(to_json(evaluation))["overall"]["words"]["recordings"] == 3
    assert "baseline" not in json.loads(to_json(evaluation))
    assert "x real time" in to_text(evaluation)
    # Nothing is wrong, so there is nothing to find.
    assert "AUC-PR of errors none" in to_text(evaluation)
    assert "NaN" not in to_json(evaluation)


def test_a_beam_takes_several_slots_for_each_recording(recordings: list[Recording]) -> None:
    spm = tiny_tokenizer()
    config = stt_config(text_vocab=spm.vocab_size)
    lm, codec = random_model(config)
    with Transcriber(OnnxRunner(config, lm, codec, slots=4, threads=1), spm, model="m") as transcriber:
        hypotheses, speed = transcribe_recordings(transcriber, recordings, hints=Hints(beam=2))
        alone, _ = transcribe_recordings(transcriber, recordings[:1], hints=Hints(beam=2))
        greedy, _ = transcribe_recordings(transcriber, recordings[:1])
    assert speed.streams == 2
    assert hypotheses[0].words == alone[0].words != greedy[0].words


def test_the_beam_of_the_transcriber_is_the_default_and_is_reported(recordings: list[Recording]) -> None:
    spm = tiny_tokenizer()
    config = stt_config(text_vocab=spm.vocab_size)
    lm, codec = random_model(config)
    runner = OnnxRunner(config, lm, codec, slots=4, threads=1)
    with Transcriber(runner, spm, model="m", beam=2) as transcriber:
        hypotheses, speed = transcribe_recordings(transcriber, recordings[:1])
        two, one = (transcribe_recordings(transcriber, recordings[:1], hints=Hints(beam=n))[0] for n in (2, 1))
        tail = np.zeros(len(hypotheses[0].ending_T) * 1920 - 48_000, np.float32)
        long = transcribe_samples(transcriber, np.append(load(recordings[0].audio, 24_000), tail))
    assert speed.streams == 2
    assert hypotheses[0].words == two[0].words == long != one[0].words
    assert len(hypotheses[0].pause_TH) == len(one[0].pause_TH)  # a frame is judged once, with any beam
    evaluation = evaluate(hypotheses, speed, model="m", manifest="x.jsonl", frame_rate=12.5, beam=2)
    assert "2 concurrent streams with a beam of 2" in to_text(evaluation)
    assert "Beam of 2" in to_html(evaluation)
    assert json.loads(to_json(evaluation))["beam"] == 2


def test_json_has_each_rate_with_its_interval() -> None:
    hypotheses = [
        _hypothesis("the cat sat on the mat", "the cat sat on a mat"),
        _hypothesis("good morning", "good morning"),
    ]
    speed = Speed(8.0, 2.0, 1)
    evaluation = evaluate(hypotheses, speed, model="m", manifest="x.jsonl", frame_rate=12.5)
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


def test_recordings_that_cannot_be_read_are_left_out_and_reported(recordings: list[Recording], tmp_path: Path) -> None:
    spm = tiny_tokenizer()
    runner = Script(encode_stream(recordings[0].words, spm, 4, 40).tolist())
    missing = Recording(tmp_path / "missing.wav", "the dog")
    left_out: list[Recording] = []
    some = [recordings[0], missing, recordings[1]]
    with Transcriber(runner, spm, model="m") as transcriber:
        hypotheses, speed = transcribe_recordings(
            transcriber, some, on_error=lambda recording, _: left_out.append(recording)
        )
        with pytest.raises(AudioError, match=r"missing\.wav: no such file"):
            transcribe_recordings(transcriber, some)
    assert left_out == [missing]
    assert [one.text for one in hypotheses] == ["the dog"] * 2
    evaluation = evaluate(hypotheses, speed, model="m", manifest="x.jsonl", frame_rate=12.5, left_out=len(left_out))
    for written in (to_text(evaluation), to_html(evaluation)):
        assert "recordings left out, as their audio cannot be read: 1" in written


def test_recordings_without_words_are_refused() -> None:
    silent, spoken = Recording(Path("a.wav"), "?!"), Recording(Path("a.wav"), "a word")
    need_words([silent, spoken], "all.jsonl")
    with pytest.raises(SlipstreamError, match=r"all\.jsonl: no recording of 2 has a text with words"):
        need_words([silent, silent], "all.jsonl")


def test_the_page_escapes_texts_and_names() -> None:
    hypotheses = [_hypothesis("a <b> & c", "a", dataset="<x>"), _hypothesis("b", "b", dataset="y")]
    page = to_html(evaluate(hypotheses, Speed(1, 1, 1), model="m", manifest="n", frame_rate=12.5))
    assert "&lt;b&gt; &amp; c" in page
    assert "<x>" not in page


def test_a_long_stream_is_scored_part_by_part(recordings: list[Recording]) -> None:
    spm = tiny_tokenizer()
    long = recordings[:2] * 5
    words, at = [], 0.0
    for number, recording in enumerate(long):
        texts = ("the", "dog") if number < 5 else ("dog", "the")
        words += [Word(text, w.start + at, w.end + at) for text, w in zip(texts, recording.words, strict=True)]
        at += 1.0 + (2.0, 2.5)[recording.audio.name == "1.wav"]
    with Transcriber(Script(encode_stream(words, spm, 4, 400).tolist()), spm, model="m") as transcriber:
        stream = long_stream(transcriber, long)
    assert [part.rate for part in stream.parts] == [0.0] * 5 + [1.0] * 5
    assert stream.seconds == pytest.approx(5 * (3.0 + 3.5))


def test_invented_words_are_counted_per_hour() -> None:
    spm = tiny_tokenizer()
    script = Script(encode_stream([Word("the", 0.4, 0.5), Word("dog", 1.0, 1.2)], spm, 4, 60).tolist())
    with Transcriber(script, spm, model="m") as transcriber:
        assert invented_words(transcriber, 0.1) == dict.fromkeys(
            ("silence", "white noise", "brown noise", "music"), pytest.approx(1200)
        )


def test_audio_from_the_hub_can_be_read_after_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"audio": {"sampling_rate": 8000, "array": [0.0, 0.5]}, "text": "a"}] * 2
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: rows))
    recordings = list(read_recordings("hf:somebody/speech"))
    assert [(recording.text, recording.audio.exists()) for recording in recordings] == [("a", True)] * 2
