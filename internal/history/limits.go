package history

import (
	"math"
	"slices"
	"time"
)

// checkLimits holds every dispatch against what its circuit let go at a time: no more than max_in_flight, no more of a
// recovery than its wave, and never ahead of its rate by more than a burst. What the policy was before the first event is not
// on record.
func (c *checker) checkLimits(m *circuitModel, phases []phase) {
	ends := make([]time.Time, 0, len(m.runs))
	for _, r := range m.runs {
		if !r.to.IsZero() {
			ends = append(ends, r.to)
		}
	}
	slices.SortFunc(ends, time.Time.Compare)
	var (
		ended  int
		waving []*run // granted while recovering, as long as they run
		pace   pace
	)
	for i, r := range m.runs {
		violate := c.replayer(r.stepID&^(1<<14-1), int(r.stepID&(1<<14-1))).violate
		for ended < len(ends) && !ends[ended].After(r.from) {
			ended++
		}
		at := during(phases, r.from)
		if most := loosest(at, func(p phase) int { return p.maxInFlight }); most > 0 {
			switch live := i + 1 - ended; {
			case live > most:
				violate(r.dispatch, "S11", "%d steps of circuit %q run at %s, its max_in_flight is %d", live, m.row.Name, show(&r.from), most)
			case live == most:
				c.r.Full++
			}
		}
		if only(at, func(p phase) bool { return p.state == "recovering" }) {
			since := slices.MaxFunc(at, func(a, b phase) int { return a.entered.Compare(b.entered) }).entered
			waving = slices.DeleteFunc(append(waving, r), func(w *run) bool { return !w.runsAt(r.from) || w.from.Before(since) })
			if most := loosest(at, func(p phase) int { return p.wave }); most > 0 && len(waving) > most {
				violate(r.dispatch, "S11", "%d steps of circuit %q run at %s, its wave is of %d", len(waving), m.row.Name, show(&r.from), most)
			}
		}
		rate := loosest(at, func(p phase) float64 { return p.rate })
		if rate == 0 {
			continue
		}
		if pace.isAhead(r.from) {
			c.r.Paced++
		}
		if ahead := pace.start(r.from, rate); ahead > 0 {
			violate(r.dispatch, "S11", "starts %s too early at %s for the rate of circuit %q, which is %v/s", ahead, show(&r.from), m.row.Name, rate)
		}
	}
}

// loosest is the greatest bound of some phases; 0, if one of them has none.
func loosest[T int | float64](phases []phase, bound func(phase) T) T {
	most := bound(phases[0])
	for _, p := range phases[1:] {
		if b := bound(p); b == 0 || most == 0 {
			most = 0
		} else {
			most = max(most, b)
		}
	}
	return most
}

// pace tells whether starts keep to a rate: over any T seconds no more than rate * (T + burst), where the burst is 100 ms'
// worth of starts, and one at least. It holds when it does between any two starts, that is, when what each start takes of
// time, added up from any start on, is never more than a burst ahead of the clock.
type pace struct {
	due time.Time // when the next start would be due at an even pace
}

const burst = 100 * time.Millisecond

func (p *pace) isAhead(at time.Time) bool { return p.due.After(at) }

// start notes a start and gives how much too early it is.
func (p *pace) start(at time.Time, rate float64) (early time.Duration) {
	if p.due.Before(at) {
		p.due = at
	}
	// The database keeps microseconds: a start may be rounded down by one.
	each := time.Duration(math.Floor(1e6/rate)-1) * time.Microsecond
	p.due = p.due.Add(max(each, 0))
	// It lets go what is a millionth of a start short of being due.
	most := max(burst, time.Duration(1e9/rate)) + time.Duration(1e3/rate) + time.Microsecond
	return p.due.Sub(at) - most
}
