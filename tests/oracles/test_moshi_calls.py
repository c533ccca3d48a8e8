"""The calls of the published `moshi` package give the same through `slipstream.moshi`, first frame and all."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.fakes import tiny_tokenizer, tokenizer_path  # noqa: E402
from tests.models import codec_config, lm_config, noise_and_tones, random_model, stt_config  # noqa: E402
from tests.oracles.moshi_oracle import lm_pair, mimi_pair, moshi, random_events  # noqa: E402

import slipstream.moshi.models  # noqa: E402
from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint  # noqa: E402
from slipstream.checkpoints.tensors import write_tensors  # noqa: E402
from slipstream.moshi.models import LMGen, LMModel, MimiModel  # noqa: E402

OURS, THEIRS = slipstream.moshi.models, moshi.models
SLOTS = 4


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------------------ names and values


@pytest.mark.parametrize(
    "path",
    [
        "LMGen.__init__",
        "LMGen.step",
        "LMGen.step_with_extra_heads",
        "LMGen.streaming",
        "LMGen.streaming_forever",
        "LMGen.reset_streaming",
        "LMGen.set_exec_mask",
        "MimiModel.encode",
        "MimiModel.decode",
        "MimiModel.encode_to_latent",
        "MimiModel.decode_latent",
        "MimiModel.set_num_codebooks",
        "MimiModel.streaming",
        "MimiModel.streaming_forever",
        "MimiModel.reset_streaming",
        "MimiModel.set_exec_mask",
        "loaders.get_mimi",
        "loaders.get_moshi_lm",
        "loaders.CheckpointInfo.from_hf_repo",
        "loaders.CheckpointInfo.get_mimi",
        "loaders.CheckpointInfo.get_moshi",
        "loaders.CheckpointInfo.get_text_tokenizer",
    ],
)
def test_arguments_have_their_names_order_and_defaults(path):
    ours, theirs = OURS, THEIRS
    for name in path.split("."):
        ours, theirs = getattr(ours, name), getattr(theirs, name)
    parameters = [list(inspect.signature(call).parameters.values()) for call in (ours, theirs)]
    assert [p.name for p in parameters[0]] == [p.name for p in parameters[1]]
    for own, reference in zip(*parameters, strict=True):
        assert own.kind == reference.kind
        assert (own.default or None) == (reference.default or None), own.name


def test_checkpoint_info_has_their_fields():
    fields = [[field.name for field in dataclasses.fields(m.loaders.CheckpointInfo)] for m in (OURS, THEIRS)]
    assert fields[0] == fields[1]


@pytest.mark.parametrize(
    "name", ["SAMPLE_RATE", "FRAME_RATE", "TEXT_TOKENIZER_NAME", "MOSHI_NAME", "MIMI_NAME", "DEFAULT_REPO"]
)
def test_constants(name):
    assert getattr(OURS.loaders, name) == getattr(THEIRS.loaders, name)


def test_properties_of_mimi():
    codec, theirs = mimi_pair(codec_config())
    ours = MimiModel(codec)
    for n in (6, 4):
        ours.set_num_codebooks(n), theirs.set_num_codebooks(n)
        for name in (
            "sample_rate",
            "frame_rate",
            "frame_size",
            "channels",
            "dimension",
            "cardinality",
            "num_codebooks",
            "total_codebooks",
            "is_streaming",
        ):
            assert getattr(ours, name) == getattr(theirs, name), name


def test_properties_of_the_lm():
    lm, theirs = lm_pair(lm_config(conditioners=()), torch.bfloat16)
    ours = LMModel(lm).eval()
    for name in (
        "n_q",
        "dep_q",
        "card",
        "text_card",
        "dim",
        "context",
        "delays",
        "num_codebooks",
        "num_audio_codebooks",
        "audio_offset",
        "initial_token_id",
        "text_initial_token_id",
        "text_padding_token_id",
        "end_of_text_padding_id",
        "zero_token_id",
        "ungenerated_token_id",
        "device",
        "dtype",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours.extra_heads) == len(theirs.extra_heads)
    x = torch.randn(2, 3, ours.dim, dtype=torch.bfloat16)
    for own, reference in zip(ours.extra_heads, theirs.extra_heads, strict=True):
        torch.testing.assert_close(own(x), reference(x))


# ------------------------------------------------------------------------------------------------- LMGen, by steps


def lm_gens(**arguments) -> tuple[LMGen, object]:
    lm, theirs = lm_pair(lm_config(conditioners=()))
    return LMGen(LMModel(lm).eval(), **arguments), THEIRS.LMGen(theirs, **arguments)


def random_codes(lm_gen: LMGen, steps: int) -> torch.Tensor:
    return torch.randint(0, lm_gen.lm_model.card, (steps, SLOTS, lm_gen.lm_model.n_q, 1))


@pytest.mark.parametrize("support_out_of_sync", [False, True])
def test_each_step_of_streams_reset_and_paused_at_random(support_out_of_sync):
    ours, theirs = lm_gens(temp=0.0, temp_text=0.0, check=True, support_out_of_sync=support_out_of_sync)
    ungenerated = 0
    with ours.streaming(SLOTS), theirs.streaming(SLOTS):
        for step, (codes, (reset, active)) in enumerate(
            zip(random_codes(ours, 150), random_events(150, SLOTS), strict=True)
        ):
            for lm_gen in (ours, theirs):
                # In either order, for a reset lets a slot advance again; and now and then neither.
                if step % 3 == 0:
                    lm_gen.set_exec_mask(active)
                    lm_gen.reset_streaming(reset)
                elif step % 3 == 1:
                    lm_gen.reset_streaming(reset)
                    lm_gen.set_exec_mask(active)
            expected = theirs.step(codes)
            ours_text = ours.step(codes)
            assert ours_text.equal(expected)
            assert ours_text.dtype == expected.dtype
            ungenerated += int((expected == ours.lm_model.ungenerated_token_id).sum())
    assert 50 < ungenerated < 300


def test_a_reset_of_all_slots_and_a_second_streaming():
    ours, theirs = lm_gens(use_sampling=False)
    codes = random_codes(ours, 12)
    for _ in range(2):
        with ours.streaming(SLOTS), theirs.streaming(SLOTS):
            for step, frame in enumerate(codes):
                if step == 7:
                    ours.reset_streaming(), theirs.reset_streaming()
                text, heads = ours.step_with_extra_heads(frame)
                their_text, their_heads = theirs.step_with_extra_heads(frame)
                assert text.equal(their_text)
                torch.testing.assert_close(heads, their_heads, atol=1e-5, rtol=0)


def test_more_rows_than_the_lm_reads_are_ignored():
    ours, theirs = lm_gens(use_sampling=False)
    codes = torch.cat([random_codes(ours, 8)] * 2, dim=2)
    with ours.streaming(SLOTS), theirs.streaming(SLOTS):
        for frame in codes:
            assert ours.step(frame).equal(theirs.step(frame))


def test_tokens_without_content():
    ours, theirs = lm_gens(use_sampling=False, check=True)
    codes = random_codes(ours, 20)
    codes[torch.rand(codes.shape) < 0.5] = ours.lm_model.zero_token_id
    with ours.streaming(SLOTS), theirs.streaming(SLOTS):
        for frame in codes:
            assert ours.step(frame).equal(theirs.step(frame))


class Prompt:
    """Forces the tokens of a prompt, pads between them allowed, through the hooks that prompted scripts use."""

    def __init__(self, tokens: list[int]) -> None:
        self.left = list(tokens)

    def on_logits(self, logits: torch.Tensor) -> None:
        if self.left:
            allowed = torch.tensor([0, 3, self.left[0]])
            masked = torch.full_like(logits, -torch.inf)
            masked[..., allowed] = logits[..., allowed]
            logits[:] = masked

    def on_token(self, token: torch.Tensor) -> None:
        if self.left and token.item() not in (0, 3):
            assert token.item() == self.left.pop(0)


def test_hooks_force_a_prompt():
    prompt = [9, 17, 9, 31, 22]
    texts = []
    for make, index in ((LMGen, 0), (THEIRS.LMGen, 1)):
        lm, theirs = lm_pair(lm_config(conditioners=()))
        model = (LMModel(lm).eval(), theirs)[index]
        hook = Prompt(prompt)
        lm_gen = make(model, temp=0, temp_text=0.0, on_text_hook=hook.on_token, on_text_logits_hook=hook.on_logits)
        torch.manual_seed(0)
        codes = torch.randint(0, 32, (60, 1, 5, 1))
        with lm_gen.streaming(1):
            texts.append([int(lm_gen.step(frame)) for frame in codes])
        assert not hook.left
    assert texts[0] == texts[1]
    assert [token for token in texts[0] if token not in (0, 3)][: len(prompt)] == prompt


def test_a_hook_that_rewrites_the_token_is_obeyed():
    def rewrite(tokens: torch.Tensor) -> None:
        tokens += 1
        tokens %= 40

    ours, theirs = lm_gens(use_sampling=False, on_text_hook=rewrite)
    with ours.streaming(SLOTS), theirs.streaming(SLOTS):
        for frame in random_codes(ours, 20):
            assert ours.step(frame).equal(theirs.step(frame))


# ---------------------------------------------------------------------------------------- checkpoints, and scripts


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    # The codec's ring is never full, so that their streaming is as their offline forward.
    transformer = codec_config().transformer.model_copy(update={"context": 300})
    config = stt_config(text_vocab=tiny_tokenizer().vocab_size, conditioners=()).model_copy(
        update={"codec": codec_config(transformer=transformer), "silence_prefix_seconds": 0.4}
    )
    lm, codec = random_model(config, seed=2)
    lm["text_linear.weight"][[0, 3]] *= 2  # word boundaries and pads are common
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer_path()), folder, "kyutai")
    return folder


def checkpoint_info(models, folder: Path, **overrides):
    raw = json.loads((folder / "config.json").read_text())
    files = {
        "moshi_weights": folder / raw["moshi_name"],
        "mimi_weights": folder / raw["mimi_name"],
        "tokenizer": folder / raw["tokenizer_name"],
        "config_path": folder / "config.json",
        "mimi_config_path": folder / raw["mimi_config_name"],
    }
    # Their hub would be asked for any file that is not named here; ours would look into the folder.
    return models.loaders.CheckpointInfo.from_hf_repo(str(folder), **{**files, **overrides})


def test_a_checkpoint_has_the_same_content(folder):
    ours, theirs = (dataclasses.asdict(checkpoint_info(models, folder)) for models in (OURS, THEIRS))
    assert ours == theirs


@pytest.mark.parametrize("fuse_lora", [False, True])
def test_a_checkpoint_with_an_adapter_gives_the_same_logits(folder, tmp_path, fuse_lora):
    raw = json.loads((folder / "config.json").read_text())
    config_path = tmp_path / "config.json"
    config_path.write_text(json.dumps(raw | {"lora": True, "lora_rank": 4, "lora_scaling": 2.0}))
    adapter = {}
    plain = checkpoint_info(THEIRS, folder).get_moshi(dtype=torch.float32)
    rng = np.random.default_rng(3)
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.startswith("depformer_in"):
            rows, columns = module.weight.shape
            adapter[f"{name}.lora_A.weight"] = 0.1 * rng.standard_normal((4, columns)).astype(np.float32)
            adapter[f"{name}.lora_B.weight"] = 0.1 * rng.standard_normal((rows, 4)).astype(np.float32)
    path = tmp_path / "lora.safetensors"
    write_tensors(path, adapter)
    sequence = torch.randint(0, 32, (2, 6, 30))
    logits = []
    for models in (OURS, THEIRS):
        info = checkpoint_info(models, folder, config_path=config_path, lora_weights=path)
        lm = info.get_moshi(dtype=torch.float32, fuse_lora=fuse_lora)
        logits.append(lm.forward_text(sequence)[1])
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits[0], plain.forward_text(sequence)[1], atol=0.1)


@pytest.mark.parametrize("grown", [False, True])
def test_what_training_exports_loads_in_theirs(folder, tmp_path, grown):
    """The adapter on its base, and the merged model; with new pieces, which their base has no rows for, merged."""
    from slipstream.checkpoints.checkpoint import read_checkpoint
    from slipstream.checkpoints.sources import resolve
    from slipstream.nn.build import build_lm
    from slipstream.train.artifacts import export_lm
    from slipstream.train.lora import add_lora, merged_weights, write_adapter
    from slipstream.train.options import LoraOptions

    base, options = read_checkpoint(resolve(folder)), LoraOptions(rank=4, pause_heads=True)
    lm = build_lm(base.config.lm, base.lm)
    add_lora(lm, options, base.config.lm.text_vocab - 5 if grown else None)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    export_lm(merged_weights(lm), base, tmp_path, dtype="float32")
    write_adapter(lm, base.config, options, tmp_path)
    given = {"config_path": tmp_path / "adapter.json", "lora_weights": tmp_path / "adapter.safetensors"}
    sequence = torch.randint(0, 32, (2, 6, 30))
    logits = [
        info.get_moshi(dtype=torch.float32).forward_text(sequence)[1]
        for models in (OURS, THEIRS)
        for info in (checkpoint_info(models, tmp_path), checkpoint_info(models, folder, **given))
    ]
    for others in logits[1:]:
        torch.testing.assert_close(others, logits[0], atol=1e-4, rtol=1e-4)


def frames_of_a_file(mimi, info) -> list[torch.Tensor]:
    """Audio as the published script prepares it: whole frames between silence before and the delay after."""
    audio = torch.from_numpy(noise_and_tones(4.0))[None, None]
    audio = torch.nn.functional.pad(audio, (0, -audio.shape[-1] % mimi.frame_size))
    silence = torch.zeros(1, 1, mimi.frame_size)
    before, after = (
        int(np.ceil(info.stt_config[key] * mimi.frame_rate))
        for key in ("audio_silence_prefix_seconds", "audio_delay_seconds")
    )
    return [silence] * before + list(audio.split(mimi.frame_size, dim=-1)) + [silence] * after


def script_from_file(models, folder: Path):
    """What the file script does: one step a frame inside both contexts, all tokens in one tensor, words by token 0."""
    info = checkpoint_info(models, folder)
    mimi = info.get_mimi(device="cpu")
    tokenizer = info.get_text_tokenizer()
    lm = info.get_moshi(device="cpu", dtype=torch.float32)
    lm_gen = models.LMGen(lm, temp=0, temp_text=0.0)
    padding = info.raw_config.get("text_padding_token_id", 3)
    pieces = []
    with mimi.streaming(1), lm_gen.streaming(1):
        for frame in frames_of_a_file(mimi, info):
            tokens = lm_gen.step(mimi.encode(frame))
            if tokens is not None:
                pieces.append(tokens)
    text = torch.concat(pieces, dim=-1).cpu().view(-1)
    starts = torch.where(text == 0)[0].tolist()
    words = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        segment = text[start + 1 : end]
        words.append((tokenizer.decode(segment[segment > padding].numpy().tolist()), start / mimi.frame_rate))
    assert len(words) > 3
    return text.tolist(), words


def script_notebook(models, folder: Path):
    """What the notebook does: streams that never end, the first frame given twice, pieces instead of words."""
    info = checkpoint_info(models, folder)
    mimi, tokenizer = info.get_mimi(device="cpu"), info.get_text_tokenizer()
    lm_gen = models.LMGen(info.get_moshi(dtype=torch.float32), temp=0, temp_text=0, use_sampling=False)
    assert int(mimi.sample_rate / mimi.frame_rate) == mimi.frame_size
    mimi.streaming_forever(1)
    lm_gen.streaming_forever(1)
    pieces = []
    for step, frame in enumerate(frames_of_a_file(mimi, info)):
        codes = mimi.encode(frame)
        if step == 0:
            lm_gen.step(codes)
        tokens = lm_gen.step(codes)
        assert tokens.shape[1] == lm_gen.lm_model.dep_q + 1
        token = tokens[0, 0].cpu().item()
        if token not in (0, 3):
            pieces.append(tokenizer.id_to_piece(token).replace("▁", " "))
    return "".join(pieces)


def script_with_pauses(models, folder: Path):
    """The loop of live scripts: pause heads with each token, and a reset of everything after a pause."""
    info = checkpoint_info(models, folder)
    mimi = info.get_mimi()
    lm_gen = models.LMGen(info.get_moshi(dtype=torch.float32), temp=0, temp_text=0.0)
    told = []
    with mimi.streaming(1), lm_gen.streaming(1):
        for frame in frames_of_a_file(mimi, info):
            tokens, heads = lm_gen.step_with_extra_heads(mimi.encode(frame))
            pause = heads[2][0, 0, 0].cpu().item()
            told.append((tokens[0, 0, 0].item(), round(pause, 3)))
            if pause > 0.9:
                mimi.reset_streaming()
                lm_gen.reset_streaming()
    assert any(pause > 0.9 for _, pause in told)
    return told


@pytest.mark.parametrize("script", [script_from_file, script_notebook, script_with_pauses])
def test_scripts_run_after_changing_only_the_import(folder, script):
    assert script(OURS, folder) == script(THEIRS, folder)


def test_a_script_in_bf16_the_default(folder):
    info = checkpoint_info(OURS, folder)
    mimi, lm_gen = info.get_mimi(), LMGen(info.get_moshi(), temp=0, temp_text=0)
    with mimi.streaming(1), lm_gen.streaming(1):
        tokens = [lm_gen.step(mimi.encode(frame)).item() for frame in frames_of_a_file(mimi, info)]
    assert len(set(tokens)) > 10
