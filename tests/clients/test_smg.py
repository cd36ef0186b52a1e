"""The router SMG, which has no model files: OpenAI's API at its door, VllmEngine behind it."""

import subprocess
import sys

import openai
import pytest
from conftest import free_ports, wait_for_http

QUESTION = [{"role": "user", "content": "What does abandon mean?"}]
ANSWER = "abandon (verb): forsake, leave behind."


@pytest.fixture(scope="module")
def router(server, tmp_path_factory):
    port, metrics = free_ports(2)
    log = tmp_path_factory.mktemp("smg") / "smg.log"
    command = [sys.executable, "-m", "smg", "launch", "--worker-urls", f"grpc://{server.grpc}"]
    command += ["--backend", "vllm", "--reasoning-parser", "deepseek_v31", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--prometheus-port", str(metrics), "--disable-retries"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for_http(f"http://127.0.0.1:{port}/readiness", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()  # it would wait some seconds for others to learn that it goes

@pytest.fixture
def client(router):
    with openai.OpenAI(base_url=router, api_key="none", max_retries=0) as one:
        yield one


def test_chat(client, server):
    answer = client.chat.completions.create(model=server.model, messages=QUESTION, temperature=0, logprobs=True)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 5
    assert len(answer.choices[0].logprobs.content) >= answer.usage.completion_tokens - 1


def test_stream(client, server):
    chunks = client.chat.completions.create(model=server.model, messages=QUESTION, temperature=0, stream=True)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == ANSWER
    assert len(texts) > 5


def test_errors(client, server):
    with pytest.raises(openai.APIStatusError) as wrong:
        client.chat.completions.create(
            model=server.model, messages=QUESTION, extra_body={"regex": "[a-z]+"}
        )
    assert wrong.value.status_code in (400, 501)
    assert "sampling_params.regex" in str(wrong.value)


def test_several_answers(client, server):
    chat = client.chat.completions.create(
        model=server.model, messages=QUESTION, n=2, max_tokens=60, temperature=2, seed=1
    )
    assert [choice.index for choice in chat.choices] == [0, 1]
    assert chat.choices[0].message.content != chat.choices[1].message.content


def test_abort(client, server, becomes_idle):
    stream = client.chat.completions.create(
        model=server.model, messages=QUESTION, stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    becomes_idle()
