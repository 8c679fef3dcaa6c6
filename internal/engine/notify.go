package engine

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// channel is where servers tell each other what they changed.
const channel = "tasker_wake"

// coalesce is how long wakes gather before one NOTIFY carries them. NOTIFY takes a lock that all committers share, so it
// rides on a connection of its own and never in a transaction that moves steps.
const coalesce = time.Millisecond

// maxPayload keeps a notification below the 8,000 bytes that Postgres allows.
const maxPayload = 7500

// notifier gathers what other servers should hear. It is never needed for correctness.
type notifier struct {
	e       *Engine
	mu      sync.Mutex
	pending wire
	wake    chan struct{}
	heard   atomic.Bool // LISTEN is up
	peers   atomic.Int32
}

// wire is a notification. Its fields are short, since the payload is.
type wire struct {
	From    string      `json:"f,omitempty"`
	Wakes   []wireWake  `json:"w,omitempty"`
	Freed   []string    `json:"c,omitempty"` // lease tokens
	Revoked [][2]string `json:"r,omitempty"` // lease token, reason
	Tasks   []int64     `json:"t,omitempty"`
	Moved   [][2]int32  `json:"m,omitempty"` // sessions that the sender has now, and since which epoch
	Drained []int32     `json:"d,omitempty"` // sessions
	Hello   bool        `json:"h,omitempty"` // the sender listens from now on
	// Circuits that changed, or have room.
	Circuits []int32 `json:"g,omitempty"`
	// Namespaces whose pauses have come to a revision.
	Paused [][2]int32 `json:"p,omitempty"`
}

type wireWake struct {
	Lane  int32  `json:"l"`
	Seq   int64  `json:"s,omitempty"`
	Count int    `json:"n,omitempty"`
	DueAt *int64 `json:"d,omitempty"` // µs since 1970
}

func (n *notifier) hears() bool { return n.heard.Load() }

