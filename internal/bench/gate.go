package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

const (
	gateCircuit = "bench-service"
	// gateTrips is how often a circuit is tripped to see what that writes. What else writes meanwhile is not its doing, so the
	// least counts.
	gateTrips = 5
	// gateFew is how many steps stand behind a circuit at first: each trip takes one.
	gateFew = 4 * (gateTrips + 1)
	// gateFor is how long a trip's failure asks to stay away.
	gateFor = 30 * time.Minute
)

// openGate is a circuit that is open, and a lane behind it.
type openGate struct {
	lane, circuit int32
	steps         *filler
	// few and many are what changing it writes, with few steps behind it and with all of them.
	few, many gateWAL
}

// gateWAL is log bytes: of the report that opens a circuit, and of the act that lets it probe again.
type gateWAL struct{ trip, release float64 }

// openGate has the claims name a lane behind an open circuit from now on, in which at least so many steps stand.
func (c *claimant) openGate(ctx context.Context, steps int64) error {
	waiting := oneStep("gated", asideHandler)
	waiting.GetInline().GetSteps()[0].Circuit = proto.String(gateCircuit)
	f, err := c.on.openFiller(ctx, "", waiting)
	if err != nil {
		return fmt.Errorf("behind a circuit: %w", err)
	}
	g := &openGate{steps: f}
	err = c.on.conn.QueryRow(ctx, "select lane_id, circuit_id from ready join lane using (lane_id) where task_id = $1", f.sample).Scan(&g.lane, &g.circuit)
	if err != nil {
		return fmt.Errorf("finding the lane behind the circuit: %w", err)
	}
	if err := f.add(ctx, gateFew); err != nil {
		return err
	}
	if g.few, err = c.trips(ctx, g); err != nil {
		return err
	}
	if err := f.add(ctx, max(0, steps-gateFew)); err != nil {
		return err
	}
	if g.many, err = c.trips(ctx, g); err != nil {
		return err
	}
	c.gate = g
	return nil
}

// closeGate leaves the circuit as it is and its lane out of the claims.
func (c *claimant) closeGate() {
	c.gate.steps.leave(0)
	c.gate = nil
}

// join puts the lane behind the circuit into a claim, for one step.
func (g *openGate) join(claim *store.Claim, exclusive bool, session int32) {
	claim.Lanes = append(claim.Lanes, store.LaneWant{LaneID: g.lane, CircuitID: g.circuit, Slots: []int32{session}})
	claim.Circuits = append(claim.Circuits, store.CircuitWant{CircuitID: g.circuit, Exclusive: exclusive, LaneID: g.lane})
}

// trips opens the circuit some times over, each time by one report whose failure reaches it, and tells the least that this and the
// release before it wrote. What the machine still does about the filling would be counted in, so that is done before; and the first
// trip is not counted, since after a checkpoint whole pages are written.
func (c *claimant) trips(ctx context.Context, g *openGate) (least gateWAL, err error) {
	if err := c.on.settle(ctx); err != nil {
		return least, err
	}
	least = gateWAL{math.Inf(1), math.Inf(1)}
	after := gateFor
	for i := range gateTrips + 1 {
		from, err := c.on.meter.Read(ctx)
		if err != nil {
			return least, err
		}
		// Where it is open: probes are let through.
		if _, err := c.store.ReleaseCircuit(ctx, g.circuit, store.Act{Actor: "bench"}); err != nil {
			return least, fmt.Errorf("releasing the circuit: %w", err)
		}
		released, err := c.on.meter.Read(ctx)
		if err != nil {
			return least, err
		}
		claim := &store.Claim{Sessions: []store.SessionFence{c.fence}}
		g.join(claim, true, c.fence.SessionID)
		grants, _, err := c.store.Claim(ctx, c.namespace, claim)
		if err != nil {
			return least, fmt.Errorf("claiming from behind the circuit: %w", err)
		}
		if len(grants) != 1 {
			return least, fmt.Errorf("a circuit that is not open granted %d steps, not 1", len(grants))
		}
		before, err := c.on.meter.Read(ctx)
		if err != nil {
			return least, err
		}
		done, err := c.store.Turn(ctx, c.namespace, nil, []task.Report{{
			Token: grants[0].Step.Token, Outcome: task.RetryableFailure, Failure: task.Failure{ErrorCode: "DOWN"}, Digest: [32]byte{1},
			ReachCircuit: true, Hint: task.Hint{Source: task.FromRetryAfter, After: &after},
		}}, nil)
		if err != nil {
			return least, fmt.Errorf("tripping the circuit: %w", err)
		}
		if answer := done.Answers[0].Reported; answer == nil || !answer.ReachedCircuit || len(answer.ChangedCircuits) != 1 {
			return least, errors.New("a failure that reaches the circuit did not open it")
		}
		c.on.failed.Add(1)
		reading, err := c.on.meter.Read(ctx)
		if err != nil {
			return least, err
		}
		if i > 0 {
			least.trip = min(least.trip, float64(reading.WALBytes-before.WALBytes))
			least.release = min(least.release, float64(released.WALBytes-from.WALBytes))
		}
	}
	return least, nil
}

// tripBar is how many times the log bytes with few steps behind a circuit a change of it may write with very many.
const tripBar = 1.5

// recordTrips tells what a trip and a release write, whatever waits behind the circuit.
func recordTrips(d *Document, g *openGate) {
	for _, change := range []struct {
		name      string
		few, many float64
	}{{"B5.trip", g.few.trip, g.many.trip}, {"B5.release", g.few.release, g.many.release}} {
		d.Set(change.name+".few_wal_bytes", change.few)
		d.Set(change.name+".wal_bytes", change.many)
		r := row{name: change.name, unit: "WAL bytes", ours: change.many, floor: change.few, beside: fmt.Sprintf("%d behind it", gateFew)}
		r.ratio = r.ours / r.floor
		r.bar, r.met = fmt.Sprintf("≤ %g", tripBar), r.ratio <= tripBar
		d.judge(r)
	}
}
