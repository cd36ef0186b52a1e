"""The package xai-sdk, sync and async, over gRPC."""

import asyncio
import json

import grpc
import pytest
import xai_sdk
from conftest import WEATHER
from xai_sdk.chat import system, tool, tool_result, user

QUESTION = "What does abandon mean?"
ANSWER = "abandon (verb): forsake, leave behind."


@pytest.fixture
def client(server):
    with xai_sdk.Client(api_key="none", api_host=server.grpc.replace("127.0.0.1", "localhost")) as one:
        yield one


def test_models(client, server):
    assert [model.name for model in client.models.list_language_models()] == [server.model]
    assert client.models.get_language_model(server.model).max_prompt_length == 4095


def test_tokenize(client, server, own):
    tokens = client.tokenize.tokenize_text(QUESTION, model=server.model)
    assert [token.token_id for token in tokens] == own.tokenize(QUESTION)
    assert "".join(token.string_token for token in tokens) == QUESTION


def test_key(client):
    assert client.auth.get_api_key_info().name == "dsa"


def test_sample(client, server):
    chat = client.chat.create(model=server.model, messages=[user(QUESTION)], temperature=0, logprobs=True)
    answer = chat.sample()
    assert answer.content == ANSWER
    assert answer.role == "ROLE_ASSISTANT"
    assert answer.finish_reason == "REASON_STOP"
    assert answer.usage.completion_tokens == len(answer.proto.outputs[0].logprobs.content)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chat.append(answer)  # a conversation goes on
    chat.append(user("What is 29 + 64?"))
    assert "93" in chat.sample().content


def test_stream(client, server):
    chat = client.chat.create(model=server.model, messages=[user(QUESTION)], temperature=0)
    contents = []
    for answer, chunk in chat.stream():
        contents.append(chunk.content)
    assert "".join(contents) == ANSWER
    assert answer.content == ANSWER
    assert answer.finish_reason == "REASON_STOP"
    assert answer.usage.completion_tokens > 5
    assert len(contents) > 5


def test_sample_batch(client, server):
    chat = client.chat.create(model=server.model, messages=[user(QUESTION)], temperature=0)
    answers = chat.sample_batch(3)
    assert [answer.content for answer in answers] == [ANSWER] * 3
    assert [answer.finish_reason for answer in answers] == ["REASON_STOP"] * 3
    drawn = client.chat.create(model=server.model, messages=[user("Who are you?")], temperature=1, seed=7)
    first = [answer.content for answer in drawn.sample_batch(4)]
    assert first == [answer.content for answer in drawn.sample_batch(4)]  # of seeds 7 to 10
    alone = client.chat.create(model=server.model, messages=[user("Who are you?")], temperature=1, seed=9)
    assert alone.sample().content == first[2]


def test_stream_batch(client, server):
    chat = client.chat.create(model=server.model, messages=[user(QUESTION)], temperature=0)
    for answers, _ in chat.stream_batch(2):
        pass
    assert [answer.content for answer in answers] == [ANSWER] * 2


def test_async(server):
    async def ask() -> list:
        client = xai_sdk.AsyncClient(api_key="none", api_host=server.grpc.replace("127.0.0.1", "localhost"))
        whole = await client.chat.create(model=server.model, messages=[user(QUESTION)], temperature=0).sample()
        chat = client.chat.create(model=server.model, messages=[user(QUESTION)], temperature=0)
        parts = [chunk.content async for _, chunk in chat.stream()]
        await client.close()
        return [whole.content, "".join(parts)]

    assert asyncio.run(ask()) == [ANSWER, ANSWER]


def test_tools(client, server):
    weather = tool(WEATHER["name"], WEATHER["description"], WEATHER["parameters"])
    chat = client.chat.create(
        model=server.model,
        messages=[user("What is the weather in Paris?")],
        tools=[weather],
        temperature=0,
        reasoning_effort="low",
    )
    asked = chat.sample()
    assert asked.finish_reason == "REASON_TOOL_CALLS"
    (call,) = asked.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    chat.append(asked)
    chat.append(tool_result("sunny, 21 degrees", tool_call_id=call.id))
    assert chat.sample().content == "It is sunny in Paris, 21 degrees."


def test_tools_streamed(client, server):
    weather = tool(WEATHER["name"], WEATHER["description"], WEATHER["parameters"])
    chat = client.chat.create(
        model=server.model,
        messages=[user("What is the weather in Paris?")],
        tools=[weather],
        temperature=0,
        reasoning_effort="low",
    )
    for answer, _ in chat.stream():
        pass
    assert [call.function.name for call in answer.tool_calls] == ["get_weather"]
    assert answer.finish_reason == "REASON_TOOL_CALLS"


def test_errors(client, server):
    def code_of(**options) -> tuple:
        with pytest.raises(grpc.RpcError) as wrong:
            client.chat.create(**{"model": server.model, "messages": [user(QUESTION)], **options}).sample()
        return wrong.value.code(), wrong.value.details()

    code, message = code_of(temperature=3)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message == "temperature: 3 is not in [0, 2]"
    assert code_of(model="another")[0] == grpc.StatusCode.NOT_FOUND
    code, message = code_of(response_format="json_object")
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert message.startswith("response_format: ")
    with pytest.raises(grpc.RpcError) as deferred:
        client.chat.create(model=server.model, messages=[system("s"), user("u")]).defer()
    assert deferred.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_cancel(client, server, becomes_idle):
    stream = client.chat.create(model=server.model, messages=[user("Tell me everything.")], max_tokens=4000).stream()
    next(stream)
    stream.close()
    becomes_idle()
