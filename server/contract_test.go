package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
)

// The tests are named by the rows of the contract's rules that they hold the server to.

// wantReason checks a refusal: its reason, and the metadata it must carry.
func wantReason(t *testing.T, err error, code codes.Code, reason string, metadata ...string) *status.Status {
	t.Helper()
	st := status.Convert(err)
	var info *errdetails.ErrorInfo
	for _, d := range st.Details() {
		if m, ok := d.(*errdetails.ErrorInfo); ok {
			info = m
		}
	}
	if st.Code() != code || info.GetReason() != reason || info.GetDomain() != "tasker" {
		t.Errorf("got %s %s (%s), want %s %s", st.Code(), info.GetReason(), st.Message(), code, reason)
		return st
	}
	for _, key := range metadata {
		if info.GetMetadata()[key] == "" {
			t.Errorf("%s lacks metadata %q: %v", reason, key, info.GetMetadata())
		}
	}
	return st
}

func fieldsOf(st *status.Status) (fields []string) {
	for _, d := range st.Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, f := range bad.GetFieldViolations() {
				fields = append(fields, f.GetField())
			}
		}
	}
	return fields
}

func TestCapacityIsNeverExceeded(t *testing.T) {
	s := start(t, pgtest.New(t))
	var defs []*pb.StepDefinition
	for i := range 6 {
		def := step(fmt.Sprintf("s%d", i))
		def.Handler = proto.String("h")
		defs = append(defs, def)
	}
	s.submit(t, inline("many", defs...))
	w := s.worker(t, "w", 2, "h")
	held := []*pb.ReadyStep{w.step(), w.step()}
	workers, err := s.workers.ListWorkers(within(t), &pb.ListWorkersRequest{})
	if err != nil || len(workers.GetWorkers()) != 1 || workers.GetWorkers()[0].GetInFlight() != 2 {
		t.Fatalf("workers: %v, %v", workers, err)
	}
	// Each report makes room for exactly one more: the stream's next step can only be of a lease that a report has freed.
	for range 4 {
		s.report(t, success(held[0].GetLeaseToken(), ""))
		held = append(held[1:], w.step())
	}
	if got := s.task(t, held[0].GetTaskId()).GetExecutionContext(); got.GetInProgressSteps() != 2 || got.GetCompletedSteps() != 4 {
		t.Errorf("at the end: %v", got)
	}
}

func TestFenceIsTheTokenAndNothingElse(t *testing.T) {
	s := start(t, pgtest.New(t))
	made := s.submit(t, inline("t", step("s")))
	w := s.worker(t, "w", 1, "s")
	first := w.step()
	release, err := s.workers.ReleaseSteps(within(t), &pb.ReleaseStepsRequest{Releases: []*pb.StepRelease{{LeaseToken: first.GetLeaseToken()}}})
	if err != nil || release.GetEntries()[0].GetStatus().GetCode() != 0 {
		t.Fatalf("releasing: %v, %v", release, err)
	}
	second := w.step()
	if second.GetLeaseToken() == first.GetLeaseToken() || second.GetDispatch() != 2 || second.GetAttempt() != 1 {
		t.Fatalf("again: %v", second)
	}
	// The step is leased anew: the old token is worth nothing, but what it said is kept.
	_, err = s.workers.ReportStepResult(within(t), success(first.GetLeaseToken(), `{"late": true}`))
	wantReason(t, err, codes.FailedPrecondition, "LEASE_LOST")
	s.report(t, success(second.GetLeaseToken(), ""))
	attempts, err := s.steps.ListStepAttempts(within(t), &pb.ListStepAttemptsRequest{StepId: second.GetStepId()})
	if err != nil || len(attempts.GetAttempts()) != 2 {
		t.Fatalf("attempts: %v, %v", attempts, err)
	}
	if late := attempts.GetAttempts()[1].GetLateReport(); late.GetOutcome() != pb.DispatchOutcome_DISPATCH_OUTCOME_SUCCESS || late.GetResults() != `{"late": true}` {
		t.Errorf("evidence: %v", attempts.GetAttempts()[1])
	}
	for _, token := range []string{"x", strings.Repeat("A", 50), second.GetLeaseToken()[:40] + strings.Repeat("A", 10)} {
		_, err := s.workers.ReportStepResult(within(t), success(token, ""))
		wantReason(t, err, codes.FailedPrecondition, "LEASE_LOST")
	}
	if got := s.task(t, made.GetTaskId()).GetTask().GetState(); got != pb.TaskState_TASK_STATE_COMPLETE {
		t.Errorf("the task is %v", got)
	}
}

