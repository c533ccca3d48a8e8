"""Slipstream's streaming speech-to-text for Pipecat."""

from pipecat_slipstream.stt import SlipstreamSTTService, SlipstreamSTTSettings

__all__ = ["SlipstreamSTTService", "SlipstreamSTTSettings"]
