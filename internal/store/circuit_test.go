package store_test

import (
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func TestOnlyAnOperatorsActNamesTheOperator(t *testing.T) {
	w := newWorld(t)
	id, err := w.s.EnsureCircuit(t.Context(), w.ns, "svc")
	w.ok(err)
	s := step()
	s.Circuit = "svc"
	first := w.submit(s)
	r := w.run(first.Step(1))
	w.report(r, task.RetryableFailure, func(r *task.Report) { r.ReachCircuit = true })
	w.ok(w.s.HoldCircuit(t.Context(), id, task.CircuitHold{From: w.now.Add(time.Hour), Actor: "somebody", Reason: "maintenance"}))
	w.pass(time.Minute)
	_, err = w.s.ReleaseCircuit(t.Context(), id, store.Act{Actor: "other"})
	w.ok(err)
	events, err := w.s.CircuitEvents(t.Context(), w.ns, task.CircuitEventQuery{Limit: 10})
	w.ok(err)
	got := map[task.CircuitCause]string{}
	for _, e := range events {
		got[e.Cause] = e.Actor
	}
	equal(w, "events", len(got), 4)
	equal(w, "actor of the hold", got[task.CauseHold], "somebody")
	equal(w, "actor of the end of the open time", got[task.CauseOpenElapsed], "")
	equal(w, "actor of the release", got[task.CauseRelease], "other")
}