func TestIdempotentReport(t *testing.T) {
	s := start(t, pgtest.New(t))
	s.submit(t, inline("t", step("s"), step("f")))
	w := s.worker(t, "w", 2, "s", "f")
	steps := map[string]*pb.ReadyStep{}
	for range 2 {
		step := w.step()
		steps[step.GetStepName()] = step
	}
	for name, same := range map[string]*pb.ReportStepResultRequest{
		"s": success(steps["s"].GetLeaseToken(), `{"a": 1}`),
		"f": retryable(steps["f"].GetLeaseToken(), &pb.StepRetryableFailure{
			Failure:   &pb.Failure{ErrorCode: "E"},
			RetryHint: &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(time.Hour)},
		}),
	} {
		first := s.report(t, same)
		same.RunDuration = durationpb.New(time.Second)
		again := s.report(t, same)
		if first.GetAlreadyRecorded() || !again.GetAlreadyRecorded() {
			t.Errorf("%s: recorded %v, then %v", name, first.GetAlreadyRecorded(), again.GetAlreadyRecorded())
		}
		again.AlreadyRecorded = false
		if !proto.Equal(first, again) {
			t.Errorf("%s: first %v, then %v", name, first, again)
		}
		_, err := s.workers.ReportStepResult(within(t), permanent(same.GetLeaseToken(), "OTHER"))
		wantReason(t, err, codes.FailedPrecondition, "RESULT_CONFLICT")
	}
}

func TestIdempotentSubmit(t *testing.T) {
	s := start(t, pgtest.New(t))
	keyed := func(key string) *pb.TaskSubmission {
		sub := inline("t", step("s"))
		sub.IdempotencyKey, sub.Labels = &key, map[string]string{"a": "1", "b": "2"}
		return sub
	}
	first := s.submit(t, keyed("k"))
	again, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: keyed("k")})
	if err != nil || !again.GetAlreadySubmitted() || again.GetTask().GetTaskId() != first.GetTaskId() {
		t.Errorf("again: %v, %v", again, err)
	}
	if other := s.submit(t, keyed("other")); other.GetTaskId() == first.GetTaskId() {
		t.Error("another key gave the same task")
	}
	changed := keyed("k")
	changed.Context = `{"a": 1}`
	_, err = s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: changed})
	st := wantReason(t, err, codes.AlreadyExists, "IDEMPOTENCY_KEY_REUSED", "task_id")
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetMetadata()["task_id"] != first.GetTaskId() {
			t.Errorf("the key's task is %s, not %s", info.GetMetadata()["task_id"], first.GetTaskId())
		}
	}
	elsewhere, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Namespace: "other", Task: keyed("k")})
	if err != nil || elsewhere.GetAlreadySubmitted() {
		t.Errorf("in another namespace: %v, %v", elsewhere, err)
	}
	// In a batch: all or none, and the same key twice is one task.
	batch, err := s.tasks.BatchSubmitTasks(within(t), &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{keyed("k"), keyed("n"), keyed("n")}})
	if err != nil || batch.GetResults()[0].GetTaskId() != first.GetTaskId() || !batch.GetResults()[2].GetAlreadySubmitted() ||
		batch.GetResults()[1].GetTaskId() != batch.GetResults()[2].GetTaskId() {
		t.Errorf("batch: %v, %v", batch, err)
	}
	_, err = s.tasks.BatchSubmitTasks(within(t), &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{keyed("fresh"), changed}})
	wantReason(t, err, codes.AlreadyExists, "IDEMPOTENCY_KEY_REUSED", "task_id", "index")
	fresh, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: keyed("fresh")})
	if err != nil || fresh.GetAlreadySubmitted() {
		t.Errorf("a task of a refused batch stands: %v, %v", fresh, err)
	}
}

func TestDeliveryIsNotCountedBeforeItIsConfirmed(t *testing.T) {
	s := start(t, pgtest.New(t))
	made := s.submit(t, inline("t", step("s")))
	w := s.open(t, &pb.ReadyStepsRequest{
		WorkerId: "w", InstanceId: "1", MaxInFlight: 1, Handlers: []*pb.HandlerSubscription{{Name: "s"}},
		DeliveryTimeout: durationpb.New(time.Second),
	})
	if w.opened.GetDeliveryTimeout().AsDuration() != time.Second || w.opened.GetHeartbeatInterval().AsDuration() != 15*time.Second {
		t.Errorf("opened: %v", w.opened)
	}
	first := w.step()
	if got := s.task(t, made.GetTaskId()).GetTask().GetState(); got != pb.TaskState_TASK_STATE_PENDING {
		t.Errorf("before the confirmation the task is %v", got)
	}
	// Never confirmed: it comes again, and has cost no attempt.
	second := w.step()
	if second.GetDispatch() != first.GetDispatch()+1 || second.GetAttempt() != 1 {
		t.Fatalf("again: %v", second)
	}
	beat, err := s.workers.HeartbeatSteps(within(t), &pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{
		{LeaseToken: second.GetLeaseToken(), Checkpoint: proto.String(`{"at": 7}`)}, {LeaseToken: first.GetLeaseToken()}, {LeaseToken: "?"},
	}})
	if err != nil || len(beat.GetEntries()) != 3 {
		t.Fatalf("heartbeat: %v, %v", beat, err)
	}
	mine, lost := beat.GetEntries()[0], beat.GetEntries()[1]
	if mine.GetStatus().GetCode() != 0 || time.Until(mine.GetLeaseExpiresAt().AsTime()) < 20*time.Second || mine.GetHeartbeatBy().AsDuration() < 5*time.Second {
		t.Errorf("the live lease: %v", mine)
	}
	if lost.GetStatus().GetReason() != pb.ErrorReason_ERROR_REASON_LEASE_LOST || lost.GetRevokeReason() != pb.RevokeReason_REVOKE_REASON_LEASE_LOST {
		t.Errorf("the lost lease: %v", lost)
	}
	if got := s.task(t, made.GetTaskId()).GetTask().GetState(); got != pb.TaskState_TASK_STATE_IN_PROGRESS {
		t.Errorf("after the confirmation the task is %v", got)
	}
	s.report(t, retryable(second.GetLeaseToken(), &pb.StepRetryableFailure{
		RetryHint: &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(0)},
	}))
	if third := w.step(); third.GetCheckpoint() != `{"at": 7}` || third.GetAttempt() != 2 {
		t.Errorf("the next run: %v", third)
	}
}

