package engine

import (
	"container/heap"
	"slices"
	"time"
)

// beats are the sessions that are sent idle frames, in the order in which they are due: a heap.
type beats []*session

func (b beats) Len() int           { return len(b) }
func (b beats) Less(i, j int) bool { return b[i].beatAt.Before(b[j].beatAt) }

func (b beats) Swap(i, j int) {
	b[i], b[j] = b[j], b[i]
	b[i].beatPlace, b[j].beatPlace = i+1, j+1
}

// Push is container/heap's.
func (b *beats) Push(s any) {
	*b = append(*b, s.(*session)) //nolint:forcetypeassert // nothing else is pushed
	(*b)[len(*b)-1].beatPlace = len(*b)
}

// Pop is container/heap's.
func (b *beats) Pop() any {
	s := (*b)[len(*b)-1]
	s.beatPlace = 0
	(*b)[len(*b)-1] = nil
	*b = (*b)[:len(*b)-1]
	return s
}

// beatLater needs h.mu: the session's next idle frame is due an interval from now.
func (h *hub) beatLater(s *session) {
	s.beatAt = beatTime(s.reg.HeartbeatInterval)
	if s.beatPlace == 0 {
		heap.Push(&h.beats, s)
	} else {
		heap.Fix(&h.beats, s.beatPlace-1)
	}
	h.arm(h.beats[0].beatAt)
}

// beatNoMore needs h.mu.
func (h *hub) beatNoMore(s *session) {
	if s.beatPlace > 0 {
		heap.Remove(&h.beats, s.beatPlace-1)
	}
}

// beat needs h.mu: it sends the idle frames that are due.
func (h *hub) beat() {
	now := time.Now()
	for len(h.beats) > 0 && !h.beats[0].beatAt.After(now) {
		s := h.beats[0]
		h.beatLater(s)
		if h.scratch = h.notices(h.scratch[:0], s); s.newest != nil && !slices.EqualFunc(h.scratch, s.noticed, sameNotice) {
			s.noticed = slices.Clone(h.scratch)
			if len(s.noticed) > 0 {
				s.newest.push(Frame{Notices: s.noticed})
			}
		}
		// After the notices: whatever is pushed takes an idle frame that waits away.
		for st := range s.streams {
			st.beat(len(s.leases))
		}
	}
}

// beatGrain gathers idle frames, so that one waking of the server, and one write to a connection, is for many. Much more at once
// would want memory for all of them.
const beatGrain = 250 * time.Millisecond

// beatTime is when the next idle frame of a stream is due: an interval from now at the latest, and up to a grain earlier.
func beatTime(interval time.Duration) time.Time {
	t := time.Now().Add(interval)
	if interval > 4*beatGrain {
		t = t.Add(-time.Duration(t.UnixNano() % int64(beatGrain)))
	}
	return t
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
