package store_test

import (
	"slices"
	"time"
)

// said is how one lease ended, as far as circuits care.
type said struct {
	lease    *circuitLease
	outcome  string
	blame    string
	reach    bool
	after    *time.Duration
	at       *time.Time
	duration time.Duration
	besides  []besides
}

type besides struct {
	circuit                *modelCircuit
	observed, failed, slow int
}

// charge lets a batch of ended leases have its consequence for a circuit.
func (m *circuitModel) charge(c *modelCircuit, batch []said) {
	p := m.policy(c)
	var (
		all                                               modelCall
		by                                                = map[string]*modelCall{}
		probesGood, probesBad, waveGood, waveBad, charged int
		reach                                             time.Time
	)
	count := func(worker string, x modelCall, blamed int) {
		charged++
		all.observed, all.failed, all.slow = all.observed+x.observed, all.failed+x.failed, all.slow+x.slow
		if by[worker] == nil {
			by[worker] = &modelCall{at: m.now}
		}
		w := by[worker]
		w.observed, w.failed, w.slow = w.observed+x.observed+blamed, w.failed+x.failed, w.slow+blamed
	}
	for _, s := range batch {
		for _, o := range s.besides {
			if o.circuit == c {
				count(s.lease.worker, modelCall{observed: o.observed, failed: o.failed, slow: o.slow}, 0)
			}
		}
		if s.lease.step.lane.circuit != c {
			continue
		}
		healthy := s.outcome == "success" || s.outcome == "permanent_failure"
		failed := (s.outcome == "retryable_failure" || s.outcome == "timed_out") && s.blame == "dependency"
		blamed := 0
		if s.outcome == "lost_lease" || s.blame == "worker" {
			blamed = 1
		}
		lasted := s.duration
		if lasted == 0 {
			lasted = m.now.Sub(s.lease.began())
		}
		slow := p.slowCall != nil && lasted >= *p.slowCall && (healthy || failed && s.outcome != "timed_out")
		x := modelCall{}
		if healthy || failed {
			x.observed = 1
		}
		if failed {
			x.failed = 1
		}
		if slow {
			x.slow = 1
		}
		count(s.lease.worker, x, blamed)
		good, bad := 0, 0
		switch {
		case s.lease.generation < c.entered: // it was under way before this state began
		case failed, healthy && slow:
			bad = 1
		case healthy:
			good = 1
		}
		if c.state == "half_open" && s.lease.probe {
			probesGood, probesBad = probesGood+good, probesBad+bad
		}
		if c.state == "recovering" {
			waveGood, waveBad = waveGood+good, waveBad+bad
		}
		if s.reach {
			until := m.now.Add(orElse(s.after, p.open))
			if s.at != nil {
				until = *s.at
			}
			if most := m.now.Add(*p.maxOpen); until.After(most) {
				until = most
			}
			if until.After(reach) {
				reach = until
			}
		}
	}
	if charged == 0 {
		return
	}
	all.at = m.now
	if c.workers == nil {
		c.workers = map[string]*modelWitness{}
	}
	for worker, x := range by {
		if c.workers[worker] == nil {
			c.workers[worker] = &modelWitness{}
		}
		c.workers[worker].calls.add(*p.window, *x)
	}
	var failing []string
	for worker, w := range c.workers {
		if w.calls.sum(*p.window, m.now).failed > 0 {
			failing = append(failing, worker)
		}
	}
	slices.Sort(failing)
	c.calls.add(*p.window, all)
	sum := c.calls.sum(*p.window, m.now)

	before, generation := c.state, c.generation
	backlog := m.waiting(c) > 0
	accused := false
	again := func(cause string) { c.generation, c.cause = c.generation+1, cause }
	switch {
	case reach.After(m.now) && c.state == "open":
		if reach.After(c.openUntil) {
			again("reach")
			c.openUntil = reach
		}
	case reach.After(m.now) && c.state != "held":
		c.openIt(p, m.now, "reach")
		c.openUntil = reach
	case c.state == "closed" && sum.observed >= *p.minSeen:
		switch {
		case sum.failed > 0 && float64(sum.failed) >= *p.failRate*float64(sum.observed):
			if accused = len(failing) < *p.minWorkers; accused {
				again("workers_barred")
				c.calls.calls = nil
			} else {
				c.openIt(p, m.now, "failure_rate")
			}
		case p.slowCall != nil && sum.slow > 0 && float64(sum.slow) >= *p.slowRate*float64(sum.observed):
			c.openIt(p, m.now, "slow_rate")
		}
	case c.state == "half_open" && probesBad > 0:
		c.openIt(p, m.now, "probe_failed")
	case c.state == "half_open":
		if c.passed += probesGood; c.passed >= *p.closeAfter {
			if backlog {
				c.turn("recovering", m.now, "probes_passed")
				c.wave, c.waveNo = *p.wave, 1
			} else {
				c.turn("closed", m.now, "recovered")
			}
		}
	case c.state == "recovering" && waveBad > 0:
		c.openIt(p, m.now, "wave_failed")
	case c.state == "recovering":
		c.waveDone += waveGood
		switch isDone := c.waveDone >= c.wave; {
		case !backlog, isDone && c.waveNo == 10:
			c.turn("closed", m.now, "recovered")
		case isDone:
			again("wave_passed")
			c.wave, c.waveNo, c.waveDone = 2*c.wave, c.waveNo+1, 0
		}
	}
	for worker, w := range c.workers {
		x := w.calls.sum(*p.window, m.now)
		sick := by[worker] != nil && x.observed >= *p.minSeen && float64(x.slow) >= *p.failRate*float64(x.observed)
		if sick || accused && slices.Contains(failing, worker) {
			w.barred = m.now.Add(*p.open)
			w.calls.calls = nil
		}
		if c.state != before || accused {
			w.calls.calls = nil
		}
	}
	if c.generation == generation {
		return
	}
	e := m.event(c, before)
	e.OpenUntil, e.Wave, e.Observed, e.Failed, e.Slow = c.openUntil, c.wave, sum.observed, sum.failed, sum.slow
	for i, w := range failing {
		if i > 0 {
			e.Workers += ","
		}
		e.Workers += w
	}
}

