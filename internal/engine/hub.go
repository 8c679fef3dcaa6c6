package engine

import (
	"context"
	"sync"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// flushers is how many transactions of one hub may be under way at once. A second one begins beside a first that carries
// little, so that nobody waits where there is little to do, or that takes long, as where the disk is slow or a row is locked:
// while one waits, the other one's statements run. So it does once plenty of reports wait: a transaction of so many costs a step
// hardly more than a larger one. Otherwise what gathers waits for the first to return, since one transaction of twice the size
// costs less than two.
const (
	flushers = 2
	little   = 8 // tasks and reports
	long     = 10 * time.Millisecond
	plenty   = 200
)

// hub is one namespace on this server.
type hub struct {
	e  *Engine
	id int32

	mu       sync.Mutex
	work     *sync.Cond // something to flush, or the end
	draining bool       // no grants any more
	closed   bool

	horizon  horizon
	lookedAt time.Time

	sessions map[int32]*session
	beats    beats
	scratch  []Notice // of beat, for a while
	lanes    map[int32]*lane
	handlers map[string]*handler
	gates    map[int32]*gate // by circuit
	pauses   pauses
	plans    int        // claims planned so far
	ring     []*handler // round-robin over handlers
	ringAt   int
	// claimRoom is how many steps the next claim has room for.
	claimRoom int

	reports []*pendingReport
	submits []*pendingSubmit
	running map[*flush]bool // under way
	large   chan struct{}   // a place for each large submit under way
	streams int
	polls   int // that wait

	timer   *time.Timer // fires at timerAt: lanes fall due, sweeps and stream heartbeats
	timerAt time.Time
	pause   time.Time // no claim before it: the database was in trouble
}

// lane is what this server knows of a lane that one of its sessions subscribes to. All of it is hints.
type lane struct {
	store.Lane
	cursor   int64 // ready rows up to it were seen taken; a wake behind it moves it back
	hot      bool  // a claim may find something
	claiming bool  // a claim is under way: another one of this server would only skip its rows
	again    bool  // woken while claiming
	wokenAt  int64 // the lowest seq woken while claiming; 0: none
	low      int64 // no row stands up to it, and none will but by coming back from a dispatch
	clear    int64 // the same of the last look, see hub.looked
	full     bool  // the next claim looks from low
	unswept  bool  // claimed from since the last full look
	sweepAt  time.Time
	dueAt    time.Time // earliest due_at known, by this machine's clock; zero: none known
	credit   int       // smooth weighted round-robin within the handler
	gate     *gate     // nil: no circuit
	skipped  int       // the plan in which no session was found for it
}

// handler groups the lanes and sessions of one handler name.
type handler struct {
	name     string
	lanes    []*lane
	sessions []*session
	next     int // round-robin over sessions
}

// weights of the priorities 0 … 3: the share of dispatches while all of them have work.
var weights = [4]int{8, 4, 2, 1}

// fullLookEvery bounds how long a row that was committed behind the cursor, and whose wake was lost, stays unseen in a
// lane that is in use. An idle lane costs nothing: the sweep looks into it once a second.
const fullLookEvery = 250 * time.Millisecond

func newHub(e *Engine, id int32, draining bool) *hub {
	h := &hub{
		e: e, id: id, draining: draining, sessions: map[int32]*session{}, lanes: map[int32]*lane{}, handlers: map[string]*handler{}, gates: map[int32]*gate{}, claimRoom: minClaim,
		beats:   newBeats(),
		running: map[*flush]bool{}, large: make(chan struct{}, maxLargeSubmits),
	}
	h.work = sync.NewCond(&h.mu)
	for range flushers {
		e.workers.Go(h.flushLoop)
	}
	return h
}

// shut ends the hub's loops; what waits is refused.
func (h *hub) shut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.timer != nil {
		h.timer.Stop()
	}
	h.work.Broadcast()
}

func (h *hub) drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	for _, s := range h.sessions {
		for st := range s.streams {
			st.Drain()
		}
		for p := range s.polls {
			p.finish()
		}
	}
}

func (h *hub) closeStreams() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		for st := range s.streams {
			st.end(nil)
		}
	}
}

