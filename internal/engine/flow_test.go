package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// frame waits for a frame that the test is after.
func frame(t *testing.T, st *engine.Stream, want func(engine.Frame) bool) engine.Frame {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for {
		f, err := st.Next(ctx)
		if err != nil {
			t.Fatalf("waiting for a frame: %v", err)
		}
		if want(f) {
			return f
		}
	}
}

func registration(worker, instance string, inFlight int, handlers ...string) engine.Registration {
	return engine.Registration{Beats: true, Session: store.Session{
		WorkerID: worker, InstanceID: instance, MaxInFlight: inFlight, Handlers: handlers,
	}}
}

func openAs(t *testing.T, e *engine.Engine, r engine.Registration) *engine.Stream {
	t.Helper()
	st, err := e.Open(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

func reason(err error) task.Reason {
	var refused *task.Error
	if errors.As(err, &refused) {
		return refused.Reason
	}
	return ""
}

func TestCapacityHoldsOverReplicasAndIsFreedByReportsThatLandElsewhere(t *testing.T) {
	db := pgtest.New(t)
	here, there := newEngine(t, db), newEngine(t, db)
	st := openAs(t, here, registration("w", "1", 2, "a"))
	for range 5 {
		submit(t, there, spec("a"))
	}
	first, second := nextStep(t, st), nextStep(t, st)
	// With two in flight nothing more may come. The report below is what brings the third.
	succeed(t, there, first, `{}`)
	third := nextStep(t, st)
	if third.Token.Step == first.Token.Step || third.Token.Step == second.Token.Step {
		t.Fatal("a step came twice")
	}
	var leases int
	if err := db.Pool.QueryRow(t.Context(), "select count(*) from lease").Scan(&leases); err != nil || leases != 2 {
		t.Fatalf("%d leases are held, want 2 (%v)", leases, err)
	}
	succeed(t, here, second, `{}`)
	succeed(t, here, third, `{}`)
	succeed(t, here, nextStep(t, st), `{}`)
	succeed(t, here, nextStep(t, st), `{}`)
}

func TestASessionMovesToTheServerThatItsNewestStreamIsOn(t *testing.T) {
	db := pgtest.New(t)
	here, there := newEngine(t, db), newEngine(t, db)
	old := openAs(t, here, registration("w", "1", 10, "a"))
	submit(t, here, spec("a"))
	held := nextStep(t, old)

	r := registration("w", "1", 10, "a")
	r.Held = []task.Token{held.Token}
	newer := openAs(t, there, r)
	if o := newer.Opened(); o.InFlight != 1 || len(o.Lost) != 0 {
		t.Fatalf("opened says %+v, want one lease in flight and none lost", o)
	}
	for range 20 {
		submit(t, here, spec("a"))
	}
	for range 9 {
		nextStep(t, newer)
	}
}

func TestAWorkerThatSaysItHoldsNothingGivesItsUnconfirmedStepsBackAtOnce(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := openAs(t, e, registration("w", "1", 10, "a"))
	submit(t, e, spec("a"))
	lost := nextStep(t, st)
	st.Close()
	start := time.Now()
	again := nextStep(t, openAs(t, e, registration("w", "1", 10, "a")))
	if again.Token.Step != lost.Token.Step || again.Dispatch != 2 || again.Attempt != 1 {
		t.Fatalf("got %+v, want the same step at no cost", again)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Fatalf("it took %v: the delivery lease ran out instead", took)
	}
}

// Frames that wait in a stream that has ended are still handed out, or its Close gives them back. Nothing may be granted to it meanwhile.
func TestNothingIsGrantedToAStreamThatHasEnded(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	ended := openAs(t, e, registration("w1", "1", 10, "a"))
	ended.End(nil)
	submit(t, e, spec("a"))
	if r := nextStep(t, openAs(t, e, registration("w2", "1", 10, "a"))); r.Dispatch != 1 {
		t.Fatalf("it was granted before: %+v", r)
	}
}

func TestAnotherLiveInstanceOfAWorkerIsRefused(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := openAs(t, e, registration("w", "1", 1, "a"))
	_, err := e.Open(t.Context(), registration("w", "2", 1, "a"))
	if reason(err) != task.WorkerIDInUse {
		t.Fatalf("got %v, want WORKER_ID_IN_USE", err)
	}
	st.Close()
	openAs(t, e, registration("w", "2", 1, "a"))
}

func TestAnUnconfirmedDispatchGoesBackAfterItsDeliveryTimeoutAtNoCost(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	r := registration("w", "1", 1, "a")
	r.DeliveryTimeout = time.Second
	st := openAs(t, e, r)
	submit(t, e, spec("a"))
	first := nextStep(t, st)
	second := nextStep(t, st)
	if second.Dispatch != 2 || second.Attempt != 1 {
		t.Fatalf("dispatched again as %+v", second)
	}
	// Nobody else was granted the second one's lease by the first one's token.
	a := e.Report(t.Context(), []task.Report{{Token: first.Token, Outcome: task.Success, Results: `{}`, Digest: [32]byte{1}}})[0]
	if reason(a.Err) != task.LeaseLost {
		t.Fatalf("late report answered %v, want LEASE_LOST", a.Err)
	}
	succeed(t, e, second, `{}`)
}

func TestALateReportIsAcceptedWhileNobodyElseWasGrantedTheStep(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	r := registration("w", "1", 1, "a")
	r.DeliveryTimeout = time.Second
	st := openAs(t, e, r)
	id := submit(t, e, spec("a"))
	step := nextStep(t, st)
	st.Close() // so that nobody is granted it again
	waitFor(t, func() bool {
		var n int
		return db.Pool.QueryRow(t.Context(), "select count(*) from ready where task_id = $1", int64(id)).Scan(&n) == nil && n == 1
	})
	if got := succeed(t, e, step, `{"x":1}`); got.AlreadyRecorded || got.State != task.StepComplete || got.Attempts != 1 {
		t.Fatalf("late report answered %+v", got)
	}
}

func TestARunTimeoutRevokesTheLeaseAndCountsAsARetryableFailure(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := openAs(t, e, registration("w", "1", 1, "a"))
	s, second, zero := spec("a"), time.Second, time.Duration(0)
	s.RunTimeout, s.Initial, s.Jitter = &second, &zero, new(float64)
	submit(t, e, s)
	step := nextStep(t, st)
	if _, err := e.Heartbeat(t.Context(), []store.Beat{{Token: step.Token}}); err != nil {
		t.Fatal(err)
	}
	f := frame(t, st, func(f engine.Frame) bool { return f.Revoked != nil })
	if f.Revoked.Token != step.Token || f.Revoked.Reason != task.RevokedTimedOut {
		t.Fatalf("revoked %+v", f.Revoked)
	}
	again := nextStep(t, st)
	if again.Attempt != 2 || again.PreviousFailure == nil || again.PreviousFailure.ErrorCode != "TIMED_OUT" {
		t.Fatalf("dispatched again as %+v", again)
	}
	answers, err := e.Heartbeat(t.Context(), []store.Beat{{Token: step.Token}})
	if err != nil || !answers[0].Lost || answers[0].Reason != task.RevokedTimedOut {
		t.Fatalf("heartbeat of the revoked lease answered %+v, %v", answers, err)
	}
}

func TestACancelledTaskRevokesItsRunningStep(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := openAs(t, e, registration("w", "1", 1, "a", "b"))
	id := submit(t, e, spec("a"), spec("b", 1))
	step := nextStep(t, st)
	if _, err := e.CancelTask(t.Context(), id, store.Act{Actor: "me"}); err != nil {
		t.Fatal(err)
	}
	f := frame(t, st, func(f engine.Frame) bool { return f.Revoked != nil })
	if f.Revoked.Token != step.Token || f.Revoked.Reason != task.RevokedCancelled {
		t.Fatalf("revoked %+v", f.Revoked)
	}
	a := e.Report(t.Context(), []task.Report{{Token: step.Token, Outcome: task.Success, Results: `{}`, Digest: [32]byte{1}}})[0]
	if reason(a.Err) != task.LeaseLost {
		t.Fatalf("a late result of a cancelled step answered %v, want LEASE_LOST", a.Err)
	}
	// Its capacity is free again.
	submit(t, e, spec("a"))
	nextStep(t, st)
}

func TestReleasedStepsComeBackAtNoCostAndNotBeforeTheirDelay(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := openAs(t, e, registration("w", "1", 1, "a"))
	submit(t, e, spec("a"))
	step := nextStep(t, st)
	start := time.Now()
	if err := e.Release(t.Context(), []engine.Release{{Token: step.Token, Delay: 300 * time.Millisecond}})[0]; err != nil {
		t.Fatal(err)
	}
	again := nextStep(t, st)
	if again.Attempt != 1 || again.Dispatch != 2 || time.Since(start) < 300*time.Millisecond {
		t.Fatalf("came back as %+v after %v", again, time.Since(start))
	}
	if err := e.Release(t.Context(), []engine.Release{{Token: step.Token}})[0]; reason(err) != task.LeaseLost {
		t.Fatalf("releasing twice answered %v, want LEASE_LOST", err)
	}
}

func TestAPollReturnsWithTheFirstSteps(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	r := registration("w", "1", 5, "a")
	steps, _, err := e.Poll(t.Context(), r, 5, 10*time.Millisecond)
	if err != nil || len(steps) != 0 {
		t.Fatalf("an empty poll gave %v, %v", steps, err)
	}
	submit(t, e, spec("a"))
	steps, _, err = e.Poll(t.Context(), r, 5, 10*time.Second)
	if err != nil || len(steps) != 1 {
		t.Fatalf("a poll gave %v, %v", steps, err)
	}
	succeed(t, e, steps[0], `{}`)
}

func TestDrainGrantsNothingMoreAndWaitsForTheLast(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := openAs(t, e, registration("w", "1", 5, "a"))
	submit(t, e, spec("a"))
	step := nextStep(t, st)
	type answer struct {
		left []store.SessionLease
		err  error
	}
	drained := make(chan answer, 1)
	go func() {
		left, err := e.Drain(t.Context(), "", "w", "1", time.Now().Add(10*time.Second))
		drained <- answer{left, err}
	}()
	if left, err := e.Drain(t.Context(), "", "w", "1", time.Now()); err != nil || len(left) != 1 || left[0].Token != step.Token {
		t.Fatalf("a drain that does not wait answered %v, %v", left, err)
	}
	submit(t, e, spec("a"))
	succeed(t, e, step, `{}`)
	if a := <-drained; a.err != nil || len(a.left) != 0 {
		t.Fatalf("drain answered %+v", a)
	}
	other := openAs(t, e, registration("other", "1", 5, "a"))
	nextStep(t, other)
}

func TestDrainingServersTellStreamsToMoveAndRefuseNewOnes(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := openAs(t, e, registration("w", "1", 5, "a"))
	e.StopDispatch()
	frame(t, st, func(f engine.Frame) bool { return f.Draining })
	if _, err := e.Open(t.Context(), registration("w2", "1", 5, "a")); reason(err) != task.Draining {
		t.Fatalf("a new stream got %v, want DRAINING", err)
	}
	e.CloseStreams()
	if _, err := st.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Fatalf("the stream ended with %v, want io.EOF", err)
	}
}

// A worker that is told to move may come to another server that is going away. That one must leave its session alone: its
// streams elsewhere would end for good.
func TestServersThatRefuseAStreamDoNotTakeItsSessionOver(t *testing.T) {
	db := pgtest.New(t)
	here, there := newEngine(t, db), newEngine(t, db)
	st := openAs(t, here, registration("w", "1", 5, "a"))
	there.StopDispatch()
	if _, err := there.Open(t.Context(), registration("w", "1", 5, "a")); reason(err) != task.Draining {
		t.Fatalf("the other server answered %v, want DRAINING", err)
	}
	if _, _, err := there.Poll(t.Context(), registration("w", "1", 5, "a"), 1, 0); reason(err) != task.Draining {
		t.Fatalf("the other server answered %v to a poll, want DRAINING", err)
	}
	var epoch int
	if err := db.Pool.QueryRow(t.Context(), "select epoch from worker_session").Scan(&epoch); err != nil || epoch != 1 {
		t.Errorf("the session is in epoch %d (%v), want 1", epoch, err)
	}
	submit(t, here, spec("a"))
	nextStep(t, st)
}

// A namespace that is first heard of while the server drains gets none of its streams either. The race detector watches: its
// loops must know before they start.
func TestDrainingServersRefuseStreamsInNewNamespaces(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	e.StopDispatch()
	for i := range 20 {
		r := registration("w", "1", 5, "a")
		r.Namespace = fmt.Sprintf("late-%d", i)
		if _, err := e.Open(t.Context(), r); reason(err) != task.Draining {
			t.Fatalf("a new stream got %v, want DRAINING", err)
		}
	}
}

func TestDueRetriesOfOtherServersAreDispatchedWhenTheyAreDue(t *testing.T) {
	db := pgtest.New(t)
	here, there := newEngine(t, db), newEngine(t, db)
	st := openAs(t, here, registration("w", "1", 5, "a"))
	submit(t, here, spec("a"))
	step := nextStep(t, st)
	wait := 700 * time.Millisecond
	r := report(t, there, task.Report{
		Token: step.Token, Outcome: task.RetryableFailure, Digest: [32]byte{2},
		Hint: task.Hint{Source: task.FromRetryAfter, After: &wait},
	})
	again := nextStep(t, st)
	if again.GrantedAt.Before(*r.NextRetryAt) {
		t.Fatalf("granted at %v, before next_retry_at %v", again.GrantedAt, r.NextRetryAt)
	}
	if late := again.GrantedAt.Sub(*r.NextRetryAt); late > time.Second {
		t.Fatalf("granted %v after it was due", late)
	}
}

func TestServersThatCannotListenAreSlowerAndNotStuck(t *testing.T) {
	db := pgtest.New(t)
	here, there := startEngine(t, db, nil), startEngine(t, db, nil)
	st := openAs(t, here, registration("w", "1", 1, "a", "b"))
	// The handler's lanes do not exist yet when the stream opens.
	start := time.Now()
	submit(t, there, spec("a"), spec("b", 1))
	step := nextStep(t, st)
	if took := time.Since(start); took > 5*time.Second {
		t.Fatalf("a step of another server's submit came after %v", took)
	}
	// Its capacity is freed on the other server, and its child woken there.
	start = time.Now()
	succeed(t, there, step, `{}`)
	if step = nextStep(t, st); step.StepName != "b" {
		t.Fatalf("got %s, want b", step.StepName)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Fatalf("a step that was woken on another server came after %v", took)
	}
}

func TestADeadListenConnectionIsReplaced(t *testing.T) {
	db := pgtest.New(t)
	here, there := newEngine(t, db), newEngine(t, db)
	st := openAs(t, here, registration("w", "1", 5, "a"))
	waitFor(t, func() bool { return here.Stats().Listening && there.Stats().Listening })
	if _, err := db.Pool.Exec(t.Context(), `
		select pg_terminate_backend(pid) from pg_stat_activity
		where datname = current_database() and pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	// Pools and side connections come back by themselves; a submit that met a dead connection is sent again.
	var id task.ID
	waitFor(t, func() bool {
		answers, err := there.Submit(t.Context(), []*task.Submission{{Name: "t", Context: `{}`, Steps: []task.StepSpec{spec("a")}, IdempotencyKey: "k", Digest: []byte{1}}}, false)
		if err == nil {
			id = answers[0].TaskID
		}
		return err == nil
	})
	if got := nextStep(t, st); got.Task != id {
		t.Fatalf("got a step of task %v, want %v", got.Task, id)
	}
	waitFor(t, func() bool { return here.Stats().Listening && there.Stats().Listening })
}

// waitFor waits until a condition holds.
func waitFor(t *testing.T, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatal("it never came true")
		case <-tick.C:
		}
	}
}
