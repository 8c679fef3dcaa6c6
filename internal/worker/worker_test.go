package worker_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
)

func succeed(context.Context, *worker.Run) worker.Outcome { return worker.Success(`{"ok":true}`) }

// untilRevoked is a handler that runs until its context ends and passes the cause on.
func untilRevoked() (worker.Handler, chan error) {
	causes := make(chan error, 10)
	return func(ctx context.Context, _ *worker.Run) worker.Outcome {
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return worker.Success("{}")
	}, causes
}

// refuse ends a call as a server does.
func refuse(t *testing.T, code codes.Code, reason string) error {
	t.Helper()
	refused, err := status.New(code, "no").WithDetails(&errdetails.ErrorInfo{Domain: "tasker", Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return refused.Err()
}

func TestStepIsRunAndReported(t *testing.T) {
	p := play(t, newScript(), succeed)
	stream := p.stream()
	stream.open()
	stream.step("a")
	report := receive(t, p.reports, "report").GetReports()[0]
	if report.GetLeaseToken() != "a" || report.GetSuccess().GetResults() != `{"ok":true}` || report.GetRunDuration() == nil {
		t.Errorf("report is %v", report)
	}
	p.stop()
	if err := receive(t, p.ended, "end"); err != nil {
		t.Errorf("Run returned %v", err)
	}
	var kinds []string
	for _, event := range p.journal.all() {
		switch event := event.(type) {
		case worker.FrameReceived:
			kinds = append(kinds, "frame")
		case worker.ReportSent:
			kinds = append(kinds, "sent "+event.Report.GetLeaseToken())
		case worker.ReportAnswered:
			kinds = append(kinds, "answered "+event.Report.GetLeaseToken())
		}
	}
	if got, want := strings.Join(kinds, ", "), "frame, frame, sent a, answered a"; got != want {
		t.Errorf("journal holds %s, want %s", got, want)
	}
}

func TestReportIsRepeatedUntilAnswered(t *testing.T) {
	s := newScript()
	tries := 0
	s.report = func(request *taskerv1.BatchReportStepResultsRequest) (*taskerv1.BatchReportStepResultsResponse, error) {
		tries++
		switch tries {
		case 1:
			return nil, refuse(t, codes.Unavailable, "DATABASE_UNAVAILABLE")
		case 2:
			answer := recorded(request)
			answer.Entries[0].Status.Code = int32(codes.Aborted)
			return answer, nil
		}
		return recorded(request), nil
	}
	p := play(t, s, succeed)
	stream := p.stream()
	stream.open()
	stream.step("a")
	first := receive(t, p.reports, "report")
	for range 2 {
		if again := receive(t, p.reports, "repeated report"); !proto.Equal(first, again) {
			t.Errorf("the repeat is %v, want %v", again, first)
		}
	}
	p.stop()
	if err := receive(t, p.ended, "end"); err != nil {
		t.Error(err)
	}
	if tries != 3 {
		t.Errorf("reported %d times, want 3", tries)
	}
	sent := 0
	for _, event := range p.journal.all() {
		if _, ok := event.(worker.ReportSent); ok {
			sent++
		}
	}
	if sent != 1 {
		t.Errorf("the journal says %d times that the report was first sent", sent)
	}
}

func TestOutcomeThatIsRefusedBecomesAPermanentFailure(t *testing.T) {
	s := newScript()
	s.report = func(request *taskerv1.BatchReportStepResultsRequest) (*taskerv1.BatchReportStepResultsResponse, error) {
		answer := recorded(request)
		for place, report := range request.GetReports() {
			if report.GetSuccess() != nil {
				answer.Entries[place] = &taskerv1.BatchReportStepResultsEntry{Status: &taskerv1.EntryStatus{
					Code: int32(codes.InvalidArgument), Reason: taskerv1.ErrorReason_ERROR_REASON_VALIDATION, Message: "not an object",
				}}
			}
		}
		return answer, nil
	}
	p := play(t, s, func(context.Context, *worker.Run) worker.Outcome { return worker.Success("[]") })
	stream := p.stream()
	stream.open()
	stream.step("a")
	receive(t, p.reports, "report")
	failure := receive(t, p.reports, "report in its place").GetReports()[0]
	if failure.GetLeaseToken() != "a" || failure.GetPermanentFailure().GetFailure().GetErrorCode() != "OUTCOME_INVALID" ||
		!strings.Contains(failure.GetPermanentFailure().GetFailure().GetMessage(), "not an object") {
		t.Errorf("reported %v", failure)
	}
}

func TestOutcomeThatNoCallCanCarryBecomesAPermanentFailure(t *testing.T) {
	p := play(t, newScript(), func(context.Context, *worker.Run) worker.Outcome {
		return worker.Success(`{"x":"` + strings.Repeat("x", 4<<20) + `"}`)
	})
	stream := p.stream()
	stream.open()
	stream.step("a")
	failure := receive(t, p.reports, "report").GetReports()[0]
	if failure.GetPermanentFailure().GetFailure().GetErrorCode() != "OUTCOME_TOO_LARGE" {
		t.Errorf("reported %v", failure)
	}
}

func TestOneReportDoesNotSpoilTheBatch(t *testing.T) {
	s := newScript()
	settled := make(chan string, 100)
	s.report = func(request *taskerv1.BatchReportStepResultsRequest) (*taskerv1.BatchReportStepResultsResponse, error) {
		for _, report := range request.GetReports() {
			if report.GetSuccess().GetResults() == "bad" {
				return nil, refuse(t, codes.InvalidArgument, "VALIDATION")
			}
		}
		for _, report := range request.GetReports() {
			how := "success"
			if report.GetPermanentFailure() != nil {
				how = "permanent"
			}
			settled <- report.GetLeaseToken() + " " + how
		}
		return recorded(request), nil
	}
	gate := make(chan struct{})
	p := play(t, s, func(_ context.Context, run *worker.Run) worker.Outcome {
		<-gate
		if run.Step.GetLeaseToken() == "c" {
			return worker.Success("bad")
		}
		return worker.Success("{}")
	})
	stream := p.stream()
	stream.open()
	for _, token := range []string{"a", "b", "c", "d", "e"} {
		stream.step(token)
	}
	close(gate)
	got := map[string]bool{}
	for range 5 {
		got[receive(t, settled, "settled report")] = true
	}
	for _, want := range []string{"a success", "b success", "c permanent", "d success", "e success"} {
		if !got[want] {
			t.Errorf("no %q in %v", want, got)
		}
	}
}

func TestPanicIsAFailureOfItsStepAlone(t *testing.T) {
	p := play(t, newScript(), func(context.Context, *worker.Run) worker.Outcome { panic("ouch") })
	stream := p.stream()
	stream.open()
	stream.step("a")
	failure := receive(t, p.reports, "report").GetReports()[0].GetRetryableFailure().GetFailure()
	if failure.GetErrorCode() != "PANIC" || failure.GetMessage() != "ouch" || failure.GetStackTrace() == "" {
		t.Errorf("reported %v", failure)
	}
}

func TestDrainingServerIsLeftForAnOpenStream(t *testing.T) {
	handler, causes := untilRevoked()
	p := play(t, newScript(), handler)
	old := p.stream()
	old.open()
	old.step("a")
	old.drain()
	next := p.stream()
	select {
	case <-old.gone:
		t.Fatal("the old stream was left before the new one opened")
	default:
	}
	if held := next.request.GetHeldLeaseTokens(); len(held) != 1 || held[0] != "a" {
		t.Errorf("the new stream lists %v as held, want a", held)
	}
	next.open()
	// What the old server sent before it was taken over from still counts.
	old.step("b")
	receive(t, old.gone, "end of the old stream")
	next.revoke("a", taskerv1.RevokeReason_REVOKE_REASON_TASK_CANCELLED)
	_ = receive(t, causes, "revocation of a")
	next.revoke("b", taskerv1.RevokeReason_REVOKE_REASON_TASK_CANCELLED)
	_ = receive(t, causes, "revocation of b")
}

func TestOldStreamMayEndFirstWhenAnotherTakesOver(t *testing.T) {
	p := play(t, newScript(), succeed)
	old := p.stream()
	old.open()
	old.drain()
	next := p.stream()
	old.end <- refuse(t, codes.FailedPrecondition, "SESSION_TAKEN_OVER")
	next.open()
	next.step("a")
	if token := receive(t, p.reports, "report").GetReports()[0].GetLeaseToken(); token != "a" {
		t.Errorf("reported %s", token)
	}
}

// The server that a worker moves to takes the session over and then refuses the stream: it is going away as well, or dies.
// The old stream's end is no reason to stop then; and neither is that of the next one, while the refused one may still come
// to life somewhere.
func TestTakeOverByAStreamOfOursThatNeverOpened(t *testing.T) {
	p := play(t, newScript(), succeed)
	old := p.stream()
	old.open()
	old.drain()
	p.stream().end <- refuse(t, codes.Unavailable, "DRAINING")
	old.end <- refuse(t, codes.FailedPrecondition, "SESSION_TAKEN_OVER")
	again := p.stream()
	again.open()
	again.end <- refuse(t, codes.FailedPrecondition, "SESSION_TAKEN_OVER")
	last := p.stream()
	last.open()
	last.step("a")
	if token := receive(t, p.reports, "report").GetReports()[0].GetLeaseToken(); token != "a" {
		t.Errorf("reported %s", token)
	}
}

func TestReconnectNamesWhatIsHeldAndLearnsWhatIsLost(t *testing.T) {
	handler, causes := untilRevoked()
	p := play(t, newScript(), handler)
	stream := p.stream()
	stream.open()
	stream.step("a")
	stream.end <- nil // OK, too, means: open it again
	stream = p.stream()
	if held := stream.request.GetHeldLeaseTokens(); len(held) != 1 || held[0] != "a" {
		t.Errorf("held are %v, want a", held)
	}
	stream.open("a")
	var revoked *worker.Revoked
	if cause := receive(t, causes, "end of the run"); !errors.As(cause, &revoked) || revoked.Reason != taskerv1.RevokeReason_REVOKE_REASON_LEASE_LOST {
		t.Errorf("the run ended by %v", cause)
	}
	// Nothing was reported for it, or this would come second.
	stream.step("b", func(step *taskerv1.ReadyStep) { step.Handler = "unknown" })
	receive(t, p.releases, "release of a step without a handler")
	p.stop()
	_ = receive(t, p.ended, "end")
	select {
	case report := <-p.reports:
		t.Errorf("reported %v for a lost lease", report)
	default:
	}
}

func TestRevokedRunEndsWithItsReason(t *testing.T) {
	handler, causes := untilRevoked()
	p := play(t, newScript(), handler)
	stream := p.stream()
	stream.open()
	stream.step("a")
	stream.revoke("a", taskerv1.RevokeReason_REVOKE_REASON_OPERATOR)
	var revoked *worker.Revoked
	if cause := receive(t, causes, "end of the run"); !errors.As(cause, &revoked) || revoked.Reason != taskerv1.RevokeReason_REVOKE_REASON_OPERATOR {
		t.Errorf("the run ended by %v", cause)
	}
}

func TestHeartbeatsCarryAllRunsAndCheckpointsAndTellWhatIsLost(t *testing.T) {
	s := newScript()
	beats := make(chan map[string]string, 10000)
	s.heartbeat = func(request *taskerv1.HeartbeatStepsRequest) (*taskerv1.HeartbeatStepsResponse, error) {
		answer := alive(request)
		beat := map[string]string{}
		for place, heartbeat := range request.GetHeartbeats() {
			beat[heartbeat.GetLeaseToken()] = heartbeat.GetCheckpoint()
			if heartbeat.GetLeaseToken() == "b" && len(request.GetHeartbeats()) == 2 {
				answer.Entries[place].Status, answer.Entries[place].RevokeReason = leaseLost(taskerv1.RevokeReason_REVOKE_REASON_DEADLINE_EXCEEDED)
			}
		}
		beats <- beat
		return answer, nil
	}
	causes := make(chan error, 2)
	p := play(t, s, func(ctx context.Context, run *worker.Run) worker.Outcome {
		run.Checkpoint(`{"at":"` + run.Step.GetLeaseToken() + `"}`)
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return nil
	})
	stream := p.stream()
	stream.open()
	stream.step("a")
	stream.step("b")
	var revoked *worker.Revoked
	if cause := receive(t, causes, "end of the lost run"); !errors.As(cause, &revoked) || revoked.Reason != taskerv1.RevokeReason_REVOKE_REASON_DEADLINE_EXCEEDED {
		t.Errorf("the run ended by %v", cause)
	}
	checkpoints := map[string]string{}
	together := false
	for alone := false; !alone; {
		beat := receive(t, beats, "heartbeat")
		for token, checkpoint := range beat {
			if checkpoint != "" {
				checkpoints[token] = checkpoint
			}
		}
		_, a := beat["a"]
		_, b := beat["b"]
		together = together || (a && b)
		alone = together && a && !b
	}
	if checkpoints["a"] != `{"at":"a"}` || checkpoints["b"] != `{"at":"b"}` {
		t.Errorf("checkpoints sent are %v", checkpoints)
	}
}

func TestRunLongPastItsDeadlineIsGivenUp(t *testing.T) {
	handler, causes := untilRevoked()
	p := play(t, newScript(), handler, func(cfg *worker.Config) { cfg.HeartbeatEvery = time.Hour })
	stream := p.stream()
	stream.open()
	stream.step("a", func(step *taskerv1.ReadyStep) {
		step.Deadline = timestamppb.New(time.Now().Add(-time.Minute))
		step.HeartbeatBy = nil
	})
	var revoked *worker.Revoked
	if cause := receive(t, causes, "end of the run"); !errors.As(cause, &revoked) || revoked.Reason != taskerv1.RevokeReason_REVOKE_REASON_TIMED_OUT {
		t.Errorf("the run ended by %v", cause)
	}
}

func TestDrainFinishesWhatRuns(t *testing.T) {
	begun, gate := make(chan struct{}), make(chan struct{})
	p := play(t, newScript(), func(context.Context, *worker.Run) worker.Outcome {
		close(begun)
		<-gate
		return worker.Success("{}")
	}, func(cfg *worker.Config) { cfg.DrainTimeout = patience })
	stream := p.stream()
	stream.open()
	stream.step("a")
	receive(t, begun, "run")
	p.stop()
	drain := receive(t, p.drains, "DrainWorker")
	if drain.GetWorkerId() != "w" || drain.GetInstanceId() != "i" || !drain.GetDeadline().AsTime().After(time.Now()) {
		t.Errorf("DrainWorker got %v", drain)
	}
	stream.step("late")
	if late := receive(t, p.releases, "release of what came late").GetReleases(); late[0].GetLeaseToken() != "late" {
		t.Errorf("released %v", late)
	}
	close(gate)
	if token := receive(t, p.reports, "report").GetReports()[0].GetLeaseToken(); token != "a" {
		t.Errorf("reported %s", token)
	}
	if err := receive(t, p.ended, "end"); err != nil {
		t.Error(err)
	}
}

func TestDrainOutOfTimeHandsBack(t *testing.T) {
	begun, causes := make(chan struct{}), make(chan error, 1)
	p := play(t, newScript(), func(ctx context.Context, _ *worker.Run) worker.Outcome {
		close(begun)
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return nil
	})
	stream := p.stream()
	stream.open()
	stream.step("a")
	receive(t, begun, "run")
	p.stop()
	if cause := receive(t, causes, "end of the run"); !errors.Is(cause, worker.ErrStopped) {
		t.Errorf("the run ended by %v", cause)
	}
	if released := receive(t, p.releases, "release").GetReleases(); released[0].GetLeaseToken() != "a" {
		t.Errorf("released %v", released)
	}
	if err := receive(t, p.ended, "end"); err != nil {
		t.Error(err)
	}
}

func TestServerSaysStop(t *testing.T) {
	for _, c := range []struct {
		code   codes.Code
		reason string
	}{
		{codes.FailedPrecondition, "SESSION_TAKEN_OVER"},
		{codes.FailedPrecondition, "WORKER_ID_IN_USE"},
		{codes.InvalidArgument, "VALIDATION"},
		{codes.Unauthenticated, "BAD_CREDENTIAL"},
		{codes.PermissionDenied, "ROLE_REQUIRED"},
	} {
		t.Run(c.reason, func(t *testing.T) {
			p := play(t, newScript(), succeed)
			p.stream().end <- refuse(t, c.code, c.reason)
			if err := receive(t, p.ended, "end"); status.Code(err) != c.code {
				t.Errorf("Run returned %v, want code %s", err, c.code)
			}
		})
	}
}

func TestServerSaysComeBack(t *testing.T) {
	for _, code := range []codes.Code{codes.OK, codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unimplemented} {
		t.Run(code.String(), func(t *testing.T) {
			p := play(t, newScript(), succeed)
			p.stream().end <- status.Error(code, "come back")
			p.stream().open()
		})
	}
}

func TestOmittedResultsAreReadBeforeTheRun(t *testing.T) {
	s := newScript()
	s.results = func(request *taskerv1.GetDependencyResultsRequest) (*taskerv1.GetDependencyResultsResponse, error) {
		if request.GetPageToken() == "" {
			return &taskerv1.GetDependencyResultsResponse{
				Results:       []*taskerv1.DependencyResult{{StepName: "p", Results: `{"p":1}`}},
				NextPageToken: "more",
			}, nil
		}
		return &taskerv1.GetDependencyResultsResponse{Results: []*taskerv1.DependencyResult{{StepName: "q", Results: `{"q":2}`}}}, nil
	}
	seen := make(chan map[string]string, 1)
	p := play(t, s, func(_ context.Context, run *worker.Run) worker.Outcome {
		seen <- run.Step.GetDependencyResults()
		return worker.Success("{}")
	})
	stream := p.stream()
	stream.open()
	stream.step("a", func(step *taskerv1.ReadyStep) {
		step.DependencyResults = map[string]string{"o": `{"o":0}`}
		step.OmittedDependencies = []string{"p", "q"}
	})
	got := receive(t, seen, "run")
	if got["o"] != `{"o":0}` || got["p"] != `{"p":1}` || got["q"] != `{"q":2}` {
		t.Errorf("the run saw %v", got)
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	good := worker.Config{
		Client: taskerv1.NewWorkerServiceClient(nil), WorkerID: "w", MaxInFlight: 1,
		Subscriptions: []worker.Subscription{{Handler: "h", Run: succeed}},
	}
	if _, err := worker.New(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*worker.Config){
		"no client":    func(c *worker.Config) { c.Client = nil },
		"no worker id": func(c *worker.Config) { c.WorkerID = "" },
		"no handler":   func(c *worker.Config) { c.Subscriptions = nil },
		"no capacity":  func(c *worker.Config) { c.MaxInFlight = 0 },
		"too much":     func(c *worker.Config) { c.MaxInFlight = 10001 },
		"too much each": func(c *worker.Config) {
			c.Subscriptions = []worker.Subscription{{Handler: "h", Run: succeed, MaxInFlight: 10001}}
		},
		"no function": func(c *worker.Config) { c.Subscriptions = []worker.Subscription{{Handler: "h"}} },
		"twice":       func(c *worker.Config) { c.Subscriptions = append(c.Subscriptions, c.Subscriptions[0]) },
	} {
		bad := good
		spoil(&bad)
		if _, err := worker.New(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
