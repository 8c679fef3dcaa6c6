package server_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
)

// patience bounds everything that a test waits for; nothing is meant to take that long.
const patience = 30 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// worker is a stream of steps.
type worker struct {
	t      *testing.T
	s      *running
	stream grpc.ServerStreamingClient[pb.ReadyStepsResponse]
	cancel context.CancelFunc
	opened *pb.SessionOpened
}

func (s *running) worker(t *testing.T, id string, inFlight int32, handlers ...string) *worker {
	t.Helper()
	req := &pb.ReadyStepsRequest{WorkerId: id, InstanceId: id + "-1", MaxInFlight: inFlight}
	for _, h := range handlers {
		req.Handlers = append(req.Handlers, &pb.HandlerSubscription{Name: h})
	}
	return s.open(t, req)
}

func (s *running) open(t *testing.T, req *pb.ReadyStepsRequest) *worker {
	t.Helper()
	ctx, cancel := context.WithCancel(within(t))
	stream, err := s.workers.ReadySteps(ctx, req)
	if err != nil {
		cancel()
		t.Fatalf("opening a stream: %v", err)
	}
	w := &worker{t: t, s: s, stream: stream, cancel: cancel}
	if w.opened = w.frame().GetOpened(); w.opened == nil {
		t.Fatal("the first frame is not opened")
	}
	return w
}

func (w *worker) frame() *pb.ReadyStepsResponse {
	w.t.Helper()
	f, err := w.stream.Recv()
	if err != nil {
		w.t.Fatalf("receiving a frame: %v\n%s", err, w.s.log)
	}
	return f
}

// step is the next step frame.
func (w *worker) step() *pb.ReadyStep {
	w.t.Helper()
	for {
		if step := w.frame().GetStep(); step != nil {
			return step
		}
	}
}

func (s *running) report(t *testing.T, req *pb.ReportStepResultRequest) *pb.ReportStepResultResponse {
	t.Helper()
	resp, err := s.workers.ReportStepResult(within(t), req)
	if err != nil {
		t.Fatalf("reporting: %v\n%s", err, s.log)
	}
	return resp
}

func success(token, results string) *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{LeaseToken: token, Outcome: &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: results}}}
}

func retryable(token string, f *pb.StepRetryableFailure) *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{LeaseToken: token, Outcome: &pb.ReportStepResultRequest_RetryableFailure{RetryableFailure: f}}
}

func permanent(token, code string) *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{LeaseToken: token, Outcome: &pb.ReportStepResultRequest_PermanentFailure{
		PermanentFailure: &pb.StepPermanentFailure{Failure: &pb.Failure{ErrorCode: code}},
	}}
}

func inline(name string, steps ...*pb.StepDefinition) *pb.TaskSubmission {
	return &pb.TaskSubmission{Name: &name, Definition: &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: steps}}}
}

func step(name string, parents ...string) *pb.StepDefinition {
	return &pb.StepDefinition{Name: name, DependsOn: parents}
}

func (s *running) submit(t *testing.T, sub *pb.TaskSubmission) *pb.Task {
	t.Helper()
	resp, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: sub})
	if err != nil {
		t.Fatalf("submitting: %v\n%s", err, s.log)
	}
	return resp.GetTask()
}

func (s *running) task(t *testing.T, id string) *pb.GetTaskResponse {
	t.Helper()
	resp, err := s.tasks.GetTask(within(t), &pb.GetTaskRequest{TaskId: id, IncludeLeafResults: true, IncludeContext: true})
	if err != nil {
		t.Fatalf("reading the task: %v\n%s", err, s.log)
	}
	return resp
}

