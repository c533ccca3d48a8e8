"""pocketsphinx beside a model: what a small recogniser that needs no download makes of the same recordings."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from slipstream.audio import load
from slipstream.data.manifest import Recording
from slipstream.errors import BackendError
from slipstream.evaluate.transcribe import Heard, Speed
from slipstream.events import Word

_RATE = 16_000


def hear_pocketsphinx(recordings: Iterable[Recording]) -> tuple[list[Heard], Speed]:
    """Every English recording as pocketsphinx, with its packaged US English model, writes it.

    Raises `BackendError` where pocketsphinx is not installed.
    """
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise BackendError("the baseline needs pocketsphinx: pip install pocketsphinx") from error
    decoder = Decoder(samprate=_RATE, loglevel="FATAL")
    heard: list[Heard] = []
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
        heard.append(Heard(recording, len(samples) / _RATE, len(samples) / _RATE, words, [0.0] * len(words)))
    return heard, Speed(sum(one.seconds for one in heard), taken, 1)
