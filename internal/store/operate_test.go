package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

var act = store.Act{Actor: "ops@example.org", Reason: "because"}

func TestRetryStepMakesAParkedStepNewAndReopensItsTask(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(1))
	w.exhaust(id.Step(1))
	equal(w, "state", w.task(id).State, task.Errored)
	equal(w, "recorded end", value[string](w, "select state::text from task_end where task_id = $1", id), "error")

	v, change, err := w.s.RetryStep(t.Context(), id.Step(1), act)
	w.ok(err)
	equal(w, "state", v.State, task.StepPending)
	equal(w, "attempts", v.Attempts, 0)
	equal(w, "epoch", v.Epoch, 2)
	equal(w, "dispatches never restart", v.Dispatches, 3)
	equal(w, "ready", v.ReadyForExecution, true)
	equal(w, "error_code", v.ErrorCode, "")
	if v.NextRetryAt != nil || v.BackoffRequest != nil || v.LastFailureAt != nil {
		t.Errorf("a reset leaves no trace of failures, got %+v", v)
	}
	equal(w, "wakes", len(change.Wake), 1)
	equal(w, "task", w.task(id).State, task.InProgress)
	equal(w, "ends", value[int](w, "select count(*) from task_end where task_id = $1", id), 0)
	equal(w, "history", value[int](w, `select count(*) from history_v where task_id = $1 and actor = 'ops@example.org'
		and reason = 'because' and (kind = 'retried' and step_no = 1 or kind = 'task_reopened')`, id), 2)
	w.sound(id)

	w.succeed(id.Step(1))
	w.succeed(id.Step(2))
	equal(w, "task", w.task(id).State, task.Complete)
	w.sound(id)
}

func TestRetryStepRefusesWhatIsNotInError(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(1), step())
	retry := func(no int) error {
		_, _, err := w.s.RetryStep(t.Context(), id.Step(no), act)
		return err
	}
	w.refused(retry(1), task.StepNotInError) // ready
	w.refused(retry(2), task.StepNotInError) // blocked
	g := w.run(id.Step(1))
	w.refused(retry(1), task.StepNotInError) // in progress
	w.report(g, task.Success)
	w.refused(retry(1), task.StepFinished)
	w.refused(retry(99), task.StepNotFound)
	_, _, err := w.s.CancelTask(t.Context(), id, act)
	w.ok(err)
	w.refused(retry(1), task.TaskFinished)
	w.refused(retry(2), task.TaskFinished)
	_, _, err = w.s.RetryStep(t.Context(), task.NewID(0, 1<<20).Step(1), act)
	w.refused(err, task.StepNotFound)
}

func TestRetryStepOfABackingOffStepIsDueNow(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	w.fail(id.Step(1), task.RetryableFailure)
	equal(w, "ready", w.step(id.Step(1)).ReadyForExecution, false)
	v, _, err := w.s.RetryStep(t.Context(), id.Step(1), act)
	w.ok(err)
	equal(w, "ready", v.ReadyForExecution, true)
	w.succeed(id.Step(1))
	equal(w, "task", w.task(id).State, task.Complete)
}

func TestResolveStepLetsDependantsProceed(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(), step(1, 2)) // a join of two
	w.fail(id.Step(1), task.PermanentFailure)
	w.succeed(id.Step(2))
	equal(w, "task", w.task(id).State, task.Errored)
	equal(w, "blocked by", fmt.Sprint(w.step(id.Step(3)).BlockedBy), "[s1]")

	v, change, err := w.s.ResolveStep(t.Context(), id.Step(1), act)
	w.ok(err)
	equal(w, "state", v.State, task.StepResolvedManually)
	equal(w, "wakes", len(change.Wake), 1)
	equal(w, "woken", w.step(id.Step(3)).ReadyForExecution, true)
	w.sound(id)
	_, _, err = w.s.ResolveStep(t.Context(), id.Step(1), act)
	w.refused(err, task.StepFinished)
	w.succeed(id.Step(3))
	equal(w, "task", w.task(id).State, task.Complete)
	w.sound(id)
}

