package conformance_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// sqlState is a step's state as the SQL surface spells it.
func (s *system) sqlState(x *pb.Step) string {
	s.t.Helper()
	return value[string](s, "select current_state from get_step_readiness_status($1::text::bigint) where workflow_step_id = $2::text::bigint", x.GetTaskId(), x.GetStepId())
}

func TestStep_PassesThroughTheStatesOfItsLife(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("a"), step("b", "a")))
	seen := func(name, state, word string) {
		t.Helper()
		x := s.named(made.GetTaskId(), name)
		equal(t, "state of "+name, stateOf(x), state)
		equal(t, "current_state of "+name, s.sqlState(x), word)
	}
	seen("a", "PENDING", "pending")
	seen("b", "PENDING", "pending") // blocked
	w := s.worker(1)
	first := w.next()
	seen("a", "IN_PROGRESS", "in_progress")
	s.report(retryable(first, after(time.Second)))
	seen("a", "ERROR", "error") // backing off
	again := w.next()
	seen("a", "IN_PROGRESS", "in_progress")
	s.report(success(again, ""))
	seen("a", "COMPLETE", "complete")
	s.report(permanent(w.next()))
	seen("b", "ERROR", "error") // parked
	must[*pb.Step](t)(s.resolveStep(s.named(made.GetTaskId(), "b").GetStepId()))
	seen("b", "RESOLVED_MANUALLY", "resolved_manually")

	other := s.submit(inline(step("a"), step("b", "a")))
	must[*pb.CancelTaskResponse](t)(s.cancelTask(other.GetTaskId()))
	for _, x := range s.all(other.GetTaskId()) {
		equal(t, "state after a cancel", stateOf(x), "CANCELLED")
		equal(t, "current_state after a cancel", s.sqlState(x), "cancelled")
	}
}

func TestStep_EndedStatesAreNeverLeft(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("complete"), step("resolved")))
	w := s.worker(2)
	steps := w.several(2)
	s.report(success(steps["complete"], ""))
	s.report(permanent(steps["resolved"]))
	must[*pb.Step](t)(s.resolveStep(steps["resolved"].GetStepId()))
	gone := s.submit(inline(step("cancelled")))
	cancelled := w.next()
	must[*pb.CancelTaskResponse](t)(s.cancelTask(gone.GetTaskId()))
	for name, x := range map[string]*pb.ReadyStep{"complete": steps["complete"], "resolved": steps["resolved"], "cancelled": cancelled} {
		code, reason := codes.FailedPrecondition, "STEP_FINISHED"
		if name == "cancelled" {
			reason = "TASK_FINISHED"
		}
		before := stateOf(s.step(x.GetStepId()))
		_, err := s.retryStep(x.GetStepId())
		refused(t, err, code, reason)
		_, err = s.resolveStep(x.GetStepId())
		refused(t, err, code, reason)
		_, err = s.completeStep(x.GetStepId(), "")
		refused(t, err, code, reason)
		equal(t, name, stateOf(s.step(x.GetStepId())), before)
	}
	equal(t, "the task", s.taskState(made.GetTaskId()), "COMPLETE")
}

func TestTask_IsPendingUntilItsFirstConfirmedDispatchAndNeverAgain(t *testing.T) {
	s := start(t)
	id := s.submit(inline(step("a"))).GetTaskId()
	equal(t, "submitted", s.taskState(id), "PENDING")
	w := s.worker(1)
	x := w.next()
	equal(t, "dispatched, not confirmed", s.taskState(id), "PENDING")
	s.release(x, 0)
	x = w.next()
	equal(t, "released, never confirmed", s.taskState(id), "PENDING")
	s.beat(x)
	equal(t, "confirmed", s.taskState(id), "IN_PROGRESS")
	s.release(x, time.Hour)
	equal(t, "released after the confirmation", s.taskState(id), "IN_PROGRESS")
	equal(t, "the step", stateOf(s.named(id, "a")), "PENDING")
}

func TestTask_IsPendingWhileItIsDeferredAndRunsThen(t *testing.T) {
	s := start(t)
	sub := inline(step("a"), step("b", "a"))
	begin := time.Now().Add(2 * time.Second)
	sub.NotBefore = timestamppb.New(begin)
	id := s.submit(sub).GetTaskId()
	got := s.task(id)
	equal(t, "state", got.GetTask().GetState(), pb.TaskState_TASK_STATE_PENDING)
	x := got.GetExecutionContext()
	equal(t, "execution_status", x.GetExecutionStatus(), pb.ExecutionStatus_EXECUTION_STATUS_WAITING_FOR_DEPENDENCIES)
	equal(t, "pending_steps", x.GetPendingSteps(), 2)
	a := s.named(id, "a")
	if a.GetReadyForExecution() || !a.GetRetryEligible() || a.GetNextRetryAt() != nil {
		t.Errorf("deferred: %v", a)
	}
	ready := s.worker(1).next()
	if now := value[time.Time](s, "select granted_at from lease"); now.Before(begin.Truncate(time.Microsecond)) {
		t.Errorf("%s was dispatched at %v, before %v", ready.GetStepName(), now, begin)
	}
}

