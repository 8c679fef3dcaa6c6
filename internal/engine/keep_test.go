package engine_test

import (
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// To say that a tenant's sessions are alive takes as long as a claim of its takes. Meanwhile neither another tenant's steps wait,
// nor the end of leases.
func TestATenantDoesNotWaitForAnothersClaim(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
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
	// In the order in which one statement for all sessions would lock them.
	small, busy := work("small"), work("busy")
	for namespace, steps := range map[string]int{"small": 1000, "busy": 1} {
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
	// The small tenant goes on while a statement waits for the busy tenant's claim, however long it does.
	var slowest time.Duration
	for waiting, i := 0, 0; waiting < 3; i++ {
		if i == 900 {
			t.Fatalf("nobody is seen to wait for the busy tenant's claim; the small tenant's slowest step took %v", slowest)
		}
		began := time.Now()
		succeed(t, e, step, "{}")
		step = nextStep(t, small)
		slowest = max(slowest, time.Since(began))
		if g.count("select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%All that a server%'") > 0 {
			waiting++
		}
		time.Sleep(5 * time.Millisecond)
	}
	// A look of its own would be the next to lock the small tenant's session: see that none does and waits.
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		began := time.Now()
		succeed(t, e, step, "{}")
		step = nextStep(t, small)
		slowest = max(slowest, time.Since(began))
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
