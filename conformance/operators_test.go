package conformance_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// Every verb on a step in every state: allowed, or the reason why not.
func TestOperators_EveryVerbInEveryState(t *testing.T) {
	s := start(t)
	w := s.worker(100)
	// prepare makes a step that stands in a state, in a task of its own.
	prepare := map[string]func() string{
		"pending": func() string {
			return s.named(s.submit(inline(with(step("s"), handlerOf("nobody")))).GetTaskId(), "s").GetStepId()
		},
		"blocked": func() string {
			return s.named(s.submit(inline(with(step("p"), handlerOf("nobody")), step("s", "p"))).GetTaskId(), "s").GetStepId()
		},
		"in_progress": func() string { return s.one(w).GetStepId() },
		"waiting": func() string {
			x := s.one(w)
			s.report(retryable(x, after(time.Hour)))
			return x.GetStepId()
		},
		"parked": func() string {
			x := s.one(w)
			s.report(permanent(x))
			return x.GetStepId()
		},
		"complete": func() string {
			x := s.one(w)
			s.report(success(x, ""))
			return x.GetStepId()
		},
		"resolved": func() string {
			x := s.one(w)
			s.report(permanent(x))
			must[*pb.Step](t)(s.resolveStep(x.GetStepId()))
			return x.GetStepId()
		},
		"cancelled": func() string {
			x := s.one(w)
			must[*pb.CancelTaskResponse](t)(s.cancelTask(x.GetTaskId()))
			return x.GetStepId()
		},
		"running after a failure": func() string {
			x := s.one(w)
			s.report(retryable(x, after(0)))
			return w.next().GetStepId()
		},
	}
	want := map[string]string{
		"pending": "STEP_NOT_IN_ERROR", "blocked": "STEP_NOT_IN_ERROR", "in_progress": "STEP_NOT_IN_ERROR", "running after a failure": "STEP_NOT_IN_ERROR",
		"waiting": "", "parked": "", "complete": "STEP_FINISHED", "resolved": "STEP_FINISHED", "cancelled": "TASK_FINISHED",
	}
	verbs := map[string]func(string) (*pb.Step, error){
		"RetryStep": s.retryStep, "ResolveStep": s.resolveStep,
		"CompleteStep": func(id string) (*pb.Step, error) { return s.completeStep(id, `{"n":1}`) },
	}
	after := map[string]string{"RetryStep": "PENDING", "ResolveStep": "RESOLVED_MANUALLY", "CompleteStep": "COMPLETE"}
	for verb, act := range verbs {
		for state, make := range prepare {
			t.Run(verb+" on "+state, func(t *testing.T) {
				id := make()
				step, err := act(id)
				if want[state] != "" {
					refused(t, err, codes.FailedPrecondition, want[state])
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				equal(t, "the answer", stateOf(step), after[verb])
				if verb == "RetryStep" {
					if step.GetAttempts() != 0 || step.GetEpoch() != 2 || !step.GetReadyForExecution() || step.GetNextRetryAt() != nil {
						t.Errorf("due now, as new: %v", step)
					}
					w.next()
				}
			})
		}
		_, err := act("163840000001")
		refused(t, err, codes.NotFound, "STEP_NOT_FOUND")
	}
}

func TestOperators_CancelTaskInEveryState(t *testing.T) {
	s := start(t)
	w := s.worker(10)
	for state, c := range map[string]struct {
		make   func() string
		reason string
	}{
		"pending":     {func() string { return s.submit(inline(with(step("s"), handlerOf("nobody")))).GetTaskId() }, ""},
		"in_progress": {func() string { return s.one(w).GetTaskId() }, ""},
		"error": {func() string {
			x := s.one(w)
			s.report(permanent(x))
			s.eventually("the end is recorded", func() bool { return s.task(x.GetTaskId()).GetTask().GetEndedAt() != nil })
			return x.GetTaskId()
		}, ""},
		"complete": {func() string {
			x := s.one(w)
			s.report(success(x, ""))
			return x.GetTaskId()
		}, "TASK_FINISHED"},
	} {
		id := c.make()
		resp, err := s.cancelTask(id)
		if c.reason != "" {
			refused(t, err, codes.FailedPrecondition, c.reason)
			continue
		}
		if err != nil || resp.GetTask().GetState() != pb.TaskState_TASK_STATE_CANCELLED || resp.GetCancelledSteps() != 1 {
			t.Errorf("%s: %v, %v", state, resp, err)
		}
		again, err := s.cancelTask(id)
		if err != nil || again.GetCancelledSteps() != 0 || !proto.Equal(again.GetTask(), resp.GetTask()) {
			t.Errorf("%s, again: %v, %v", state, again, err)
		}
	}
	_, err := s.cancelTask("16384000000")
	refused(t, err, codes.NotFound, "TASK_NOT_FOUND")
}

func TestOperators_BulkRetryNeedsAFilterIsBoundedAndSpreads(t *testing.T) {
	s := start(t)
	w := s.worker(20)
	for i := range 5 {
		x := s.one(w, handlerOf("h"))
		f := permanent(x)
		f.GetPermanentFailure().Failure.ErrorCode = fmt.Sprint("CODE", i%2)
		s.report(f)
	}
	waiting := s.one(w)
	s.report(retryable(waiting, after(time.Hour)))
	w.cancel()
	bulk := func(r *pb.BulkRetryStepsRequest) (*pb.BulkRetryStepsResponse, error) {
		return s.steps.BulkRetrySteps(s.within(), r)
	}
	for _, f := range []*pb.BulkRetryFilter{nil, {}, {ParkedOnly: true}} {
		_, err := bulk(&pb.BulkRetryStepsRequest{Filter: f})
		invalid(t, err)
	}
	for _, n := range []int32{0, 1001} {
		_, err := bulk(&pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{Handlers: []string{"h"}}, MaxSteps: &n})
		invalid(t, err)
	}
	one := must[*pb.BulkRetryStepsResponse](t)(bulk(&pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{ErrorCodes: []string{"CODE1"}}, MaxSteps: proto.Int32(1)}))
	equal(t, "of the first call", one.GetRetriedSteps(), 1)
	two := must[*pb.BulkRetryStepsResponse](t)(bulk(&pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{ErrorCodes: []string{"CODE1"}}, PageToken: one.GetNextPageToken()}))
	equal(t, "of the second", two.GetRetriedSteps(), 1)
	_, err := bulk(&pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{ErrorCodes: []string{"CODE0"}}, PageToken: one.GetNextPageToken()})
	refused(t, err, codes.InvalidArgument, "BAD_PAGE_TOKEN")
	before := value[time.Time](s, "select clock_timestamp()")
	rest := must[*pb.BulkRetryStepsResponse](t)(bulk(&pb.BulkRetryStepsRequest{
		Filter: &pb.BulkRetryFilter{Handlers: []string{"h"}, ParkedOnly: true}, SpreadDuration: durationpb.New(time.Hour),
	}))
	equal(t, "spread", rest.GetRetriedSteps(), 3)
	latest := value[time.Time](s, "select max(due_at) from backoff where failures = 0")
	if over := latest.Sub(before); over < 30*time.Minute || over > time.Hour {
		t.Errorf("the last of three comes due after %v", over)
	}
	equal(t, "a step that waits is left alone by parked_only", s.step(waiting.GetStepId()).GetEpoch(), 1)
	all := must[*pb.BulkRetryStepsResponse](t)(bulk(&pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{TaskIds: []string{waiting.GetTaskId()}}}))
	equal(t, "a step that waits", all.GetRetriedSteps(), 1)
	equal(t, "its epoch", s.step(waiting.GetStepId()).GetEpoch(), 2)
}

