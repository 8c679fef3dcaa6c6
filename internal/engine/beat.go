package engine

import (
	"slices"
	"time"
)

// beat needs h.mu.
func (h *hub) beat() {
	for _, s := range h.sessions {
		if s.beatDue {
			s.beatDue = false
			s.beatAt = beatTime(s.reg.HeartbeatInterval)
			h.arm(s.beatAt)
			for st := range s.streams {
				st.push(Frame{Heartbeat: true, InFlight: len(s.leases)})
			}
			if n := h.notices(s); s.newest != nil && !slices.EqualFunc(n, s.noticed, sameNotice) {
				s.noticed = n
				if len(n) > 0 {
					s.newest.push(Frame{Notices: n})
				}
			}
		}
	}
}

// beatGrain gathers idle frames: each round of them goes through all sessions.
const beatGrain = 250 * time.Millisecond

// beatTime is when the next idle frame of a stream is due, at the latest after interval.
func beatTime(interval time.Duration) time.Time {
	t := time.Now().Add(interval)
	if interval > 4*beatGrain {
		t = t.Truncate(beatGrain)
	}
	return t
}

// notices needs h.mu: it says why handlers give a session nothing although it has room.
func (h *hub) notices(s *session) []Notice {
	var out []Notice
	if s.drained {
		for _, name := range s.reg.Handlers {
			out = append(out, Notice{Handler: name, Reason: "drained"})
		}
		return out
	}
	if s.gone || len(s.leases) >= s.reg.MaxInFlight {
		return nil
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

func sameNotice(a, b Notice) bool {
	return a.Handler == b.Handler && a.Reason == b.Reason && a.Circuit == b.Circuit && (a.Until == nil) == (b.Until == nil) && (a.Until == nil || a.Until.Equal(*b.Until))
}