func TestThread(t *testing.T) {
	s := start(t, pgtest.New(t))
	sub := inline("register", step("create"), step("bill", "create"), step("welcome", "create"), step("notify", "bill", "welcome"))
	sub.Context, sub.Labels = `{"user_id": 9007199254740993}`, map[string]string{"tenant": "eu"}
	sub.GetInline().Steps[1].HandlerConfig = `{"timeout": 30, "plan": "pro"}`
	made := s.submit(t, sub)
	if made.GetState() != pb.TaskState_TASK_STATE_PENDING || made.GetStepCount() != 4 || made.GetNamespace() != "default" {
		t.Fatalf("submitted: %v", made)
	}
	w := s.worker(t, "w", 10, "create", "bill", "welcome", "notify")

	first := w.step()
	if first.GetStepName() != "create" || first.GetContext() != sub.GetContext() || first.GetAttempt() != 1 || first.GetLabels()["tenant"] != "eu" {
		t.Fatalf("first step: %v", first)
	}
	done := s.report(t, success(first.GetLeaseToken(), `{"account": 18446744073709551615}`))
	if done.GetStep().GetState() != pb.StepState_STEP_STATE_COMPLETE || done.GetStep().GetAttempts() != 1 || done.GetAlreadyRecorded() {
		t.Fatalf("reported: %v", done)
	}

	next := map[string]*pb.ReadyStep{}
	for range 2 {
		step := w.step()
		next[step.GetStepName()] = step
	}
	bill := next["bill"]
	if got := bill.GetDependencyResults()["create"]; got != `{"account": 18446744073709551615}` {
		t.Fatalf("the dependant got %q", got)
	}
	if bill.GetRunTimeout().AsDuration() != 30*time.Second || bill.GetDeadline() == nil {
		t.Fatalf("run timeout %v, deadline %v", bill.GetRunTimeout(), bill.GetDeadline())
	}
	// A failure with a server-directed delay, then the retry.
	failed := s.report(t, retryable(bill.GetLeaseToken(), &pb.StepRetryableFailure{
		Failure:   &pb.Failure{ErrorCode: "BUSY", Message: "later", HttpStatus: proto.Int32(429)},
		RetryHint: &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(200 * time.Millisecond)},
	}))
	if failed.GetStep().GetState() != pb.StepState_STEP_STATE_ERROR || failed.GetAppliedDelay().AsDuration() != 200*time.Millisecond ||
		failed.GetDelaySource() != pb.DelaySource_DELAY_SOURCE_RETRY_AFTER || failed.GetNextRetryAt() == nil {
		t.Fatalf("reported: %v", failed)
	}
	s.report(t, success(next["welcome"].GetLeaseToken(), ""))
	again := w.step()
	if again.GetStepName() != "bill" || again.GetAttempt() != 2 || again.GetPreviousFailure().GetFailure().GetErrorCode() != "BUSY" ||
		again.GetIdempotencyKey() != bill.GetIdempotencyKey() || again.GetLeaseToken() == bill.GetLeaseToken() {
		t.Fatalf("retried: %v", again)
	}
	s.report(t, success(again.GetLeaseToken(), `{"charged": true}`))
	last := w.step()
	if last.GetStepName() != "notify" || len(last.GetDependencyResults()) != 2 || last.GetDependencyResults()["welcome"] != "{}" {
		t.Fatalf("joined: %v", last)
	}
	s.report(t, success(last.GetLeaseToken(), `{"mail": 1}`))

	got := s.task(t, made.GetTaskId())
	if got.GetTask().GetState() != pb.TaskState_TASK_STATE_COMPLETE || got.GetLeafResults()["notify"] != `{"mail": 1}` ||
		got.GetTask().GetContext() != sub.GetContext() {
		t.Fatalf("at the end: %v", got)
	}
	x := got.GetExecutionContext()
	if x.GetExecutionStatus() != pb.ExecutionStatus_EXECUTION_STATUS_ALL_COMPLETE || x.GetCompletedSteps() != 4 || x.GetCompletionPercentage() != 100 ||
		x.GetRecommendedAction() != pb.RecommendedAction_RECOMMENDED_ACTION_FINALIZE_TASK || x.GetHealthStatus() != pb.HealthStatus_HEALTH_STATUS_HEALTHY {
		t.Fatalf("at the end: %v", x)
	}
}
