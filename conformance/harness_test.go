package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/server"
)

// patience bounds everything that a test waits for; nothing is meant to take that long.
const patience = 40 * time.Second

// Most of these tests wait for a lease or a timeout to pass, which takes no processor.
const atOnce = "8"

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", atOnce); err != nil {
		panic(err)
	}
	pgtest.Main(m)
}

// system is a server in this process, on a database of its own and a real socket, and its clients.
type system struct {
	t       *testing.T
	db      *pgtest.DB
	address string
	log     *buffer
	stop    func() error

	tasks     pb.TaskServiceClient
	workers   pb.WorkerServiceClient
	steps     pb.StepServiceClient
	templates pb.TemplateServiceClient
}

// buffer is what a server has logged so far.
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

// start runs a server on a fresh database until the test ends, beside other tests.
func start(t *testing.T, change ...func(*server.Config)) *system {
	t.Helper()
	t.Parallel()
	return startOn(t, pgtest.New(t), change...)
}

// startOn runs a server on a database that may have others.
func startOn(t *testing.T, db *pgtest.DB, change ...func(*server.Config)) *system {
	t.Helper()
	conf := server.Default()
	conf.Listen, conf.DatabaseURL, conf.LogLevel = "127.0.0.1:0", db.ConnString(), "debug"
	conf.ShutdownTimeout = 5 * time.Second
	for _, c := range change {
		c(&conf)
	}
	s := &system{t: t, db: db, log: &buffer{}}
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
	line := make([]byte, 256)
	n, err := out.Read(line)
	if err != nil {
		t.Fatalf("the server ended before it was ready: %v\n%s", s.stop(), s.log)
	}
	s.address = strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "serving on "))
	conn := s.dial()
	s.tasks, s.workers = pb.NewTaskServiceClient(conn), pb.NewWorkerServiceClient(conn)
	s.steps, s.templates = pb.NewStepServiceClient(conn), pb.NewTemplateServiceClient(conn)
	return s
}

// dial makes a connection of its own to the server.
func (s *system) dial(options ...grpc.DialOption) *grpc.ClientConn {
	s.t.Helper()
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32 << 20)),
	}, options...)
	conn, err := grpc.NewClient(s.address, options...)
	if err != nil {
		s.t.Fatalf("making a client: %v", err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// within is a context for calls of a test.
func (s *system) within() context.Context {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

// must stops the test for a call that was refused.
func must[M any](t *testing.T) func(M, error) M {
	t.Helper()
	return func(m M, err error) M {
		t.Helper()
		if err != nil {
			t.Fatalf("refused: %v %v", err, status.Convert(err).Details())
		}
		return m
	}
}

// eventually waits for a condition that nothing announces.
func (s *system) eventually(what string, holds func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not in time: %s\n%s", what, s.log)
		}
	}
}

// ---------------------------------------------------------------- submits

func inline(steps ...*pb.StepDefinition) *pb.TaskSubmission {
	return &pb.TaskSubmission{Name: proto.String("t"), Definition: &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: steps}}}
}

// step is a step that depends on parents. Its handler is "h", so that one worker takes them all, and it draws no jitter.
func step(name string, parents ...string) *pb.StepDefinition {
	return &pb.StepDefinition{
		Name: name, Handler: proto.String("h"), DependsOn: parents, Backoff: &pb.BackoffPolicy{Jitter: proto.Float64(0)},
	}
}

// with changes a step.
func with(d *pb.StepDefinition, change ...func(*pb.StepDefinition)) *pb.StepDefinition {
	for _, c := range change {
		c(d)
	}
	return d
}

func retryLimit(n int32) func(*pb.StepDefinition) {
	return func(d *pb.StepDefinition) { d.RetryLimit = &n }
}

func handlerOf(name string) func(*pb.StepDefinition) {
	return func(d *pb.StepDefinition) { d.Handler = &name }
}

func leaseOf(length time.Duration) func(*pb.StepDefinition) {
	return func(d *pb.StepDefinition) { d.Lease = durationpb.New(length) }
}

