//go:build linux

package chaos_test

import (
	"context"
	"flag"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/history"
)

var (
	circuitsFor = flag.Duration("chaos.circuits", 15*time.Second, "how long dependencies flap and servers are killed, at least")
	probesFlag  = flag.Int("chaos.probes", 1, "how many probes of circuits there must be: until then it goes on")
)

// circuitRun is a quartet, dependencies that it calls, and the circuits in between.
type circuitRun struct {
	*quartet
	flaps, holds, windows int
	barred                int // looks that found the worker barred that blames itself

	mu     sync.Mutex
	rounds int            // submitted
	good   map[string]int // steps by circuit that must be complete
	bad    map[string]int // steps by circuit that must have failed for good
}

// sickWorker fails whatever it does behind circuits sickened and blamed.
const sickWorker = "worker-2-1"

// TestChaosOfCircuits has dependencies fail, flap, be slow, narrow and paced, a worker be sick and half the steps be poison,
// while servers are killed and frozen with the workers that they serve, and operators hold and release.
//
// At no instant may a step go behind a circuit that is shut, nor more than it lets go at a time; one sick worker may not open a
// circuit for everyone, nor may steps or workers that take the blame; no budget of time may end a step while its circuit stands
// still, and in the end every task must end as it should.
//
// It goes on for as long as it is told to, and until everything has happened that it is to show.
func TestChaosOfCircuits(t *testing.T) {
	r := &circuitRun{quartet: newQuartet(t, circuitHandlers), good: map[string]int{}, bad: map[string]int{}}
	r.govern()
	began := time.Now()
	r.submit(4)
	var others sync.WaitGroup
	defer others.Wait()
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	for _, do := range []func(context.Context) error{r.flap, r.drag, r.kill, r.operate, r.plan} {
		others.Go(func() {
			if err := do(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	r.rage()
	calm()
	others.Wait()
	healed := time.Now()
	r.recover()
	t.Logf("%s of chaos: the dependency went down %d times, %d servers were killed, %d frozen, %d holds, %d planned windows; every task ended %s after it",
		healed.Sub(began).Round(time.Millisecond), r.flaps, r.kills.Load(), r.freezes.Load(), r.holds, r.windows,
		time.Since(healed).Round(time.Millisecond))
	r.stop()
	report := r.judge()
	for _, missing := range r.missing(report) {
		t.Errorf("%s: the run shows nothing about it", missing)
	}
	t.Logf("%d probes lost, %d failures uncounted, %d dispatches took the last place, %d started ahead of their pace; %d steps were ended by a budget, %d complete past a deadline and %d past max_elapsed",
		report.LostProbes, report.Uncounted, report.Full, report.Paced, report.OutOfTime, report.PastDeadline, report.PastElapsed)
	t.Logf("reached circuit_probes=%d", report.Probes)
	r.checkRecord()
	r.checkBar()
	r.checkEnds()
}

// rage submits for as long as the run is to last, and then, a little, until nothing is missing that it is to show.
func (r *circuitRun) rage() {
	r.Helper()
	calmAt := time.Now().Add(*circuitsFor)
	said := ""
	for sleep(r.Context(), 500*time.Millisecond) && !r.Failed() {
		r.diedAlone()
		r.lookAtBars()
		most := 40 // a slow machine is not drowned
		late := time.Since(calmAt)
		if late > 0 {
			missing := r.missing(r.check(history.Options{Sample: 1}))
			if len(missing) == 0 {
				return
			}
			if now := strings.Join(missing, "; "); now != said {
				said = now
				r.Logf("%s more: %s", late.Round(time.Second), now)
			}
			if late > showPatience {
				r.Errorf("within %s more than it was to last, the run never came to this:\n%s", showPatience, strings.Join(missing, "\n"))
				return
			}
			most = 12 // circuits close when nothing waits any more
		}
		if len(r.openTasks(most)) < most {
			r.submit(1)
		}
	}
}
