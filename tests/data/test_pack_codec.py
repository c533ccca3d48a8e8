"""Packs of tokens name their codec, and are checked against the one that a model is trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from tests.models import with_decoder
from tests.train import world

from slipstream.data.pack_codec import check_tokens, codec_fingerprint
from slipstream.data.packs import Clip, Pack, PackCodec, PackKind, write_pack
from slipstream.errors import ConfigError
from slipstream.nn.mimi import Mimi

CLIPS = (Clip(0, 0, "one", "en", "a", "s"), Clip(0, 0, "two", "en", "a", "s"))


def codec(seed: int = 0) -> Mimi:
    torch.manual_seed(seed)
    return Mimi(world.config().codec)


def pack(folder: Path, token: int = 63, silence: float = 0.0, made_with: PackCodec | None = None) -> Pack:
    """Two clips of three rows; `token` is in the second row of the second clip, in codebook 2."""
    codes = np.zeros((2, 3, 4), np.int64)
    codes[1, 1, 2] = token
    write_pack(folder, PackKind("tokens", 4, 12.5, (silence,) * 4), zip(codes, CLIPS, strict=True), codec=made_with)
    return Pack(folder)


def test_a_fingerprint_is_that_of_the_weights_that_tokens_depend_on() -> None:
    first = codec_fingerprint(codec())
    assert len(first) == 16
    fewer = Mimi(world.config().codec.model_copy(update={"num_codebooks": 2}))
    fewer.load_state_dict(codec().state_dict(), strict=False)
    assert codec_fingerprint(fewer) == first
    assert codec_fingerprint(codec().to(torch.bfloat16).float()) == first
    assert codec_fingerprint(codec(seed=1)) != first
    changed = codec()
    changed.quantizer.acoustic.codebooks[0].embedding_sum[3, 5] += 0.1
    assert codec_fingerprint(changed) != first


def test_a_fingerprint_does_not_depend_on_the_decoder() -> None:
    first = codec()
    with_one = Mimi(with_decoder(first.config, dim=24))
    own = with_one.state_dict()
    with_one.load_state_dict({n: t for n, t in first.state_dict().items() if own[n].shape == t.shape}, strict=False)
    assert codec_fingerprint(with_one) == codec_fingerprint(first)


def test_a_pack_whose_fingerprint_has_the_output_projections_is_accepted(tmp_path: Path) -> None:
    ours = codec()
    earlier = codec_fingerprint(ours, projections=True)
    assert earlier != codec_fingerprint(ours)
    check_tokens([pack(tmp_path, made_with=PackCodec("runs/ours", earlier))], ours, "base", 64)


def test_a_pack_of_another_codec_is_refused(tmp_path: Path) -> None:
    ours, other = codec(), codec(seed=1)
    made_with = PackCodec("runs/other", codec_fingerprint(other))
    packs = [
        pack(tmp_path / "old"),
        pack(tmp_path / "ours", made_with=PackCodec("runs/ours", codec_fingerprint(ours))),
        pack(tmp_path / "theirs", made_with=made_with),
    ]
    assert [one.codec and one.codec.model for one in packs] == [None, "runs/ours", "runs/other"]
    check_tokens(packs[:2], ours, "base", 64)
    with pytest.raises(ConfigError) as refused:
        check_tokens(packs, ours, "base", 64)
    again = f"`slipstream data pack MANIFEST --model base --out {tmp_path / 'theirs'}`"
    for part in (f"{tmp_path / 'theirs'} was made with the codec of runs/other", made_with.fingerprint, again):
        assert part in str(refused.value)


@pytest.mark.parametrize("token", [64, -1])
def test_a_token_that_the_model_does_not_have_is_named(tmp_path: Path, token: int) -> None:
    found = rf"pack: row 4 \('two'\) has the token {token} in codebook 2; the model's audio_vocab is 64, .* 0 to 63: "
    with pytest.raises(ConfigError, match=found):
        check_tokens([pack(tmp_path / "pack", token)], codec(), "base", 64)
    with pytest.raises(ConfigError, match="silence has the tokens"):
        check_tokens([pack(tmp_path / "pack", silence=token)], codec(), "base", 64)


def test_packs_of_samples_are_not_checked(tmp_path: Path) -> None:
    kind = PackKind("samples", 1, 24_000.0, (0.0,))
    write_pack(tmp_path / "pack", kind, [(np.full((9, 1), -300), CLIPS[0])])
    check_tokens([Pack(tmp_path / "pack")], codec(), "base", 64)
