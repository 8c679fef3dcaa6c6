package history

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// run is one dispatch of a step behind a circuit.
type run struct {
	stepID   int64
	dispatch int
	from, to time.Time // zero to: it runs still
	charged  bool      // it counts as an attempt
	lost     bool      // with its worker
}

func (r *run) runsAt(t time.Time) bool { return !r.from.After(t) && (r.to.IsZero() || r.to.After(t)) }

// circuitEvent is one entry of a circuit's record.
type circuitEvent struct {
	CircuitID       int32
	Generation      int64
	At              time.Time
	From, To, Cause string
	OpenUntil       *time.Time
	Wave            int
	MaxProbes       int
	RecoveryWave    int
	OpenDuration    int64
	MaxOpen         int64
	MaxInFlight     int     // 0: no bound
	Rate            float64 // 0: no bound
	Suspends        bool    // budgets of time stand still while it is shut
	HoldFrom        *time.Time
	HoldUntil       *time.Time
}

// circuitRow is a circuit as it stands.
type circuitRow struct {
	CircuitID  int32
	Name       string
	State      string
	Generation int64
	OpenUntil  *time.Time
	Wave       int
	Room       *int
	IsLimited  bool
	IsDue      bool // time has made something of it that nobody has recorded yet
}

// leaseRow is the slot that a lease takes.
type leaseRow struct {
	TaskID      int64
	StepNo      int
	Dispatch    int
	CircuitID   int32
	LaneCircuit int32
	Generation  int64
	Probe       bool
}

// circuitModel is what the record makes of a circuit.
type circuitModel struct {
	row    circuitRow
	events []circuitEvent
	runs   []*run
}

// checkCircuits decides S11: what stood behind a circuit went only when it let go, and what its row says is what its record
// makes of it.
func (c *checker) checkCircuits(ctx context.Context, tx pgx.Tx) error {
	rows, _ := tx.Query(ctx, sqlText("circuits"))
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[circuitRow])
	if err != nil {
		return err
	}
	circuits := c.circuits
	for _, row := range found {
		if row.Room != nil {
			c.rooms[row.CircuitID] = *row.Room
		}
		circuits[row.CircuitID] = &circuitModel{row: row, runs: c.behind[row.CircuitID]}
	}
	rows, _ = tx.Query(ctx, sqlText("circuit_events"))
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[circuitEvent])
	if err != nil {
		return err
	}
	for _, e := range events {
		m := circuits[e.CircuitID]
		if m == nil {
			c.r.add(Violation{Invariant: "S14", Message: fmt.Sprintf("circuit %d has a record and does not stand", e.CircuitID)})
			m = &circuitModel{}
			circuits[e.CircuitID] = m
		}
		m.events = append(m.events, e)
	}
	rows, _ = tx.Query(ctx, sqlText("circuit_leases"))
	leases, err := pgx.CollectRows(rows, pgx.RowToStructByPos[leaseRow])
	if err != nil {
		return err
	}
	for _, row := range found {
		m := circuits[row.CircuitID]
		c.r.Circuits++
		c.checkRecord(m)
		slices.SortFunc(m.runs, func(a, b *run) int { return cmp.Or(a.from.Compare(b.from), cmp.Compare(a.stepID, b.stepID)) })
		phases := m.phases()
		c.checkRuns(m, phases)
		c.checkLimits(m, phases)
	}
	probes := c.checkSlots(circuits, leases)
	for _, row := range found {
		c.checkRoom(circuits[row.CircuitID], probes[row.CircuitID])
	}
	return nil
}

func (c *checker) accuse(m *circuitModel, invariant, format string, args ...any) {
	c.r.add(Violation{Invariant: invariant, Message: fmt.Sprintf("circuit %q: ", m.row.Name) + fmt.Sprintf(format, args...)})
}

// turns are the states between which an event of each cause may lead; those of causes that are not named leave the state as it
// is.
var turns = map[string][]string{
	"failure_rate": {"closed open"}, "slow_rate": {"closed open"}, "open_elapsed": {"open half_open"}, "probe_failed": {"half_open open"},
	"probes_passed": {"half_open recovering"}, "wave_passed": {"recovering recovering"}, "wave_failed": {"recovering open"},
	"recovered": {"half_open closed", "recovering closed"}, "hold_ended": {"held half_open"}, "workers_barred": {"closed closed"},
	"reach":   {"closed open", "open open", "half_open open", "recovering open"},
	"hold":    {"closed held", "open held", "half_open held", "recovering held"},
	"release": {"open half_open", "held half_open"},
}