func lostLeases(n int32) func(*pb.StepDefinition) {
	return func(d *pb.StepDefinition) { d.MaxLostLeases = &n }
}

func config(text string) func(*pb.StepDefinition) {
	return func(d *pb.StepDefinition) { d.HandlerConfig = text }
}

func (s *system) submit(sub *pb.TaskSubmission) *pb.Task {
	s.t.Helper()
	return must[*pb.SubmitTaskResponse](s.t)(s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Task: sub})).GetTask()
}

func (s *system) validate(sub *pb.TaskSubmission) error {
	s.t.Helper()
	_, err := s.tasks.ValidateTask(s.within(), &pb.ValidateTaskRequest{Task: sub})
	return err
}

// ---------------------------------------------------------------- reads

func (s *system) task(id string) *pb.GetTaskResponse {
	s.t.Helper()
	return must[*pb.GetTaskResponse](s.t)(s.tasks.GetTask(s.within(), &pb.GetTaskRequest{TaskId: id, IncludeLeafResults: true, IncludeContext: true}))
}

func (s *system) taskState(id string) string {
	s.t.Helper()
	return strings.TrimPrefix(s.task(id).GetTask().GetState().String(), "TASK_STATE_")
}

func (s *system) step(id string) *pb.Step {
	s.t.Helper()
	return must[*pb.GetStepResponse](s.t)(s.steps.GetStep(s.within(), &pb.GetStepRequest{StepId: id, IncludePayloads: true})).GetStep()
}

// named is the step of a task that bears a name.
func (s *system) named(taskID, name string) *pb.Step {
	s.t.Helper()
	for _, x := range s.all(taskID) {
		if x.GetName() == name {
			return x
		}
	}
	s.t.Fatalf("task %s has no step %q", taskID, name)
	return nil
}

func (s *system) all(taskID string) []*pb.Step {
	s.t.Helper()
	return must[*pb.ListStepsResponse](s.t)(s.steps.ListSteps(s.within(), &pb.ListStepsRequest{TaskId: taskID, PageSize: 1000})).GetSteps()
}

func (s *system) attempts(stepID string) []*pb.Attempt {
	s.t.Helper()
	return must[*pb.ListStepAttemptsResponse](s.t)(s.steps.ListStepAttempts(s.within(), &pb.ListStepAttemptsRequest{StepId: stepID, PageSize: 1000})).GetAttempts()
}

func stateOf(x *pb.Step) string { return strings.TrimPrefix(x.GetState().String(), "STEP_STATE_") }

// value is the one value that a query answers.
func value[V any](s *system, sql string, args ...any) V {
	s.t.Helper()
	rows, err := s.db.Pool.Query(s.within(), sql, args...)
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[V])
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// ---------------------------------------------------------------- workers

// worker is an open stream of steps.
type worker struct {
	*system
	stream grpc.ServerStreamingClient[pb.ReadyStepsResponse]
	cancel context.CancelFunc
	opened *pb.SessionOpened
	// revoked are the leases that were, while the test waited for something else.
	revoked map[string]pb.RevokeReason
}

// request introduces a worker that beats, for tests to change. Its handler is "h" unless others are named.
func request(id string, inFlight int32, handlers ...string) *pb.ReadyStepsRequest {
	if len(handlers) == 0 {
		handlers = []string{"h"}
	}
	r := &pb.ReadyStepsRequest{WorkerId: id, InstanceId: id + "-1", MaxInFlight: inFlight, SendsHeartbeats: true, DeliveryTimeout: durationpb.New(time.Minute)}
	for _, h := range handlers {
		r.Handlers = append(r.Handlers, &pb.HandlerSubscription{Name: h})
	}
	return r
}

// worker opens a stream whose dispatches may stay unconfirmed for a minute: the test is in no hurry.
func (s *system) worker(inFlight int32, handlers ...string) *worker {
	s.t.Helper()
	return s.open(request("w", inFlight, handlers...))
}

