"""pocketsphinx on the same recordings: a small recogniser that needs no download, for comparison."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from slipstream.audio import load
from slipstream.data.manifest import Recording
from slipstream.errors import BackendError
from slipstream.evaluate.transcribe import Hypothesis, Speed
from slipstream.events import Word

_RATE = 16_000


def transcribe_pocketsphinx(recordings: Iterable[Recording]) -> tuple[list[Hypothesis], Speed]:
    """Transcribe every English recording with pocketsphinx and its packaged US English model.

    Raises `BackendError` where pocketsphinx is not installed.
    """
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise BackendError("the baseline needs pocketsphinx: pip install pocketsphinx") from error
    decoder = Decoder(samprate=_RATE, loglevel="FATAL")
    hypotheses: list[Hypothesis] = []
    taken = 0.0
    for recording in recordings:
        if recording.lang != "en":
            continue
        samples = load(recording.audio, _RATE)
        before = time.perf_counter()
        decoder.start_utt()
        decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        taken += time.perf_counter() - before
        words = [Word(text, 0.0, 0.0) for text in (decoder.hyp().hypstr.split() if decoder.hyp() else ())]
        seconds = len(samples) / _RATE
        hypotheses.append(Hypothesis(recording, seconds, seconds, words, [0.0] * len(words)))
    return hypotheses, Speed(sum(one.seconds for one in hypotheses), taken, 1)
