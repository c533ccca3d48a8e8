"""Frozen, strict configurations of the codec, the LM and the whole system."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from slipstream.errors import ConfigError
from slipstream.model.confidence import Calibration, EndingCurve
from slipstream.model.config_parts import Config as Config
from slipstream.model.config_parts import MelConfig as MelConfig
from slipstream.model.config_parts import Positive as Positive
from slipstream.model.config_parts import RecordingsConfig as RecordingsConfig
from slipstream.model.config_parts import SEANetConfig as SEANetConfig
from slipstream.model.config_parts import TransformerConfig as TransformerConfig
from slipstream.model.config_parts import WhisperConfig as WhisperConfig

PAD_ID = 3
"""Text token of a frame without text."""
WORD_ID = 0
"""Text token one frame before the first token of a word."""
WHISPER_RATE = 50
"""Positions per second of Whisper's encoder: half the rate of its log-mel frames."""
SPEAKER_CONDITION = "speaker_wavs"
"""Name of the condition that is a voice."""
END_OF_TURN_ABOVE = 0.6
"""Probability of the pause head above which a turn ends, for the published models."""

_WHISPER_SHAPE = ("layer_norm", False, "none")


class CodecConfig(SEANetConfig):
    """Mimi: SEANet, a Transformer, a strided convolution to the frame rate, a split residual quantiser.

    The defaults are the published Mimi (24 kHz, 12.5 frames/s), whose decoder mirrors its encoder. With `mel` set,
    SEANet's encoder reads log-mel frames instead of samples. With `whisper` set, Whisper's encoder replaces SEANet and
    the Transformer. Such a codec has a decoder if `decoder` is set, which gives its shape.
    """

    sample_rate: Positive = 24_000
    frame_rate: Annotated[float, Field(gt=0)] = 12.5
    codebook_dim: Positive = 256
    codebook_size: Positive = 2048
    num_codebooks: Positive = 32
    num_semantic: Positive = 1
    mel: MelConfig | None = None
    whisper: WhisperConfig | None = None
    decoder: SEANetConfig | None = None

    @property
    def dim(self) -> int:
        """Width of the latent between the encoder and the quantiser."""
        return self.whisper.dim if self.whisper else self.transformer.dim

    @property
    def output_dim(self) -> int:
        """Width of the latent between the quantiser and the decoder."""
        return self.decoder.transformer.dim if self.decoder else self.dim

    @property
    def hop_samples(self) -> int:
        """Samples for each position of the codec's Transformers (960: 25 Hz; with `whisper` 480: 50 Hz)."""
        if self.whisper:
            return self.sample_rate // WHISPER_RATE
        return math.prod(self.ratios) * (self.mel.hop if self.mel else 1)

    @property
    def frame_samples(self) -> int:
        """Samples in one frame (1920)."""
        return round(self.sample_rate / self.frame_rate)

    @property
    def stride(self) -> int:
        """Transformer positions in one frame (2)."""
        return self.frame_samples // self.hop_samples

    @property
    def reads_samples(self) -> bool:
        """Whether the encoder is SEANet on samples, without a log-mel front end."""
        return self.mel is None and self.whisper is None

    @property
    def has_decoder(self) -> bool:
        return self.reads_samples or self.decoder is not None

    @property
    def decoder_shape(self) -> SEANetConfig:
        """The shape of the decoder of a codec that has one."""
        return self.decoder or self

    @property
    def decoder_stride(self) -> int:
        """Positions of the decoder's Transformer in one frame (2)."""
        return self.frame_samples // math.prod(self.decoder_shape.ratios)

    @property
    def delay_frames(self) -> float:
        """Frames by which the encoder's output lags behind the audio (`tiny`: 9.0), a part of the text delay."""
        return self.whisper.delay / self.stride if self.whisper else 0.0

    @property
    def blank_frames(self) -> int:
        """Frames at the start of a stream that hold no audio, because the encoder's output is late (`tiny`: 9)."""
        return math.ceil(self.delay_frames)

    @property
    def first_sample(self) -> int:
        """The sample of the audio at which the frame after the `blank_frames` begins."""
        return round((self.blank_frames - self.delay_frames) * self.frame_samples)

    @model_validator(mode="after")
    def _one_encoder(self) -> CodecConfig:
        if self.whisper and self.mel:
            raise ValueError("mel and whisper exclude each other: whisper has its own log-mel front end")
        if self.whisper and (self.sample_rate % 200 or self.sample_rate < 16_000):
            raise ValueError(f"whisper needs a sample rate of at least 16000 and a multiple of 200: {self.sample_rate}")
        return self

    @model_validator(mode="after")
    def _decoder_fits(self) -> CodecConfig:
        if self.decoder is None:
            return self
        if self.reads_samples:
            raise ValueError("decoder is for a codec with mel or whisper: that of a waveform codec mirrors its encoder")
        if self.frame_samples % math.prod(self.decoder.ratios):
            raise ValueError(
                f"the decoder's ratios {self.decoder.ratios} do not make a divisor of a frame of {self.frame_samples} "
                "samples"
            )
        return self

    @model_validator(mode="after")
    def _rates_divide(self) -> CodecConfig:
        if self.sample_rate / self.frame_rate != self.frame_samples:
            raise ValueError(f"a frame of {self.sample_rate / self.frame_rate} samples is not a whole number")
        if self.frame_samples % self.hop_samples:
            raise ValueError(
                f"ratios {self.ratios} make a hop of {self.hop_samples} samples, "
                f"which does not divide a frame of {self.frame_samples}"
            )
        if self.num_codebooks <= self.num_semantic:
            raise ValueError(f"num_codebooks={self.num_codebooks} must be more than num_semantic={self.num_semantic}")
        return self