func (s *system) open(r *pb.ReadyStepsRequest) *worker {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.within())
	stream, err := s.workers.ReadySteps(ctx, r)
	if err != nil {
		cancel()
		s.t.Fatalf("opening a stream: %v", err)
	}
	w := &worker{system: s, stream: stream, cancel: cancel, revoked: map[string]pb.RevokeReason{}}
	if w.opened = w.frame().GetOpened(); w.opened == nil {
		s.t.Fatal("the first frame is not opened")
	}
	return w
}

// refusedStream is why a stream is refused, or ends.
func (s *system) refusedStream(r *pb.ReadyStepsRequest) error {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.within())
	defer cancel()
	stream, err := s.workers.ReadySteps(ctx, r)
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

func (w *worker) frame() *pb.ReadyStepsResponse {
	w.t.Helper()
	f, err := w.stream.Recv()
	if err != nil {
		w.t.Fatalf("receiving a frame: %v\n%s", err, w.log)
	}
	return f
}

// next is the next step frame.
func (w *worker) next() *pb.ReadyStep {
	w.t.Helper()
	for {
		f := w.frame()
		if r := f.GetRevoked(); r != nil {
			w.revoked[r.GetLeaseToken()] = r.GetReason()
		}
		if f.GetStep() != nil {
			return f.GetStep()
		}
	}
}

// several are the next n step frames, by the steps' names.
func (w *worker) several(n int) map[string]*pb.ReadyStep {
	w.t.Helper()
	steps := make(map[string]*pb.ReadyStep, n)
	for range n {
		x := w.next()
		steps[x.GetStepName()] = x
	}
	return steps
}

// awaitRevoked reads on until a lease is revoked.
func (w *worker) awaitRevoked(token string) pb.RevokeReason {
	w.t.Helper()
	for w.revoked[token] == 0 {
		if r := w.frame().GetRevoked(); r != nil {
			w.revoked[r.GetLeaseToken()] = r.GetReason()
		}
	}
	return w.revoked[token]
}

// end reads on until the stream ends.
func (w *worker) end() error {
	w.t.Helper()
	for {
		if _, err := w.stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// poll asks for up to n steps as worker id and waits for them.
func (s *system) poll(id string, n int32, change ...func(*pb.PollReadyStepsRequest)) *pb.PollReadyStepsResponse {
	s.t.Helper()
	r := &pb.PollReadyStepsRequest{
		WorkerId: id, InstanceId: id + "-1", MaxInFlight: n, Handlers: []*pb.HandlerSubscription{{Name: "h"}}, SendsHeartbeats: true,
		DeliveryTimeout: durationpb.New(time.Minute),
	}
	for _, c := range change {
		c(r)
	}
	return must[*pb.PollReadyStepsResponse](s.t)(s.workers.PollReadySteps(s.within(), r))
}

// ---------------------------------------------------------------- reports

func (s *system) report(r *pb.ReportStepResultRequest) *pb.ReportStepResultResponse {
	s.t.Helper()
	return must[*pb.ReportStepResultResponse](s.t)(s.workers.ReportStepResult(s.within(), r))
}

func (s *system) reportErr(r *pb.ReportStepResultRequest) error {
	s.t.Helper()
	_, err := s.workers.ReportStepResult(s.within(), r)
	return err
}

func success(x *pb.ReadyStep, results string) *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{LeaseToken: x.GetLeaseToken(), Outcome: &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: results}}}
}

func permanent(x *pb.ReadyStep) *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{LeaseToken: x.GetLeaseToken(), Outcome: &pb.ReportStepResultRequest_PermanentFailure{
		PermanentFailure: &pb.StepPermanentFailure{Failure: &pb.Failure{ErrorCode: "BROKEN"}},
	}}
}

