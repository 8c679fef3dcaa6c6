package engine

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// A server keeps its sessions by saying that it is alive itself. Of moves and drains others tell it. Words get lost, so it also looks
// what became of its sessions, at some of them each time, and each one's turn comes. It may come late: a claim is fenced by the
// session's row, so that what is not known here yet makes it bring less, never too much.

const (
	keepEvery     = 5 * time.Second
	keepEveryDeaf = time.Second
	// sessionsALook bounds what a look costs, whatever their number: ten thousand have had their turn after 50 s, or after 10 s
	// while no words of other servers are heard.
	sessionsALook = 1000
	// openTimeout bounds what a stream waits for the database when it opens. It is shorter than SessionLiveFor, see closeStrays.
	openTimeout = 10 * time.Second
	// doubtFor is how long strays are looked for after something failed: a transaction may commit after its server gave it up.
	doubtFor = time.Minute
)

// sessions are some of this server's, with the epoch that each stood in and the hub that has it.
type sessions struct {
	ids, epochs []int32
	hubs        []*hub
}

// someSessions chooses those that are looked at next, and takes leave of those that no poll has used for SessionLiveFor. Up to a
// half are such as look full, the others those whose last look is longest ago: those that were just opened come first. It is the
// sweep's alone.
func (e *Engine) someSessions() (some sessions) {
	e.look++
	all := e.candidates[:0] // in the memory of the last time
	for _, h := range e.everyHub() {
		var quiet []*session
		all, quiet = h.candidates(all)
		for _, s := range quiet {
			e.workers.Go(func() { h.leave(s) }) // leases end meanwhile
		}
	}
	if len(all) > sessionsALook {
		slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.look, b.look) })
	}
	take := func(most int, wanted func(*candidate) bool) {
		for i := range all {
			c := &all[i]
			if len(some.ids) == most {
				return
			}
			if c.look < e.look && wanted(c) {
				c.look, c.s.look, c.s.lookEpoch = e.look, e.look, c.epoch
				some.ids, some.epochs, some.hubs = append(some.ids, c.s.id), append(some.epochs, c.epoch), append(some.hubs, c.h)
			}
		}
	}
	take(sessionsALook/2, func(c *candidate) bool { return c.full })
	take(sessionsALook, func(*candidate) bool { return true })
	clear(all) // hubs and sessions may go
	e.candidates = all
	return some
}

// candidate is a session that may be looked at.
type candidate struct {
	h     *hub
	s     *session
	epoch int32
	look  int64 // the last one in this epoch; 0: none
	full  bool
}

// candidates adds the sessions that are used. quiet are those that nothing has used for SessionLiveFor.
func (h *hub) candidates(used []candidate) (_ []candidate, quiet []*session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	used = slices.Grow(used, len(h.sessions))
	for _, s := range h.sessions {
		if s.quiet() {
			quiet = append(quiet, s)
		} else {
			c := candidate{h: h, s: s, epoch: s.epoch, full: s.looksFull()}
			if s.lookEpoch == s.epoch {
				c.look = s.look
			}
			used = append(used, c)
		}
	}
	return used, quiet
}

// quiet needs the hub's mutex: neither stream nor poll has used the session for SessionLiveFor.
func (s *session) quiet() bool {
	return s.newest == nil && len(s.streams) == 0 && len(s.polls) == 0 && s.opening == 0 && time.Since(s.quietAt) > store.SessionLiveFor
}

// looksFull needs the hub's mutex. A session may have room whose reports landed on other servers and were not heard of.
func (s *session) looksFull() bool {
	if len(s.leases)+s.reserved == 0 {
		return false // nothing further is read of the many that rest
	}
	if len(s.leases) >= s.reg.MaxInFlight {
		return true
	}
	for name, limit := range s.reg.HandlerLimits {
		if n := s.byHandler[name]; n > 0 && n >= limit {
			return true
		}
	}
	return false
}

