package engine

import (
	"context"
	"slices"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// distribute hands grants to their sessions' streams and polls. What cannot be delivered goes back at once.
func (h *hub) distribute(f *flush, grants []store.Grant) {
	if len(grants) == 0 {
		return
	}
	byID := map[int32]*session{}
	for _, s := range f.slots {
		byID[s.id] = s
	}
	var lane store.Lane // grants come by the lane
	for i := range grants {
		if id := grants[i].LaneID; lane.ID != id {
			lane, _ = h.e.lane(h.e.background, id) // in memory: the claim named it
		}
		h.e.complete(&grants[i], lane)
	}
	var back []store.HeldLease
	h.mu.Lock()
	for _, g := range grants {
		s := byID[g.SessionID]
		if h.sessions[s.id] != s {
			s.unreserve(g.Step.Handler)
			back = append(back, heldLease(g.Step))
			continue
		}
		g.Step.Namespace = s.reg.Namespace
		s.hold(g.Step.Token.Nonce, g.Step.Handler)
		if !s.deliver(g.Step) {
			s.forget(g.Step.Token.Nonce)
			back = append(back, heldLease(g.Step))
		}
	}
	// A poll returns with all that one claim brought it.
	for _, s := range byID {
		for p := range s.polls {
			p.finishWithSteps()
		}
	}
	h.mu.Unlock()
	if len(back) > 0 {
		h.e.giveBack(h.id, back, task.Undelivered)
	}
}

// deliver needs the hub's mutex.
func (s *session) deliver(r *task.ReadyStep) bool {
	for p := range s.polls {
		if p.give(r) {
			return true
		}
	}
	if s.newest == nil {
		return false
	}
	s.newest.push(Frame{Step: r})
	return true
}

// maxInline bounds the parents' results that ride along with a step, in bytes.
const maxInline = 1 << 20

// complete fills in what the lane says of a granted step, and keeps its dependencies' results in bounds.
func (e *Engine) complete(g *store.Grant, l store.Lane) {
	r := g.Step
	r.Handler, r.Circuit = l.Handler, l.Circuit
	if g.Parents > store.MaxInlineParents {
		e.inlineWide(r)
	}
	size := 0
	for i := 0; i < len(r.Dependencies); {
		d := r.Dependencies[i]
		if size += len(d.Name) + len(d.Results); size > maxInline {
			r.Omitted = append(r.Omitted, d.Name)
			r.Dependencies = slices.Delete(r.Dependencies, i, i+1)
			size -= len(d.Name) + len(d.Results)
			continue
		}
		i++
	}
}

// inlineWide reads the results of a wide join, page by page, until they fill the frame; the rest is named only.
func (e *Engine) inlineWide(r *task.ReadyStep) {
	ctx, cancel := context.WithTimeout(e.background, flushTimeout)
	defer cancel()
	size := 0
	for after := 0; ; {
		page, err := e.store.DependencyResults(ctx, r.Token.Step, after, 500)
		if err != nil || len(page) == 0 {
			return // what is missing is read by GetDependencyResults
		}
		for _, p := range page {
			after = p.StepNo
			if size += len(p.Name) + len(p.Results); size > maxInline {
				r.Omitted = append(r.Omitted, p.Name)
				continue
			}
			r.Dependencies = append(r.Dependencies, task.DependencyResult{Name: p.Name, Results: p.Results})
		}
	}
}
