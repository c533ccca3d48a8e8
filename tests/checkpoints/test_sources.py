"""Where the parts of a checkpoint come from, without a network: folders, built-ins, the hub's cache, single files."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.models import stt_config

from slipstream.checkpoints import sources
from slipstream.checkpoints.kyutai import dump_kyutai
from slipstream.checkpoints.mimi import dump_codec
from slipstream.checkpoints.sources import Adapter, Sources, built_in_models, resolve
from slipstream.checkpoints.tensors import write_tensors
from slipstream.checkpoints.transformers import dump_config
from slipstream.errors import CheckpointError, ConfigError
from slipstream.model.config import FileNames

CONFIG = stt_config(conditioners=()).model_copy(
    update={"files": FileNames(lm="lm.safetensors", codec="mimi@1.safetensors", codec_config="mimi.json")}
)
FILES = ("lm.safetensors", "mimi@1.safetensors", CONFIG.files.tokenizer)


def fill(folder: Path, **changes: Any) -> Path:
    """A folder with the files of a checkpoint: the configuration, an LM of only its pause heads, empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dump_kyutai(CONFIG) | changes))
    (folder / "mimi.json").write_text(json.dumps(dump_codec(CONFIG.codec)))
    for name in FILES:
        (folder / name).touch()
    write_heads(folder, CONFIG.lm.pause_heads)
    return folder


def write_heads(folder: Path, count: int) -> None:
    weight = np.zeros((CONFIG.lm.pause_classes, CONFIG.lm.transformer.dim), np.float32)
    write_tensors(folder / CONFIG.files.lm, {f"extra_heads.{k}.weight": weight for k in range(count)} | {"x": weight})


