package engine_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// A claim holds its sessions' rows for as long as it takes. Meanwhile the server goes on looking at them and saying that it is
// alive, and another tenant's steps do not wait.
func TestNobodyWaitsForAClaimOfAnotherTenant(t *testing.T) {
	db := pgtest.New(t)
	e := startEngine(t, db, nil) // deaf, so that it looks every second
	work := func(namespace string) *engine.Stream {
		t.Helper()
		st, err := e.Open(t.Context(), engine.Registration{Session: store.Session{
			WorkerID: "w", InstanceID: "1", MaxInFlight: 10, Handlers: []string{"a"},
		}, Namespace: namespace, Beats: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(st.Close)
		return st
	}
	submitTo := func(namespace string, steps ...task.StepSpec) error {
		_, err := e.Submit(t.Context(), []*task.Submission{{Namespace: namespace, Name: "t", Context: "{}", Steps: steps}}, false)
		return err
	}
	chain := func(length int) (steps []task.StepSpec) {
		for i := range length {
			s := spec("a")
			s.Name += strings.Repeat("a", i)
			if i > 0 {
				s.Parents = []int{i}
			}
			steps = append(steps, s)
		}
		return steps
	}
	small, busy := work("small"), work("busy")
	for namespace, steps := range map[string]int{"small": 5000, "busy": 1} {
		if err := submitTo(namespace, chain(steps)...); err != nil {
			t.Fatal(err)
		}
	}
	nextStep(t, busy)
	step := nextStep(t, small)
	g := closeGate(t, db, "task")
	done := make(chan error, 1)
	held := func() bool {
		go func() { done <- submitTo("busy", chain(1)...) }()
		g.blocked()
		return g.count("select count(*) from (select from worker_session where session_id = 2 for no key update skip locked) free") == 0
	}
	// Another look into the lane may be under way, as it is now and then: then the task is stored without a claim.
	for try := 0; !held(); try++ {
		if try == 50 {
			t.Fatal("none of 50 tasks was stored by a transaction that claims")
		}
		g.open()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		nextStep(t, busy)
		g.shut()
	}
	var slowest time.Duration
	seen := func() (at time.Time) {
		t.Helper()
		if err := db.Pool.QueryRow(t.Context(), "select seen_at from replica").Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	last := seen()
	for heard, deadline := 0, time.Now().Add(20*time.Second); heard < 3; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the server said %d times that it is alive while a claim was under way", heard)
		}
		began := time.Now()
		succeed(t, e, step, "{}")
		step = nextStep(t, small)
		slowest = max(slowest, time.Since(began))
		if now := seen(); now.After(last) {
			heard, last = heard+1, now
		}
		if g.count("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%All that a server%'") > 0 {
			t.Fatal("a look waits for the claim")
		}
	}
	g.open()
	if err := <-done; err != nil {
		t.Error(err)
	}
	nextStep(t, busy)
	if slowest > 2*time.Second {
		t.Errorf("a step of the small tenant waited %v for its next", slowest)
	}
}

// lives tells whether a worker_id is taken by a live session, by what another instance of it is told.
func lives(t *testing.T, e *engine.Engine, workerID string) bool {
	t.Helper()
	st, err := e.Open(t.Context(), registration(workerID, rand.Text(), 1, "a"))
	if err == nil {
		st.Close()
		return false
	}
	if reason(err) != task.WorkerIDInUse {
		t.Fatal(err)
	}
	return true
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, within time.Duration, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, within)
		}
	}
}

// seen waits until so many servers have said that they are alive.
func seen(t *testing.T, db *pgtest.DB, servers int) {
	t.Helper()
	eventually(t, "servers are seen", 10*time.Second, func() bool {
		var n int
		if err := db.Pool.QueryRow(t.Context(), "select count(*) from replica").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n == servers
	})
}

// age makes all sessions look as if they had been opened long ago.
func age(t *testing.T, db *pgtest.DB) {
	t.Helper()
	if _, err := db.Pool.Exec(t.Context(), "update worker_session set opened_at = opened_at - interval '1 hour', seen_at = seen_at - interval '1 hour'"); err != nil {
		t.Fatal(err)
	}
}

