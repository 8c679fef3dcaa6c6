//go:build linux

package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/task"
)

var circuitsFor = flag.Duration("chaos.circuits", 15*time.Second, "how long the dependency flaps and servers are killed")

// circuitRun is four servers with two workers each, a dependency that they call, and the circuits in between.
type circuitRun struct {
	*testing.T
	db      *pgtest.DB
	e       *engine.Engine // of clients and operators: it grants nothing
	dir     string
	down    string
	servers [4]*slot
	seed    uint64
	kills   int
	flaps   int
	holds   int
	tasks   []task.ID
	good    map[string]int // steps by circuit that must be complete
	bad     map[string]int // steps by circuit that must have failed for good
}

// sickWorker fails whatever it does behind circuit sickened.
const sickWorker = "worker-2-1"

// TestChaosOfCircuits has a dependency flap, a worker be sick and half the steps be poison, while servers are killed with the
// workers that they serve. At no instant may a step go behind an open circuit or too many probes run; one sick worker may
// not open a circuit for everyone, nor may steps that take the blame; and in the end every task must end.
func TestChaosOfCircuits(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	r := &circuitRun{T: t, db: pgtest.New(t), dir: t.TempDir(), seed: seed, good: map[string]int{}, bad: map[string]int{}}
	r.down = filepath.Join(r.dir, "down")
	r.start()
	r.govern()
	began := time.Now()
	r.submit(4)
	var others sync.WaitGroup
	ctx, calm := context.WithTimeout(t.Context(), *circuitsFor)
	defer calm()
	for _, do := range []func(context.Context) error{r.flap, r.kill, r.operate} {
		others.Go(func() {
			if err := do(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for sleep(ctx, 500*time.Millisecond) {
		r.submit(1)
		for _, s := range r.servers {
			if err := s.process.Load().diedAlone(); err != nil {
				t.Fatal(err)
			}
		}
	}
	others.Wait()
	healed := time.Now()
	r.awaitEnd()
	t.Logf("%s of chaos: the dependency went down %d times, %d servers were killed, %d holds; every task ended %s after it",
		healed.Sub(began).Round(time.Millisecond), r.flaps, r.kills, r.holds, time.Since(healed).Round(time.Millisecond))
	for _, s := range r.servers {
		if err := s.process.Load().stop(stopServerPatience); err != nil {
			t.Error(err)
		}
	}
	r.judge()
}

func (r *circuitRun) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

// start starts all servers, and the engine that the test itself uses.
func (r *circuitRun) start() {
	r.Cleanup(func() {
		for _, s := range r.servers {
			if s != nil && s.process.Load() != nil {
				s.process.Load().kill()
			}
		}
	})
	for i := range r.servers {
		r.servers[i] = &slot{number: i + 1}
		r.must(r.startServer(r.servers[i]))
	}
	e, closeStore, err := circuitEngine(r.Context(), r.db.ConnString(), slog.New(slog.DiscardHandler))
	r.must(err)
	r.Cleanup(closeStore)
	r.e = e
	ctx, stop := context.WithCancel(context.WithoutCancel(r.Context()))
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	r.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			r.Errorf("the engine of clients ended with %v", err)
		}
	})
}

func (r *circuitRun) startServer(s *slot) error {
	s.life++
	name := fmt.Sprintf("server-%d.%d", s.number, s.life)
	settings := circuitServerSettings{
		DatabaseURL: r.db.ConnString(), Journal: filepath.Join(r.dir, name+".journal"), Down: r.down, Sick: sickWorker,
		Workers: []string{fmt.Sprintf("worker-%d-1", s.number), fmt.Sprintf("worker-%d-2", s.number)},
	}
	body, err := json.Marshal(settings)
	if err != nil {
		return err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	p, err := launch(r.dir, name, in, []string{circuitServerEnv + "=" + string(body), "GORACE=halt_on_error=0"}, os.Args[0])
	_ = in.Close() // The server has its own.
	if err != nil {
		return err
	}
	s.process.Store(p)
	if err := out.SetReadDeadline(time.Now().Add(startPatience)); err != nil {
		return err
	}
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		p.kill()
		return fmt.Errorf("%s does not serve: %w%s", name, err, p.lastWords(15))
	}
	return nil
}

// govern sets the circuits' policies.
func (r *circuitRun) govern() {
	few, quick, twice := ptr(6), ptr(time.Second), ptr(2*time.Second)
	for name, p := range map[string]task.CircuitPolicy{
		flapping: {FailureRateThreshold: ptr(0.1), MaxProbes: ptr(2), CloseAfterSuccesses: ptr(2), RecoveryWave: ptr(16)},
		// An eighth of the calls fails, all of them in one pair of hands.
		sickened: {MinFailingWorkers: ptr(2), FailureRateThreshold: ptr(0.05)},
		poisoned: {FailureRateThreshold: ptr(0.1)},
		venomous: {MaxProbes: ptr(3), CloseAfterSuccesses: ptr(2), RecoveryWave: ptr(4)},
	} {
		p.MinObservations, p.OpenDuration, p.MaxOpenDuration, p.Window = few, quick, twice, ptr(5*time.Second)
		_, err := r.e.SetCircuitPolicy(r.Context(), "", name, p, []string{
			"min_observations", "open_duration", "max_open_duration", "window_duration", "max_probes", "close_after_successes", "recovery_wave",
			"min_failing_workers", "failure_rate_threshold",
		}, "test", "chaos")
		r.must(err)
	}
}

func ptr[T any](v T) *T { return &v }

// submit submits tasks of each kind.
func (r *circuitRun) submit(n int) {
	for range n {
		var subs []*task.Submission
		for _, handler := range circuitHandlers {
			sub := &task.Submission{Name: handler, Context: "{}"}
			steps := map[string]int{flapping: 60, sickened: 30, poisoned: 12, venomous: 8}[handler]
			for no := range steps {
				s := task.StepSpec{
					Name: fmt.Sprint("s", no), Handler: handler, Circuit: handler, Priority: 1, HandlerConfig: "{}",
					Policy: task.Policy{
						RetryLimit: 100, Retryable: true, MaxLostLeases: 100, Initial: ptr(20 * time.Millisecond), Max: ptr(100 * time.Millisecond),
						Lease: ptr(2 * time.Second),
					},
				}
				if isPoison := (handler == poisoned || handler == venomous) && no%2 == 1; isPoison && (handler == poisoned || len(r.tasks) < 16) {
					s.HandlerConfig, s.RetryLimit = poison, 2
					r.bad[handler]++
				} else {
					r.good[handler]++
				}
				sub.Steps = append(sub.Steps, s)
			}
			subs = append(subs, sub)
		}
		answers, err := r.e.Submit(r.Context(), subs, true)
		r.must(err)
		for _, a := range answers {
			r.tasks = append(r.tasks, a.TaskID)
		}
	}
}

// flap takes the dependency down and up again, until ctx ends. It ends up.
func (r *circuitRun) flap(ctx context.Context) error {
	draw := rand.New(rand.NewPCG(r.seed, 1<<34+1))
	for sleep(ctx, time.Duration(300+draw.IntN(2500))*time.Millisecond) {
		if err := os.WriteFile(r.down, nil, 0o600); err != nil {
			return err
		}
		r.flaps++
		sleep(ctx, time.Duration(200+draw.IntN(2000))*time.Millisecond)
		if err := os.Remove(r.down); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// kill is kill -9 of a server with its workers, or a pause for longer than its leases last.
func (r *circuitRun) kill(ctx context.Context) error {
	draw := rand.New(rand.NewPCG(r.seed, 1<<34+2))
	for sleep(ctx, time.Duration(500+draw.IntN(1500))*time.Millisecond) {
		s := r.servers[draw.IntN(len(r.servers))]
		p := s.process.Load()
		if draw.IntN(4) == 0 {
			p.signal(syscall.SIGSTOP)
			sleep(ctx, time.Duration(500+draw.IntN(3000))*time.Millisecond)
			p.signal(syscall.SIGCONT)
			continue
		}
		p.kill()
		r.kills++
		sleep(ctx, time.Duration(draw.IntN(1000))*time.Millisecond)
		if err := r.startServer(s); err != nil {
			return err
		}
	}
	return nil
}

// operate holds the flapping circuit for a while, now or a little later, and releases it before or after.
func (r *circuitRun) operate(ctx context.Context) error {
	draw := rand.New(rand.NewPCG(r.seed, 1<<34+3))
	always := context.WithoutCancel(ctx)
	for sleep(ctx, time.Duration(4000+draw.IntN(3000))*time.Millisecond) {
		now := time.Now()
		h := task.CircuitHold{Reason: "chaos", Actor: "test", Until: ptr(now.Add(time.Duration(1500+draw.IntN(1000)) * time.Millisecond))}
		if draw.IntN(2) == 0 {
			h.From = now.Add(500 * time.Millisecond)
		}
		if _, err := r.e.HoldCircuit(always, "", flapping, h); err != nil {
			return fmt.Errorf("holding a circuit: %w", err)
		}
		r.holds++
		sleep(ctx, time.Duration(draw.IntN(2500))*time.Millisecond)
		if _, err := r.e.ReleaseCircuit(always, "", flapping, "test", "chaos"); err != nil {
			return fmt.Errorf("releasing a circuit: %w", err)
		}
	}
	return nil
}

// awaitEnd waits until every task has ended: L1.
func (r *circuitRun) awaitEnd() {
	r.Helper()
	var open []string
	for deadline := time.Now().Add(healPatience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		rows, err := r.db.Pool.Query(r.Context(), `select format('task %s (%s)', task_id, name) from task
			where not exists (select from task_end where task_end.task_id = task.task_id) order by task_id limit 5`)
		r.must(err)
		if open, err = pgx.CollectRows(rows, pgx.RowTo[string]); err == nil && len(open) == 0 {
			return
		}
		r.must(err)
	}
	for _, name := range circuitHandlers {
		if c, err := r.e.GetCircuit(r.Context(), "", name); err == nil {
			r.Logf("circuit %s is %s since %s, wave %d, %d run, %d wait", name, c.State, c.Since, c.Wave, c.InFlight, c.Waiting)
		}
	}
	r.Fatalf("L1: not ended %s after everything healed:\n%s", healPatience, strings.Join(open, "\n"))
}

// judge holds what everyone saw against what the database says.
func (r *circuitRun) judge() {
	r.Helper()
	for _, line := range outcry(r.T, r.dir) {
		r.Error(line)
	}
	checkDeadlocks(r.T, r.db)
	journals, err := filepath.Glob(filepath.Join(r.dir, "*.journal"))
	r.must(err)
	report, err := history.Check(r.Context(), r.db.Pool, history.Options{Journals: journals, Sample: -1})
	r.must(err)
	for _, v := range report.Violations[:min(len(report.Violations), 50)] {
		r.Error(v)
	}
	if !report.Holds() {
		r.Errorf("%d violations", report.Total)
	}
	if report.LostLeases == 0 || report.Probes == 0 {
		r.Errorf("%d lost leases, %d probes: the run shows nothing about them", report.LostLeases, report.Probes)
	}
	r.Logf("%d steps %v, %d dispatches, %d probes, %d attempts, %d lost leases, %d undelivered", report.Steps, report.Ended, report.Dispatches,
		report.Probes, report.Attempts, report.LostLeases, report.Undelivered)
	r.Logf("reached circuit_probes=%d", report.Probes)

	events := map[string]map[task.CircuitCause]int{}
	for _, name := range circuitHandlers {
		events[name] = map[task.CircuitCause]int{}
		found, err := r.e.ListCircuitEvents(r.Context(), task.CircuitEventQuery{Circuit: name, Limit: 100_000})
		r.must(err)
		for _, e := range found {
			events[name][e.Cause]++
			if e.Cause == task.CauseWorkersBarred && !slices.Equal(e.Workers, []string{sickWorker}) {
				r.Errorf("of circuit %s workers %v are barred, the sick one is %s", name, e.Workers, sickWorker)
			}
			if (name == sickened || name == poisoned) && e.To != task.CircuitClosed {
				r.Errorf("circuit %s came to be %s by %s: the dependency was never down", name, e.To, e.Cause)
			}
		}
		r.Logf("circuit %s: %v", name, events[name])
	}
	if events[flapping][task.CauseFailureRate]+events[flapping][task.CauseReach] == 0 {
		r.Errorf("circuit %s never opened by itself: the run shows nothing about it", flapping)
	}
	for _, want := range []struct {
		name  string
		cause task.CircuitCause
	}{
		{flapping, task.CauseOpenElapsed},
		{flapping, task.CauseProbesPassed},
		{flapping, task.CauseHold},
		{sickened, task.CauseWorkersBarred},
		{venomous, task.CauseFailureRate},
	} {
		if events[want.name][want.cause] == 0 {
			r.Errorf("circuit %s never came to %s: the run shows nothing about it", want.name, want.cause)
		}
	}
	r.checkBar()
	r.checkEnds()
}

// checkBar demands that the worker that was barred got no steps of its circuit for as long.
func (r *circuitRun) checkBar() {
	r.Helper()
	const passedBy = `select count(*) from history
		cross join lateral unnest(task_ids, step_nos, session_ids) as granted (task_id, step_no, session_id)
		join worker_session using (session_id)
		join step on step.task_id = granted.task_id and step.step_no = granted.step_no
		join lane on lane.lane_id = step.lane_id
		join circuit_event e on e.circuit_id = lane.circuit_id and e.cause = 'workers_barred' and worker_id = any (e.worker_ids)
		where kind = 'dispatched' and history.recorded_at > e.recorded_at and history.recorded_at < e.recorded_at + (e.policy).open_duration`
	var n int
	r.must(r.db.Pool.QueryRow(r.Context(), passedBy).Scan(&n))
	if n > 0 {
		r.Errorf("S11: workers that were barred from a circuit got %d steps of it", n)
	}
}

// checkEnds compares how steps ended with what was to become of them.
func (r *circuitRun) checkEnds() {
	r.Helper()
	rows, err := r.db.Pool.Query(r.Context(), `select lane.circuit, count(step_end.step_no)::int, count(parked.step_no)::int from step
		join lane using (lane_id)
		left join step_end on step_end.task_id = step.task_id and step_end.step_no = step.step_no and step_end.state = 'complete'
		left join parked on parked.task_id = step.task_id and parked.step_no = step.step_no
		group by lane.circuit`)
	r.must(err)
	var (
		name      string
		good, bad int
	)
	_, err = pgx.ForEachRow(rows, []any{&name, &good, &bad}, func() error {
		if good != r.good[name] || bad != r.bad[name] {
			r.Errorf("behind circuit %s %d steps are complete and %d failed for good, want %d and %d", name, good, bad, r.good[name], r.bad[name])
		}
		return nil
	})
	r.must(err)
}
