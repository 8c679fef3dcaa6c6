package engine

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// Registration is how a worker introduces itself when it opens a stream or polls.
type Registration struct {
	Namespace string
	store.Session
	HandlerLimits     map[string]int // a handler's own max_in_flight; absent: none
	HeartbeatInterval time.Duration  // of idle frames; 0: 15 s
	Connection        uint64         // the same for streams that come by one connection: their idle frames are sent together
	DeliveryTimeout   time.Duration  // 0: 5 s
	Beats             bool           // the worker sends heartbeats for its leases
	Held              []task.Token   // leases it still runs after a reconnect
}

// Defaults of a Registration.
const (
	DefaultHeartbeatInterval = 15 * time.Second
	DefaultDeliveryTimeout   = 5 * time.Second
)

func (r *Registration) fillIn() {
	if r.HeartbeatInterval == 0 {
		r.HeartbeatInterval = DefaultHeartbeatInterval
	}
	if r.DeliveryTimeout == 0 {
		r.DeliveryTimeout = DefaultDeliveryTimeout
	}
}

// session is a worker process whose leases this server grants. The hub's mutex guards it.
//
// leases may hold more than the database does (a report landed elsewhere, and word of it is on its way), never less: so
// memory under-grants at worst. What the database then does not know is found by reconcile.
type session struct {
	// First what is read of each session every few seconds, in one line of the processor's cache: very many sessions that rest are
	// in none of its caches.
	id, epoch int32
	newest    *Stream             // gets the frames
	leases    map[[16]byte]string // nonce → handler
	reserved  int                 // slots of claims under way
	look      int64               // the number of the last look at it, and the epoch that it stood in then: both are the sweep's alone
	lookEpoch int32
	beatPlace int           // where it stands among those whose idle frames are due at beatAt; 0: nowhere
	beatAt    time.Duration // see beats

	reg       Registration
	noticed   []Notice       // the last ones sent
	byHandler map[string]int // leases plus reservations
	leaving   int            // leases that a claim which is being planned may count as gone, see hub.anticipate
	streams   map[*Stream]bool
	opening   int // calls that have found or renewed it, and are about to attach their stream or poll
	polls     map[*poll]bool
	drained   bool
	gone      bool      // another server has it: nothing is granted here
	quietAt   time.Time // since when it has neither stream nor poll
}

// room is how many more leases of a handler the session may be granted now.
func (s *session) room(handler string) int {
	if s.drained || s.gone {
		return 0
	}
	room := s.reg.MaxInFlight - (len(s.leases) - s.leaving) - s.reserved
	if limit, ok := s.reg.HandlerLimits[handler]; ok {
		room = min(room, limit-s.byHandler[handler])
	}
	if s.newest == nil {
		wanted := 0
		for p := range s.polls {
			wanted += p.wanted()
		}
		room = min(room, wanted-s.reserved)
	}
	return max(room, 0)
}

func (s *session) reserve(handler string) {
	s.reserved++
	s.count(handler)
}

// count counts a lease or reservation. Like the other maps of a session this one is made when it is needed: most sessions of very
// many rest, and looking into a map that is not there costs nothing.
func (s *session) count(handler string) {
	if s.byHandler == nil {
		s.byHandler = map[string]int{}
	}
	s.byHandler[handler]++
}

func (s *session) unreserve(handler string) {
	s.reserved--
	s.byHandler[handler]--
}

// hold turns a reservation into a lease. A take-over that read the leases meanwhile may have counted it already.
func (s *session) hold(nonce [16]byte, handler string) {
	s.unreserve(handler)
	s.keep(nonce, handler)
}

// keep counts a lease, once.
func (s *session) keep(nonce [16]byte, handler string) {
	if _, known := s.leases[nonce]; !known {
		if s.leases == nil {
			s.leases = map[[16]byte]string{}
		}
		s.leases[nonce] = handler
		s.count(handler)
	}
}

// forget drops a lease that the database no longer has.
func (s *session) forget(nonce [16]byte) {
	if handler, ok := s.leases[nonce]; ok {
		delete(s.leases, nonce)
		s.byHandler[handler]--
	}
}

// takenOver is why a stream gets no frames any more: its worker's process has opened a newer one, here or elsewhere.
func (s *session) takenOver() error {
	return task.Refuse(task.SessionTakenOver, "a newer stream of this instance gets the frames").
		With("worker_id", s.reg.WorkerID).With("instance_id", s.reg.InstanceID)
}

// endStreams ends every stream of a session that a newer one has taken over.
func (s *session) endStreams() {
	for st := range s.streams {
		st.end(s.takenOver())
	}
}

