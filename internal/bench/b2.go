package bench

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// b2Scenario is long chains: alone, where only latency counts, and a hundred at once.
var b2Scenario = scenario{
	name:  "B2",
	about: "a long chain with one worker, and a hundred chains at once: milliseconds from a step to the next",
	estimate: func(s *sizes) time.Duration {
		one := time.Duration(s.longChains*s.chainSteps) * 2 * time.Millisecond
		return 2*s.floorEstimate(s.floorWindow) + one + time.Duration(s.manyChains*s.manySteps)*200*time.Microsecond
	},
	run: runB2,
}

// b2Bar is how many times the floor a step of a lone chain may take.
const b2Bar = 2.0

func runB2(ctx context.Context, w *world) error {
	var least leastLatency
	if err := w.measureLeast(ctx, &least, "B2: the floor"); err != nil {
		return err
	}
	w.phase(time.Duration(w.longChains*w.chainSteps)*2*time.Millisecond, "B2: a chain of %d steps", w.chainSteps)
	lone, err := w.openChains(ctx, "bench-long-chain", "bench.long_chain", w.chainSteps, 1+w.longChains)
	if err != nil {
		return err
	}
	if err := lone.warmUp(1); err != nil {
		lone.close()
		return err
	}
	spent, err := w.costOf(ctx, w.longChains*w.chainSteps, func() error {
		for i := range w.longChains {
			if err := lone.together(1+i, 2+i); err != nil {
				return err
			}
		}
		return nil
	})
	lone.close()
	if err != nil {
		return err
	}

	w.phase(time.Duration(w.manyChains*w.manySteps)*200*time.Microsecond, "B2: %d chains at once", w.manyChains)
	many, err := w.openChains(ctx, "bench-many-chains", "bench.many_chains", w.manySteps, 2*w.manyChains)
	if err != nil {
		return err
	}
	defer many.close()
	if err := many.warmUp(w.manyChains); err != nil {
		return err
	}
	begun := time.Now()
	spentMany, err := w.costOf(ctx, w.manyChains*w.manySteps, func() error { return many.together(w.manyChains, 2*w.manyChains) })
	if err != nil {
		return err
	}
	took := time.Since(begun)
	if err := w.measureLeast(ctx, &least, "B2: the floor again"); err != nil {
		return err
	}

	lone.steps.recordIn(w.doc, "B2")
	spent.record(w.doc, "B2")
	floor := least.call() + least.step()
	least.record(w.doc, "B2", floor)
	many.steps.recordIn(w.doc, "B2.many")
	spentMany.record(w.doc, "B2.many")
	w.doc.Set("B2.many.chains", float64(w.manyChains))
	w.doc.Set("B2.many.steps_per_s", float64(w.manyChains*w.manySteps)/took.Seconds())
	ours := lone.steps.ms(50)
	w.doc.judge(row{
		name: "B2", unit: "ms p50 a step", ours: ours, floor: floor, ratio: ours / floor, bar: fmt.Sprintf("≤ %g", b2Bar), met: ours/floor <= b2Bar,
		beside: "computed",
	})
	return nil
}

// together submits the chains from one to another, the last excluded, at once, and waits for their ends.
func (c *chains) together(from, to int) error {
	c.left.Add(to - from)
	var submits errgroup.Group
	for i := from; i < to; i++ {
		submits.Go(func() error { return c.submit(i, time.Now()) })
	}
	if err := submits.Wait(); err != nil {
		return err
	}
	return c.await()
}