class ConditionerConfig(Config):
    """A condition that is added to every input of the LM, or that its layers attend to.

    `continuous`: a number, scaled by `scale_factor` and embedded by sines of `dim` dimensions.
    `lut`: one of `possible_values`, looked up in a table of `num_bins + 1` rows. `tensor`: vectors of `dim` given
    by the caller. Each has a learnt padding, used when no value is given. `fuse`: `sum` to add one vector, `cross` for
    a sequence that the cross-attention reads.
    """

    name: str
    kind: Literal["continuous", "lut", "tensor"]
    dim: Positive
    fuse: Literal["sum", "cross"] = "sum"
    scale_factor: float = 1.0
    max_period: float = 10_000.0
    num_bins: int = 0
    possible_values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _sines_come_in_pairs(self) -> ConditionerConfig:
        if self.kind == "continuous" and (self.dim % 2 or self.dim < 4):
            raise ValueError(f"a continuous condition needs an even dim of at least 4, not {self.dim}")
        if len(self.possible_values) > self.num_bins and self.kind == "lut":
            raise ValueError(f"{len(self.possible_values)} values do not fit {self.num_bins} bins")
        return self


class DepthConfig(Config):
    """The depth Transformer of a model that writes audio: within one frame, one codebook after the other.

    A frame has `num_codebooks` positions, and position k computes with the weights number `schedule[k]`. It has no
    context before its frame. `low_rank`: width of the embedding tables, which a linear layer extends to the width of
    the Transformer. `output_norm`: a norm of each codebook's output.
    """

    transformer: TransformerConfig
    num_codebooks: Positive
    schedule: tuple[Annotated[int, Field(ge=0)], ...]
    low_rank: Positive | None = None
    output_norm: Literal["rms_norm", "layer_norm"] | None = None

    @property
    def num_weights(self) -> int:
        """Sets of weights."""
        return max(self.schedule) + 1

    @model_validator(mode="after")
    def _schedule_fits(self) -> DepthConfig:
        if len(self.schedule) != self.num_codebooks:
            raise ValueError(f"the schedule has {len(self.schedule)} entries for {self.num_codebooks} codebooks")
        if set(self.schedule) != set(range(self.num_weights)):
            raise ValueError(f"the schedule {list(self.schedule)} must use every number from 0 to its largest")
        if self.transformer.positions == "rope" or self.transformer.cross_attention:
            raise ValueError("a depth Transformer has no rotary positions and no cross-attention")
        return self


