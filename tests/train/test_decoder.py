"""A decoder learns from the tokens of a codec that does not change, and the exported model streams exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.models import codec_config, random_model, whisper_codec_config, with_decoder  # noqa: E402
from tests.models import stt_config as small_config  # noqa: E402
from tests.train import world  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from slipstream.bundle import ModelBundle  # noqa: E402
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from slipstream.cli import train as train_cli  # noqa: E402
from slipstream.data.packs import Clip, Pack, PackKind, write_pack  # noqa: E402
from slipstream.errors import CheckpointError, ConfigError  # noqa: E402
from slipstream.model.config import CodecConfig  # noqa: E402
from slipstream.model.names import is_decoder  # noqa: E402
from slipstream.nn.build import build_codec  # noqa: E402
from slipstream.nn.mimi import Mimi  # noqa: E402
from slipstream.train.artifacts import export_codec  # noqa: E402
from slipstream.train.decoder import DecoderTask, start_decoder  # noqa: E402
from slipstream.train.launch import load_codec, run_codec  # noqa: E402
from slipstream.train.loop import Trainer  # noqa: E402
from slipstream.train.options import CodecRun, DecoderOptions, read_run  # noqa: E402
from slipstream.train.reconstruction import CropSampler  # noqa: E402

TRANSFORMER = dict(codec_config().transformer.model_copy(update={"layer_scale": False}))
SHAPE = {"num_filters": 4, "transformer": TRANSFORMER}
DATASETS = {"chords": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`: a small model with Whisper's encoder and no decoder; `pack`: four utterances as samples."""
    folder = tmp_path_factory.mktemp("decoder")
    pieces = world.tokenizer(folder)
    config = small_config(codec="whisper")
    save_checkpoint(Checkpoint(config, *random_model(config), pieces), folder / "base", "kyutai")
    items = [
        (np.round(samples * 32767).astype(np.int16)[:, None], Clip(0, 0, "", "en", "chords", "sine"))
        for samples, _ in world.utterances(4)
    ]
    write_pack(folder / "pack", PackKind("samples", 1, 24_000.0, (0.0,)), items)
    return folder


def run_of(folder: Path, out: Path, run: dict[str, Any] | None = None, **more: Any) -> CodecRun:
    keys = {
        "run": {"out": out, "steps": 6, "rows": 4, "log_every": 1, "trackers": [], **(run or {})},
        "model": {"base": str(folder / "base")},
        "data": {"packs": [folder / "pack"], "weights": DATASETS, "seconds": 1.28},
        "decoder": {"shape": SHAPE},
        **more,
    }
    return CodecRun.model_validate(keys)


