package worker_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// script is the server's side of the worker protocol, played by the test: what a real server does rarely, late or never is
// said here on cue. The same worker runs against the real server in cmd/tasker.
type script struct {
	taskerv1.UnimplementedWorkerServiceServer

	streams chan *scriptStream
	// answers to unary calls. A nil one says yes to everything.
	report    func(*taskerv1.BatchReportStepResultsRequest) (*taskerv1.BatchReportStepResultsResponse, error)
	heartbeat func(*taskerv1.HeartbeatStepsRequest) (*taskerv1.HeartbeatStepsResponse, error)
	results   func(*taskerv1.GetDependencyResultsRequest) (*taskerv1.GetDependencyResultsResponse, error)

	reports  chan *taskerv1.BatchReportStepResultsRequest
	releases chan *taskerv1.ReleaseStepsRequest
	drains   chan *taskerv1.DrainWorkerRequest
}

// scriptStream is one ReadySteps call in the hands of the test.
type scriptStream struct {
	t       *testing.T
	request *taskerv1.ReadyStepsRequest
	frames  chan *taskerv1.ReadyStepsResponse
	end     chan error
	gone    <-chan struct{} // the worker has cancelled it
}

func (s *script) ReadySteps(request *taskerv1.ReadyStepsRequest, server grpc.ServerStreamingServer[taskerv1.ReadyStepsResponse]) error {
	stream := &scriptStream{
		request: request,
		frames:  make(chan *taskerv1.ReadyStepsResponse),
		end:     make(chan error),
		gone:    server.Context().Done(),
	}
	select {
	case s.streams <- stream:
	case <-stream.gone:
		return nil
	}
	for {
		select {
		case frame := <-stream.frames:
			if err := server.Send(frame); err != nil {
				return err
			}
		case err := <-stream.end:
			return err
		case <-stream.gone:
			return nil
		}
	}
}

func (s *script) BatchReportStepResults(_ context.Context, request *taskerv1.BatchReportStepResultsRequest) (*taskerv1.BatchReportStepResultsResponse, error) {
	s.reports <- request
	if s.report != nil {
		return s.report(request)
	}
	return recorded(request), nil
}

func recorded(request *taskerv1.BatchReportStepResultsRequest) *taskerv1.BatchReportStepResultsResponse {
	answer := &taskerv1.BatchReportStepResultsResponse{}
	for range request.GetReports() {
		answer.Entries = append(answer.Entries, &taskerv1.BatchReportStepResultsEntry{
			Status: &taskerv1.EntryStatus{}, Result: &taskerv1.ReportStepResultResponse{},
		})
	}
	return answer
}

func (s *script) HeartbeatSteps(_ context.Context, request *taskerv1.HeartbeatStepsRequest) (*taskerv1.HeartbeatStepsResponse, error) {
	if s.heartbeat != nil {
		return s.heartbeat(request)
	}
	return alive(request), nil
}

func alive(request *taskerv1.HeartbeatStepsRequest) *taskerv1.HeartbeatStepsResponse {
	answer := &taskerv1.HeartbeatStepsResponse{ServerTime: timestamppb.Now()}
	for _, beat := range request.GetHeartbeats() {
		answer.Entries = append(answer.Entries, &taskerv1.HeartbeatStepsEntry{
			LeaseToken: beat.GetLeaseToken(), Status: &taskerv1.EntryStatus{}, HeartbeatBy: durationpb.New(10 * time.Second),
		})
	}
	return answer
}

func (s *script) ReleaseSteps(_ context.Context, request *taskerv1.ReleaseStepsRequest) (*taskerv1.ReleaseStepsResponse, error) {
	s.releases <- request
	answer := &taskerv1.ReleaseStepsResponse{}
	for _, release := range request.GetReleases() {
		answer.Entries = append(answer.Entries, &taskerv1.ReleaseStepsEntry{LeaseToken: release.GetLeaseToken(), Status: &taskerv1.EntryStatus{}})
	}
	return answer, nil
}

func (s *script) DrainWorker(_ context.Context, request *taskerv1.DrainWorkerRequest) (*taskerv1.DrainWorkerResponse, error) {
	s.drains <- request
	return &taskerv1.DrainWorkerResponse{}, nil
}

func (s *script) GetDependencyResults(_ context.Context, request *taskerv1.GetDependencyResultsRequest) (*taskerv1.GetDependencyResultsResponse, error) {
	return s.results(request)
}