class WhisperDecoderConfig(Config):
    """Whisper's text decoder as the LM: each layer attends to the text so far, then to the audio.

    Attributes:
        audio_context: Frames that a step sees, including its own.
        prefix: Learnt keys and values before the text, which all steps see: those of Whisper's prompt.
        num_positions: Learnt positions of prefix and text; a stream repeats those after the prefix.
        vectors: Vectors per frame that a step attends to, all of the frame's age. With more than one, a linear layer
            computes them from the frame's embedded audio.
        languages: Codes of the languages that a stream can be set to. Each has tensors that are added to the prefix.
    """

    audio_context: Positive = 150
    prefix: Positive = 4
    num_positions: Positive = 448
    vectors: Annotated[int, Field(ge=1, le=16)] = 1
    languages: Annotated[tuple[str, ...], Field(strict=False)] = ()  # a list in a file

    @property
    def audio_columns(self) -> int:
        """Vectors of audio that a step sees."""
        return self.audio_context * self.vectors

    def position(self, token: Any) -> Any:
        """The position of a stream's token, counted from 0. Takes numbers and the tensors of any array library."""
        return self.prefix + token % (self.num_positions - self.prefix)

    @model_validator(mode="after")
    def _positions_exceed_prefix(self) -> WhisperDecoderConfig:
        if self.num_positions <= self.prefix:
            raise ValueError(f"num_positions={self.num_positions} must be more than prefix={self.prefix}")
        return self


class LMConfig(Config):
    """The language model: reads `num_codebooks` audio tokens and its own last text token, writes the next.

    `text_vocab` and `audio_vocab` count the tokens that can be written; each embedding has one row more, the initial
    token. `pause_heads` linear heads of `pause_classes` classes read its output.

    A model that speaks has a depth Transformer, which writes the first codebooks. `delays`: steps by which the text and
    each codebook lag (empty: none). `text_outputs`: the text tokens that it can write, where fewer than `text_vocab`.
    `demux_text`: a text token may carry a second one, `(second + 1) * (text_vocab + 1) + first`.
    `cross_position_scale`: factor of the sines that are added to what the cross-attention reads (0: none are).

    With `whisper` set, Whisper's decoder replaces the Transformer: `transformer` gives its size, and `context` counts
    tokens of text. The audio is attended to instead of added to the input.
    """

    transformer: TransformerConfig
    text_vocab: Positive
    audio_vocab: Positive
    num_codebooks: Positive
    pause_heads: Annotated[int, Field(ge=0)] = 0
    pause_classes: Positive = 6
    conditioners: tuple[ConditionerConfig, ...] = ()
    delays: tuple[Annotated[int, Field(ge=0)], ...] = ()
    text_outputs: Positive | None = None
    demux_text: bool = False
    depth: DepthConfig | None = None
    cross_position_scale: Annotated[float, Field(ge=0)] = 0.0
    whisper: WhisperDecoderConfig | None = None

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that a stream can be set to."""
        return self.whisper.languages if self.whisper else ()

    def language_number(self, language: str) -> int:
        """Return the place of a language in `languages`, from 1; 0 for one that a stream cannot be set to."""
        return self.languages.index(language) + 1 if language in self.languages else 0

    @property
    def text_initial_id(self) -> int:
        """The text token of position 0."""
        return self.text_vocab

    @property
    def audio_initial_id(self) -> int:
        """The audio token of position 0, in every codebook."""
        return self.audio_vocab

    @property
    def stream_delays(self) -> tuple[int, ...]:
        """Steps by which the text and each codebook lag."""
        return self.delays or (0,) * (self.num_codebooks + 1)

    @model_validator(mode="after")
    def _streams_fit(self) -> LMConfig:
        if self.delays and len(self.delays) != self.num_codebooks + 1:
            raise ValueError(f"{len(self.delays)} delays for a text and {self.num_codebooks} audio streams")
        if self.depth and self.depth.num_codebooks > self.num_codebooks:
            raise ValueError(f"the model writes {self.depth.num_codebooks} codebooks, but reads {self.num_codebooks}")
        shape = self.transformer
        if self.whisper and (shape.norm, shape.gated, shape.positions, shape.layer_scale) != (*_WHISPER_SHAPE, False):
            raise ValueError("Whisper's decoder has norm='layer_norm', gated=False, positions='none', no layer_scale")
        if self.whisper and (self.depth or self.conditioners or any(self.delays) or self.demux_text):
            raise ValueError("Whisper's decoder has no conditions, no delays, and writes no audio")
        crosses = any(conditioner.fuse == "cross" for conditioner in self.conditioners)
        if crosses != self.transformer.cross_attention:
            raise ValueError(
                f"cross_attention={self.transformer.cross_attention}, but conditions are"
                f"{'' if crosses else ' not'} given to it"
            )
        return self


class SamplingConfig(Config):
    """How a text token is chosen: greedily at temperature 0, else from the `top_k` most likely ones (0: from all)."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Annotated[int, Field(ge=0)] = 0


