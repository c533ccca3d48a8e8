"""Slipstream's streaming speech-to-text for LiveKit Agents."""

from livekit.agents import Plugin

from .log import logger
from .stt import STT, SpeechStream
from .version import __version__

__all__ = ["STT", "SpeechStream", "__version__"]


class SlipstreamPlugin(Plugin):
    def __init__(self) -> None:
        super().__init__(__name__, __version__, __package__ or __name__, logger)


Plugin.register_plugin(SlipstreamPlugin())
