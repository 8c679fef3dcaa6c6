package engine

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// GetCircuit reads one circuit.
func (e *Engine) GetCircuit(ctx context.Context, namespace, name string) (*task.Circuit, error) {
	found, err := e.circuits(ctx, namespace, store.CircuitFilter{Names: []string{name}})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, noSuchCircuit(namespace, name)
	}
	return found[0], nil
}

func noSuchCircuit(namespace, name string) error {
	namespace = cmp.Or(namespace, DefaultNamespace)
	return task.Refuse(task.CircuitNotFound, "no circuit %q in namespace %q", name, namespace).With("namespace", namespace).With("circuit", name)
}

// ListCircuits reads circuits of a namespace, by name; those of a namespace that nobody has used are none.
func (e *Engine) ListCircuits(ctx context.Context, q task.CircuitQuery) ([]*task.Circuit, error) {
	return e.circuits(ctx, q.Namespace, store.CircuitFilter{States: q.States, MinWaiting: q.MinWaiting, After: q.After, Limit: q.Limit})
}

func (e *Engine) circuits(ctx context.Context, namespace string, f store.CircuitFilter) ([]*task.Circuit, error) {
	id, ok, err := e.findNamespace(ctx, namespace)
	if err != nil || !ok {
		return nil, err
	}
	found, err := e.store.Circuits(ctx, id, f)
	for _, c := range found {
		c.Namespace = cmp.Or(namespace, DefaultNamespace)
	}
	return found, err
}

// circuitID gives a circuit's id, making it on its first use.
func (e *Engine) circuitID(ctx context.Context, namespaceID int32, name string) (int32, error) {
	key := circuitKey{namespaceID, name}
	e.mu.Lock()
	id, ok := e.circuitIDs[key]
	e.mu.Unlock()
	if ok {
		return id, nil
	}
	id, err := e.store.EnsureCircuit(ctx, namespaceID, name)
	if err != nil {
		return 0, err
	}
	e.mu.Lock()
	e.circuitIDs[key] = id
	e.mu.Unlock()
	return id, nil
}

type circuitKey struct {
	namespaceID int32
	name        string
}

// CircuitDefaults reads a namespace's default policy, as a circuit without a name.
func (e *Engine) CircuitDefaults(ctx context.Context, namespace string) (*task.Circuit, error) {
	// A namespace that nobody has used yet has no row, and sets nothing.
	id, _, err := e.findNamespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	c := &task.Circuit{Namespace: cmp.Or(namespace, DefaultNamespace)}
	c.Policy, c.InForce, err = e.store.CircuitDefaults(ctx, id)
	return c, err
}

// SetCircuitPolicy sets fields of a circuit's policy to what they are in p; nil unsets one. Without a name it sets the
// namespace's default. Windows begin afresh: what they held was measured by another rule.
func (e *Engine) SetCircuitPolicy(ctx context.Context, namespace, name string, p task.CircuitPolicy, fields []string, actor, reason string) (*task.Circuit, error) {
	namespaceID, err := e.namespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	change := func(now task.CircuitPolicy) (task.CircuitPolicy, error) {
		if err := now.Set(p, fields); err != nil {
			return now, err
		}
		return now, now.Check()
	}
	act := store.Act{Actor: actor, Reason: reason}
	if name == "" {
		ids, err := e.store.SetCircuitDefaults(ctx, namespaceID, act, change)
		if err != nil {
			return nil, err
		}
		e.changed(store.Change{Circuits: ids})
		return e.CircuitDefaults(ctx, namespace)
	}
	return e.onCircuit(ctx, namespaceID, namespace, name, func(id int32) error {
		return e.store.SetCircuitPolicy(ctx, id, act, change)
	})
}

// HoldCircuit keeps a circuit shut from h.From (zero: now) until h.Until or its release. It replaces an earlier hold.
func (e *Engine) HoldCircuit(ctx context.Context, namespace, name string, h task.CircuitHold) (*task.Circuit, error) {
	namespaceID, err := e.namespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	now := e.clock.database(time.Now())
	if h.Until != nil && (!h.Until.After(now) || !h.Until.After(h.From)) {
		return nil, task.Invalid("ends_at", "a hold ends in the future, and after it begins")
	}
	return e.onCircuit(ctx, namespaceID, namespace, name, func(id int32) error { return e.store.HoldCircuit(ctx, id, h) })
}

