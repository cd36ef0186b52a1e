"""Our own package, and the standard services by their standard packages."""

import grpc
import pytest
from conftest import WEATHER
from dsa_client import Client, DsaError
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

QUESTION = "What does abandon mean?"
ANSWER = "abandon (verb): forsake, leave behind."


def test_chat(own, server):
    answer = own.chat(QUESTION, temperature=0, logprobs=True)
    assert answer.message.content == ANSWER
    assert answer.model == server.model
    assert len(answer.logprobs) == answer.usage.completion_tokens
    assert own.chat({"role": "user", "content": QUESTION}, temperature=0).message.content == ANSWER
    parts = list(own.chat_stream([{"role": "user", "content": QUESTION}], temperature=0))
    assert "".join(part.content for part in parts) == ANSWER


def test_stop(own):
    for stop in (" leave", [" leave", "never"]):
        assert own.chat(QUESTION, temperature=0, stop=stop).message.content == "abandon (verb): forsake,"


def test_completion(own):
    ids = own.tokenize("It is a truth")
    assert own.detokenize(ids) == "It is a truth"
    assert own.count_tokens("It is a truth") == len(ids)
    by_ids = own.complete(ids, temperature=0, max_tokens=8)
    assert by_ids.token_ids == own.complete("It is a truth", add_bos=False, temperature=0, max_tokens=8).token_ids
    assert sum(len(part.token_ids) for part in own.complete_stream(ids, temperature=0, max_tokens=8)) == 8


def test_tools(own):
    turns = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = own.chat(turns, tools=[WEATHER], thinking=True, temperature=0)
    (call,) = asked.message.tool_calls
    assert (call.name, call.arguments) == ("get_weather", '{"city": "Paris"}')
    turns += [asked.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny, 21 degrees"}]
    told = own.chat(turns, tools=[WEATHER], thinking=True, temperature=0)
    assert told.message.content == "It is sunny in Paris, 21 degrees."


def test_errors(own):
    with pytest.raises(DsaError) as wrong:
        own.chat(QUESTION, temperature=3)
    assert wrong.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert wrong.value.field == "sampling.temperature"
    assert wrong.value.reason == "INVALID_VALUE"
    assert wrong.value.retry_after_s is None
    assert wrong.value.instance == own.server().instance
    with pytest.raises(DsaError) as streamed:
        next(own.chat_stream(QUESTION, model="another"))
    assert streamed.value.code == grpc.StatusCode.NOT_FOUND
    assert streamed.value.field == "model"
    with pytest.raises(TypeError):
        own.chat(QUESTION, temprature=1)
    with pytest.raises(ValueError):
        own.chat([{"role": "nobody", "content": ""}])


def test_cancel_and_abort(own, becomes_idle):
    stream = own.chat_stream(QUESTION, ignore_eos=True, max_tokens=4000)
    next(stream)
    stream.close()
    becomes_idle()
    stream = own.chat_stream(QUESTION, ignore_eos=True, max_tokens=4000, request_id="mine")
    next(stream)
    assert own.abort("mine")
    assert [part.finish_reason for part in stream][-1] == 6  # FINISH_REASON_ABORTED
    assert not own.abort("mine")


def test_deadline(server):
    with Client(server.grpc, timeout_s=0.2) as client, pytest.raises(DsaError) as late:
        client.chat(QUESTION, ignore_eos=True, max_tokens=4000)
    assert late.value.code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_health_and_reflection(server):
    with grpc.insecure_channel(server.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert {"dsa.v1.ChatService", "vllm.grpc.engine.VllmEngine", "xai_api.Chat"} <= services
        pool = DescriptorPool(database)
        assert pool.FindServiceByName("xai_api.Chat").methods_by_name["GetCompletion"]
        health = health_pb2_grpc.HealthStub(channel)
        names = {name for name in services if not name.startswith("grpc.")} | {""}
        for name in names:
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
