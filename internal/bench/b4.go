package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// b4Scenario is very many steps that failed and are to be tried again at one instant.
//
// Two things are asked of them. That the first of them comes when it is due. And that they take no longer, the 99th of a hundred
// counted from the instant, than as many of the same, steps that failed and are tried again, which have been due for a while when a
// worker comes: to those, time is no matter. A second attempt costs more than a first one, since it brings the failure along; fresh
// steps stand beside, to show it. The kinds are drained in turns, there and back, so that what the machine does meanwhile meets
// them all.
var b4Scenario = scenario{
	name:  "B4",
	about: "very many failed steps that are all due at once: how long they wait for it, and what another handler's steps notice",
	estimate: func(s *sizes) time.Duration {
		n := time.Duration(s.dueSteps)
		retried := n*(stepTime/2+failTime+stepTime) + s.dueMargin
		rounds := time.Duration(s.dueRounds)
		return s.floorEstimate(s.floorWindow) + quietBeats*pulseEvery + rounds*(n*stepTime*3/2+2*retried) + 3*time.Second
	},
	run: runB4,
}

const (
	// stepTime is about how long one of many steps takes, and failTime one until it is due again, for estimates only.
	stepTime = 80 * time.Microsecond
	failTime = failFactor * stepTime
	// failFactor is how many times longer than fresh steps take to succeed the same may take to fail, before they are due.
	failFactor = 3

	// firstBar is how late the first of many due steps may come.
	firstBar = 50 * time.Millisecond
	// drainBar is how many times longer the 99th of a hundred due steps may take than the drain of as many that were due before. Rounds
	// of one kind differ by a tenth.
	drainBar = 1.1
	// besideBar is how many times longer the other handler's steps may wait beside due steps than beside fresh ones.
	besideBar = 1.5

	pulseEvery = 10 * time.Millisecond
	quietBeats = 100
)

// The kinds of steps that B4 drains.
const (
	fresh   = "fresh"
	overdue = "overdue"
	due     = "due"
)

// b4Turns are the orders of the drains, in turns. The figure of a kind is the median of its rounds.
var b4Turns = [][]string{{fresh, overdue, due}, {due, overdue, fresh}}

// b4 is the state of a run.
type b4 struct {
	*world
	lot   *lot
	other *pulse
	kinds map[string]*b4Kind
	late  []float64     // of each round of due steps, the p99 of their waits: milliseconds
	first float64       // and the latest that the first of a round came
	spare time.Duration // the least that was left when all had failed
	early int           // second attempts that came too early
	spent cost          // a due step
}

// b4Kind is what the rounds of a kind showed.
type b4Kind struct {
	drains []float64  // milliseconds
	beside *latencies // the other handler's starts
}

func runB4(ctx context.Context, w *world) error {
	w.phase(w.floorEstimate(w.floorWindow), "B4: the floor")
	floor, err := w.runFloor(ctx, w.floorWindow)
	if err != nil {
		return err
	}
	b := &b4{world: w, kinds: map[string]*b4Kind{}, spare: time.Hour}
	if b.other, err = w.openPulse(ctx, "", "bench-beside", 1, w.server(), w.server()); err != nil {
		return err
	}
	defer b.other.close() //nolint:errcheck // an error of its crew is an error of its runs
	if b.lot, err = w.openLot(ctx, "", "bench-due"); err != nil {
		return err
	}
	defer b.lot.close()

	w.phase(quietBeats*pulseEvery, "B4: another handler, alone")
	quiet, err := b.other.run(pulseEvery, quietBeats)
	if err != nil {
		return err
	}
	quiet.start.recordIn(w.doc, "B4.quiet")
	waited := newLatencies()
	for round := range b.dueRounds {
		for _, kind := range b4Turns[round%len(b4Turns)] {
			if b.kinds[kind] == nil {
				b.kinds[kind] = &b4Kind{beside: newLatencies()}
			}
			switch kind {
			case fresh:
				err = b.freshRound(ctx)
			case overdue:
				err = b.overdueRound(ctx)
			default:
				err = b.dueRound(ctx, waited)
			}
			if err != nil {
				return err
			}
		}
	}
	b.judge(quiet, waited, floor.StepsPerSec)
	return nil
}

// drained times a drain of one kind and what the other handler's steps notice of it.
func (b *b4) drained(kind string, drain func() (time.Duration, error)) error {
	var took time.Duration
	beside, err := b.other.during(pulseEvery, func() (err error) {
		took, err = drain()
		return err
	})
	if err != nil {
		return err
	}
	k := b.kinds[kind]
	k.drains = append(k.drains, milliseconds(took))
	k.beside.add(beside.start)
	return nil
}

func (b *b4) freshRound(ctx context.Context) error {
	n := b.dueSteps
	b.phase(time.Duration(n)*stepTime*3/2, "B4: %d fresh steps", n)
	if err := b.lot.submit(ctx, n, nil); err != nil {
		return err
	}
	return b.drained(fresh, func() (time.Duration, error) { return b.lot.drain(ctx, n, nil) })
}

