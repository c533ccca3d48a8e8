"""Find and load published checkpoints, under Kyutai's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch

from slipstream.checkpoints.checkpoint import read_codec, read_lm
from slipstream.checkpoints.kyutai import parse_lm
from slipstream.checkpoints.kyutai_tts import KyutaiSpeechLM
from slipstream.checkpoints.lora import fuse
from slipstream.checkpoints.mimi import parse_codec
from slipstream.checkpoints.pause_heads import with_pause_heads_of
from slipstream.checkpoints.sources import find_given, find_named, find_place
from slipstream.checkpoints.tensors import read_tensors
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import CodecConfig, FileNames
from slipstream.moshi.models.compression import MimiModel
from slipstream.moshi.models.lm import LMModel
from slipstream.nn.build import build_codec, build_lm
from slipstream.nn.lm import LM
from slipstream.nn.mimi import Mimi
from slipstream.schema import parse, read_json

SAMPLE_RATE = 24_000
FRAME_RATE = 12.5

TEXT_TOKENIZER_NAME = FileNames().tokenizer
MOSHI_NAME = FileNames().lm
MIMI_NAME = FileNames().codec
DEFAULT_REPO = "kyutai/moshiko-pytorch-bf16"
"""The repository of `MIMI_NAME` in scripts; its language model generates speech, and cannot be run here."""

# Keys of config.json that are about the checkpoint's files and use, not about the LM.
_OTHER_KEYS = (
    "moshi_name",
    "mimi_name",
    "mimi_config_name",
    "tokenizer_name",
    "lora_name",
    "model_type",
    "lm_gen_config",
    "tts_config",
    "stt_config",
    "model_id",
)

Config = dict[str, Any]


def hf_get(
    filename: str | Path,
    hf_repo: str | None = None,
    check_local_file_exists: bool = False,
    revision: str | None = None,
) -> Path:
    """Return the local path of a file, downloading it from the Hugging Face Hub if necessary.

    Args:
        filename: A path, `file://path`, `hf://owner/repo/file`, or a file name in `hf_repo`.
        hf_repo: The repository that holds `filename`; without it, `filename` is a local path.
        check_local_file_exists: Prefer a local file called `filename` over one in `hf_repo`.
        revision: Branch, tag or commit of the repository.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: The repository or the file in it cannot be found.

    Example:
        >>> hf_get("hf://kyutai/stt-1b-en_fr-candle/config.json")  # doctest: +SKIP
    """
    if isinstance(filename, Path):
        return filename
    if filename.startswith("hf://"):
        owner, name, rest = [*filename.removeprefix("hf://").split("/", 2), "", ""][:3]
        if not rest:
            raise CheckpointError(f"{filename} does not name a file: expected hf://owner/repo/file")
        return find_place(f"{owner}/{name}", revision).get(rest)
    if filename.startswith("file://"):
        return Path(filename.removeprefix("file://"))
    if hf_repo is None or (check_local_file_exists and Path(filename).exists()):
        return Path(filename)
    return find_place(hf_repo, revision).get(filename)


@dataclass
class CheckpointInfo:
    """The files of a checkpoint, and the content of its `config.json`."""

    moshi_weights: Path
    mimi_weights: Path
    tokenizer: Path
    lm_config: Config | None = None
    raw_config: Config | None = None
    mimi_config: Config | None = None
    model_type: str = "stt"
    lora_weights: Path | None = None
    lm_gen_config: Config = field(default_factory=dict)
    tts_config: Config = field(default_factory=dict)
    stt_config: Config = field(default_factory=dict)
    model_id: Config = field(default_factory=dict)

    @staticmethod
    def from_hf_repo(
        hf_repo: str | None,
        moshi_weights: Path | str | None = None,
        mimi_weights: Path | str | None = None,
        tokenizer: Path | str | None = None,
        config_path: Path | str | None = None,
        mimi_config_path: Path | str | None = None,
        lora_weights: Path | str | None = None,
        revision: str | None = None,
    ) -> CheckpointInfo:
        """Find the files of a checkpoint; download those that are not in the Hub's cache.

        Args:
            hf_repo: A repository id or a folder. None if the four files are given.
            moshi_weights: Weights of the LM: a path, `file://path` or `hf://owner/repo/file`.
            mimi_weights: Weights of the codec, in the same forms.
            tokenizer: The SentencePiece model, in the same forms.
            config_path: The `config.json`, in the same forms.
            mimi_config_path: The codec's own configuration, in the same forms.
            lora_weights: An adapter of the LM, in the same forms.
            revision: Branch, tag or commit of `hf_repo`.

        Returns:
            The files, on this machine, and the configuration.

        Raises:
            CheckpointError: A file cannot be found, or `hf_repo` is None and a file is not given.
        """
        given = {
            "moshi_weights": moshi_weights,
            "mimi_weights": mimi_weights,
            "tokenizer": tokenizer,
            "config_path": config_path,
        }
        if hf_repo is None and (missing := [name for name, path in given.items() if path is None]):
            raise CheckpointError(f"hf_repo is None, so every file must be given; missing: {', '.join(missing)}")
        # Without a repository, names in the configuration are relative to its folder.
        place = find_place(hf_repo if hf_repo is not None else hf_get(str(config_path)).parent, revision)
        raw = read_json(find_given(config_path, place) or place.get("config.json"))
        mimi_config, lora = find_given(mimi_config_path, place), find_given(lora_weights, place)
        if mimi_config is None and raw.get("mimi_config_name"):
            mimi_config = find_named(place, raw["mimi_config_name"])
        if lora is None and raw.get("lora_name"):
            lora = find_named(place, raw["lora_name"])
        return CheckpointInfo(
            moshi_weights=find_given(moshi_weights, place) or find_named(place, raw.get("moshi_name", MOSHI_NAME)),
            mimi_weights=find_given(mimi_weights, place) or find_named(place, raw.get("mimi_name", MIMI_NAME)),
            tokenizer=find_given(tokenizer, place) or find_named(place, raw.get("tokenizer_name", TEXT_TOKENIZER_NAME)),
            lm_config={key: value for key, value in raw.items() if key not in _OTHER_KEYS},
            raw_config=raw,
            mimi_config=read_json(mimi_config) if mimi_config is not None else None,
            # The values of the first model, whose config does not have these keys.
            model_type=raw.get("model_type", "moshi"),
            lora_weights=lora,
            **{key: raw.get(key, {}) for key in ("lm_gen_config", "tts_config", "stt_config", "model_id")},
        )

    def get_mimi(self, device: torch.device | str = "cpu") -> MimiModel:
        """Load the codec, with as many codebooks as the LM reads.

        Args:
            device: Where it runs, such as "cuda".

        Returns:
            The codec, in eval mode.
        """
        config = self.lm_config or {}
        dep_q = config.get("dep_q", 0)
        num_codebooks = max(dep_q, config.get("n_q", 8) - dep_q) // (2 if self.tts_config.get("multistream") else 1)
        return get_mimi(self.mimi_weights, self.mimi_config, device=device, num_codebooks=num_codebooks)

    def get_moshi(
        self,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        load_weight: bool = True,
        **kwargs: Any,
    ) -> LMModel:
        """Load the language model.

        Args:
            device: Where it runs, such as "cuda".
            dtype: Type of its weights.
            load_weight: False for random weights.
            **kwargs: Further arguments of `get_moshi_lm`.

        Returns:
            The LM, in eval mode.

        Raises:
            ConfigError: The checkpoint is not that of a speech-to-text or text-to-speech model.
        """
        if self.model_type not in ("stt", "tts"):
            raise ConfigError(
                f"model_type={self.model_type!r}: only speech-to-text (stt) and text-to-speech (tts) models can be run"
            )
        model = get_moshi_lm(
            self.moshi_weights if load_weight else None,
            self.lm_config,
            device=device,
            dtype=dtype,
            lora_weights=self.lora_weights if load_weight else None,
            **kwargs,
        )
        model.condition_values = dict(self.stt_config.get("condition_values", {}))
        return model

    def get_text_tokenizer(self) -> sentencepiece.SentencePieceProcessor:
        """Load the tokenizer.

        Returns:
            The SentencePiece processor.
        """
        return sentencepiece.SentencePieceProcessor(str(self.tokenizer))


def get_mimi(
    filename: str | Path | None,
    mimi_config: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    num_codebooks: int = 8,
) -> MimiModel:
    """Load Mimi from a safetensors file.

    Args:
        filename: The file; None for random weights.
        mimi_config: Content of the codec's own configuration file; the published Mimi by default.
        device: Where it runs, such as "cuda".
        num_codebooks: Codebooks that `encode` returns.

    Returns:
        The codec, in eval mode.

    Raises:
        CheckpointError: The file cannot be read, or does not fit the configuration.
        ConfigError: The configuration is invalid.

    Example:
        >>> mimi = get_mimi(hf_get(MIMI_NAME, DEFAULT_REPO), device="cpu")  # doctest: +SKIP
    """
    config = CodecConfig() if mimi_config is None else parse_codec(mimi_config)
    if filename is None:
        codec = Mimi(config).to(device)
    else:
        codec = build_codec(config, read_codec([Path(filename)], config), device=device)
    return MimiModel(codec.requires_grad_(False), num_codebooks).eval()


def get_moshi_lm(
    filename: str | Path | None,
    lm_kwargs: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    lora_weights: str | Path | None = None,
    fuse_lora: bool = False,
    lm_kwargs_overrides: Mapping[str, Any] | None = None,
) -> LMModel:
    """Load the LM from a safetensors file.

    Args:
        filename: The file; None for random weights.
        lm_kwargs: The LM's keys of a published `config.json`.
        device: Where it runs, such as "cuda".
        dtype: Type of its weights.
        lora_weights: An adapter; it becomes part of the weights.
        fuse_lora: No effect: an adapter is always fused, which is the same model, and faster.
        lm_kwargs_overrides: Keys that replace some of `lm_kwargs`.

    Returns:
        The LM, in eval mode.

    Raises:
        CheckpointError: The file cannot be read, or does not fit the configuration.
        ConfigError: The configuration is invalid, or missing.
    """
    if lm_kwargs is None:
        raise ConfigError("lm_kwargs is missing: this is Moshi 7B, which generates speech and cannot be run here")
    raw = {**lm_kwargs, **(lm_kwargs_overrides or {})}
    config = parse(KyutaiSpeechLM, raw, "config.json").lm() if raw.get("dep_q") else parse_lm(raw)
    if filename is None:
        return LMModel(LM(config).to(device, dtype).requires_grad_(False)).eval()
    config = with_pause_heads_of(config, Path(filename), stated=raw.get("extra_heads_num_heads") is not None)
    weights = read_lm([Path(filename)], config)
    if bool(raw.get("lora")) != (lora_weights is not None):
        raise CheckpointError(
            f"lora is {bool(raw.get('lora'))} in the config, but lora_weights is {lora_weights}: an adapter needs both"
        )
    if lora_weights is not None:
        adapter = read_tensors(Path(lora_weights))
        weights = fuse(weights, adapter, config, raw.get("lora_scaling", 2.0), str(lora_weights))
    lm = build_lm(config, weights, device=device, dtype=dtype)
    if config.depth is not None:
        lm.conditioners.float()  # as in training
    return LMModel(lm).eval()