// checkRecord goes through a circuit's events: each begins where the last one ended, openings last twice as long each time, waves
// are twice as large, and the last one leads to where the circuit stands.
func (c *checker) checkRecord(m *circuitModel) {
	var (
		state      = "closed"
		generation = int64(1)
		openFor    int64
		openUntil  *time.Time
		wave       int
		at         time.Time
	)
	for i, e := range m.events {
		if i == 0 && c.daysGone { // what came before may be as old as what retention keeps
			state, generation, openFor, wave = e.From, e.Generation-1, 0, e.Wave/2
		}
		if e.Generation != generation+1 || e.From != state {
			c.accuse(m, "S14", "event %d (%s) begins %s, event %d ended %s", e.Generation, e.Cause, e.From, generation, state)
		}
		if e.At.Before(at) {
			c.accuse(m, "S14", "event %d is recorded %s before the one it follows", e.Generation, at.Sub(e.At))
		}
		stays := e.To == e.From && (e.Cause == "policy" || e.Cause == "hold" || e.Cause == "release")
		if !stays && !slices.Contains(turns[e.Cause], e.From+" "+e.To) {
			c.accuse(m, "S11", "event %d: %s leads from %s to %s", e.Generation, e.Cause, e.From, e.To)
		}
		switch {
		case e.To == "open" && e.From != "open":
			if openFor = 2 * openFor; openFor == 0 {
				openFor = e.OpenDuration
			}
			openFor = min(openFor, e.MaxOpen)
			if want := e.At.Add(micros(openFor)); e.Cause != "reach" && (e.OpenUntil == nil || !e.OpenUntil.Equal(want)) {
				c.accuse(m, "S11", "event %d opens it until %s, its policy says for %s", e.Generation, show(e.OpenUntil), micros(openFor))
			}
			openUntil = e.OpenUntil
		case e.Cause == "reach":
			openUntil = e.OpenUntil
		case e.Cause == "open_elapsed" && openUntil != nil && e.At.Before(*openUntil):
			c.accuse(m, "S11", "event %d: probing began %s before its open time was up", e.Generation, openUntil.Sub(e.At))
		case e.Cause == "probes_passed" && e.Wave != e.RecoveryWave:
			c.accuse(m, "S11", "event %d begins with a wave of %d, its policy says %d", e.Generation, e.Wave, e.RecoveryWave)
		case e.Cause == "wave_passed" && e.Wave != 2*wave:
			c.accuse(m, "S11", "event %d begins a wave of %d after one of %d", e.Generation, e.Wave, wave)
		}
		switch {
		case e.Cause == "probes_passed", e.Cause == "wave_passed":
			wave = e.Wave
		case e.To != "recovering":
			wave = 0
		}
		if e.To == "closed" {
			openFor = 0
		}
		if e.To != "open" {
			openUntil = nil
		}
		state, generation, at = e.To, e.Generation, e.At
	}
	row := m.row
	sameUntil := (row.OpenUntil == nil) == (openUntil == nil) && (openUntil == nil || openUntil.Equal(*row.OpenUntil))
	if row.State != state || row.Generation != generation || row.Wave != wave || !sameUntil {
		c.accuse(m, "S14", "stands as %s (generation %d, open until %s, wave %d), its record leaves %s (generation %d, open until %s, wave %d)",
			row.State, row.Generation, show(row.OpenUntil), row.Wave, state, generation, show(openUntil), wave)
	}
}