func TestOperators_TheirActsAreEventsWithTheirReason(t *testing.T) {
	s := start(t)
	w := s.worker(10)
	reason := func(verb string) string { return strings.Repeat(verb, 1024)[:1024] }
	failed := func() *pb.ReadyStep {
		x := s.one(w)
		s.report(permanent(x))
		return x
	}
	recorded := func(kind, verb, column, id string) {
		t.Helper()
		got := value[string](s, "select coalesce(max(reason), '') from history_v where kind = $1 and "+column+" = $2::text::bigint", kind, id)
		equal(t, verb+": the reason on record", got, reason(verb))
	}
	x := failed()
	must[*pb.RetryStepResponse](t)(s.steps.RetryStep(s.within(), &pb.RetryStepRequest{StepId: x.GetStepId(), Reason: reason("retry")}))
	recorded("retried", "retry", "workflow_step_id", x.GetStepId())
	s.report(success(w.next(), ""))
	must[*pb.PurgeTaskResponse](t)(s.tasks.PurgeTask(s.within(), &pb.PurgeTaskRequest{TaskId: x.GetTaskId(), Reason: reason("purge")}))
	recorded("purged", "purge", "task_id", x.GetTaskId())
	x = failed()
	must[*pb.ResolveStepResponse](t)(s.steps.ResolveStep(s.within(), &pb.ResolveStepRequest{StepId: x.GetStepId(), Reason: reason("resolve")}))
	recorded("resolved", "resolve", "workflow_step_id", x.GetStepId())
	x = failed()
	must[*pb.CompleteStepResponse](t)(s.steps.CompleteStep(s.within(), &pb.CompleteStepRequest{StepId: x.GetStepId(), Reason: reason("complete")}))
	recorded("completed", "complete", "workflow_step_id", x.GetStepId())
	x = failed()
	must[*pb.BulkRetryStepsResponse](t)(s.steps.BulkRetrySteps(s.within(), &pb.BulkRetryStepsRequest{
		Filter: &pb.BulkRetryFilter{TaskIds: []string{x.GetTaskId()}}, Reason: reason("bulk"),
	}))
	recorded("retried", "bulk", "workflow_step_id", x.GetStepId())
	must[*pb.CancelTaskResponse](t)(s.tasks.CancelTask(s.within(), &pb.CancelTaskRequest{TaskId: x.GetTaskId(), Reason: reason("cancel")}))
	recorded("cancelled", "cancel", "task_id", x.GetTaskId())
	_, err := s.tasks.CancelTask(s.within(), &pb.CancelTaskRequest{TaskId: x.GetTaskId(), Reason: reason("cancel") + "x"})
	invalid(t, err)
	if numbers := value[bool](s, `select bool_and(n = event_no) from (select event_no, row_number() over (partition by workflow_step_id order by event_no) as n
		from history_v where event_no > 0) as events`); !numbers {
		t.Error("the events of a step are not numbered without a gap")
	}
}

