// A client in Go: prints what is said and says each line of its input, until that ends.
//
//	go generate && go build -o chat . && ./chat -server localhost:8081 -user gopher
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"example.com/chat/chatpb"
)

const silence = 30 * time.Second // two of the server's heartbeats

func main() {
	log.SetFlags(0)
	server := flag.String("server", "localhost:8081", "`host:port`")
	user := flag.String("user", "gopher", "who you are")
	room := flag.String("room", "", "which room; none: the lobby")
	flag.Parse()
	channel, err := grpc.NewClient(*server, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	request := &chatpb.SubscribeRequest{User: &chatpb.User{Id: *user}, Rooms: []string{*room}}
	joined := make(chan bool, 1)
	go func() {
		for { // a stream that is lost goes on in the next one, where it was
			err := listen(chatpb.NewChatClient(channel), request, joined)
			if request.Cursor == nil || status.Code(err) == codes.InvalidArgument {
				log.Fatal(status.Convert(err).Message())
			}
			time.Sleep(time.Second)
		}
	}()
	<-joined
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		say(chatpb.NewBroadcastClient(channel), &chatpb.Message{Id: *user, Room: *room, Content: lines.Text()})
	}
}

// listen prints what comes, and keeps the place in request.Cursor, until the stream ends.
func listen(chat chatpb.ChatClient, request *chatpb.SubscribeRequest, joined chan<- bool) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	watchdog := time.AfterFunc(silence, cancel)
	stream, err := chat.Subscribe(ctx)
	if err == nil {
		stream.Send(request) // Recv tells if this fails
		err = stream.CloseSend()
	}
	for err == nil {
		var delivery *chatpb.Delivery
		if delivery, err = stream.Recv(); err != nil {
			break
		}
		watchdog.Reset(silence)
		for _, gap := range delivery.Gaps {
			log.Printf("up to %d messages are lost", gap.End-gap.Start)
		}
		for _, message := range delivery.Messages {
			fmt.Printf("%s: %q\n", message.Id, message.Content)
		}
		if len(delivery.Cursor) > 0 { // not with going_away
			if request.Cursor == nil {
				joined <- true
			}
			request.Cursor = delivery.Cursor // now that all before it is printed
		}
		if away := delivery.GoingAway; away != nil {
			time.AfterFunc(time.Duration(away.DelayMs)*time.Millisecond, cancel)
		}
	}
	return err
}

// say sends a message, again with the same id for as long as it may not be written.
func say(broadcast chatpb.BroadcastClient, message *chatpb.Message) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		log.Fatal(err)
	}
	message.MessageId = fmt.Sprintf("%x", id)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), silence)
		_, err := broadcast.BroadcastMessage(ctx, message)
		cancel()
		if err == nil {
			return
		} else if status.Code(err) == codes.InvalidArgument {
			log.Print("not sent: ", status.Convert(err).Message())
			return
		}
		time.Sleep(time.Second)
	}
}
