"""The errors that Slipstream raises. Each message states the problem, its place, and what would be valid."""

from __future__ import annotations


class SlipstreamError(Exception):
    """Base class of all Slipstream errors."""


class ConfigError(SlipstreamError, ValueError):
    """A configuration or an option has an invalid key or value."""


class TextError(ConfigError):
    """A text to be spoken has an invalid part."""


class CheckpointError(SlipstreamError):
    """A checkpoint cannot be found or read, or does not match its configuration."""


class AudioError(SlipstreamError, ValueError):
    """Audio cannot be found or decoded, or has invalid samples."""


class BackendError(SlipstreamError):
    """A backend, device or optional package is not available in this installation."""


class Overloaded(SlipstreamError):
    """No slot is free, or a stream is faster than the model or slower than its reader allows."""


class SessionClosed(SlipstreamError):
    """A call on a session or an engine that is finished or closed."""


class EngineError(SlipstreamError):
    """The engine has stopped because a step failed; `__cause__` is the exception."""
