//go:build linux

package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/task"
)

var periodsFlag = flag.Int("chaos.periods", 300, "how many half-open periods circuits go through at least while servers are killed")

const (
	fickleCircuits = 100
	fickleSteps    = 6 // behind each, at least: more than its probes
	// periodsPatience is how long 10,000 periods may take on a slow machine.
	periodsPatience = 12 * time.Minute
)

// TestChaosOfHalfOpen has a hundred circuits be open, half-open and open again, for fractions of a second each, since their
// dependency fails nearly always, while four servers are killed and frozen with what they probe. At no instant may more
// probes of a circuit run than its policy says, over all servers; nothing may go while it is open; no slot may leak, whatever
// became of a probe: once the dependency is well again, everything must end.
func TestChaosOfHalfOpen(t *testing.T) {
	q := newQuartet(t, []string{fickle})
	q.must(q.unleash(t.Context()))
	began := time.Now()
	var killer sync.WaitGroup
	defer killer.Wait()
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	killer.Go(func() {
		if err := q.kill(ctx); err != nil {
			t.Error(err)
		}
	})
	steps := q.awaitPeriods()
	calm()
	killer.Wait()
	took := time.Since(began)
	q.must(os.WriteFile(filepath.Join(q.dir, healed), nil, 0o600))
	ending := time.Now()
	q.awaitEnd()
	ended := time.Since(ending)
	q.stop()
	periods, report := q.periods(), q.judge()
	t.Logf("%d half-open periods in %s, %.0f/s, %d servers killed, %d frozen, %d probes lost; everything ended %s after it", periods,
		took.Round(time.Millisecond), float64(periods)/took.Seconds(), q.kills.Load(), q.freezes.Load(), report.LostProbes,
		ended.Round(time.Millisecond))
	t.Logf("reached half_open_periods_of_processes=%d", periods)
	if complete := report.Ended["complete"]; complete != steps {
		t.Errorf("%d steps are complete, want all %d", complete, steps)
	}
}

// unleash sets policies.
func (q *quartet) unleash(ctx context.Context) error {
	set := func(name string, p task.CircuitPolicy, fields ...string) error {
		_, err := q.e.SetCircuitPolicy(ctx, "", name, p, fields, "test", "chaos")
		return err
	}
	// Shorter than the contract allows: what is to be seen are turns, and as many as possible.
	err := set("", task.CircuitPolicy{
		MinObservations: ptr(1), FailureRateThreshold: ptr(0.01), OpenDuration: ptr(100 * time.Millisecond), MaxOpenDuration: ptr(200 * time.Millisecond),
		CloseAfterSuccesses: ptr(2), RecoveryWave: ptr(2),
	}, "min_observations", "failure_rate_threshold", "open_duration", "max_open_duration", "close_after_successes", "recovery_wave")
	for i := range fickleCircuits {
		err = errors.Join(err, set(fmt.Sprintf("fickle-%03d", i), task.CircuitPolicy{MaxProbes: ptr(1 + i%4)}, "max_probes"))
	}
	return err
}

// feed sees to it that steps wait behind every circuit: now and then one succeeds. It gives how many it has submitted.
func (q *quartet) feed(ctx context.Context) (steps int, err error) {
	const hungry = `select circuit.name from circuit where (
		select count(*)
		from (select lane_id from ready union all select lane_id from backoff union all select lane_id from lease) as live
		join lane using (lane_id) where lane.circuit_id = circuit.circuit_id) < $1`
	rows, err := q.db.Pool.Query(ctx, hungry, fickleSteps)
	if err != nil {
		return 0, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(names) == 0 {
		return 0, err
	}
	var subs []*task.Submission
	for _, name := range names {
		s := stepBehind(fickle)
		s.Circuit, s.RetryLimit, s.MaxLostLeases = name, 1000, 1000
		sub := &task.Submission{Name: name, Context: "{}"}
		for no := range fickleSteps {
			s.Name = fmt.Sprint("s", no)
			sub.Steps = append(sub.Steps, s)
		}
		steps += len(sub.Steps)
		subs = append(subs, sub)
	}
	_, err = q.e.Submit(ctx, subs, true)
	return steps, err
}

// awaitPeriods waits for as many half-open periods as are asked for, and until a probe was lost with its server. It gives how
// many steps it has submitted.
func (q *quartet) awaitPeriods() (steps int) {
	q.Helper()
	for began := time.Now(); sleep(q.Context(), 250*time.Millisecond) && !q.Failed(); {
		q.diedAlone()
		more, err := q.feed(q.Context())
		q.must(err)
		steps += more
		n := q.periods()
		if n >= *periodsFlag && q.check(history.Options{Sample: 1}).LostProbes > 0 {
			break
		}
		if time.Since(began) > periodsPatience {
			q.Errorf("%d half-open periods within %s, want %d and a probe that was lost", n, periodsPatience, *periodsFlag)
			break
		}
	}
	return steps
}

// periods is how often circuits came to be half-open.
func (q *quartet) periods() (n int) {
	q.Helper()
	const turns = `select count(*) from circuit_event where to_state = 'half_open' and from_state <> 'half_open'`
	q.must(q.db.Pool.QueryRow(q.Context(), turns).Scan(&n))
	return n
}
