"""chatsvc: durable real-time chat over Kafka, served by a threaded gRPC server."""

__version__ = "0.1.0"