func TestStreamEndsAndWhatTheyMean(t *testing.T) {
	s := start(t, pgtest.New(t))
	s.worker(t, "w", 1, "s")
	// Another live process of that name.
	stream, err := s.workers.ReadySteps(within(t), &pb.ReadyStepsRequest{
		WorkerId: "w", InstanceId: "another", MaxInFlight: 1, Handlers: []*pb.HandlerSubscription{{Name: "s"}},
	})
	if err == nil {
		_, err = stream.Recv()
	}
	wantReason(t, err, codes.FailedPrecondition, "WORKER_ID_IN_USE", "worker_id")
	// The same process again: the newest stream gets the frames.
	newer := s.worker(t, "w", 1, "s")
	s.submit(t, inline("t", step("s")))
	if got := newer.step(); got.GetStepName() != "s" {
		t.Errorf("the newer stream got %v", got)
	}
}

func TestErrorsSayWhichFieldsAreWrong(t *testing.T) {
	s := start(t, pgtest.New(t))
	_, err := s.workers.PollReadySteps(within(t), &pb.PollReadyStepsRequest{WorkerId: "w", MaxInFlight: 0})
	fields := fieldsOf(wantReason(t, err, codes.InvalidArgument, "VALIDATION", "field"))
	for _, f := range []string{"instance_id", "handlers", "max_in_flight"} {
		if !slices.Contains(fields, f) {
			t.Errorf("no violation of %s in %v", f, fields)
		}
	}
	stream, err := s.workers.ReadySteps(within(t), &pb.ReadyStepsRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantReason(t, err, codes.InvalidArgument, "VALIDATION", "field")

	cycle := inline("t", step("a", "c"), step("b", "a"), step("c", "b"))
	_, err = s.tasks.ValidateTask(within(t), &pb.ValidateTaskRequest{Task: cycle})
	if f := fieldsOf(wantReason(t, err, codes.InvalidArgument, "DAG_CYCLE", "path")); len(f) != 1 || !strings.HasPrefix(f[0], "task.inline.steps[") {
		t.Errorf("cycle: fields %v", f)
	}
	_, err = s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: inline("t", step("a", "b"))})
	wantReason(t, err, codes.InvalidArgument, "UNKNOWN_DEPENDENCY", "step", "dependency")
	_, err = s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: inline("t", step("a"), step("a"))})
	wantReason(t, err, codes.InvalidArgument, "DUPLICATE_STEP", "step")
	over := inline("t", step("a"))
	over.Overrides = []*pb.StepOverride{{Name: "b"}}
	_, err = s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: over})
	wantReason(t, err, codes.InvalidArgument, "UNKNOWN_DEPENDENCY", "step")
	_, err = s.tasks.BatchSubmitTasks(within(t), &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{inline("t", step("a")), cycle}})
	if f := fieldsOf(wantReason(t, err, codes.InvalidArgument, "DAG_CYCLE", "index")); len(f) != 1 || !strings.HasPrefix(f[0], "tasks[1].inline.steps[") {
		t.Errorf("batch: fields %v", f)
	}

	_, err = s.tasks.GetTask(within(t), &pb.GetTaskRequest{TaskId: "16384"})
	wantReason(t, err, codes.NotFound, "TASK_NOT_FOUND")
	_, err = s.tasks.GetTask(within(t), &pb.GetTaskRequest{TaskId: "1"})
	wantReason(t, err, codes.NotFound, "TASK_NOT_FOUND")
	_, err = s.steps.GetStep(within(t), &pb.GetStepRequest{StepId: "16385"})
	wantReason(t, err, codes.NotFound, "STEP_NOT_FOUND")
	_, err = s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: &pb.TaskSubmission{
		Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "none"}},
	}})
	wantReason(t, err, codes.NotFound, "TEMPLATE_NOT_FOUND")
	_, err = s.tasks.ListTasks(within(t), &pb.ListTasksRequest{PageToken: "x"})
	wantReason(t, err, codes.InvalidArgument, "BAD_PAGE_TOKEN")
}

func TestAnUnsetOutcomeMeansNothing(t *testing.T) {
	s := start(t, pgtest.New(t))
	s.submit(t, inline("t", step("s")))
	got := s.worker(t, "w", 1, "s").step()
	_, err := s.workers.ReportStepResult(within(t), &pb.ReportStepResultRequest{LeaseToken: got.GetLeaseToken()})
	wantReason(t, err, codes.InvalidArgument, "VALIDATION")
	s.report(t, success(got.GetLeaseToken(), "")) // the lease is still there
}

