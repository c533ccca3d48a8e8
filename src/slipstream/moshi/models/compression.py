"""`MimiModel`: the codec under Kyutai's calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slipstream.moshi.streaming import Streaming
from slipstream.nn.mimi import Mimi
from slipstream.nn.state import State


class MimiModel(Streaming, nn.Module):
    """Mimi. Offline, calls take whole sequences; while streaming, whole frames, and each call continues where the last
    one ended. Shapes: B streams, S samples, K active codebooks, T frames, D latent width.
    """

    def __init__(self, codec: Mimi, num_codebooks: int | None = None) -> None:
        super().__init__()
        self.codec = codec
        self.set_num_codebooks(codec.config.num_codebooks if num_codebooks is None else num_codebooks)

    @property
    def sample_rate(self) -> int:
        """Of the audio, in Hz."""
        return self.codec.config.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.codec.config.frame_rate

    @property
    def frame_size(self) -> int:
        """Samples in one frame."""
        return self.codec.config.frame_samples

    @property
    def channels(self) -> int:
        """Channels of the audio: one."""
        return 1

    @property
    def dimension(self) -> int:
        """Width of the latent."""
        return self.codec.config.dim

    @property
    def cardinality(self) -> int:
        """Entries of each codebook."""
        return self.codec.config.codebook_size

    @property
    def total_codebooks(self) -> int:
        """Codebooks that the codec has."""
        return self.codec.config.num_codebooks

    @property
    def num_codebooks(self) -> int:
        """Codebooks that `encode` returns."""
        return self._num_codebooks

    def set_num_codebooks(self, n: int) -> None:
        """Let `encode` return the first codebooks only.

        Args:
            n: Their number.

        Raises:
            ValueError: The codec does not have as many.
        """
        least = self.codec.config.num_semantic
        if not least <= n <= self.total_codebooks:
            raise ValueError(f"{n} codebooks: this codec has {least} to {self.total_codebooks}")
        self._num_codebooks = n

    def encode(self, x: Tensor) -> Tensor:
        """Encode audio.

        Args:
            x: Samples `[B, 1, S]`. Offline, S is padded with zeros to whole frames.

        Returns:
            Codes `[B, K, T]`.

        Raises:
            ValueError: The shape is another one, or, while streaming, S is not a number of whole frames.

        Example:
            >>> with mimi.streaming(batch_size=1):
            ...     codes = mimi.encode(torch.zeros(1, 1, mimi.frame_size))
        """
        return self.codec.quantizer.encode(self._latent(x), self.num_codebooks)

    def encode_to_latent(self, x: Tensor, quantize: bool = True) -> Tensor:
        """Encode audio to the latent.

        Args:
            x: Samples, as for `encode`.
            quantize: Quantise the latent by the active codebooks.

        Returns:
            The latent `[B, D, T]`.

        Raises:
            ValueError: As for `encode`.
        """
        latent_BDT = self._latent(x)
        if not quantize:
            return latent_BDT
        return self.decode_latent(self.codec.quantizer.encode(latent_BDT, self.num_codebooks))

    def decode_latent(self, codes: Tensor) -> Tensor:
        """Return the latent of codes.

        Args:
            codes: Codes `[B, K, T]`.

        Returns:
            The latent `[B, D, T]`.
        """
        return self.codec.quantizer.decode(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes.

        Args:
            codes: Codes `[B, K, T]`.

        Returns:
            Samples `[B, 1, S]`.

        Raises:
            ValueError: While streaming, B is not the number of streams.
        """
        if self._streams is None:
            audio_BS, _ = self.codec.decode(codes)
            return audio_BS[:, None]
        streams = self._streams
        self._check_batch(codes)
        # A stream that does not advance can have any number as a code, such as the LM's "nothing generated".
        codes = torch.where(streams.exec_mask[:, None, None], codes, 0)
        frames = []
        for codes_BK1 in codes.split(1, dim=-1):
            frame_BS, state = self.codec.decode(codes_BK1, streams.state["decoder"])
            assert state is not None
            streams.commit({"decoder": state})
            frames.append(frame_BS)
        return torch.cat(frames, dim=-1)[:, None]

    def _latent(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[1] != self.channels:
            raise ValueError(f"audio of shape {list(x.shape)}: expected [batch, 1, samples]")
        if self._streams is None:
            latent_BDT, _ = self.codec.latent(x[:, 0])
            return latent_BDT
        streams = self._streams
        self._check_batch(x)
        if not x.shape[-1] or x.shape[-1] % self.frame_size:
            raise ValueError(
                f"{x.shape[-1]} samples: while streaming, pass whole frames of {self.frame_size} and keep the rest "
                "for the next call"
            )
        frames = []
        # Frame by frame: past its next frame, a stream that does not advance would lose the oldest of its ring.
        for frame_BS in x[:, 0].split(self.frame_size, dim=-1):
            latent_BD1, state = self.codec.latent(frame_BS, streams.state["encoder"])
            assert state is not None
            streams.commit({"encoder": state})
            frames.append(latent_BD1)
        return torch.cat(frames, dim=-1)

    def _check_batch(self, x: Tensor) -> None:
        expected = self._started().batch_size
        if x.shape[0] != expected:
            raise ValueError(f"a batch of {x.shape[0]}, but {expected} streams were started")

    def _init_state(self, batch_size: int) -> dict[str, State]:
        state = {"encoder": self.codec.encoder_state(batch_size)}
        if self.codec.config.has_decoder:
            state["decoder"] = self.codec.decoder_state(batch_size)
        return state

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device
