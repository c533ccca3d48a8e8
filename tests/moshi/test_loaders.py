"""`loaders`: a checkpoint's files and overrides are found, its parts built, and what cannot be run is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.fakes import tokenizer_path  # noqa: E402
from tests.models import codec_config, noise_and_tones, random_model, stt_config  # noqa: E402

from slipstream.checkpoints import sources  # noqa: E402
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from slipstream.checkpoints.tensors import read_tensors, write_tensors  # noqa: E402
from slipstream.errors import CheckpointError, ConfigError  # noqa: E402
from slipstream.model.config import STTConfig  # noqa: E402
from slipstream.moshi import LMGen, loaders  # noqa: E402
from slipstream.moshi.models.loaders import CheckpointInfo  # noqa: E402


def config() -> STTConfig:
    return stt_config(text_vocab=400).model_copy(
        update={"silence_prefix_seconds": 1.0, "condition_values": {"delay": 0.5}, "codec": codec_config()}
    )


def write(folder: Path, seed: int = 0) -> Path:
    lm, codec = random_model(config(), seed)
    save_checkpoint(Checkpoint(config(), lm, codec, tokenizer_path()), folder, "kyutai")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint"))


def edit(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def transcribe(info: CheckpointInfo) -> list[int]:
    mimi, lm = info.get_mimi(), info.get_moshi(dtype=torch.float32)
    lm_gen = LMGen(lm, temp=0, temp_text=0)
    audio = torch.from_numpy(noise_and_tones(1.6))[None, None]
    with mimi.streaming(1), lm_gen.streaming(1):
        return [int(lm_gen.step(mimi.encode(x))) for x in audio.split(mimi.frame_size, dim=-1)]


def test_the_content_of_a_checkpoint(folder):
    info = CheckpointInfo.from_hf_repo(str(folder))
    raw = json.loads((folder / "config.json").read_text())
    assert info.raw_config == raw
    assert info.model_type == "stt"
    assert info.stt_config["audio_delay_seconds"] == 0.5
    assert info.stt_config["audio_silence_prefix_seconds"] == 1.0
    assert info.lm_gen_config == raw["lm_gen_config"]
    assert info.lm_config["n_q"] == 5
    assert not info.lm_config.keys() & {"stt_config", "lm_gen_config", "model_type", "moshi_name", "tokenizer_name"}
    assert info.tts_config == {}
    assert info.mimi_config["quantizer"]["n_q"] == 6
    assert info.lora_weights is None


def test_parts_of_a_checkpoint(folder):
    info = CheckpointInfo.from_hf_repo(str(folder))
    mimi, lm = info.get_mimi(device="cpu"), info.get_moshi(device="cpu")
    assert mimi.num_codebooks == lm.n_q == 5, "the codec writes what the LM reads"
    assert mimi.total_codebooks == 6
    assert lm.dtype == torch.bfloat16
    assert lm.device.type == "cpu"
    assert lm.condition_values == {"delay": 0.5}
    assert not any(p.requires_grad for p in (*mimi.parameters(), *lm.parameters()))
    tokenizer = info.get_text_tokenizer()
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert len(set(transcribe(info))) > 5, "tokens that hardly vary would prove little"


@pytest.mark.parametrize("as_string", [str, Path, lambda path: f"file://{path}"], ids=["str", "Path", "file://"])
def test_each_file_can_come_from_elsewhere(folder, tmp_path, as_string):
    other = write(tmp_path / "other", seed=7)
    info = CheckpointInfo.from_hf_repo(str(folder))
    other_info = CheckpointInfo.from_hf_repo(str(other))
    for override, attribute in (
        ("moshi_weights", "moshi_weights"),
        ("mimi_weights", "mimi_weights"),
        ("tokenizer", "tokenizer"),
    ):
        path = getattr(other_info, attribute)
        changed = CheckpointInfo.from_hf_repo(str(folder), **{override: as_string(path)})
        assert changed == replace(info, **{attribute: path})
    edit(other / "config.json", stt_config={"audio_delay_seconds": 9.0}, mimi_config_name=None)
    changed = CheckpointInfo.from_hf_repo(str(folder), config_path=as_string(other / "config.json"))
    assert changed.stt_config == {"audio_delay_seconds": 9.0}
    assert changed.mimi_config is None
    assert changed.moshi_weights == info.moshi_weights
    edit(other / "mimi.json", frame_rate=25.0)
    changed = CheckpointInfo.from_hf_repo(str(folder), mimi_config_path=as_string(other / "mimi.json"))
    assert changed == replace(info, mimi_config=info.mimi_config | {"frame_rate": 25.0})


def test_other_weights_give_other_text(folder, tmp_path):
    other = CheckpointInfo.from_hf_repo(str(write(tmp_path / "other", seed=7)))
    texts = [
        transcribe(CheckpointInfo.from_hf_repo(str(folder), **overrides))
        for overrides in ({}, {"moshi_weights": other.moshi_weights}, {"mimi_weights": other.mimi_weights})
    ]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


def test_a_repository_is_read_at_its_revision(folder, monkeypatch):
    asked = []

    def download(repo: str, name: str, revision: str | None = None, **_: object) -> str:
        asked.append((repo, revision))
        return str(folder / name)

    monkeypatch.setattr(sources, "_hub_answers", lambda minute: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    info = CheckpointInfo.from_hf_repo("someone/stt", revision="abc", tokenizer="hf://other/repo/tokenizer.model")
    assert info.moshi_weights == folder / "model.safetensors"
    assert ("someone/stt", "abc") in asked
    assert ("other/repo", None) in asked, "a revision belongs to the repository that it was given for"


def test_a_model_without_weights_is_random_and_of_the_same_shape(folder):
    info = CheckpointInfo.from_hf_repo(str(folder))
    loaded, empty = info.get_moshi(), info.get_moshi(load_weight=False)
    shapes = [{name: x.shape for name, x in model.state_dict().items()} for model in (loaded, empty)]
    assert shapes[0] == shapes[1]
    assert empty.dtype == torch.bfloat16
    mimi = loaders.get_mimi(None, info.mimi_config, num_codebooks=3)
    assert mimi.encode(torch.zeros(1, 1, 1920)).shape == (1, 3, 1)


def test_overrides_of_the_lm_config(folder):
    info = CheckpointInfo.from_hf_repo(str(folder))
    assert info.get_moshi(lm_kwargs_overrides={"context": 3}).context == 3
    with pytest.raises(ConfigError, match=r"unknown key 'contxt' in .*; did you mean 'context'"):
        info.get_moshi(lm_kwargs_overrides={"contxt": 3})


# ------------------------------------------------------------------------------------------------------------ LoRA


def write_adapter(path: Path, rank: int = 3) -> dict[str, np.ndarray]:
    """An adapter of one projection in each spelling, and of the text's linear layer."""
    rng = np.random.default_rng(11)
    D = config().lm.transformer.dim
    adapter = {}
    for name, rows in (
        ("transformer.layers.0.self_attn.in_projs.0", 3 * D),
        ("transformer.layers.1.self_attn.out_proj", D),
        ("text_linear", 400),
    ):
        adapter[f"{name}.lora_A.weight"] = rng.standard_normal((rank, D)).astype(np.float32)
        adapter[f"{name}.lora_B.weight"] = rng.standard_normal((rows, rank)).astype(np.float32)
    write_tensors(path, adapter)
    return adapter


