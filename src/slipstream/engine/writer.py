"""The text of a session: what its slots write, chosen by a search if its hints request one, as words."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from slipstream.engine.alternatives import Rivals
from slipstream.engine.history import HistoryWriter
from slipstream.engine.options import SessionOptions, StreamFormat
from slipstream.engine.slots import CopyRow, ForceToken, KeepPrefix, Op, Prefix, Reset
from slipstream.events import History
from slipstream.hints import Hints
from slipstream.hints.keywords import Biases
from slipstream.hints.prompt import prompt_tokens
from slipstream.hints.search import NO_BIASES, new_search
from slipstream.model.config import PAD_ID
from slipstream.model.runner import Choice
from slipstream.model.text import WordDecoder, WordEvent


class Writer:
    """The text of a model that was reset at `processed` frames of a session's audio.

    First it writes nothing, for the silence that the model needs, and then the prompt. A session that continues a
    longer stream has no prompt, and writes the text that it is given.

    Attributes:
        prompt: The tokens of the prompt, one for each frame.
        prefix: What the model starts with.
        prefix_left: Frames of silence still to come before the audio.
        decoder: Tokens to words.
        lead: The row of the best hypothesis.
        ops: Operations on the slots that follow from the last step.
    """

    def __init__(self, format: StreamFormat, options: SessionOptions, processed: int) -> None:
        continues = options.continues
        self.prompt = prompt_tokens(
            "" if continues and continues.first_frame else options.hints.prompt, format.tokenizer
        )
        self.prefix_left = format.silence_frames + len(self.prompt)
        self.lead = 0
        self.decoder = WordDecoder(
            format.tokenizer,
            format.delay_frames,
            format.frame_rate,
            offset_frames=processed - self.prefix_left,
            partials=options.partials,
            calibration=format.calibration,
            shift_seconds=format.word_shift_seconds,
        )
        first_frame = processed + (continues.first_frame if continues else 0)
        reset = Reset(options.hints.delay, first_frame, format.language_number(options.hints.languages))
        self.prefix: Prefix = reset, self.prompt
        self.ops: list[Op] = [reset]
        self._history = HistoryWriter(first_frame - processed, format.tokenizer) if continues else None
        self._given = continues.text(format.tokenizer, format.text_vocab) if continues and not processed else {}
        if not self.prefix_left and (before := self._given.pop(-1, None)) is not None:
            self.ops.append(ForceToken(0, before))
        self._tokenizer = format.tokenizer
        self._rivals = Rivals(options.hints.alternatives - 1)
        self._search = new_search(options.hints, format.tokenizer)

    @property
    def searches(self) -> bool:
        """Whether the next token is chosen by a search."""
        return self._search is not None

    @property
    def decides(self) -> bool:
        """Whether the next token is chosen here, by a search or because it is given."""
        return self._search is not None or bool(self._given)

    def biases(self, row: int) -> Biases:
        """Return what to add to the scores of a row in the next step."""
        if self._search is None or self.prefix_left or self._given:
            return NO_BIASES
        return self._search.biases(row)

    def advance(self, token: int, logprob: float, choices: Sequence[Choice]) -> tuple[int, Sequence[WordEvent]]:
        """Take the output of a step.

        Args:
            token: The token that was picked in the leading row.
            logprob: Its log-probability.
            choices: The choice of each row, for a search.

        Returns:
            The newest token of the best hypothesis, and the events of the text that is certain.
        """
        if self.prefix_left and self.prompt:
            return PAD_ID, self._pass_prefix()
        if self._given:
            return self._follow(token, logprob)
        if self._search is None or not choices:  # a step that began before there was a search
            if self._history is not None:
                return token, self._read([(token, logprob)])
            events = self.decoder.push(token, logprob)
            return token, self._rivals.attach(events)
        decision = self._search.advance(choices)
        self.lead = decision.best
        self.ops += [CopyRow(*rows) for rows in decision.copies]
        self.ops += [ForceToken(*forced) for forced in decision.forced]
        events = self._read(decision.written)
        self._rivals.note((self.decoder.time(rival.place), rival) for rival in self._search.rivals)
        return decision.token, events

    def skip_prefix(self) -> None:
        """Leave out the frames before the audio but the last: the model is in the state that follows them."""
        skipped, self.prefix_left = self.prefix_left - 1, 1
        self._read([(PAD_ID, 0.0)] * skipped)

    def set_keywords(self, hints: Hints) -> None:
        """Use other keywords from the next step on."""
        new = new_search(hints, self._tokenizer)
        if self._search is not None and new is not None:
            self._search.use(new)
        elif self._search is None:
            self._search = new
        elif hints.width == 1:
            self._search = None

    def settle(self) -> Sequence[WordEvent]:
        """Choose the best hypothesis. Returns the events of its text."""
        return () if self._search is None else self._read(self._search.end())

    def end(self) -> list[WordEvent]:
        """Choose the best hypothesis and close its last word."""
        return [*self.settle(), *self._rivals.attach(self.decoder.flush())]

    def copy(self) -> Writer:
        """Return an independent writer in the same state."""
        other = copy.copy(self)
        other.decoder = self.decoder.copy()
        other._rivals = self._rivals.copy()
        other._search = None if self._search is None else self._search.copy()
        other.ops, other._given, other._history = [], {}, None
        return other

    def take_history(self) -> Sequence[History]:
        """Return the pieces of history that are new, in a session that keeps it."""
        return () if self._history is None else self._history.take()

    def take_ops(self) -> Sequence[Op]:
        if not self.ops:
            return ()
        ops, self.ops = self.ops, []
        return ops

    def _follow(self, token: int, logprob: float) -> tuple[int, Sequence[WordEvent]]:
        """Write the token that is given for this frame, if one is, in the first row."""
        given = self._given.pop(self.decoder.frames, token)
        if given != token:
            self.ops.append(ForceToken(0, given))
        return given, self._read([(given, logprob if given == token else 0.0)], record=False)

    def _pass_prefix(self) -> Sequence[WordEvent]:
        place = len(self.prompt) - self.prefix_left
        if place >= 0:
            self.ops.append(ForceToken(0, self.prompt[place]))
        if self.prefix_left == 2:
            self.ops.append(KeepPrefix(self.prefix))
        return self._read([(PAD_ID, 0.0)])

    def _read(self, written: Sequence[tuple[int, float]], *, record: bool = True) -> Sequence[WordEvent]:
        events = [event for one in written for event in self.decoder.push(*one)]
        if self._history is not None and record:
            self._history.add([token for token, _ in written], self.decoder.frames)
        return self._rivals.attach(events)