func show(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// phase is how a circuit stood between two of its events.
type phase struct {
	state       string
	maxProbes   int
	maxInFlight int       // 0: no bound, or not known
	rate        float64   // 0: no bound, or not known
	wave        int       // while recovering: of the wave under way
	entered     time.Time // when it came to its state
	from, to    time.Time // zero: ever since, or for ever
}

func (m *circuitModel) phases() []phase {
	out := []phase{{state: "closed"}}
	for _, e := range m.events {
		last := &out[len(out)-1]
		last.to = e.At
		p := phase{state: e.To, maxProbes: e.MaxProbes, maxInFlight: e.MaxInFlight, rate: e.Rate, wave: e.Wave, entered: e.At, from: e.At}
		if e.To == e.From && e.To == last.state {
			p.entered = last.entered
			if e.Cause != "wave_passed" { // an operator's act leaves the wave as it is
				p.wave = last.wave
			}
		}
		out = append(out, p)
	}
	return out
}

// during are the phases that an instant lies in: of two that meet in it, both.
func during(phases []phase, t time.Time) []phase {
	// The first that ends at t or later; zero, which only the last one has, is later than anything.
	first, _ := slices.BinarySearchFunc(phases, t, func(p phase, t time.Time) int {
		if p.to.IsZero() {
			return 1
		}
		return p.to.Compare(t)
	})
	last := first
	for last+1 < len(phases) && !phases[last+1].from.After(t) {
		last++
	}
	return phases[first : last+1]
}

func (p phase) isShut() bool { return p.state == "open" || p.state == "held" }

func only(phases []phase, is func(phase) bool) bool {
	return !slices.ContainsFunc(phases, func(p phase) bool { return !is(p) })
}

// checkRuns holds every dispatch against how its circuit stood at that instant. Where a circuit turned in the very instant,
// the dispatch may have come before or after.
func (c *checker) checkRuns(m *circuitModel, phases []phase) {
	var probes []*run // granted while half-open, as long as they run
	for _, r := range m.runs {
		violate := func(format string, args ...any) {
			c.r.add(Violation{"S11", r.stepID &^ (1<<14 - 1), r.stepID, r.dispatch, fmt.Sprintf(format, args...)})
		}
		at := during(phases, r.from)
		isHalfOpen := only(at, func(p phase) bool { return p.state == "half_open" })
		switch {
		case only(at, phase.isShut):
			violate("dispatched while circuit %q was %s, since %s", m.row.Name, at[0].state, show(&at[0].from))
			if r.charged {
				violate("an attempt was charged that began while circuit %q was %s", m.row.Name, at[0].state)
			}
		case isHalfOpen:
			c.r.Probes++
			if r.lost {
				c.r.LostProbes++
			}
			// Without those that ended in the instant in which they began: they may have come before the others.
			probes = slices.DeleteFunc(append(probes, r), func(p *run) bool { return !p.runsAt(r.from) })
			most := slices.MaxFunc(at, func(a, b phase) int { return cmp.Compare(a.maxProbes, b.maxProbes) }).maxProbes
			if len(probes) > most {
				violate("%d probes of circuit %q run at %s, its max_probes is %d", len(probes), m.row.Name, show(&r.from), most)
			}
		}
		if told, known := c.journals.probes[runKey{r.stepID, r.dispatch}]; known && told != isHalfOpen {
			if only(at, func(p phase) bool { return (p.state == "half_open") != told }) {
				violate("its worker was told that it is a probe: %v; circuit %q was %s", told, m.row.Name, at[0].state)
			}
		}
	}
}

// checkSlots looks at the leases: each counts where it has to, none stands for a run that has ended. It gives the number of
// probes that run by circuit.
func (c *checker) checkSlots(circuits map[int32]*circuitModel, leases []leaseRow) map[int32]int {
	probes := map[int32]int{}
	running := map[runKey]bool{}
	for _, m := range circuits {
		for _, r := range m.runs {
			running[runKey{r.stepID, r.dispatch}] = r.to.IsZero()
		}
	}
	for _, l := range leases {
		stepID := l.TaskID + int64(l.StepNo)
		violate := func(format string, args ...any) {
			c.r.add(Violation{"S11", l.TaskID, stepID, l.Dispatch, fmt.Sprintf(format, args...)})
		}
		m := circuits[l.LaneCircuit]
		if l.CircuitID != l.LaneCircuit || m == nil {
			violate("its lease takes a slot of circuit %d, its lane stands behind circuit %d", l.CircuitID, l.LaneCircuit)
			continue
		}
		if runs, known := running[runKey{stepID, l.Dispatch}]; known && !runs || !known && !c.daysGone {
			what := "a slot of a run"
			if l.Probe {
				what = "a probe's slot"
			}
			violate("%s is leaked: its lease of circuit %q stands, and the history has no such run under way", what, m.row.Name)
		}
		state := "closed"
		if l.Generation > 1 {
			at := slices.IndexFunc(m.events, func(e circuitEvent) bool { return e.Generation == l.Generation })
			if at < 0 {
				violate("its lease was granted in generation %d of circuit %q, which its record does not have", l.Generation, m.row.Name)
				continue
			}
			state = m.events[at].To
		}
		if state == "open" || state == "held" {
			violate("its lease was granted in generation %d of circuit %q, which was %s", l.Generation, m.row.Name, state)
		}
		if l.Probe != (state == "half_open") {
			violate("its lease is a probe's: %v; it was granted while circuit %q was %s", l.Probe, m.row.Name, state)
		}
		if state == "half_open" {
			probes[l.CircuitID]++
		}
	}
	return probes
}

// checkRoom compares how many probes the claim would let go with how many it should: all slots but those of probes that run.
func (c *checker) checkRoom(m *circuitModel, probes int) {
	row := m.row
	if row.State != "half_open" || row.IsLimited || row.IsDue || len(m.events) == 0 {
		return
	}
	most := m.events[len(m.events)-1].MaxProbes
	if want := max(most-probes, 0); row.Room == nil || *row.Room != want {
		c.accuse(m, "S11", "a probe's slot is leaked: %d of %d probes run, and there is room for %d", probes, most, or(row.Room, -1))
	}
}

// admits tells whether a circuit lets a runnable step go now; known is false where that hangs on what else waits.
func (c *checker) admits(circuitID int32) (lets, known bool) {
	room, is := c.rooms[circuitID]
	switch {
	case !is:
		return true, true
	case room == 0:
		return false, true
	}
	return false, false
}
