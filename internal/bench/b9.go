package bench

import (
	"context"
	"fmt"
	"time"
)

// b9Scenario is a tenant with a backlog that keeps the machine busy, and another one who submits a little.
var b9Scenario = scenario{
	name:  "B9",
	about: "one tenant with a large backlog under way, another who submits ten tasks a second: how long the second one's wait for their start",
	estimate: func(s *sizes) time.Duration {
		return time.Duration(s.tenantBacklog)*fillTime + 2*time.Duration(s.tenantBeats)*s.tenantEvery + time.Second
	},
	run: runB9,
}

const (
	// startBar is how long the second tenant's steps may wait, of a hundred the 99th, in milliseconds.
	startBar = 50.0
	// fillTime is about how long filler of one step takes, for estimates only.
	fillTime = 25 * time.Microsecond

	busyTenant, smallTenant = "bench-busy", "bench-small"
)

func runB9(ctx context.Context, w *world) error {
	small, err := w.openPulse(ctx, smallTenant, "bench-little", 1, w.server(), w.server())
	if err != nil {
		return err
	}
	defer small.close() //nolint:errcheck // an error of its crew is an error of its runs
	w.phase(time.Duration(w.tenantBeats)*w.tenantEvery, "B9: the small tenant alone")
	if _, err := small.run(w.tenantEvery, warmBeats); err != nil {
		return err
	}
	alone, err := small.run(w.tenantEvery, w.tenantBeats)
	if err != nil {
		return err
	}
	w.phase(time.Duration(w.tenantBacklog)*fillTime, "B9: a backlog of %d", w.tenantBacklog)
	l, err := w.openLot(ctx, busyTenant, "bench-much")
	if err != nil {
		return err
	}
	defer l.close()
	fill, err := w.openFiller(ctx, busyTenant, submission(l.ref, l.handler))
	if err != nil {
		return err
	}
	if err := fill.add(ctx, w.tenantBacklog); err != nil {
		return err
	}
	// Tasks come over hours, not in ten seconds: what these leave to be vacuumed and written is no part of what is measured.
	if err := w.settle(ctx); err != nil {
		return err
	}

	w.phase(time.Duration(w.tenantBeats)*w.tenantEvery, "B9: both tenants")
	begun, err := w.read(ctx)
	if err != nil {
		return err
	}
	x, err := l.work(ctx, nil)
	if err != nil {
		return err
	}
	defer x.close() //nolint:errcheck // closed below where all is well
	beside, err := small.run(w.tenantEvery, w.tenantBeats)
	if err != nil {
		return err
	}
	ran := l.recorded.Load()
	over, err := w.read(ctx)
	if err != nil {
		return err
	}
	if err := x.drain(); err != nil {
		return err
	}
	if err := x.close(); err != nil {
		return err
	}
	fill.leave(l.recorded.Load())
	rest := w.left.steps

	alone.recordIn(w.doc, "B9.alone")
	beside.recordIn(w.doc, "B9.beside")
	w.doc.Set("B9.backlog", float64(w.tenantBacklog))
	w.doc.Set("B9.backlog_left", float64(rest))
	w.doc.Set("B9.busy.steps_per_s", float64(ran)/over.At.Sub(begun.At).Seconds())
	// The small tenant's steps are too few to matter in it.
	spent := w.costBetween(begun, over, max(ran, 1))
	spent.record(w.doc, "B9.busy")
	ours, floor := beside.start.ms(99), alone.start.ms(99)
	w.doc.judge(row{
		name: "B9", unit: "ms p99 start", ours: ours, floor: floor, ratio: ours / floor, beside: "the small tenant alone",
		// A backlog that was gone before the end was not beside it.
		bar: fmt.Sprintf("< %g ms, of a backlog that lasts", startBar), met: ours < startBar && rest > 0,
	})
	return nil
}