func TestCompleteStepHandsItsResultsToDependants(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(1))
	w.exhaust(id.Step(1))
	v, _, err := w.s.CompleteStep(t.Context(), id.Step(1), `{"by":"hand"}`, act)
	w.ok(err)
	equal(w, "state", v.State, task.StepComplete)
	g := w.run(id.Step(2))
	equal(w, "dependency", fmt.Sprint(g.Step.Dependencies), `[{s1 {"by":"hand"}}]`)
	w.report(g, task.Success)
	equal(w, "task", w.task(id).State, task.Complete)
}

func TestResolvingTheLastStepCompletesATaskThatEndedInError(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	w.fail(id.Step(1), task.PermanentFailure)
	equal(w, "recorded end", value[string](w, "select state::text from task_end where task_id = $1", id), "error")
	_, _, err := w.s.ResolveStep(t.Context(), id.Step(1), act)
	w.ok(err)
	equal(w, "task", w.task(id).State, task.Complete)
	equal(w, "recorded end", value[string](w, "select state::text from task_end where task_id = $1", id), "complete")
	w.sound(id)
}

func TestResolveOfAWideJoinClosesItsStripes(t *testing.T) {
	w := newWorld(t)
	const parents = 300
	steps := make([]task.StepSpec, parents, parents+1)
	join := step()
	for i := range steps {
		steps[i] = step()
		join.Parents = append(join.Parents, i+1)
	}
	id := w.submit(append(steps, join)...)
	for _, g := range w.claim(parents) {
		outcome := task.Success
		if g.Step.Token.Step.No()%2 == 0 {
			outcome = task.PermanentFailure
		}
		w.report(g, outcome)
	}
	for no := 2; no <= parents; no += 2 {
		if w.step(id.Step(parents + 1)).ReadyForExecution {
			t.Fatalf("ready before step %d", no)
		}
		_, _, err := w.s.ResolveStep(t.Context(), id.Step(no), act)
		w.ok(err)
	}
	equal(w, "ready", w.step(id.Step(parents+1)).ReadyForExecution, true)
	w.succeed(id.Step(parents + 1))
	equal(w, "task", w.task(id).State, task.Complete)
}

func TestCancelTaskEndsEveryStepAndRevokesWhatRuns(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(), step(), step(1), step(), step())
	w.succeed(id.Step(1)) // its claim granted the other roots too; 4, which it woke, waits
	rest := value[int](w, "select count(*) from lease where task_id = $1", id)
	equal(w, "running", rest, 4)
	answer, change, err := w.s.CancelTask(t.Context(), id, act)
	w.ok(err)
	equal(w, "cancelled", answer.Steps, 5)
	equal(w, "running", answer.Leases, rest)
	equal(w, "revoked", len(change.Revoked), rest)
	equal(w, "freed", len(change.Freed), rest)
	equal(w, "state", answer.Task.State, task.Cancelled)
	equal(w, "status", answer.Task.Execution.ExecutionStatus, "cancelled")
	if answer.Task.EndedAt == nil {
		t.Error("a cancelled task has an end")
	}
	w.sound(id)

	again, change, err := w.s.CancelTask(t.Context(), id, act)
	w.ok(err)
	equal(w, "cancelled again", again.Steps, 0)
	equal(w, "changes", len(change.Revoked)+len(change.Tasks), 0)
	equal(w, "state", again.Task.State, task.Cancelled)

	_, _, err = w.s.CancelTask(t.Context(), task.NewID(0, 1<<20), act)
	w.refused(err, task.TaskNotFound)
}

func TestCancelTaskRefusesACompleteOneAndTakesOneInError(t *testing.T) {
	w := newWorld(t)
	done := w.submit(step())
	w.succeed(done.Step(1))
	_, _, err := w.s.CancelTask(t.Context(), done, act)
	w.refused(err, task.TaskFinished)

	failed := w.submit(step(), step(1))
	w.fail(failed.Step(1), task.PermanentFailure)
	_, _, err = w.s.CancelTask(t.Context(), failed, act)
	w.ok(err)
	equal(w, "state", w.task(failed).State, task.Cancelled)
	equal(w, "health is not healthy", w.task(failed).Execution.HealthStatus, "unknown")
	w.sound(failed)
}

