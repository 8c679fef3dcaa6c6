package server_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/server"
)

// quiet is the log of what a test does not look at.
var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { pgtest.Main(m) }

// running is a server in this process, on a real database and a real socket.
type running struct {
	address string
	log     *buffer
	// stop ends the server and gives what Run returned.
	stop func() error

	conn      *grpc.ClientConn
	tasks     pb.TaskServiceClient
	workers   pb.WorkerServiceClient
	steps     pb.StepServiceClient
	templates pb.TemplateServiceClient
}

// buffer is what a server has written so far.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start runs a server on a database of its own until the test ends. change, if any, changes its configuration.
func start(t *testing.T, db *pgtest.DB, change ...func(*server.Config)) *running {
	t.Helper()
	conf := server.Default()
	conf.Listen, conf.DatabaseURL, conf.LogLevel = "127.0.0.1:0", db.ConnString(), "debug"
	conf.ShutdownTimeout = 5 * time.Second
	for _, c := range change {
		c(&conf)
	}
	s, lines := launch(t, conf)
	line, err := lines()
	if err != nil {
		t.Fatalf("the server ended before it was ready: %v\n%s", s.stop(), s.log)
	}
	s.address = strings.TrimSpace(strings.TrimPrefix(line, "serving on "))
	s.conn = dial(t, s.address)
	s.tasks, s.workers = pb.NewTaskServiceClient(s.conn), pb.NewWorkerServiceClient(s.conn)
	s.steps, s.templates = pb.NewStepServiceClient(s.conn), pb.NewTemplateServiceClient(s.conn)
	return s
}

// launch runs a server and does not wait for it. The line it gives is the first on standard output.
func launch(t *testing.T, conf server.Config) (*running, func() (string, error)) {
	t.Helper()
	s := &running{log: &buffer{}}
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := server.Run(ctx, conf, in, log)
		_ = in.CloseWithError(io.ErrUnexpectedEOF)
		done <- err
	}()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("the server ended with: %v\n%s", err, s.log)
		}
	})
	return s, func() (string, error) {
		line := make([]byte, 256)
		n, err := out.Read(line)
		return string(line[:n]), err
	}
}

func dial(t *testing.T, address string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	options = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)
	conn, err := grpc.NewClient(address, options...)
	if err != nil {
		t.Fatalf("making a client: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
