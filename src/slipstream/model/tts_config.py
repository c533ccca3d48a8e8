"""The configuration of a whole text-to-speech model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from slipstream.model.config import (
    SPEAKER_CONDITION,
    CodecConfig,
    Config,
    FileNames,
    LMConfig,
    Positive,
    SamplingConfig,
)


class SpeechSampling(Config):
    """How the tokens of speech are chosen: text tokens by `text`, audio tokens by `audio`."""

    text: SamplingConfig = SamplingConfig(temperature=0.6, top_k=25)
    audio: SamplingConfig = SamplingConfig(temperature=0.6, top_k=250)


class TTSConfig(Config):
    """A whole text-to-speech model: codec, LM, the delay between text and audio, and its files.

    Attributes:
        delay_seconds: Time by which the audio lags behind the text.
        second_stream_ahead: Words by which the second text stream is ahead of the first; 0 without one.
        multistream: Whether the codebooks are those of two speakers, half for each.
        max_speakers: Voices that a speech can have.
    """

    codec: CodecConfig
    lm: LMConfig
    delay_seconds: Annotated[float, Field(ge=0)]
    second_stream_ahead: Annotated[int, Field(ge=0)] = 0
    multistream: bool = False
    max_speakers: Positive = 5
    sampling: SpeechSampling = SpeechSampling()
    files: FileNames = FileNames()
    model_id: dict[str, Any] = Field({})

    @property
    def delay_steps(self) -> int:
        """Steps by which the audio lags behind the text (16 for 1.28 s), without the delays of single codebooks."""
        return int(self.delay_seconds * self.codec.frame_rate)

    @property
    def speakers_by_condition(self) -> bool:
        """Whether a voice is a condition of the model; otherwise the speech continues a recording of it."""
        return any(conditioner.name == SPEAKER_CONDITION for conditioner in self.lm.conditioners)

    @model_validator(mode="after")
    def _speaks(self) -> TTSConfig:
        if self.lm.depth is None:
            raise ValueError("the LM writes no audio (dep_q is 0): this is not a text-to-speech model")
        if not self.codec.has_decoder:
            raise ValueError("the codec has no decoder, so that audio tokens cannot become audio")
        codebooks = self.codec.num_codebooks * (2 if self.multistream else 1)
        if self.lm.depth.num_codebooks > codebooks:
            raise ValueError(f"the LM writes {self.lm.depth.num_codebooks} codebooks, the codec reads {codebooks}")
        if self.lm.audio_vocab != self.codec.codebook_size:
            raise ValueError(
                f"the LM's audio vocabulary is {self.lm.audio_vocab}, the codec's codebooks hold "
                f"{self.codec.codebook_size}"
            )
        if self.second_stream_ahead and not self.lm.demux_text:
            raise ValueError("second_stream_ahead needs demux_second_stream, the second text stream")
        return self
