from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import tiny_tokenizer, tokenizer_proto

from slipstream.errors import CheckpointError
from slipstream.events import OpenWord, PartialWord, Word
from slipstream.model.confidence import Calibration, Curve
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.text import MAX_WORD_TOKENS, PAUSE_FRAMES, Tokenizer, WordDecoder, WordEvent, encode_stream

TOKENIZER = tiny_tokenizer()

# Everything a word may hold: letters the tokenizer knows and does not know, accents, apostrophes, punctuation, emoji.
word_texts = st.text(
    st.one_of(
        st.sampled_from("etaoinshrdluéèàçœïô'-,.?!"),
        st.characters(exclude_categories=("C", "Z"), exclude_characters="▁"),
    ),
    min_size=1,
    max_size=12,
)


def decode(stream: Sequence[int], delay: int) -> list[WordEvent]:
    """All events of a stream, the token of the initial position left out as a Runner leaves it out."""
    decoder = WordDecoder(TOKENIZER, delay)
    events = [event for token in stream[1:] for event in decoder.push(int(token))]
    return events + list(decoder.flush())


def words_of(events: Sequence[WordEvent]) -> list[Word]:
    return [event for event in events if isinstance(event, Word)]


def pieces(*texts: str) -> list[int]:
    """Tokens of pieces as the vocabulary names them."""
    tokens = [TOKENIZER._processor.piece_to_id(text) for text in texts]
    assert 0 not in tokens, texts
    return tokens


# ----------------------------------------------------------------------------------------------- the inverse law


@given(
    gaps=st.lists(st.tuples(word_texts, st.integers(20, 80)), max_size=12),
    delay=st.integers(1, 40),
    within_frame=st.floats(0, 0.99),
)
def test_decoding_undoes_encoding_for_words_that_have_room(
    gaps: list[tuple[str, int]], delay: int, within_frame: float
) -> None:
    words, frame = [], 0
    for text, gap in gaps:
        words.append(Word(text, (frame + within_frame) / 12.5, (frame + gap) / 12.5))
        frame += max(gap, len(TOKENIZER.encode(text)) + 1)
    decoded = words_of(decode(encode_stream(words, TOKENIZER, delay, frame + delay + 60), delay))
    assert [word.text for word in decoded] == [word.text for word in words]
    assert [word.start for word in decoded] == [math.floor(word.start * 12.5 + 1e-6) / 12.5 for word in words]


@given(
    gaps=st.lists(st.tuples(word_texts, st.integers(0, 12)), max_size=20),
    delay=st.integers(1, 40),
)
def test_decoding_undoes_encoding_however_dense_the_words(gaps: list[tuple[str, int]], delay: int) -> None:
    words, expected, frame, free = [], [], 0, 1
    for text, gap in gaps:
        frame += gap
        words.append(Word(text, frame / 12.5, frame / 12.5))
        first = max(frame + delay, free)
        free = first + len(TOKENIZER.encode(text))
        expected.append((text, first - delay, free - 1 - delay))
    num_frames = free + PAUSE_FRAMES + delay + 1
    decoded = words_of(decode(encode_stream(words, TOKENIZER, delay, num_frames), delay))
    assert [word.text for word in decoded] == [text for text, _, _ in expected]
    for word, (_, first, last), after in zip(decoded, expected, [*expected[1:], None], strict=False):
        pause = last + PAUSE_FRAMES + 1
        assert word.start == first / 12.5
        assert word.end == (min(pause, after[1]) if after else pause) / 12.5


@given(gaps=st.lists(st.tuples(word_texts, st.integers(0, 12)), max_size=20), delay=st.integers(1, 20))
def test_decoded_text_encodes_to_the_same_stream(gaps: list[tuple[str, int]], delay: int) -> None:
    frames = np.cumsum([gap for _, gap in gaps])
    words = [Word(text, frame / 12.5, frame / 12.5) for (text, _), frame in zip(gaps, frames, strict=True)]
    num_frames = 400 + delay
    stream = encode_stream(words, TOKENIZER, delay, num_frames)
    assert (encode_stream(words_of(decode(stream, delay)), TOKENIZER, delay, num_frames) == stream).all()


