package floor_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/bench/floor"
	"github.com/taskerhq/tasker/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// TestRun sees that a run loses and repeats nothing (Run checks that itself), that each figure was measured, and that
// the database is left as it was.
func TestRun(t *testing.T) {
	db := pgtest.NewEmpty(t)
	result, err := floor.Run(t.Context(), floor.Config{
		DSN: db.ConnString(), Warmup: 100 * time.Millisecond, Duration: 500 * time.Millisecond,
		Batch: 50, Loops: 3, ChainSteps: 20, AllowFsyncOff: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, figure := range map[string]float64{
		"version": float64(result.Version), "steps": float64(result.Steps), "steps/s": result.StepsPerSec,
		"Go CPU": result.GoCPU, "chain p50": result.ChainP50, "durable commit": result.DurableCommit,
	} {
		if figure <= 0 {
			t.Errorf("%s = %v, want more than nothing", name, figure)
		}
	}
	if result.PostgresCPU == nil || *result.PostgresCPU <= 0 {
		t.Errorf("Postgres CPU = %v, want a time: the server is on this machine", result.PostgresCPU)
	}
	// A step's rows and its three entries of history hold some 500 bytes, however they are packed.
	if result.WALBytes < 500 || result.WALBytes > 5000 {
		t.Errorf("WAL = %.0f bytes a step, want 500 to 5000", result.WALBytes)
	}
	// At least a submit and a turn a batch; a claim that comes up empty is one more.
	if least := 2.0 / 50; result.Commits < least || result.Commits > 1 {
		t.Errorf("commits = %.4f a step, want %.4f to 1", result.Commits, least)
	}
	var left bool
	if err := db.Pool.QueryRow(t.Context(), "select to_regnamespace('tasker_bench_floor') is not null").Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left {
		t.Error("the schema is still there")
	}
}

func TestRunRefusesServerWithoutFsync(t *testing.T) {
	if _, err := floor.Run(t.Context(), floor.Config{DSN: pgtest.NewEmpty(t).ConnString()}); err == nil {
		t.Error("a run on a server with fsync off succeeded")
	}
}

// life is the schema and its statements, run one by one as a reader of the files would.
type life struct {
	*testing.T
	db    *pgtest.DB
	conn  *pgx.Conn
	token [16]byte
}

const step = 1 // the only step of the only task, in lane 1

func newLife(t *testing.T) *life {
	db := pgtest.NewEmpty(t)
	l := &life{T: t, db: db, token: [16]byte{15: 7}}
	setup := db.Conn(t)
	if _, err := setup.Exec(t.Context(), l.sql("schema"), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	l.conn = l.connect()
	var roots int
	err := l.conn.QueryRow(t.Context(), l.sql("submit"), []int64{1}, []int32{1}, []int64{1}, []int32{step}, []int32{1},
		[]string{"{0}"}, []*string{nil}, []*string{nil}, [][]byte{{1}}, []bool{true}).Scan(&roots)
	if err != nil || roots != 1 {
		t.Fatalf("submitting: %d roots, %v", roots, err)
	}
	return l
}

func (l *life) sql(name string) string {
	l.Helper()
	text, err := os.ReadFile(filepath.Join("sql", name+".sql"))
	if err != nil {
		l.Fatal(err)
	}
	return string(text)
}

func (l *life) connect() *pgx.Conn {
	conn := l.db.Conn(l.T)
	if _, err := conn.Exec(l.Context(), "set search_path = tasker_bench_floor"); err != nil {
		l.Fatal(err)
	}
	return conn
}

// claim takes the step and returns its dispatch number, 0 when nothing is ready.
func (l *life) claim() int {
	l.Helper()
	rows, err := l.conn.Query(l.Context(), l.sql("claim"), []int32{1}, []int64{0}, []int32{10},
		[][16]byte{l.token, {}, {}}, []int32{1, 1, 1}, 30*time.Second)
	if err != nil {
		l.Fatal(err)
	}
	dispatches, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (dispatch int, err error) {
		err = row.Scan(nil, nil, nil, nil, &dispatch, nil, nil, nil)
		return dispatch, err
	})
	if err != nil {
		l.Fatal(err)
	}
	if len(dispatches) > 1 {
		l.Fatalf("claimed %d rows of one step", len(dispatches))
	}
	if len(dispatches) == 0 {
		return 0
	}
	return dispatches[0]
}

// complete reports the step under token and returns how many results were accepted and how many tasks ended.
func (l *life) complete(token [16]byte) (accepted, finished int, err error) {
	batch := &pgx.Batch{}
	tasks, steps, tokens := []int64{1}, []int32{step}, [][16]byte{token}
	batch.Queue(l.sql("lock_leases"), tasks, steps, tokens)
	var places []int64
	batch.Queue(l.sql("complete"), tasks, steps, tokens, [][]byte{make([]byte, 32)}, [][]byte{nil}).
		QueryRow(func(row pgx.Row) error { return row.Scan(&places, nil, &finished, nil) })
	err = l.conn.SendBatch(l.Context(), batch).Close()
	return len(places), finished, err
}

func (l *life) count(table string) (rows int) {
	l.Helper()
	if err := l.db.Pool.QueryRow(l.Context(), "select count(*) from tasker_bench_floor."+table).Scan(&rows); err != nil {
		l.Fatal(err)
	}
	return rows
}

// TestCompleteDuringHeartbeat has a heartbeat move the lease's row while the report waits for it. Locking and deleting
// in one statement would record the result and leave the lease behind.
func TestCompleteDuringHeartbeat(t *testing.T) {
	l := newLife(t)
	if got := l.claim(); got != 1 {
		t.Fatalf("dispatch = %d, want 1", got)
	}
	heartbeat, err := l.connect().Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := heartbeat.Exec(t.Context(), "update lease set until = until + interval '30 s'"); err != nil {
		t.Fatal(err)
	}
	reporter := l.conn.PgConn().PID()
	type answer struct {
		accepted, finished int
		err                error
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		a.accepted, a.finished, a.err = l.complete(l.token)
		answers <- a
	}()
	// The heartbeat may commit only once the report is seen waiting for it.
	for waits := false; !waits; {
		err := l.db.Pool.QueryRow(t.Context(), "select cardinality(pg_blocking_pids($1)) > 0", reporter).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := heartbeat.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-answers; got != (answer{accepted: 1, finished: 1}) {
		t.Errorf("answer = %+v, want one result accepted and one task ended", got)
	}
	if leases, ends := l.count("lease"), l.count("step_end"); leases != 0 || ends != 1 {
		t.Errorf("%d leases are left and %d ends recorded, want 0 and 1", leases, ends)
	}
}

func TestCompleteUnderAnotherToken(t *testing.T) {
	l := newLife(t)
	l.claim()
	accepted, finished, err := l.complete([16]byte{15: 8})
	if err != nil || accepted != 0 || finished != 0 {
		t.Errorf("accepted %d, ended %d, %v; want nothing", accepted, finished, err)
	}
	if leases, ends := l.count("lease"), l.count("step_end"); leases != 1 || ends != 0 {
		t.Errorf("%d leases are left and %d ends recorded, want 1 and 0", leases, ends)
	}
}

// TestClaimTakesDueRetries moves the step to backoff by hand: a retry is claimed where it waits, once it is due.
func TestClaimTakesDueRetries(t *testing.T) {
	l := newLife(t)
	for _, sql := range []string{
		"delete from ready",
		`insert into backoff (lane_id, due_at, task_id, step_no, attempts, dispatches, lost_leases, epoch, event_no)
		 values (1, now() + interval '1 h', 1, 1, 1, 1, 0, 1, 3)`,
	} {
		if _, err := l.conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.claim(); got != 0 {
		t.Fatalf("dispatch = %d of a step that is not due", got)
	}
	if _, err := l.conn.Exec(t.Context(), "update backoff set due_at = now() - interval '1 s'"); err != nil {
		t.Fatal(err)
	}
	if got := l.claim(); got != 2 {
		t.Errorf("dispatch = %d, want 2", got)
	}
	if waiting, leases := l.count("backoff"), l.count("lease"); waiting != 0 || leases != 1 {
		t.Errorf("%d retries wait and %d leases stand, want 0 and 1", waiting, leases)
	}
}