func TestPayloadsAreVerbatimOrRefused(t *testing.T) {
	s := start(t, pgtest.New(t))
	w := s.worker(t, "w", 1, "s")
	for _, payload := range []string{
		`{"a":1e131071}`, `{"a":"\u0000"}`, `{"a":"\ud800"}`, "{ \"b\" : 1.10,\n\"a\":[ 1 ] }", `{"id":9223372036854775807}`, `{"é":"𝄞"}`,
		`{"a":-0.0}`, `{"":{}}`,
	} {
		sub := inline("t", step("s"))
		sub.Context = payload
		sub.GetInline().Steps[0].HandlerConfig = payload
		made := s.submit(t, sub)
		got := w.step()
		if got.GetContext() != payload || got.GetHandlerConfig() != payload {
			t.Errorf("%q came as context %q, handler_config %q", payload, got.GetContext(), got.GetHandlerConfig())
		}
		s.report(t, success(got.GetLeaseToken(), payload))
		if leaf := s.task(t, made.GetTaskId()).GetLeafResults()["s"]; leaf != payload {
			t.Errorf("%q came as results %q", payload, leaf)
		}
	}
	deep := strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000)
	for _, payload := range []string{`[]`, `null`, `"x"`, `{"a":1,"a":2}`, `{`, `{"a":NaN}`, "{\"a\":\"\x00\"}", deep, `{} {}`, ` `} {
		sub := inline("t", step("s"))
		sub.Context = payload
		_, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: sub})
		wantReason(t, err, codes.InvalidArgument, "VALIDATION", "field")
	}
}

func TestSizesAreRefusedAsTooLarge(t *testing.T) {
	s := start(t, pgtest.New(t))
	object := func(size int) string { return `{"a":"` + strings.Repeat("x", size-8) + `"}` }
	const mebi = 1 << 20
	fits := inline("t", step("s"))
	fits.Context, fits.GetInline().Steps[0].HandlerConfig = object(mebi-100), object(100)
	s.submit(t, fits)
	fits.Context = object(mebi - 99)
	_, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: fits})
	wantReason(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE", "size", "limit", "field")

	w := s.worker(t, "w", 1, "s")
	got := w.step()
	if len(got.GetContext()) != mebi-100 {
		t.Errorf("the context came with %d bytes", len(got.GetContext()))
	}
	_, err = s.workers.ReportStepResult(within(t), success(got.GetLeaseToken(), object(mebi+1)))
	wantReason(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE", "size", "limit", "field")
	beat, err := s.workers.HeartbeatSteps(within(t), &pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{
		{LeaseToken: got.GetLeaseToken(), Checkpoint: proto.String(object(256<<10 + 1))},
	}})
	if err != nil || beat.GetEntries()[0].GetStatus().GetReason() != pb.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE {
		t.Errorf("a checkpoint that is too large: %v, %v", beat, err)
	}
	if beat, err = s.workers.HeartbeatSteps(within(t), &pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{
		{LeaseToken: got.GetLeaseToken(), Checkpoint: proto.String(object(256 << 10))},
	}}); err != nil || beat.GetEntries()[0].GetStatus().GetCode() != 0 {
		t.Errorf("a checkpoint at its limit: %v, %v", beat, err)
	}
	s.report(t, success(got.GetLeaseToken(), object(mebi)))

	var reports []*pb.ReportStepResultRequest
	for range 4 {
		reports = append(reports, success(got.GetLeaseToken(), object(mebi)))
	}
	_, err = s.workers.BatchReportStepResults(within(t), &pb.BatchReportStepResultsRequest{Reports: reports})
	wantReason(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE", "size", "limit")
}

func TestPagesGoThroughAllOnce(t *testing.T) {
	s := start(t, pgtest.New(t))
	want := map[string]bool{}
	for i := range 7 {
		sub := inline("t", step("s"))
		sub.Labels = map[string]string{"odd": fmt.Sprint(i % 2)}
		want[s.submit(t, sub).GetTaskId()] = true
	}
	req := &pb.ListTasksRequest{PageSize: 3}
	var last string
	for {
		page, err := s.tasks.ListTasks(within(t), req)
		if err != nil {
			t.Fatalf("listing: %v", err)
		}
		for _, task := range page.GetTasks() {
			if !want[task.GetTaskId()] {
				t.Errorf("%s comes twice, or is none of ours", task.GetTaskId())
			}
			delete(want, task.GetTaskId())
		}
		last, req.PageToken = req.GetPageToken(), page.GetNextPageToken()
		if req.GetPageToken() == "" {
			break
		}
	}
	if len(want) > 0 {
		t.Errorf("never listed: %v", want)
	}
	// A token is bound to its list.
	_, err := s.tasks.ListTasks(within(t), &pb.ListTasksRequest{PageToken: last, Labels: map[string]string{"odd": "1"}})
	wantReason(t, err, codes.InvalidArgument, "BAD_PAGE_TOKEN")
	odd, err := s.tasks.ListTasks(within(t), &pb.ListTasksRequest{Labels: map[string]string{"odd": "1"}})
	if err != nil || len(odd.GetTasks()) != 3 {
		t.Errorf("by label: %d tasks, %v", len(odd.GetTasks()), err)
	}
	if none, err := s.tasks.ListTasks(within(t), &pb.ListTasksRequest{Namespace: "nowhere"}); err != nil || len(none.GetTasks()) != 0 {
		t.Errorf("of a namespace that nobody used: %v, %v", none, err)
	}
}