func (m *circuitModel) holdIt(c *modelCircuit, h modelHold) {
	before := c.state
	c.hold = &h
	if !h.from.After(m.now) && c.state != "held" {
		c.turn("held", m.now, "hold")
	} else {
		c.generation, c.cause = c.generation+1, "hold"
	}
	e := m.event(c, before)
	e.Actor, e.OpenUntil, e.HoldFrom, e.HoldUntil = h.actor, c.openUntil, h.from, h.until
}

func (m *circuitModel) release(c *modelCircuit, actor string) (changed bool) {
	before := c.state
	switch {
	case c.state == "held", c.state == "open":
		c.turn("half_open", m.now, "release")
	case c.hold != nil:
		c.generation, c.cause = c.generation+1, "release"
	default:
		return false
	}
	c.hold = nil
	m.event(c, before).Actor = actor
	return true
}

// ruled is what a change of the rules does to a circuit: what it saw was measured by others.
func (m *circuitModel) ruled(c *modelCircuit, actor string) {
	c.generation, c.cause = c.generation+1, "policy"
	c.calls.calls = nil
	e := m.event(c, c.state)
	e.Actor, e.OpenUntil = actor, c.openUntil
	if c.state == "held" {
		e.HoldFrom, e.HoldUntil = c.hold.from, c.hold.until
	}
}

// comeBack ends a run without a result: the step stands where it stood, unless it was a probe, which stands last.
func (m *circuitModel) comeBack(l *circuitLease, delay time.Duration) {
	s := l.step
	s.lease, s.runnableAt = nil, l.runnableAt
	if l.probe {
		s.runnableAt = m.now
	}
	if delay > 0 {
		s.runnableAt = m.now.Add(delay)
	}
}