@given(
    tokens=st.lists(st.integers(0, TOKENIZER.vocab_size - 1) | st.sampled_from([WORD_ID, PAD_ID])),
    delay=st.integers(0, 9),
)
def test_times_of_any_stream_run_forwards_within_the_audio(tokens: list[int], delay: int) -> None:
    decoder = WordDecoder(TOKENIZER, delay)
    reached = 0.0
    for index, token in enumerate(tokens, start=1):
        for event in decoder.push(token):
            assert 0 <= event.start <= index / 12.5
            assert event.start >= reached
            assert event.text
            assert "\ufffd" not in event.text
            if isinstance(event, Word):
                assert event.start <= event.end <= index / 12.5
                assert 0 <= event.confidence <= 1
                reached = event.end
    for event in decoder.flush():
        assert reached <= event.start <= len(tokens) / 12.5


# ----------------------------------------------------------------------------------------------------- placement


def test_a_word_is_placed_after_the_delay_with_the_word_token_before_it() -> None:
    fox = TOKENIZER.encode("fox")
    stream = encode_stream([Word("fox", 1.0, 1.4)], TOKENIZER, delay_frames=6, num_frames=30)
    assert stream.dtype == np.int64
    assert stream[17] == WORD_ID  # 12 + 6 - 1: frame 12 holds second 1.0
    assert list(stream[18 : 18 + len(fox)]) == fox
    assert set(stream[:17]) == set(stream[18 + len(fox) :]) == {PAD_ID}


def test_a_word_at_the_very_start_has_no_place_for_a_word_token() -> None:
    stream = encode_stream([Word("fox", 0.0, 0.4)], TOKENIZER, delay_frames=1, num_frames=8)
    assert WORD_ID not in stream
    assert words_of(decode(stream, 1))[0].start == 0.0


def test_a_word_waits_for_the_one_before_it() -> None:
    slow, fox = TOKENIZER.encode("répondit"), TOKENIZER.encode("fox")
    assert len(slow) > 2
    stream = encode_stream([Word("répondit", 1.0, 1.1), Word("fox", 1.08, 1.2)], TOKENIZER, 6, 60)
    assert list(stream[18 : 18 + len(slow) + len(fox)]) == slow + fox


def test_tokens_past_the_last_frame_are_cut() -> None:
    whole = encode_stream([Word("répondit", 1.0, 1.1)], TOKENIZER, 6, 60)
    for num_frames in range(30):
        cut = encode_stream([Word("répondit", 1.0, 1.1)], TOKENIZER, 6, num_frames)
        assert (cut == whole[:num_frames]).all()


def test_words_are_placed_in_the_order_of_their_starts() -> None:
    one, two = Word("fox", 1.0, 1.5), Word("dog", 3.0, 3.5)
    assert (encode_stream([two, one], TOKENIZER, 6, 80) == encode_stream([one, two], TOKENIZER, 6, 80)).all()


@pytest.mark.parametrize("start", [-0.1, math.nan, math.inf])
def test_a_start_outside_the_audio_is_an_error_that_names_the_word(start: float) -> None:
    with pytest.raises(ValueError, match="'fox'"):
        encode_stream([Word("fox", start, 2.0)], TOKENIZER, 6, 80)


def test_a_character_that_cannot_be_written_never_becomes_a_word_token(tmp_path: Path) -> None:
    path = tmp_path / "no-bytes.model"
    path.write_bytes(tokenizer_proto(byte_fallback=False, vocab_size=120))
    tokenizer = Tokenizer(path)
    assert WORD_ID not in tokenizer.encode("fox日")
    assert tokenizer.decode(tokenizer.encode("fox日")) == "fox"
    assert (encode_stream([Word("日", 1, 2)], tokenizer, 6, 80) != tokenizer.encode("a")[0]).all()


