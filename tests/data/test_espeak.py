"""espeak-ng: languages."""

from __future__ import annotations

import pytest

from slipstream.data.espeak import phones_of
from slipstream.errors import SlipstreamError


def test_a_language_without_phones_is_reported_with_the_known_ones() -> None:
    with pytest.raises(SlipstreamError, match="no phones for language 'xx'; the languages are en, fr"):
        phones_of("a word", "xx")
