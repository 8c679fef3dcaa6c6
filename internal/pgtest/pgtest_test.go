package pgtest_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/migrations"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestEachDatabaseIsMigratedAndAlone(t *testing.T) {
	t.Parallel()
	for range 4 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			state, err := migrations.Status(t.Context(), db.Conn(t))
			if err != nil || !state.Ready() {
				t.Fatalf("state %+v, error %v", state, err)
			}
			// Fails if another test's database is the same one.
			if _, err := db.Pool.Exec(t.Context(), "create table mine ()"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestNoGoroutineOutlivesTheTest(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t, pgtest.IgnoreCluster()) })
	db := pgtest.New(t)
	if err := db.Pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkNew(b *testing.B) {
	pgtest.Server(b)
	for b.Loop() {
		b.StopTimer()
		b.StartTimer()
		pgtest.New(b)
	}
}
