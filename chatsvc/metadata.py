"""Keys of gRPC metadata that belong to the wire contract."""

SERVER_ID = "chatsvc-server-id"
"""Initial metadata of a stream: which server it is registered at."""
HEARTBEAT = "chatsvc-heartbeat-ms"
"""Initial metadata of a subscription: how often something comes at least."""
RETRY_AFTER = "grpc-retry-pushback-ms"
"""Trailing metadata of an error that may pass: when to try again, in gRPC's own term. An error
without it is final, or did not come from the server."""
