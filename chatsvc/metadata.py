"""Keys of gRPC metadata that belong to the wire contract."""

SERVER_ID = "chatsvc-server-id"
"""Initial metadata of a stream: which server it is registered at."""
HEARTBEAT = "chatsvc-heartbeat-ms"
"""Initial metadata of a subscription: how often something comes at least."""
CURSOR = "chatsvc-cursor-bin"
"""Initial metadata of a subscription: the cursor of where it begins, so that a stream that is lost
before its first Delivery can be resumed too."""
TRACE = "chatsvc-trace-id"
"""Of a call that sends: an id by which the logs of all servers and the record in Kafka mention the
message, 1 to 64 letters, digits, dots, underscores and hyphens."""
TRACEPARENT = "traceparent"
"""The same in W3C's form; its trace id is used where there is no other."""
RETRY_AFTER = "grpc-retry-pushback-ms"
"""Trailing metadata of an error that may pass: when to try again, in gRPC's own term. An error
without it is final, or did not come from the server."""
