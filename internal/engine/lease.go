package engine

import (
	"context"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// BeatAnswer is what became of one heartbeat: Extended, or Lost with the reason as far as this server knows it.
type BeatAnswer struct {
	Extended *store.Extended
	Lost     bool
	Reason   task.RevokeReason
}

// Heartbeat extends leases and keeps their checkpoints. The first one confirms the delivery.
func (e *Engine) Heartbeat(ctx context.Context, beats []store.Beat) ([]BeatAnswer, error) {
	byNamespace := map[int32][]store.Beat{}
	seen := make(map[[16]byte]bool, len(beats))
	for _, b := range beats {
		if !seen[b.Token.Nonce] {
			seen[b.Token.Nonce] = true
			byNamespace[b.Token.NamespaceID] = append(byNamespace[b.Token.NamespaceID], b)
		}
	}
	extended := make(map[[16]byte]store.Extended, len(beats))
	for id, some := range byNamespace {
		x, err := e.store.Heartbeat(ctx, id, some)
		if err != nil {
			return nil, err
		}
		var tasks []task.ID
		for nonce, until := range x {
			extended[nonce] = until
		}
		for _, b := range some {
			tasks = append(tasks, b.Token.Step.Task())
		}
		e.changed(store.Change{Tasks: tasks})
	}
	answers := make([]BeatAnswer, len(beats))
	for i, b := range beats {
		if x, ok := extended[b.Token.Nonce]; ok {
			answers[i].Extended = &x
			continue
		}
		answers[i] = BeatAnswer{Lost: true, Reason: task.RevokedLost}
		if reason, ok := e.revoked.get(b.Token.Nonce); ok {
			answers[i].Reason = reason
		}
		if h := e.findHub(b.Token.NamespaceID); h != nil {
			h.freed([]task.Token{b.Token})
		}
	}
	return answers, nil
}

// Release is a lease that its worker hands back.
type Release struct {
	Token task.Token
	Delay time.Duration // not dispatched again before it has passed
}

// Release hands leases back at no cost to their steps, one answer a token: nil, or LEASE_LOST.
func (e *Engine) Release(ctx context.Context, releases []Release) []error {
	byNamespace := map[int32][]store.HeldLease{}
	seen := make(map[[16]byte]bool, len(releases))
	for _, r := range releases {
		if !seen[r.Token.Nonce] {
			seen[r.Token.Nonce] = true
			byNamespace[r.Token.NamespaceID] = append(byNamespace[r.Token.NamespaceID], store.HeldLease{
				Step: r.Token.Step, Nonce: r.Token.Nonce, Delay: r.Delay,
			})
		}
	}
	released := make(map[[16]byte]bool, len(releases))
	failed := map[int32]error{}
	for id, leases := range byNamespace {
		ended, change, err := e.store.GiveBack(ctx, id, leases, task.Released)
		if err != nil {
			failed[id] = err
			continue
		}
		for _, x := range ended {
			released[x.Token.Nonce] = true
		}
		e.changed(change)
	}
	errs := make([]error, len(releases))
	for i, r := range releases {
		switch err := failed[r.Token.NamespaceID]; {
		case err != nil:
			errs[i] = err
		case !released[r.Token.Nonce]:
			errs[i] = task.Refuse(task.LeaseLost, "the lease is not held any more")
		}
	}
	return errs
}

// giveBack returns leases that were never handed to a worker. If it cannot, their delivery leases run out.
func (e *Engine) giveBack(namespaceID int32, leases []store.HeldLease, outcome task.Outcome) {
	ctx, cancel := context.WithTimeout(e.background, flushTimeout)
	defer cancel()
	_, change, err := e.store.GiveBack(ctx, namespaceID, leases, outcome)
	if err != nil {
		e.log.WarnContext(ctx, "giving leases back failed", "leases", len(leases), "error", err)
		return
	}
	e.changed(change)
}

// Drain stops grants to a worker and waits until it holds no lease, or until the deadline; it answers those left.
func (e *Engine) Drain(ctx context.Context, namespace, workerID, instanceID string, deadline time.Time) ([]store.SessionLease, error) {
	namespaceID, ok, err := e.findNamespace(ctx, namespace)
	if err != nil || !ok {
		return nil, err
	}
	sessionID, ok, err := e.store.DrainSession(ctx, namespaceID, workerID, instanceID)
	if err != nil || !ok {
		return nil, err // nothing was ever granted to it
	}
	e.hub(namespaceID).drainSession(sessionID)
	e.notifier.drained(sessionID)
	// The leases may end through any server, so the database is asked; less often the longer it takes.
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 250*time.Millisecond) {
		left, err := e.sessionLeases(ctx, namespaceID, sessionID)
		if err != nil || len(left) == 0 || !time.Now().Before(deadline) {
			return left, err
		}
		timer := time.NewTimer(min(wait, time.Until(deadline)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return left, ctx.Err()
		case <-timer.C:
		}
	}
}

// drainSession stops planning for a session; the database refuses it already.
func (h *hub) drainSession(id int32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[id]; s != nil {
		s.drained = true
	}
}
