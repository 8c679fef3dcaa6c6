package engine_test

import (
	"testing"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// A session of a claim may have moved to another server before this one hears of it. Its slots bring nothing, and what is
// counted for its neighbours stays right (S10).
func TestCapacityHoldsWhenAnotherSessionOfTheClaimHasMoved(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	stays := open(t, e, 2, "a")
	openOther(t, e, 2, "a")
	if _, err := db.Pool.Exec(t.Context(), "update worker_session set epoch = epoch + 1 where worker_id = 'other'"); err != nil {
		t.Fatal(err)
	}
	var many []*task.Submission
	for range 12 {
		many = append(many, &task.Submission{Name: "t", Context: "{}", Steps: []task.StepSpec{spec("a")}})
	}
	if _, err := e.Submit(t.Context(), many, true); err != nil {
		t.Fatal(err)
	}
	first, second := nextStep(t, stays), nextStep(t, stays)
	for range 4 {
		succeed(t, e, first, "{}")
		first, second = second, nextStep(t, stays)
		var held int
		err := db.Pool.QueryRow(t.Context(), "select count(*) from lease where session_id = $1", first.Token.SessionID).Scan(&held)
		if err != nil || held > 2 {
			t.Fatalf("S10: %d leases of 2 (%v)", held, err)
		}
	}
}

// A worker comes back while the end of its old stream is being dealt with: the new stream keeps the session open.
func TestAStreamThatOpensWhileTheOldOneEndsIsServed(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	again := engine.Registration{Beats: true, Session: store.Session{WorkerID: "w", InstanceID: "1", MaxInFlight: 5, Handlers: []string{"a"}}}
	old, err := e.Open(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	submit(t, e, spec("a"))
	nextStep(t, old)
	// The worker says that it holds nothing, so that the step goes back; the COMMIT of that waits at the gate.
	g := closeGate(t, db, "ready")
	opened := make(chan *engine.Stream, 1)
	go func() {
		st, err := e.Open(t.Context(), again)
		if err != nil {
			t.Error(err)
		}
		opened <- st
	}()
	g.blocked()
	old.Close()
	g.open()
	st := <-opened
	if st == nil {
		return
	}
	defer st.Close()
	if r := nextStep(t, st); r.Dispatch != 2 {
		t.Errorf("the new stream got dispatch %d", r.Dispatch)
	}
}
