package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/store"
)

// serve runs the services on a database of their own.
func serve(t *testing.T, settings rpc.Settings) *grpc.ClientConn {
	t.Helper()
	conf, err := pgxpool.ParseConfig(pgtest.New(t).ConnString())
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), conf, 4)
	if err != nil {
		t.Fatal(err)
	}
	e := engine.New(st, engine.Config{ReplicaID: [16]byte{1}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	services, err := rpc.New(e, quiet, settings)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(services.Interceptors(rpc.Around{Timeout: time.Minute}), grpc.ForceServerCodecV2(rpc.Codec()))...)
	services.Register(server)
	listener := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///services", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the engine ended with %v", err)
		}
		st.Close()
	})
	return conn
}

// A stream that has grown old is asked to move, and then ends with OK: connections are never cut for their age.
func TestAnOldStreamIsAskedToMove(t *testing.T) {
	conn := serve(t, rpc.Settings{StreamAge: 300 * time.Millisecond, DrainGrace: 100 * time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begun := time.Now()
	stream, err := pb.NewWorkerServiceClient(conn).ReadySteps(ctx, &pb.ReadyStepsRequest{
		WorkerId: "w", InstanceId: "1", MaxInFlight: 1, Handlers: []*pb.HandlerSubscription{{Name: "s"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if f, err := stream.Recv(); err != nil || f.GetOpened() == nil {
		t.Fatalf("first: %v, %v", f, err)
	}
	f, err := stream.Recv()
	if err != nil || f.GetDraining().GetGraceDuration().AsDuration() != 100*time.Millisecond {
		t.Fatalf("then: %v, %v", f, err)
	}
	if age := time.Since(begun); age < 250*time.Millisecond {
		t.Errorf("asked to move after %v", age)
	}
	if f, err = stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at last: %v, %v", f, err)
	}
}