// retryable is a failure without a hint, for tests to change.
func retryable(x *pb.ReadyStep, change ...func(*pb.StepRetryableFailure)) *pb.ReportStepResultRequest {
	f := &pb.StepRetryableFailure{Failure: &pb.Failure{ErrorCode: "BUSY"}}
	for _, c := range change {
		c(f)
	}
	return &pb.ReportStepResultRequest{LeaseToken: x.GetLeaseToken(), Outcome: &pb.ReportStepResultRequest_RetryableFailure{RetryableFailure: f}}
}

func after(d time.Duration) func(*pb.StepRetryableFailure) {
	return func(f *pb.StepRetryableFailure) {
		f.RetryHint = &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(d)}
	}
}

func skipped(f *pb.StepRetryableFailure) { f.Accounting = pb.Accounting_ACCOUNTING_SKIP }

// beat sends one heartbeat and gives its answer.
func (s *system) beat(x *pb.ReadyStep) *pb.HeartbeatStepsEntry {
	s.t.Helper()
	resp := must[*pb.HeartbeatStepsResponse](s.t)(s.workers.HeartbeatSteps(s.within(), &pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{{LeaseToken: x.GetLeaseToken()}}}))
	return resp.GetEntries()[0]
}

func (s *system) release(x *pb.ReadyStep, delay time.Duration) *pb.EntryStatus {
	s.t.Helper()
	resp := must[*pb.ReleaseStepsResponse](s.t)(s.workers.ReleaseSteps(s.within(), &pb.ReleaseStepsRequest{
		Releases: []*pb.StepRelease{{LeaseToken: x.GetLeaseToken(), Delay: durationpb.New(delay)}},
	}))
	return resp.GetEntries()[0].GetStatus()
}

func (s *system) retryStep(id string) (*pb.Step, error) {
	s.t.Helper()
	resp, err := s.steps.RetryStep(s.within(), &pb.RetryStepRequest{StepId: id, Reason: "try again"})
	return resp.GetStep(), err
}

func (s *system) resolveStep(id string) (*pb.Step, error) {
	s.t.Helper()
	resp, err := s.steps.ResolveStep(s.within(), &pb.ResolveStepRequest{StepId: id})
	return resp.GetStep(), err
}

func (s *system) completeStep(id, results string) (*pb.Step, error) {
	s.t.Helper()
	resp, err := s.steps.CompleteStep(s.within(), &pb.CompleteStepRequest{StepId: id, Results: results})
	return resp.GetStep(), err
}

func (s *system) cancelTask(id string) (*pb.CancelTaskResponse, error) {
	s.t.Helper()
	return s.tasks.CancelTask(s.within(), &pb.CancelTaskRequest{TaskId: id})
}

// ---------------------------------------------------------------- refusals

// detail is a detail of a status.
func detail[D proto.Message](err error) (d D) {
	for _, x := range status.Convert(err).Details() {
		if m, ok := x.(D); ok {
			return m
		}
	}
	return d
}

// refused checks the code and the reason of a refusal.
func refused(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	info := detail[*errdetails.ErrorInfo](err)
	if got := status.Code(err); got != code || info.GetReason() != reason || info.GetDomain() != "tasker" {
		t.Errorf("got %s %s (%v), want %s %s", got, info.GetReason(), err, code, reason)
	}
}

// invalid checks a refusal as VALIDATION.
func invalid(t *testing.T, err error) {
	t.Helper()
	refused(t, err, codes.InvalidArgument, "VALIDATION")
}

// fields are those that a refusal names.
func fields(err error) (names []string) {
	for _, v := range detail[*errdetails.BadRequest](err).GetFieldViolations() {
		names = append(names, v.GetField())
	}
	return names
}

// retryIn is how long a refusal says to wait.
func retryIn(err error) time.Duration {
	return detail[*errdetails.RetryInfo](err).GetRetryDelay().AsDuration()
}

func equal[V comparable](t *testing.T, what string, got, want V) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// object is one JSON object of exactly size bytes.
func object(size int) string { return fmt.Sprintf(`{"a":"%s"}`, strings.Repeat("x", size-8)) }