func TestTheActorIsNeverTakenFromTheRequest(t *testing.T) {
	s := start(t, pgtest.New(t))
	made := s.submit(t, inline("t", step("s")))
	if made.GetCreatedBy() != "" {
		t.Errorf("without a credential the task was made by %q", made.GetCreatedBy())
	}
}

func TestTheRetryAfterHeaderIsReadByTheServer(t *testing.T) {
	s := start(t, pgtest.New(t))
	for i, c := range []struct {
		header  string
		source  pb.DelaySource
		least   time.Duration
		most    time.Duration
		clamped bool
	}{
		{"120", pb.DelaySource_DELAY_SOURCE_HEADER_SECONDS, 120 * time.Second, 120 * time.Second, false},
		{time.Now().Add(time.Hour).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"), pb.DelaySource_DELAY_SOURCE_HEADER_DATE, 59 * time.Minute, time.Hour, false},
		{"Fri, 31 Dec 1999 23:59:59 GMT", pb.DelaySource_DELAY_SOURCE_HEADER_DATE, 0, 0, true},
		{"99999999999", pb.DelaySource_DELAY_SOURCE_HEADER_SECONDS, 24 * time.Hour, 24 * time.Hour, true},
		{"soon", pb.DelaySource_DELAY_SOURCE_HEADER_UNREADABLE, 2 * time.Second, 2200 * time.Millisecond, false},
	} {
		handler := fmt.Sprintf("h%d", i)
		s.submit(t, inline("t", step(handler)))
		got := s.worker(t, handler, 1, handler).step()
		answer := s.report(t, retryable(got.GetLeaseToken(), &pb.StepRetryableFailure{
			RetryHint: &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: c.header},
		}))
		delay := answer.GetAppliedDelay().AsDuration()
		if answer.GetDelaySource() != c.source || delay < c.least || delay > c.most || answer.GetDelayClamped() != c.clamped {
			t.Errorf("%q: %v", c.header, answer)
		}
	}
}

func TestBatchEntriesAreJudgedAlone(t *testing.T) {
	s := start(t, pgtest.New(t))
	s.submit(t, inline("t", step("a"), step("b")))
	w := s.worker(t, "w", 2, "a", "b")
	one, two := w.step(), w.step()
	batch := &pb.BatchReportStepResultsRequest{Reports: []*pb.ReportStepResultRequest{
		success(one.GetLeaseToken(), `{"n": 1}`),
		success(two.GetLeaseToken(), `[]`),
		{LeaseToken: two.GetLeaseToken()},
		success("nonsense", ""),
		success(one.GetLeaseToken(), `{"n": 1}`),
		success(one.GetLeaseToken(), `{"n": 2}`),
		permanent(two.GetLeaseToken(), "NO"),
	}}
	resp, err := s.workers.BatchReportStepResults(within(t), batch)
	if err != nil || len(resp.GetEntries()) != len(batch.GetReports()) {
		t.Fatalf("batch: %v, %v", resp, err)
	}
	for i, want := range []pb.ErrorReason{
		0, pb.ErrorReason_ERROR_REASON_VALIDATION, pb.ErrorReason_ERROR_REASON_VALIDATION, pb.ErrorReason_ERROR_REASON_LEASE_LOST,
		0, pb.ErrorReason_ERROR_REASON_RESULT_CONFLICT, 0,
	} {
		entry := resp.GetEntries()[i]
		if entry.GetStatus().GetReason() != want || (entry.GetResult() != nil) != (want == 0) {
			t.Errorf("entry %d: %v", i, entry)
		}
	}
	if f := resp.GetEntries()[1].GetStatus().GetFieldViolations(); len(f) != 1 || f[0].GetField() != "success.results" {
		t.Errorf("the field of entry 1: %v", f)
	}
	if parked := resp.GetEntries()[6].GetResult().GetStep(); parked.GetParkedReason() != pb.ParkedReason_PARKED_REASON_PERMANENT {
		t.Errorf("entry 6: %v", parked)
	}
}

