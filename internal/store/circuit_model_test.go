package store_test

import (
	"cmp"
	"slices"
	"time"
)

// The model of shared circuits: the specification written a second time, as plainly as can be. It imports nothing of the
// project, and keeps no window, no slot and no queue: it remembers every call and every lease, and counts them when asked.

// circuitRules is a policy; nil fields are not set.
type circuitRules struct {
	window, slowCall, open, maxOpen                         *time.Duration
	minSeen, minWorkers, probes, closeAfter, wave, inFlight *int
	failRate, slowRate, rate                                *float64
}

func orElse[T any](values ...*T) (v T) {
	for _, p := range values {
		if p != nil {
			return *p
		}
	}
	return v
}

// inForce fills in what is not set. slowCall, inFlight and rate have no built-in value.
func (r circuitRules) inForce(defaults circuitRules) circuitRules {
	in := circuitRules{
		window:     ptr(orElse(r.window, defaults.window, ptr(60*sec))),
		slowCall:   cmp.Or(r.slowCall, defaults.slowCall),
		open:       ptr(orElse(r.open, defaults.open, ptr(30*sec))),
		maxOpen:    ptr(orElse(r.maxOpen, defaults.maxOpen, ptr(time.Hour))),
		minSeen:    ptr(orElse(r.minSeen, defaults.minSeen, ptr(20))),
		minWorkers: ptr(orElse(r.minWorkers, defaults.minWorkers, ptr(1))),
		probes:     ptr(orElse(r.probes, defaults.probes, ptr(1))),
		closeAfter: ptr(orElse(r.closeAfter, defaults.closeAfter, ptr(3))),
		wave:       ptr(orElse(r.wave, defaults.wave, ptr(10))),
		inFlight:   cmp.Or(r.inFlight, defaults.inFlight),
		failRate:   ptr(orElse(r.failRate, defaults.failRate, ptr(0.5))),
		slowRate:   ptr(orElse(r.slowRate, defaults.slowRate, ptr(0.5))),
		rate:       cmp.Or(r.rate, defaults.rate),
	}
	*in.maxOpen = max(*in.maxOpen, *in.open)
	return in
}

// modelCall is calls that count, at an instant. Of a worker's, slow are those that it is to blame for.
type modelCall struct {
	at                     time.Time
	observed, failed, slow int
}

// modelWindow is all calls since it was last emptied. A window has ten parts, and its calls leave it part by part.
type modelWindow struct {
	width time.Duration
	calls []modelCall
}

func (w *modelWindow) add(width time.Duration, c modelCall) {
	if w.width != width {
		w.width, w.calls = width, nil // measured by another rule
	}
	w.calls = append(w.calls, c)
}

func (w *modelWindow) sum(width time.Duration, now time.Time) (s modelCall) {
	part := func(t time.Time) int64 { return t.UnixMicro() * 10 / width.Microseconds() }
	if w.width != width {
		return s
	}
	for _, c := range w.calls {
		if part(c.at) > part(now)-10 {
			s.observed, s.failed, s.slow = s.observed+c.observed, s.failed+c.failed, s.slow+c.slow
		}
	}
	return s
}

type modelHold struct {
	from, until   time.Time // zero until: until released
	reason, actor string
}

type modelCircuit struct {
	name  string
	rules circuitRules // set on it

	state      string
	generation int
	entered    int // the generation at which it came to its state
	since      time.Time
	cause      string
	openUntil  time.Time
	openFor    time.Duration
	hold       *modelHold
	passed     int // probes
	wave       int
	waveNo     int
	waveDone   int
	paced      time.Time // when all that was started would have been, at an even pace
	calls      modelWindow
	workers    map[string]*modelWitness
	events     []modelCircuitEvent
}

// modelWitness is a worker as a circuit knows it.
type modelWitness struct {
	calls  modelWindow
	barred time.Time
}

type modelCircuitEvent struct {
	At                     time.Time
	Generation             int
	From, To, Cause        string
	OpenUntil              time.Time
	Wave                   int
	Workers                string
	Actor                  string
	HoldFrom, HoldUntil    time.Time
	Observed, Failed, Slow int
}

// behindStep is a step without parents, and circuitLease its lease.
type behindStep struct {
	id         int64
	lane       *behindLane
	runnableAt time.Time // while it waits: when it became, or becomes, runnable
	lease      *circuitLease
	gone       bool
	timeout    time.Duration
}

type behindLane struct {
	id      int32
	circuit *modelCircuit // nil: none
}

type circuitLease struct {
	step       *behindStep
	worker     string
	granted    time.Time
	confirmed  time.Time // zero: not yet
	until      time.Time
	runnableAt time.Time // as the step stood
	generation int       // of the circuit, when it was granted
	probe      bool
}

func (l *circuitLease) began() time.Time {
	if l.confirmed.IsZero() {
		return l.granted
	}
	return l.confirmed
}

type circuitModel struct {
	now      time.Time
	defaults circuitRules
	circuits []*modelCircuit
	lanes    []*behindLane
	steps    []*behindStep
}

func (m *circuitModel) policy(c *modelCircuit) circuitRules { return c.rules.inForce(m.defaults) }

func (m *circuitModel) leases(c *modelCircuit) (out []*circuitLease) {
	for _, s := range m.steps {
		if s.lease != nil && s.lane.circuit == c {
			out = append(out, s.lease)
		}
	}
	return out
}

// runnable are the steps of a lane that could run, were it not for the circuit: who became so first comes first.
func (m *circuitModel) runnable(l *behindLane) (out []*behindStep) {
	for _, s := range m.steps {
		if s.lane == l && !s.gone && s.lease == nil && !s.runnableAt.After(m.now) {
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b *behindStep) int { return a.runnableAt.Compare(b.runnableAt) })
	return out
}