@pytest.fixture
def lora_folder(tmp_path) -> Path:
    write(tmp_path / "lora")
    write_adapter(tmp_path / "lora" / "lora.safetensors")
    edit(tmp_path / "lora" / "config.json", lora=True, lora_rank=3, lora_scaling=0.5, lora_name="lora.safetensors")
    return tmp_path / "lora"


def test_an_adapter_becomes_part_of_the_weights(folder, lora_folder):
    plain = CheckpointInfo.from_hf_repo(str(folder)).get_moshi(dtype=torch.float32).lm.state_dict()
    info = CheckpointInfo.from_hf_repo(str(lora_folder))
    fused = info.get_moshi(dtype=torch.float32).lm.state_dict()
    adapter = {name: torch.from_numpy(x.copy()) for name, x in read_tensors(info.lora_weights).items()}
    for ours, theirs in (
        ("transformer.layers.0.attn.in_proj.weight", "transformer.layers.0.self_attn.in_projs.0"),
        ("transformer.layers.1.attn.out_proj.weight", "transformer.layers.1.self_attn.out_proj"),
        ("text_linear.weight", "text_linear"),
    ):
        update = 0.5 * adapter[f"{theirs}.lora_B.weight"] @ adapter[f"{theirs}.lora_A.weight"]
        torch.testing.assert_close(fused.pop(ours), plain.pop(ours) + update)
    assert all(fused[name].equal(plain[name]) for name in plain)
    assert fused.keys() == plain.keys()