// ReleaseCircuit ends a hold, or an open circuit's wait: it is probed next. Any other circuit is left as it is.
func (e *Engine) ReleaseCircuit(ctx context.Context, namespace, name, actor, reason string) (*task.Circuit, error) {
	c, err := e.GetCircuit(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	if _, err := e.store.ReleaseCircuit(ctx, c.ID, store.Act{Actor: actor, Reason: reason}); err != nil {
		return nil, err
	}
	e.changed(store.Change{Circuits: []int32{c.ID}})
	return e.GetCircuit(ctx, namespace, name)
}

// onCircuit runs an act on a circuit, which it makes on its first use, and tells everyone.
func (e *Engine) onCircuit(ctx context.Context, namespaceID int32, namespace, name string, act func(id int32) error) (*task.Circuit, error) {
	id, err := e.circuitID(ctx, namespaceID, name)
	if err != nil {
		return nil, err
	}
	if err := act(id); err != nil {
		return nil, err
	}
	e.changed(store.Change{Circuits: []int32{id}})
	return e.GetCircuit(ctx, namespace, name)
}

// ListCircuitEvents reads the record of circuits, newest first.
func (e *Engine) ListCircuitEvents(ctx context.Context, q task.CircuitEventQuery) ([]*task.CircuitEvent, error) {
	id, ok, err := e.findNamespace(ctx, q.Namespace)
	if err != nil || !ok {
		return nil, err
	}
	return e.store.CircuitEvents(ctx, id, q)
}

// circuitWatchEvery is how often the record is looked at when nobody says that a circuit changed.
const circuitWatchEvery = time.Second

// CircuitWatch follows circuits of a namespace.
type CircuitWatch struct {
	e         *Engine
	namespace string
	names     []string
	revision  string // what to read on from; empty: a snapshot comes first
	seen      map[int64]bool
	ping      chan struct{}
}

// CircuitFrame is what changed: circuits as they stand, and the events that brought it about. Events come at least once; their
// ids tell repeats.
type CircuitFrame struct {
	Snapshot bool // Circuits are all that are watched
	Circuits []*task.Circuit
	Events   []*task.CircuitEvent // oldest first
	Revision string               // resumes behind this frame
}

// WatchCircuits begins to follow circuits of a namespace, all of them where names is empty. after resumes behind a frame.
func (e *Engine) WatchCircuits(ctx context.Context, namespace string, names []string, after string) (*CircuitWatch, error) {
	namespace = cmp.Or(namespace, DefaultNamespace)
	w := &CircuitWatch{e: e, namespace: namespace, names: names, seen: map[int64]bool{}, ping: make(chan struct{}, 1)}
	now, err := e.store.CircuitRevision(ctx)
	if err != nil {
		return nil, err
	}
	// One that lies ahead is another cluster's, or of before a restore: nothing would follow it.
	place, err := strconv.ParseUint(now, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("reading a watcher's place: %w", err)
	}
	if n, err := strconv.ParseUint(after, 10, 64); err == nil && strconv.FormatUint(n, 10) == after && n <= place {
		w.revision = after
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watching[namespace] >= e.conf.MaxStreams {
		return nil, task.Refuse(task.TooManyStreams, "this server has its fill of watches in this namespace").After(5 * time.Second)
	}
	e.watching[namespace]++
	e.circuitWatches = append(e.circuitWatches, w)
	return w, nil
}

// Close ends the watch.
func (w *CircuitWatch) Close() {
	w.e.mu.Lock()
	defer w.e.mu.Unlock()
	i := slices.Index(w.e.circuitWatches, w)
	if i < 0 {
		return // closed before
	}
	w.e.circuitWatches = slices.Delete(w.e.circuitWatches, i, i+1)
	if w.e.watching[w.namespace]--; w.e.watching[w.namespace] == 0 {
		delete(w.e.watching, w.namespace)
	}
}

// Next waits for the next frame.
func (w *CircuitWatch) Next(ctx context.Context) (CircuitFrame, error) {
	for {
		f, err := w.look(ctx)
		if err != nil || f.Snapshot || len(f.Events) > 0 {
			return f, err
		}
		timer := time.NewTimer(circuitWatchEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return CircuitFrame{}, ctx.Err()
		case <-w.ping:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (w *CircuitWatch) look(ctx context.Context) (f CircuitFrame, err error) {
	// Before the rest: what commits meanwhile is then read twice rather than never.
	if f.Revision, err = w.e.store.CircuitRevision(ctx); err != nil {
		return f, err
	}
	names := w.names
	if len(names) == 0 {
		names = nil
	}
	if w.revision == "" {
		f.Snapshot = true
		f.Circuits, err = w.e.circuits(ctx, w.namespace, store.CircuitFilter{Names: names})
		w.revision = f.Revision
		return f, err
	}
	id, ok, err := w.e.findNamespace(ctx, w.namespace)
	if err != nil || !ok {
		return f, err
	}
	events, err := w.e.store.CircuitEventsSince(ctx, id, names, w.revision)
	if err != nil {
		return f, err
	}
	var changed []string
	seen := make(map[int64]bool, len(events))
	for _, x := range events {
		seen[x.ID] = true
		if !w.seen[x.ID] {
			f.Events = append(f.Events, x)
			changed = append(changed, x.Circuit)
		}
	}
	w.revision, w.seen = f.Revision, seen
	if len(changed) > 0 {
		f.Circuits, err = w.e.circuits(ctx, w.namespace, store.CircuitFilter{Names: changed})
	}
	return f, err
}

// pingCircuitWatches tells watches that circuits changed.
func (e *Engine) pingCircuitWatches() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.circuitWatches {
		select {
		case w.ping <- struct{}{}:
		default:
		}
	}
}

// knowCircuits finds the circuits of what a run observed, making those that nobody has used yet.
func (e *Engine) knowCircuits(ctx context.Context, r *task.Report) (err error) {
	for i := range r.Observations {
		o := &r.Observations[i]
		if o.CircuitID, err = e.circuitID(ctx, r.Token.NamespaceID, o.Circuit); err != nil {
			return err
		}
	}
	return nil
}
