package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// alive says that a server is.
func (w *world) alive(replica byte) {
	w.Helper()
	_, err := w.s.Tick(w.Context(), store.Ask{Alive: &[16]byte{replica}})
	w.ok(err)
}

// openAs opens a session of an instance of a worker on a server.
func (w *world) openAs(workerID, instanceID string, replica byte) (store.SessionFence, error) {
	id, epoch, _, err := w.s.OpenSession(w.Context(), w.ns, [16]byte{replica}, store.Session{
		WorkerID: workerID, InstanceID: instanceID, MaxInFlight: 1, Handlers: []string{"work"},
	})
	return store.SessionFence{SessionID: id, Epoch: epoch}, err
}

// worker is how a worker's session is listed.
func (w *world) worker(workerID string) (found task.WorkerView) {
	w.Helper()
	listed, err := w.s.Workers(w.Context(), w.ns, store.WorkerKey{}, 100, "")
	w.ok(err)
	for _, x := range listed {
		if x.WorkerID == workerID {
			return x
		}
	}
	w.Fatalf("worker %s is not listed", workerID)
	return found
}

// A session lives as long as its server says that it is alive itself, and SessionLiveFor longer: so long it keeps its worker_id.
func TestASessionIsAliveAsLongAsItsServer(t *testing.T) {
	w := newWorld(t) // its session is of server 1
	opened := w.now
	another := func() error {
		_, err := w.openAs("worker", "2", 2)
		return err
	}
	w.pass(store.SessionLiveFor - time.Second)
	w.refused(another(), task.WorkerIDInUse) // by its own word: its server has said nothing yet
	w.alive(1)
	for range 3 {
		w.pass(time.Hour)
		w.alive(1)
		w.refused(another(), task.WorkerIDInUse)
	}
	seen := w.now
	w.pass(store.SessionLiveFor - time.Second)
	w.refused(another(), task.WorkerIDInUse)
	if x := w.worker("worker"); !x.OpenedAt.Equal(opened) || !x.SeenAt.Equal(seen) {
		t.Errorf("listed as opened at %v and seen at %v, want %v and %v", x.OpenedAt, x.SeenAt, opened, seen)
	}
	w.pass(time.Second)
	w.alive(2) // somebody else's word
	w.ok(another())
	equal(w, "sessions that are closed", value[int](w, "select count(*) from worker_session where closed_at is not null"), 1)

	// One that was closed is not alive, whatever its server says.
	last, err := w.openAs("closed", "1", 2)
	w.ok(err)
	w.pass(time.Second)
	closed := w.now
	w.ok(w.s.CloseSession(t.Context(), last.SessionID, last.Epoch))
	w.pass(time.Minute)
	w.alive(2)
	if x := w.worker("closed"); !x.SeenAt.Equal(closed) {
		t.Errorf("a closed session was seen at %v, want %v", x.SeenAt, closed)
	}
	_, err = w.openAs("closed", "2", 2)
	w.ok(err)

	// One whose server has no row was heard of when it was opened, and never since.
	opened = w.now
	_, err = w.openAs("rowless", "1", 9)
	w.ok(err)
	w.pass(time.Hour)
	_, err = w.openAs("rowless", "2", 2)
	w.ok(err)
	if x := w.worker("rowless"); x.ClosedAt == nil || !x.SeenAt.Equal(opened) {
		t.Errorf("closed at %v for its silence, it is listed as seen at %v, want %v", x.ClosedAt, x.SeenAt, opened)
	}
}

// A step waits for a worker when none whose server is alive takes its handler.
func TestAStepWaitsForAWorkerOnceItsServerIsSilent(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	waitsFor := func(want string) {
		t.Helper()
		equal(w, "waits for", value[string](w, "select waiting_for from get_step_readiness_status($1)", int64(id)), want)
	}
	waitsFor("worker") // the world's clock is far from the database's
	_, err := w.db.Pool.Exec(t.Context(), "insert into replica values ('01000000-0000-0000-0000-000000000000', now(), now() - interval '14 s')")
	w.ok(err)
	waitsFor("capacity")
	_, err = w.db.Pool.Exec(t.Context(), "update replica set seen_at = seen_at - interval '1 s'")
	w.ok(err)
	waitsFor("worker")
}

// What a look tells of sessions, while a claim that is under way holds their rows.
func TestALookTellsWhatBecameOfSessionsAndWaitsForNoClaim(t *testing.T) {
	w := newWorld(t)
	w.submit(step())
	asked := store.Ask{Alive: &[16]byte{1}}
	want := map[int32]store.Kept{}
	ask := func(f store.SessionFence, k store.Kept) {
		k.SessionID = f.SessionID
		want[f.SessionID] = k
		asked.SessionIDs, asked.Epochs = append(asked.SessionIDs, f.SessionID), append(asked.Epochs, f.Epoch)
	}
	open := func(worker, instance string) store.SessionFence {
		t.Helper()
		f, err := w.openAs(worker, instance, 1)
		w.ok(err)
		return f
	}
	ask(w.session, store.Kept{Kept: true})
	moved := open("moved", "1")
	open("moved", "1")
	closed := open("closed", "1")
	w.ok(w.s.CloseSession(t.Context(), closed.SessionID, closed.Epoch))
	ask(closed, store.Kept{})
	_, _, err := w.s.DrainSession(t.Context(), w.ns, "moved", "1")
	w.ok(err)
	ask(moved, store.Kept{Drained: true})
	superseded := open("superseded", "1")
	w.ok(w.s.CloseSession(t.Context(), superseded.SessionID, superseded.Epoch))
	w.pass(time.Second)
	open("superseded", "2")
	ask(superseded, store.Kept{Superseded: true})
	ask(store.SessionFence{SessionID: 1 << 30, Epoch: 1}, store.Kept{}) // no such row

	_, end, err := w.s.HoldClaim(t.Context(), w.ns, w.claimFor(1, w.session))
	w.ok(err)
	defer end() //nolint:errcheck // committed below where all is well
	within, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick, err := w.s.Tick(within, asked)
	w.ok(err)
	w.ok(end())
	equal(w, "answers", len(tick.Kept), len(asked.SessionIDs))
	for _, k := range tick.Kept {
		equal(w, "what became of a session", k, want[k.SessionID])
	}
	equal(w, "servers", value[int](w, "select count(*) from replica where seen_at = $1", w.now), 1)
}

// Which sessions a server should have: those that are open and its own, unless they may be on their way to it.
func TestTheSessionsThatAServerShouldHave(t *testing.T) {
	w := newWorld(t)
	closed, err := w.openAs("closed", "1", 1)
	w.ok(err)
	w.ok(w.s.CloseSession(t.Context(), closed.SessionID, closed.Epoch))
	_, err = w.openAs("elsewhere", "1", 2)
	w.ok(err)
	w.pass(store.SessionLiveFor + time.Second)
	_, err = w.openAs("just opened", "1", 1)
	w.ok(err)
	open, err := w.s.SessionsOf(t.Context(), [16]byte{1})
	w.ok(err)
	if want := (store.OpenedSession{NamespaceID: w.ns, SessionID: w.session.SessionID, Epoch: w.session.Epoch}); len(open) != 1 || open[0] != want {
		t.Errorf("got %v, want %v", open, want)
	}
}
