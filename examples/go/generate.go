//go:build generate

// Package chatpb is made of the proto by the plugins of the versions in go.mod, and not kept in git.
package main

import (
	_ "google.golang.org/grpc/cmd/protoc-gen-go-grpc"
	_ "google.golang.org/protobuf/cmd/protoc-gen-go"
)

//go:generate go build -o bin/ google.golang.org/grpc/cmd/protoc-gen-go-grpc google.golang.org/protobuf/cmd/protoc-gen-go
//go:generate protoc --plugin=bin/protoc-gen-go --plugin=bin/protoc-gen-go-grpc -I../../protos --go_out=. --go-grpc_out=. --go_opt=module=example.com/chat,Mchat.proto=example.com/chat/chatpb --go-grpc_opt=module=example.com/chat,Mchat.proto=example.com/chat/chatpb chat.proto