# ------------------------------------------------------------------------------------------------------ decoding


def test_a_word_token_gives_the_start_even_when_its_word_comes_later() -> None:
    stream = [PAD_ID] * 9 + [WORD_ID, PAD_ID, *pieces("▁fo", "x"), PAD_ID]
    assert words_of(decode(stream, delay=6))[0].start == (9 + 1 - 6) / 12.5


def test_a_word_token_with_no_word_before_the_pause_is_forgotten() -> None:
    stream = [PAD_ID, WORD_ID, *[PAD_ID] * PAUSE_FRAMES, *pieces("▁fo", "x")]
    assert words_of(decode(stream, delay=1))[0].start == (2 + PAUSE_FRAMES - 1) / 12.5


def test_several_words_in_one_segment_are_split_and_timed() -> None:
    stream = [PAD_ID] * 6 + [WORD_ID, *pieces("▁fo", "x", "▁do", "es"), *[PAD_ID] * 3, WORD_ID]
    assert [(word.text, word.start, word.end) for word in words_of(decode(stream, delay=6))] == [
        ("fox", 1 / 12.5, 3 / 12.5),
        ("does", 3 / 12.5, 9 / 12.5),
    ]


def test_a_piece_after_a_pad_continues_its_word() -> None:
    stream = [PAD_ID] * 6 + [WORD_ID, *pieces("▁fo"), PAD_ID, *pieces("x"), *[PAD_ID] * 8]
    events = decode(stream, delay=6)
    assert [(type(event), event.text) for event in events] == [
        (PartialWord, "fo"),
        (OpenWord, "fo"),
        (PartialWord, "fox"),
        (OpenWord, "fox"),
        (Word, "fox"),
    ]


@pytest.mark.parametrize("text", ["l'hôpital", "c'était", "doesn't", "Saint-Malo,", "été", "日本", "cœur.", "🦊"])
def test_characters_written_as_bytes_join_and_never_show_half(text: str) -> None:
    events = decode(encode_stream([Word(text, 0.5, 1.0)], TOKENIZER, 6, 80), 6)
    assert words_of(events)[0].text == text
    assert all(text.startswith(event.text) for event in events)


def test_a_character_that_never_ends_is_left_out() -> None:
    half = [PAD_ID, WORD_ID, *pieces("▁", "<0xC3>"), WORD_ID, *pieces("▁fo", "<0xC3>", "x"), PAD_ID]
    assert [word.text for word in words_of(decode(half, delay=1))] == ["fox"]


def test_a_partial_word_comes_with_each_token_that_adds_text_also_if_the_word_before_was_the_same() -> None:
    word = [WORD_ID, *pieces("▁", "fo", "<0xC3>", "x")]
    partial = [event.text for event in decode([PAD_ID, *word, *word], delay=1) if isinstance(event, PartialWord)]
    assert partial == ["fo", "fox"] * 2


def test_the_text_is_emitted_at_the_first_pad_and_the_word_at_the_pause() -> None:
    decoder = WordDecoder(TOKENIZER, 1, partials=False)
    for token in [WORD_ID, *pieces("▁fo", "x")]:
        assert decoder.push(token) == []
    assert list(decoder.push(PAD_ID)) == [OpenWord("fox", 0.08, 1.0)]
    silent = [decoder.push(PAD_ID) for _ in range(PAUSE_FRAMES - 2)]
    assert silent == [()] * (PAUSE_FRAMES - 2)
    assert list(decoder.push(PAD_ID)) == [Word("fox", 0.08, (2 + PAUSE_FRAMES + 1) / 12.5)]


