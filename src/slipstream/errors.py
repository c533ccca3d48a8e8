"""The errors Slipstream raises: one small family, each a sentence that a user can act on."""

from __future__ import annotations


class SlipstreamError(Exception):
    """Base of every error that Slipstream raises on purpose."""


class ConfigError(SlipstreamError, ValueError):
    """A configuration has a key or a value that cannot be used; the message names it."""


class CheckpointError(SlipstreamError):
    """A checkpoint cannot be found, read, or does not fit its configuration."""


class AudioError(SlipstreamError, ValueError):
    """Audio cannot be found, decoded, or holds samples that are not finite numbers."""


class BackendError(SlipstreamError):
    """A backend or device was asked for that this installation does not have."""


class Overloaded(SlipstreamError):
    """Every slot is taken and the caller chose not to wait, or waited long enough."""


class SessionClosed(SlipstreamError):
    """Audio was sent to, or a flush asked of, a session that is already closed."""


class EngineError(SlipstreamError):
    """The engine's thread has stopped because a step failed; the cause is attached."""