func TestOperators_CompleteStepGivesItsResultsToDependantsVerbatim(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	made := s.submit(inline(step("a"), step("b", "a")))
	x := w.next()
	s.report(permanent(x))
	for _, bad := range []string{"[]", "1", "{", `{"a":1,"a":2}`} {
		_, err := s.completeStep(x.GetStepId(), bad)
		invalid(t, err)
	}
	_, err := s.completeStep(x.GetStepId(), object(1<<20+1))
	refused(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE")
	must[*pb.Step](t)(s.completeStep(x.GetStepId(), `{ "n":9007199254740993 }`))
	b := w.next()
	equal(t, "the dependant gets", b.GetDependencyResults()["a"], `{ "n":9007199254740993 }`)
	s.report(success(b, ""))
	equal(t, "the task", s.taskState(made.GetTaskId()), "COMPLETE")
}

func TestOperators_PurgeTakesEndedTasksOnly(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	sub := keyed("k")
	id := s.submit(sub).GetTaskId()
	purge := func() error {
		_, err := s.tasks.PurgeTask(s.within(), &pb.PurgeTaskRequest{TaskId: id})
		return err
	}
	refused(t, purge(), codes.FailedPrecondition, "TASK_NOT_FINISHED")
	x := w.next()
	refused(t, purge(), codes.FailedPrecondition, "TASK_NOT_FINISHED")
	s.report(success(x, ""))
	if err := purge(); err != nil {
		t.Fatal(err)
	}
	refused(t, purge(), codes.NotFound, "TASK_NOT_FOUND")
	_, err := s.tasks.GetTask(s.within(), &pb.GetTaskRequest{TaskId: id})
	refused(t, err, codes.NotFound, "TASK_NOT_FOUND")
	again := must[*pb.SubmitTaskResponse](t)(s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Task: sub}))
	if again.GetAlreadySubmitted() || again.GetTask().GetTaskId() == id {
		t.Errorf("the key went with the task: %v", again)
	}
	refused(t, s.reportErr(success(x, `{"other":1}`)), codes.FailedPrecondition, "LEASE_LOST")
}
