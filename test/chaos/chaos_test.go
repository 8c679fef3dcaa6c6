//go:build linux

package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
)

var (
	stepsFlag = flag.Int("chaos.steps", 1500, "how many steps to submit")
	seedFlag  = flag.Uint64("chaos.seed", 0, "what is drawn is a function of this number, as far as the machine lets it; 0 takes another each time")
	keepFlag  = flag.String("chaos.keep", "", "copy logs and journals to this new folder")
)

// clientCount is how many clients submit at once.
const clientCount = 4

// healPatience is how long tasks may take to end once nothing is broken any more.
const healPatience = 90 * time.Second

func TestMain(m *testing.M) {
	if settings := os.Getenv(workerEnv); settings != "" {
		os.Exit(runWorker(settings))
	}
	if settings := os.Getenv(circuitServerEnv); settings != "" {
		os.Exit(runCircuitServer(settings))
	}
	pgtest.Main(m)
}

func TestChaos(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	db := pgtest.New(t)
	launched := time.Now()
	f := startFleet(t, db.ConnString())
	t.Logf("%d servers and %d workers work after %s", serverCount, workerCount, time.Since(launched).Round(time.Millisecond))
	if *keepFlag != "" {
		t.Cleanup(func() {
			if err := os.CopyFS(*keepFlag, os.DirFS(f.dir)); err != nil {
				t.Error(err)
			}
			log, err := os.ReadFile(filepath.Join(pgtest.Server(t).DataDir(), "postgres.log"))
			if err := errors.Join(err, os.WriteFile(filepath.Join(*keepFlag, "postgres.log"), log, 0o600)); err != nil {
				t.Error(err)
			}
		})
	}
	m, err := newMonkey(f, db, pgtest.Server(t).DataDir(), seed)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{fleet: f, tasks: map[int64]*graph{}, cancelled: map[int64]bool{}, repaired: map[int64]bool{}}
	l.room.Store(int64(*stepsFlag))

	began := time.Now()
	wreak(t, db, l, m, seed)
	broken := time.Since(began)
	healed := time.Now()
	awaitEnd(t, db, l)
	t.Logf("%s of chaos; every task ended %s after it", broken.Round(time.Millisecond), time.Since(healed).Round(time.Millisecond))
	took := time.Since(began)
	stopping := time.Now()
	if err := f.stop(); err != nil {
		t.Error(err)
	}
	t.Logf("everybody stopped within %s", time.Since(stopping).Round(time.Millisecond))
	judge(t, db, l, m, took)
}

// wreak has clients submit, operators operate and the monkey rage until everything is submitted and repaired again.
func wreak(t *testing.T, db *pgtest.DB, l *load, m *monkey, seed uint64) {
	t.Helper()
	ctx, fail := context.WithCancelCause(t.Context())
	defer fail(nil)
	// The monkey and the operators go on while clients submit, the counting until all of them are done.
	submitting, submitted := context.WithCancel(ctx)
	defer submitted()
	counting, counted := context.WithCancel(ctx)
	defer counted()

	var clients, others, counter sync.WaitGroup
	check := func(err error) {
		if err != nil {
			fail(err)
		}
	}
	for number := range clientCount {
		clients.Go(func() { check(l.submitAll(ctx, number+1, seed)) })
	}
	others.Go(func() { check(l.operate(submitting, seed)) })
	others.Go(func() { check(m.rage(submitting)) })
	counter.Go(func() {
		for sleep(counting, 100*time.Millisecond) {
			l.count(counting, db)
			check(l.fleet.diedAlone())
		}
	})
	clients.Wait()
	submitted()
	others.Wait()
	counted()
	counter.Wait()
	if ctx.Err() != nil {
		t.Fatal(context.Cause(ctx))
	}
}

// count takes the number of ended tasks from the database, where there is one just now.
func (l *load) count(ctx context.Context, db *pgtest.DB) {
	var ended int64
	if err := db.Pool.QueryRow(ctx, "select count(*) from task_end").Scan(&ended); err == nil {
		l.ended.Store(ended)
	}
}

