package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/bench/floor/meter"
)

// stage is a database of the run's Postgres with servers on it, made for one scenario and dropped after it: what one leaves
// behind (dead rows, a backlog, an old snapshot) is no part of the next one's figures.
type stage struct {
	name    string
	url     string
	conn    *pgx.Conn // for one at a time
	meter   *meter.Meter
	servers []*process
	books
}

// books are the account of a stage: what the servers have confirmed, and what was put into the tables beside them.
type books struct {
	tasks, steps atomic.Int64 // stored
	ended        atomic.Int64 // successes recorded, a step each
	failed       atomic.Int64 // failures recorded: the step ran, or runs, once more for each
	crews        atomic.Int64 // opened so far
	left         left
}

// left is work that is meant to be there still when the scenario is over: a backlog that nobody took.
type left struct {
	tasks, steps int64 // not ended
	live         int64 // of the steps, those that wait in a queue's table; the others are blocked
}

const stageEstimate = 2500 * time.Millisecond

// openStage makes a stage with so many servers on it, and gives the world as seen from there.
func (w *world) openStage(ctx context.Context, servers int) (_ *world, err error) {
	st := &stage{name: "tasker_bench_" + strings.ToLower(rand.Text()[:8])}
	on := *w
	on.stage = st
	defer func() {
		if err != nil {
			err = errors.Join(err, on.closeStage(context.WithoutCancel(ctx)))
		}
	}()
	if st.url, err = w.databases.create(ctx, st.name); err != nil {
		return nil, err
	}
	if err := on.connect(ctx); err != nil {
		return nil, err
	}
	for range servers {
		if _, err := on.addServer(ctx); err != nil {
			return nil, err
		}
	}
	return &on, nil
}

// connect opens the stage's own connection, anew if there was one.
func (w *world) connect(ctx context.Context) (err error) {
	if w.conn != nil {
		_ = w.conn.Close(ctx)
	}
	if w.conn, err = pgx.Connect(ctx, w.url); err != nil {
		return fmt.Errorf("connecting to the new database: %w", err)
	}
	w.meter, err = meter.New(ctx, w.conn)
	return err
}

// addServer starts one more server on the stage.
func (w *world) addServer(ctx context.Context) (*process, error) {
	args := append([]string{"serve", "--listen", "127.0.0.1:0", "--auto-migrate", "--reflection=false"}, w.ServeArgs...)
	server, err := w.spawn(ctx, []string{"TASKER_DATABASE_URL=" + w.url}, args...)
	if err != nil {
		return nil, fmt.Errorf("starting the server: %w", err)
	}
	w.servers = append(w.servers, server)
	return server, nil
}

// server is the stage's first one.
func (st *stage) server() *process { return st.servers[0] }

// last is the server that was started last. It knows of all the others.
func (st *stage) last() *process { return st.servers[len(st.servers)-1] }

// stopServers ends the stage's servers. Each lets its clients go for a second, so they do it together.
func (st *stage) stopServers() error {
	errs := make([]error, len(st.servers))
	var stopping sync.WaitGroup
	for i, server := range st.servers {
		stopping.Go(func() { errs[i] = server.stop() })
	}
	stopping.Wait()
	st.servers = nil
	return errors.Join(errs...)
}

// closeStage ends the servers and drops the database.
func (w *world) closeStage(ctx context.Context) error {
	err := w.stopServers()
	if w.conn != nil {
		_ = w.conn.Close(ctx)
	}
	return errors.Join(err, w.databases.drop(ctx, w.name))
}