// add queues a change for the other servers, if there are any that could hear it.
func (n *notifier) add(c store.Change) {
	if !n.hears() || n.peers.Load() == 0 {
		return
	}
	n.mu.Lock()
	for _, w := range c.Wake {
		n.pending.addWake(w)
	}
	for _, t := range c.Freed {
		// Only sessions of other servers are worth the bytes.
		if !n.e.grants(t) {
			n.pending.Freed = append(n.pending.Freed, t.String())
		}
	}
	for _, r := range c.Revoked {
		if !n.e.grants(r.Token) {
			n.pending.Revoked = append(n.pending.Revoked, [2]string{r.Token.String(), string(r.Reason)})
		}
	}
	for _, id := range c.Tasks {
		if len(n.pending.Tasks) < 1000 { // watchers look now and then anyway
			n.pending.Tasks = append(n.pending.Tasks, int64(id))
		}
	}
	for _, id := range c.Circuits {
		if !slices.Contains(n.pending.Circuits, id) {
			n.pending.Circuits = append(n.pending.Circuits, id)
		}
	}
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// moved tells the other servers that a session is this one's now.
func (n *notifier) moved(sessionID, epoch int32) {
	if !n.hears() || n.peers.Load() == 0 {
		return
	}
	n.mu.Lock()
	n.pending.Moved = append(n.pending.Moved, [2]int32{sessionID, epoch})
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// drained tells the other servers that a session was drained.
func (n *notifier) drained(sessionID int32) {
	if !n.hears() || n.peers.Load() == 0 {
		return
	}
	n.mu.Lock()
	n.pending.Drained = append(n.pending.Drained, sessionID)
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// paused tells the other servers that a namespace's pauses have come to a revision.
func (n *notifier) paused(namespaceID, revision int32) {
	if !n.hears() || n.peers.Load() == 0 {
		return
	}
	n.mu.Lock()
	n.pending.Paused = append(n.pending.Paused, [2]int32{namespaceID, revision})
	n.mu.Unlock()
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// addWake merges a wake with one of the same lane.
func (w *wire) addWake(x store.Wake) {
	var due *int64
	if x.DueAt != nil {
		us := x.DueAt.UnixMicro()
		due = &us
	}
	for i := range w.Wakes {
		y := &w.Wakes[i]
		if y.Lane != x.LaneID {
			continue
		}
		if x.Seq > 0 && (y.Seq == 0 || x.Seq < y.Seq) {
			y.Seq = x.Seq
		}
		y.Count += x.Count
		if due != nil && (y.DueAt == nil || *due < *y.DueAt) {
			y.DueAt = due
		}
		return
	}
	w.Wakes = append(w.Wakes, wireWake{Lane: x.LaneID, Seq: x.Seq, Count: x.Count, DueAt: due})
}

// grants tells whether a token's session is this server's.
func (e *Engine) grants(t task.Token) bool {
	h := e.findHub(t.NamespaceID)
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[t.SessionID]
	return s != nil && !s.gone
}

// split cuts a notification into payloads that fit.
func (w wire) split() []string {
	b, err := json.Marshal(w)
	if err != nil {
		return nil
	}
	if len(b) <= maxPayload {
		return []string{string(b)}
	}
	half := func(n int) int { return (n + 1) / 2 }
	if len(w.Wakes)+len(w.Freed)+len(w.Revoked)+len(w.Tasks)+len(w.Moved)+len(w.Drained)+len(w.Circuits)+len(w.Paused) <= 8 {
		return nil // cannot be: no entry is that long
	}
	a, c := w, w
	a.Wakes, c.Wakes = w.Wakes[:half(len(w.Wakes))], w.Wakes[half(len(w.Wakes)):]
	a.Freed, c.Freed = w.Freed[:half(len(w.Freed))], w.Freed[half(len(w.Freed)):]
	a.Revoked, c.Revoked = w.Revoked[:half(len(w.Revoked))], w.Revoked[half(len(w.Revoked)):]
	a.Moved, c.Moved = w.Moved[:half(len(w.Moved))], w.Moved[half(len(w.Moved)):]
	a.Drained, c.Drained = w.Drained[:half(len(w.Drained))], w.Drained[half(len(w.Drained)):]
	a.Tasks, c.Tasks = w.Tasks[:half(len(w.Tasks))], w.Tasks[half(len(w.Tasks)):]
	a.Circuits, c.Circuits = w.Circuits[:half(len(w.Circuits))], w.Circuits[half(len(w.Circuits)):]
	a.Paused, c.Paused = w.Paused[:half(len(w.Paused))], w.Paused[half(len(w.Paused)):]
	return append(a.split(), c.split()...)
}

// notifyLoop sends what has gathered, at most about once a millisecond, over a connection of its own.
func (e *Engine) notifyLoop(ctx context.Context) error {
	return e.onConnection(ctx, e.conf.Listen, func(ctx context.Context, conn *pgx.Conn) error {
		// A notification that a crash forgets is no loss.
		if _, err := conn.Exec(ctx, "set synchronous_commit = off"); err != nil {
			return err
		}
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-e.notifier.wake:
			}
			e.notifier.mu.Lock()
			w := e.notifier.pending
			e.notifier.pending = wire{}
			e.notifier.mu.Unlock()
			w.From = string(hexID(e.conf.ReplicaID))
			batch := &pgx.Batch{}
			for _, payload := range w.split() {
				batch.Queue("select pg_notify($1, $2)", channel, payload)
			}
			if err := conn.SendBatch(ctx, batch).Close(); err != nil {
				return err
			}
			timer := time.NewTimer(coalesce)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
		}
	})
}

// listenLoop hears what other servers changed. While it is down, probes come oftener.
func (e *Engine) listenLoop(ctx context.Context) error {
	return e.onConnection(ctx, e.conf.Listen, func(ctx context.Context, conn *pgx.Conn) error {
		defer e.notifier.heard.Store(false)
		// A server that listens holds this lock, shared, for as long as it does: so the others count it.
		if _, err := conn.Exec(ctx, "select pg_advisory_lock_shared(hashtext('tasker.listener'))"); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
			return err
		}
		hello, err := json.Marshal(wire{From: string(hexID(e.conf.ReplicaID)), Hello: true})
		if err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "select pg_notify($1, $2)", channel, string(hello)); err != nil {
			return err
		}
		e.notifier.heard.Store(true)
		var counted time.Time
		for {
			if time.Since(counted) > peersEvery {
				if err := e.countPeers(ctx, conn); err != nil {
					return err
				}
				counted = time.Now()
			}
			wait, cancel := context.WithTimeout(ctx, peersEvery)
			n, err := conn.WaitForNotification(wait)
			timedOut := wait.Err() != nil
			cancel()
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil && !timedOut:
				return err
			case n != nil && e.hear(n.Payload):
				counted = time.Time{}
			}
		}
	})
}

