"""What a failed call says, in fields."""

from __future__ import annotations

from typing import Optional

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


class DsaError(Exception):
    """A call that ended with a status other than OK (docs/errors.md)."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code: grpc.StatusCode = error.code()
        self.message: str = error.details() or ""
        # The field of the request that it is about, such as "sampling.temperature"; "": none.
        self.field: str = ""
        # Why, such as "INVALID_VALUE"; "" where the error is not the server's own.
        self.reason: str = ""
        self.retry_after_s: Optional[float] = None
        metadata = dict(error.trailing_metadata() or ())
        self.request_id: str = str(metadata.get("x-request-id", ""))
        self.instance: str = str(metadata.get("x-dsa-instance", ""))
        super().__init__(f"{self.code.name}: {self.message}")
        self._read_details(error)

    def _read_details(self, error: grpc.RpcError) -> None:
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            bad = error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                self.reason = info.reason
            elif detail.Unpack(bad) and bad.field_violations:
                self.field = bad.field_violations[0].field
            elif detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