func TestOperatorVerbs(t *testing.T) {
	s := start(t, pgtest.New(t))
	made := s.submit(t, inline("t", step("a"), step("b", "a"), step("c"), step("d")))
	w := s.worker(t, "w", 4, "a", "b", "c", "d")
	steps := map[string]*pb.ReadyStep{}
	for range 3 {
		got := w.step()
		steps[got.GetStepName()] = got
	}
	id := func(name string) string { return steps[name].GetStepId() }
	_, err := s.steps.RetryStep(within(t), &pb.RetryStepRequest{StepId: id("a")})
	wantReason(t, err, codes.FailedPrecondition, "STEP_NOT_IN_ERROR")
	s.report(t, permanent(steps["a"].GetLeaseToken(), "BROKEN"))
	s.report(t, permanent(steps["c"].GetLeaseToken(), "BROKEN"))
	s.report(t, permanent(steps["d"].GetLeaseToken(), "BROKEN"))

	retried, err := s.steps.RetryStep(within(t), &pb.RetryStepRequest{StepId: id("a"), Reason: "fixed"})
	if err != nil || retried.GetStep().GetState() != pb.StepState_STEP_STATE_PENDING || retried.GetStep().GetEpoch() != 2 || retried.GetStep().GetAttempts() != 0 {
		t.Fatalf("retried: %v, %v", retried, err)
	}
	again := w.step()
	if again.GetStepName() != "a" || again.GetAttempt() != 1 || again.GetDispatch() != 2 {
		t.Errorf("after the reset: %v", again)
	}
	s.report(t, permanent(again.GetLeaseToken(), "BROKEN"))
	if _, err := s.steps.CompleteStep(within(t), &pb.CompleteStepRequest{StepId: id("a"), Results: "[]"}); err == nil {
		t.Error("results that are no object were taken")
	}
	completed, err := s.steps.CompleteStep(within(t), &pb.CompleteStepRequest{StepId: id("a"), Results: `{"by": "hand"}`})
	if err != nil || completed.GetStep().GetState() != pb.StepState_STEP_STATE_COMPLETE {
		t.Fatalf("completed: %v, %v", completed, err)
	}
	child := w.step()
	if child.GetDependencyResults()["a"] != `{"by": "hand"}` {
		t.Errorf("the dependant got %v", child.GetDependencyResults())
	}
	s.report(t, success(child.GetLeaseToken(), ""))
	resolved, err := s.steps.ResolveStep(within(t), &pb.ResolveStepRequest{StepId: id("c")})
	if err != nil || resolved.GetStep().GetState() != pb.StepState_STEP_STATE_RESOLVED_MANUALLY {
		t.Fatalf("resolved: %v, %v", resolved, err)
	}
	_, err = s.steps.ResolveStep(within(t), &pb.ResolveStepRequest{StepId: id("c")})
	wantReason(t, err, codes.FailedPrecondition, "STEP_FINISHED")

	_, err = s.tasks.PurgeTask(within(t), &pb.PurgeTaskRequest{TaskId: s.submit(t, inline("u", step("x"))).GetTaskId()})
	wantReason(t, err, codes.FailedPrecondition, "TASK_NOT_FINISHED")
	bulk, err := s.steps.BulkRetrySteps(within(t), &pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{ErrorCodes: []string{"BROKEN"}, ParkedOnly: true}})
	if err != nil || bulk.GetRetriedSteps() != 1 {
		t.Fatalf("bulk: %v, %v", bulk, err)
	}
	if none, err := s.steps.BulkRetrySteps(within(t), &pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{TaskIds: []string{"1"}}}); err != nil || none.GetRetriedSteps() != 0 {
		t.Errorf("of an id that no task has: %v, %v", none, err)
	}
	s.report(t, success(w.step().GetLeaseToken(), ""))
	if got := s.task(t, made.GetTaskId()).GetTask(); got.GetState() != pb.TaskState_TASK_STATE_COMPLETE || got.GetEndedAt() == nil {
		t.Fatalf("at the end: %v", got)
	}
	_, err = s.tasks.CancelTask(within(t), &pb.CancelTaskRequest{TaskId: made.GetTaskId()})
	wantReason(t, err, codes.FailedPrecondition, "TASK_FINISHED")
	purged, err := s.tasks.PurgeTask(within(t), &pb.PurgeTaskRequest{TaskId: made.GetTaskId()})
	if err != nil || purged.GetPurgedSteps() != 4 {
		t.Errorf("purged: %v, %v", purged, err)
	}
	_, err = s.tasks.GetTask(within(t), &pb.GetTaskRequest{TaskId: made.GetTaskId()})
	wantReason(t, err, codes.NotFound, "TASK_NOT_FOUND")
}

func TestACancelIsToldToTheWorker(t *testing.T) {
	s := start(t, pgtest.New(t))
	made := s.submit(t, inline("t", step("a"), step("b", "a")))
	w := s.worker(t, "w", 1, "a", "b")
	got := w.step()
	cancelled, err := s.tasks.CancelTask(within(t), &pb.CancelTaskRequest{TaskId: made.GetTaskId(), Reason: "not wanted"})
	if err != nil || cancelled.GetTask().GetState() != pb.TaskState_TASK_STATE_CANCELLED || cancelled.GetCancelledSteps() != 2 || cancelled.GetRevokedLeases() != 1 {
		t.Fatalf("cancelled: %v, %v", cancelled, err)
	}
	for {
		if revoked := w.frame().GetRevoked(); revoked != nil {
			if revoked.GetLeaseToken() != got.GetLeaseToken() || revoked.GetReason() != pb.RevokeReason_REVOKE_REASON_TASK_CANCELLED || revoked.GetStepId() != got.GetStepId() {
				t.Errorf("revoked: %v", revoked)
			}
			break
		}
	}
	_, err = s.workers.ReportStepResult(within(t), success(got.GetLeaseToken(), ""))
	wantReason(t, err, codes.FailedPrecondition, "LEASE_LOST")
	again, err := s.tasks.CancelTask(within(t), &pb.CancelTaskRequest{TaskId: made.GetTaskId()})
	if err != nil || again.GetCancelledSteps() != 0 {
		t.Errorf("cancelled again: %v, %v", again, err)
	}
}

