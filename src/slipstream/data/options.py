"""What a training run reads: the table `[data]` of its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from slipstream.data.augment import Share, WaveAugment
from slipstream.data.spectral import SpectralAugment
from slipstream.model.config import Positive
from slipstream.schema import Options

Weight = Annotated[float, Field(gt=0)]


class SampleAugment(WaveAugment):
    """Augmentation of samples, for a waveform codec and for distillation: `WaveAugment`, and in distillation:

    speed: the largest factor of tempo and pitch. sounds: a pack of recorded sounds, which are half of the noise.
    sounds_alone: share of rows that hold sounds or noise without speech, so that the LM learns to write nothing there.
    overlap: how often another speaker talks under a row, `overlap_db` below it; that speech is not transcribed.
    frequency_masks, time_masks: largest number of masked bands and of masked stretches of time of what a Whisper
    encoder reads of a row (SpecAugment, arXiv:1904.08779), when it learns together with the LM.
    """

    speed: Annotated[float, Field(ge=1)] = 1.18
    sounds: Path | None = None
    sounds_alone: Share = 0.0
    overlap: Share = 0.0
    overlap_db: tuple[float, float] = (6.0, 20.0)
    frequency_masks: Annotated[int, Field(ge=0)] = 0
    time_masks: Annotated[int, Field(ge=0)] = 0


class ValidOptions(Options):
    """Measurements of the model as it is during a run, on what the run does not learn from.

    manifest: recordings that are streamed through the model, for its word error rate (`slipstream train lm`).
    limit: only the first N of them. packs: packs of held-out recordings, for the loss of `rows` rows that are not
    augmented. every: steps between measurements. patience: end the run after N measurements without a better model.
    The model with the fewest word errors, or else the lowest loss, is kept in `run.out/best`.
    """

    manifest: Path | None = None
    packs: tuple[Path, ...] = ()
    rows: Positive = 32
    every: Positive = 500
    limit: Positive | None = None
    patience: Positive | None = None

    @model_validator(mode="after")
    def _something_is_measured(self) -> ValidOptions:
        if self.manifest is None and not self.packs:
            raise ValueError("give a manifest (word errors), packs (loss), or both")
        return self


class DataOptions(Options):
    """What a run reads.

    packs: folders that `slipstream data pack` wrote.
    weights: how often each dataset is drawn from, relative to the others; those not named are left out.
    tokenizer: a SentencePiece model; that of the model that the run starts from by default.
    seconds: length of a row; longer than the LM's context, so that the model learns to go on once its ring is full.
    gaps, gap_shares: ranges of seconds of silence between the utterances of a row, and how often each is drawn,
    relative to the others.
    delay: text delay in frames, or the two bounds it is drawn from; a drawn delay needs a conditioner named "delay",
    which a run with model.base adds.
    That of the model that the run starts from by default, or 6.
    crop: by dataset, how often only a run of a recording's words is taken: against memorising few sentences.
    same_language: how often the next utterance of a row is in the language of the last.
    plain_text: lower case and no punctuation; by default if the vocabulary has neither capitals nor punctuation.
    replay: datasets of what the model can do already: `loss.base` keeps it on their recordings, or on all if none is
    named.
    texts, text_share: files of sentences, one a line, and the share of rows that are made of them alone, without audio.
    valid: recordings to measure the model on while it learns (`slipstream train lm`).
    text_mask: share of the previous text tokens that the LM does not see.
    text_errors: share of the words' previous tokens that it sees replaced by others.
    """

    packs: Annotated[tuple[Path, ...], Field(min_length=1)]
    weights: Annotated[dict[str, Weight], Field(min_length=1)]
    tokenizer: Path | None = None
    seconds: Annotated[float, Field(gt=0)] = 12.8
    gaps: tuple[tuple[float, float], ...] = ((0.08, 0.6), (0.6, 1.5), (1.5, 3.8))
    gap_shares: tuple[Weight, ...] = (0.62, 0.28, 0.1)
    delay: Positive | tuple[Positive, Positive] | None = None
    crop: dict[str, Share] = Field(default_factory=dict)
    same_language: Share = 0.85
    plain_text: bool | None = None
    replay: tuple[str, ...] = ()
    valid: ValidOptions | None = None
    texts: tuple[Path, ...] = ()
    text_share: Share = 0.0
    text_mask: Share = 0.1
    text_errors: Share = 0.0
    augment: SpectralAugment = SpectralAugment()
    augment_samples: SampleAugment | None = None

    @model_validator(mode="after")
    def _ranges_go_upwards(self) -> DataOptions:
        if len(self.gaps) != len(self.gap_shares):
            raise ValueError(f"there are {len(self.gaps)} gaps and {len(self.gap_shares)} gap_shares: give one each")
        for low, high in (*self.gaps, *([self.delay] if isinstance(self.delay, tuple) else [])):
            if not 0 <= low <= high:
                raise ValueError(f"[{low}, {high}] is no range: the lower bound, from 0 on, comes first")
        return self

    @model_validator(mode="after")
    def _crop_what_is_drawn(self) -> DataOptions:
        if unknown := sorted(self.crop.keys() - self.weights.keys()):
            raise ValueError(f"crop names {', '.join(unknown)}, which weights do not draw from")
        if unknown := sorted(set(self.replay) - self.weights.keys()):
            raise ValueError(f"replay names {', '.join(unknown)}, which weights do not draw from")
        return self
