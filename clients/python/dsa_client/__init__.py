"""Client of DSA Server's own gRPC API, dsa.v1."""

from dsa_client.client import Client
from dsa_client.errors import DsaError

__all__ = ["Client", "DsaError"]
