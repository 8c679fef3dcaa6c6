package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// b4Scenario is very many steps that failed and are to be tried again at one instant.
var b4Scenario = scenario{
	name:  "B4",
	about: "very many failed steps that are all due at once: how long they wait for it, and what another handler's steps notice",
	estimate: func(s *sizes) time.Duration {
		return s.floorEstimate(s.floorWindow) + time.Duration(s.dueSteps)*(3*stepTime+failTime) + s.dueMargin + quietBeats*pulseEvery + 3*time.Second
	},
	run: runB4,
}

const (
	// failTime is what is allowed for failing one step, so that all have failed by the time they are due, on a slow machine too.
	failTime = 300 * time.Microsecond
	// stepTime is about how long one of many steps takes, for estimates only.
	stepTime = 80 * time.Microsecond

	// dueSlack is how much later than the last of as many fresh steps the 99th of a hundred due ones may come.
	dueSlack = 50 * time.Millisecond
	// besideBar is how many times longer the other handler's steps may wait beside due steps than beside fresh ones.
	besideBar = 1.5

	pulseEvery = 20 * time.Millisecond
	quietBeats = 50
)

func runB4(ctx context.Context, w *world) error {
	w.phase(w.floorEstimate(w.floorWindow), "B4: the floor")
	floor, err := w.runFloor(ctx, w.floorWindow)
	if err != nil {
		return err
	}
	other, err := w.openPulse(ctx, "", "bench-beside", 1, w.server(), w.server())
	if err != nil {
		return err
	}
	defer other.close() //nolint:errcheck // an error of its crew is an error of its runs
	l, err := w.openLot(ctx, "", "bench-due")
	if err != nil {
		return err
	}
	defer l.close()

	w.phase(quietBeats*pulseEvery, "B4: another handler, alone")
	quiet, err := other.run(pulseEvery, quietBeats)
	if err != nil {
		return err
	}
	n := w.dueSteps
	w.phase(time.Duration(n)*stepTime*3/2, "B4: %d fresh steps", n)
	if err := l.submit(ctx, n, nil); err != nil {
		return err
	}
	var fresh time.Duration
	besideFresh, err := other.during(pulseEvery, func() (err error) {
		fresh, err = l.drain(ctx, n, nil)
		return err
	})
	if err != nil {
		return err
	}

	w.phase(time.Duration(n)*(stepTime+failTime)+w.dueMargin, "B4: %d steps fail and wait", n)
	if err := l.submit(ctx, n, nil); err != nil {
		return err
	}
	d := &dueSteps{at: time.Now().Add(time.Duration(n)*failTime + w.dueMargin), waited: newLatencies()}
	// The same worker all along: on a machine too slow for the margin, second attempts come while first ones still fail.
	want := l.recorded.Load() + 2*int64(n)
	x, err := l.work(ctx, d.answer)
	if err != nil {
		return err
	}
	defer x.close() //nolint:errcheck // an error of it is an error of its waits
	if err := x.await(func() bool { return w.failed.Load() >= int64(n) }); err != nil {
		return err
	}
	spare := time.Until(d.at)
	w.doc.Set("B4.steps", float64(n))
	w.doc.Set("B4.all_waiting_ms_before_due", milliseconds(spare))
	w.phase(time.Duration(n)*stepTime, "B4: %d steps are due at once", n)
	pause(ctx, spare-w.dueMargin/4)
	var due time.Duration
	var spent cost
	besideDue, err := other.during(pulseEvery, func() (err error) {
		spent, err = w.costOf(ctx, n, func() error {
			err := x.await(func() bool { return l.recorded.Load() >= want })
			due = time.Since(d.at)
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	if got := d.waited.count(); got != int64(n) {
		return fmt.Errorf("%d second attempts came, want %d", got, n)
	}

	d.waited.recordIn(w.doc, "B4.due")
	w.doc.Set("B4.due.early", float64(d.early))
	w.doc.Set("B4.due.drain_ms", milliseconds(due))
	w.doc.Set("B4.fresh.drain_ms", milliseconds(fresh))
	w.doc.Set("B4.floor.drain_ms", float64(n)/floor.StepsPerSec*1e3)
	spent.record(w.doc, "B4.due")
	p99, allowed := d.waited.ms(99), milliseconds(fresh)
	w.doc.judge(row{
		name: "B4.due", unit: "ms p99 late", ours: p99, floor: allowed, ratio: p99 / allowed, beside: "as many fresh steps",
		bar: fmt.Sprintf("≤ %s more, none early", dueSlack), met: p99 <= allowed+milliseconds(dueSlack) && d.early == 0 && spare > 0,
	})
	for _, t := range []struct {
		key   string
		times *pulseTimes
	}{{"quiet", quiet}, {"beside_fresh", besideFresh}, {"beside_due", besideDue}} {
		t.times.start.recordIn(w.doc, "B4."+t.key)
	}
	// A full machine makes everyone wait: what is asked is whether due steps are worse neighbours than fresh ones.
	ours, before := besideDue.start.ms(99), besideFresh.start.ms(99)
	w.doc.judge(row{
		name: "B4.beside", unit: "ms p99 start", ours: ours, floor: before, ratio: ours / before, beside: "beside fresh steps",
		bar: fmt.Sprintf("≤ %g", besideBar), met: ours <= before*besideBar,
	})
	return nil
}

// dueSteps are steps that fail once and then are due at one instant.
type dueSteps struct {
	at     time.Time
	waited *latencies // from the instant to their second coming

	mu    sync.Mutex
	early int // that came before it
}

// answer fails a step's first attempt and lets the second one succeed.
func (d *dueSteps) answer(step *pb.ReadyStep) *pb.ReportStepResultRequest {
	if step.GetAttempt() > 1 {
		return d.succeed(step)
	}
	return &pb.ReportStepResultRequest{LeaseToken: step.GetLeaseToken(), Outcome: &pb.ReportStepResultRequest_RetryableFailure{
		RetryableFailure: &pb.StepRetryableFailure{
			Failure:   &pb.Failure{ErrorCode: "UNAVAILABLE", Message: "come back later"},
			RetryHint: &pb.StepRetryableFailure_RetryAt{RetryAt: timestamppb.New(d.at)},
		},
	}}
}

// earlyGrain is how far the instant may be off: it is kept as a distance from the report, in microseconds, of another clock
// reading of the same machine.
const earlyGrain = time.Millisecond

func (d *dueSteps) succeed(step *pb.ReadyStep) *pb.ReportStepResultRequest {
	late := time.Since(d.at)
	if late < -earlyGrain {
		d.mu.Lock()
		d.early++
		d.mu.Unlock()
	}
	d.waited.record(late)
	return succeed(step)
}