// A server speaks for all its sessions with its own row, from its start to its end.
func TestAServerSpeaksForItsSessions(t *testing.T) {
	db := pgtest.New(t)
	here, run := restingEngine(t, db, nil)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	there := newEngine(t, db)
	openAs(t, here, registration("w", "1", 1, "a"))
	age(t, db)
	seen(t, db, 2)
	if !lives(t, there, "w") {
		t.Fatal("another instance is let in although the server is alive")
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// It is silent from now on.
	if !lives(t, there, "w") {
		t.Error("another instance is let in as soon as the server has ended")
	}
	if _, err := db.Pool.Exec(t.Context(), "update replica set seen_at = seen_at - $1::interval", store.SessionLiveFor); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another instance is let in", 10*time.Second, func() bool { return !lives(t, there, "w") })
}

// A session whose close was lost would live on with its server.
func TestALostCloseIsMadeGood(t *testing.T) {
	db := pgtest.New(t)
	e := startEngine(t, db, nil)
	stays, goes := openAs(t, e, registration("stays", "1", 1, "a")), openAs(t, e, registration("goes", "1", 1, "a"))
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	age(t, db)
	seen(t, db, 1)
	exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'away'; end $$`)
	exec(`create trigger refuse before update on worker_session for each row when (new.closed_at is not null) execute function refuse()`)
	goes.Close()
	if !lives(t, e, "goes") {
		t.Fatal("the session was closed")
	}
	exec(`drop trigger refuse on worker_session`)
	eventually(t, "the session is closed", 10*time.Second, func() bool { return !lives(t, e, "goes") })
	if !lives(t, e, "stays") {
		t.Error("a session was closed that is here")
	}
	submit(t, e, spec("a"))
	nextStep(t, stays)
}

// So would one that was opened by a call that failed afterwards.
func TestASessionOfACallThatFailedIsClosed(t *testing.T) {
	db := pgtest.New(t)
	e := startEngine(t, db, nil)
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	seen(t, db, 1)
	exec("alter table lease rename to away")
	if _, err := e.Open(t.Context(), registration("w", "1", 1, "a")); err == nil {
		t.Fatal("a session was opened whose leases could not be read")
	}
	exec("alter table away rename to lease")
	if !lives(t, e, "w") {
		t.Fatal("the call has left no session")
	}
	age(t, db)
	eventually(t, "the session is closed", 10*time.Second, func() bool { return !lives(t, e, "w") })
}

// Whoever hears no words of other servers finds all the same which of its sessions moved, though they are more than one look takes.
func TestMovesAreNoticedAmongMoreSessionsThanOneLookTakes(t *testing.T) {
	db := pgtest.New(t)
	e := startEngine(t, db, nil)
	streams := make([]*engine.Stream, engine.SessionsALook*5/4)
	var opening sync.WaitGroup
	for part := range 8 {
		opening.Go(func() {
			for i := part; i < len(streams); i += 8 {
				st, err := e.Open(t.Context(), registration(fmt.Sprint("w", i), "1", 1, "a"))
				if err != nil {
					t.Error(err)
					return
				}
				streams[i] = st
			}
		})
	}
	opening.Wait()
	if t.Failed() {
		return
	}
	// Every second one moved, and nobody said so.
	_, err := db.Pool.Exec(t.Context(), `update worker_session set epoch = epoch + 1, replica_id = gen_random_uuid()
		where substr(worker_id, 2)::int % 2 = 1`)
	if err != nil {
		t.Fatal(err)
	}
	within, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for i := 1; i < len(streams); i += 2 {
		for {
			if _, err := streams[i].Next(within); err != nil {
				if reason(err) != task.SessionTakenOver {
					t.Fatalf("stream %d ended with %v, want SESSION_TAKEN_OVER", i, err)
				}
				break
			}
		}
	}
	for i, st := range streams {
		if i%2 == 0 {
			over, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			if _, err := st.Next(over); reason(err) != "" {
				t.Fatalf("stream %d, whose session did not move, ended with %v", i, err)
			}
			cancel()
		}
		st.Close()
	}
}

// A drain by way of one server is heard of by the server that has the session.
func TestADrainElsewhereIsHeardOf(t *testing.T) {
	db := pgtest.New(t)
	here, there := newEngine(t, db), newEngine(t, db)
	r := registration("w", "1", 1, "a")
	r.HeartbeatInterval = 50 * time.Millisecond
	st := openAs(t, here, r)
	submit(t, there, spec("a"))
	succeed(t, there, nextStep(t, st), "{}") // by now they know of each other
	began := time.Now()
	if _, err := there.Drain(t.Context(), "", "w", "1", time.Now()); err != nil {
		t.Fatal(err)
	}
	frame(t, st, func(f engine.Frame) bool {
		return slices.ContainsFunc(f.Notices, func(n engine.Notice) bool { return n.Reason == "drained" })
	})
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took) // a look comes every five seconds
	}
}

// The session of a worker that polls is its own between two polls, for as long as a session lives; then it is taken leave of, however
// often it was used before.
func TestAWorkerThatPollsNoMoreIsTakenLeaveOf(t *testing.T) {
	db := pgtest.New(t)
	e := startEngine(t, db, nil)
	poll := func() {
		t.Helper()
		if steps, _, err := e.Poll(t.Context(), registration("w", "1", 1, "a"), 1, time.Millisecond); err != nil || len(steps) > 0 {
			t.Fatalf("a poll gave %v, %v", steps, err)
		}
	}
	for range 3 {
		poll()
	}
	age(t, db)
	seen(t, db, 1)
	e.Pass(store.SessionLiveFor)
	poll()
	if !lives(t, e, "w") {
		t.Fatal("another instance is let in although the worker polls")
	}
	e.Pass(store.SessionLiveFor)
	eventually(t, "the session is closed", 10*time.Second, func() bool { return !lives(t, e, "w") })
}