// handler needs h.mu.
func (h *hub) handler(name string) *handler {
	x := h.handlers[name]
	if x == nil {
		x = &handler{name: name}
		h.handlers[name] = x
		h.ring = append(h.ring, x)
	}
	return x
}

// lane needs h.mu. A new one is hot: nobody has looked into it.
func (h *hub) lane(l store.Lane) *lane {
	x := h.lanes[l.ID]
	if x == nil {
		x = &lane{Lane: l, hot: true, full: true}
		h.lanes[l.ID] = x
		if l.CircuitID != 0 {
			x.gate = h.gate(l.CircuitID)
			x.gate.lanes = append(x.gate.lanes, x)
		}
		hd := h.handler(l.Handler)
		hd.lanes = append(hd.lanes, x)
	}
	return x
}

// woken heeds a wake: its lane holds something new.
func (h *hub) woken(l store.Lane, w store.Wake) {
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.lane(l)
	if w.Seq > 0 {
		x.rewind(w.Seq)
	}
	if w.DueAt != nil {
		h.due(x, h.e.clock.local(*w.DueAt))
	}
	if x.hot {
		h.work.Signal()
	}
}

// rewind heeds that a row stands at seq. A claim under way may have passed it by, and must not leave the cursor behind it.
func (x *lane) rewind(seq int64) {
	x.cursor = min(x.cursor, seq-1)
	if x.claiming && (x.wokenAt == 0 || seq < x.wokenAt) {
		x.wokenAt = seq
	}
	x.heat()
}

func (x *lane) heat() {
	x.hot = true
	if x.claiming {
		x.again = true
	}
}

// due needs h.mu: something in the lane is due at t.
func (h *hub) due(x *lane, t time.Time) {
	if !t.After(time.Now()) {
		x.heat()
		return
	}
	if x.dueAt.IsZero() || t.Before(x.dueAt) {
		x.dueAt = t
		h.arm(t)
	}
}

// arm needs h.mu: the timer fires at t at the latest.
func (h *hub) arm(t time.Time) {
	if h.closed || !h.timerAt.IsZero() && !t.Before(h.timerAt) {
		return
	}
	h.timerAt = t
	if h.timer == nil {
		h.timer = time.AfterFunc(time.Until(t), h.tick)
	} else {
		h.timer.Reset(time.Until(t))
	}
}

// tick is the timer's firing.
func (h *hub) tick() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	now := time.Now()
	h.timerAt = time.Time{}
	next := time.Time{}
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, x := range h.lanes {
		if !x.dueAt.IsZero() {
			if x.dueAt.After(now) {
				sooner(x.dueAt)
			} else {
				x.dueAt = time.Time{}
				x.heat()
			}
		}
		if x.unswept {
			if x.sweepAt.After(now) {
				sooner(x.sweepAt)
			} else {
				x.full = true
				x.heat()
			}
		}
	}
	for _, g := range h.gates {
		if g.opensAt.After(now) {
			sooner(g.opensAt)
		}
		for _, until := range g.barred {
			if until.After(now) {
				sooner(until)
			}
		}
	}
	h.endPauses(now, sooner)
	if at, ok := h.beats.nextAt(); ok && at.After(now) {
		sooner(at) // what is due a flush loop sends, see next
	}
	if !next.IsZero() {
		h.arm(next)
	}
	h.work.Broadcast()
}

// revoke tells a session of this server that a lease of its is gone.
func (h *hub) revoke(r store.Revoked) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[r.Token.SessionID]
	if s == nil {
		return
	}
	s.forget(r.Token.Nonce)
	if s.newest != nil {
		s.newest.push(Frame{Revoked: &r})
	}
	h.work.Signal()
}

// freed tells sessions of this server that leases of theirs were concluded.
func (h *hub) freed(tokens []task.Token) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range tokens {
		if s := h.sessions[t.SessionID]; s != nil {
			s.forget(t.Nonce)
		}
	}
	h.work.Signal()
}

// troubled keeps the hub from claiming for a moment after the database failed it.
func (h *hub) troubled(ctx context.Context, err error) {
	h.e.log.WarnContext(ctx, "flush failed", "namespace_id", h.id, "error", err)
	h.mu.Lock()
	h.pause = time.Now().Add(200 * time.Millisecond)
	h.arm(h.pause)
	h.mu.Unlock()
}
