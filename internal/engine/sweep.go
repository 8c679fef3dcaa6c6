package engine

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

const (
	// Foreign leases end, and lost wakes are made good, within this. It is a little more than a second, so that a server that
	// has nothing to do asks the database less than once a second, whatever it holds.
	sweepEvery     = 1060 * time.Millisecond
	sweepEveryDeaf = 500 * time.Millisecond // while no wakes of other servers are heard
	sweepBatch     = 500
)

// every runs f now and then until ctx ends; f says how long to wait.
func every(ctx context.Context, f func(context.Context) time.Duration) error {
	for {
		timer := time.NewTimer(f(ctx))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// jittered is a little more than d, so that servers that were started together spread out.
func jittered(d time.Duration) time.Duration {
	return d + time.Duration(rand.Int64N(int64(d)/50+1)) //nolint:gosec // jitter, not a secret
}

// sweepLoop does what time alone brings about: it ends expired leases and enforces deadlines. It sleeps until the next lease
// ends, or sweepEvery: no lease is shorter than that. As often it looks into the lanes that somebody here subscribes to,
// whatever wakes were missed, and asks whether tasks wait to be settled that a crash kept from it. Now and then it also says that
// this server is alive and looks what became of some of its sessions, in the same statement: an idle server has no other.
func (e *Engine) sweepLoop(ctx context.Context) error {
	var probeAt, wholeAt, leasesAt, keepAt time.Time
	var lastTook time.Duration
	return every(ctx, func(ctx context.Context) time.Duration {
		rest, keepRest := jittered(sweepEvery), keepEvery
		if !e.notifier.hears() {
			rest, keepRest = jittered(sweepEveryDeaf), keepEveryDeaf
		}
		// Leases may end much oftener than lanes need to be looked into.
		probing := !time.Now().Before(probeAt)
		var looks map[int32]store.Look
		var keeping bool
		var some sessions
		began := time.Now()
		whole := probing && !began.Before(wholeAt)
		leases := !began.Before(leasesAt)
		if probing {
			looks = e.looks(whole)
			probeAt = began.Add(rest * 8 / 10)
			// Sessions do not wait for a look at leases that takes long.
			if keeping = !began.Before(keepAt) && (!leases || lastTook <= slowLook); keeping {
				some = e.someSessions()
				e.closeStrays(ctx)
				keepAt = began.Add(keepRest)
			}
		}
		t, err := e.tick(ctx, looks, some, keeping, leases, whole)
		switch took := time.Since(began); {
		case whole:
			wholeAt = began.Add(max(wholeLookEvery, wholeLookShare*took))
		case leases:
			// Of two, since anything may hold up one.
			if slow := min(took, lastTook); slow > slowLook {
				leasesAt = time.Now().Add(leaseLookShare * slow)
			}
			lastTook = took
		}
		if err != nil && looks != nil {
			// Whatever keeps the lanes from being looked into, or the sessions, must not keep leases from ending.
			e.sweepFailed(ctx, "looking into lanes", err)
			keepAt = time.Time{}
			t, err = e.tick(ctx, nil, sessions{}, keeping, leases, false)
		}
		if err != nil {
			e.sweepFailed(ctx, "looking for what is due", err)
			return rest
		}
		for id, probed := range t.Probed {
			e.hub(id).looked(probed)
		}
		for id, revision := range t.Pauses {
			e.heedPaused(ctx, id, revision)
		}
		e.heedKept(ctx, some, t.Kept)
		if t.Parked && probing {
			select {
			case e.unsettled <- struct{}{}:
			default: // it is being looked into
			}
		}
		if t.Overdue {
			e.enforceDeadlines(ctx)
		}
		if t.ExpiresAt == nil {
			return rest
		}
		if in := t.ExpiresAt.Sub(t.At); in > 0 {
			return min(max(in, time.Millisecond), rest)
		}
		more, err := e.sweep(ctx)
		switch {
		case err != nil:
			e.sweepFailed(ctx, "sweeping expired leases", err)
			return rest
		case more:
			return time.Millisecond
		}
		return 50 * time.Millisecond // rows that others held were passed by
	})
}

const (
	// wholeTimeout bounds a whole look, which reads all dead rows that an old transaction holds. Leases must end meanwhile.
	wholeTimeout = 2 * time.Second
	// A look at all leases that takes longer than slowLook, for the dead ones among them, takes one part in leaseLookShare of the
	// time: under an old snapshot leases end later rather than that the looks for them use up the database.
	slowLook       = 100 * time.Millisecond
	leaseLookShare = 10
)

// tick says that this server is alive if it is to.
func (e *Engine) tick(ctx context.Context, looks map[int32]store.Look, some sessions, alive, leases, whole bool) (store.Tick, error) {
	timeout := flushTimeout
	if whole {
		timeout = wholeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ask := store.Ask{Looks: looks, SessionIDs: some.ids, Epochs: some.epochs, Leases: leases}
	if alive {
		ask.Alive = &e.conf.ReplicaID
	}
	began := time.Now()
	t, err := e.store.Tick(ctx, ask)
	if err == nil {
		e.clock.learn(began, t.At)
		heard := time.Now()
		e.pulse.Store(&heard)
	}
	return t, err
}

// looks lists, by namespace, what to look into for the sessions of this server. A whole one begins at each lane's beginning.
func (e *Engine) looks(whole bool) map[int32]store.Look {
	looks := map[int32]store.Look{}
	for _, h := range e.everyHub() {
		names := h.subscribed()
		switch {
		case len(names) == 0:
		case whole:
			looks[h.id] = store.Look{Handlers: names}
		default:
			looks[h.id] = h.lookInto(names)
		}
	}
	return looks
}

// enforceDeadlines gives up the steps whose deadline has passed.
func (e *Engine) enforceDeadlines(ctx context.Context) {
	due, err := e.store.DueDeadlines(ctx, sweepBatch)
	if err != nil {
		e.sweepFailed(ctx, "looking for deadlines", err)
		return
	}
	for _, d := range due {
		change, err := e.store.EnforceDeadline(ctx, d)
		if err != nil {
			e.sweepFailed(ctx, "enforcing a deadline", err)
			continue
		}
		e.changed(change)
	}
}

// sweep concludes one batch of expired leases. more says that another batch may wait.
func (e *Engine) sweep(ctx context.Context) (more bool, err error) {
	leases, err := e.store.ExpiredLeases(ctx, sweepBatch)
	if err != nil {
		return false, err
	}
	byNamespace := map[int32][]store.HeldLease{}
	for _, x := range leases {
		l, err := e.lane(ctx, x.LaneID)
		if err != nil {
			return false, err
		}
		byNamespace[l.NamespaceID] = append(byNamespace[l.NamespaceID], x)
	}
	for id, some := range byNamespace {
		ended, change, err := e.store.Expire(ctx, id, some)
		if err != nil {
			return false, err
		}
		for _, x := range ended {
			change.Revoked = append(change.Revoked, store.Revoked{Token: x.Token, Reason: revokeReason(x.Outcome)})
		}
		e.stats.expired.Add(int64(len(ended)))
		e.changed(change)
	}
	return len(leases) == sweepBatch, nil
}

func revokeReason(o task.Outcome) task.RevokeReason {
	switch o {
	case task.TimedOut:
		return task.RevokedTimedOut
	case task.DeadlineExceeded:
		return task.RevokedDeadline
	default:
		return task.RevokedLost
	}
}

func (e *Engine) sweepFailed(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		e.log.WarnContext(ctx, "background work failed", "doing", what, "error", err)
	}
}

// subscribed lists the handlers that a session of this server asks for.
func (h *hub) subscribed() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	for name, x := range h.handlers {
		if len(x.sessions) > 0 {
			names = append(names, name)
		}
	}
	return names
}

// settleLoop records the end of tasks that can run no further, after the commit of the failure that may have been the
// last. What is lost between the two is found by unsettledLoop.
func (e *Engine) settleLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case id := <-e.settling:
			e.settle(ctx, id)
		}
	}
}

// unsettledLoop settles tasks that a crash kept from being settled. The look for them reads all parked rows, so it takes at
// most a fiftieth of the time, and holds up nothing else.
func (e *Engine) unsettledLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.unsettled:
		}
		start := time.Now()
		ids, err := e.store.Unsettled(ctx)
		if err != nil {
			e.sweepFailed(ctx, "looking for unsettled tasks", err)
		}
		rest := time.NewTimer(50 * time.Since(start))
		for _, id := range ids {
			e.settle(ctx, id)
		}
		select {
		case <-ctx.Done():
			rest.Stop()
			return nil
		case <-rest.C:
		}
	}
}

func (e *Engine) settle(ctx context.Context, id task.ID) {
	change, err := e.store.Settle(ctx, id)
	if err != nil {
		e.sweepFailed(ctx, "settling a task", err)
		return
	}
	e.changed(change)
}
