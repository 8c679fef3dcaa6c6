package engine_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/task"
)

// Every step that is not running says why, and until when where that is known.
func TestAStepThatDoesNotRunSaysWhatItWaitsFor(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	setPolicy(t, e, "open", task.CircuitPolicy{OpenDuration: ptr(time.Hour)}, "open_duration")
	setPolicy(t, e, "full", task.CircuitPolicy{MaxInFlight: ptr(1)}, "max_in_flight")
	if _, err := e.HoldCircuit(t.Context(), "", "held", task.CircuitHold{Reason: "maintenance", Until: ptr(time.Now().Add(time.Hour))}); err != nil {
		t.Fatal(err)
	}
	st := open(t, e, 2, "a")
	says := func(id task.ID, no int, want string, until bool) {
		t.Helper()
		var (
			word *string
			at   *time.Time
		)
		err := db.Pool.QueryRow(t.Context(), "select waiting_for, waiting_until from get_step_readiness_status($1) where workflow_step_id = $2",
			int64(id), int64(id.Step(no))).Scan(&word, &at)
		got := ""
		if word != nil {
			got = *word
		}
		if err != nil || got != want || (at != nil) != until {
			t.Errorf("step %d of %s waits for %q until %v, %v; want %q, with an end: %v", no, id, got, at, err, want, until)
		}
		if v, err := e.GetStep(t.Context(), id.Step(no), false); err != nil || v.WaitingFor != want || (v.WaitingUntil != nil) != until {
			t.Errorf("step %d of %s is shown to wait for %q until %v, %v; want %q", no, id, v.WaitingFor, v.WaitingUntil, err, want)
		}
	}

	says(submit(t, e, spec("nobody"), spec("nobody", 1)), 1, "worker", false)
	later := time.Now().Add(time.Hour)
	deferred, err := e.Submit(t.Context(), []*task.Submission{{Name: "t", Context: "{}", Steps: []task.StepSpec{spec("a"), spec("a", 1)}, NotBefore: &later}}, false)
	if err != nil {
		t.Fatal(err)
	}
	says(deferred[0].TaskID, 1, "not_before", true)
	says(deferred[0].TaskID, 2, "dependencies", false)

	failed := submit(t, e, spec("a"))
	report(t, e, failing(nextStep(t, st)))
	says(failed, 1, "backoff", true)
	refused := submit(t, e, spec("a"))
	report(t, e, task.Report{Token: nextStep(t, st).Token, Outcome: task.PermanentFailure, Digest: [32]byte{3}})
	says(refused, 1, "operator", false)

	tripped := submit(t, e, behind("open", "a"))
	r := failing(nextStep(t, st))
	r.ReachCircuit, r.Hint = true, task.Hint{}
	report(t, e, r)
	says(submit(t, e, behind("open", "a")), 1, "circuit", true)
	says(tripped, 1, "backoff", true)
	says(submit(t, e, behind("held", "a")), 1, "paused", true)

	running := submit(t, e, behind("full", "a"))
	nextStep(t, st)
	says(running, 1, "", false)
	says(submit(t, e, behind("full", "a")), 1, "limit", false)

	submit(t, e, spec("a"))
	nextStep(t, st) // the worker's second and last place
	says(submit(t, e, spec("a")), 1, "capacity", false)

	// A pause is told before what a circuit says, and before want of workers, but what is not due yet waits for that.
	later = time.Now().Add(2 * time.Hour)
	pauseHandler(t, e, "a", &later)
	says(submit(t, e, behind("open", "a")), 1, "paused", true)
	says(submit(t, e, spec("a")), 1, "paused", true)
	says(tripped, 1, "backoff", true)
	pauseHandler(t, e, "", nil)
	says(submit(t, e, spec("a")), 1, "paused", false)
	says(submit(t, e, spec("nobody")), 1, "paused", false)
	resumeHandler(t, e, "")
	says(submit(t, e, spec("nobody")), 1, "worker", false)
}

// A worker with room is told which circuit keeps its steps back.
func TestAnIdleWorkerIsToldWhichCircuitKeepsItsStepsBack(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	setPolicy(t, e, "full", task.CircuitPolicy{MaxInFlight: ptr(1)}, "max_in_flight")
	if _, err := e.HoldCircuit(t.Context(), "", "held", task.CircuitHold{Reason: "maintenance"}); err != nil {
		t.Fatal(err)
	}
	r := registration("w", "i", 10, "limited", "paused", "shut")
	r.HeartbeatInterval = 50 * time.Millisecond
	st := openAs(t, e, r)
	told := func(want engine.Notice, until bool) {
		t.Helper()
		frame(t, st, func(f engine.Frame) bool {
			for _, n := range f.Notices {
				if n.Handler == want.Handler && n.Reason == want.Reason && n.Circuit == want.Circuit && (n.Until != nil) == until {
					return true
				}
			}
			return false
		})
	}
	submitBehind(t, e, "held", "paused", 1)
	told(engine.Notice{Handler: "paused", Reason: "circuit_held", Circuit: "held"}, false)
	submitBehind(t, e, "full", "limited", 2)
	nextStep(t, st)
	told(engine.Notice{Handler: "limited", Reason: "circuit_limit", Circuit: "full"}, false)
	submitBehind(t, e, "down", "shut", 2)
	nextStep(t, st)
	down := failing(nextStep(t, st))
	down.ReachCircuit = true
	report(t, e, down)
	submitBehind(t, e, "down", "shut", 1)
	told(engine.Notice{Handler: "shut", Reason: "circuit_open", Circuit: "down"}, true)
}

// What has not changed is not said again, however the estimate of the database's clock moves, and idle frames come meanwhile.
func TestAnIdleWorkerIsToldOnceUntilWhenItsStepsWait(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	due := time.Now().Add(time.Hour)
	if _, err := e.Submit(t.Context(), []*task.Submission{{Name: "t", Context: "{}", Steps: []task.StepSpec{spec("a")}, NotBefore: &due}}, false); err != nil {
		t.Fatal(err)
	}
	r := registration("w", "i", 10, "a")
	r.HeartbeatInterval = 20 * time.Millisecond
	st := openAs(t, e, r)
	var told engine.Notice
	frame(t, st, func(f engine.Frame) bool {
		if len(f.Notices) == 1 {
			told = f.Notices[0]
		}
		return told.Reason == "not_due"
	})
	if told.Until == nil || told.Until.Sub(due).Abs() > time.Second {
		t.Errorf("due at %v, told %v", due, told.Until)
	}
	for i := range 10 {
		openAs(t, e, registration("other"+strconv.Itoa(i), "i", 1, "b")).Close() // the answer has the database's clock in it
		frame(t, st, func(f engine.Frame) bool {
			if f.Notices != nil {
				t.Errorf("told %+v, and then %+v", told, f.Notices)
			}
			return f.Heartbeat
		})
	}
}