func TestPollSharesTheQueue(t *testing.T) {
	s := start(t, pgtest.New(t))
	req := &pb.PollReadyStepsRequest{
		WorkerId: "p", InstanceId: "1", MaxInFlight: 2, Handlers: []*pb.HandlerSubscription{{Name: "s"}}, WaitDuration: durationpb.New(20 * time.Second),
	}
	answered := make(chan *pb.PollReadyStepsResponse, 1)
	ctx := within(t)
	go func() {
		resp, err := s.workers.PollReadySteps(ctx, req)
		if err != nil {
			t.Errorf("polling: %v", err)
		}
		answered <- resp
	}()
	s.submit(t, inline("t", step("s")))
	resp := <-answered
	if len(resp.GetSteps()) != 1 || resp.GetServerTime() == nil || resp.GetSteps()[0].GetStepName() != "s" {
		t.Fatalf("polled: %v", resp)
	}
	s.report(t, success(resp.GetSteps()[0].GetLeaseToken(), ""))
	req.WaitDuration = nil
	if resp, err := s.workers.PollReadySteps(within(t), req); err != nil || len(resp.GetSteps()) != 0 || resp.GetServerTime() == nil {
		t.Errorf("with nothing to do: %v, %v", resp, err)
	}
	// Without a wait, what is there comes at once.
	s.submit(t, inline("t", step("s")))
	if resp, err := s.workers.PollReadySteps(within(t), req); err != nil || len(resp.GetSteps()) != 1 {
		t.Errorf("with a step that is ready: %v, %v", resp, err)
	}
}

func TestDrainLeavesNothingBehind(t *testing.T) {
	s := start(t, pgtest.New(t))
	s.submit(t, inline("t", step("a"), step("b", "a")))
	w := s.worker(t, "w", 1, "a", "b")
	got := w.step()
	drain := &pb.DrainWorkerRequest{WorkerId: "w", InstanceId: "w-1"}
	left, err := s.workers.DrainWorker(within(t), drain)
	if err != nil || len(left.GetRemaining()) != 1 || left.GetRemaining()[0].GetStepId() != got.GetStepId() {
		t.Fatalf("drained: %v, %v", left, err)
	}
	s.report(t, success(got.GetLeaseToken(), ""))
	drain.Deadline = timestamppb.New(time.Now().Add(20 * time.Second))
	if left, err = s.workers.DrainWorker(within(t), drain); err != nil || len(left.GetRemaining()) != 0 {
		t.Fatalf("drained: %v, %v", left, err)
	}
	// b is ready and w has room, but gets nothing any more. Another worker does.
	other := s.worker(t, "other", 1, "b")
	if got := other.step(); got.GetStepName() != "b" {
		t.Errorf("the other worker got %v", got)
	}
}

func TestWatchShowsEveryState(t *testing.T) {
	s := start(t, pgtest.New(t))
	made := s.submit(t, inline("t", step("a"), step("b", "a")))
	stream, err := s.tasks.WatchTask(within(t), &pb.WatchTaskRequest{TaskId: made.GetTaskId()})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil || len(first.GetSnapshot().GetSteps()) != 2 || first.GetSnapshot().GetTask().GetState() != pb.TaskState_TASK_STATE_PENDING {
		t.Fatalf("first: %v, %v", first, err)
	}
	w := s.worker(t, "w", 1, "a", "b")
	s.report(t, success(w.step().GetLeaseToken(), ""))
	s.report(t, success(w.step().GetLeaseToken(), ""))
	revision, states := first.GetRevision(), []pb.TaskState(nil)
	for {
		f, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("watching: %v", err)
		}
		if f.GetChange() == nil || f.GetRevision() <= revision {
			t.Errorf("after revision %d: %v", revision, f)
		}
		revision = f.GetRevision()
		states = append(states, f.GetChange().GetTask().GetState())
	}
	if len(states) == 0 || states[len(states)-1] != pb.TaskState_TASK_STATE_COMPLETE {
		t.Errorf("states seen: %v", states)
	}
	_, err = s.tasks.WatchTask(within(t), &pb.WatchTaskRequest{TaskId: "16384"})
	if err == nil {
		missing, _ := s.tasks.WatchTask(within(t), &pb.WatchTaskRequest{TaskId: "1638400000"})
		_, err = missing.Recv()
	}
	wantReason(t, err, codes.NotFound, "TASK_NOT_FOUND")
}

func TestASubmitMayWaitForTheEnd(t *testing.T) {
	s := start(t, pgtest.New(t))
	w := s.worker(t, "w", 1, "s")
	go func() {
		if f, err := w.stream.Recv(); err == nil {
			_, _ = s.workers.ReportStepResult(context.Background(), success(f.GetStep().GetLeaseToken(), `{"done": 1}`))
		}
	}()
	resp, err := s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: inline("t", step("s")), WaitDuration: durationpb.New(20 * time.Second)})
	if err != nil || resp.GetTask().GetState() != pb.TaskState_TASK_STATE_COMPLETE || resp.GetLeafResults()["s"] != `{"done": 1}` {
		t.Errorf("waited: %v, %v", resp, err)
	}
	resp, err = s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: inline("t", step("nobody")), WaitDuration: durationpb.New(50 * time.Millisecond)})
	if err != nil || resp.GetTask().GetState() != pb.TaskState_TASK_STATE_PENDING {
		t.Errorf("waited in vain: %v, %v", resp, err)
	}
}

