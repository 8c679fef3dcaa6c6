package history

import (
	"cmp"
	"slices"
	"time"
)

// stop is the end of a step by a budget of time: its task's deadline, or its own max_elapsed.
type stop struct {
	dispatch int
	at       time.Time
	firstAt  time.Time // its first dispatch since it was submitted or reset; zero: none
}

// ending is a stop and what could have brought it about.
type ending struct {
	stop
	p          *replayer
	maxElapsed *int64
	circuit    int32
	deadline   *time.Time
	createdAt  time.Time
	named      map[int32]time.Time // circuits of the task's steps, and when the last of them had ended; zero: not yet
}

// commitLag is how long what was written may have been on its way to its COMMIT, unseen: a circuit may be shut for as long
// before a budget stands still for it, and a step be started before its max_elapsed is known to run.
const commitLag = time.Second

// suspensions are the times within which a circuit was shut, budgets standing still. A zero end: it is still.
func (m *circuitModel) suspensions() (out []span) {
	var openUntil *time.Time
	for i, e := range m.events {
		if e.To != "open" || e.OpenUntil != nil { // an operator's act may leave it as it is
			openUntil = e.OpenUntil
		}
		if !e.Suspends || e.To != "open" && e.To != "held" {
			continue
		}
		s, until := span{from: e.At}, openUntil
		if e.To == "held" {
			until = e.HoldUntil
		}
		if e.To == "held" && e.From != "held" && e.HoldFrom != nil && e.HoldFrom.Before(s.from) {
			s.from = *e.HoldFrom // it was planned, and began whether or not anybody looked
		}
		var next *time.Time
		if i+1 < len(m.events) {
			next = &m.events[i+1].At
		}
		for _, end := range []*time.Time{next, until} {
			if end != nil && (s.to.IsZero() || end.Before(s.to)) {
				s.to = *end
			}
		}
		out = append(out, s)
	}
	return out
}

// shutFor is for how long within a time any of some circuits was shut, each until its own instant.
func (c *checker) shutFor(named map[int32]time.Time, from, to time.Time) (sum time.Duration) {
	var spans []span
	for id, until := range named {
		m := c.circuits[id]
		if m == nil {
			continue
		}
		if until.IsZero() || until.After(to) {
			until = to
		}
		for _, s := range m.suspensions() {
			if s.from.Before(from) {
				s.from = from
			}
			if s.to.IsZero() || s.to.After(until) {
				s.to = until
			}
			if s.from.Before(s.to) {
				spans = append(spans, s)
			}
		}
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(a.from.Compare(b.from), a.to.Compare(b.to)) })
	for _, s := range spans {
		if s.from.Before(from) {
			s.from = from
		}
		if s.from.Before(s.to) {
			sum += s.to.Sub(s.from)
			from = s.to
		}
	}
	return sum
}

// stops collects what ended a task's steps early.
func (c *checker) stops(t *taskModel) {
	var named map[int32]time.Time
	for i, m := range t.steps {
		for _, s := range m.stops {
			if named == nil {
				named = t.circuits()
			}
			c.endings = append(c.endings, ending{s, c.replayer(t.row.TaskID, i+1), m.policy.maxElapsed, m.circuit, t.row.Deadline, *t.row.CreatedAt, named})
		}
	}
}

// circuits are those that steps of the task name, and when the last step of each ended; zero: it has not.
func (t *taskModel) circuits() map[int32]time.Time {
	named := map[int32]time.Time{}
	for _, m := range t.steps {
		until, known := named[m.circuit]
		switch {
		case m.circuit == 0:
		case !m.place.ended():
			named[m.circuit] = time.Time{}
		case !known || !until.IsZero() && m.endedAt.After(until):
			named[m.circuit] = m.endedAt
		}
	}
	return named
}

// checkBudgets demands of every step that a budget of time ended, that one had run out: its task's deadline, or its max_elapsed
// since its first dispatch, the time not counted for which a circuit stood still that suspends budgets.
func (c *checker) checkBudgets() {
	for _, e := range c.endings {
		var soonest time.Duration // how much too early it was, by the budget that ran out first
		isBounded := false
		c.r.OutOfTime++
		consider := func(end time.Time) {
			if early := end.Sub(e.at); !isBounded || early < soonest {
				soonest, isBounded = early, true
			}
		}
		if e.deadline != nil {
			consider(e.deadline.Add(c.shutFor(e.named, e.createdAt, e.at)))
		}
		if e.maxElapsed != nil && !e.firstAt.IsZero() {
			consider(e.firstAt.Add(micros(*e.maxElapsed)).Add(c.shutFor(map[int32]time.Time{e.circuit: {}}, e.firstAt, e.at)))
		}
		switch {
		case !isBounded:
			e.p.violate(e.dispatch, "S5", "ended by a budget of time that it does not have")
		case soonest > commitLag:
			e.p.violate(e.dispatch, "S5", "ended %s before its budget of time was up", soonest)
		}
	}
}
