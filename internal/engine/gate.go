package engine

import (
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// gate is what this server knows of a shared circuit that lanes of its hub stand behind. All of it is hints: a claim asks
// the circuit's row, under its lock. It only spares claims that would be let nothing.
type gate struct {
	id         int32
	state      task.CircuitState
	generation int64
	lanes      []*lane

	bounded bool      // not just closed: a claim locks it alone, and one lane at a time takes from it
	room    int       // how many steps it lets go, while bounded; unknownRoom: ask
	opensAt time.Time // when one that lets none go may by itself, by this machine's clock; zero: not known
	barred  map[string]time.Time

	claiming bool // a bounded claim is under way: another one of this server would only wait for its lock

	// Of the claim that is being planned.
	plan  int
	taker *lane
	taken int
}

const unknownRoom = -1

// gate needs h.mu.
func (h *hub) gate(id int32) *gate {
	g := h.gates[id]
	if g == nil {
		g = &gate{id: id, room: unknownRoom}
		h.gates[id] = g
	}
	return g
}

// lets needs the hub's mutex: whether a claim that is being planned may look into a lane behind the gate.
func (g *gate) lets(x *lane, plan int, now time.Time) bool {
	switch {
	case g == nil || !g.bounded:
		return true
	case g.claiming || g.plan == plan && g.taker != x:
		return false
	}
	if g.room == 0 && !g.opensAt.IsZero() && !now.Before(g.opensAt) {
		g.room, g.opensAt = unknownRoom, time.Time{}
	}
	return g.room == unknownRoom || g.room > 0 && (g.plan != plan || g.taken < g.room)
}

// take needs the hub's mutex: a lane has a slot in the claim that is being planned.
func (g *gate) take(x *lane, plan int) {
	if g == nil || !g.bounded {
		return
	}
	if g.plan != plan {
		g.plan, g.taker, g.taken = plan, x, 0
	}
	g.taken++
}

// bars needs the hub's mutex: whether a session gets nothing from the lanes behind the gate for now.
func (g *gate) bars(s *session, now time.Time) bool {
	if g == nil || len(g.barred) == 0 {
		return false
	}
	until, ok := g.barred[s.reg.WorkerID]
	return ok && now.Before(until)
}

// doubt forgets what the gate lets go: somebody who looks may find more.
func (g *gate) doubt() {
	g.bounded, g.room, g.opensAt = true, unknownRoom, time.Time{}
}

// wantCircuits needs h.mu: the circuits of a claim's lanes, each once.
func (f *flush) wantCircuits() {
	seen := map[*gate]bool{}
	for i, l := range f.lanes {
		g := l.gate
		if g == nil {
			continue
		}
		f.claim.Lanes[i].CircuitID = g.id
		if seen[g] {
			continue
		}
		seen[g] = true
		g.claiming = g.bounded
		f.claim.Circuits = append(f.claim.Circuits, store.CircuitWant{CircuitID: g.id, Exclusive: g.bounded, LaneID: l.ID})
	}
}

// heedGates needs h.mu: it learns what circuits let go from now on.
func (h *hub) heedGates(gates []store.Gate) {
	for i := range gates {
		x := &gates[i]
		g := h.gate(x.CircuitID)
		g.state, g.generation, g.bounded, g.opensAt, g.barred = x.State, x.Generation, !x.Plain, time.Time{}, nil
		g.room = unknownRoom
		if x.Room != nil {
			g.room = *x.Room
		}
		if x.OpensAt != nil && g.room == 0 {
			// Starts that are paced come in handfuls: a look for each would cost more than the steps.
			g.opensAt = h.e.clock.local(*x.OpensAt)
			if soonest := time.Now().Add(paceGrain); g.state == task.CircuitClosed && g.opensAt.Before(soonest) {
				g.opensAt = soonest
			}
			h.arm(g.opensAt)
		}
		for _, b := range x.Barred {
			if g.barred == nil {
				g.barred = make(map[string]time.Time, len(x.Barred))
			}
			until := h.e.clock.local(b.Until)
			g.barred[b.WorkerID] = until
			h.arm(until)
		}
	}
}

// paceGrain is how often at most a circuit's rate is asked for more.
const paceGrain = 20 * time.Millisecond

// circuitsChanged heeds that circuits changed, or that slots of theirs were freed, other than in a flush of this hub.
func (h *hub) circuitsChanged(ids []int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		if g := h.gates[id]; g != nil {
			g.doubt()
		}
	}
	h.work.Broadcast()
}

// heedCircuits tells every hub of circuits that changed: ids say nothing of namespaces.
func (e *Engine) heedCircuits(ids []int32) {
	if len(ids) == 0 {
		return
	}
	for _, h := range e.everyHub() {
		h.circuitsChanged(ids)
	}
	e.pingCircuitWatches()
}

// worthTelling are the circuits of a flush that other servers should look at again: those that changed, and those that bound
// what goes out and now have room, which a report may have made.
func worthTelling(changed []int32, gates []store.Gate, reports int) []int32 {
	out := changed
	if reports > 0 {
		for _, g := range gates {
			if !g.Plain && (g.Room == nil || *g.Room > 0) {
				out = append(out, g.CircuitID)
			}
		}
	}
	return out
}

// keptBack needs h.mu: whether a lane where something stands, or may, gives a session nothing because of its circuit.
func (h *hub) keptBack(s *session, x *lane) (n Notice, ok bool) {
	g, now := x.gate, time.Now()
	if g == nil || !x.hot {
		return n, false
	}
	n = Notice{Handler: x.Handler, Circuit: x.Circuit}
	if g.bars(s, now) {
		until := h.e.clock.database(g.barred[s.reg.WorkerID])
		n.Reason, n.Until = "worker_barred", &until
		return n, true
	}
	if !g.bounded || g.room != 0 {
		return n, false
	}
	if !g.opensAt.IsZero() {
		until := h.e.clock.database(g.opensAt)
		n.Until = &until
	}
	switch g.state {
	case task.CircuitOpen:
		n.Reason = "circuit_open"
	case task.CircuitHeld:
		n.Reason = "circuit_held"
	case task.CircuitHalfOpen, task.CircuitRecovering:
		n.Reason = "circuit_probing"
	default:
		n.Reason = "circuit_limit"
	}
	return n, true
}