// heedKept heeds what became of sessions: it finds those that moved, and frees capacity whose reports landed on other servers and
// were not heard of.
func (e *Engine) heedKept(ctx context.Context, asked sessions, kept []store.Kept) {
	byHub := map[*hub]map[int32]int32{}
	for i, h := range asked.hubs {
		if byHub[h] == nil {
			byHub[h] = map[int32]int32{}
		}
		byHub[h][asked.ids[i]] = asked.epochs[i]
	}
	for h, epochs := range byHub {
		full := h.heedKept(kept, epochs)
		if len(full) == 0 {
			continue
		}
		// What memory holds now and the database does not was concluded elsewhere.
		before := h.leasesOf(full)
		within, cancel := context.WithTimeout(ctx, flushTimeout)
		stands, err := e.store.LeaseTokens(within, full)
		cancel()
		if err != nil {
			e.sweepFailed(ctx, "reading the leases of full sessions", err)
			continue
		}
		h.reconcile(before, stands)
	}
}

// heedKept acts on what became of sessions that stood in the epochs asked about, and lists those that look full. A session
// that was opened here anew meanwhile is in a later epoch.
func (h *hub) heedKept(kept []store.Kept, asked map[int32]int32) (full []int32) {
	var moved []int32
	defer func() {
		for _, id := range moved {
			h.movedAway(id, asked[id]+1)
		}
	}()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range kept {
		s := h.sessions[k.SessionID]
		if epoch, ours := asked[k.SessionID]; s == nil || !ours || s.epoch != epoch {
			continue
		}
		s.drained = s.drained || k.Drained // for good, in this epoch
		switch {
		case k.Superseded:
			s.gone = true
			for st := range s.streams {
				st.end(task.Refuse(task.SessionTakenOver, "a later instance has this worker_id").With("worker_id", s.reg.WorkerID))
			}
		case !k.Kept:
			// Another server has it: the worker opened a newer stream there.
			moved = append(moved, s.id)
		case s.looksFull():
			full = append(full, s.id)
		}
	}
	return full
}

func (h *hub) leasesOf(ids []int32) map[int32][][16]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := make(map[int32][][16]byte, len(ids))
	for _, id := range ids {
		if s := h.sessions[id]; s != nil {
			for nonce := range s.leases {
				held[id] = append(held[id], nonce)
			}
		}
	}
	return held
}

func (h *hub) reconcile(before map[int32][][16]byte, stands map[[16]byte]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, nonces := range before {
		for _, nonce := range nonces {
			if s := h.sessions[id]; s != nil && !stands[nonce] {
				s.forget(nonce)
			}
		}
	}
	h.work.Broadcast()
}

// doubt has strays looked for: a session may be open in the database as this server's that it does not have. Its close failed,
// or its opening did after it had committed.
func (e *Engine) doubt() { e.doubtUntil.Store(time.Now().Add(doubtFor).UnixNano()) }

// closeStrays closes what is open in the database as this server's and is not here, beside the sweep: it would be alive as long as
// the server is. What was opened less than SessionLiveFor ago may be on its way here; what is older is not, since openTimeout is less.
func (e *Engine) closeStrays(ctx context.Context) {
	if time.Now().UnixNano() > e.doubtUntil.Load() || !e.closing.CompareAndSwap(false, true) {
		return
	}
	e.workers.Go(func() {
		defer e.closing.Store(false)
		ctx, cancel := context.WithTimeout(ctx, flushTimeout)
		defer cancel()
		open, err := e.store.SessionsOf(ctx, e.conf.ReplicaID)
		for _, o := range open {
			if h := e.findHub(o.NamespaceID); err == nil && (h == nil || !h.has(o)) {
				err = e.store.CloseSession(ctx, o.SessionID, o.Epoch)
			}
		}
		if err != nil {
			e.sweepFailed(ctx, "closing sessions that are not here", err)
			e.doubt()
		}
	})
}

// has tells whether the session is here. One that was opened anew since is in a later epoch.
func (h *hub) has(o store.OpenedSession) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[o.SessionID]
	return s != nil && s.epoch >= o.Epoch
}

// mayHaveOpened has strays looked for after err, unless the session was refused.
func (e *Engine) mayHaveOpened(err error) {
	var refused *task.Error
	if err != nil && !errors.As(err, &refused) {
		e.doubt()
	}
}
