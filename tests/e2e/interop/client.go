// The cases of gRPC's interoperability tests, as far as they apply, with grpc-go: client ADDRESS FOLDER.
// Each case prints its name and "ok", or what happened. Messages are bytes; FOLDER has the requests.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const service = "/inference.GRPCInferenceService/"

type bytesCodec struct{}

func (bytesCodec) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }
func (bytesCodec) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (bytesCodec) Name() string   { return "proto" }
func (bytesCodec) String() string { return "proto" }

var conn *grpc.ClientConn
var folder string

func request(name string) []byte {
	data, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		panic(err)
	}
	return data
}

func soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

func unary(ctx context.Context, path string, data []byte, options ...grpc.CallOption) ([]byte, error) {
	var answer []byte
	err := conn.Invoke(ctx, path, &data, &answer, options...)
	return answer, err
}

func stream(ctx context.Context, path string, client bool) (grpc.ClientStream, error) {
	return conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: client, ServerStreams: true}, path)
}

func send(s grpc.ClientStream, data []byte) error { return s.SendMsg(&data) }

func receive(s grpc.ClientStream) ([]byte, error) {
	var answer []byte
	err := s.RecvMsg(&answer)
	return answer, err
}

func expect(err error, code codes.Code, words string) error {
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), words) {
		return fmt.Errorf("%v is not %v with %q", err, code, words)
	}
	return nil
}

func answered(path, name string, least int, options ...grpc.CallOption) error {
	ctx, cancel := soon()
	defer cancel()
	answer, err := unary(ctx, service+path, request(name), options...)
	if err == nil && len(answer) < least {
		err = fmt.Errorf("an answer of %d bytes", len(answer))
	}
	return err
}

// pingPong sends a message and waits for its answer, a number of times, and then ends the stream.
func pingPong(ctx context.Context, times int) error {
	s, err := stream(ctx, service+"ModelStreamInfer", true)
	if err != nil {
		return err
	}
	for ; times > 0; times-- {
		if err := send(s, request("small")); err != nil {
			return err
		}
		if answer, err := receive(s); err != nil || len(answer) == 0 {
			return fmt.Errorf("%d bytes, %v", len(answer), err)
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	if _, err := receive(s); err != io.EOF {
		return fmt.Errorf("%v is not the end", err)
	}
	return nil
}

func cancelled(answers int) error {
	ctx, cancel := soon()
	defer cancel()
	s, err := stream(ctx, service+"ModelStreamInfer", true)
	if err != nil {
		return err
	}
	for ; answers > 0; answers-- {
		if err := send(s, request("small")); err != nil {
			return err
		}
		if _, err := receive(s); err != nil {
			return err
		}
	}
	cancel()
	_, err = receive(s)
	return expect(err, codes.Canceled, "")
}

func failing(path, name string, code codes.Code, words string) error {
	ctx, cancel := soon()
	defer cancel()
	_, err := unary(ctx, path, request(name))
	return expect(err, code, words)
}

var cases = []struct {
	name string
	run  func() error
}{
	{"empty_unary", func() error { return answered("ServerLive", "empty", 2) }},
	{"large_unary", func() error { return answered("ModelInfer", "large", 271_828) }},
	{"client_compressed_unary", func() error { return answered("ModelInfer", "large", 271_828, grpc.UseCompressor("gzip")) }},
	{"server_streaming", func() error {
		ctx, cancel := soon()
		defer cancel()
		s, err := stream(ctx, "/grpc.health.v1.Health/Watch", false)
		if err != nil {
			return err
		}
		if err := send(s, request("empty")); err != nil {
			return err
		}
		if err := s.CloseSend(); err != nil {
			return err
		}
		answer, err := receive(s)
		if err == nil && len(answer) != 2 {
			err = fmt.Errorf("%v", answer)
		}
		return err
	}},
	{"ping_pong", func() error { ctx, cancel := soon(); defer cancel(); return pingPong(ctx, 4) }},
	{"empty_stream", func() error { ctx, cancel := soon(); defer cancel(); return pingPong(ctx, 0) }},
	{"cancel_after_begin", func() error { return cancelled(0) }},
	{"cancel_after_first_response", func() error { return cancelled(1) }},
	{"timeout_on_sleeping_server", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		s, err := stream(ctx, service+"ModelStreamInfer", true)
		if err == nil {
			_, err = receive(s)
		}
		return expect(err, codes.DeadlineExceeded, "")
	}},
	{"status_code_and_message", func() error { return failing(service+"ModelInfer", "faulty", codes.InvalidArgument, "big") }},
	{"special_status_message", func() error { return failing(service+"ModelInfer", "special", codes.NotFound, "☺ 😈 100 %") }},
	{"unimplemented_method", func() error { return failing(service+"Nope", "empty", codes.Unimplemented, "") }},
	{"unimplemented_service", func() error { return failing("/no.Service/Nope", "empty", codes.Unimplemented, "") }},
	{"custom_metadata", func() error {
		ctx, cancel := soon()
		defer cancel()
		ctx = metadata.AppendToOutgoingContext(ctx, "x-grpc-test-echo-initial", "test_initial_metadata_value",
			"x-grpc-test-echo-trailing-bin", "\xab\xab\xab")
		if _, err := unary(ctx, service+"ModelInfer", request("small")); err != nil {
			return err
		}
		return pingPong(ctx, 1)
	}},
	{"concurrent_large_unary", func() error {
		var group sync.WaitGroup
		failures := make([]error, 50)
		for number := range failures {
			group.Add(1)
			go func(number int) {
				defer group.Done()
				failures[number] = answered("ModelInfer", "large", 271_828)
			}(number)
		}
		group.Wait()
		for _, err := range failures {
			if err != nil {
				return err
			}
		}
		return nil
	}},
}

func main() {
	folder = os.Args[2]
	var err error
	conn, err = grpc.Dial(os.Args[1], grpc.WithInsecure(), grpc.WithDefaultCallOptions(grpc.ForceCodec(bytesCodec{})))
	if err != nil {
		panic(err)
	}
	for _, each := range cases {
		said := "ok"
		if err := each.run(); err != nil {
			said = err.Error()
		}
		fmt.Printf("%s %s\n", each.name, said)
	}
}
