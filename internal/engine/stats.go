package engine

import (
	"sync/atomic"
	"time"

	"github.com/taskerhq/tasker/internal/store"
)

// counters count what the engine did since it was made.
type counters struct {
	submitted, reported, granted, flushes, expired, vacuums atomic.Int64
	flushTime                                               atomic.Int64 // ns
}

func (c *counters) flush(reports, grants int, took time.Duration) {
	c.flushes.Add(1)
	c.reported.Add(int64(reports))
	c.granted.Add(int64(grants))
	c.flushTime.Add(int64(took))
}

// stored counts the tasks that a transaction stored.
func (c *counters) stored(answers []store.SubmitAnswer, err error) {
	if err != nil {
		return
	}
	n := 0
	for _, a := range answers {
		if a.Refused == nil && !a.AlreadySubmitted {
			n++
		}
	}
	c.submitted.Add(int64(n))
}

// Stats is a reading of what the engine did and holds.
type Stats struct {
	Submitted, Reported, Granted, Flushes, Expired int64
	Vacuums                                        int64         // of the live tables, by this server
	FlushTime                                      time.Duration // all flushes together
	Waiting                                        int64         // calls waiting for a batch
	Streams, Sessions, Leases                      int           // of this server
	Listening                                      bool          // other servers' wakes are heard
}

// Stats reads the counters.
func (e *Engine) Stats() Stats {
	s := Stats{
		Submitted: e.stats.submitted.Load(), Reported: e.stats.reported.Load(), Granted: e.stats.granted.Load(),
		Flushes: e.stats.flushes.Load(), Expired: e.stats.expired.Load(), Vacuums: e.stats.vacuums.Load(), FlushTime: time.Duration(e.stats.flushTime.Load()),
		Waiting: e.waiting.Load(), Listening: e.notifier.hears(),
	}
	for _, h := range e.everyHub() {
		h.mu.Lock()
		s.Streams += h.streams
		s.Sessions += len(h.sessions)
		for _, x := range h.sessions {
			s.Leases += len(x.leases)
		}
		h.mu.Unlock()
	}
	return s
}
