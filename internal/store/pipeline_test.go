package store_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/store"
)

// A transaction of one batch says neither BEGIN nor COMMIT: all of it stands when it returns, or nothing does.
func TestABatchIsATransaction(t *testing.T) {
	w := newWorld(t)
	count := func() (n int) {
		t.Helper()
		if err := w.s.Cold.QueryRow(t.Context(), "select count(*) from namespace where name like 'batch-%'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		relaxed bool
		last    string
		want    int
	}{
		{false, "select 1 / 0", 0},
		{true, "select 1 / 0", 0},
		{false, "select 1", 2},
		{true, "select 1", 4},
	} {
		b := &pgx.Batch{}
		b.Queue("insert into namespace (name) values ('batch-' || gen_random_uuid())")
		b.Queue("insert into namespace (name) values ('batch-' || gen_random_uuid())")
		b.Queue(c.last)
		err := w.s.Commit(t.Context(), b, c.relaxed)
		if failed := c.last == "select 1 / 0"; (err != nil) != failed || failed && !store.DataError(err) {
			t.Errorf("relaxed %v, last %s: %v", c.relaxed, c.last, err)
		}
		if n := count(); n != c.want {
			t.Errorf("relaxed %v, last %s: %d rows stand, want %d", c.relaxed, c.last, n, c.want)
		}
	}
}
