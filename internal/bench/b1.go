package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/taskerhq/tasker/bench/floor"
)

// b1Scenario is one-step tasks through gRPC: submit, dispatch by stream, report. In one variant tasks and reports travel by
// the hundred, in the other each has a call of its own. A third is the first with steps behind a circuit that stays closed.
var b1Scenario = scenario{
	name:  "B1",
	about: "one-step tasks through gRPC, batched, one by one, and behind a closed circuit: steps a second, processor time, log bytes and commits a step",
	estimate: func(s *sizes) time.Duration {
		return time.Duration(s.rounds) * (s.floorEstimate(s.window) + 3*s.livesEstimate() + s.callWindow*5/4)
	},
	run: runB1,
}

// Bars of B1, as shares of the floor's rate; unary may reach its bound instead.
const (
	batchedBar = 0.6
	unaryBar   = 0.25
	boundBar   = 0.9
)

// b1Round is one turn.
type b1Round struct {
	floor                 floor.Result
	batched, unary, gated lives
	calls                 float64 // empty unary calls a second
}

func runB1(ctx context.Context, w *world) error {
	var rounds []b1Round
	for i := range w.rounds {
		var r b1Round
		var err error
		at := fmt.Sprintf("B1 round %d of %d: ", i+1, w.rounds)
		w.phase(w.floorEstimate(w.window), "%sthe floor", at)
		if r.floor, err = w.runFloor(ctx, w.window); err != nil {
			return err
		}
		w.phase(w.livesEstimate(), "%sbatched", at)
		if r.batched, err = w.runLives(ctx, batched); err != nil {
			return fmt.Errorf("batched: %w", err)
		}
		w.phase(w.livesEstimate(), "%sbehind a closed circuit", at)
		if r.gated, err = w.runLives(ctx, gated); err != nil {
			return fmt.Errorf("behind a closed circuit: %w", err)
		}
		w.phase(w.livesEstimate(), "%sone by one", at)
		if r.unary, err = w.runLives(ctx, unary); err != nil {
			return fmt.Errorf("unary: %w", err)
		}
		w.phase(w.callWindow*5/4, "%sempty calls", at)
		if r.calls, err = w.emptyCalls(ctx); err != nil {
			return err
		}
		rounds = append(rounds, r)
	}
	recordB1(w.doc, rounds)
	return nil
}

// over takes a figure of each round at its median. Ratios are taken within a round: the machine changes between two.
func over(rounds []b1Round, figure func(*b1Round) float64) float64 {
	values := make([]float64, len(rounds))
	for i := range rounds {
		values[i] = figure(&rounds[i])
	}
	return median(values)
}

func recordB1(d *Document, rounds []b1Round) {
	costs := func(of func(*b1Round) cost) cost {
		all := make([]cost, len(rounds))
		for i := range rounds {
			all[i] = of(&rounds[i])
		}
		return medianCost(all)
	}
	floorRate := over(rounds, func(r *b1Round) float64 { return r.floor.StepsPerSec })
	least := costs(func(r *b1Round) cost { return floorCost(&r.floor) })
	d.Set("B1.rounds", float64(len(rounds)))
	d.Set("B1.floor.steps_per_s", floorRate)
	least.record(d, "B1.floor")
	d.Set("B1.floor.fsync_ms", over(rounds, func(r *b1Round) float64 { return r.floor.Fsync }))
	d.Set("B1.floor.durable_commit_ms", over(rounds, func(r *b1Round) float64 { return r.floor.DurableCommit }))

	for _, v := range []struct {
		name string
		bar  float64
		of   func(*b1Round) *lives
	}{
		{"B1.batched", batchedBar, func(r *b1Round) *lives { return &r.batched }},
		{"B1.unary", unaryBar, func(r *b1Round) *lives { return &r.unary }},
	} {
		rate := over(rounds, func(r *b1Round) float64 { return v.of(r).perSecond })
		spent := costs(func(r *b1Round) cost { return v.of(r).cost })
		ratio := over(rounds, func(r *b1Round) float64 { return v.of(r).perSecond / r.floor.StepsPerSec })
		d.Set(v.name+".steps_per_s", rate)
		spent.record(d, v.name)
		d.Set(v.name+".cpu_ratio", spent.cpu()/least.cpu())
		d.Set(v.name+".wal_ratio", spent.wal/least.wal)
		d.Set(v.name+".load", over(rounds, func(r *b1Round) float64 { return v.of(r).load }))
		r := row{
			name: v.name, unit: "steps/s", ours: rate, floor: floorRate, ratio: ratio, bar: fmt.Sprintf("≥ %.2f", v.bar), met: ratio >= v.bar,
			costs: &spent, floorCost: &least,
		}
		if v.name == "B1.unary" {
			// A step through the floor and two calls that do nothing: no server that is called twice a step can do more.
			bound := func(r *b1Round) float64 { return 1 / (1/r.floor.StepsPerSec + 2/r.calls) }
			ofBound := over(rounds, func(r *b1Round) float64 { return v.of(r).perSecond / bound(r) })
			d.Set("B1.unary.empty_calls_per_s", over(rounds, func(r *b1Round) float64 { return r.calls }))
			d.Set("B1.unary.bound", over(rounds, bound))
			d.Set("B1.unary.of_bound", ofBound)
			r.bar += fmt.Sprintf(", or %.1f of the bound", boundBar)
			r.met = r.met || ofBound >= boundBar
		}
		d.judge(r)
	}

	// What a circuit costs those that name one; those that name none pay nothing, which is measured between releases.
	plain := costs(func(r *b1Round) cost { return r.batched.cost })
	spent := costs(func(r *b1Round) cost { return r.gated.cost })
	rate := over(rounds, func(r *b1Round) float64 { return r.gated.perSecond })
	d.Set("B1.gated.steps_per_s", rate)
	spent.record(d, "B1.gated")
	d.Set("B1.gated.cpu_ratio", spent.cpu()/plain.cpu())
	d.Set("B1.gated.wal_ratio", spent.wal/plain.wal)
	d.judge(row{
		name: "B1.gated", unit: "steps/s", ours: rate, floor: over(rounds, func(r *b1Round) float64 { return r.batched.perSecond }), beside: "batched",
		ratio: over(rounds, func(r *b1Round) float64 { return r.gated.perSecond / r.batched.perSecond }), costs: &spent, floorCost: &plain,
	})
}
