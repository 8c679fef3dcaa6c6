package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/task"
)

// fake is services whose handlers do what a test wants: what is tried here stands around them.
type fake struct {
	pb.UnimplementedTaskServiceServer
	pb.UnimplementedWorkerServiceServer
	unary  func(context.Context) error
	stream func(context.Context) error
}

func (f *fake) GetTask(ctx context.Context, _ *pb.GetTaskRequest) (*pb.GetTaskResponse, error) {
	return &pb.GetTaskResponse{}, f.unary(ctx)
}

func (f *fake) SubmitTask(ctx context.Context, _ *pb.SubmitTaskRequest) (*pb.SubmitTaskResponse, error) {
	return &pb.SubmitTaskResponse{}, f.unary(ctx)
}

func (f *fake) ListTasks(ctx context.Context, _ *pb.ListTasksRequest) (*pb.ListTasksResponse, error) {
	return &pb.ListTasksResponse{}, f.unary(ctx)
}

func (f *fake) ReadySteps(_ *pb.ReadyStepsRequest, stream grpc.ServerStreamingServer[pb.ReadyStepsResponse]) error {
	return f.stream(stream.Context())
}

// around puts the interceptors around a fake, and gives a connection to it.
func around(t *testing.T, f *fake, a rpc.Around, log *slog.Logger) *grpc.ClientConn {
	t.Helper()
	services, err := rpc.New(nil, log, rpc.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(services.Interceptors(a), grpc.ForceServerCodecV2(rpc.Codec()))...)
	pb.RegisterTaskServiceServer(server, f)
	pb.RegisterWorkerServiceServer(server, f)
	listener := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
	})
	return conn
}

var get = &pb.GetTaskRequest{TaskId: "16384"}

