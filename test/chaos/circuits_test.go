//go:build linux

package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/task"
)

var (
	circuitsFor = flag.Duration("chaos.circuits", 15*time.Second, "how long the dependency flaps and servers are killed, at least")
	probesFlag  = flag.Int("chaos.probes", 1, "how many probes of circuits there must be: until then it goes on")
)

// circuitRun is a quartet, a dependency that it calls, and the circuits in between.
type circuitRun struct {
	*quartet
	down         string
	flaps, holds int
	tasks        int
	good         map[string]int // steps by circuit that must be complete
	bad          map[string]int // steps by circuit that must have failed for good
}

// sickWorker fails whatever it does behind circuit sickened.
const sickWorker = "worker-2-1"

// TestChaosOfCircuits has a dependency flap, a worker be sick and half the steps be poison, while servers are killed with the
// workers that they serve. At no instant may a step go behind an open circuit or too many probes run; one sick worker may
// not open a circuit for everyone, nor may steps that take the blame; and in the end every task must end.
//
// It goes on for as long as it is told to, and until everything has happened that it is to show.
func TestChaosOfCircuits(t *testing.T) {
	r := &circuitRun{quartet: newQuartet(t, circuitHandlers), good: map[string]int{}, bad: map[string]int{}}
	r.down = filepath.Join(r.dir, "down")
	r.govern()
	began := time.Now()
	r.submit(4)
	var others sync.WaitGroup
	defer others.Wait()
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	for _, do := range []func(context.Context) error{r.flap, r.kill, r.operate} {
		others.Go(func() {
			if err := do(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	r.rage(ctx)
	calm()
	others.Wait()
	healed := time.Now()
	r.awaitEnd(circuitHandlers...)
	t.Logf("%s of chaos: the dependency went down %d times, %d servers were killed, %d frozen, %d holds; every task ended %s after it",
		healed.Sub(began).Round(time.Millisecond), r.flaps, r.kills.Load(), r.freezes.Load(), r.holds, time.Since(healed).Round(time.Millisecond))
	r.stop()
	report := r.judge()
	for _, missing := range r.missing(report) {
		t.Errorf("%s: the run shows nothing about it", missing)
	}
	t.Logf("reached circuit_probes=%d", report.Probes)
	r.checkRecord()
	r.checkBar()
	r.checkEnds()
}

// rage submits for as long as the run is to last, and then until nothing is missing that it is to show.
func (r *circuitRun) rage(ctx context.Context) {
	r.Helper()
	const mostOpen = 40 // a slow machine is not drowned
	calmAt := time.Now().Add(*circuitsFor)
	for sleep(ctx, 500*time.Millisecond) && !r.Failed() {
		r.diedAlone()
		if len(r.openTasks(mostOpen)) < mostOpen {
			r.submit(1)
		}
		if time.Now().Before(calmAt) {
			continue
		}
		missing := r.missing(r.check(history.Options{Sample: 1}))
		if len(missing) == 0 {
			return
		}
		if time.Since(calmAt) > showPatience {
			r.Errorf("within %s more than it was to last, the run came never to this:\n%s", showPatience, strings.Join(missing, "\n"))
			return
		}
	}
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
				if isPoison := (handler == poisoned || handler == venomous) && no%2 == 1; isPoison && (handler == poisoned || r.tasks < 16) {
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
		r.tasks += len(answers)
	}
}

// flap takes the dependency down and up again, until ctx ends. It ends up.
func (r *circuitRun) flap(ctx context.Context) error {
	draw := r.draw(1)
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

// operate holds the flapping circuit for a while, now or a little later, and releases it before or after.
func (r *circuitRun) operate(ctx context.Context) error {
	draw := r.draw(3)
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

// missing is what has not happened yet of what the run is to show.
func (r *circuitRun) missing(report *history.Report) (missing []string) {
	r.Helper()
	for _, want := range []struct {
		what string
		got  int
		need int
	}{
		{"leases lost with a killed server", report.LostLeases, 1},
		{"probes", report.Probes, *probesFlag},
	} {
		if want.got < want.need {
			missing = append(missing, fmt.Sprintf("%d %s of %d", want.got, want.what, want.need))
		}
	}
	causes := r.causes()
	for _, want := range []struct {
		circuit string
		any     []task.CircuitCause
	}{
		{flapping, []task.CircuitCause{task.CauseFailureRate, task.CauseReach}},
		{flapping, []task.CircuitCause{task.CauseOpenElapsed}},
		{flapping, []task.CircuitCause{task.CauseProbesPassed}},
		{flapping, []task.CircuitCause{task.CauseHold}},
		{sickened, []task.CircuitCause{task.CauseWorkersBarred}},
		{venomous, []task.CircuitCause{task.CauseFailureRate}},
	} {
		if !slices.ContainsFunc(want.any, func(cause task.CircuitCause) bool { return causes[want.circuit][cause] > 0 }) {
			missing = append(missing, fmt.Sprintf("circuit %s has not come to %v", want.circuit, want.any))
		}
	}
	return missing
}

// causes counts what brought about the events of each circuit.
func (r *circuitRun) causes() map[string]map[task.CircuitCause]int {
	r.Helper()
	rows, err := r.db.Pool.Query(r.Context(), `select circuit.name, circuit_event.cause::text, count(*)::int from circuit_event join circuit using (circuit_id) group by 1, 2`)
	r.must(err)
	var (
		name  string
		cause task.CircuitCause
		times int
	)
	found := map[string]map[task.CircuitCause]int{}
	_, err = pgx.ForEachRow(rows, []any{&name, &cause, &times}, func() error {
		if found[name] == nil {
			found[name] = map[task.CircuitCause]int{}
		}
		found[name][cause] = times
		return nil
	})
	r.must(err)
	return found
}

// checkRecord demands that circuits opened only where their dependency was to blame, and that the sick worker alone was barred.
func (r *circuitRun) checkRecord() {
	r.Helper()
	for _, name := range circuitHandlers {
		events, err := r.e.ListCircuitEvents(r.Context(), task.CircuitEventQuery{Circuit: name, Limit: 100_000})
		r.must(err)
		for _, e := range events {
			if e.Cause == task.CauseWorkersBarred && !slices.Equal(e.Workers, []string{sickWorker}) {
				r.Errorf("of circuit %s workers %v are barred, the sick one is %s", name, e.Workers, sickWorker)
			}
			if (name == sickened || name == poisoned) && e.To != task.CircuitClosed {
				r.Errorf("circuit %s came to be %s by %s: the dependency was never down", name, e.To, e.Cause)
			}
		}
	}
	for name, causes := range r.causes() {
		r.Logf("circuit %s: %v", name, causes)
	}
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
