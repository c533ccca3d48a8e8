"""Training a codec's decoder: from the tokens of a codec that stays as it is to samples.

The encoder and the codebooks stay in float32 outside the trained module, so the tokens do not change by a bit. What
learns is what only decoding uses: the quantiser's output projections, the upsampling, the Transformer and SEANet.
Shapes: B rows, S samples, T frames, D latent width.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slipstream.bundle import ModelBundle
from slipstream.checkpoints.checkpoint import Checkpoint, read_codec
from slipstream.checkpoints.tensors import Array
from slipstream.errors import ConfigError
from slipstream.model.config import CodecConfig, SEANetConfig
from slipstream.model.names import is_decoder
from slipstream.model.numerics import WHISPER_POSITIONS
from slipstream.nn.build import build_codec, to_tensor
from slipstream.nn.mel import LogMel
from slipstream.nn.mimi import Mimi
from slipstream.nn.whisper import WhisperEncoder
from slipstream.schema import parse
from slipstream.train.adversary import Discriminator, discriminator_of
from slipstream.train.codebooks import quantise
from slipstream.train.options import CodecRun, DecoderOptions, LossOptions, QuantiserOptions
from slipstream.train.reconstruction import Crops, CropSampler, CropTask, kept_codebooks, output_losses
from slipstream.train.speech import find_codec
from slipstream.train.transfer import Numbers, send


class TrainedDecoder(nn.Module):
    """A codec of which the decoder learns, and a discriminator if any."""

    def __init__(self, config: CodecConfig, discriminator: Discriminator | None = None) -> None:
        super().__init__()
        self.codec = Mimi(config)
        self.discriminator = discriminator
        for name, parameter in self.codec.named_parameters():
            parameter.requires_grad_(is_decoder(name))

    def tensors(self) -> dict[str, Tensor]:
        """What learned of the codec, by canonical name."""
        return {name: tensor for name, tensor in self.codec.state_dict().items() if is_decoder(name)}


class DecoderTask(CropTask):
    """A decoder learns to reconstruct the audio of a frozen codec's tokens, of any number of acoustic codebooks."""

    def __init__(
        self,
        module: TrainedDecoder,
        frozen: Mimi,
        sampler: CropSampler,
        loss: LossOptions,
        quantiser: QuantiserOptions,
        discriminator_start: int = 0,
    ) -> None:
        super().__init__(sampler, loss, quantiser, discriminator_start)
        self.module, self.frozen, config = module, frozen, frozen.config
        self.positions_per_second = module.codec.config.decoder_stride * config.frame_rate
        if sampler.frames <= config.blank_frames:
            late = config.blank_frames / config.frame_rate
            raise ConfigError(f"data.seconds = {sampler.seconds:g}: the codec's tokens are {late:g} s late; use more")

    def loss(self, batch: Crops, step: int, progress: float) -> tuple[Tensor, Numbers]:
        codec = self.module.codec
        weight = codec.quantizer.semantic.output_proj.weight
        heard_BS = send(batch.samples_BS, weight.device)
        kept_B = kept_codebooks(send(batch.draw_B, weight.device), codec.config, self.quantiser.codebook_dropout)
        with torch.no_grad():
            latent_BTD = self._latent(heard_BS)[:, self.frozen.config.blank_frames :]
            _, parts, _ = quantise(self.frozen.quantizer, latent_BTD, update=False, kept_B=kept_B)
        halves = (codec.quantizer.semantic, codec.quantizer.acoustic)
        quantised = [half.output_proj(part.to(weight.dtype)) for half, part in zip(halves, parts, strict=True)]
        said_BS, _ = codec.synthesise((quantised[0] + quantised[1]).transpose(1, 2))
        heard_BS = heard_BS[:, self.frozen.config.first_sample :][:, : said_BS.shape[1]]
        said_BS = said_BS[:, : heard_BS.shape[1]].float()
        learns = torch.is_grad_enabled() and step >= self.discriminator_start  # a held-out loss is comparable to others
        judge = self.module.discriminator if learns else None
        total, numbers = output_losses(said_BS, heard_BS, codec.config.sample_rate, self.weights, judge)
        return total, {name: value.detach() for name, value in numbers.items()}

    def _latent(self, heard_BS: Tensor) -> Tensor:
        """The frozen encoder's latent `[B, T, D]`, from a drawn position of Whisper's encoder on: a stream has all."""
        codec = self.frozen.to(heard_BS.device)
        if not isinstance(codec.encoder, WhisperEncoder):
            return codec.latent(heard_BS)[0].transpose(1, 2)
        mel, _ = cast(LogMel, codec.mel)(heard_BS[:, None])
        start_B = torch.randint(WHISPER_POSITIONS, (len(mel),), device=mel.device)
        x_BPD = codec.encoder.hidden(mel, start_B=start_B)[-1]
        x_BPD = F.pad(x_BPD, (0, 0, codec.encoder.config.delay, 0))[:, : x_BPD.shape[1]]
        latent_BDT, _ = codec.downsample(x_BPD.transpose(1, 2))
        return cast(Tensor, latent_BDT).transpose(1, 2)


def start_decoder(options: CodecRun, decoder: DecoderOptions) -> tuple[TrainedDecoder, Mimi, dict[str, Array]]:
    """What a run trains, the codec of `model.base` that makes its tokens, and the tensors of that codec.

    Raises `ConfigError` for a shape that does not fit the codec.
    """
    weights, config = find_codec(str(options.model.base))
    tensors = read_codec(weights, config)
    target = config
    if decoder.shape is not None or not config.has_decoder:
        shape = decoder.shape or SEANetConfig()
        target = parse(CodecConfig, config.model_dump() | {"decoder": shape.model_dump()}, "decoder.shape")
    torch.manual_seed(options.run.seed)
    module = TrainedDecoder(target, discriminator_of(options.discriminator))
    if target == config and not decoder.fresh:
        known = {name: to_tensor(tensors[name]) for name in module.tensors()}
        module.codec.load_state_dict(known, strict=False)
    return module, build_codec(config, tensors), tensors


def model_around(base: str) -> Checkpoint | None:
    """The speech-to-text model whose codec a run starts from, or None for a codec alone or one that speaks."""
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        return None
    try:
        return ModelBundle.resolve(base).checkpoint()
    except ConfigError:
        return None
