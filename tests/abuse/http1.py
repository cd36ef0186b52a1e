"""What abuse over HTTP/1.1 costs a server, and what it does to streams that others read.

    http1.py PROGRAM [SECONDS [ATTACK]]     from the root of the repository

PROGRAM is `dsa`, which serves the small model, or `dsa_abuse`, whose engine takes 20 ms for a step whatever it
does, so that what honest requests cost a model is left out.  A process reads four streams and notes the time
between their events; another attacks, first something that takes connections and drops what comes (so that the
machine's own part is seen), then the server.
"""

import contextlib
import itertools
import multiprocessing
import pathlib
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

STREAM = b'{"prompt": [52, 108, 97, 12], "stream": true, "max_tokens": 3500, "ignore_eos": true}'


def request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(port: int) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port), timeout=10)
    one.settimeout(1)
    return one


def say(one: socket.socket, data: bytes) -> bool:
    """Whether the other side still listens."""
    try:
        one.sendall(data)
        return not select.select([one], [], [], 0)[0]
    except OSError:
        return False


def slowly(port: int, end: float, text: bytes) -> None:
    """On 200 connections, a byte at a time; who is closed comes again."""
    all_of = [[connect(port), 0] for _ in range(200)]
    while time.monotonic() < end:
        for one in all_of:
            if one[1] == len(text) or not say(one[0], text[one[1] : one[1] + 1]):
                one[0].close()
                one[:] = [connect(port), 0]
            one[1] += 1
        time.sleep(0.01)


def header_by_bytes(port: int, end: float) -> None:
    slowly(port, end, b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 10_000)


def body_by_bytes(port: int, end: float) -> None:
    slowly(port, end, request("/v1/completions", b" " * 10_000))


def large_header(port: int, end: float) -> None:
    while time.monotonic() < end:
        one = connect(port)
        say(one, b"GET /health HTTP/1.1\r\nX-Long: ")
        for _ in range(16):
            if not say(one, b"a" * 65536):
                break
        one.close()


def endless_chunks(port: int, end: float) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    everybody = [connect(port) for _ in range(20)]
    for one in everybody:
        say(one, head)
    while time.monotonic() < end:
        for i, one in enumerate(everybody):
            if not say(one, b"10000\r\n" + b" " * 65536 + b"\r\n"):
                one.close()
                everybody[i] = connect(port)
                say(everybody[i], head)


def pipelining(port: int, end: float) -> None:
    while time.monotonic() < end:
        everybody = [connect(port) for _ in range(20)]
        for one in everybody:
            one.settimeout(0.05)
            try:
                one.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)  # and nothing is read
            except OSError:
                pass
        for one in everybody:
            one.close()


def burst(port: int, end: float) -> None:
    """10,000 requests on 100 connections, again and again."""
    asked = request("/v1/completions", b'{"prompt": [5], "max_tokens": 1}')
    everybody = [connect(port) for _ in range(100)]
    for i in itertools.count():
        if time.monotonic() > end:
            return
        one = everybody[i % 100]
        try:
            one.sendall(asked)
            if select.select([one], [], [], 0)[0]:
                one.recv(1 << 20)
        except OSError:
            one.close()
            everybody[i % 100] = connect(port)


def unread(port: int, end: float) -> None:
    everybody = [connect(port) for _ in range(100)]
    for one in everybody:
        say(one, request("/v1/completions", STREAM))
    time.sleep(max(0, end - time.monotonic()))


def leaving(port: int, end: float) -> None:
    while time.monotonic() < end:
        one = connect(port)
        say(one, request("/v1/completions", STREAM))
        one.close()


ATTACKS = [header_by_bytes, body_by_bytes, large_header, endless_chunks, pipelining, burst, unread, leaving]


def sink(report) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    report.send(listener.getsockname()[1])
    everybody = [listener]
    while True:
        for one in select.select(everybody, [], [], 1)[0]:
            if one is listener:
                everybody.append(listener.accept()[0])
                continue
            try:
                ended = not one.recv(1 << 16)
            except OSError:
                ended = True
            if ended:
                one.close()
                everybody.remove(one)


def victim(port: int, report) -> None:
    """Reads four streams until it is told to stop; reports the gaps between events, in ms."""
    streams = {connect(port): 0.0 for _ in range(4)}
    for one in streams:
        one.sendall(request("/v1/completions", STREAM))
    gaps = []
    begun = False
    while not report.poll():
        for one in select.select(list(streams), [], [], 0.05)[0]:
            if not one.recv(1 << 16):
                raise SystemExit("a victim's stream ended")
            now = time.monotonic()
            gaps.append((now - streams[one]) * 1000 if streams[one] else 0.0)
            streams[one] = now
        if not begun and all(streams.values()):
            begun = True
            report.send("reads")
    report.send(sorted(gap for gap in gaps if gap))


def resident_mb(process: int) -> float:
    for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def measure(attack, target: int, server_port: int, server: int, seconds: float) -> tuple:
    ours, its = multiprocessing.Pipe()
    reader = multiprocessing.Process(target=victim, args=(server_port, its), daemon=True)
    reader.start()
    assert ours.recv() == "reads"
    before = most = resident_mb(server)
    attacker = multiprocessing.Process(target=attack, args=(target, time.monotonic() + seconds), daemon=True)
    attacker.start()
    while attacker.is_alive():
        most = max(most, resident_mb(server))
        time.sleep(0.05)
    ours.send("stop")
    gaps = ours.recv()
    reader.join()
    assert attacker.exitcode == 0, f"{attack.__name__} ended with {attacker.exitcode}"
    return gaps[len(gaps) // 2], gaps[len(gaps) * 99 // 100], gaps[-1], most - before


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def start(program: str, log):
    """The server and its port; it ends with the context."""
    if pathlib.Path(program).name == "dsa_abuse":
        with subprocess.Popen([program, "http"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as server:
            yield server, int(server.stdout.readline().split()[1])
            server.stdin.close()
            server.wait(timeout=60)
        return
    port = free_port()
    command = [program, "serve", "--config", "configs/tiny_cpu.json", "--listen", f"127.0.0.1:{free_port()}"]
    with subprocess.Popen([*command, "--http-listen", f"127.0.0.1:{port}"], stderr=log) as server:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.05)
        yield server, port
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def main() -> None:
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    attacks = [one for one in ATTACKS if len(sys.argv) < 4 or one.__name__ == sys.argv[3]]
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    ours, its = multiprocessing.Pipe()
    multiprocessing.Process(target=sink, args=(its,), daemon=True).start()
    sink_port = ours.recv()
    with tempfile.TemporaryFile() as log, start(sys.argv[1], log) as (server, port):
        print("time between events of four streams, ms: p50 / p99 / longest; resident memory at most, MB more than before")
        for attack in attacks:
            other = measure(attack, sink_port, port, server.pid, seconds)
            own = measure(attack, port, port, server.pid, seconds)
            print(
                f"{attack.__name__:16} at a sink {other[0]:5.0f} / {other[1]:5.0f} / {other[2]:5.0f}"
                f"   at the server {own[0]:5.0f} / {own[1]:5.0f} / {own[2]:5.0f}   {own[3]:6.1f} MB",
                flush=True,
            )
            time.sleep(1)
    print("the server ended with", server.returncode)


if __name__ == "__main__":
    main()