func TestTask_IsInErrorOnlyWhenNothingElseCanRun(t *testing.T) {
	s := start(t)
	id := s.submit(inline(step("bad"), step("below", "bad"), step("good"), step("tail", "good"))).GetTaskId()
	w := s.worker(2)
	steps := w.several(2)
	s.report(permanent(steps["bad"]))
	equal(t, "while a branch runs", s.taskState(id), "IN_PROGRESS")
	s.report(retryable(steps["good"], after(time.Second)))
	equal(t, "while a branch backs off", s.taskState(id), "IN_PROGRESS")
	s.report(success(w.next(), ""))
	tail := w.next()
	equal(t, "while the last step runs", s.taskState(id), "IN_PROGRESS")
	s.report(success(tail, ""))
	equal(t, "when nothing can run", s.taskState(id), "ERROR")
	s.eventually("the end is recorded", func() bool { return s.task(id).GetTask().GetEndedAt() != nil })
	below := s.named(id, "below")
	if stateOf(below) != "PENDING" || !slices.Equal(below.GetBlockedBy(), []string{"bad"}) || below.GetDispatches() != 0 {
		t.Errorf("what stands below the failure is not marked, but blocked: %v", below)
	}
}

func TestTask_IsCompleteWhenEveryStepIsCompleteOrResolved(t *testing.T) {
	s := start(t)
	id := s.submit(inline(step("a"), step("b"), step("c", "a", "b"))).GetTaskId()
	w := s.worker(2)
	steps := w.several(2)
	s.report(success(steps["a"], ""))
	s.report(permanent(steps["b"]))
	equal(t, "with a failed step", s.taskState(id), "ERROR")
	must[*pb.Step](t)(s.resolveStep(steps["b"].GetStepId()))
	equal(t, "re-opened in the same transaction", s.taskState(id), "IN_PROGRESS")
	c := w.next()
	equal(t, "results of a resolved parent", c.GetDependencyResults()["b"], "{}")
	s.report(success(c, ""))
	equal(t, "at the end", s.taskState(id), "COMPLETE")
}

func TestTask_OperatorsReopenItInTheSameTransaction(t *testing.T) {
	s := start(t)
	for _, c := range []struct {
		verb string
		act  func(id string) (*pb.Step, error)
		want string
	}{
		{"RetryStep", s.retryStep, "IN_PROGRESS"},
		{"ResolveStep", s.resolveStep, "IN_PROGRESS"},
		{"CompleteStep", func(id string) (*pb.Step, error) { return s.completeStep(id, `{"by":"hand"}`) }, "IN_PROGRESS"},
	} {
		id := s.submit(inline(with(step("a"), handlerOf(c.verb)), with(step("b", "a"), handlerOf("nobody")))).GetTaskId()
		w := s.open(request("w-"+c.verb, 1, c.verb))
		x := w.next()
		s.report(permanent(x))
		s.eventually("the end is recorded", func() bool { return s.task(id).GetTask().GetEndedAt() != nil })
		equal(t, c.verb+": before", s.taskState(id), "ERROR")
		must[*pb.Step](t)(c.act(x.GetStepId()))
		got := s.task(id).GetTask()
		equal(t, c.verb+": after", got.GetState().String(), "TASK_STATE_"+c.want)
		if got.GetEndedAt() != nil {
			t.Errorf("%s: a re-opened task ended at %v", c.verb, got.GetEndedAt())
		}
		w.cancel()
	}
}