// Opened is what a worker is told when its stream opens.
type Opened struct {
	HeartbeatInterval time.Duration
	DeliveryTimeout   time.Duration
	Lost              []task.Token // of the leases it said it holds
	InFlight          int          // leases the server knows it to hold
	Notices           []Notice     // of a poll that brought nothing: why
}

// openSession makes this server the one that grants to the session and reads what it holds. A poll of a session that is
// here already and unchanged needs no database.
func (e *Engine) openSession(ctx context.Context, r *Registration, polling bool) (h *hub, s *session, o Opened, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	r.fillIn()
	if r.Namespace == "" {
		r.Namespace = DefaultNamespace
	}
	namespaceID, err := e.namespace(ctx, r.Namespace)
	if err != nil {
		return nil, nil, o, err
	}
	h = e.hub(namespaceID)
	// Before the session is taken over from a server where it may be served well.
	h.mu.Lock()
	err = h.admit(polling)
	h.mu.Unlock()
	if err != nil {
		return nil, nil, o, err
	}
	if polling {
		if s, held := h.sameSession(r); s != nil {
			o = Opened{HeartbeatInterval: r.HeartbeatInterval, DeliveryTimeout: r.DeliveryTimeout, InFlight: held}
			if o.Lost, err = e.lost(ctx, namespaceID, s.id, r.Held); err != nil {
				h.mu.Lock()
				s.opening--
				h.mu.Unlock()
			}
			return h, s, o, err
		}
	}
	// Claims that name no pauses would find no session where there was ever one. Later ones are told or looked for.
	if err := h.readPauses(ctx, func(p *pauses) bool { return !p.known }); err != nil {
		return nil, nil, o, err
	}
	defer func() { e.mayHaveOpened(err) }()
	began := time.Now()
	id, epoch, at, err := e.store.OpenSession(ctx, namespaceID, e.conf.ReplicaID, r.Session)
	if err != nil {
		return nil, nil, o, err
	}
	e.clock.learn(began, at)
	// Read after the take-over committed: from then on only this server grants to the session.
	leases, err := e.sessionLeases(ctx, namespaceID, id)
	if err != nil {
		return nil, nil, o, err
	}
	probed, err := e.store.ProbeLanes(ctx, namespaceID, h.lookInto(r.Handlers))
	if err != nil {
		return nil, nil, o, err
	}
	e.notifier.moved(id, epoch)
	o = Opened{HeartbeatInterval: r.HeartbeatInterval, DeliveryTimeout: r.DeliveryTimeout}
	var undelivered []store.HeldLease
	s, undelivered = h.adopt(id, epoch, r, leases, polling, &o)
	h.probed(probed)
	if len(undelivered) > 0 {
		// The worker says what it holds, so what was sent and is not among it never arrived.
		e.giveBack(namespaceID, undelivered, task.Undelivered)
	}
	return h, s, o, nil
}

// sessionLeases reads what a session holds.
func (e *Engine) sessionLeases(ctx context.Context, namespaceID, sessionID int32) ([]store.SessionLease, error) {
	leases, err := e.store.SessionLeases(ctx, namespaceID, sessionID)
	for i := range leases {
		l, err := e.lane(ctx, leases[i].LaneID)
		if err != nil {
			return nil, err
		}
		leases[i].Handler = l.Handler
	}
	return leases, err
}

// lost are those of the leases that a worker says it holds which it does not.
func (e *Engine) lost(ctx context.Context, namespaceID, sessionID int32, held []task.Token) (lost []task.Token, err error) {
	if len(held) == 0 {
		return nil, nil
	}
	leases, err := e.store.SessionLeases(ctx, namespaceID, sessionID)
	if err != nil {
		return nil, err
	}
	stands := make(map[[16]byte]bool, len(leases))
	for _, l := range leases {
		stands[l.Token.Nonce] = true
	}
	for _, t := range held {
		if !stands[t.Nonce] {
			lost = append(lost, t)
		}
	}
	return lost, nil
}

// sameSession finds a session that a poll may use as it stands, and how many leases are counted for it. The session stays until the
// poll has attached.
func (h *hub) sameSession(r *Registration) (s *session, held int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		if s.reg.WorkerID == r.WorkerID && s.reg.InstanceID == r.InstanceID && !s.gone && !s.drained &&
			s.reg.MaxInFlight == r.MaxInFlight && slices.Equal(s.reg.Handlers, r.Handlers) &&
			maps.Equal(s.reg.HandlerLimits, r.HandlerLimits) && s.reg.DeliveryTimeout == r.DeliveryTimeout && s.reg.Beats == r.Beats {
			s.opening++
			return s, len(s.leases)
		}
	}
	return nil, 0
}

