"""One stream: its audio, clock, text and turns. It has no thread and no device, and receives the time as argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy.typing as npt

from slipstream.arrays import FloatArray
from slipstream.audio import Framer
from slipstream.audio.arrays import SampleConverter, check_range
from slipstream.engine.flush import Barrier, Flush, Marker, Silence, certain_frames, flush_steps, next_tail
from slipstream.engine.gate import ConfidenceGate
from slipstream.engine.history import Continuation
from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.reconcile import Reconciler
from slipstream.engine.slots import Op, Prefix, Reset, Restore, SetState, Snapshot
from slipstream.engine.turns import VOICE_DB, TurnBuilder, TurnDetector, TurnOptions, VoiceLevel
from slipstream.engine.watchdog import Watchdog
from slipstream.engine.writer import Writer
from slipstream.errors import SessionClosed
from slipstream.events import Event, Final, Flushed, MarkerReached, Ready, Recovered, Step, Word
from slipstream.hints import Hints
from slipstream.hints.keywords import Biases
from slipstream.language.identify import LanguageTracker
from slipstream.model.config import PAD_ID, WORD_ID
from slipstream.model.runner import Choice, State
from slipstream.model.text import WordEvent


class Session:
    """One stream of audio, buffered and cut into frames, and its text as events.

    `push` takes audio in pieces of any length. The owner of the model processes it frame by frame: it calls `fill`,
    runs a step, and passes the output to `advance`. `now` is the time of one steady clock, in seconds.

    The session's own clock counts its audio; silence that a flush inserts does not advance it. A flush within a stream
    does not change the model: its state is saved before the inserted silence (`Snapshot`) and restored after it
    (`Restore`), so that the stream continues as without the flush. `Reconciler` drops words written twice.

    Attributes:
        events: Events that have not been taken yet.
        slots: Its slots of the model, once it has them: one for each hypothesis of its text.
    """

    def __init__(self, format: StreamFormat, options: SessionOptions) -> None:
        self.format = format
        self.options = options
        self.events: list[Event] = []
        self.slots: tuple[int, ...] = ()
        self.capacity = round(options.max_buffered_seconds * format.frame_rate * format.frame_samples)
        self._in_model: deque[float] = deque()  # the mean square of each frame whose output is still to come
        self._stale = 0  # outputs to come of frames before a restart
        self._next_options: SessionOptions | None = None
        self._converter = SampleConverter()
        self._begin()

    def _begin(self) -> None:
        self._take_options()
        format, options = self.format, self.options
        self.done = self._closing = False
        self._framer = Framer(format.frame_samples)
        self._frames: deque[FloatArray] = deque()
        self._received = self._processed = self._flushed_to = 0
        self._ahead = 0  # frames that are encoded and not given to the model yet
        self._writer = Writer(format, options, 0)
        self._ops: list[Op] = [*self._writer.take_ops()]
        self._reconciler = Reconciler()
        self._gate = ConfidenceGate(format.min_confidence if options.min_confidence is None else options.min_confidence)
        self._voice, self._silence = VoiceLevel(), Silence()
        self._turn_detector = TurnDetector(
            options.turns or format.turns, format.delay_frames, format.frame_rate, format.lag_frames
        )
        self._languages = LanguageTracker(options.hints.languages)
        self._turn_builder = TurnBuilder(self._languages)
        delays = format.delay_frames, format.frame_rate, format.kept_frames
        self._watchdog = Watchdog(options.watchdog, *delays) if options.watchdog else None
        self._markers: deque[Marker] = deque()
        self._barriers: deque[Barrier] = deque()
        self._flush: Flush | None = None

    # ------------------------------------------------------------------------------------ called by the user's side

    @property
    def received(self) -> int:
        """Samples of audio received so far."""
        return self._received

    @property
    def clock(self) -> float:
        """Seconds of the session's audio processed so far."""
        return self._seconds(self._processed)

    @property
    def _given(self) -> int:
        """Samples of the audio that the model has or is certain to get next, because they are encoded ahead."""
        return self._processed + (len(self._in_model) + self._ahead) * self.format.frame_samples

    @property
    def room(self) -> int:
        """Samples that may be pushed before `max_buffered_seconds` of audio wait to be processed."""
        return max(0, self.capacity - (self._received - self._processed))

    def convert(self, samples: npt.ArrayLike) -> FloatArray:
        """Convert one chunk to float32 `[S]`; see `SampleConverter`. Raises `AudioError` for another shape or type."""
        return self._converter.convert_mono(samples)

    def push(self, samples: npt.ArrayLike) -> None:
        """Take more audio: mono, `[S]`, at the model's rate.

        Raises `SessionClosed` after `finish`, and `AudioError` for another shape or invalid samples.
        """
        self._check_open("send audio to")
        audio_S = self.convert(samples)
        check_range(audio_S, self._seconds(self._received), self.format.frame_rate * self.format.frame_samples)
        self._frames.extend(self._framer.push(audio_S))
        self._received += len(audio_S)

    def flush(self, now: float, *, buffered: bool = True) -> None:
        """Emit all text of the audio received so far, without waiting for more audio; `Flushed` follows it.

        Args:
            buffered: Whether the audio that still waits for the model comes before the flush. Otherwise the flush
                covers only what the model has processed; it may then be called until the end, also after `finish`.
        """
        if buffered:
            self._check_open("flush")
            self._barriers.append(Barrier(self._received, final=False))
        else:
            begun = self._flush is not None or self._writer.prefix_left
            self._barriers.appendleft(Barrier(self._processed if begun else self._given, final=False))
        self._settle(now)

    def mark(self, id: int, now: float) -> None:
        """Emit `MarkerReached` once all text of the audio received so far is out."""
        self._check_open("send a marker to")
        self._markers.append(Marker(self._received, id))
        self._settle(now)

    def finish(self, now: float) -> None:
        """End the audio: process and flush what is left, then emit `Final`. A second call does nothing."""
        if not self._closing:
            self._closing = True
            self._barriers.append(Barrier(self._received, final=True))
            self._settle(now)

    def set_turns(self, turns: TurnOptions, low_latency: bool) -> None:
        """Change when turns end, and whether each end flushes, for the frames that were not given to the model yet."""
        self._next_options = replace(self.options, turns=turns, low_latency=low_latency)
        if not self._in_model:
            self._take_options()
            self._turn_detector.set_options(turns)

    def set_hints(self, hints: Hints) -> None:
        """Change the keywords and the languages of tags, for what follows. The rest holds from the start."""
        hints = replace(self.options.hints, keywords=hints.keywords, languages=hints.languages)
        self._languages.set_languages(hints.languages)
        self.options = replace(self.options, hints=hints)
        if self._next_options is not None:
            self._next_options = replace(self._next_options, hints=hints)
        self._writer.set_keywords(hints)
        if self._flush is not None:
            self._flush.writer_before.set_keywords(hints)

    def restart(self) -> None:
        """Reset the session and drop its buffered audio. Raises `SessionClosed` after the end."""
        if self.done:
            raise SessionClosed("cannot restart a session that has ended")
        self._stale, self._in_model = self._stale + len(self._in_model), deque()
        if self.options.continues:
            self.options = replace(self.options, continues=Continuation())
        self._begin()
        if self.slots:
            self.events.append(Ready())

    def _take_options(self) -> None:
        self.options, self._next_options = self._next_options or self.options, None

    def _check_open(self, what: str) -> None:
        if self._closing:
            raise SessionClosed(f"cannot {what} a finished session")

    # --------------------------------------------------------------------------------------- called by the scheduler

    @property
    def ready(self) -> bool:
        """Whether it has a frame for the model, of audio or of silence."""
        if not (self._frames or self._flush is not None or (self._writer.prefix_left > 0 and not self.done)):
            return False
        return not self._in_model or self.predictable

    @property
    def in_model(self) -> int:
        """Frames whose output is still to come."""
        return len(self._in_model)

    @property
    def predictable(self) -> bool:
        """Whether its next frame is the next one of its audio, whatever the model writes in the current step."""
        return not (
            self._flush is not None
            or self._writer.prefix_left
            or self._barriers
            or self._ops
            or self._next_options is not None
            or self.options.low_latency
            or self.options.flush_after_silence is not None
            or self._writer.decides
            or (self._watchdog is not None and not self._watchdog.calm)
        )

    @property
    def urgent(self) -> bool:
        """Whether it should not wait for other sessions: it is behind its audio, or has a flush to do."""
        return len(self._frames) > 1 or self._flush is not None or self._writer.prefix_left > 0 or bool(self._barriers)

    @property
    def awaits_marker(self) -> bool:
        """Whether a marker waits for more audio."""
        return bool(self._markers) and not self._barriers and self._flush is None

    @property
    def slot(self) -> int | None:
        """Its first slot, once it has one."""
        return self.slots[0] if self.slots else None

    @property
    def lead(self) -> int | None:
        """The slot of the best hypothesis, once it has slots."""
        return self.slots[self._writer.lead] if self.slots else None

    @property
    def width(self) -> int:
        """The number of slots that it needs."""
        return self.options.hints.width

    def admit(self, *slots: int) -> None:
        """Take `width` slots."""
        self.slots = slots
        self.events.append(Ready())

    def release(self) -> None:
        """Give up the slot, and ignore the outputs that are still to come."""
        self.slots, self.done = (), True
        self._stale, self._in_model = self._stale + len(self._in_model), deque()

    def flush_for_markers(self, now: float) -> None:
        """Flush for the waiting markers, since no more audio has come."""
        self._barriers.append(Barrier(self._received, final=False))
        self._settle(now)

    # ----------------------------------------------------------------------------- called by the owner of the model

    @property
    def has_ops(self) -> bool:
        return bool(self._ops)

    @property
    def in_step(self) -> bool:
        """Whether the model is computing a frame of this session, including one from before a restart."""
        return bool(self._in_model or self._stale)

    @property
    def steered(self) -> bool:
        """Whether its steps must return candidates."""
        return self._writer.searches

    def biases(self, row: int) -> Biases:
        """Return what to add to the scores of a row in the next step."""
        return self._writer.biases(row)

    def take_ops(self, prefixes: Mapping[Prefix, State] = MappingProxyType({})) -> list[Op]:
        """Take the operations to run on its slots, in this order, before its next step.

        Args:
            prefixes: The states after the prompts that another session has begun with.
        """
        ops, self._ops = self._ops, []
        if ops and isinstance(ops[0], Reset) and (state := prefixes.get(self._writer.prefix)) is not None:
            self._writer.skip_prefix()
            ops[0] = SetState(state)
        return ops

    def encode_ahead(self, most: int) -> FloatArray | None:
        """Return the next 2 to `most` frames `[F, frame_samples]` that `fill` will give; None if not certain."""
        by_itself = self.options.low_latency or self.options.flush_after_silence is not None
        if self._ahead or self._writer.prefix_left or (by_itself and self._flush is None):
            return None
        samples = self.format.frame_samples
        until_flush = (self._barriers[0].position - self._given) // samples if self._barriers else most
        frames_FS = certain_frames(self._flush, self._frames, until_flush, most, samples)
        self._ahead = 0 if frames_FS is None else len(frames_FS)
        return frames_FS

    def fill(self, row_S: FloatArray) -> None:
        """Write the next frame for the model into `row_S`.

        A `predictable` session may be asked for it before it has the output of the frame before.
        """
        mean_square = 0.0
        if self._flush is not None:
            row_S[:] = self._flush.take_frame()
        elif self._writer.prefix_left:
            row_S[:] = 0
        else:
            row_S[:] = frame_S = self._frames.popleft()
            mean_square = float(row_S.dot(row_S)) / len(row_S)
            if self._watchdog is not None:
                self._watchdog.hear(frame_S)
        self._ahead = max(0, self._ahead - 1)
        self._in_model.append(mean_square)

    def advance(
        self, token: int, logprob: float, pause_H: Sequence[float], now: float, choices: Sequence[Choice] = ()
    ) -> None:
        """Take the output of the step for which `fill` gave the oldest frame.

        Args:
            token: The token that its leading slot picked.
            logprob: Its log-probability.
            pause_H: The pause probabilities of its leading slot.
            now: The time.
            choices: The choice of each of its slots, if it is `steered`.
        """
        if self._stale:
            self._stale -= 1  # restarted or released during the step: the output belongs to the stream before
            return
        mean_square = self._in_model.popleft()
        token, events = self._writer.advance(token, logprob, choices)
        if self._writer.ops:
            self._ops += self._writer.take_ops()
        if events:
            self._emit(events)
        if self._flush is not None:
            self._flush.frames_left -= 1
            if self._flush.barrier.final:
                ended = self._turn_detector.push_output(pause_H, self._writer.decoder.writing_frame)
                self.events += self._turn_detector.report(ended, self._turn_builder)
            if self._flush.frames_left <= 0:
                self._emit(self._writer.settle())
            if self._flush.over(self._writer.decoder):
                self._end_flush(self._flush, now)
        elif self._writer.prefix_left:
            self._writer.prefix_left -= 1
        else:
            self._count_frame(token, pause_H, mean_square)
        if self.options.continues is not None:
            self.events += self._writer.take_history()
        if self._next_options is not None and not self._in_model:
            self._take_options()
            self._turn_detector.set_options(self.options.turns or self.format.turns)
        if self._barriers or self._markers or self._turn_builder.ending:
            self._settle(now)

    # ------------------------------------------------------------------------------------------------------ in detail

    def _count_frame(self, token: int, pause_H: Sequence[float], mean_square: float) -> None:
        self._processed += self.format.frame_samples
        if self._watchdog is not None and self._watchdog.counted():
            return
        loudness = self._voice.push(mean_square)
        voiced = loudness > VOICE_DB
        turns = self._turn_detector
        has_voice = loudness > turns.options.voice_db
        ended = turns.push(pause_H, has_voice, self._writer.decoder.writing_frame, self._voice.faint)
        if self.options.steps:
            index = self._processed // self.format.frame_samples
            self.events.append(Step(index, tuple(pause_H), self._received - self._processed, turns.probability))
        self.events += turns.report(ended, self._turn_builder)
        if ended and self.options.low_latency:
            self._barriers.appendleft(Barrier(self._given, final=False))
        seconds = self.options.flush_after_silence
        if seconds is not None and self._silence.push(voiced, seconds * self.format.frame_rate):
            self._barriers.appendleft(Barrier(self._given, final=False))
        text = None if token in (PAD_ID, WORD_ID) else token
        if self._watchdog is not None and (reason := self._watchdog.push(text, voiced)):
            self._recover(reason, self._watchdog)

    def _recover(self, reason: str, watchdog: Watchdog) -> None:
        self._emit(self._writer.end())
        self.events.append(Recovered(self.clock, reason))
        self._processed -= watchdog.give_again(self._frames) * self.format.frame_samples
        self._writer = Writer(self.format, self.options, self._processed // self.format.frame_samples)
        self._ops = [*self._writer.take_ops()]
        self._ahead = 0

    def _emit(self, events: Sequence[WordEvent]) -> None:
        for event in events:
            passed = self._reconciler.pass_on(event)
            if passed is None or not self._gate.passes(passed):
                continue
            if isinstance(passed, Word):
                passed = self._languages.tag(passed)
                self.events += self._turn_builder.add(passed)
            self.events.append(passed)

    def _settle(self, now: float) -> None:
        """Emit turns and markers that the text so far completes, and begin the next flush that is due."""
        if self._flush is None and (self._markers or self._turn_builder.ending):
            settled = max(self._flushed_to, self._writer.decoder.settled_frames * self.format.frame_samples)
            self.events += self._turn_builder.settle(self._seconds(settled))
            self._reach_markers(settled)
        while self._flush is None and self._barriers and not self.done:
            barrier = self._barriers[0]
            whole_frames = barrier.position - barrier.position % self.format.frame_samples
            if barrier.position <= self._flushed_to and not (barrier.final and self._turn_detector.behind):
                self._barriers.popleft()
                self._complete(barrier, 0.0)
            elif self._writer.prefix_left == 0 and self._processed == whole_frames:
                self._barriers.popleft()
                self._begin_flush(barrier, now)
            else:
                return

    def _begin_flush(self, barrier: Barrier, now: float) -> None:
        tail = next_tail(self._frames, self._framer, barrier.position - self._processed)
        self._flush = Flush(barrier, now, tail, self.format.delay_frames + (tail is not None), self._writer)
        if not barrier.final:
            self._ops.append(Snapshot(flush_steps(self.format.delay_frames)))
        self._writer = self._writer.copy()
        self._reconciler.begin_flush(self._seconds(barrier.position))

    def _end_flush(self, flush: Flush, now: float) -> None:
        self._emit(self._writer.end())
        self._reconciler.end_flush()
        self._flush, self._flushed_to = None, flush.barrier.position
        if not flush.barrier.final:
            self._ops.append(Restore())
            self._writer = flush.writer_before
        self._complete(flush.barrier, now - flush.began)

    def _complete(self, barrier: Barrier, seconds: float) -> None:
        """Emit what follows the text of a barrier."""
        time = self._seconds(barrier.position)
        self.events += self._turn_builder.settle(time) + (self._turn_builder.flush() if barrier.final else [])
        self._reach_markers(barrier.position)
        self.events.append(Flushed(time, seconds))
        if barrier.final:
            self.events.append(Final(time, seconds))
            self.done = True

    def _reach_markers(self, settled: int) -> None:
        while self._markers and self._markers[0].position <= settled:
            self.events.append(MarkerReached(self._markers.popleft().id))

    def _seconds(self, samples: int) -> float:
        return samples / (self.format.frame_samples * self.format.frame_rate)
