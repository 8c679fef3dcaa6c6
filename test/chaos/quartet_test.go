//go:build linux

package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
)

// quartet is four servers, each with two workers in its own process, and the engine that clients and operators use.
type quartet struct {
	*testing.T
	db       *pgtest.DB
	e        *engine.Engine // grants nothing
	dir      string
	handlers []string
	servers  [4]*slot
	seed     uint64
	kills    atomic.Int64
	freezes  atomic.Int64
}

const (
	// showPatience is how long a run goes on at most until everything has happened that it is to show.
	showPatience = 4 * time.Minute
	// endPatience is how long tasks may take to end once everything is healed: those behind circuits go out in waves.
	endPatience = 3 * time.Minute
	// catchPatience is how long a kill waits at most for somebody who has something in hand.
	catchPatience = 5 * time.Second
)

// newQuartet starts the servers. Their workers take what handlers name.
func newQuartet(t *testing.T, handlers []string) *quartet {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	q := &quartet{T: t, db: pgtest.New(t), dir: t.TempDir(), handlers: handlers, seed: seed}
	t.Cleanup(func() {
		for _, s := range q.servers {
			if s != nil && s.process.Load() != nil {
				s.process.Load().kill()
			}
		}
	})
	for i := range q.servers {
		q.servers[i] = &slot{number: i + 1}
	}
	q.must(q.atOnce(q.startServer))
	e, closeStore, err := circuitEngine(t.Context(), q.db.ConnString(), slog.New(slog.DiscardHandler))
	q.must(err)
	t.Cleanup(closeStore)
	q.e = e
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the engine of clients ended with %v", err)
		}
	})
	return q
}

func (q *quartet) must(err error) {
	q.Helper()
	if err != nil {
		q.Fatal(err)
	}
}

// draw gives a source of its own to each who acts at random.
func (q *quartet) draw(who uint64) *rand.Rand { return rand.New(rand.NewPCG(q.seed, 1<<34+who)) }

func (q *quartet) startServer(s *slot) error {
	s.life++
	name := fmt.Sprintf("server-%d.%d", s.number, s.life)
	settings := circuitServerSettings{
		DatabaseURL: q.db.ConnString(), Journal: filepath.Join(q.dir, name+".journal"), World: q.dir, Handlers: q.handlers, Sick: sickWorker,
		Workers: []string{workerOf(s, 1), workerOf(s, 2)},
	}
	body, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	p, _, err := serve(q.dir, name, startPatience, []string{circuitServerEnv + "=" + string(body), "GORACE=halt_on_error=0"}, os.Args[0])
	if err != nil {
		return err
	}
	s.process.Store(p)
	return nil
}

// workerOf is the id of a server's n-th worker, which it keeps in all lives of the process.
func workerOf(s *slot, n int) string { return fmt.Sprintf("worker-%d-%d", s.number, n) }

// inHand are the workers that hold a confirmed lease, which outlives its server and is then lost. $1: only a probe counts.
const inHand = `select distinct worker_session.worker_id from lease join worker_session using (session_id)
	where lease.confirmed_at is not null and lease.until > clock_timestamp() and (lease.probe or not $1)`

