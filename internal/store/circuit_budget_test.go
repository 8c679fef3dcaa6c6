package store_test

import (
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// suspending is a world with a circuit that suspends budgets, and a task behind it that has ten seconds: twice over, by its
// deadline and by max_elapsed since its first run, which failed just now.
func suspending(t *testing.T) (w *world, circuit int32, id task.ID) {
	t.Helper()
	w = newWorld(t)
	circuit, err := w.s.EnsureCircuit(t.Context(), w.ns, "svc")
	w.ok(err)
	w.ok(w.s.SetCircuitPolicy(t.Context(), circuit, operator, func(p task.CircuitPolicy) (task.CircuitPolicy, error) {
		p.SuspendBudgets, p.OpenDuration = ptr(true), ptr(4*sec)
		return p, nil
	}))
	s := step()
	s.Circuit, s.MaxElapsed, s.RetryLimit = "svc", ptr(10*sec), 9
	deadline := w.now.Add(10 * sec)
	id = w.submitAs(task.Submission{Deadline: &deadline}, s)
	w.report(w.run(id.Step(1)), task.RetryableFailure, func(r *task.Report) { r.Blame = task.BlameStep })
	return w, circuit, id
}

// budgets are how long from now on the task and its step may go on.
func (w *world) budgets(id task.ID) (deadline, elapsed time.Duration) {
	w.Helper()
	const ends = `select deadline_end(task_id, $2) from task where task_id = $1
		union all
		select elapsed_end(task_id, step_no, first_started_at, $2) from backoff where task_id = $1`
	rows, err := w.db.Pool.Query(w.Context(), ends, int64(id), w.now)
	w.ok(err)
	defer rows.Close()
	var left [2]time.Duration
	for i := 0; rows.Next(); i++ {
		var end time.Time
		w.ok(rows.Scan(&end))
		left[i] = end.Sub(w.now)
	}
	w.ok(rows.Err())
	return left[0], left[1]
}

func (w *world) wantBudgets(what string, id task.ID, want time.Duration) {
	w.Helper()
	deadline, elapsed := w.budgets(id)
	equal(w, what+": the deadline is in", deadline, want)
	equal(w, what+": max_elapsed has left", elapsed, want)
}

// A planned hold begins and ends by itself, and budgets stand still within it, whenever somebody takes note of it.
func TestBudgetsStandStillWithinAPlannedHoldThatNobodySawBegin(t *testing.T) {
	w, circuit, id := suspending(t)
	until := w.now.Add(60 * sec)
	w.ok(w.s.HoldCircuit(t.Context(), circuit, task.CircuitHold{From: w.now.Add(2 * sec), Until: &until}))
	w.wantBudgets("planned", id, 10*sec)
	w.pass(2 * sec)
	w.wantBudgets("as it begins", id, 8*sec)
	w.pass(30 * sec)
	w.wantBudgets("within it", id, 8*sec)
	due, err := w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	equal(w, "deadlines that seem to have passed", len(due), 2)
	for _, d := range due {
		_, err := w.s.EnforceDeadline(t.Context(), d)
		w.ok(err)
	}
	equal(w, "its step is parked", w.step(id.Step(1)).ParkedReason, "")
	w.pass(31 * sec)
	w.wantBudgets("after it, unseen", id, 5*sec)
	_, err = w.s.ReleaseCircuit(t.Context(), circuit, store.Act{})
	w.ok(err)
	w.wantBudgets("after it, seen", id, 5*sec)
}

// Two servers find the same deadline due: the second one comes when the first has put it off, and leaves the task alone.
func TestADeadlineThatAnotherServerHasPutOffEndsNothing(t *testing.T) {
	w, circuit, id := suspending(t)
	w.ok(w.s.HoldCircuit(t.Context(), circuit, task.CircuitHold{}))
	w.pass(20 * sec)
	due, err := w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	equal(w, "deadlines that seem to have passed", len(due), 2)
	for range 2 {
		for _, d := range due {
			_, err := w.s.EnforceDeadline(t.Context(), d)
			w.ok(err)
		}
	}
	equal(w, "its step is parked", w.step(id.Step(1)).ParkedReason, "")
	_, err = w.s.ReleaseCircuit(t.Context(), circuit, store.Act{})
	w.ok(err)
	w.pass(11 * sec)
	due, err = w.s.DueDeadlines(t.Context(), 10)
	w.ok(err)
	equal(w, "deadlines that have passed", len(due), 2)
	_, err = w.s.EnforceDeadline(t.Context(), due[0])
	w.ok(err)
	equal(w, "its step is parked then", w.step(id.Step(1)).ParkedReason, "deadline_exceeded")
}

// A hold that is planned while a circuit is open has no part in when that ends, and one from the past begins now.
func TestAPlannedHoldDoesNotMakeAnOpenTimeLonger(t *testing.T) {
	w, circuit, id := suspending(t)
	w.pass(sec)
	other := step()
	other.Circuit = "svc"
	w.report(w.run(w.submit(other).Step(1)), task.RetryableFailure, func(r *task.Report) { r.ReachCircuit = true })
	w.pass(sec)
	until := w.now.Add(60 * sec)
	w.ok(w.s.HoldCircuit(t.Context(), circuit, task.CircuitHold{From: w.now.Add(30 * sec), Until: &until}))
	w.pass(5 * sec)
	w.wantBudgets("after the open time", id, 7*sec)
	w.ok(w.s.HoldCircuit(t.Context(), circuit, task.CircuitHold{From: w.now.Add(-5 * sec), Until: &until}))
	w.pass(3 * sec)
	w.wantBudgets("held", id, 7*sec)
}