func TestALateResultNeverMovesACancelledTask(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(1))
	g := w.run(id.Step(1))
	_, _, err := w.s.CancelTask(t.Context(), id, act)
	w.ok(err)
	r := task.Report{Token: g.Step.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}}
	answer, _, err := w.s.ReportLate(t.Context(), &r)
	w.ok(err)
	if answer.Refused == nil || answer.Refused.Reason != task.LeaseLost {
		t.Fatalf("got %+v, want LEASE_LOST", answer)
	}
	equal(w, "state", w.task(id).State, task.Cancelled)
	attempts, err := w.s.Attempts(t.Context(), id.Step(1), 0, 10)
	w.ok(err)
	equal(w, "attempts", len(attempts), 1)
	equal(w, "outcome", attempts[0].Outcome, task.OutcomeCancelled)
	if attempts[0].Late == nil || attempts[0].Late.Outcome != task.Success {
		t.Errorf("the late report is evidence on its dispatch, got %+v", attempts[0].Late)
	}
}

// Every interleaving of a cancel with claims and reports leaves each task cancelled or complete, as a whole.
func TestCancelRacesClaimsAndReports(t *testing.T) {
	w := newWorld(t)
	w.s.At = nil
	const tasks = 40
	ids := make([]task.ID, tasks)
	for i := range ids {
		ids[i] = w.submit(step(), step(1), step(1), step(2, 3), step(4))
	}
	var work, cancel sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		work.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				grants := w.claim(7)
				reports := make([]task.Report, len(grants))
				for i, g := range grants {
					reports[i] = task.Report{Token: g.Step.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}}
				}
				if len(reports) == 0 {
					continue
				}
				if _, err := w.s.Turn(t.Context(), w.ns, nil, reports, nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range ids {
		cancel.Go(func() {
			_, _, err := w.s.CancelTask(t.Context(), ids[i], act)
			if err != nil && !errors.Is(err, task.Refuse(task.TaskFinished, "")) {
				t.Error(err)
			}
		})
	}
	cancel.Wait()
	// What was complete before its cancel stays so; the rest must be cancelled now, for good.
	close(stop)
	work.Wait()
	for _, id := range ids {
		if state := w.task(id).State; state != task.Cancelled && state != task.Complete {
			t.Errorf("task %s is %s", id, state)
		}
		w.sound(id)
	}
	equal(w, "live rows", value[int](w, `select (select count(*) from ready) + (select count(*) from backoff) +
		(select count(*) from lease) + (select count(*) from parked)`), 0)
	equal(w, "deadlocks", value[int](w, "select deadlocks::int from pg_stat_database where datname = current_database()"), 0)
}

