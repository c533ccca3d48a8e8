"""The ways in which Kyutai's scripts import, with `slipstream.moshi` in place of `moshi`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs the extra torch")

LINES = [
    "from slipstream.moshi.models import loaders, MimiModel, LMModel, LMGen",
    "from slipstream.moshi import loaders, MimiModel, LMModel, LMGen",
    "from slipstream import moshi; moshi.models.loaders.CheckpointInfo.from_hf_repo; moshi.models.LMGen",
    "import slipstream.moshi.models; slipstream.moshi.models.loaders.get_mimi",
    "from slipstream.moshi.models.loaders import CheckpointInfo, get_mimi, get_moshi_lm, MIMI_NAME, DEFAULT_REPO",
    "from slipstream.moshi.models.lm import LMGen, LMModel",
    "from slipstream.moshi.models.compression import MimiModel",
    "from slipstream.moshi.conditioners import ConditionAttributes, ConditionTensors, ConditionType, TensorCondition",
    "from slipstream.moshi.run_inference import InferenceState, get_condition_tensors, main",
    "from slipstream.moshi.client_utils import AnyPrinter, Printer, RawPrinter, colorize, log, make_log",
    "from slipstream.moshi.models.loaders import hf_get",
    "from slipstream.moshi.models.lm import LMOutput",
    "import slipstream.moshi.models.loaders as loaders; assert loaders.FRAME_RATE == 12.5",
]


@needs_torch
def test_every_way_of_importing():
    # One fresh interpreter each would cost seconds; one for all would let an early line help a later one.
    forget = "\nfor name in [n for n in sys.modules if n.startswith('slipstream.moshi')]: del sys.modules[name]\n"
    program = "import sys\n" + forget.join(LINES)
    subprocess.run([sys.executable, "-c", program], check=True)


def test_slipstream_itself_stays_light():
    program = "import sys, slipstream; assert not {'torch', 'slipstream.moshi'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_help_of_the_command_line_needs_no_torch():
    program = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv[1:] = ['--help']; "
        "runpy.run_module('slipstream.moshi.run_inference', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "--hf-repo" in run.stdout


def test_an_unknown_name_is_an_attribute_error():
    import slipstream.moshi

    with pytest.raises(AttributeError, match="no attribute 'TTSModel'"):
        slipstream.moshi.TTSModel  # noqa: B018
