package engine

import (
	"cmp"
	"slices"
	"time"

	"github.com/taskerhq/tasker/internal/store"
)

// plan needs h.mu: it chooses lanes and reserves capacity for a claim. With reports to record, every lane that has room
// is looked into, since the reports may wake steps of any; and what they conclude counts as free, for this transaction
// only: until it has committed, no other may grant in its place, and if it fails, nothing was concluded.
func (h *hub) plan(f *flush) {
	if h.draining || len(h.sessions) == 0 || time.Now().Before(h.pause) {
		return
	}
	h.expect(f.submits)
	restore := h.anticipate(f.reports)
	perLane := h.fillSlots(len(f.reports) > 0, max(h.claimRoom, min(2*max(len(f.submits), len(f.reports)), maxClaim)))
	restore()
	if len(perLane) == 0 {
		return
	}
	f.claim = &store.Claim{Pauses: h.pauses.revision}
	used := map[int32]*session{}
	for _, x := range perLane {
		l := claimedLane{lane: x.lane, first: len(f.slots), count: len(x.sessions), full: x.lane.full}
		want := store.LaneWant{LaneID: x.lane.ID, After: x.lane.cursor, Slots: make([]int32, len(x.sessions))}
		if l.full {
			want.After = x.lane.low
		}
		for i, s := range x.sessions {
			want.Slots[i] = s.id
			used[s.id] = s
		}
		x.lane.claiming, x.lane.again, x.lane.hot, x.lane.full = true, false, false, false
		f.slots = append(f.slots, x.sessions...)
		f.lanes = append(f.lanes, l)
		f.claim.Lanes = append(f.claim.Lanes, want)
	}
	f.wantCircuits()
	for _, s := range used {
		f.claim.Sessions = append(f.claim.Sessions, store.SessionFence{
			SessionID: s.id, Epoch: s.epoch, DeliveryTimeout: s.reg.DeliveryTimeout, Beats: s.reg.Beats,
		})
	}
	slices.SortFunc(f.claim.Sessions, func(a, b store.SessionFence) int { return cmp.Compare(a.SessionID, b.SessionID) })
}

// expect needs h.mu: tasks that are about to be stored put steps into the lanes of their roots.
func (h *hub) expect(submits []*pendingSubmit) {
	for _, p := range submits {
		if p.task.NotBefore != nil {
			continue
		}
		for i, id := range p.task.Lanes {
			if len(p.task.Steps[i].Parents) > 0 {
				continue
			}
			if x := h.lanes[id]; x != nil && !x.claiming {
				x.hot = true
			}
		}
	}
}

// anticipate needs h.mu: it counts the leases that reports will conclude as room, until restore is called. No two of the reports
// have one token.
func (h *hub) anticipate(reports []*pendingReport) (restore func()) {
	type limited struct {
		*session
		handler string
	}
	var (
		leaving []*session
		counted []limited
		last    *session // reports come by the session
	)
	for _, p := range reports {
		token := &p.report.Token
		if last == nil || last.id != token.SessionID {
			if last = h.sessions[token.SessionID]; last == nil {
				continue
			}
		}
		handler, ok := last.leases[token.Nonce]
		if !ok {
			continue
		}
		if last.leaving++; last.leaving == 1 {
			leaving = append(leaving, last)
		}
		if len(last.reg.HandlerLimits) > 0 {
			last.byHandler[handler]--
			counted = append(counted, limited{last, handler})
		}
	}
	return func() {
		for _, s := range leaving {
			s.leaving = 0
		}
		for _, l := range counted {
			l.byHandler[l.handler]++
		}
	}
}

// laneSlots is a lane and the sessions its next steps would go to.
type laneSlots struct {
	lane     *lane
	sessions []*session
}

// fillSlots needs h.mu. It hands out slots one by one: handlers take turns, a handler's lanes by their weights, and its
// sessions take turns, each as far as it has room. Lanes where something is known to stand come first, with most slots at
// least; with all, the others share as many again, for what reports are about to wake in them.
func (h *hub) fillSlots(all bool, most int) (out []laneSlots) {
	h.plans++
	now := time.Now()
	lets := func(x *lane) bool { return !x.claiming && x.skipped != h.plans && x.gate.lets(x, h.plans, now) }
	hot := func(x *lane) bool { return x.hot && lets(x) }
	out, slots := h.addSlots(nil, hot, min(most, maxClaim))
	if all {
		cold := func(x *lane) bool { return !x.hot && lets(x) }
		out, _ = h.addSlots(out, cold, min(most, maxClaim-slots))
	}
	return out
}

// addSlots adds up to most slots of the lanes that are wanted, and tells how many.
func (h *hub) addSlots(out []laneSlots, wanted func(*lane) bool, most int) (_ []laneSlots, slots int) {
	var (
		now   = time.Now()
		open  []*handler
		last  *handler
		lanes = map[*lane]int{}
	)
	for i := range h.ring {
		x := h.ring[(h.ringAt+i)%len(h.ring)]
		if _, paused := h.paused(x.name); !paused && len(x.sessions) > 0 && slices.ContainsFunc(x.lanes, wanted) {
			open = append(open, x)
			if len(open) == maxLanes {
				break
			}
		}
	}
	// Room for each of them, whoever has work.
	most = min(max(most, 4*len(open)), maxClaim)
	for slots < most && len(open) > 0 {
		for i := 0; i < len(open) && slots < most; {
			x := open[i]
			// The session first: a lane that is picked has had its turn, so there must be somebody to give it to.
			s := x.turn(nil)
			if s == nil {
				open = slices.Delete(open, i, i+1)
				continue
			}
			l := x.pick(wanted)
			if l == nil {
				open = slices.Delete(open, i, i+1)
				continue
			}
			if l.gate.bars(s, now) {
				if s = x.turn(func(s *session) bool { return l.gate.bars(s, now) }); s == nil {
					l.skipped = h.plans // whoever has room is barred from its circuit
					continue
				}
			}
			l.gate.take(l, h.plans)
			at, ok := lanes[l]
			if !ok {
				at = len(out)
				lanes[l] = at
				out = append(out, laneSlots{lane: l})
			}
			out[at].sessions = append(out[at].sessions, s)
			s.reserve(x.name)
			last = x
			slots++
			i++
		}
	}
	if last != nil {
		// Whoever had the last slot has the last turn next time.
		h.ringAt = (slices.Index(h.ring, last) + 1) % len(h.ring)
	}
	return out, slots
}

// turn gives the next session that has room for the handler and is not barred; nil bars none.
func (x *handler) turn(barred func(*session) bool) *session {
	for range x.sessions {
		s := x.sessions[x.next%len(x.sessions)]
		x.next++
		if s.room(x.name) > 0 && (barred == nil || !barred(s)) {
			return s
		}
	}
	return nil
}

// pick chooses among a handler's lanes by smooth weighted round-robin; nil when none is wanted any more.
func (x *handler) pick(ready func(*lane) bool) *lane {
	var best *lane
	total := 0
	for _, l := range x.lanes {
		if !ready(l) {
			continue
		}
		w := weights[l.Priority]
		l.credit += w
		total += w
		if best == nil || l.credit > best.credit {
			best = l
		}
	}
	if best != nil {
		best.credit -= total
	}
	return best
}
