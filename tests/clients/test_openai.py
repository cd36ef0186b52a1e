"""The package openai, sync and async, over HTTP."""

import asyncio
import json

import openai
import pytest
from conftest import WEATHER
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as chat_parameters
from openai.types.completion_create_params import CompletionCreateParamsBase as completion_parameters

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


def test_several_answers(client, server):
    drawn = client.completions.create(
        model=server.model, prompt="What is 29 + 64?", temperature=1, seed=3, n=4, max_tokens=6
    )
    assert [choice.index for choice in drawn.choices] == [0, 1, 2, 3]
    alone = client.completions.create(
        model=server.model, prompt="What is 29 + 64?", temperature=1, seed=5, max_tokens=6
    )
    assert drawn.choices[2].text == alone.choices[0].text
    assert drawn.usage.prompt_tokens == alone.usage.prompt_tokens


def test_several_prompts(client, server):
    prompts = ["What is 29 + 64?", "It is a truth", "The code of the red lantern is 481."]
    options = {"model": server.model, "temperature": 1, "seed": 3, "max_tokens": 6, "n": 2, "echo": True}
    options["logprobs"] = 1
    together = client.completions.create(prompt=prompts, **options)
    alone = [client.completions.create(prompt=prompt, **options) for prompt in prompts]
    assert [choice.index for choice in together.choices] == list(range(6))
    for i, choice in enumerate(together.choices):
        same = alone[i // 2].choices[i % 2]
        assert (choice.text, choice.finish_reason) == (same.text, same.finish_reason)
        assert choice.logprobs == same.logprobs
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert together.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    texts = [""] * 6
    for chunk in client.completions.create(prompt=prompts, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in together.choices]
    ids = [[5, 6, 7, 8], [7]]
    assert len(client.completions.create(model=server.model, prompt=ids, max_tokens=1).choices) == 2
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=server.model, prompt=[[5], [-1]], max_tokens=1)
    assert refused.value.param == "prompt[1][0]"


def scored(client, server, **options):
    """What an evaluation asks: how likely is this text?"""
    return client.completions.create(
        model=server.model, prompt="It is a truth universally acknowledged", temperature=0, echo=True, **options
    )


def test_echo(client, server):
    answer = scored(client, server, logprobs=2, max_tokens=1)
    (choice,) = answer.choices
    lists = choice.logprobs
    tokens = answer.usage.prompt_tokens + 1
    assert choice.text.startswith("It is a truth universally acknowledged")
    assert [len(lists.tokens), len(lists.token_logprobs), len(lists.top_logprobs)] == [tokens] * 3
    assert lists.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in lists.token_logprobs[1:])
    assert "".join(lists.tokens).endswith(choice.text)
    # With nothing behind it the same is said of the prompt.
    only = scored(client, server, logprobs=2, max_tokens=0)
    assert only.choices[0].text == "It is a truth universally acknowledged"
    assert only.choices[0].finish_reason == "length"
    assert only.usage.completion_tokens == 0
    assert only.usage.total_tokens == answer.usage.prompt_tokens
    assert only.choices[0].logprobs.token_logprobs == lists.token_logprobs[:-1]
    assert only.choices[0].logprobs.top_logprobs == lists.top_logprobs[:-1]
    (streamed,) = [
        chunk for chunk in scored(client, server, logprobs=2, max_tokens=0, stream=True) if chunk.choices
    ]
    assert streamed.choices[0].text == only.choices[0].text
    assert streamed.choices[0].logprobs.token_logprobs == lists.token_logprobs[:-1]
    twice = scored(client, server, logprobs=2, max_tokens=1, n=2)
    assert [one.logprobs.token_logprobs for one in twice.choices] == [lists.token_logprobs] * 2
    assert twice.usage.prompt_tokens == answer.usage.prompt_tokens


def test_prompt_logprobs(client, server):
    answer = client.completions.create(
        model=server.model, prompt="It is a truth", max_tokens=1, extra_body={"prompt_logprobs": 1}
    )
    said = answer.choices[0].prompt_logprobs
    assert said[0] is None
    assert len(said) == answer.usage.prompt_tokens
    assert all(entry["logprob"] <= 0 for place in said[1:] for entry in place.values())


@pytest.mark.parametrize(
    ("path", "parameters"),
    [("chat/completions", chat_parameters), ("completions", completion_parameters)],
)
def test_every_parameter_is_known(client, server, path, parameters):
    """The server refuses what nobody documents (--http-strict); of what this package knows it refuses values."""
    least = {"prompt": "x"} if path == "completions" else {"messages": [{"role": "user", "content": "x"}]}
    names = set(parameters.__annotations__) - {"model", "prompt", "messages", "stream"}
    assert len(names) > 10
    for name in sorted(names):
        try:
            client.post(f"/{path}", body={**least, "max_tokens": 1, name: "x"}, cast_to=object)
        except openai.BadRequestError as refused:
            assert "no such field" not in refused.message, refused.message
            assert name in refused.message, refused.message


def test_prefix(client, server):
    """DeepSeek's and vLLM's ways to have an answer go on from its beginning."""
    begun = [*QUESTION, {"role": "assistant", "content": "abandon (verb): for", "prefix": True}]
    answer = client.chat.completions.create(model=server.model, messages=begun, temperature=0)
    assert answer.choices[0].message.content == "sake, leave behind."
    del begun[-1]["prefix"]
    answer = client.chat.completions.create(
        model=server.model,
        messages=begun,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert answer.choices[0].message.content == "sake, leave behind."


def test_forms_of_messages(client, server):
    parts = [{"type": "text", "text": "What does "}, {"type": "text", "text": "abandon mean?"}]
    answer = client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": parts}], temperature=0
    )
    assert answer.choices[0].message.content == ANSWER
    told = [{"role": "developer", "content": "Answer in one line."}, *QUESTION]
    assert client.chat.completions.create(model=server.model, messages=told, temperature=0).choices[0].message.content
    with pytest.raises(openai.BadRequestError) as forced:
        client.chat.completions.create(
            model=server.model,
            messages=QUESTION,
            tools=[{"type": "function", "function": WEATHER}],
            tool_choice={"type": "function", "function": {"name": "get_weather"}},
        )
    assert forced.value.param == "tool_choice"


def test_thinking(client, server):
    for ways in [
        {"extra_body": {"thinking": {"type": "enabled"}}},
        {"extra_body": {"chat_template_kwargs": {"thinking": True}}},
        {"reasoning_effort": "high"},
    ]:
        answer = client.chat.completions.create(model=server.model, messages=QUESTION, temperature=0, **ways)
        assert answer.usage.completion_tokens_details.reasoning_tokens > 0
        assert answer.usage.prompt_cache_hit_tokens + answer.usage.prompt_cache_miss_tokens == answer.usage.prompt_tokens
    answer = client.chat.completions.create(model=server.model, messages=QUESTION, temperature=0, reasoning_effort="none")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_instance(client, server):
    """The same server, as its answers say, also where they are errors."""
    first = client.models.with_raw_response.list().headers["x-dsa-instance"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("another")
    assert missing.value.response.headers["x-dsa-instance"] == first


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
