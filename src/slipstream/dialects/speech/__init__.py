"""Dialects of text to speech. One is a subclass of `SpeechDialect` (`speech/protocol.py`).

Those of WebSockets are in `SPEECH_DIALECTS`: to add one, write its module here and one line there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from slipstream.dialects.models import Query, SpeechInfo, check_single
from slipstream.dialects.speech import elevenlabs, kyutai
from slipstream.dialects.speech.protocol import SpeechDialect

OpenSpeechDialect: TypeAlias = Callable[[Query, SpeechInfo], SpeechDialect]

SPEECH_DIALECTS: dict[str, Callable[[dict[str, str], SpeechInfo], SpeechDialect]] = {
    kyutai.PATH: kyutai.KyutaiSpeech,
    elevenlabs.PATH: elevenlabs.ElevenLabsSpeech,
}
"""The dialect of each address, which gets the parameters of the address, and those of its query.

`{name}` in an address is a parameter; it may contain slashes.
"""


def find_speech_dialect(path: str) -> OpenSpeechDialect | None:
    """Return what opens the dialect of an address; None if there is none."""
    for address, opened in SPEECH_DIALECTS.items():
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(address))
        if found := re.fullmatch(pattern, path):
            return partial(_open, opened, found.groupdict())
    return None


def _open(
    opened: Callable[[dict[str, str], SpeechInfo], SpeechDialect],
    parameters: dict[str, str],
    query: Query,
    info: SpeechInfo,
) -> SpeechDialect:
    for name, _ in query:
        check_single(query, name)
    return opened({**dict(query), **parameters}, info)