def test_an_adapter_needs_both_its_file_and_its_config(folder, lora_folder):
    info = CheckpointInfo.from_hf_repo(str(folder), lora_weights=lora_folder / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora is False in the config, but lora_weights is .*lora.safetensors"):
        info.get_moshi()
    edit(lora_folder / "config.json", lora_name=None)
    info = CheckpointInfo.from_hf_repo(str(lora_folder))
    with pytest.raises(CheckpointError, match="lora is True in the config, but lora_weights is None"):
        info.get_moshi()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"emb.0.lora_Q.weight": np.zeros((2, 2), np.float32)},
            "not an adapter of this model: it contains emb.0.lora_Q",
        ),
        (
            {"depth.lora_A.weight": np.zeros((3, 42), np.float32)},
            "not an adapter of this model: it contains depth.lora_A",
        ),
        ({"text_linear.lora_B.weight": None}, "lacks one of the two factors of text_linear.weight"),
        (
            {"text_linear.lora_B.weight": np.zeros((400, 2), np.float32)},
            r"factors \[400, 2\] and \[3, 42\] do not fit text_linear.weight \[400, 42\]",
        ),
    ],
)
def test_an_adapter_that_does_not_fit(lora_folder, change, message):
    path = lora_folder / "lora.safetensors"
    tensors = {name: x for name, x in (write_adapter(path) | change).items() if x is not None}
    write_tensors(path, tensors)
    with pytest.raises(CheckpointError, match=message):
        CheckpointInfo.from_hf_repo(str(lora_folder)).get_moshi()


# ---------------------------------------------------------------------------------------------------------- refusal


def test_models_that_generate_speech_are_refused_but_their_codec_is_not(folder, tmp_path):
    for model_type in ("moshi", "hibiki"):
        other = write(tmp_path / model_type)
        edit(other / "config.json", model_type=model_type)
        info = CheckpointInfo.from_hf_repo(str(other))
        assert info.get_mimi().encode(torch.zeros(1, 1, 1920)).shape == (1, 5, 1)
        with pytest.raises(ConfigError, match=f"model_type='{model_type}': only speech-to-text"):
            info.get_moshi()
    with pytest.raises(ConfigError, match="lm_kwargs is missing"):
        loaders.get_moshi_lm(folder / "model.safetensors")


def test_a_codec_of_a_model_that_generates_speech_encodes_audio(folder):
    info = CheckpointInfo.from_hf_repo(str(folder))
    info.lm_config.update(n_q=7, dep_q=4)
    assert info.get_mimi().num_codebooks == 4


def test_missing_files(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing.safetensors: no such file"):
        CheckpointInfo.from_hf_repo(str(folder), moshi_weights=tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="here: no such folder"):
        CheckpointInfo.from_hf_repo(str(tmp_path / "not" / "here"))


def test_four_files_without_a_repository(folder, tmp_path):
    whole = CheckpointInfo.from_hf_repo(str(folder))
    files = (whole.moshi_weights, whole.mimi_weights, whole.tokenizer, folder / "config.json")
    assert CheckpointInfo.from_hf_repo(None, *files) == whole
    assert CheckpointInfo.from_hf_repo(None, *map(str, files)) == whole
    with pytest.raises(CheckpointError, match="every file must be given; missing: mimi_weights, config_path"):
        CheckpointInfo.from_hf_repo(None, files[0], tokenizer=files[2])


def test_hf_get(folder, tmp_path, monkeypatch):
    assert loaders.hf_get(folder / "x") == folder / "x"
    assert loaders.hf_get(f"file://{folder}/x") == folder / "x"
    assert loaders.hf_get("x") == Path("x")
    assert loaders.hf_get("config.json", str(folder)) == folder / "config.json"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").touch()
    assert loaders.hf_get("config.json", str(folder), check_local_file_exists=True) == Path("config.json")
    with pytest.raises(CheckpointError, match="no such file"):
        loaders.hf_get("none.json", str(folder))
    with pytest.raises(CheckpointError, match="hf://owner/name does not name a file"):
        loaders.hf_get("hf://owner/name")
