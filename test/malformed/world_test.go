package malformed_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/server"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a running server, and what is alive on it.
type world struct {
	*testing.T
	db   *pgtest.DB
	log  *lockedBuffer
	conn *grpc.ClientConn

	tasks     pb.TaskServiceClient
	workers   pb.WorkerServiceClient
	steps     pb.StepServiceClient
	templates pb.TemplateServiceClient
	methods   []protoreflect.MethodDescriptor

	taskIDs, stepIDs, tokens, pages []string // the newest of each
	lively                          int      // number of the worker that takes steps
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// firstLine hands over the first line that is written to it.
type firstLine struct {
	line chan string
	once sync.Once
}

func (f *firstLine) Write(p []byte) (int, error) {
	f.once.Do(func() { f.line <- strings.TrimSpace(string(p)) })
	return len(p), nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, db: pgtest.New(t), log: &lockedBuffer{}}
	conf := server.Default()
	conf.Listen, conf.DatabaseURL, conf.ShutdownTimeout = "127.0.0.1:0", w.db.ConnString(), 5*time.Second
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := &firstLine{line: make(chan string, 1)}, make(chan error, 1)
	go func() { ended <- server.Run(ctx, conf, ready, slog.New(slog.NewTextHandler(w.log, nil))) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	select {
	case line := <-ready.line:
		var err error
		w.conn, err = grpc.NewClient(strings.TrimPrefix(line, "serving on "), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
		w.ok(err)
	case err := <-ended:
		t.Fatalf("the server ended: %v\n%s", err, w.log)
	}
	t.Cleanup(func() { _ = w.conn.Close() }) // The server has gone on or not: that is judged elsewhere.
	w.tasks, w.workers = pb.NewTaskServiceClient(w.conn), pb.NewWorkerServiceClient(w.conn)
	w.steps, w.templates = pb.NewStepServiceClient(w.conn), pb.NewTemplateServiceClient(w.conn)
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_tasker_v1_task_service_proto, pb.File_tasker_v1_worker_service_proto, pb.File_tasker_v1_step_service_proto,
		pb.File_tasker_v1_template_service_proto, pb.File_tasker_v1_circuit_service_proto,
	} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for k := range methods.Len() {
				w.methods = append(w.methods, methods.Get(k))
			}
		}
	}
	return w
}

func (w *world) ok(err error) {
	if err != nil {
		w.Helper()
		w.Fatal(err)
	}
}

// graph is a task with a root that needs nothing, a middle and a join.
func graph() *pb.TaskSubmission_Inline {
	step := func(name string, parents ...string) *pb.StepDefinition {
		return &pb.StepDefinition{
			Name: name, Handler: proto.String("h"), DependsOn: parents, MaxLostLeases: proto.Int32(100), RetryLimit: proto.Int32(100),
			Backoff: &pb.BackoffPolicy{Initial: durationpb.New(time.Millisecond), Max: durationpb.New(time.Second)},
		}
	}
	return &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: []*pb.StepDefinition{
		step("s1"), step("s2"), step("s3", "s1"), step("s4", "s2", "s3"),
	}}}
}

// liven keeps the world alive: there are fresh tasks, leases that are held, and steps in error.
func (w *world) liven() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	submitted, err := w.tasks.SubmitTask(ctx, &pb.SubmitTaskRequest{Task: &pb.TaskSubmission{
		Name: proto.String("t"), Definition: graph(), Context: "{}", Labels: map[string]string{"a": "1"},
	}})
	w.ok(err)
	w.taskIDs = newest(w.taskIDs, submitted.GetTask().GetTaskId())
	polled, err := w.workers.PollReadySteps(ctx, &pb.PollReadyStepsRequest{
		WorkerId: w.livelyName(), InstanceId: "1", MaxInFlight: 10_000, MaxSteps: proto.Int32(20), WaitDuration: durationpb.New(0),
		Handlers: []*pb.HandlerSubscription{{Name: "h"}},
	})
	if err != nil || len(polled.GetSteps()) == 0 {
		w.lively++ // Drained, or its name was taken: what it holds runs out. There is enough to do.
		return
	}
	for n, step := range polled.GetSteps() {
		w.tokens, w.stepIDs = newest(w.tokens, step.GetLeaseToken()), newest(w.stepIDs, step.GetStepId())
		if n%4 == 0 {
			_, _ = w.workers.ReportStepResult(ctx, &pb.ReportStepResultRequest{ // It may be lost by now.
				LeaseToken: step.GetLeaseToken(),
				Outcome:    &pb.ReportStepResultRequest_PermanentFailure{PermanentFailure: &pb.StepPermanentFailure{Failure: &pb.Failure{ErrorCode: "E"}}},
			})
		}
	}
}

func (w *world) livelyName() string { return fmt.Sprintf("lively%d", w.lively) }

func newest(list []string, more string) []string {
	list = append(list, more)
	return list[max(len(list)-40, 0):]
}

// output makes an empty answer of a method.
func output(m protoreflect.MethodDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		panic(err) // generated code registers every message
	}
	return kind.New().Interface()
}
