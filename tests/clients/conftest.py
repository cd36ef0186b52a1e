"""One CPU server with the small model for all clients; `dsa_client` looks into it from the side."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
from dsa_client import Client

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What the small model was taught to call.
WEATHER = {
    "name": "get_weather",
    "description": "Get weather for a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def free_ports(count: int) -> list[int]:
    """Different ones: all are held until the last is known."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def wait_for_http(url: str, process: subprocess.Popen, log: pathlib.Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} is not ready:\n{log.read_text()[-2000:]}")


@dataclass
class Server:
    grpc: str  # host:port
    http: str  # URL
    model: str


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    grpc_port, http_port = free_ports(2)
    log = tmp_path_factory.mktemp("dsa") / "dsa.log"
    command = [os.environ.get("DSA", str(ROOT / "build/dsa")), "serve", "--config", "configs/tiny_cpu.json"]
    command += ["--listen", f"127.0.0.1:{grpc_port}", "--http-listen", f"127.0.0.1:{http_port}"]
    command += ["--http-strict"]  # none of these clients sends what nobody documents
    with log.open("w") as output, subprocess.Popen(command, cwd=ROOT, stderr=output) as process:
        try:
            wait_for_http(f"http://127.0.0.1:{http_port}/ready", process, log)
            yield Server(f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}", "dsa-tiny")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()  # or nobody would hear of it: the context waits for its end
                code = "none: it does not end"
        assert code == 0, f"exit code {code}:\n{log.read_text()[-2000:]}"


@pytest.fixture(scope="session")
def own(server):
    with Client(server.grpc, timeout_s=120) as client:
        yield client


@pytest.fixture
def becomes_idle(own):
    """Waits until no request is live: what a client that left had is free again."""

    def wait() -> None:
        for _ in range(600):
            load = own.load()
            if load.running == 0 and load.waiting == 0 and load.blocks_referenced == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"requests are still live: {load}")

    return wait