def trainer(options: CodecRun) -> Trainer:
    assert options.decoder is not None
    start = options.discriminator.start if options.discriminator else 0
    module, frozen, _ = start_decoder(options, options.decoder)
    packs = [Pack(path) for path in options.data.packs]
    sampler = CropSampler(packs, None, frozen.config, options.data.weights, options.data.seconds, 0)
    task = DecoderTask(module, frozen, sampler, options.loss, options.quantiser, start)
    return Trainer(task, options.run, lambda line: None)


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_loss_falls_and_the_exported_model_speaks_its_tokens(folder: Path, tmp_path: Path) -> None:
    valid = {"packs": [folder / "pack"], "rows": 4, "every": 20}
    data = {"packs": [folder / "pack"], "weights": DATASETS, "seconds": 1.28, "valid": valid}
    run = {"steps": 40, "rows": 2, "learning_rate": 5e-3, "average": 0.9}
    run_codec(run_of(folder, tmp_path, run, data=data, loss={"waveform": 0.0}), lambda line: None)
    log = log_of(tmp_path)
    losses = [line["loss"] for line in log if "loss" in line]
    valid_losses = [line["valid_loss"] for line in log if "valid_loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    assert valid_losses[1] < valid_losses[0]
    assert "chords" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "best" / "mimi.json").is_file()

    before = ModelBundle.resolve(folder / "base").checkpoint()
    after = ModelBundle.resolve(tmp_path / "model").checkpoint()
    assert after.config.codec.has_decoder
    assert after.config.lm == before.config.lm
    for name, array in before.lm.items():
        np.testing.assert_array_equal(after.lm[name], array)
    for name, array in before.codec.items():
        if not is_decoder(name):
            np.testing.assert_array_equal(after.codec[name], array)

    old, new = build_codec(before.config.codec, before.codec), build_codec(after.config.codec, after.codec)
    samples = torch.from_numpy(world.utterances(1)[0][0])[None]
    with torch.inference_mode():
        codes, _ = new.encode(samples)
        assert torch.equal(codes, old.encode(samples)[0])
        whole, _ = new.decode(codes)
        state, pieces = new.decoder_state(1), []
        for frame in codes.split(1, dim=-1):
            piece, state = new.decode(frame, state)
            pieces.append(piece)
    assert whole.shape == (1, codes.shape[-1] * 1920)
    assert whole.std() > 1e-4
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_outside_the_decoder_do_not_change(folder: Path, tmp_path: Path, dtype: str) -> None:
    run = trainer(run_of(folder, tmp_path, {"dtype": dtype, "steps": 2, "warmup": 0}))
    task = run.task
    assert isinstance(task, DecoderTask)
    frozen = {name: tensor.clone() for name, tensor in task.frozen.state_dict().items()}
    learns = {name: p.detach().clone() for name, p in task.module.codec.named_parameters() if p.requires_grad}
    assert all(is_decoder(name) for name in learns)
    assert {name.split(".")[0] for name in learns} == {"quantizer", "upsample", "decoder_transformer", "decoder"}
    run.run()
    now = task.frozen.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in frozen.items())
    moved = dict(task.module.codec.named_parameters())
    assert all(not torch.equal(moved[name], tensor) for name, tensor in learns.items())


def test_a_killed_run_with_a_discriminator_resumes_to_the_same_weights(folder: Path, tmp_path: Path) -> None:
    def options(out: str, **changes: object) -> CodecRun:
        judge = {"windows": [512, 128], "filters": 2, "start": 3}
        data = {"packs": [folder / "pack"], "weights": DATASETS, "seconds": 0.64}
        more = {"data": data, "discriminator": judge, "quantiser": {"codebook_dropout": 0.5}}
        return run_of(folder, tmp_path / out, {"rows": 2, **changes}, **more)

    whole = torch.load(trainer(options("whole")).run(), weights_only=True)["weights"]
    log = log_of(tmp_path / "whole")
    assert ["adversarial" in line for line in log] == [False] * 3 + [True] * 3
    assert {"features", "discriminator"} <= log[-1].keys()
    world.kill_at(5, trainer(options("killed", checkpoint_every=4)))
    resumed = torch.load(trainer(options("killed")).run(), weights_only=True)["weights"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(name.startswith("discriminator.") for name in whole)


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    run = trainer(run_of(folder, tmp_path))
    task = run.task
    assert isinstance(task, DecoderTask)
    with torch.no_grad():
        task.module.codec.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="the loss is nan"):
        run.run()


def test_the_target_is_the_audio_that_the_tokens_hold(folder: Path, tmp_path: Path) -> None:
    """The encoder is 1.5 frames late here: the tokens of frame 2 begin half a frame after the start of the row."""
    config = whisper_codec_config(lookahead=2)
    assert config.delay_frames == 1.5
    torch.manual_seed(0)
    export_codec(Mimi(config), tmp_path / "base")
    options = run_of(folder, tmp_path / "run", model={"base": str(tmp_path / "base")})
    task = trainer(options).task
    assert isinstance(task, DecoderTask)
    batch = task.batch(0, 2)
    said: list[Any] = []
    synthesise = task.module.codec.synthesise

    def remembered(latent: Any, state: Any = None) -> Any:
        samples, state = synthesise(latent, state)
        said.append(samples)
        heard = torch.from_numpy(batch.samples_BS)
        return torch.nn.functional.pad(heard[:, 960:], (0, 1920))[:, : samples.shape[1]], state

    task.module.codec.synthesise = remembered  # type: ignore[method-assign]
    loss, numbers = task.loss(batch, 0, 0.0)
    assert said[0].shape == (2, 14 * 1920)
    assert numbers["waveform"].item() == 0
    assert loss.item() == 0