def test_confidence_is_the_product_of_the_tokens_probabilities() -> None:
    decoder = WordDecoder(TOKENIZER, 1)
    decoder.push(WORD_ID, math.log(0.1))
    for token, probability in zip(pieces("▁fo", "x"), (0.5, 0.4), strict=True):
        decoder.push(token, math.log(probability))
    assert words_of(decoder.push(WORD_ID))[0].confidence == pytest.approx(0.2)


def test_silence_before_the_audio_moves_no_word() -> None:
    words = [Word("fox", 0.4, 0.8)]
    stream = encode_stream(words, TOKENIZER, 6, 40)
    decoder = WordDecoder(TOKENIZER, 6, offset_frames=-13)
    tokens = [PAD_ID] * 13 + list(stream[1:])
    decoded = [event for token in tokens for event in decoder.push(int(token))]
    assert words_of(decoded)[0].start == 0.4


def test_no_word_starts_before_the_settled_frames() -> None:
    decoder = WordDecoder(TOKENIZER, 6)
    for _ in range(6):
        decoder.push(PAD_ID)
    assert decoder.settled_frames == 1
    decoder.push(WORD_ID)
    assert decoder.settled_frames == 2
    for token in pieces("▁fo", "x"):
        decoder.push(token)
        assert decoder.settled_frames == 2
        assert decoder.writing_frame == 2
    for _ in range(PAUSE_FRAMES):
        assert decoder.settled_frames == 2
        decoder.push(PAD_ID)
        assert decoder.writing_frame is None
    assert decoder.settled_frames == 9 + PAUSE_FRAMES + 1 - 6


@pytest.mark.parametrize(("shift", "starts"), [(0.12, [0.2, 0.6]), (-0.12, [0.0, 0.36]), (0.0, [0.08, 0.48])])
def test_a_shift_is_added_to_all_times_of_words(shift: float, starts: list[float]) -> None:
    stream = encode_stream([Word("fox", 0.08, 0.4), Word("dog", 0.48, 0.8)], TOKENIZER, 10, 60)
    decoder = WordDecoder(TOKENIZER, 10, shift_seconds=shift)
    events = [event for token in stream[1:] for event in decoder.push(int(token))]
    first, last = words_of(events)
    assert [first.start, last.start] == starts
    assert first.end == last.start
    unshifted = words_of(decode(stream.tolist(), 10))[1]
    assert last.end == pytest.approx(unshifted.end + shift)
    for kind in (PartialWord, OpenWord):
        assert list(dict.fromkeys(event.start for event in events if isinstance(event, kind))) == starts


@given(
    gaps=st.lists(st.tuples(word_texts, st.integers(1, 80)), max_size=12),
    delay=st.integers(1, 40),
    shift=st.floats(-1, 1),
)
def test_shifted_times_are_in_order_and_within_the_audio(gaps: list[tuple[str, int]], delay: int, shift: float) -> None:
    starts = np.cumsum([gap for _, gap in gaps]) / 12.5
    words = [Word(text, float(start), float(start)) for (text, _), start in zip(gaps, starts, strict=True)]
    stream = encode_stream(words, TOKENIZER, delay, 1000)
    decoder, plain, last = WordDecoder(TOKENIZER, delay, shift_seconds=shift), WordDecoder(TOKENIZER, delay), 0.0
    for token in stream[1:].tolist():
        settled = decoder.settled_frames / 12.5
        pairs = zip(decoder.push(token), plain.push(token), strict=True)
        for event, unshifted in pairs:
            assert max(0.0, last, settled - 1e-9) <= event.start <= decoder.frames / 12.5
            assert event.start - unshifted.start <= shift + 1e-9 or event.start == last
            if isinstance(event, Word):
                assert event.start <= event.end <= decoder.frames / 12.5
                last = event.end


