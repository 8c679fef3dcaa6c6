// Package engine holds the use cases: one method a verb. It decides when to look; what is true and what happens is
// decided by the database (migrations/ and internal/store).
//
// The nouns: a hub is one namespace on this server. It batches submits, the reports of its workers and the claims for them into
// shared transactions: while one is under way the next one's work gathers, and it starts when the last one returns. A
// session is a worker process whose leases this server grants; a stream or a poll is how its steps reach it. A lane is
// hot while there may be something to claim in it. A gate is what this server knows of a shared circuit that lanes stand behind.
//
// Nothing that matters lives here only: kill the process and the leases run out, the sessions move, the sweeps of other
// servers find what is due. Hints (wakes, cursors, timers) may be lost or wrong; a slow look repairs.
package engine

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// Config is what a server tells its engine.
type Config struct {
	ReplicaID [16]byte // random, of this process
	Shard     int      // of the task ids made here
	Log       *slog.Logger
	// Listen opens a connection for LISTEN and one for NOTIFY; nil works without, slower.
	Listen func(ctx context.Context) (*pgx.Conn, error)
	// Side opens a connection of the login itself, to clean the live tables; nil leaves them to autovacuum.
	Side              func(ctx context.Context) (*pgx.Conn, error)
	VacuumAfter       int           // steps moved before the live tables are cleaned; 0: 20,000
	Retention         time.Duration // age of ended tasks that are dropped; 0 keeps them for ever
	PartitionInterval time.Duration // how often a fresh task partition is begun; 0: a week
	MaxWaiting        int           // calls that may wait for a batch; 0: 10,000
	MaxStreams        int           // open streams, waiting polls and watches, each, of a namespace; 0: 10,000
}

// Engine runs the verbs over one store.
type Engine struct {
	store *store.Store
	log   *slog.Logger
	conf  Config
	ids   *store.TaskIDs

	// background ends when Run does; what outlives its caller (a flush, a give-back) runs under it.
	background context.Context //nolint:containedctx // the engine's own life, not a caller's
	stop       context.CancelFunc
	workers    sync.WaitGroup

	mu       sync.Mutex
	hubs     map[int32]*hub
	spaces   map[string]int32     // namespace → id
	lanes    map[int32]store.Lane // by id
	laneIDs  map[store.Lane]int32 // by what it is, ID left 0
	watches  map[task.ID][]*Watch // who watches a task
	watching map[string]int       // watches by namespace
	// Circuits by name, and who watches them.
	circuitIDs     map[circuitKey]int32
	circuitWatches []*CircuitWatch
	revoked        *recent[[16]byte, task.RevokeReason]
	draining       bool

	waiting  atomic.Int64 // calls waiting for a batch
	notifier notifier
	settling chan task.ID
	// unsettled asks for a look for tasks that should have been settled.
	unsettled  chan struct{}
	clock      clock
	pulse      atomic.Pointer[time.Time]
	look       int64       // the number of the last look at sessions; the sweep's alone
	candidates []candidate // of it, empty
	closing    atomic.Bool // closeStrays is under way
	// doubtUntil is when strays are looked for no longer, in ns since 1970.
	doubtUntil atomic.Int64
	stats      counters
}

// New makes an engine; Run starts what works in the background. Verbs work without Run, except that nothing is swept.
func New(st *store.Store, c Config) *Engine {
	if c.MaxWaiting == 0 {
		c.MaxWaiting = 10_000
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 10_000
	}
	if c.VacuumAfter == 0 {
		c.VacuumAfter = vacuumAfter
	}
	if c.PartitionInterval == 0 {
		c.PartitionInterval = 7 * 24 * time.Hour
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	e := &Engine{
		store: st, log: c.Log, conf: c,
		ids:        &store.TaskIDs{Store: st, Shard: c.Shard},
		hubs:       map[int32]*hub{},
		spaces:     map[string]int32{},
		lanes:      map[int32]store.Lane{},
		laneIDs:    map[store.Lane]int32{},
		watches:    map[task.ID][]*Watch{},
		watching:   map[string]int{},
		circuitIDs: map[circuitKey]int32{},
		revoked:    newRecent[[16]byte, task.RevokeReason](10_000),
		settling:   make(chan task.ID, 4096),
		unsettled:  make(chan struct{}, 1),
	}
	e.background, e.stop = context.WithCancel(context.Background())
	e.notifier.e = e
	e.notifier.wake = make(chan struct{}, 1)
	return e
}

// Run sweeps, listens and retires until ctx ends. It returns when everything it started has ended.
func (e *Engine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.sweepLoop(ctx) })
	g.Go(func() error { return e.settleLoop(ctx) })
	g.Go(func() error { return e.unsettledLoop(ctx) })
	g.Go(func() error { return e.retentionLoop(ctx) })
	if e.conf.Side != nil {
		g.Go(func() error { return e.vacuumLoop(ctx) })
	}
	if e.conf.Listen != nil {
		g.Go(func() error { return e.listenLoop(ctx) })
		g.Go(func() error { return e.notifyLoop(ctx) })
	}
	err := g.Wait()
	for _, h := range e.everyHub() {
		h.shut()
	}
	// What is under way is let finish: a commit is never cancelled. Only a database that does not answer is given up on.
	patience := time.AfterFunc(shutPatience, e.stop)
	e.workers.Wait()
	patience.Stop()
	e.stop()
	return err
}