func TestTemplatesArePinnedAndVersioned(t *testing.T) {
	s := start(t, pgtest.New(t))
	tmpl := &pb.Template{Name: "reg", ContextSchema: `{"required": ["user_id"]}`, Steps: []*pb.StepDefinition{step("a"), step("b", "a")}}
	register := func(change func(*pb.Template)) (*pb.RegisterTemplateResponse, error) {
		c := proto.CloneOf(tmpl)
		change(c)
		return s.templates.RegisterTemplate(within(t), &pb.RegisterTemplateRequest{Template: c})
	}
	same := func(*pb.Template) {}
	for i, c := range []struct {
		change  func(*pb.Template)
		version string
		already bool
	}{
		{same, "0.1.0", false},
		{same, "0.1.0", true},
		{func(t *pb.Template) { t.Description = "more" }, "0.1.1", false},
		{func(t *pb.Template) { t.Version, t.Description = proto.String("0.10.0"), "x" }, "0.10.0", false},
		{func(t *pb.Template) { t.Version, t.Description = proto.String("0.9.0"), "y" }, "0.9.0", false},
	} {
		got, err := register(c.change)
		if err != nil || got.GetTemplate().GetVersion() != c.version || got.GetAlreadyRegistered() != c.already || got.GetRegisteredAt() == nil {
			t.Fatalf("registration %d: %v, %v", i, got, err)
		}
	}
	_, err := register(func(t *pb.Template) { t.Version, t.Description = proto.String("0.9.0"), "z" })
	wantReason(t, err, codes.AlreadyExists, "TEMPLATE_VERSION_EXISTS", "version")
	_, err = register(func(t *pb.Template) { t.Steps = append(t.Steps, step("c", "c")) })
	if f := fieldsOf(wantReason(t, err, codes.InvalidArgument, "DAG_CYCLE")); len(f) != 1 || f[0] != "template.steps[2].depends_on[0]" {
		t.Errorf("fields: %v", f)
	}
	latest, err := s.templates.GetTemplate(within(t), &pb.GetTemplateRequest{Template: &pb.TemplateRef{Name: "reg"}})
	if err != nil || latest.GetTemplate().GetVersion() != "0.10.0" || len(latest.GetTemplate().GetSteps()) != 2 {
		t.Errorf("latest: %v, %v", latest, err)
	}
	listed, err := s.templates.ListTemplates(within(t), &pb.ListTemplatesRequest{})
	var versions []string
	for _, x := range listed.GetTemplates() {
		versions = append(versions, x.GetVersion())
	}
	if err != nil || !slices.Equal(versions, []string{"0.10.0", "0.9.0", "0.1.1", "0.1.0"}) {
		t.Errorf("listed: %v, %v", versions, err)
	}

	sub := &pb.TaskSubmission{
		Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "reg"}},
		Priority:   proto.Int32(0),
		Overrides: []*pb.StepOverride{{
			Name: "a", RetryLimit: proto.Int32(9), Backoff: &pb.BackoffPolicy{Max: durationpb.New(5 * time.Second)},
		}},
	}
	_, err = s.tasks.SubmitTask(within(t), &pb.SubmitTaskRequest{Task: sub})
	if f := fieldsOf(wantReason(t, err, codes.InvalidArgument, "VALIDATION")); len(f) != 1 || f[0] != "task.context" {
		t.Errorf("fields: %v", f)
	}
	sub.Context = `{"user_id": 1}`
	plan, err := s.tasks.ValidateTask(within(t), &pb.ValidateTaskRequest{Task: sub})
	if err != nil || plan.GetTemplate().GetVersion() != "0.10.0" || len(plan.GetSteps()) != 2 {
		t.Fatalf("plan: %v, %v", plan, err)
	}
	a, b := plan.GetSteps()[0], plan.GetSteps()[1]
	if a.GetDefinition().GetRetryLimit() != 9 || a.GetDefinition().GetBackoff().GetMax().AsDuration() != 5*time.Second ||
		a.GetDefinition().GetBackoff().GetInitial().AsDuration() != 2*time.Second || a.GetDefinition().GetPriority() != 0 || a.GetDependencyLevel() != 0 {
		t.Errorf("a: %v", a)
	}
	if b.GetDependencyLevel() != 1 || b.GetDefinition().GetRetryLimit() != 3 || !b.GetDefinition().GetRetryable() || b.GetDefinition().GetHandler() != "b" {
		t.Errorf("b: %v", b)
	}
	made := s.submit(t, sub)
	if made.GetName() != "reg" || made.GetTemplate().GetVersion() != "0.10.0" {
		t.Errorf("made: %v", made)
	}
	if got := s.worker(t, "w", 1, "a").step(); got.GetRetryLimit() != 9 {
		t.Errorf("the step: %v", got)
	}
	if steps, err := s.steps.ListSteps(within(t), &pb.ListStepsRequest{TaskId: made.GetTaskId()}); err != nil || len(steps.GetSteps()) != 2 || steps.GetSteps()[0].GetPriority() != 0 {
		t.Errorf("steps: %v, %v", steps, err)
	}
}
