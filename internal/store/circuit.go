package store

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// CircuitWant is a circuit whose lanes stand in a claim.
type CircuitWant struct {
	CircuitID int32
	// Exclusive locks it alone, as is needed where it bounds what goes out. A claim that takes it for plain (closed and
	// without limits) shares the lock; if it was wrong, the circuit's lanes are left alone.
	Exclusive bool
	// LaneID is the one lane that takes from it where it bounds what goes out.
	LaneID int32
}

// Gate is what a circuit lets through, as it stood when the transaction ended: a hint to plan the next claim by.
type Gate struct {
	CircuitID int32
	State     task.CircuitState
	// Generation rises with every event of the circuit.
	Generation int64
	Plain      bool       // closed and without limits
	Room       *int       // steps that may go out now; nil: any number
	OpensAt    *time.Time // when a gate without room may have some by itself; nil: reports or operators decide
	At         time.Time  // the database's clock
	Barred     []task.BarredWorker
}

// circuitUse collects the circuits of a transaction, and how each is locked: alone if anything asks for it.
type circuitUse map[int32]bool

func (u circuitUse) add(id int32, exclusive bool) {
	if id != 0 {
		u[id] = u[id] || exclusive
	}
}

func (u circuitUse) ids() []int32 { return slices.Sorted(maps.Keys(u)) }

// lockCircuits queues the locks, in their order, and then what time alone has made of those that are locked alone.
func (s *Store) lockCircuits(b *pgx.Batch, u circuitUse) {
	ids := u.ids()
	exclusive := make([]bool, len(ids))
	var alone []int32
	for i, id := range ids {
		if exclusive[i] = u[id]; exclusive[i] {
			alone = append(alone, id)
		}
	}
	b.Queue(sqlText("lock_circuits"), ids, exclusive)
	if len(alone) > 0 {
		b.Queue(sqlText("advance_circuits"), s.at(), alone)
	}
}

// charge is one report, or one lease that the server ends, as charge_circuits.sql takes it.
type charge struct {
	token    task.Token
	outcome  task.Outcome
	blame    task.Blame
	reach    bool
	hint     task.Hint
	duration time.Duration // 0: by the clock
	seen     []task.CircuitObservation
}

// queueCharges queues charge_circuits.sql. changed hears of each circuit that came to another generation.
func (s *Store) queueCharges(b *pgx.Batch, u circuitUse, charges []charge, changed func(id int32, name string)) {
	n := len(charges)
	var (
		ids                     = make([]int64, n)
		nos                     = make([]int32, n)
		tokens                  = make([][16]byte, n)
		outcomes, blames        = make([]string, n), make([]string, n)
		reach                   = make([]bool, n)
		after, durations        = make([]*time.Duration, n), make([]*time.Duration, n)
		at                      = make([]*time.Time, n)
		seenBy                  [][16]byte
		seen, calls, fail, slow []int32
	)
	for i, c := range charges {
		ids[i], nos[i], tokens[i] = int64(c.token.Step.Task()), int32(c.token.Step.No()), c.token.Nonce //nolint:gosec // ≤ 10,000
		outcomes[i], blames[i], reach[i] = string(c.outcome), string(cmp.Or(c.blame, task.BlameDependency)), c.reach
		after[i], at[i] = c.hint.After, c.hint.At
		if c.duration > 0 {
			durations[i] = &charges[i].duration
		}
		for _, o := range c.seen {
			seenBy, seen = append(seenBy, c.token.Nonce), append(seen, o.CircuitID)
			calls, fail, slow = append(calls, int32(o.Calls)), append(fail, int32(o.Failed)), append(slow, int32(o.Slow)) //nolint:gosec // ≤ 10,000
		}
	}
	each(b, "charge_circuits", func(rows pgx.Rows) error {
		var (
			id        int32
			name      string
			isChanged bool
		)
		err := rows.Scan(&id, &name, &isChanged)
		if isChanged {
			changed(id, name)
		}
		return err
	}, s.at(), u.ids(), ids, nos, tokens, outcomes, blames, reach, after, at, durations, seenBy, seen, calls, fail, slow)
}

