"""Calls of dsa.v1, one method each."""

from __future__ import annotations

import json
from typing import Any, Iterable, Iterator, Mapping, Optional, Sequence, Union

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message as ProtoMessage

from dsa_client.errors import DsaError
from dsa_client.proto import admin_pb2, chat_pb2, common_pb2, completion_pb2, model_pb2, token_pb2

Turn = Union[chat_pb2.Message, Mapping[str, Any]]
Turns = Union[str, Turn, Iterable[Turn]]
Tool = Union[str, Mapping[str, Any]]
Prompt = Union[str, Sequence[int]]


class Client:
    """A connection to one server.  Thread-safe; closed by `close` or at the end of a `with`."""

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        timeout_s: Optional[float] = None,
        channel: Optional[grpc.Channel] = None,
    ) -> None:
        """`timeout_s` is the deadline of every call; None: none.  `channel` replaces the plaintext one."""
        self._channel = channel or grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        )
        self._timeout_s = timeout_s

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chat(self, messages: Turns, *, tools: Iterable[Tool] = (), **settings: Any) -> chat_pb2.ChatResponse:
        return self._call(chat_pb2, "ChatService", "Chat", _chat_request(messages, tools, settings))

    def chat_stream(
        self, messages: Turns, *, tools: Iterable[Tool] = (), **settings: Any
    ) -> Iterator[chat_pb2.ChatStreamResponse]:
        return self._stream(chat_pb2, "ChatService", "ChatStream", _chat_request(messages, tools, settings))

    def complete(self, prompt: Prompt, **settings: Any) -> completion_pb2.CompletionResponse:
        return self._call(
            completion_pb2, "CompletionService", "Complete", _completion_request(prompt, settings)
        )

    def complete_stream(
        self, prompt: Prompt, **settings: Any
    ) -> Iterator[completion_pb2.CompletionStreamResponse]:
        return self._stream(
            completion_pb2, "CompletionService", "CompleteStream", _completion_request(prompt, settings)
        )

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        request = token_pb2.TokenizeRequest(text=text, parse_special=parse_special)
        return list(self._call(token_pb2, "TokenService", "Tokenize", request).ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        return self._call(token_pb2, "TokenService", "Detokenize", token_pb2.DetokenizeRequest(ids=ids)).text

    def count_tokens(self, text: str) -> int:
        request = token_pb2.CountTokensRequest(text=text)
        return self._call(token_pb2, "TokenService", "CountTokens", request).tokens

    def model(self) -> model_pb2.ModelInfo:
        return self._call(model_pb2, "ModelService", "GetModel", model_pb2.GetModelRequest())

    def server(self) -> admin_pb2.ServerInfo:
        return self._call(admin_pb2, "AdminService", "GetServerInfo", admin_pb2.GetServerInfoRequest())

    def load(self) -> admin_pb2.Load:
        return self._call(admin_pb2, "AdminService", "GetLoad", admin_pb2.GetLoadRequest())

    def abort(self, request_id: str) -> bool:
        request = admin_pb2.AbortRequest(request_id=request_id)
        return self._call(admin_pb2, "AdminService", "Abort", request).aborted

    def _call(self, module: Any, service: str, method: str, request: ProtoMessage) -> Any:
        path, answer = _method(module, service, method)
        call = self._channel.unary_unary(
            path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        try:
            return call(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise DsaError(error) from None

    def _stream(self, module: Any, service: str, method: str, request: ProtoMessage) -> Iterator[Any]:
        path, answer = _method(module, service, method)
        call = self._channel.unary_stream(
            path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString
        )
        parts = call(request, timeout=self._timeout_s)

        def read() -> Iterator[Any]:
            try:
                yield from parts
            except grpc.RpcError as error:
                raise DsaError(error) from None
            finally:
                parts.cancel()

        return read()


def _method(module: Any, service: str, method: str) -> tuple[str, Any]:
    descriptor = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    answer = message_factory.GetMessageClass(descriptor.output_type)
    return f"/{descriptor.containing_service.full_name}/{method}", answer


def _turn(turn: Turn) -> chat_pb2.Message:
    if isinstance(turn, chat_pb2.Message):
        return turn
    fields = dict(turn)
    role = str(fields.pop("role", ""))
    name = f"ROLE_{role.upper()}"
    if name not in chat_pb2.Role.keys() or name == "ROLE_UNSPECIFIED":
        raise ValueError(f"role: {role!r} is none of system, developer, user, assistant, tool")
    return chat_pb2.Message(role=chat_pb2.Role.Value(name), **fields)


def _chat_request(messages: Turns, tools: Iterable[Tool], settings: Mapping[str, Any]) -> chat_pb2.ChatRequest:
    if isinstance(messages, str):
        messages = {"role": "user", "content": messages}
    turns = [messages] if isinstance(messages, (Mapping, chat_pb2.Message)) else messages
    request = chat_pb2.ChatRequest(messages=[_turn(turn) for turn in turns])
    for tool in tools:
        text = tool if isinstance(tool, str) else json.dumps(tool, ensure_ascii=False)
        request.tools.add(function_json=text)
    return _with_settings(request, settings)


def _completion_request(prompt: Prompt, settings: Mapping[str, Any]) -> completion_pb2.CompletionRequest:
    request = completion_pb2.CompletionRequest()
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
        request.token_ids.SetInParent()
    return _with_settings(request, settings)


def _with_settings(request: Any, settings: Mapping[str, Any]) -> Any:
    """Each setting goes where a field has its name: the request, its sampling, or its stop."""
    parts = {
        "sampling": (common_pb2.SamplingParams, {}),
        "stop": (common_pb2.StopConditions, {}),
        "": (type(request), {}),
    }
    for name, value in settings.items():
        if value is None:
            continue
        for _, (kind, chosen) in parts.items():
            if name in kind.DESCRIPTOR.fields_by_name:
                # A string would be taken for a list of its letters.
                chosen[name] = [value] if name == "stop" and isinstance(value, str) else value
                break
        else:
            raise TypeError(f"{type(request).__name__} has no setting {name!r}")
    for name, (kind, chosen) in parts.items():
        if name:
            getattr(request, name).CopyFrom(kind(**chosen))
        else:
            request.MergeFrom(kind(**chosen))
    return request