@pytest.mark.parametrize(("shift", "settled"), [(0.12, 1), (-0.08, 0), (-0.12, -1)])
def test_a_shift_to_earlier_times_settles_fewer_frames(shift: float, settled: int) -> None:
    decoder = WordDecoder(TOKENIZER, 6, shift_seconds=shift)
    for _ in range(6):
        decoder.push(PAD_ID)
    assert decoder.settled_frames == settled


def test_the_time_of_a_token_is_shifted_like_a_start() -> None:
    decoder = WordDecoder(TOKENIZER, 6, shift_seconds=0.12)
    for _ in range(12):
        decoder.push(PAD_ID)
    expected = decoder.time(1)
    decoder.push(PAD_ID)
    decoder.push(pieces("▁fo")[0])
    assert words_of(decoder.flush())[0].start == expected == pytest.approx(8 * 0.08 + 0.12)


def test_a_copy_is_independent() -> None:
    decoder = WordDecoder(TOKENIZER, 1)
    decoder.push(pieces("▁fo")[0])
    other = decoder.copy()
    other.push(pieces("x")[0])
    assert [word.text for word in words_of(other.flush())] == ["fox"]
    assert [word.text for word in words_of(decoder.flush())] == ["fo"]


def test_a_word_without_end_is_ended() -> None:
    events = decode([PAD_ID, WORD_ID, *pieces("▁fo", "x") * 1, *pieces("x") * (3 * MAX_WORD_TOKENS)], delay=1)
    assert max(len(event.text) for event in events) <= MAX_WORD_TOKENS + 1
    assert len(words_of(events)) == 4


def test_a_token_the_tokenizer_does_not_have_is_an_error() -> None:
    decoder = WordDecoder(TOKENIZER, 1)
    with pytest.raises(CheckpointError, match=f"token {TOKENIZER.vocab_size}, but"):
        decoder.push(TOKENIZER.vocab_size)


# --------------------------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 40])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a SentencePiece model"):
        Tokenizer(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.model.*No such file"):
        Tokenizer(tmp_path / "absent.model")


def test_a_tokenizer_that_gives_the_pad_to_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.model"
    path.write_bytes(tokenizer_proto(pad_id=-1))
    with pytest.raises(CheckpointError, match="id 3 is the text"):
        Tokenizer(path)


def test_a_calibration_replaces_the_product_of_the_probabilities() -> None:
    word = Curve(nats=(0.0, 1.0), probability=(0.9, 0.1))
    calibrated = WordDecoder(TOKENIZER, 0, calibration=Calibration(word=word))
    plain = WordDecoder(TOKENIZER, 0)
    first, *rest = TOKENIZER.encode("hello")
    stream = [(WORD_ID, 0.0), (first, -0.25), *((token, 0.0) for token in rest)]
    confidences = []
    for decoder in (plain, calibrated):
        for token, logprob in stream:
            decoder.push(token, logprob)
        confidences.append([event.confidence for event in decoder.flush() if isinstance(event, Word)])
    assert confidences == [[pytest.approx(math.exp(-0.25))], [pytest.approx(0.7)]]


def test_an_omission_is_the_probability_of_a_word_among_the_pads_before_but_the_last() -> None:
    curve = Curve(nats=(0.0, 2.0), probability=(0.0, 0.5))
    for calibration, expected in ((None, 1 - math.exp(-0.5)), (Calibration(word=curve, omission=curve), 0.125)):
        decoder = WordDecoder(TOKENIZER, 0, calibration=calibration)
        hello, world = TOKENIZER.encode("hello"), TOKENIZER.encode("world")
        pads = [(PAD_ID, -0.1), (PAD_ID, -0.4), (PAD_ID, -2.0)]
        words = []
        for token, logprob in [*((t, 0.0) for t in hello), *pads, *((t, -0.3) for t in world), (PAD_ID, -3.0)]:
            words += [event for event in decoder.push(token, logprob) if isinstance(event, Word)]
        words += [event for event in decoder.flush() if isinstance(event, Word)]
        assert [word.omission for word in words] == [0, pytest.approx(expected)]