def test_a_waveform_codecs_own_decoder_is_trained_further(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    codec = Mimi(codec_config())
    export_codec(codec, tmp_path / "base")
    keys = {"model": {"base": str(tmp_path / "base")}, "decoder": {}}
    run_codec(run_of(folder, tmp_path / "run", {"steps": 1, "learning_rate": 1e-9}, **keys), lambda line: None)
    assert not (tmp_path / "run" / "model").exists()
    after = load_codec(str(tmp_path / "run" / "codec"))
    assert after.config == codec.config
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(tensor, codec.state_dict()[name], atol=1e-6, rtol=0)
    module, _, _ = start_decoder(run_of(folder, tmp_path / "fresh", **keys), DecoderOptions(fresh=True))
    assert not torch.equal(module.codec.decoder.conv_in.weight, codec.decoder.conv_in.weight)


def test_a_decoder_is_trained_further_with_the_shape_that_it_has(folder: Path, tmp_path: Path) -> None:
    config = with_decoder(small_config(codec="whisper").codec)
    torch.manual_seed(0)
    codec = Mimi(config)
    export_codec(codec, tmp_path / "base")
    options = run_of(folder, tmp_path / "run", model={"base": str(tmp_path / "base")}, decoder={})
    assert options.decoder is not None
    module, _, _ = start_decoder(options, options.decoder)
    assert module.codec.config == config
    assert all(torch.equal(tensor, codec.state_dict()[name]) for name, tensor in module.tensors().items())


def test_the_run_in_configs_is_one() -> None:
    run = read_run(Path("configs/decoder.toml"), CodecRun)
    assert run.decoder is not None
    fields = ModelBundle.resolve("tiny").config.codec.model_dump()
    config = CodecConfig.model_validate(fields | {"decoder": run.decoder.shape})
    assert (config.decoder_stride, config.output_dim) == (2, 256)
    assert run.discriminator is not None
    assert run.discriminator.start < (run.run.steps or 0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": {"init": "tiny"}}, "takes base alone"),
        ({"model": {}}, "takes base alone"),
        ({"distil": {"teacher": "whisper:base"}}, "leave out distil and phase"),
        ({"decoder": None}, "model.base keeps a codec as it is"),
    ],
)
def test_keys_that_do_not_go_with_a_decoder_are_refused(
    folder: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_of(folder, tmp_path, **keys)


def test_invalid_decoder_options_are_refused(folder: Path, tmp_path: Path) -> None:
    export_codec(Mimi(codec_config()), tmp_path / "base")
    wrong = run_of(folder, tmp_path / "run", model={"base": str(tmp_path / "base")})
    with pytest.raises(ConfigError, match="decoder is for a codec with mel or whisper"):
        run_codec(wrong, lambda line: None)
    short = run_of(folder, tmp_path / "run", data={"packs": [folder / "pack"], "weights": DATASETS, "seconds": 0.24})
    with pytest.raises(ConfigError, match=r"the codec's tokens are 0.24 s late; use more"):
        run_codec(short, lambda line: None)


def test_a_check_writes_rows_as_audio_and_does_not_train(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "decoder.toml"
    transformer = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TRANSFORMER.items())
    path.write_text(
        f"[run]\nout = {json.dumps(str(tmp_path / 'run'))}\nsteps = 500\nrows = 2\n"
        f"[model]\nbase = {json.dumps(str(folder / 'base'))}\n"
        f"[data]\npacks = [{json.dumps(str(folder / 'pack'))}]\nweights = {{ chords = 1.0 }}\nseconds = 0.8\n"
        f"[decoder.shape]\nnum_filters = 4\n[decoder.shape.transformer]\n{transformer}\n",
        encoding="utf-8",
    )
    result = CliRunner().invoke(train_cli.app, ["codec", str(path), "--check", "--row", "2"], catch_exceptions=False)
    assert "s per step, 500 steps: " in result.output
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["check"]
    assert sorted(entry.name for entry in (tmp_path / "run" / "check").iterdir()) == [f"row-{n}.wav" for n in (2, 3, 4)]
