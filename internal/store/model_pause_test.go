package store_test

import "time"

// modelPause is a pause of a handler; of all of them where its name is empty.
type modelPause struct{ until time.Time } // zero: until resumed

// pausedUntil tells whether a handler is paused, and until when; zero: until resumed.
func (m *model) pausedUntil(handler string) (until time.Time, is bool) {
	for _, name := range []string{handler, ""} {
		p, ok := m.pauses[name]
		if !ok || !p.until.IsZero() && !m.now.Before(p.until) {
			continue
		}
		if p.until.IsZero() {
			return p.until, true
		}
		is = true
		if p.until.After(until) {
			until = p.until
		}
	}
	return until, is
}

// ready is the readiness rule: it would be granted now.
func (m *model) ready(s *modelStep) bool {
	_, is := m.pausedUntil(s.handler)
	return m.runnable(s) && !is
}

// keptByPause tells until when a pause keeps back a step that could run otherwise; 0: until resumed; -1: none does.
func (m *model) keptByPause(s *modelStep) int64 {
	until, is := m.pausedUntil(s.handler)
	if !is || !m.runnable(s) {
		return -1
	}
	return micros(until)
}