// A retry and a settle of the same task in any order never leave a running task with a recorded end.
func TestRetryRacesSettle(t *testing.T) {
	w := newWorld(t)
	for range 30 {
		id := w.submit(step(), step())
		for _, g := range w.claim(2) {
			r := task.Report{Token: g.Step.Token, Outcome: task.PermanentFailure, Digest: [32]byte{1}}
			_, err := w.s.Turn(t.Context(), w.ns, nil, []task.Report{r}, nil)
			w.ok(err)
		}
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := w.s.Settle(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
		both.Go(func() {
			if _, _, err := w.s.RetryStep(t.Context(), id.Step(1), act); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		equal(w, "recorded ends", value[int](w, "select count(*) from task_end where task_id = $1", id), 0)
		equal(w, "state", w.task(id).State, task.InProgress)
		_, _, err := w.s.CancelTask(t.Context(), id, act) // or the next round's claim finds it
		w.ok(err)
	}
}

func TestBulkRetrySteps(t *testing.T) {
	w := newWorld(t)
	var ids []task.ID
	for range 5 {
		id := w.submitAs(task.Submission{TemplateName: "mail", TemplateVersion: "1.0.0"}, step())
		ids = append(ids, id)
		w.fail(id.Step(1), task.PermanentFailure)
	}
	other := w.submit(step())
	w.report(w.run(other.Step(1)), task.PermanentFailure, func(r *task.Report) { r.Failure.ErrorCode = "OTHER" })
	waiting := w.submit(step())
	w.fail(waiting.Step(1), task.RetryableFailure)

	retried, next, more, change, err := w.s.BulkRetrySteps(t.Context(), w.ns,
		task.BulkRetry{TemplateName: "mail", MaxSteps: 3, Spread: 30 * time.Second}, store.StepKey{})
	w.ok(err)
	equal(w, "retried", retried, 3)
	equal(w, "more", more, true)
	equal(w, "tasks", len(change.Tasks), 3)
	due := value[int](w, "select count(distinct due_at) from backoff where failures = 0 and due_at > $1", w.now)
	equal(w, "spread over instants", due, 2)
	equal(w, "due now", value[int](w, "select count(*) from ready"), 1)

	retried, _, more, _, err = w.s.BulkRetrySteps(t.Context(), w.ns, task.BulkRetry{TemplateName: "mail", MaxSteps: 3}, next)
	w.ok(err)
	equal(w, "retried", retried, 2)
	equal(w, "more", more, false)
	for _, id := range ids {
		equal(w, "state", w.step(id.Step(1)).State, task.StepPending)
		w.sound(id)
	}
	equal(w, "left alone", w.step(other.Step(1)).State, task.StepError)

	retried, _, _, _, err = w.s.BulkRetrySteps(t.Context(), w.ns, task.BulkRetry{ErrorCodes: []string{"BROKEN"}, ParkedOnly: true}, store.StepKey{})
	w.ok(err)
	equal(w, "parked only", retried, 0)
	retried, _, _, _, err = w.s.BulkRetrySteps(t.Context(), w.ns, task.BulkRetry{Handlers: []string{"work"}, ErrorCodes: []string{"BROKEN", "OTHER"}}, store.StepKey{})
	w.ok(err)
	equal(w, "by code", retried, 2)
}

func TestDeadlineParksWhatWaits(t *testing.T) {
	w := newWorld(t)
	deadline := w.now.Add(time.Minute)
	id := w.submitAs(task.Submission{Deadline: &deadline}, step(), step(), step(1))
	g := w.run(id.Step(1)) // both run now
	due, err := w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	equal(w, "due before", len(due), 0)
	w.fail(id.Step(2), task.RetryableFailure)
	w.pass(2 * time.Minute)
	due, err = w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	equal(w, "due", len(due), 1)
	change, err := w.s.EnforceDeadline(t.Context(), due[0])
	w.ok(err)
	w.settleAll(change)
	v := w.step(id.Step(2))
	equal(w, "reason", v.ParkedReason, "deadline_exceeded")
	equal(w, "code", v.ErrorCode, "DEADLINE_EXCEEDED")
	equal(w, "the running step keeps the deadline", value[int](w, "select count(*) from deadline"), 1)

	leases, err := w.s.ExpiredLeases(t.Context(), 10)
	w.ok(err)
	_, change, err = w.s.Expire(t.Context(), w.ns, leases)
	w.ok(err)
	w.settleAll(change)
	equal(w, "running step", w.step(g.Step.Token.Step).ParkedReason, "deadline_exceeded")
	due, err = w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	_, err = w.s.EnforceDeadline(t.Context(), due[0])
	w.ok(err)
	equal(w, "deadlines left", value[int](w, "select count(*) from deadline"), 0)
	equal(w, "task", w.task(id).State, task.Errored)
	w.sound(id)

	// An operator's act re-opens the task, not its deadline: what waits again is given up again, before any worker has it.
	_, _, err = w.s.RetryStep(t.Context(), id.Step(2), act)
	w.ok(err)
	due, err = w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	equal(w, "due again", len(due), 1)
	change, err = w.s.EnforceDeadline(t.Context(), due[0])
	w.ok(err)
	w.settleAll(change)
	equal(w, "retried step", w.step(id.Step(2)).ParkedReason, "deadline_exceeded")
	equal(w, "deadlines left", value[int](w, "select count(*) from deadline"), 0)
	w.sound(id)
}

func TestPurgeTask(t *testing.T) {
	w := newWorld(t)
	id := w.submitAs(task.Submission{IdempotencyKey: "once"}, step(), step(1))
	_, err := w.s.PurgeTask(t.Context(), id, act)
	w.refused(err, task.TaskNotFinished)
	w.fail(id.Step(1), task.PermanentFailure)
	equal(w, "key", w.task(id).IdempotencyKey, "once")
	_, err = w.s.PurgeTask(t.Context(), id, act)
	w.ok(err)
	for _, table := range []string{"task", "step", "step_end", "step_failure", "task_end", "parked", "submit_key"} {
		equal(w, table, value[int](w, "select count(*) from "+table), 0)
	}
	equal(w, "history", value[int](w, "select count(*) from history_v where kind = 'purged' and task_id = $1 and actor = $2", id, act.Actor), 1)
	_, err = w.s.PurgeTask(t.Context(), id, act)
	w.refused(err, task.TaskNotFound)
}