func newScript() *script {
	return &script{
		streams:  make(chan *scriptStream),
		reports:  make(chan *taskerv1.BatchReportStepResultsRequest, 100),
		releases: make(chan *taskerv1.ReleaseStepsRequest, 100),
		drains:   make(chan *taskerv1.DrainWorkerRequest, 100),
	}
}

// player is a worker that runs against a script.
type player struct {
	*script
	t       *testing.T
	stop    context.CancelFunc
	ended   chan error
	journal *journal
}

// journal keeps what the worker journaled.
type journal struct {
	mu     sync.Mutex
	events []any
}

func (j *journal) write(event any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, event)
}

func (j *journal) all() []any {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]any(nil), j.events...)
}

// play starts a worker with one handler named "work" on the script.
func play(t *testing.T, s *script, handler worker.Handler, adjust ...func(*worker.Config)) *player {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	taskerv1.RegisterWorkerServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := worker.Dial("passthrough:script", insecure.NewCredentials(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	p := &player{script: s, t: t, ended: make(chan error, 1), journal: &journal{}}
	cfg := worker.Config{
		Client:         taskerv1.NewWorkerServiceClient(conn),
		WorkerID:       "w",
		InstanceID:     "i",
		Subscriptions:  []worker.Subscription{{Handler: "work", Run: handler}},
		MaxInFlight:    8,
		HeartbeatEvery: 10 * time.Millisecond,
		ReconnectDelay: time.Millisecond,
		DrainTimeout:   50 * time.Millisecond,
		Logger:         slog.New(slog.DiscardHandler),
		Journal:        p.journal.write,
	}
	for _, change := range adjust {
		change(&cfg)
	}
	w, err := worker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p.stop = cancel
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		p.ended <- w.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		receive(t, finished, "the worker's end")
		server.Stop()
		_ = conn.Close()
		if err := <-served; err != nil {
			t.Errorf("the script ended with %v", err)
		}
	})
	return p
}

// receive waits for a message.
func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case got := <-from:
		return got
	case <-timer.C:
		t.Fatalf("no %s within %s", what, patience)
		panic("unreachable")
	}
}

// stream is the next stream that the worker opens.
func (p *player) stream() *scriptStream {
	p.t.Helper()
	stream := receive(p.t, p.streams, "stream")
	stream.t = p.t
	return stream
}

func (s *scriptStream) send(frame *taskerv1.ReadyStepsResponse) {
	s.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case s.frames <- frame:
	case <-s.gone:
		s.t.Fatal("the worker has left the stream")
	case <-timer.C:
		s.t.Fatal("the stream takes no frame")
	}
}

func (s *scriptStream) open(lost ...string) {
	s.t.Helper()
	s.send(&taskerv1.ReadyStepsResponse{Frame: &taskerv1.ReadyStepsResponse_Opened{Opened: &taskerv1.SessionOpened{
		HeartbeatInterval: durationpb.New(15 * time.Second),
		DeliveryTimeout:   durationpb.New(5 * time.Second),
		ServerTime:        timestamppb.Now(),
		LostLeaseTokens:   lost,
	}}})
}

func (s *scriptStream) step(token string, change ...func(*taskerv1.ReadyStep)) {
	s.t.Helper()
	step := &taskerv1.ReadyStep{
		TaskId: "16384", StepId: "16385", StepName: "step", Handler: "work", LeaseToken: token, Attempt: 1, RetryLimit: 3, Dispatch: 1,
		HeartbeatBy: durationpb.New(10 * time.Second), Context: "{}", HandlerConfig: "{}",
	}
	for _, adjust := range change {
		adjust(step)
	}
	s.send(&taskerv1.ReadyStepsResponse{Frame: &taskerv1.ReadyStepsResponse_Step{Step: step}})
}

func (s *scriptStream) revoke(token string, reason taskerv1.RevokeReason) {
	s.t.Helper()
	s.send(&taskerv1.ReadyStepsResponse{Frame: &taskerv1.ReadyStepsResponse_Revoked{Revoked: &taskerv1.LeaseRevoked{LeaseToken: token, Reason: reason}}})
}

func (s *scriptStream) drain() {
	s.t.Helper()
	s.send(&taskerv1.ReadyStepsResponse{Frame: &taskerv1.ReadyStepsResponse_Draining{Draining: &taskerv1.ServerDraining{}}})
}

// leaseLost is how a server answers for a token that is not in force.
func leaseLost(reason taskerv1.RevokeReason) (*taskerv1.EntryStatus, taskerv1.RevokeReason) {
	return &taskerv1.EntryStatus{Code: int32(codes.FailedPrecondition), Reason: taskerv1.ErrorReason_ERROR_REASON_LEASE_LOST}, reason
}