// adopt installs or renews the session, which stays until its caller has attached. For a stream it also tells the leases
// that the worker lost, and those it was sent and does not hold.
func (h *hub) adopt(id, epoch int32, r *Registration, leases []store.SessionLease, polling bool, o *Opened) (*session, []store.HeldLease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil {
		s = &session{id: id, streams: map[*Stream]bool{}}
		h.sessions[id] = s
	} else {
		h.unsubscribe(s)
	}
	s.opening++
	if epoch < s.epoch {
		epoch = s.epoch // a later call of the same worker was quicker to get here
	}
	if s.gone {
		// What another server granted and concluded meanwhile is not known here.
		for nonce := range s.leases {
			s.forget(nonce)
		}
	}
	s.epoch, s.reg, s.drained, s.gone = epoch, *r, false, false
	s.reg.Handlers = make([]string, len(r.Handlers))
	for i, name := range r.Handlers {
		x := h.handler(name)
		s.reg.Handlers[i] = x.name // all sessions share the one string
		x.sessions = append(x.sessions, s)
	}
	stands := make(map[[16]byte]bool, len(leases))
	for _, l := range leases {
		stands[l.Token.Nonce] = true
		s.keep(l.Token.Nonce, l.Handler)
	}
	o.InFlight = len(leases)
	held := make(map[[16]byte]bool, len(r.Held))
	for _, t := range r.Held {
		held[t.Nonce] = true
		if !stands[t.Nonce] {
			o.Lost = append(o.Lost, t)
		}
	}
	if polling {
		return s, nil
	}
	var undelivered []store.HeldLease
	for _, l := range leases {
		if !l.Confirmed && !held[l.Token.Nonce] {
			undelivered = append(undelivered, store.HeldLease{Step: l.Token.Step, Nonce: l.Token.Nonce, LaneID: l.LaneID})
		}
	}
	return s, undelivered
}

// unsubscribe needs h.mu.
func (h *hub) unsubscribe(s *session) {
	for _, name := range s.reg.Handlers {
		x := h.handlers[name]
		for i, other := range x.sessions {
			if other == s {
				x.sessions = append(x.sessions[:i], x.sessions[i+1:]...)
				break
			}
		}
	}
}

// movedAway heeds that another server has had a session since epoch; it may have come back here since. Claims of this server
// found no session, and left their lanes with what stands in them: others look again.
func (h *hub) movedAway(id, epoch int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[id]
	if s == nil || s.gone || s.epoch >= epoch {
		return
	}
	s.gone = true
	s.endStreams()
	for _, name := range s.reg.Handlers {
		for _, x := range h.handler(name).lanes {
			x.heat()
		}
	}
	h.work.Broadcast()
}

// probed heeds what a look into lanes found.
func (h *hub) probed(probes []store.Probed) {
	for _, p := range probes {
		h.e.learnLane(p.Lane)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range probes {
		x := h.lane(p.Lane)
		if g := x.gate; g != nil && g.bounded && (g.generation != p.CircuitGeneration || g.room == 0 && g.opensAt.IsZero()) {
			g.doubt() // word of it was lost
		}
		if p.Seq != nil {
			x.rewind(*p.Seq)
		}
		if p.Returned != nil {
			x.rewind(*p.Returned)
		}
		if p.DueAt != nil {
			h.due(x, h.e.clock.local(*p.DueAt))
		}
	}
	h.work.Broadcast()
}

// leave takes a session off that has neither stream nor poll any more.
func (h *hub) leave(s *session) {
	h.mu.Lock()
	if len(s.streams) > 0 || len(s.polls) > 0 || s.opening > 0 || h.sessions[s.id] != s {
		h.mu.Unlock()
		return
	}
	h.unsubscribe(s)
	delete(h.sessions, s.id)
	gone, epoch := s.gone, s.epoch
	h.mu.Unlock()
	if gone {
		return
	}
	// Under the engine's life: the worker's own call is over. A crash before this is met by SessionLiveFor, and a failure by
	// closeStrays.
	ctx, cancel := context.WithTimeout(h.e.background, 5*time.Second)
	defer cancel()
	if err := h.e.store.CloseSession(ctx, s.id, epoch); err != nil {
		h.e.log.WarnContext(ctx, "closing a session failed", "session_id", s.id, "error", err)
		h.e.doubt()
	}
}
