package engine_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
)

// A server that has moved many steps cleans the tables that they went through.
func TestABusyServerCleansTheLiveTables(t *testing.T) {
	db := pgtest.New(t)
	st, err := store.Open(t.Context(), db.Pool.Config(), 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	e := engine.New(st, engine.Config{VacuumAfter: 10, Side: func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, db.ConnString()) }})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	stream := open(t, e, 1, "a")
	for range 10 {
		submit(t, e, spec("a"))
		succeed(t, e, nextStep(t, stream), "{}")
	}
	within, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for e.Stats().Vacuums == 0 {
		if err := db.Pool.Ping(within); err != nil {
			t.Fatal("no round is counted: ", err)
		}
	}
	var vacuumed int
	if err := db.Pool.QueryRow(within, "select vacuum_count from pg_stat_user_tables where relname = 'lease'").Scan(&vacuumed); err != nil || vacuumed == 0 {
		t.Errorf("the lease table was vacuumed %d times: %v", vacuumed, err)
	}
}