// shutPatience is how long the transactions under way may take when the engine ends.
const shutPatience = 5 * time.Second

// StopDispatch begins the drain: no new grants, no new streams; every stream is told to move.
func (e *Engine) StopDispatch() {
	e.mu.Lock()
	e.draining = true
	hubs := e.allHubs()
	e.mu.Unlock()
	for _, h := range hubs {
		h.drain()
	}
}

// CloseStreams ends every stream with OK.
func (e *Engine) CloseStreams() {
	e.mu.Lock()
	hubs := e.allHubs()
	e.mu.Unlock()
	for _, h := range hubs {
		h.closeStreams()
	}
}

// allHubs needs e.mu.
func (e *Engine) allHubs() []*hub {
	hubs := make([]*hub, 0, len(e.hubs))
	for _, h := range e.hubs {
		hubs = append(hubs, h)
	}
	return hubs
}

func (e *Engine) everyHub() []*hub {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.allHubs()
}

// hub gives a namespace's hub, making it on first use.
func (e *Engine) hub(id int32) *hub {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.hubs[id]
	if h == nil {
		h = newHub(e, id, e.background.Err() != nil || e.draining)
		e.hubs[id] = h
	}
	return h
}

// findHub gives a namespace's hub if something here has needed one: nobody else waits for a wake.
func (e *Engine) findHub(id int32) *hub {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.hubs[id]
}

// namespace gives a namespace's id, making it on its first use.
func (e *Engine) namespace(ctx context.Context, name string) (int32, error) {
	if name == "" {
		name = DefaultNamespace
	}
	e.mu.Lock()
	id, ok := e.spaces[name]
	e.mu.Unlock()
	if ok {
		return id, nil
	}
	id, err := e.store.EnsureNamespace(ctx, name)
	if err != nil {
		return 0, err
	}
	e.mu.Lock()
	e.spaces[name] = id
	e.mu.Unlock()
	return id, nil
}

// DefaultNamespace is meant where a request names none.
const DefaultNamespace = "default"

// laneID gives a lane's id, making it on its first use.
func (e *Engine) laneID(ctx context.Context, l store.Lane) (int32, error) {
	l.ID, l.CircuitID = 0, 0
	e.mu.Lock()
	id, ok := e.laneIDs[l]
	e.mu.Unlock()
	if ok {
		return id, nil
	}
	id, circuitID, err := e.store.EnsureLane(ctx, l)
	if err != nil {
		return 0, err
	}
	l.ID, l.CircuitID = id, circuitID
	e.learnLane(l)
	return id, nil
}

func (e *Engine) learnLane(l store.Lane) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lanes[l.ID] = l
	key := l
	key.ID, key.CircuitID = 0, 0
	e.laneIDs[key] = l.ID
}

// lane reads a lane by its id, from memory if it can: a lane never changes.
func (e *Engine) lane(ctx context.Context, id int32) (store.Lane, error) {
	e.mu.Lock()
	l, ok := e.lanes[id]
	e.mu.Unlock()
	if ok {
		return l, nil
	}
	l, err := e.store.LaneByID(ctx, id)
	if err == nil {
		e.learnLane(l)
	}
	return l, err
}

// changed tells everyone who may be waiting what a committed verb did: on this server at once, on others by NOTIFY.
func (e *Engine) changed(c store.Change) {
	e.heed(c)
	e.notifier.add(c)
	for _, id := range c.Settle {
		select {
		case e.settling <- id:
		default: // the sweep finds it
		}
	}
}

// heed acts on a change made here or on another server.
func (e *Engine) heed(c store.Change) {
	for _, w := range c.Wake {
		l, err := e.lane(e.background, w.LaneID)
		if err != nil {
			continue // the probe finds it
		}
		if h := e.findHub(l.NamespaceID); h != nil {
			h.woken(l, w)
		}
	}
	for _, r := range c.Revoked {
		e.revoked.put(r.Token.Nonce, r.Reason)
		if h := e.findHub(r.Token.NamespaceID); h != nil {
			h.revoke(r)
		}
	}
	byHub := map[int32][]task.Token{}
	for _, t := range c.Freed {
		byHub[t.NamespaceID] = append(byHub[t.NamespaceID], t)
	}
	for id, tokens := range byHub {
		if h := e.findHub(id); h != nil {
			h.freed(tokens)
		}
	}
	for _, id := range c.Tasks {
		e.pingWatches(id)
	}
	e.heedCircuits(c.Circuits)
}

// admit bounds the calls that wait for a batch. Each admitted call is dismissed once.
func (e *Engine) admit(n int) error {
	// A batch counts as one by what was there before it, since it may be larger than the bound.
	if e.waiting.Add(int64(n))-int64(n) >= int64(e.conf.MaxWaiting) {
		e.waiting.Add(-int64(n))
		return task.Refuse(task.RateLimited, "too many calls are waiting on this server").After(time.Second)
	}
	return nil
}

func (e *Engine) dismiss(n int) { e.waiting.Add(-int64(n)) }

// Pulse is when the database last answered a look of the engine's as one that can be written to. Zero before the first time. While all
// is well it is hardly older than sweepEvery.
func (e *Engine) Pulse() (at time.Time) {
	if p := e.pulse.Load(); p != nil {
		at = *p
	}
	return at
}