// queueGates queues a look at what circuits let through from now on.
func (s *Store) queueGates(b *pgx.Batch, u circuitUse, gates *[]Gate) {
	each(b, "circuit_gates", func(rows pgx.Rows) error {
		var (
			g       Gate
			workers []string
			untils  []time.Time
		)
		if err := rows.Scan(&g.CircuitID, &g.State, &g.Generation, &g.Plain, &g.Room, &g.OpensAt, &g.At, &workers, &untils); err != nil {
			return err
		}
		for i, w := range workers {
			g.Barred = append(g.Barred, task.BarredWorker{WorkerID: w, Until: untils[i]})
		}
		*gates = append(*gates, g)
		return nil
	}, s.at(), u.ids())
}

// reportedCircuits are the circuits that a flush touches: those of its claim, and alone those that its reports charge.
func reportedCircuits(reports []task.Report, claim *Claim) circuitUse {
	use := circuitUse{}
	if claim != nil {
		use = claim.circuitUse()
	}
	for i := range reports {
		use.add(reports[i].Token.CircuitID, true)
		for _, o := range reports[i].Observations {
			use.add(o.CircuitID, true)
		}
	}
	return use
}

func chargesAny(reports []task.Report) bool {
	return slices.ContainsFunc(reports, func(r task.Report) bool { return r.Token.CircuitID != 0 || len(r.Observations) > 0 })
}

// queueReportCharges charges circuits with the reports of a flush, in an order that is sorted by step.
func (s *Store) queueReportCharges(b *pgx.Batch, use circuitUse, reports []task.Report, order []int, f *Flushed) {
	charges := make([]charge, 0, len(order))
	for _, i := range order {
		r := &reports[i]
		if r.Token.CircuitID == 0 && len(r.Observations) == 0 {
			continue
		}
		charges = append(charges, charge{
			token: r.Token, outcome: r.Outcome, blame: r.Blame, reach: r.ReachCircuit, hint: r.Hint, duration: r.RunDuration,
			seen: r.Observations,
		})
	}
	f.changedCircuits = map[int32]string{}
	s.queueCharges(b, use, charges, func(id int32, name string) {
		f.changedCircuits[id] = name
		f.Change.Circuits = append(f.Change.Circuits, id)
	})
}

// tellCircuits completes the answers with what became of the reports' circuits.
func (f *Flushed) tellCircuits(reports []task.Report) {
	for i := range f.Answers {
		answer, r := f.Answers[i].Reported, &reports[i]
		if answer == nil {
			continue
		}
		answer.ReachedCircuit = r.ReachCircuit && r.Token.CircuitID != 0 && asksForTime(&r.Hint, answer.RecordedAt)
		if name, ok := f.changedCircuits[r.Token.CircuitID]; ok {
			answer.ChangedCircuits = append(answer.ChangedCircuits, name)
		}
		for _, o := range r.Observations {
			if name, ok := f.changedCircuits[o.CircuitID]; ok && o.CircuitID != r.Token.CircuitID {
				answer.ChangedCircuits = append(answer.ChangedCircuits, name)
			}
		}
	}
}

// asksForTime tells whether a hint says to wait at all. None leaves it to the policy, which does.
func asksForTime(h *task.Hint, from time.Time) bool {
	return (h.After == nil || *h.After > 0) && (h.At == nil || h.At.After(from))
}

// queueEndedCharges charges circuits with leases that the server ends: a run timeout is a failed call, a lost lease is the
// worker's. Whatever ended them, their slots are free.
func (s *Store) queueEndedCharges(b *pgx.Batch, namespaceID int32, use circuitUse, locked []expired, judge func(expired) task.Outcome, change *Change) {
	var charges []charge
	touched := circuitUse{}
	for _, e := range locked {
		touched.add(e.CircuitID, false)
		if outcome := judge(e); e.CircuitID != 0 && (outcome == task.TimedOut || outcome == task.LostLease) {
			charges = append(charges, charge{token: e.token(namespaceID), outcome: outcome})
		}
	}
	change.Circuits = append(change.Circuits, touched.ids()...)
	if len(charges) > 0 && len(use) > 0 {
		s.queueCharges(b, use, charges, func(int32, string) {})
	}
}
