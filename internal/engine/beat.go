package engine

import (
	"slices"
	"time"
)

// beats are a namespace's sessions that are sent idle frames, by the instants at which theirs are due. The instants lie on beatGrain
// (intervals are seconds) and are few, so nothing of what a frame costs grows with the number of sessions.
type beats struct {
	born time.Time // instants are counted from it: by a clock that nobody sets
	due  map[time.Duration][]*session
	next time.Duration // none is due before it

	spare []*session // what the sessions of an instant stood in once: it serves the next one
}

func newBeats() beats {
	return beats{born: time.Now(), due: map[time.Duration][]*session{}}
}

// nextAt is when idle frames may be due next, if ever.
func (b *beats) nextAt() (at time.Time, ok bool) {
	return b.born.Add(b.next), len(b.due) > 0
}

// add has the session's next idle frame due at an instant, and not at the one before.
func (b *beats) add(s *session, at time.Duration) {
	b.remove(s)
	if at < b.next || len(b.due) == 0 {
		b.next = at
	}
	those, ok := b.due[at]
	if !ok {
		those, b.spare = b.spare, nil
	}
	those = append(those, s)
	b.due[at], s.beatAt, s.beatPlace = those, at, len(those)
}

func (b *beats) remove(s *session) {
	if s.beatPlace == 0 {
		return
	}
	those := b.due[s.beatAt]
	last := len(those) - 1
	those[s.beatPlace-1], those[last].beatPlace = those[last], s.beatPlace
	those[last] = nil
	s.beatPlace = 0
	if last > 0 {
		b.due[s.beatAt] = those[:last]
	} else {
		delete(b.due, s.beatAt)
	}
}

// take takes the sessions off whose idle frames are due by now. Give them back when they are seen to.
func (b *beats) take() (now time.Duration, those []*session) {
	now = time.Since(b.born)
	if len(b.due) == 0 || b.next > now {
		return now, nil
	}
	first := true
	for at, some := range b.due {
		if at <= now {
			if those == nil {
				those = some
			} else {
				those = append(those, some...)
			}
			delete(b.due, at)
		} else if first || at < b.next {
			b.next, first = at, false
		}
	}
	for _, s := range those {
		s.beatPlace = 0
	}
	return now, those
}

// give gives back what take gave.
func (b *beats) give(those []*session) {
	clear(those)
	b.spare = those[:0]
}

// beatGrain is what the instants at which idle frames are due lie apart: one waking of the server is for many.
const beatGrain = 250 * time.Millisecond

// beatTime is when the next idle frame of a stream is due: an interval from now at the latest.
//
// Each connection has one instant in an interval, and all of its streams keep to it: their frames are one write, and one read of
// the worker's. Connections have instants of their own, since the frames of all streams at once would want memory for them all.
func beatTime(now, interval time.Duration, connection uint64) time.Duration {
	own := time.Duration(0) // where the connection's instant lies in an interval
	if grains := interval / beatGrain; grains > 0 {
		interval = grains * beatGrain
		own = time.Duration(connection%uint64(grains)) * beatGrain //nolint:gosec // fewer than grains
	}
	return (now + interval - own).Truncate(interval) + own
}

// beatLater needs h.mu: the session's first idle frame is due an interval from now, up to a grain earlier. The others come when those
// of its connection do.
func (h *hub) beatLater(s *session) {
	at := time.Since(h.beats.born) + s.reg.HeartbeatInterval
	if s.reg.HeartbeatInterval > beatGrain {
		at = at.Truncate(beatGrain)
	}
	h.beats.add(s, at)
	h.armBeats()
}

// armBeats needs h.mu.
func (h *hub) armBeats() {
	if at, ok := h.beats.nextAt(); ok {
		h.arm(at)
	}
}

// beat needs h.mu: it has the idle frames sent that are due.
func (h *hub) beat() {
	now, those := h.beats.take()
	if len(those) == 0 {
		h.armBeats() // the one that would have been due may have gone
		return
	}
	together := map[uint64][]*Stream{} // by connection
	for _, s := range those {
		h.beats.add(s, beatTime(now, s.reg.HeartbeatInterval, s.reg.Connection))
		st := s.newest
		if st == nil {
			continue // its streams have ended
		}
		if h.scratch = h.notices(h.scratch[:0], s); !slices.EqualFunc(h.scratch, s.noticed, sameNotice) {
			s.noticed = slices.Clone(h.scratch)
			if len(s.noticed) > 0 {
				st.put(Frame{Notices: s.noticed})
			}
		}
		// After the notices: whatever is put takes an idle frame that waits away.
		if st.putBeat(len(s.leases)) {
			st.signal() // whoever was to send the last one is held up
		} else {
			together[s.reg.Connection] = append(together[s.reg.Connection], st)
		}
	}
	h.beats.give(those)
	h.armBeats()
	for _, streams := range together {
		if len(streams) == 1 {
			streams[0].signal()
		} else {
			go sendTogether(streams)
		}
	}
}

// notices needs h.mu: it adds to out why handlers give a session nothing although it has room.
func (h *hub) notices(out []Notice, s *session) []Notice {
	if s.drained {
		for _, name := range s.reg.Handlers {
			out = append(out, Notice{Handler: name, Reason: "drained"})
		}
		return out
	}
	if s.gone || len(s.leases) >= s.reg.MaxInFlight {
		return out
	}
	for _, name := range s.reg.Handlers {
		if until, ok := h.paused(name); ok {
			out = append(out, Notice{Handler: name, Reason: "paused", Until: until})
			continue
		}
		if limit, ok := s.reg.HandlerLimits[name]; ok && s.byHandler[name] >= limit {
			out = append(out, Notice{Handler: name, Reason: "handler_limit"})
			continue
		}
		n := Notice{Handler: name, Reason: "nothing_ready"}
		hot := false
		for _, x := range h.handler(name).lanes {
			if kept, ok := h.keptBack(s, x); ok {
				// Of all reasons it is the one that somebody may want to act on.
				n, hot = kept, false
				break
			}
			hot = hot || x.hot || x.claiming
			if !x.dueAt.IsZero() && (n.Until == nil || h.e.clock.database(x.dueAt).Before(*n.Until)) {
				due := h.e.clock.database(x.dueAt)
				n.Reason, n.Until = "not_due", &due
			}
		}
		if !hot {
			out = append(out, n)
		}
	}
	return out
}

// untilGrain is what two ends of a wait may differ by and be the same: they are told by an estimate of the database's clock.
const untilGrain = time.Second

// sameNotice tells whether b says what a said.
func sameNotice(a, b Notice) bool {
	return a.Handler == b.Handler && a.Reason == b.Reason && a.Circuit == b.Circuit && (a.Until == nil) == (b.Until == nil) &&
		(a.Until == nil || a.Until.Sub(*b.Until).Abs() < untilGrain)
}