// holders are the servers with something in hand, in a random order.
func (q *quartet) holders(ctx context.Context, draw *rand.Rand, probe bool) ([]*slot, error) {
	rows, err := q.db.Pool.Query(ctx, inHand, probe)
	if err != nil {
		return nil, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	var found []*slot
	for _, s := range q.servers {
		for _, id := range ids {
			if id == workerOf(s, 1) || id == workerOf(s, 2) {
				found = append(found, s)
				break
			}
		}
	}
	draw.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	return found, nil
}

// catch freezes a server that has something in hand: a probe, if anybody has one soon and probe asks for it. Who was seen with
// something may have let go of it before being frozen, so it is looked at again. Gives nil where nobody has anything for
// long, or at the end of ctx.
func (q *quartet) catch(ctx context.Context, draw *rand.Rand, probe bool) (*slot, error) {
	for began := time.Now(); sleep(ctx, 10*time.Millisecond) && time.Since(began) < catchPatience; {
		probe = probe && time.Since(began) < catchPatience/2
		found, err := q.holders(ctx, draw, probe)
		for _, s := range found {
			p := s.process.Load()
			p.signal(syscall.SIGSTOP)
			still, err := q.holders(ctx, draw, probe)
			for _, other := range still {
				if other == s {
					return s, nil
				}
			}
			p.signal(syscall.SIGCONT)
			if err != nil && ctx.Err() == nil {
				return nil, err
			}
		}
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
	}
	return nil, nil
}

// kill is kill -9 of a server with its workers, while they have something in hand, or a pause for longer than leases last.
func (q *quartet) kill(ctx context.Context) error {
	draw := q.draw(2)
	for n := 0; sleep(ctx, time.Duration(300+draw.IntN(1200))*time.Millisecond); n++ {
		if n%4 == 3 {
			p := q.servers[draw.IntN(len(q.servers))].process.Load()
			p.signal(syscall.SIGSTOP)
			sleep(ctx, time.Duration(500+draw.IntN(3000))*time.Millisecond)
			p.signal(syscall.SIGCONT)
			q.freezes.Add(1)
			continue
		}
		s, err := q.catch(ctx, draw, n%2 == 0)
		if err != nil {
			return fmt.Errorf("looking for a server to kill: %w", err)
		}
		if s == nil {
			continue
		}
		s.process.Load().kill()
		q.kills.Add(1)
		sleep(ctx, time.Duration(draw.IntN(1000))*time.Millisecond)
		if err := q.startServer(s); err != nil {
			return err
		}
	}
	return nil
}

// diedAlone fails the test when a server has ended that nobody killed.
func (q *quartet) diedAlone() {
	q.Helper()
	for _, s := range q.servers {
		q.must(s.process.Load().diedAlone())
	}
}

func (q *quartet) stop() {
	q.Helper()
	if err := q.atOnce(func(s *slot) error { return s.process.Load().stop(stopServerPatience) }); err != nil {
		q.Error(err)
	}
}

// atOnce does something to all servers at once.
func (q *quartet) atOnce(do func(*slot) error) error {
	var (
		all  sync.WaitGroup
		errs [len(q.servers)]error
	)
	for i, s := range q.servers {
		all.Go(func() { errs[i] = do(s) })
	}
	all.Wait()
	return errors.Join(errs[:]...)
}

// openTasks names some tasks that have not ended.
func (q *quartet) openTasks(most int) []string {
	q.Helper()
	rows, err := q.db.Pool.Query(q.Context(), `select format('task %s (%s)', task_id, name) from task
		where not exists (select from task_end where task_end.task_id = task.task_id) order by task_id limit $1`, most)
	q.must(err)
	open, err := pgx.CollectRows(rows, pgx.RowTo[string])
	q.must(err)
	return open
}

// awaitEnd waits until every task has ended: L1.
func (q *quartet) awaitEnd(circuits ...string) {
	q.Helper()
	var open []string
	for deadline := time.Now().Add(endPatience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if open = q.openTasks(5); len(open) == 0 {
			return
		}
		q.diedAlone()
	}
	for _, name := range circuits {
		if x, err := q.e.GetCircuit(q.Context(), "", name); err == nil {
			q.Logf("circuit %s is %s since %s, wave %d, %d run, %d wait", name, x.State, x.Since, x.Wave, x.InFlight, x.Waiting)
		}
	}
	q.Fatalf("L1: not ended %s after everything healed:\n%s", endPatience, strings.Join(open, "\n"))
}

// judge holds what everyone saw against what the database says, when all is over.
func (q *quartet) judge() *history.Report {
	q.Helper()
	for _, line := range outcry(q.T, q.dir) {
		q.Error(line)
	}
	checkDeadlocks(q.T, q.db)
	journals, err := filepath.Glob(filepath.Join(q.dir, "*.journal"))
	q.must(err)
	began := time.Now()
	report := q.check(history.Options{Journals: journals, Sample: -1})
	q.Logf("checked in %s: %d steps %v, %d dispatches, %d probes, %d attempts, %d lost leases, %d undelivered",
		time.Since(began).Round(time.Millisecond), report.Steps, report.Ended, report.Dispatches, report.Probes, report.Attempts, report.LostLeases,
		report.Undelivered)
	return report
}

// check has the history checked, be it in the middle of everything.
func (q *quartet) check(o history.Options) *history.Report {
	q.Helper()
	report, err := history.Check(q.Context(), q.db.Pool, o)
	q.must(err)
	for _, v := range report.Violations[:min(len(report.Violations), 50)] {
		q.Error(v)
	}
	if !report.Holds() {
		q.Errorf("%d violations", report.Total)
	}
	return &report
}