func open(ctx context.Context, conn *grpc.ClientConn, namespace string) error {
	stream, err := pb.NewWorkerServiceClient(conn).ReadySteps(ctx, &pb.ReadyStepsRequest{
		Namespace: namespace, WorkerId: "w", InstanceId: "1", MaxInFlight: 1, Handlers: []*pb.HandlerSubscription{{Name: "s"}},
	})
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

func TestAPanicIsCaughtAndCounted(t *testing.T) {
	var log bytes.Buffer
	var panics atomic.Int32
	f := &fake{unary: func(context.Context) error { panic("ouch") }, stream: func(context.Context) error { panic("ouch") }}
	conn := around(t, f, rpc.Around{Timeout: time.Minute, Panicked: func() { panics.Add(1) }}, slog.New(slog.NewTextHandler(&log, nil)))
	_, err := pb.NewTaskServiceClient(conn).GetTask(t.Context(), get)
	for _, err := range []error{err, open(t.Context(), conn, "")} {
		st := status.Convert(err)
		if st.Code() != codes.Internal || strings.Contains(st.Message(), "ouch") || detail[*errdetails.ErrorInfo](st).GetMetadata()["error_id"] == "" {
			t.Errorf("told: %v", st.Proto())
		}
	}
	if panics.Load() != 2 || !strings.Contains(log.String(), "ouch") || !strings.Contains(log.String(), "interceptor_test.go") {
		t.Errorf("%d panics counted, logged: %s", panics.Load(), log.String())
	}
}

func TestEveryUnaryCallHasADeadline(t *testing.T) {
	var left time.Duration
	f := &fake{unary: func(ctx context.Context) error {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil
	}}
	tasks := pb.NewTaskServiceClient(around(t, f, rpc.Around{Timeout: 10 * time.Second}, quiet))
	if _, err := tasks.GetTask(t.Context(), get); err != nil || left < 9*time.Second || left > 10*time.Second {
		t.Errorf("without one: %v left, %v", left, err)
	}
	if _, err := tasks.SubmitTask(t.Context(), &pb.SubmitTaskRequest{
		WaitDuration: durationpb.New(40 * time.Second),
		Task:         &pb.TaskSubmission{Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "t"}}},
	}); err != nil || left < 49*time.Second || left > 50*time.Second {
		t.Errorf("with a wait of 40 s: %v left, %v", left, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := tasks.GetTask(ctx, get); err != nil || left < 59*time.Minute || left > time.Hour {
		t.Errorf("with one of an hour: %v left, %v", left, err)
	}
}

// The server gives up a little before its caller does, so that the caller hears why.
func TestAPassedDeadlineIsTold(t *testing.T) {
	f := &fake{unary: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := pb.NewTaskServiceClient(around(t, f, rpc.Around{Timeout: time.Minute}, quiet)).GetTask(ctx, get)
	if st := status.Convert(err); st.Code() != codes.DeadlineExceeded || !strings.Contains(st.Message(), "whether it took effect is unknown") || ctx.Err() != nil {
		t.Errorf("told: %v, the caller's own: %v", err, ctx.Err())
	}
}

func TestTheCallerComesFromTheSeam(t *testing.T) {
	var seen rpc.Caller
	look := func(ctx context.Context) error {
		seen = rpc.CallerOf(ctx)
		return task.Refuse(task.Draining, "enough seen")
	}
	who := func(ctx context.Context, method, namespace string) (rpc.Caller, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		if len(md.Get("authorization")) == 0 {
			return rpc.Caller{}, task.Refuse("BAD_CREDENTIAL", "no credential")
		}
		return rpc.Caller{Namespace: namespace, Actor: md.Get("authorization")[0] + method[strings.LastIndex(method, "/"):]}, nil
	}
	conn := around(t, &fake{unary: look, stream: look}, rpc.Around{Timeout: time.Minute, Authenticate: who}, quiet)
	tasks := pb.NewTaskServiceClient(conn)

	_, err := tasks.ListTasks(t.Context(), &pb.ListTasksRequest{})
	for _, err := range []error{err, open(t.Context(), conn, "")} {
		if st := status.Convert(err); st.Code() != codes.Unauthenticated || detail[*errdetails.ErrorInfo](st).GetReason() != "BAD_CREDENTIAL" {
			t.Errorf("without a credential: %v", err)
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "ann")
	for _, c := range []struct {
		call func() error
		want rpc.Caller
	}{
		{func() error { _, err := tasks.ListTasks(ctx, &pb.ListTasksRequest{}); return err }, rpc.Caller{Namespace: "default", Actor: "ann/ListTasks"}},
		{func() error { _, err := tasks.ListTasks(ctx, &pb.ListTasksRequest{Namespace: "eu"}); return err }, rpc.Caller{Namespace: "eu", Actor: "ann/ListTasks"}},
		{func() error { return open(ctx, conn, "eu") }, rpc.Caller{Namespace: "eu", Actor: "ann/ReadySteps"}},
	} {
		seen = rpc.Caller{}
		if err := c.call(); status.Code(err) != codes.Unavailable || seen != c.want {
			t.Errorf("seen %v, want %v (%v)", seen, c.want, err)
		}
	}
}

func TestTheGateRefusesEverything(t *testing.T) {
	conn := around(t, &fake{}, rpc.Around{Timeout: time.Minute, Gate: func() error { return task.Refuse(task.DatabaseUnavailable, "not yet") }}, quiet)
	_, err := pb.NewTaskServiceClient(conn).GetTask(t.Context(), get)
	for _, err := range []error{err, open(t.Context(), conn, "")} {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("got %v", err)
		}
	}
}

// What gRPC itself says stays as it is; what a handler wraps does not get out.
func TestOnlyOurStatusesGetOut(t *testing.T) {
	f := &fake{unary: func(context.Context) error {
		return errors.Join(errors.New("a secret"), status.Error(codes.NotFound, "a secret"))
	}}
	conn := around(t, f, rpc.Around{Timeout: time.Minute}, quiet)
	if _, err := pb.NewTaskServiceClient(conn).GetTask(t.Context(), get); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("a wrapped status: %v", err)
	}
	if _, err := pb.NewStepServiceClient(conn).GetStep(t.Context(), &pb.GetStepRequest{StepId: "16385"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a service that is not there: %v", err)
	}
}

// A message that is no message of its type is the client's mistake, over the wire as well.
func TestBytesThatAreNoRequest(t *testing.T) {
	f := &fake{unary: func(context.Context) error { return errors.New("a handler was called") }, stream: func(context.Context) error { return errors.New("a handler was called") }}
	conn := around(t, f, rpc.Around{Timeout: time.Minute}, quiet)
	for _, wire := range [][]byte{{0x0a, 0x02, 0xff, 0xfe}, {0x0a, 0x7f}, {0xff}, bytes.Repeat([]byte{0x12}, 100)} {
		err := conn.Invoke(t.Context(), pb.TaskService_GetTask_FullMethodName, &raw{wire}, &pb.GetTaskResponse{}, grpc.ForceCodecV2(rawCodec{rpc.Codec()}))
		if st := status.Convert(err); st.Code() != codes.InvalidArgument || detail[*errdetails.ErrorInfo](st).GetReason() != "VALIDATION" {
			t.Errorf("%x: %v", wire, err)
		}
		stream, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, pb.WorkerService_ReadySteps_FullMethodName, grpc.ForceCodecV2(rawCodec{rpc.Codec()}))
		if err != nil {
			t.Fatal(err)
		}
		if err = stream.SendMsg(&raw{wire}); err == nil {
			_ = stream.CloseSend()
			err = stream.RecvMsg(&pb.ReadyStepsResponse{})
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%x on a stream: %v", wire, err)
		}
	}
}
