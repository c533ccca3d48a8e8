"""Sessions with hints on an engine with a true backend and random weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.fakes import new_session, words_of
from tests.models import noise_and_tones, random_model, stt_config

from slipstream.backends.onnx.runner import OnnxRunner
from slipstream.engine.options import SessionOptions
from slipstream.engine.scheduler import Scheduler
from slipstream.errors import ConfigError, Overloaded
from slipstream.events import Word
from slipstream.hints import Hints, Keyword
from slipstream.hints.search import Decision, Search
from slipstream.model.runner import Choice
from slipstream.testing import ScriptRunner, tiny_tokenizer
from slipstream.transcriber import Transcriber

AUDIO_S = noise_and_tones(3.0, seed=4)


@pytest.fixture(scope="module")
def transcriber() -> Iterator[Transcriber]:
    tokenizer = tiny_tokenizer()
    config = stt_config(text_vocab=tokenizer.vocab_size)
    lm, codec = random_model(config)
    with Transcriber(OnnxRunner(config, lm, codec, slots=4, threads=1), tokenizer, model="random") as transcriber:
        yield transcriber


def words(transcriber: Transcriber, hints: Hints | None = None, seed: int = 4) -> list[Word]:
    audio_S = noise_and_tones(3.0, seed=seed)
    found = list(transcriber.transcribe(audio_S, 24_000, hints=hints).words)
    assert len(found) > 3
    return found


def test_a_search_of_one_hypothesis_writes_what_the_model_picks(transcriber: Transcriber) -> None:
    assert words(transcriber, Hints(keywords=[Keyword("zzyzx", 1e-6)])) == words(transcriber)


def test_keywords_change_the_text(transcriber: Transcriber) -> None:
    assert words(transcriber, Hints(keywords=[Keyword("word", 10.0)])) != words(transcriber)


def test_a_beam_finds_another_text_than_the_greedy_search_and_the_same_one_each_time(transcriber: Transcriber) -> None:
    beam = words(transcriber, Hints(beam=3))
    assert beam != words(transcriber)
    assert beam == words(transcriber, Hints(beam=3))


def test_a_beam_among_other_sessions_writes_the_same(transcriber: Transcriber) -> None:
    hints = [Hints(beam=2), None, Hints(keywords=["speech", "word"])]
    alone = [words(transcriber, one, seed) for seed, one in enumerate(hints)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda pair: words(transcriber, pair[1], pair[0]), enumerate(hints)))
    for left, right in zip(alone, together, strict=True):
        assert [word.text for word in left] == [word.text for word in right]
        assert [(word.start, word.end) for word in left] == [(word.start, word.end) for word in right]


def test_a_flush_in_mid_stream_does_not_change_a_beam(transcriber: Transcriber) -> None:
    def written(*, flush: bool) -> list[str]:
        with transcriber.session(SessionOptions(hints=Hints(beam=2))) as session:
            session.send(AUDIO_S[:36_000])
            if flush:
                session.flush()
            session.send(AUDIO_S[36_000:])
            session.finish()
            return [event.text for event in session if isinstance(event, Word) and event.start > 2.2]

    assert written(flush=True) == written(flush=False)


@pytest.mark.parametrize("hints", [Hints(beam=2), Hints(alternatives=3)])
def test_the_stream_after_a_flush_has_the_hypotheses_from_before_it(
    transcriber: Transcriber, hints: Hints, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[Search, list[list[list[int]]]] = {}  # the tokens that each step offers in each row
    advance = Search.advance

    def note(search: Search, choices: Sequence[Choice]) -> Decision:
        steps.setdefault(search, []).append([list(choice.tokens) for choice in choices])
        return advance(search, choices)

    monkeypatch.setattr(Search, "advance", note)

    def offered(flush: bool) -> list[list[list[int]]]:
        steps.clear()
        with transcriber.session(SessionOptions(hints=hints)) as session:
            session.send(AUDIO_S[: 7 * 1920])
            if flush:
                session.flush()
            session.send(AUDIO_S[7 * 1920 :])
            session.finish()
            list(session)
        stream, *flushes = steps.values()
        assert len(flushes) == 1 + flush
        return stream

    assert offered(flush=True) == offered(flush=False)


def test_a_prompt_is_not_written_and_its_state_is_kept(transcriber: Transcriber) -> None:
    hints = Hints(prompt="the quick brown fox")
    first, again = words(transcriber, hints), words(transcriber, hints)
    assert first == again
    assert first != words(transcriber)
    assert all(0 <= word.start <= word.end <= 3.0 for word in first)


def test_a_stream_may_have_its_own_delay(transcriber: Transcriber) -> None:
    later = words(transcriber, Hints(delay=1.6))
    assert [word.text for word in later] != [word.text for word in words(transcriber)]
    assert later == words(transcriber, Hints(delay=1.6))
    assert all(word.end <= 3.0 for word in later)


@pytest.fixture(scope="module")
def bilingual() -> Iterator[Transcriber]:
    tokenizer = tiny_tokenizer()
    config = stt_config(codec="whisper", decoder=True, languages=("en", "fr"), text_vocab=tokenizer.vocab_size)
    lm, codec = random_model(config)
    with Transcriber(OnnxRunner(config, lm, codec, slots=4, threads=1), tokenizer, model="random") as transcriber:
        yield transcriber


def test_one_language_changes_the_text_of_a_model_that_can_be_set_to_it(bilingual: Transcriber) -> None:
    def text(*languages: str, prompt: str = "") -> list[tuple[str, float]]:
        found = words(bilingual, Hints(languages=languages, prompt=prompt))
        return [(word.text, word.start) for word in found]

    assert text("fr") == text("fr-CA") != text("en")
    assert text("en") != text() == text("en", "fr") == text("auto")
    assert text("fr", prompt="bonjour") == text("fr", prompt="bonjour") != text("en", prompt="bonjour")


@pytest.mark.parametrize("languages", [["de"], ["en", "de-AT"]])
def test_a_language_that_the_model_cannot_be_set_to_is_refused(bilingual: Transcriber, languages: list[str]) -> None:
    audio_S, hints = noise_and_tones(1.0), Hints(languages=languages)
    options = SessionOptions(hints=hints)

    async def open_session() -> None:
        bilingual.async_session(options)

    for use in (
        lambda: bilingual.transcribe(audio_S, 24_000, hints=hints),
        lambda: list(bilingual.stream([audio_S], 24_000, hints=hints)),
        lambda: bilingual.session(options),
        lambda: asyncio.run(open_session()),
    ):
        with pytest.raises(ConfigError, match=rf"language '{languages[-1]}': expected one of .* \(en, fr, auto\)"):
            use()


def test_a_language_that_the_model_cannot_be_set_to_only_tags_words_on_a_server(bilingual: Transcriber) -> None:
    def written(*languages: str) -> list[Word]:
        # Servers open sessions on the engine: the language of their clients may be a setting of another service.
        with bilingual.engine.open(SessionOptions(partials=False, hints=Hints(languages=languages))) as session:
            session.send(noise_and_tones(3.0, seed=4))
            session.finish()
            return words_of(list(session))

    plain, tagged = written(), written("de")
    assert len(plain) > 3
    assert [(word.text, word.start) for word in plain] == [(word.text, word.start) for word in tagged]
    assert {word.language for word in tagged} == {"de"}


def test_a_language_only_tags_words_of_other_models(transcriber: Transcriber) -> None:
    plain, tagged = words(transcriber), words(transcriber, Hints(languages=["fr"]))
    assert [word.text for word in plain] == [word.text for word in tagged]
    assert {word.language for word in tagged} == {"fr"}


def test_a_beam_of_more_hypotheses_than_slots_is_refused(transcriber: Transcriber) -> None:
    with pytest.raises(ConfigError, match="a beam of 5 needs 5 slots of one device: expected 1 to 4"):
        transcriber.session(SessionOptions(hints=Hints(beam=5)))


def test_sessions_take_and_free_as_many_slots_as_hypotheses() -> None:
    runner, scheduler = ScriptRunner(4), Scheduler(4)
    wide, narrow = new_session(runner, hints=Hints(beam=3)), new_session(runner)
    scheduler.add(wide, 0.0)
    scheduler.add(narrow, 0.0)
    assert (wide.slots, narrow.slots) == ((0, 1, 2), (3,))
    waiting = [new_session(runner, hints=Hints(beam=2)), new_session(runner)]
    with pytest.raises(Overloaded):
        scheduler.add(waiting[0], 0.0)
    for session in waiting:
        scheduler.add(session, 0.0, wait=9.0)
    assert scheduler.remove(narrow, 0.0) == [waiting[1]]  # one slot is not enough for the first in the queue
    assert scheduler.remove(wide, 0.0) == [waiting[0]]
    assert (waiting[0].slots, waiting[1].slots) == ((0, 1), (3,))
