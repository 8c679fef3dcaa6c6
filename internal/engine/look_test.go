package engine

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
)

// looker looks into one lane as a sweep does.
type looker struct {
	t    *testing.T
	s    *store.Store
	lane *lane
	z    horizon
}

// look looks once, and says what it found first.
func (k *looker) look() (first, returned int64) {
	k.t.Helper()
	probes, err := k.s.ProbeLanes(k.t.Context(), k.lane.NamespaceID, store.Look{
		Handlers: []string{k.lane.Handler}, Lanes: []int32{k.lane.ID}, After: []int64{k.lane.low},
	})
	if err != nil || len(probes) != 1 {
		k.t.Fatalf("%d lanes, %v", len(probes), err)
	}
	if !k.z.observe(probes[0].Horizon) {
		k.t.Fatal("the sequence has gone back")
	}
	k.lane.cleared(probes[0].Seq, k.z.passed)
	if p := probes[0].Seq; p != nil {
		first = *p
	}
	if p := probes[0].Returned; p != nil {
		returned = *p
	}
	return first, returned
}

// Where a look begins, nothing may appear any more that no wake tells of: not while a transaction is in progress that has drawn
// an earlier seq, and whatever comes back from a dispatch is found all the same (L2).
func TestALookBeginsWhereNothingNewCanAppear(t *testing.T) {
	db := pgtest.New(t)
	s, err := store.Open(t.Context(), db.Pool.Config(), 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	ns, err := s.EnsureNamespace(t.Context(), "default")
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := s.EnsureLane(t.Context(), store.Lane{NamespaceID: ns, Handler: "a", Priority: 1})
	if err != nil {
		t.Fatal(err)
	}
	k := &looker{t: t, s: s, lane: &lane{Lane: store.Lane{ID: id, NamespaceID: ns, Handler: "a"}}}
	task := int64(0)
	row := func(on interface {
		QueryRow(context.Context, string, ...any) pgx.Row
	},
	) (seq int64) {
		t.Helper()
		task += 1 << 14
		err := on.QueryRow(t.Context(), "insert into ready (lane_id, task_id, step_no, runnable_at) values ($1, $2, 1, now()) returning seq", id, task).Scan(&seq)
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	take := func(seq int64) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), "delete from ready where seq = $1", seq); err != nil {
			t.Fatal(err)
		}
	}
	// An old snapshot that writes nothing must not hold the looks up.
	old, err := db.Pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := old.Exec(t.Context(), "select from ready"); err != nil {
		t.Fatal(err)
	}

	take(row(db.Pool))
	late, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback(context.WithoutCancel(t.Context())) }()
	hidden := row(late)
	for range 6 {
		take(row(db.Pool))
		k.look()
		if k.lane.low >= hidden {
			t.Fatalf("L2: looks begin behind %d, and %d is yet to be committed", k.lane.low, hidden)
		}
	}
	if err := late.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		if first, _ := k.look(); first != hidden {
			t.Fatalf("L2: found %d, want %d, which was committed late", first, hidden)
		}
	}
	take(hidden)
	last := row(db.Pool)
	take(last)
	for range 4 {
		k.look()
	}
	if k.lane.low < hidden || k.lane.low > last {
		t.Fatalf("with nobody in progress, looks begin behind %d, want %d to %d", k.lane.low, hidden, last)
	}

	// What came back stands where it stood, and its neighbour is gone.
	_, err = db.Pool.Exec(t.Context(), `insert into ready (lane_id, seq, task_id, step_no, runnable_at, last_token)
		values ($1, $2, 1, 1, now(), gen_random_uuid())`, id, hidden)
	if err != nil {
		t.Fatal(err)
	}
	if first, returned := k.look(); first != 0 || returned != hidden {
		t.Fatalf("L2: found %d and %d of what came back, want %d", first, returned, hidden)
	}
}

// A database that was put back to an earlier state hands out seqs again that looks had passed.
func TestASequenceThatWentBackIsNotTrusted(t *testing.T) {
	var z horizon
	for drawn, next := int64(100), int64(10); drawn < 400; drawn, next = drawn+100, next+1 {
		if !z.observe(store.Horizon{Drawn: drawn, Oldest: next, Next: next}) {
			t.Fatal("it has not gone back")
		}
	}
	if z.passed != 200 {
		t.Fatalf("passed %d, want what was drawn before the last look", z.passed)
	}
	if z.observe(store.Horizon{Drawn: 250, Oldest: 20, Next: 20}) || z != (horizon{}) {
		t.Errorf("it still knows %+v", z)
	}
}
