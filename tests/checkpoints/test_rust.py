"""The Rust server's TOML, as published and with errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints.published import changed

from slipstream.checkpoints.presets import PRESETS
from slipstream.checkpoints.rust import RustConfig, parse_rust_model, read_rust_config
from slipstream.errors import ConfigError
from slipstream.schema import read_toml

PUBLISHED = """
static_dir = "./static/"
log_dir = "$HOME/logs"
instance_name = "stt"
authorized_ids = ["public_token"]

[modules.asr]
path = "/api/asr-streaming"
type = "BatchedAsr"
lm_model_file = "hf://kyutai/stt-1b-en_fr-candle/model.safetensors"
text_tokenizer_file = "hf://kyutai/stt-1b-en_fr-candle/tokenizer_en_fr_audio_8000.model"
audio_tokenizer_file = "hf://kyutai/stt-1b-en_fr-candle/mimi-pytorch-e351c8d8@125.safetensors"
asr_delay_in_tokens = 6
batch_size = 64
conditioning_learnt_padding = true
temperature = 0.25

[modules.asr.model]
audio_vocab_size = 2049
text_in_vocab_size = 8001
text_out_vocab_size = 8000
audio_codebooks = 32

[modules.asr.model.transformer]
d_model = 2048
num_heads = 16
num_layers = 16
dim_feedforward = 8192
causal = true
norm_first = true
bias_ff = false
bias_attn = false
context = 750
max_period = 100000
use_conv_block = false
use_conv_bias = true
gating = "silu"
norm = "RmsNorm"
positional_embedding = "Rope"
conv_layout = false
conv_kernel_size = 3
kv_repeat = 1
max_seq_len = 40960

