package store_test

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// loseLease confirms a lease and lets it run out.
func (w *world) loseLease(g store.Grant) {
	w.Helper()
	_, err := w.s.Heartbeat(w.Context(), w.ns, []store.Beat{{Token: g.Step.Token}})
	w.ok(err)
	w.pass(time.Minute)
	ended, change, err := w.s.Expire(w.Context(), w.ns, []store.HeldLease{{Step: g.Step.Token.Step, Nonce: g.Step.Token.Nonce}})
	w.ok(err)
	if len(ended) != 1 || ended[0].Outcome != task.LostLease {
		w.Fatalf("the lease ended as %+v", ended)
	}
	w.settleAll(change)
}

func (w *world) reportLate(r task.Report) *task.Reported {
	w.Helper()
	a, change, err := w.s.ReportLate(w.Context(), &r)
	w.ok(err)
	if a.Reported == nil {
		w.Fatalf("the late report was refused: %v", a.Refused)
	}
	w.settleAll(change)
	return a.Reported
}

func failed(g store.Grant, outcome task.Outcome) task.Report {
	return task.Report{Token: g.Step.Token, Outcome: outcome, Failure: task.Failure{ErrorCode: "BROKEN"}, Digest: sha256.Sum256([]byte(outcome))}
}

func TestALateFailureOfALostLeaseIsAccepted(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	g := w.run(id.Step(1))
	w.loseLease(g)
	r := w.reportLate(failed(g, task.RetryableFailure))
	equal(w, "attempts", r.Attempts, 1)
	equal(w, "S5: lost leases of a run whose result came after all", r.LostLeases, 0)
	equal(w, "state", r.State, task.StepError)
	if again := w.reportLate(failed(g, task.RetryableFailure)); !again.AlreadyRecorded {
		t.Errorf("the same report again is answered %+v", again)
	}
	w.sound(id)
}

func TestALateFailureOfAPoisonedStepIsAccepted(t *testing.T) {
	w := newWorld(t)
	s := step()
	s.MaxLostLeases = 1
	id := w.submit(s)
	g := w.run(id.Step(1))
	w.loseLease(g)
	equal(w, "task", w.task(id).State, task.Errored)
	r := w.reportLate(failed(g, task.RetryableFailure))
	equal(w, "failed for good", r.Parked, false)
	equal(w, "task", w.task(id).State, task.InProgress)
	w.sound(id)
}

func TestADelayWithoutAHintComesFromTheBackoff(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	r := w.report(w.run(id.Step(1)), task.RetryableFailure)
	equal(w, "delay_source", r.DelaySource, task.FromBackoff)
}

func TestAReleasedStepIsGivenUpWhenMaxElapsedHasPassed(t *testing.T) {
	w := newWorld(t)
	s := step()
	elapsed := 10 * time.Second
	s.MaxElapsed = &elapsed
	id := w.submit(s)
	g := w.run(id.Step(1))
	_, _, err := w.s.GiveBack(t.Context(), w.ns, []store.HeldLease{{Step: id.Step(1), Nonce: g.Step.Token.Nonce}}, task.Released)
	w.ok(err)
	w.pass(elapsed)
	due, err := w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	if len(due) != 1 {
		t.Fatalf("%d deadlines have passed", len(due))
	}
	change, err := w.s.EnforceDeadline(t.Context(), due[0])
	w.ok(err)
	w.settleAll(change)
	equal(w, "why it failed", w.step(id.Step(1)).ErrorCode, "DEADLINE_EXCEEDED")
	equal(w, "task", w.task(id).State, task.Errored)
	w.sound(id)
}

func TestALateReportTakesBackAnEndThatSettleWasRecordingMeanwhile(t *testing.T) {
	w := newWorld(t)
	s := step()
	s.MaxLostLeases = 1
	id := w.submit(s)
	g := w.run(id.Step(1))
	_, err := w.s.Heartbeat(t.Context(), w.ns, []store.Beat{{Token: g.Step.Token}})
	w.ok(err)
	w.pass(time.Minute)
	_, _, err = w.s.Expire(t.Context(), w.ns, []store.HeldLease{{Step: id.Step(1), Nonce: g.Step.Token.Nonce}})
	w.ok(err)

	// Settle has locked the parked row and written the end, and has not committed yet.
	settle := w.db.Conn(t)
	for _, sql := range []string{
		"begin", "select 1 from parked for update",
		fmt.Sprintf("insert into task_end (task_id, state, ended_at) values (%d, 'error', now())", id),
	} {
		_, err := settle.Exec(t.Context(), sql)
		w.ok(err)
	}
	answer := make(chan error, 1)
	go func() {
		r := task.Report{Token: g.Step.Token, Outcome: task.Success, Results: "{}", Digest: sha256.Sum256([]byte("done"))}
		a, _, err := w.s.ReportLate(t.Context(), &r)
		if err == nil && a.Reported == nil {
			err = a.Refused
		}
		answer <- err
	}()
	w.untilBlocked(1)
	_, err = settle.Exec(t.Context(), "commit")
	w.ok(err)
	w.ok(<-answer)
	equal(w, "recorded end", value[string](w, "select state::text from task_end where task_id = $1", id), "complete")
	w.sound(id)
}

// untilBlocked waits until n sessions of the database wait for a lock.
func (w *world) untilBlocked(n int) {
	w.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		waiting := w.blocked()
		if waiting >= n {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("%d sessions wait for a lock, not %d", waiting, n)
		}
	}
}

// blocked is how many sessions wait for a lock.
func (w *world) blocked() int {
	w.Helper()
	return value[int](w, `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`)
}

func TestAConfirmedDispatchIsNoUndeliveredOne(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	g := w.run(id.Step(1))
	_, err := w.s.Heartbeat(t.Context(), w.ns, []store.Beat{{Token: g.Step.Token}})
	w.ok(err)
	ended, _, err := w.s.GiveBack(t.Context(), w.ns, []store.HeldLease{{Step: id.Step(1), Nonce: g.Step.Token.Nonce}}, task.Undelivered)
	w.ok(err)
	equal(w, "S5: confirmed dispatches that went back as undelivered", len(ended), 0)
	equal(w, "state", w.step(id.Step(1)).State, task.StepInProgress)
}