// awaitEnd waits until every task has ended: L1.
func awaitEnd(t *testing.T, db *pgtest.DB, l *load) {
	t.Helper()
	var open []string
	for deadline := time.Now().Add(healPatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		rows, err := db.Pool.Query(t.Context(), `
			select format('task %s, %s steps, created %s ago', task_id, step_count, clock_timestamp() - created_at)
			from task where not exists (select from task_end where task_end.task_id = task.task_id) order by task_id limit 5`)
		if err != nil {
			continue // A connection from before the last crash.
		}
		if open, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil && len(open) == 0 {
			return
		}
		if err := l.fleet.diedAlone(); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("L1: not ended %s after everything healed:\n%s", healPatience, strings.Join(open, "\n"))
}

// judge holds what everyone saw against what the database says.
func judge(t *testing.T, db *pgtest.DB, l *load, m *monkey, took time.Duration) {
	t.Helper()
	for _, line := range outcry(t, l.fleet.dir) {
		t.Error(line)
	}
	checkDeadlocks(t, db)
	checkFates(t, db, l)
	began := time.Now()
	report, err := history.Check(t.Context(), db.Pool, history.Options{
		Journals: l.fleet.journals(t), Sample: -1, Crashed: m.done["kills_postgres"] > 0,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range report.Violations {
		t.Error(v)
	}
	if !report.Holds() {
		t.Errorf("%d violations", report.Total)
	}
	if report.Tasks != len(l.tasks) {
		t.Errorf("%d tasks are stored, %d were acknowledged", report.Tasks, len(l.tasks))
	}
	t.Logf("checked in %s: %d tasks %v, %d steps %v, %d dispatches, %d attempts, %d failures, %d lost leases, %d undelivered, %d released",
		time.Since(began).Round(time.Millisecond), report.Tasks, report.States, report.Steps, report.Ended, report.Dispatches, report.Attempts,
		report.Failures, report.LostLeases, report.Undelivered, report.Released)
	t.Logf("journals: %d frames (%d of forgotten grants), %d reports, %d acknowledged (%d repeated), %d submits acknowledged; %d late reports accepted, %d kept as evidence; %d calls made again",
		report.Frames, report.Forgotten, report.Reports, report.AckedReports, report.RepeatedReports, report.AckedSubmits, report.LateAccepted, report.LateReports, l.tries.Load())
	t.Logf("%.0f steps/s", float64(report.Steps)/took.Seconds())
	t.Logf("reached chaos_steps=%d", report.Steps)
	for _, a := range acts {
		if m.done[a.name] == 0 {
			t.Errorf("the monkey has done no %s", a.name)
		}
		t.Logf("reached chaos_%s=%d", a.name, m.done[a.name])
	}
	if lost := report.LostLeases; lost == 0 && report.Steps >= 10_000 {
		t.Error("no lease was lost: the run shows nothing about that")
	}
	for what, count := range map[string]int{
		"late reports": report.LateReports, "tasks cancelled": report.States["cancelled"],
		"tasks in error": report.States["error"], "tasks complete": report.States["complete"],
	} {
		if count == 0 {
			t.Errorf("there were no %s: the run shows nothing about them", what)
		}
	}
}

// checkDeadlocks asks the database, and its log too: a crash resets what it has counted.
func checkDeadlocks(t *testing.T, db *pgtest.DB) {
	t.Helper()
	var deadlocks int
	if err := db.Pool.QueryRow(t.Context(), "select deadlocks from pg_stat_database where datname = current_database()").Scan(&deadlocks); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(pgtest.Server(t).DataDir(), "postgres.log"))
	if err != nil {
		t.Fatal(err)
	}
	if logged := strings.Count(string(log), "deadlock detected"); deadlocks+logged > 0 {
		t.Errorf("%d deadlocks counted, %d logged", deadlocks, logged)
	}
}

// checkFates compares how steps ended with how their plans foretell it. Where an operator has been, or a step lost too many
// leases, nothing is foretold.
func checkFates(t *testing.T, db *pgtest.DB, l *load) {
	t.Helper()
	rows, err := db.Pool.Query(t.Context(), `
		select step.task_id, task_end.state::text,
		  coalesce(array_agg(step.name) filter (where step_end.state = 'complete'), '{}'),
		  coalesce(bool_or(parked.reason = 'lease_expired'), false)
		from step
		join task_end using (task_id)
		left join step_end using (task_id, step_no)
		left join parked using (task_id, step_no)
		group by step.task_id, task_end.state`)
	if err != nil {
		t.Fatal(err)
	}
	var (
		id       int64
		state    string
		complete []string
		givenUp  bool
		faults   []string
	)
	_, err = pgx.ForEachRow(rows, []any{&id, &state, &complete, &givenUp}, func() error {
		g := l.tasks[id]
		switch {
		case g == nil:
			faults = append(faults, fmt.Sprintf("task %d was never acknowledged", id))
		case l.cancelled[id]:
			if state != "cancelled" {
				faults = append(faults, fmt.Sprintf("task %d: its cancel was acknowledged, it is %s", id, state))
			}
		case !l.repaired[id] && !givenUp:
			if fault := g.fault(state, complete); fault != "" {
				faults = append(faults, fmt.Sprintf("task %d (%s): %s", id, g.key, fault))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults[:min(len(faults), 20)] {
		t.Error(fault)
	}
}
