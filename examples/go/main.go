// A client of chatsvc in Go: prints what is said and says each line of its input, until that ends.
// Go 1.19 or newer and protoc make it:
//
//	go generate && go build -o chat . && ./chat --server localhost:8081 --user gopher
//
// When its server is lost, or sends it away, it goes on where it was, and sends again with the same id.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand"
	"os"
	"regexp"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"example.com/chat/chatpb"
)

var (
	server  = flag.String("server", "localhost:8081", "`host:port`")
	user    = flag.String("user", "gopher", "who you are")
	room    = flag.String("room", "", "which room; none: the lobby")
	control = regexp.MustCompile(`\p{Cc}`) // what would move a terminal's cursor
)

const silence = 30 * time.Second // two of a server's heartbeats

var reconnect = grpc.ConnectParams{MinConnectTimeout: 5 * time.Second, Backoff: backoff.Config{
	BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}}

func main() {
	flag.Parse()
	channel, err := grpc.NewClient(*server, grpc.WithConnectParams(reconnect),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	go follow(chatpb.NewChatClient(channel))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		id := fmt.Sprintf("%x-%x", time.Now().UnixNano(), rand.Uint64())
		send(chatpb.NewBroadcastClient(channel), &chatpb.Message{
			Id: *user, Room: *room, Content: lines.Text(), MessageId: id})
	}
}

// follow prints what comes, by one stream after the other.
func follow(chat chatpb.ChatClient) {
	from := &chatpb.SubscribeRequest{User: &chatpb.User{Id: *user}, Rooms: []string{*room}, Last: 20}
	for {
		ctx, leave := context.WithCancel(context.Background())
		watchdog := time.AfterFunc(silence, leave)
		stream, err := chat.Subscribe(ctx)
		if err == nil {
			stream.Send(from) // what is wrong, Recv tells
			stream.CloseSend()
		}
		for delivery := new(chatpb.Delivery); err == nil; delivery, err = stream.Recv() {
			watchdog.Reset(silence)
			for _, gap := range delivery.Gaps {
				log.Printf("up to %d messages are lost", gap.End-gap.Start)
			}
			for _, message := range delivery.Messages {
				fmt.Printf("%s: %s\n", message.Id, control.ReplaceAllString(message.Content, " "))
			}
			if len(delivery.Cursor) > 0 { // only now that all before it is printed
				from.Cursor, from.Last = delivery.Cursor, 0
			}
			if delivery.GoingAway != nil {
				time.AfterFunc(time.Duration(delivery.GoingAway.DelayMs)*time.Millisecond, leave)
			}
		}
		leave()
		if !again(err) {
			os.Exit(1)
		}
	}
}

// send returns when all in-sync replicas have the message, or when they never will.
func send(broadcast chatpb.BroadcastClient, message *chatpb.Message) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		_, err := broadcast.BroadcastMessage(ctx, message)
		cancel()
		if err == nil || !again(err) {
			return
		}
	}
}

// again waits until another attempt is due, and tells whether it can help.
func again(err error) bool {
	log.Print(status.Convert(err).Message())
	time.Sleep(time.Duration(rand.Int63n(int64(time.Second))))
	return status.Code(err) != codes.InvalidArgument
}