class FileNames(Config):
    """The files of a checkpoint, relative to its folder or repository."""

    lm: str = "model.safetensors"
    codec: str = "tokenizer-e351c8d8-checkpoint125.safetensors"
    codec_config: str | None = None
    tokenizer: str = "tokenizer_spm_32k_3.model"
    lora: str | None = None


class STTConfig(Config):
    """A whole model: codec, LM, the delay between audio and text, and its files.

    Attributes:
        delay_seconds: Time by which the text lags behind the audio.
        delay_frames: The same in frames, as the published server counts them.
        silence_prefix_seconds: Silence that the model needs before speech.
        condition_values: Values by the name of the conditioner; one without a value uses its learnt padding.
        end_of_turn_above: Default probability above which a turn ends: of the pause head or, with `end_of_turn`, of
            that curve. It is our own key of `stt_config`, which other readers ignore.
        end_of_turn: The probability that the speaker has finished; None where it was not fitted. Our own key, too.
        min_confidence: Words are withheld while the running mean of their confidence is lower. Our own key, too.
        beam: Hypotheses of recordings by default, see `Hints.beam`. Live streams have one. Our own key, too.
        word_shift_seconds: Added to the starts and ends of words, for a model that writes them too early (above 0) or
            too late (below 0). Our own key, too.
        confidence: What the model's probabilities mean; None where that was not measured. Our own key, too.
        recordings: Another lookahead and text delay for recordings; None where they have those of live streams. Our own
            key, too.
        lag_frames: Frames by which the encoder's output is later than in live streams, of `for_recordings`. Not a key.
    """

    codec: CodecConfig
    lm: LMConfig
    delay_seconds: Annotated[float, Field(ge=0)]
    delay_frames: Annotated[int, Field(ge=0)]
    silence_prefix_seconds: Annotated[float, Field(ge=0)] = 0.0
    sampling: SamplingConfig = SamplingConfig()
    files: FileNames = FileNames()
    model_id: dict[str, Any] = Field(default_factory=dict)
    condition_values: dict[str, float | str] = Field(default_factory=dict)
    end_of_turn_above: Annotated[float, Field(ge=0, le=1)] = END_OF_TURN_ABOVE
    end_of_turn: EndingCurve | None = None
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beam: Annotated[int, Field(ge=1)] = 1
    word_shift_seconds: Annotated[float, Field(ge=-1, le=1)] = 0.0
    confidence: Calibration | None = None
    recordings: RecordingsConfig | None = None
    lag_frames: Annotated[int, Field(ge=0)] = 0

    @property
    def delay_condition(self) -> ConditionerConfig | None:
        """The condition of a model that is trained with several delays."""
        return next((c for c in self.lm.conditioners if c.name == "delay" and c.kind == "continuous"), None)

    def with_delay(self, seconds: float) -> STTConfig:
        """Return the configuration for another text delay.

        Raises `ConfigError` for a model that is trained with one delay, and for a delay shorter than its encoder's.
        """
        if self.delay_condition is None:
            raise ConfigError(f"delay={seconds:g}: this model has one delay, {self.delay_seconds:g} s")
        # The published server passes the negative delay, and counts one frame more.
        published = float(self.condition_values.get("delay", 0.0)) < 0
        frames = (
            math.floor(seconds * self.codec.frame_rate) + 1 if published else round(seconds * self.codec.frame_rate)
        )
        if frames < max(1, self.codec.delay_frames):
            least = max(1, self.codec.delay_frames) / self.codec.frame_rate
            raise ConfigError(f"delay={seconds:g}: expected at least {least:g} seconds")
        values = self.condition_values | {"delay": -seconds if published else seconds}
        return self.model_copy(update={"delay_seconds": seconds, "delay_frames": frames, "condition_values": values})

    def for_recordings(self) -> STTConfig:
        """Return the configuration with the lookahead and the text delay of recordings, without `recordings`.

        It is this one for a model that has no other for recordings.
        """
        whisper, recordings = self.codec.whisper, self.recordings
        if whisper is None or recordings is None:
            return self
        whisper = whisper.model_copy(update={"lookahead": recordings.lookahead})
        codec = self.codec.model_copy(update={"whisper": whisper})
        frames = recordings.delay_frames
        changed = {"delay_frames": frames, "delay_seconds": frames / codec.frame_rate, "recordings": None}
        lag = round(codec.delay_frames - self.codec.delay_frames)
        return self.model_copy(update={"codec": codec, "lag_frames": lag, **changed})

    @model_validator(mode="after")
    def _codec_feeds_lm(self) -> STTConfig:
        if self.lm.num_codebooks > self.codec.num_codebooks:
            raise ValueError(
                f"the LM reads {self.lm.num_codebooks} codebooks, the codec writes {self.codec.num_codebooks}"
            )
        if self.lm.audio_vocab != self.codec.codebook_size:
            raise ValueError(
                f"the LM's audio vocabulary is {self.lm.audio_vocab}, the codec's codebooks hold "
                f"{self.codec.codebook_size}"
            )
        transformer = self.lm.transformer
        positions = "none" if self.lm.whisper else "rope"
        if self.lm.depth or any(self.lm.delays) or transformer.cross_attention or transformer.positions != positions:
            raise ValueError("the LM is not that of a speech-to-text model, which writes text only, without delays")
        if self.end_of_turn is not None and len(self.end_of_turn.heads) != self.lm.pause_heads:
            raise ValueError(
                f"end_of_turn has {len(self.end_of_turn.heads)} weights of pause heads, "
                f"the LM has {self.lm.pause_heads}"
            )
        if self.delay_frames < self.codec.delay_frames:
            raise ValueError(
                f"delay_frames={self.delay_frames} is less than the encoder's own delay of "
                f"{self.codec.delay_frames:g} frames: the LM would have to write words before it receives them"
            )
        return self

    @model_validator(mode="after")
    def _recordings_fit(self) -> STTConfig:
        whisper, recordings = self.codec.whisper, self.recordings
        if recordings is None:
            return self
        if whisper is None:
            raise ValueError("recordings is for a codec with Whisper's encoder: others have no lookahead")
        if self.delay_condition is not None:
            raise ValueError("recordings is for a model with one text delay: this one is trained with several")
        if (lookahead := recordings.lookahead) < (live := whisper.lookahead):
            raise ValueError(f"recordings.lookahead={lookahead} must be {live}, as in live streams, or more")
        later = self.for_recordings().codec.delay_frames - self.codec.delay_frames
        if recordings.delay_frames != (expected := self.delay_frames + math.ceil(later)):
            raise ValueError(
                f"recordings.delay_frames={recordings.delay_frames} must be {expected}: that of live streams and the "
                f"{later:g} frames by which the encoder is later with recordings.lookahead={lookahead}"
            )
        return self
