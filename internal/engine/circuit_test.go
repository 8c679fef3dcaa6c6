package engine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/task"
)

// behind is a step that calls a circuit.
func behind(circuit, name string) task.StepSpec {
	s := spec(name)
	s.Circuit = circuit
	return s
}

func submitBehind(t *testing.T, e *engine.Engine, circuit, handler string, n int) {
	t.Helper()
	for range n {
		submit(t, e, behind(circuit, handler))
	}
}

// setPolicy sets fields of a circuit's policy.
func setPolicy(t *testing.T, e *engine.Engine, circuit string, p task.CircuitPolicy, fields ...string) {
	t.Helper()
	if _, err := e.SetCircuitPolicy(t.Context(), "", circuit, p, fields, "operator", "test"); err != nil {
		t.Fatal(err)
	}
}

func circuit(t *testing.T, e *engine.Engine, name string) *task.Circuit {
	t.Helper()
	c, err := e.GetCircuit(t.Context(), "", name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// causes lists what happened to a circuit, oldest first.
func causes(t *testing.T, e *engine.Engine, name string) []string {
	t.Helper()
	events, err := e.ListCircuitEvents(t.Context(), task.CircuitEventQuery{Circuit: name, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range slices.Backward(events) {
		out = append(out, fmt.Sprintf("%s: %s", x.Cause, x.To))
	}
	return out
}

func failing(r *task.ReadyStep) task.Report {
	long := time.Hour
	return task.Report{
		Token: r.Token, Outcome: task.RetryableFailure, Digest: [32]byte{2}, Failure: task.Failure{ErrorCode: "DOWN"},
		Hint: task.Hint{Source: task.FromRetryAfter, After: &long},
	}
}

// nothingMore sees that no step comes: whatever is told is told to the circuit's lane, which the claim of another step joins.
func nothingMore(t *testing.T, e *engine.Engine, st *engine.Stream, other string) {
	t.Helper()
	submit(t, e, spec(other))
	if r := nextStep(t, st); r.Handler != other {
		t.Fatalf("a step of %s was granted", r.Handler)
	} else {
		succeed(t, e, r, "{}")
	}
}

func ptr[T any](v T) *T { return &v }

func TestACircuitOpensIsProbedAndRecoversInWaves(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := open(t, e, 100, "a", "b")
	setPolicy(t, e, "svc", task.CircuitPolicy{
		MinObservations: ptr(5), OpenDuration: ptr(time.Second), CloseAfterSuccesses: ptr(2), RecoveryWave: ptr(2),
	}, "min_observations", "open_duration", "close_after_successes", "recovery_wave")
	submitBehind(t, e, "svc", "a", 5)
	var batch []task.Report
	for range 5 {
		r := nextStep(t, st)
		if r.Circuit != "svc" || r.Probe {
			t.Fatalf("granted %+v", r)
		}
		batch = append(batch, failing(r))
	}
	for _, a := range e.Report(t.Context(), batch) {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	if c := circuit(t, e, "svc"); c.State != task.CircuitOpen || c.Cause != task.CauseFailureRate || c.OpenUntil == nil {
		t.Fatalf("after five failures it is %+v", c)
	}
	submitBehind(t, e, "svc", "a", 20)
	nothingMore(t, e, st, "b")
	if c := circuit(t, e, "svc"); c.Waiting != 20 || c.InFlight != 0 {
		t.Errorf("behind the open circuit %d wait, %d run", c.Waiting, c.InFlight)
	}
	probe := nextStep(t, st)
	if !probe.Probe {
		t.Fatalf("the first step after the open time is no probe: %+v", probe)
	}
	nothingMore(t, e, st, "b")
	if got := report(t, e, failing(probe)); !slices.Equal(got.ChangedCircuits, []string{"svc"}) {
		t.Errorf("the failed probe changed %v", got.ChangedCircuits)
	}
	if c := circuit(t, e, "svc"); c.State != task.CircuitOpen || c.OpenFor != 2*time.Second {
		t.Fatalf("after a failed probe it is %s for %v", c.State, c.OpenFor)
	}
	for range 2 {
		probe := nextStep(t, st)
		if !probe.Probe {
			t.Fatal("no probe")
		}
		succeed(t, e, probe, "{}")
	}
	if c := circuit(t, e, "svc"); c.State != task.CircuitRecovering || c.Wave != 2 {
		t.Fatalf("after two good probes it is %s, wave %d", c.State, c.Wave)
	}
	for left, wave := 17, 2; left > 0; left, wave = left-wave, 2*wave {
		var batch []*task.ReadyStep
		for range min(wave, left) {
			r := nextStep(t, st)
			if r.Probe {
				t.Error("a probe while recovering")
			}
			batch = append(batch, r)
		}
		if left > wave {
			nothingMore(t, e, st, "b")
		}
		for _, r := range batch {
			succeed(t, e, r, "{}")
		}
	}
	want := []string{
		"policy: closed", "failure_rate: open", "open_elapsed: half_open", "probe_failed: open", "open_elapsed: half_open",
		"probes_passed: recovering", "wave_passed: recovering", "wave_passed: recovering", "wave_passed: recovering", "recovered: closed",
	}
	if got := causes(t, e, "svc"); !slices.Equal(got, want) {
		t.Errorf("what happened:\n got %v\nwant %v", got, want)
	}
	if c := circuit(t, e, "svc"); c.State != task.CircuitClosed || c.OpenFor != 0 {
		t.Errorf("in the end it is %+v", c)
	}
}

func TestOneFailureThatReachesTheCircuitParksEverySibling(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := open(t, e, 1, "a", "b")
	submitBehind(t, e, "svc", "a", 3)
	r := failing(nextStep(t, st))
	r.ReachCircuit, r.Hint.After = true, ptr(1500*time.Millisecond)
	got := report(t, e, r)
	if !got.ReachedCircuit || got.AppliedDelay == nil || *got.AppliedDelay != 1500*time.Millisecond {
		t.Errorf("the report says %+v", got)
	}
	c := circuit(t, e, "svc")
	if c.State != task.CircuitOpen || c.Cause != task.CauseReach || c.OpenUntil.Sub(c.Since) != 1500*time.Millisecond {
		t.Fatalf("it is %+v", c)
	}
	nothingMore(t, e, st, "b")
	if r := nextStep(t, st); !r.Probe || r.GrantedAt.Before(*c.OpenUntil) {
		t.Errorf("granted at %v, probe %v, open until %v", r.GrantedAt, r.Probe, c.OpenUntil)
	}
}

func TestAHeldCircuitLetsNothingGoUntilItIsReleased(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := open(t, e, 10, "a", "b")
	if _, err := e.HoldCircuit(t.Context(), "", "svc", task.CircuitHold{Reason: "maintenance", Actor: "op"}); err != nil {
		t.Fatal(err)
	}
	submitBehind(t, e, "svc", "a", 2)
	nothingMore(t, e, st, "b")
	c, err := e.ReleaseCircuit(t.Context(), "", "svc", "op", "done")
	if err != nil || c.State != task.CircuitHalfOpen || c.Hold != nil {
		t.Fatalf("released it is %+v, %v", c, err)
	}
	if r := nextStep(t, st); !r.Probe {
		t.Error("what follows a release is no probe")
	}
	if _, err := e.ReleaseCircuit(t.Context(), "", "none", "op", ""); !errors.Is(err, &task.Error{Reason: task.CircuitNotFound}) {
		t.Errorf("releasing a circuit that is not there: %v", err)
	}
}

func TestACircuitBoundsWhatRunsAtATimeOverAllServers(t *testing.T) {
	db := pgtest.New(t)
	e, other := newEngine(t, db), newEngine(t, db)
	setPolicy(t, e, "svc", task.CircuitPolicy{MaxInFlight: ptr(3)}, "max_in_flight")
	st := openAs(t, e, registration("w1", "i", 10, "a", "b"))
	st2 := openAs(t, other, registration("w2", "i", 10, "a", "c"))
	submitBehind(t, e, "svc", "a", 9)
	waitFor(t, func() bool { return circuit(t, e, "svc").InFlight == 3 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for done := 0; done < 9; {
		for _, x := range []struct {
			e  *engine.Engine
			st *engine.Stream
		}{{e, st}, {other, st2}} {
			short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
			f, err := x.st.Next(short)
			stop()
			if err == nil && f.Step != nil {
				if n := circuit(t, e, "svc").InFlight; n > 3 {
					t.Fatalf("%d run at a time", n)
				}
				succeed(t, x.e, f.Step, "{}")
				done++
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("%d of 9 ran", done)
		}
	}
}

func TestACircuitPacesStarts(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	setPolicy(t, e, "svc", task.CircuitPolicy{Rate: ptr(50.0)}, "rate")
	st := open(t, e, 100, "a")
	submitBehind(t, e, "svc", "a", 40)
	var starts []time.Time
	for range 40 {
		starts = append(starts, nextStep(t, st).GrantedAt)
	}
	for i := range starts {
		for k := i + 1; k < len(starts); k++ {
			// n starts within T seconds: n ≤ rate (T + burst)
			if n, most := float64(k-i+1), 50*(starts[k].Sub(starts[i]).Seconds()+0.1)+1e-3; n > most {
				t.Fatalf("%v starts in %v", n, starts[k].Sub(starts[i]))
			}
		}
	}
}

func TestBudgetsStandStillWhileACircuitThatSuspendsThemIsShut(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := open(t, e, 10, "a", "b")
	for _, suspends := range []bool{false, true} {
		name := fmt.Sprint("svc-", suspends)
		setPolicy(t, e, name, task.CircuitPolicy{SuspendBudgets: &suspends}, "suspend_budgets")
		if _, err := e.HoldCircuit(t.Context(), "", name, task.CircuitHold{Reason: "maintenance"}); err != nil {
			t.Fatal(err)
		}
		soon := time.Now().Add(700 * time.Millisecond)
		answers, err := e.Submit(t.Context(), []*task.Submission{{
			Name: "t", Context: "{}", Steps: []task.StepSpec{behind(name, "a"), spec("b", 1)}, Deadline: &soon,
		}}, false)
		if err != nil {
			t.Fatal(err)
		}
		// Long enough for the deadline to be looked at.
		waitFor(t, func() bool { return time.Now().After(soon.Add(1500 * time.Millisecond)) })
		if _, err := e.ReleaseCircuit(t.Context(), "", name, "op", ""); err != nil {
			t.Fatal(err)
		}
		var reason *string
		if err := db.Pool.QueryRow(t.Context(), "select (select reason::text from parked where task_id = $1)", int64(answers[0].TaskID)).Scan(&reason); err != nil {
			t.Fatal(err)
		}
		if !suspends {
			if reason == nil || *reason != "deadline_exceeded" {
				t.Errorf("behind %s the step is parked for %v", name, reason)
			}
			continue
		}
		if reason != nil {
			t.Fatalf("behind %s the step is parked: %s", name, *reason)
		}
		r := nextStep(t, st)
		if r.StepName != "a" || r.Deadline == nil || !r.Deadline.After(r.GrantedAt) {
			t.Errorf("granted at %v until %v", r.GrantedAt, r.Deadline)
		}
		succeed(t, e, r, "{}")
		// The next step names no circuit; its task has the same budget left.
		r = nextStep(t, st)
		if r.StepName != "b" {
			t.Errorf("granted %s", r.StepName)
		}
		succeed(t, e, r, "{}")
	}
}

func TestAFailureThatAsksForNoTimeReachesNoFurtherThanItsStep(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := open(t, e, 1, "a")
	submitBehind(t, e, "svc", "a", 1)
	for _, hint := range []task.Hint{{Source: task.FromRetryAfter, After: ptr(time.Duration(0))}, {Source: task.FromRetryAt, At: ptr(time.Unix(0, 0))}} {
		r := failing(nextStep(t, st))
		r.ReachCircuit, r.Hint = true, hint
		if got := report(t, e, r); got.ReachedCircuit || len(got.ChangedCircuits) > 0 {
			t.Errorf("with %v the report says %+v", hint.Source, got)
		}
		if c := circuit(t, e, "svc"); c.State != task.CircuitClosed {
			t.Errorf("with %v it is %s", hint.Source, c.State)
		}
	}
}