func (m *circuitModel) waiting(c *modelCircuit) (n int) {
	for _, l := range m.lanes {
		if l.circuit == c {
			n += len(m.runnable(l))
		}
	}
	return n
}

// turn brings a circuit to a state.
func (c *modelCircuit) turn(state string, at time.Time, cause string) {
	c.generation++
	c.state, c.entered, c.since, c.cause = state, c.generation, at, cause
	c.openUntil, c.passed, c.wave, c.waveNo, c.waveDone = time.Time{}, 0, 0, 0, 0
	c.calls.calls = nil
	if state == "closed" {
		c.openFor = 0
	}
}

func (c *modelCircuit) openIt(p circuitRules, at time.Time, cause string) {
	c.turn("open", at, cause)
	if c.openFor == 0 {
		c.openFor = *p.open
	} else {
		c.openFor *= 2
	}
	c.openFor = min(c.openFor, *p.maxOpen)
	c.openUntil = at.Add(c.openFor)
}

// elapse does what time alone does to a circuit, and tells each turn.
func (c *modelCircuit) elapse(now time.Time, told func(from string, of *modelHold)) {
	for {
		before, hold := c.state, c.hold
		switch {
		case c.hold != nil && !c.hold.from.After(now) && c.state != "held":
			c.turn("held", c.hold.from, "hold")
		case c.state == "held" && !c.hold.until.IsZero() && !c.hold.until.After(now):
			c.turn("half_open", c.hold.until, "hold_ended")
			c.hold = nil
		case c.state == "open" && !c.openUntil.After(now):
			c.turn("half_open", c.openUntil, "open_elapsed")
			hold = nil
		default:
			return
		}
		told(before, hold)
	}
}

// advance is elapse as somebody sees it who has the circuit to himself: it goes on record.
func (m *circuitModel) advance(c *modelCircuit) {
	c.elapse(m.now, func(from string, hold *modelHold) {
		e := m.event(c, from)
		if hold != nil {
			e.Actor, e.HoldFrom, e.HoldUntil = hold.actor, hold.from, hold.until
		}
	})
}

// seen is the circuit as it stands, whether or not anybody has recorded what time has made of it.
func (m *circuitModel) seen(c *modelCircuit) *modelCircuit {
	now := *c
	now.elapse(m.now, func(string, *modelHold) {})
	return &now
}

func (m *circuitModel) event(c *modelCircuit, from string) *modelCircuitEvent {
	c.events = append(c.events, modelCircuitEvent{At: m.now, Generation: c.generation, From: from, To: c.state, Cause: c.cause})
	return &c.events[len(c.events)-1]
}

func (m *circuitModel) plain(c *modelCircuit) bool {
	p := m.policy(c)
	return c.state == "closed" && (c.hold == nil || c.hold.from.After(m.now)) && p.inFlight == nil && p.rate == nil
}

// room is how many steps may go out now, and what keeps the others; bounded is false where any number may.
func (m *circuitModel) room(of *modelCircuit) (room int, bounded bool) {
	if m.plain(of) {
		return 0, false
	}
	c, p := m.seen(of), m.policy(of)
	out := m.leases(of)
	room = 1 << 20
	switch c.state {
	case "open", "held":
		return 0, true
	case "half_open":
		room = *p.probes
		for _, l := range out {
			if l.probe {
				room--
			}
		}
	case "recovering":
		room = c.wave - c.waveDone
		for _, l := range out {
			if l.generation >= c.entered {
				room--
			}
		}
	}
	if p.inFlight != nil {
		room = min(room, *p.inFlight-len(out))
	}
	if p.rate != nil {
		ahead := max(c.paced.Sub(m.now), 0)
		for n := range room + 1 { // n may start if the pace after n−1 of them is ahead by no more than allowed
			if float64(n) > *p.rate*(burst(*p.rate)-ahead).Seconds()+1e-6 {
				room = n - 1
				break
			}
		}
	}
	return max(room, 0), true
}

func burst(rate float64) time.Duration { return max(100*ms, time.Duration(float64(sec)/rate)) }

// keeps says why a circuit that lets no more go keeps a step, and until when.
func (m *circuitModel) keeps(of *modelCircuit) (word string, until time.Time) {
	c, p := m.seen(of), m.policy(of)
	if p.rate != nil && c.paced.After(m.now) {
		until = c.paced.Add(time.Duration(float64(sec) / *p.rate) - burst(*p.rate))
	}
	switch c.state {
	case "open":
		return "circuit", c.openUntil
	case "held":
		return "paused", c.hold.until
	case "closed":
		return "limit", until
	}
	return "circuit", until
}

func (m *circuitModel) isBarred(c *modelCircuit, worker string) bool {
	return c != nil && c.workers[worker] != nil && c.workers[worker].barred.After(m.now)
}

func (m *circuitModel) grant(s *behindStep, worker string, delivery time.Duration) *circuitLease {
	l := &circuitLease{step: s, worker: worker, granted: m.now, until: m.now.Add(delivery), runnableAt: s.runnableAt}
	if c := s.lane.circuit; c != nil {
		l.generation, l.probe = c.generation, c.state == "half_open"
	}
	s.lease = l
	return l
}

// pace charges a circuit's rate with starts.
func (m *circuitModel) pace(c *modelCircuit, starts int) {
	p := m.policy(c)
	if p.rate == nil || starts == 0 {
		return
	}
	if c.paced.Before(m.now) {
		c.paced = m.now
	}
	c.paced = c.paced.Add(time.Duration(float64(starts) * float64(sec) / *p.rate))
}