def fill_transformers(folder: Path, *, shards: int = 1, extras: bool = True) -> Path:
    folder.mkdir(parents=True)
    for name, content in dump_config(CONFIG, "float32").items():
        (folder / name).write_text(json.dumps(content))
    names = ["model.safetensors"] if shards == 1 else [f"model-{i}-of-{shards}.safetensors" for i in range(shards)]
    if shards > 1:
        index = {"weight_map": {f"tensor.{i}": name for i, name in enumerate(names * 2)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in [*names, CONFIG.files.tokenizer, *(["extras.safetensors"] if extras else [])]:
        (folder / name).touch()
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a repository into the hub's cache, as a download leaves it. The hub itself is never reached."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository: str, revision: str = "main", commit: str = "a" * 40, **changes: Any) -> Path:
        base = cache / f"models--{repository.replace('/', '--')}"
        (base / "refs").mkdir(parents=True, exist_ok=True)
        (base / "refs" / revision).write_text(commit)
        return fill(base / "snapshots" / commit, **changes)

    return put


def lying_in(folder: Path) -> Sources:
    lm, codec, tokenizer = (folder / name for name in FILES)
    return Sources(CONFIG, (lm,), (codec,), tokenizer)


# ------------------------------------------------------------------------------------------------------------ folders


def test_a_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    assert resolve(folder) == resolve(str(folder)) == lying_in(folder)


@pytest.mark.parametrize("name", ["config.json", "mimi.json", *FILES])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = fill(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: no such file"):
        resolve(folder)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; the folder of a model has one"):
        resolve(tmp_path)


def test_a_wrong_key_is_named_with_its_file(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model", num_layer=3)
    with pytest.raises(ConfigError, match=r"model/config\.json: unknown key 'num_layer' .* 'num_layers'"):
        resolve(folder)


def test_an_adapter_is_found_with_its_scaling(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model", lora=True, lora_name="lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: no such file"):
        resolve(folder)
    (folder / "lora.safetensors").touch()
    assert resolve(folder).adapter == Adapter(folder / "lora.safetensors", 2.0)
    fill(folder, lora=True, lora_name="lora.safetensors", lora_scaling=0.5)
    assert resolve(folder).adapter == Adapter(folder / "lora.safetensors", 0.5)


@pytest.mark.parametrize("half", [{"lora": True}, {"lora_name": "lora.safetensors"}])
def test_an_adapter_needs_both_of_its_keys(tmp_path: Path, half: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model/config\.json: lora=\w+, lora_name=\S+: an adapter needs both"):
        resolve(fill(tmp_path / "model", **half))


def test_an_unknown_name_is_an_error_that_states_what_is_accepted(tmp_path: Path) -> None:
    file = fill(tmp_path / "model") / "lm.safetensors"
    with pytest.raises(CheckpointError, match="is a file: give its folder"):
        resolve(file)
    with pytest.raises(CheckpointError, match=r"not a folder, a repository id \(owner/name\) or a built-in"):
        resolve("no-such-model")


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "/nowhere", "~/nowhere", "a/b/c", "a\\b"])
def test_a_path_is_not_requested_from_the_hub(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(name)}: no such folder$"):
        resolve(name)


def test_a_near_miss_of_a_known_name_is_recognised() -> None:
    with pytest.raises(CheckpointError, match=r"; did you mean 'tiny'\?$"):
        resolve("tiyn")


def test_a_published_name_is_not_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.checkpoints.sources.hub_answers", lambda: False)
    with pytest.raises(CheckpointError, match=r"or give a folder$"):
        resolve("kyutai/tts-1.6b-en_fr")


def test_a_folder_with_only_a_gguf_file_is_reported(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    (folder / "lm.safetensors").rename(folder / "lm-q4k.gguf")
    with pytest.raises(CheckpointError, match=r"lm-q4k\.gguf is there, but GGUF files are not supported"):
        resolve(folder)


@pytest.mark.parametrize(
    ("stated", "in_file", "expected"),
    [(None, 0, 0), (None, 4, 4), (4, 4, 4), (4, 0, 0), (2, 4, 2), (0, 4, 0)],
)
def test_the_file_gives_the_pause_heads_if_the_configuration_does_not(
    stated: int | None, in_file: int, expected: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fill(tmp_path / "model", extra_heads_num_heads=stated)
    write_heads(folder, in_file)
    assert resolve(folder).config.lm.pause_heads == expected
    assert ("turns end by loudness" in caplog.text) == (stated == 4 and in_file == 0)


def test_a_built_in_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BUILT_IN", tmp_path / "models")
    assert built_in_models() == ()
    folder = fill(tmp_path / "models" / "tiny")
    (tmp_path / "models" / "unfinished").mkdir()
    assert built_in_models() == ("tiny",)
    assert resolve("tiny") == lying_in(folder)
    with pytest.raises(CheckpointError, match=r"or a built-in model \(tiny\)"):
        resolve("tyni")


# ---------------------------------------------------------------------------------------------------------- overrides


def test_each_part_can_come_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "model")
    for name in FILES:
        (folder / name).unlink()
    for name in ("lm", "codec", "tokenizer"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found = resolve(folder, lm=tmp_path / "lm", codec=f"file://{tmp_path}/codec", tokenizer="tokenizer")
    assert found == Sources(CONFIG, (tmp_path / "lm",), (tmp_path / "codec",), Path("tokenizer"))
    with pytest.raises(CheckpointError, match="other: no such file"):
        resolve(folder, lm="other")


def test_the_configurations_can_come_from_elsewhere(tmp_path: Path) -> None:
    folder, other = fill(tmp_path / "model"), fill(tmp_path / "other", context=99)
    assert resolve(folder, config=other / "config.json").config.lm.transformer.context == 99
    (other / "mimi.json").write_text(json.dumps(dump_codec(CONFIG.codec.model_copy(update={"num_filters": 77}))))
    assert resolve(folder, codec_config=other / "mimi.json").config.codec.num_filters == 77


def test_a_part_from_another_repository(tmp_path: Path, cached: Callable[..., Path]) -> None:
    snapshot = cached("owner/name")
    found = resolve(fill(tmp_path / "model"), codec="hf://owner/name/mimi@1.safetensors")
    assert found.codec == (snapshot / "mimi@1.safetensors",)
    with pytest.raises(CheckpointError, match="hf://owner/name does not name a file: expected hf://owner/repo/file"):
        resolve(tmp_path / "model", codec="hf://owner/name")


def test_a_configuration_can_name_a_file_of_another_repository(tmp_path: Path, cached: Callable[..., Path]) -> None:
    snapshot = cached("owner/name")
    folder = fill(tmp_path / "model", mimi_name="hf://owner/name/mimi@1.safetensors")
    assert resolve(folder).codec == (snapshot / "mimi@1.safetensors",)


# ------------------------------------------------------------------------------------------------------------ the hub


def test_a_repository_in_the_cache(cached: Callable[..., Path]) -> None:
    snapshot = cached("owner/name")
    assert resolve("owner/name") == resolve("hf://owner/name") == lying_in(snapshot)


def test_a_revision_applies_to_its_repository_only(cached: Callable[..., Path]) -> None:
    cached("owner/name")
    old = cached("owner/name", revision="v1", commit="b" * 40, context=99)
    other = cached("owner/other")
    found = resolve("owner/name", revision="v1", codec="hf://owner/other/mimi@1.safetensors")
    assert found.config.lm.transformer.context == 99
    assert found.lm == (old / "lm.safetensors",)
    assert found.codec == (other / "mimi@1.safetensors",)
    found = resolve("owner/name", revision="v1", codec="hf://owner/name/mimi@1.safetensors")
    assert found.codec == (old / "mimi@1.safetensors",)


def test_offline_and_not_cached_is_an_error_with_a_remedy(cached: Callable[..., Path]) -> None:
    message = r"config\.json of owner/none on the hub is not in the hub's cache.*HF_HUB_OFFLINE.*download it once"
    with pytest.raises(CheckpointError, match=message):
        resolve("owner/none")
    (cached("owner/name") / "lm.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lm\.safetensors of owner/name .* is not in the hub's cache"):
        resolve("owner/name")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", r"owner/name is gated: accept its terms at https://huggingface\.co/owner/name, then log in"),
        ("RepositoryNotFoundError", "there is no owner/name on the hub, and no folder of that name here"),
        ("RevisionNotFoundError", "owner/name has no revision 'v2'"),
        ("EntryNotFoundError", r"owner/name on the hub at revision v2 has no file config\.json"),
        ("HfHubHTTPError", r"config\.json of owner/name on the hub at revision v2 cannot be fetched: server down"),
    ],
)
def test_errors_of_the_hub_are_explained(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    # Newer versions have a separate error for files that the hub reports as missing.
    kind = getattr(errors, f"Remote{error}", getattr(errors, error))

    def refuse(*_: object, **__: object) -> None:
        raise kind("server down", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(sources, "_hub_answers", lambda minute: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=message):
        resolve("owner/name", revision="v2")


def test_an_unreachable_hub_is_asked_once_and_the_message_has_the_close_matches(tmp_path: Path) -> None:
    """In a separate process: the hub library reads its settings when it is imported, and logs to standard error."""
    (tmp_path / "hub/models--someone--stt-1b-en_fr-mine").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as hub:
        asked = []

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = hub.accept()
                    asked.append(connection.recv(4))
                    connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        run = subprocess.run(
            [sys.executable, "-m", "slipstream", "transcribe", __file__, "--model", "someone/stt-1b-en_fr-mime"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={
                **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}",
                "HF_HUB_CACHE": str(tmp_path / "hub"),
                "HF_HUB_OFFLINE": "0",
            },
        )
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: config.json of someone/stt-1b-en_fr-mime on the hub is not in the hub's cache")
    assert line.endswith("; did you mean 'someone/stt-1b-en_fr-mine'?")
    assert asked.count(b"HEAD") == 1


# ------------------------------------------------------------------------------------------------------- transformers


def test_a_checkpoint_of_transformers(tmp_path: Path) -> None:
    folder = fill_transformers(tmp_path / "model")
    model = folder / "model.safetensors"
    found = resolve(folder)
    assert found.lm == (model, folder / "extras.safetensors")
    assert found.codec == (model,)
    assert found.config.lm == CONFIG.lm
    assert found.config.codec == CONFIG.codec


def test_a_checkpoint_of_transformers_in_pieces(tmp_path: Path) -> None:
    folder = fill_transformers(tmp_path / "model", shards=3)
    pieces = tuple(folder / f"model-{i}-of-3.safetensors" for i in range(3))
    found = resolve(folder)
    assert found.codec == pieces
    assert found.lm == (*pieces, folder / "extras.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match="weight_map must name the file of each tensor"):
        resolve(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        resolve(folder)


def test_the_delay_is_read_from_either_processor_file(tmp_path: Path) -> None:
    folder = fill_transformers(tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    del raw["slipstream"]["stt_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    assert resolve(folder).config.delay_seconds == 0.5
    inner = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: no such file"):
        resolve(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"feature_extractor": {**inner, "audio_delay_seconds": 2.5}})
    )
    found = resolve(folder).config
    assert (found.delay_seconds, found.delay_frames) == (2.5, 32)
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json lacks audio_delay_seconds"):
        resolve(folder)


def test_a_missing_tokenizer_of_transformers_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    folder = fill_transformers(tmp_path / "model")
    (folder / CONFIG.files.tokenizer).unlink()
    with pytest.raises(CheckpointError, match="no SentencePiece model; pass one as the tokenizer, such as hf://kyutai"):
        resolve(folder)