func TestTask_BucketsAlwaysSumToTotalAndTheStatusFollows(t *testing.T) {
	s := start(t)
	id := s.submit(inline(
		step("a"), with(step("b", "a"), retryLimit(1)), step("c", "a"), step("d", "b", "c"),
	)).GetTaskId()
	check := func(what, status, action, health string, counts ...int32) {
		t.Helper()
		x := s.task(id).GetExecutionContext()
		got := []int32{
			x.GetPendingSteps(), x.GetReadySteps(), x.GetInProgressSteps(), x.GetWaitingForRetrySteps(), x.GetFailedSteps(),
			x.GetCompletedSteps(), x.GetCancelledSteps(),
		}
		var sum int32
		for _, n := range got {
			sum += n
		}
		equal(t, what+": the sum", sum, x.GetTotalSteps())
		if !slices.Equal(got, counts) {
			t.Errorf("%s: buckets %v, want %v", what, got, counts)
		}
		equal(t, what, fmt.Sprint(x.GetExecutionStatus(), " ", x.GetRecommendedAction(), " ", x.GetHealthStatus()),
			"EXECUTION_STATUS_"+status+" RECOMMENDED_ACTION_"+action+" HEALTH_STATUS_"+health)
		row := value[string](s, `select execution_status || ' ' || recommended_action || ' ' || health_status from get_task_execution_context($1::text::bigint)`, id)
		want := value[string](s, "select lower($1)", status+" "+action+" "+health)
		equal(t, what+": in SQL", row, want)
	}
	check("submitted", "HAS_READY_STEPS", "EXECUTE_READY_STEPS", "HEALTHY", 3, 1, 0, 0, 0, 0, 0)
	w := s.worker(2)
	a := w.next()
	check("running", "PROCESSING", "WAIT_FOR_COMPLETION", "HEALTHY", 3, 0, 1, 0, 0, 0, 0)
	s.report(retryable(a, after(2*time.Second)))
	check("waiting", "WAITING_FOR_RETRY", "WAIT_FOR_RETRY", "RECOVERING", 3, 0, 0, 1, 0, 0, 0)
	s.report(success(w.next(), ""))
	both := w.several(2)
	check("both branches", "PROCESSING", "WAIT_FOR_COMPLETION", "HEALTHY", 1, 0, 2, 0, 0, 1, 0)
	s.report(retryable(both["b"])) // its only attempt
	check("a branch failed", "PROCESSING", "WAIT_FOR_COMPLETION", "RECOVERING", 1, 0, 1, 0, 1, 1, 0)
	s.report(success(both["c"], ""))
	// Never "waiting, healthy" for ever.
	check("nothing can run", "BLOCKED_BY_FAILURES", "HANDLE_FAILURES", "BLOCKED", 1, 0, 0, 0, 1, 2, 0)
	equal(t, "the percentage", s.task(id).GetExecutionContext().GetCompletionPercentage(), 50)
	must[*pb.CancelTaskResponse](t)(s.cancelTask(id))
	check("cancelled", "CANCELLED", "NONE", "UNKNOWN", 0, 0, 0, 0, 0, 2, 2)

	id = s.submit(inline(step("a"))).GetTaskId()
	s.report(success(w.next(), ""))
	check("complete", "ALL_COMPLETE", "FINALIZE_TASK", "HEALTHY", 0, 0, 0, 0, 0, 1, 0)
}

func TestTask_CancelEndsWhatWaitsAndRevokesWhatRunsAndLateResultsMoveNothing(t *testing.T) {
	s := start(t)
	id := s.submit(inline(step("runs"), step("waits"), step("blocked", "runs"))).GetTaskId()
	w := s.worker(2)
	steps := w.several(2)
	s.report(retryable(steps["waits"], after(time.Hour)))
	s.beat(steps["runs"])
	answer := must[*pb.CancelTaskResponse](t)(s.cancelTask(id))
	equal(t, "steps cancelled", answer.GetCancelledSteps(), 3)
	equal(t, "leases revoked", answer.GetRevokedLeases(), 1)
	equal(t, "told to the worker", w.awaitRevoked(steps["runs"].GetLeaseToken()), pb.RevokeReason_REVOKE_REASON_TASK_CANCELLED)
	beat := s.beat(steps["runs"])
	equal(t, "a later heartbeat", beat.GetStatus().GetReason(), pb.ErrorReason_ERROR_REASON_LEASE_LOST)
	equal(t, "why", beat.GetRevokeReason(), pb.RevokeReason_REVOKE_REASON_TASK_CANCELLED)
	refused(t, s.reportErr(success(steps["runs"], `{"late":true}`)), codes.FailedPrecondition, "LEASE_LOST")
	equal(t, "the task", s.taskState(id), "CANCELLED")
	equal(t, "the step", stateOf(s.step(steps["runs"].GetStepId())), "CANCELLED")
	late := s.attempts(steps["runs"].GetStepId())[0].GetLateReport()
	if late.GetResults() != `{"late":true}` || late.GetOutcome() != pb.DispatchOutcome_DISPATCH_OUTCOME_SUCCESS {
		t.Errorf("the evidence: %v", late)
	}
}