// peersEvery is how often the other listening servers are counted, which also finds that the connection is dead. A server
// that comes says so, and is counted at once; one that went is told in vain until then.
const peersEvery = time.Minute

// countTimeout is how long a connection may take to answer that lives.
const countTimeout = 5 * time.Second

// countPeers counts the other servers that listen: alone, a server need not notify.
func (e *Engine) countPeers(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	var n int32
	err := conn.QueryRow(ctx, `
		select count(*) from pg_locks
		where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())
		  and objid = (hashtext('tasker.listener')::bigint & 4294967295)::oid and granted`).Scan(&n)
	e.notifier.peers.Store(n - 1)
	return err
}

// hear heeds what another server says. arrived: it listens only now.
func (e *Engine) hear(payload string) (arrived bool) {
	var w wire
	if json.Unmarshal([]byte(payload), &w) != nil || w.From == string(hexID(e.conf.ReplicaID)) {
		return false
	}
	var c store.Change
	for _, x := range w.Wakes {
		wake := store.Wake{LaneID: x.Lane, Seq: x.Seq, Count: x.Count}
		if x.DueAt != nil {
			due := time.UnixMicro(*x.DueAt)
			wake.DueAt = &due
		}
		c.Wake = append(c.Wake, wake)
	}
	for _, s := range w.Freed {
		if t, ok := task.ParseToken(s); ok {
			c.Freed = append(c.Freed, t)
		}
	}
	for _, r := range w.Revoked {
		if t, ok := task.ParseToken(r[0]); ok {
			c.Revoked = append(c.Revoked, store.Revoked{Token: t, Reason: task.RevokeReason(r[1])})
		}
	}
	for _, id := range w.Tasks {
		c.Tasks = append(c.Tasks, task.ID(id))
	}
	c.Circuits = w.Circuits
	e.heed(c)
	for _, h := range e.everyHub() {
		for _, m := range w.Moved {
			h.movedAway(m[0], m[1])
		}
		for _, id := range w.Drained {
			h.drainSession(id)
		}
	}
	for _, p := range w.Paused {
		go e.heedPaused(e.background, p[0], p[1]) // it may be one transaction of many that wait for a connection
	}
	return w.Hello
}

// onConnection runs f on a connection of its own, again after a pause whenever it breaks.
func (e *Engine) onConnection(ctx context.Context, open func(context.Context) (*pgx.Conn, error), f func(context.Context, *pgx.Conn) error) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		started := time.Now()
		err := func() error {
			conn, err := open(ctx)
			if err != nil {
				return err
			}
			defer func() {
				closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				_ = conn.Close(closing)
			}()
			return f(ctx, conn)
		}()
		if ctx.Err() != nil {
			return nil
		}
		e.log.WarnContext(ctx, "side connection broke", "error", err)
		if time.Since(started) > time.Minute {
			pause = 100 * time.Millisecond
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

func hexID(id [16]byte) []byte {
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 32)
	for _, b := range id {
		out = append(out, digits[b>>4], digits[b&15])
	}
	return out
}