[modules.asr.model.extra_heads]
num_heads = 4
dim = 6
"""


def read(tmp_path: Path, text: str) -> RustConfig:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return read_rust_config(file)


def test_the_published_config(tmp_path: Path) -> None:
    config = read(tmp_path, PUBLISHED)
    assert config.path == "/api/asr-streaming"
    assert config.slots == 64
    assert config.keys == ("public_token",)
    assert config.lm_file == "hf://kyutai/stt-1b-en_fr-candle/model.safetensors"
    assert config.codec_file.endswith("@125.safetensors")
    assert config.model.lm == PRESETS["kyutai/stt-1b-en_fr-candle"].lm
    assert config.model.delay_frames == 6
    assert config.model.sampling.temperature == 0.25


@pytest.mark.parametrize(
    ("old", "new", "codebooks", "heads", "dtype"),
    [
        ("audio_codebooks = 32", "audio_codebooks = 20", 20, 4, "auto"),  # as Unmute deploys it
        (PUBLISHED[PUBLISHED.index("[modules.asr.model.extra_heads]") :], "", 32, 0, "auto"),
        ("num_heads = 4\n", "num_heads = 2\n", 32, 2, "auto"),
        ("batch_size = 64", 'batch_size = 64\ndtype_override = "bf16"', 32, 4, "bfloat16"),
        ("batch_size = 64", 'batch_size = 64\ndtype_override = "f32"', 32, 4, "float32"),
    ],
)
def test_configs_as_they_are_deployed(
    tmp_path: Path, old: str, new: str, codebooks: int, heads: int, dtype: str
) -> None:
    assert old in PUBLISHED
    config = read(tmp_path, PUBLISHED.replace(old, new))
    assert (config.model.lm.num_codebooks, config.model.lm.pause_heads) == (codebooks, heads)
    assert config.model.codec.num_codebooks == 32
    assert config.dtype == dtype


def test_one_stream_at_a_time(tmp_path: Path) -> None:
    text = PUBLISHED.replace("BatchedAsr", "Asr").replace("batch_size = 64\n", "")
    assert read(tmp_path, text).slots == 1


def test_environment_variables_and_plain_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", "/data")
    text = PUBLISHED.replace("hf://kyutai/stt-1b-en_fr-candle/model", "$WEIGHTS/$NOT_SET_ANYWHERE/model")
    assert read(tmp_path, text).lm_file == "/data//model.safetensors"


def test_a_delay_that_conditions_the_model(tmp_path: Path) -> None:
    text = PUBLISHED.replace("conditioning_learnt_padding = true", "conditioning_delay = 1.0")
    config = read(tmp_path, text)
    assert config.model.condition_values == {"delay": -1.0}
    assert config.model.delay_frames == 13


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch_size", "batchsize", "unknown key 'batchsize' in modules.asr; did you mean 'batch_size'"),
        ("instance_name", "instance", "unknown key 'instance'"),
        (
            "kv_repeat = 1",
            "kv_repeats = 1",
            "'kv_repeats' in modules.asr.model.transformer; did you mean 'kv_repeat'",
        ),
        ('log_dir = "$HOME/logs"\n', "", "the file lacks log_dir"),
        ("batch_size = 64\n", "", "lacks batch_size"),
        ("batch_size = 64", "batch_size = 0", "modules.asr: batch_size must be a whole number above 0, not 0"),
        ("batch_size = 64", "batch_size = true", "batch_size must be a whole number above 0, not True"),
        ("asr_delay_in_tokens = 6", "asr_delay_in_tokens = -6", "must be a whole number, 0 or more, not -6"),
        ("asr_delay_in_tokens = 6", "asr_delay_in_tokens = 6.0", "must be a whole number, 0 or more, not 6.0"),
        (
            "batch_size = 64",
            'batch_size = 64\ndtype_override = "q8"',
            "asr.dtype_override='q8' is not supported: expected 'bf16'",
        ),
        ('"BatchedAsr"', '"Tts"', "modules.asr: type 'Tts' is not supported, only BatchedAsr and Asr"),
        ('"/api/asr-streaming"', '"api"', "must begin with '/'"),
        ("hf://kyutai/stt-1b-en_fr-candle/model", "hf://model", "expected hf://owner/repo/file"),
        ('["public_token"]', "[1]", "authorized_ids.0 must be text, not 1"),
        ("learnt_padding = true", "learnt_padding = true\nconditioning_delay = 1.0", "exclude each other"),
        ("causal = true", "causal = maybe", "not TOML"),
    ],
)
def test_keys_and_values_that_are_not_supported_are_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in PUBLISHED
    with pytest.raises(ConfigError, match=says) as error:
        read(tmp_path, PUBLISHED.replace(old, new))
    assert "config.toml" in str(error.value)


def test_a_second_module_is_refused(tmp_path: Path) -> None:
    second = PUBLISHED[PUBLISHED.index("[modules.asr]") :].replace("modules.asr", "modules.asr2")
    with pytest.raises(ConfigError, match="2 modules: expected one"):
        read(tmp_path, PUBLISHED + second)


@pytest.fixture
def rust_model(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "config.toml"
    path.write_text(PUBLISHED)
    return read_toml(path)["modules"]["asr"]["model"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("audio_codebook", 32, "unknown key 'audio_codebook' in model; did you mean 'audio_codebooks'"),
        ("audio_codebooks", None, "model lacks audio_codebooks"),
        ("text_in_vocab_size", "8001", "text_in_vocab_size must be a whole number above 0, not '8001'"),
        ("text_in_vocab_size", 8000, r"text_in_vocab_size=8000 must be text_out_vocab_size \+ 1 = 8001"),
        ("audio_vocab_size", 1, "leaves no audio token"),
        ("depformer", {"num_slices": 8}, "a speech-to-text model has none"),
        ("transformer", 3, "model: transformer must be a table, not 3"),
        ("transformer.d_models", 1, "unknown key 'd_models' in model.transformer; did you mean 'd_model'"),
        ("transformer.d_model", "2048", "model.transformer: d_model must be a whole number above 0"),
        ("transformer.max_period", None, "model.transformer lacks max_period"),
        ("transformer.norm", "LayerNorm", "only 'RmsNorm' is supported"),
        ("extra_heads.heads", 4, "unknown key 'heads' in model.extra_heads"),
    ],
)
def test_an_error_in_a_rust_model_is_named(rust_model: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rust_model(changed(rust_model, key, value))


def test_rust_model_without_heads_and_with_its_own_width(rust_model: dict[str, Any]) -> None:
    del rust_model["extra_heads"]
    rust_model["transformer"]["dim_feedforward"] = 8448
    config = parse_rust_model(rust_model)
    assert (config.pause_heads, config.transformer.ffn_dim) == (0, 5632)


def test_read_toml_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not TOML"):
        read_toml(tmp_path / "bad.toml")
