"""`slipstream serve` and `slipstream api-key`, as processes: from a folder of weights to words on a socket."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes import tiny_tokenizer, tokenizer_path
from tests.models import noise_and_tones, random_model, stt_config
from tests.server.harness import get, wait_for

from slipstream.checkpoints.checkpoint import Checkpoint, save_checkpoint
from slipstream.client import ServerError, transcribe
from slipstream.connections.keys import new_key


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, whose words are noise, but words."""
    folder = tmp_path_factory.mktemp("model")
    config = stt_config(text_vocab=tiny_tokenizer().vocab_size)
    lm, codec = random_model(config)
    save_checkpoint(Checkpoint(config, lm, codec, tokenizer_path()), folder, "kyutai")
    return folder


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command with these options, and the address that it reports."""
    command = [sys.executable, "-m", "slipstream", "serve", "--port", "0", "--backend", "onnx", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            seen = ""
            while not (found := re.search(r"Serving .* on (\S+)", seen.replace("\n", " "))):
                line = process.stderr.readline()
                assert line, f"the server ended: {seen}"
                seen += line
            yield process, found[1]
        finally:
            process.kill()


def test_from_weights_to_words_and_a_clean_end(model: Path) -> None:
    with served("--model", str(model), "--device", "cpu", "--slots", "2", "--limit", "idle_seconds=60") as (
        process,
        address,
    ):
        transcribed = transcribe(address, [noise_and_tones(3.0)])
        assert transcribe(address, [noise_and_tones(3.0)]) == transcribed
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        logs = [json.loads(line) for line in process.stderr.read().splitlines() if line.startswith("{")]
        assert process.wait(20) == 0
    assert transcribed.duration == 3.0
    closed = [line for line in logs if line["message"] == "stream closed"]
    assert [line["frames"] for line in closed] == [37, 37]
    assert [line["words"] for line in closed] == [len(transcribed.words)] * 2
    assert not any(word.text in json.dumps(logs) for word in transcribed.words if len(word.text) > 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no worker processes")
def test_workers_and_devices(model: Path) -> None:
    options = ["--model", str(model), "--slots", "1", "--limit", "idle_seconds=60"]
    with served(*options, "--device", "cpu", "--workers", "0") as (_, address):
        transcribed = transcribe(address, [noise_and_tones(2.0)])
    with served(*options, "--workers", "1", "--devices", "cpu,cpu") as (process, address):
        assert transcribe(address, [noise_and_tones(2.0)]) == transcribed
        assert b"slipstream_slots 2.0" in get(f"{address}/metrics")[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_keys_and_tls(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "slipstream", "api-key", "desk"], capture_output=True, text=True, check=True
    )
    key = re.search(r"Key \(shown only once\):\s+(\S+)", made.stderr)
    assert key is not None
    (tmp_path / "keys").write_text(made.stdout)
    certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command = [
        *make.split(),
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(private),
        "-out",
        str(certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    options = ["--api-keys", str(tmp_path / "keys"), "--tls-cert", str(certificate), "--tls-key", str(private)]
    with served("--model", str(model), "--device", "cpu", "--slots", "1", *options) as (_, address):
        assert address.startswith("https://127.0.0.1:")
        assert transcribe(address, [noise_and_tones(0.5)], key=key[1]).duration == 0.5
        with pytest.raises(ServerError, match="401"):
            transcribe(address, [noise_and_tones(0.5)], key="another")
        with pytest.raises(ServerError, match="cannot be reached"):
            transcribe(address.replace("https", "http"), [noise_and_tones(0.5)], key=key[1])


def test_metrics_on_their_own_port_and_keys_read_again_on_sighup(model: Path, tmp_path: Path) -> None:
    (old, old_line), (new, new_line) = new_key("desk"), new_key("desk", streams=2)
    keys = tmp_path / "keys"
    keys.write_text(old_line)
    options = ["--model", str(model), "--device", "cpu", "--slots", "1", "--api-keys", str(keys), "--metrics-port", "0"]
    with served(*options) as (process, address):
        assert process.stderr is not None
        metrics = re.search(r"Metrics are on (\S+)", process.stderr.readline())
        assert metrics is not None
        assert b"slipstream_slots 1.0" in get(metrics[1])[1]
        assert get(f"{address}/v1/info", kyutai_api_key=old)[0] == 200
        keys.write_text(new_line)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: get(f"{address}/v1/info", kyutai_api_key=new)[0] == 200)
        assert get(f"{address}/v1/info", kyutai_api_key=old)[0] == 401
        keys.write_text("no key")
        process.send_signal(signal.SIGHUP)
        for line in process.stderr:
            record = json.loads(line)  # only JSON lines while the server runs
            if record["level"] == "error":
                break
        assert record["message"].startswith(f"reload failed: {keys}")


def test_a_reload_while_the_model_loads_waits(model: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "slipstream", "serve", "--port", "0", "--model", str(model)]
    with subprocess.Popen([*command, "--backend", "onnx"], stderr=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if re.search(r"\|\s+numpy$", line.rstrip()):
                    process.send_signal(signal.SIGHUP)
                if "reloaded keys and certificate" in line:
                    break
            assert process.poll() is None
        finally:
            timer.cancel()
            process.kill()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--host", "0.0.0.0"], "the server needs keys"),
        (["--limit", "idel_seconds=5"], "did you mean 'idle_seconds'"),
        (["--limit", "idle_seconds=soon"], "expected a number after idle_seconds="),
        (["--limit", "idle_seconds=0"], "must be more than 0"),
        (["--config", "no-such.toml"], "no-such.toml"),
        (
            ["--api-keys", "no-such-keys"],
            "no such file: create it with `slipstream api-key NAME >> no-such-keys`",
        ),
        (["--tls-cert", "cert.pem"], "must be used together"),
        (["--tls-cert", "no.pem", "--tls-key", "key.pem", "--port", "0"], "No such file or directory: 'no.pem'"),
        (
            ["--tls-cert", __file__, "--tls-key", __file__, "--port", "0"],
            "a certificate chain and its private key in PEM",
        ),
        (["--allow-origin", "app.example"], "expected *, or scheme://host:port"),
        (["--kv-cache", "int8", "--backend", "onnx", "--port", "0"], "only the torch backend has it, not onnx"),
        (["--devices", "cpu,cpu", "--workers", "0"], "needs --workers of at least 1"),
        (["--devices", "cpu,", "--workers", "1"], "expected names with commas between them"),
    ],
)
def test_wrong_options_are_named(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    from slipstream.cli.app import app
    from slipstream.errors import SlipstreamError

    try:
        app(["serve", *options], standalone_mode=True)
    except SlipstreamError as error:
        told = str(error)
    except SystemExit:
        told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert told.count(says) == 1