// fail submits steps and lets each of them fail once. The worker is left at work.
func (b *b4) fail(ctx context.Context, how string) (*dueSteps, *crew, error) {
	n := b.dueSteps
	b.phase(time.Duration(n)*(stepTime/2+failTime)+b.dueMargin, "B4: %d steps fail and wait (%s)", n, how)
	if err := b.lot.submit(ctx, n, nil); err != nil {
		return nil, nil, err
	}
	until := failFactor*time.Duration(b.kinds[fresh].drains[0]*float64(time.Millisecond)) + b.dueMargin
	d := &dueSteps{at: time.Now().Add(until), waited: newLatencies()}
	failed := b.failed.Load() + int64(n)
	x, err := b.lot.work(ctx, d.answer)
	if err != nil {
		return nil, nil, err
	}
	if err := x.await(func() bool { return b.failed.Load() >= failed }); err != nil {
		return nil, nil, errors.Join(err, x.close())
	}
	b.spare = min(b.spare, time.Until(d.at))
	return d, x, nil
}

// overdueRound drains second attempts that nobody could run when they became due.
func (b *b4) overdueRound(ctx context.Context) error {
	want := b.lot.recorded.Load() + 2*int64(b.dueSteps)
	d, x, err := b.fail(ctx, overdue)
	if err != nil {
		return err
	}
	if err := x.close(); err != nil {
		return err
	}
	pause(ctx, time.Until(d.at)+earlyGrain)
	b.phase(time.Duration(b.dueSteps)*stepTime, "B4: %d steps have been due before", b.dueSteps)
	err = b.drained(overdue, func() (time.Duration, error) {
		return b.lot.drain(ctx, int(want-b.lot.recorded.Load()), d.answer)
	})
	b.early += d.early
	return err
}

// dueRound has second attempts become due in front of a worker that waits for them.
func (b *b4) dueRound(ctx context.Context, waited *latencies) error {
	n := b.dueSteps
	want := b.lot.recorded.Load() + 2*int64(n)
	// The same worker all along: on a machine too slow for the margin, second attempts come while first ones still fail.
	d, x, err := b.fail(ctx, due)
	if err != nil {
		return err
	}
	defer x.close() //nolint:errcheck // an error of it is an error of its waits
	b.phase(time.Duration(n)*stepTime, "B4: %d steps are due at once", n)
	pause(ctx, time.Until(d.at)) // what the other handler's steps notice before is nothing
	err = b.drained(due, func() (took time.Duration, err error) {
		b.spent, err = b.costOf(ctx, n, func() error {
			err := x.await(func() bool { return b.lot.recorded.Load() >= want })
			took = time.Since(d.at)
			return err
		})
		return took, err
	})
	if err != nil {
		return err
	}
	if got := d.waited.count(); got != int64(n) {
		return fmt.Errorf("%d second attempts came, want %d", got, n)
	}
	b.early += d.early
	b.late = append(b.late, d.waited.ms(99))
	b.first = max(b.first, d.waited.least())
	waited.add(d.waited)
	return nil
}

func (b *b4) judge(quiet *pulseTimes, waited *latencies, floorPerSec float64) {
	b.doc.Set("B4.steps", float64(b.dueSteps))
	b.doc.Set("B4.all_waiting_ms_before_due", milliseconds(b.spare))
	waited.recordIn(b.doc, "B4.due")
	b.doc.Set("B4.due.early", float64(b.early))
	for _, kind := range []string{fresh, overdue, due} {
		k := b.kinds[kind]
		b.doc.Set("B4."+kind+".drain_ms", median(k.drains))
		k.beside.recordIn(b.doc, "B4.beside_"+kind)
	}
	b.doc.Set("B4.floor.drain_ms", float64(b.dueSteps)/floorPerSec*1e3)
	b.spent.record(b.doc, "B4.due")
	b.doc.judge(row{
		name: "B4.first", unit: "ms late", ours: b.first, floor: quiet.start.ms(99), ratio: b.first / quiet.start.ms(99),
		beside: "p99 of a step alone", bar: fmt.Sprintf("≤ %s in every round, none early", firstBar),
		met: b.first <= milliseconds(firstBar) && b.early == 0 && b.spare > 0,
	})
	ours, before := median(b.late), median(b.kinds[overdue].drains)
	b.doc.judge(row{
		name: "B4.due", unit: "ms p99 late", ours: ours, floor: before, ratio: ours / before, beside: "drain of as many due before",
		bar: fmt.Sprintf("≤ %g", drainBar), met: ours <= before*drainBar,
	})
	first := median(b.kinds[fresh].drains)
	b.doc.judge(row{name: "B4.retry", unit: "ms drain", ours: before, floor: first, ratio: before / first, beside: "as many fresh steps"})
	// A full machine makes everyone wait: what is asked is whether due steps are worse neighbours than fresh ones.
	ours, before = b.kinds[due].beside.ms(99), b.kinds[fresh].beside.ms(99)
	b.doc.judge(row{
		name: "B4.beside", unit: "ms p99 start", ours: ours, floor: before, ratio: ours / before, beside: "beside fresh steps",
		bar: fmt.Sprintf("≤ %g", besideBar), met: ours <= before*besideBar,
	})
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
