"""The package openai, sync and async, over HTTP."""

import asyncio
import json

import openai
import pytest
from conftest import WEATHER

QUESTION = [{"role": "user", "content": "What does abandon mean?"}]
ANSWER = "abandon (verb): forsake, leave behind."


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.http}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_models(client, server):
    assert [model.id for model in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model


def test_chat(client, server):
    answer = client.chat.completions.create(model=server.model, messages=QUESTION, temperature=0, logprobs=True)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream(client, server):
    chunks = list(
        client.chat.completions.create(
            model=server.model,
            messages=QUESTION,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 5
    assert len(chunks) > 5


def test_async_stream(server):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.http}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model=server.model, messages=QUESTION, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_four() -> list:
        return await asyncio.gather(*(ask() for _ in range(4)))

    assert asyncio.run(ask_four()) == [ANSWER] * 4


def test_completion(client, server):
    answer = client.completions.create(model=server.model, prompt="It is a truth", temperature=0, max_tokens=8)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.choices[0].text


def test_tools(client, server):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    options = {
        "model": server.model,
        "tools": [{"type": "function", "function": WEATHER}],
        "temperature": 0,
        "extra_body": {"thinking": {"type": "enabled"}},
    }
    asked = client.chat.completions.create(messages=messages, **options)
    assert asked.choices[0].finish_reason == "tool_calls"
    (call,) = asked.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages.append(asked.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"})
    told = client.chat.completions.create(messages=messages, **options)
    assert told.choices[0].message.content == "It is sunny in Paris, 21 degrees."


def test_errors(client, server):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=server.model, messages=QUESTION, temperature=3)
    assert wrong.value.param == "temperature"
    assert wrong.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(
            model=server.model, messages=QUESTION, response_format={"type": "json_object"}
        )
    assert unknown.value.param == "response_format"


def test_cancel(client, server, becomes_idle):
    stream = client.chat.completions.create(
        model=server.model,
        messages=QUESTION,
        stream=True,
        max_tokens=4000,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    stream.close()
    becomes_idle()
