package engine_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// gate makes the COMMIT of every transaction that writes into a table wait until it opens: all else of the transaction is
// done by then, and nobody sees it.
type gate struct {
	*testing.T
	db   *pgtest.DB
	conn *pgx.Conn // holds the gate
}

func closeGate(t *testing.T, db *pgtest.DB, table string) *gate {
	t.Helper()
	g := &gate{T: t, db: db, conn: db.Conn(t)}
	g.execute(`create function gate() returns trigger language plpgsql security definer as $$
		begin perform pg_advisory_xact_lock_shared(1); return null; end $$`)
	g.execute(`create constraint trigger gate after insert on ` + table + ` deferrable initially deferred
		for each row execute function gate()`)
	t.Cleanup(func() { _ = g.conn.Close(context.Background()) }) // which opens it, whatever the test came to
	g.shut()
	return g
}

func (g *gate) shut() { g.hold("select pg_advisory_lock(1)") }

func (g *gate) open() { g.hold("select pg_advisory_unlock(1)") }

func (g *gate) hold(sql string) {
	g.Helper()
	if _, err := g.conn.Exec(g.Context(), sql); err != nil {
		g.Fatal(err)
	}
}

func (g *gate) execute(sql string) {
	g.Helper()
	if _, err := g.db.Pool.Exec(g.Context(), sql); err != nil {
		g.Fatal(err)
	}
}

// blocked waits until a transaction waits at the gate.
func (g *gate) blocked() {
	g.Helper()
	for deadline := time.Now().Add(10 * time.Second); g.count(`select count(*) from pg_stat_activity
		where datname = current_database() and wait_event = 'advisory'`) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.Fatal("no transaction came to the gate")
		}
	}
}

// cut ends the transactions at the gate, as the crash of their server or of their connection would.
func (g *gate) cut() {
	g.Helper()
	g.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'")
}

func (g *gate) count(sql string, args ...any) (n int) {
	g.Helper()
	if err := g.db.Pool.QueryRow(g.Context(), sql, args...).Scan(&n); err != nil {
		g.Fatal(err)
	}
	return n
}

// An answer that came before the COMMIT would be a lie when the COMMIT then fails (S8).
func TestAReportIsAnsweredAfterItsCommit(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := open(t, e, 1, "a")
	id := submit(t, e, spec("a"))
	r := nextStep(t, st)
	g := closeGate(t, db, "step_end")
	answered := make(chan engine.ReportAnswer, 1)
	go func() {
		answered <- e.Report(context.WithoutCancel(t.Context()), []task.Report{
			{Token: r.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}},
		})[0]
	}()
	g.blocked()
	g.cut()
	if a := <-answered; a.Err == nil {
		t.Errorf("S8: a report was acknowledged whose transaction came to nothing: %d rows",
			g.count("select count(*) from step_end where task_id = $1", int64(id)))
	}
}

// What a transaction concludes is free for that transaction's own grants alone: no other may count on it before it has
// committed, and when it fails, the leases stand (S10).
func TestCapacityIsNotFreedByAReportThatIsNotCommitted(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	busy, free := open(t, e, 2, "a"), openOther(t, e, 10, "b")
	for range 3 {
		submit(t, e, spec("a"))
	}
	first, second := nextStep(t, busy), nextStep(t, busy)
	if _, err := e.Heartbeat(t.Context(), []store.Beat{{Token: first.Token}, {Token: second.Token}}); err != nil {
		t.Fatal(err)
	}
	g := closeGate(t, db, "step_end")
	held := func() int {
		return g.count("select count(*) from lease where session_id = $1", first.Token.SessionID)
	}
	done := make(chan engine.ReportAnswer, 1)
	send := func() {
		done <- e.Report(context.WithoutCancel(t.Context()), []task.Report{
			{Token: first.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}},
		})[0]
	}
	go send()
	g.blocked()
	// Another transaction that claims comes by; it looks into every lane that has work and room.
	submit(t, e, spec("a"))
	submit(t, e, spec("b"))
	nextStep(t, free)
	if n := held(); n != 2 {
		t.Errorf("S10: %d leases of 2 while a report waits for its COMMIT", n)
	}
	g.cut()
	if a := <-done; a.Err == nil {
		t.Fatal("the report was taken though its transaction came to nothing")
	}
	submit(t, e, spec("a"))
	submit(t, e, spec("b"))
	nextStep(t, free)
	if n := held(); n != 2 {
		t.Errorf("S10: %d leases of 2 after a report came to nothing", n)
	}
	g.execute("drop function gate() cascade")
	go send()
	if a := <-done; a.Err != nil {
		t.Fatal(a.Err)
	}
	nextStep(t, busy)
}

func openOther(t *testing.T, e *engine.Engine, inFlight int, handlers ...string) *engine.Stream {
	t.Helper()
	st, err := e.Open(t.Context(), engine.Registration{Session: store.Session{
		WorkerID: "other", InstanceID: "1", MaxInFlight: inFlight, Handlers: handlers,
	}, Beats: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}
