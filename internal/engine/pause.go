package engine

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// pauses are what a hub knows of its namespace's pauses, by which it plans claims. That none is granted who does not know of a
// pause is decided by the sessions' rows (claim.sql); an end is taken from the database alone, never from this machine's clock.
type pauses struct {
	reading sync.Mutex // one at a time, so that a later one knows more

	// The rest needs the hub's mutex.
	known    bool // has been read once
	revision int32
	inForce  map[string]pause // by handler; empty: all
	asking   bool             // because one may have ended
}

// pause is one that is in force.
type pause struct {
	until *time.Time // by the database's clock; nil: it lasts
	askAt time.Time  // when that seems to be over, by this machine's
}

// paused needs h.mu: whether a handler's steps are kept back, and until when; nil: until somebody resumes it.
func (h *hub) paused(handler string) (until *time.Time, is bool) {
	if len(h.pauses.inForce) == 0 {
		return nil, false
	}
	for _, name := range [...]string{"", handler} {
		p, ok := h.pauses.inForce[name]
		switch {
		case !ok:
		case !is, p.until == nil, until != nil && p.until.After(*until):
			until, is = p.until, true
		}
	}
	return until, is
}

// readPauses asks for the namespace's pauses, unless wanted says, once it is its turn, that there is no need any more.
func (h *hub) readPauses(ctx context.Context, wanted func(*pauses) bool) error {
	h.pauses.reading.Lock()
	defer h.pauses.reading.Unlock()
	h.mu.Lock()
	skip := !wanted(&h.pauses)
	h.mu.Unlock()
	if skip {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	began := time.Now()
	read, err := h.e.store.Pauses(ctx, h.id)
	if err == nil {
		h.e.clock.learn(began, read.At)
		h.heedPauses(read)
	}
	return err
}

// pauseGrain is how long after it was asked about in vain a pause's end is asked about again, at the soonest.
const pauseGrain = 5 * time.Millisecond

func (h *hub) heedPauses(read store.Pauses) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := &h.pauses
	if p.revision != read.Revision {
		// Claims that did not know of it found no session, and left their lanes with what stands in them.
		for _, x := range h.lanes {
			x.heat()
		}
	}
	p.known, p.revision, p.inForce = true, read.Revision, make(map[string]pause, len(read.Until))
	for handler, until := range read.Until {
		one := pause{until: until}
		if until != nil {
			one.askAt = h.e.clock.local(*until)
			if soonest := time.Now().Add(pauseGrain); one.askAt.Before(soonest) {
				one.askAt = soonest
			}
			h.arm(one.askAt)
		}
		p.inForce[handler] = one
	}
	h.work.Broadcast()
}

// endPauses needs h.mu: it asks the database about pauses whose time seems up, and tells when the next one's will be.
func (h *hub) endPauses(now time.Time, sooner func(time.Time)) {
	over := false
	for _, p := range h.pauses.inForce {
		switch {
		case p.until == nil:
		case p.askAt.After(now):
			sooner(p.askAt)
		default:
			over = true
		}
	}
	if !over || h.pauses.asking {
		return
	}
	h.pauses.asking = true
	go func() {
		err := h.readPauses(h.e.background, func(*pauses) bool { return true })
		h.mu.Lock()
		defer h.mu.Unlock()
		h.pauses.asking = false
		if err != nil {
			h.arm(time.Now().Add(fullLookEvery))
		}
	}()
}

// heedPaused heeds that a namespace's pauses have come to a revision.
func (e *Engine) heedPaused(ctx context.Context, namespaceID, revision int32) {
	h := e.findHub(namespaceID)
	if h == nil {
		return // it reads them when it first has a session
	}
	if err := h.readPauses(ctx, func(p *pauses) bool { return p.known && p.revision != revision }); err != nil {
		e.sweepFailed(ctx, "reading pauses", err)
	}
}

// PauseHandler stops the dispatching of a handler, or with an empty one of the whole namespace: once it has returned, no server
// gives out a step of it, until p.Until or until it is resumed. It replaces an earlier pause of the same handler.
func (e *Engine) PauseHandler(ctx context.Context, p task.Pause) (*task.Pause, error) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), operateTimeout)
	defer done()
	id, err := e.namespace(ctx, p.Namespace)
	if err != nil {
		return nil, err
	}
	if p.Until != nil && !p.Until.After(e.clock.database(time.Now())) {
		return nil, task.Invalid("until", "a pause ends in the future")
	}
	p, revision, err := e.store.PauseHandler(ctx, id, p)
	if err != nil {
		return nil, err
	}
	e.tellPaused(ctx, id, revision)
	p.Namespace = cmp.Or(p.Namespace, DefaultNamespace)
	return &p, nil
}

// ResumeHandler ends a handler's pause, or with an empty one the whole namespace's, and gives it. nil: there was none.
func (e *Engine) ResumeHandler(ctx context.Context, namespace, handler string, act store.Act) (*task.Pause, error) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), operateTimeout)
	defer done()
	id, ok, err := e.findNamespace(ctx, namespace)
	if err != nil || !ok {
		return nil, err
	}
	ended, revision, err := e.store.ResumeHandler(ctx, id, handler, act)
	if err != nil || ended == nil {
		return nil, err
	}
	e.tellPaused(ctx, id, revision)
	ended.Namespace = cmp.Or(namespace, DefaultNamespace)
	return ended, nil
}

// tellPaused lets this server and the others know.
func (e *Engine) tellPaused(ctx context.Context, namespaceID, revision int32) {
	e.notifier.paused(namespaceID, revision)
	e.heedPaused(ctx, namespaceID, revision)
}

// pausePlace is a place in a list of pauses: the page goes on behind it.
type pausePlace struct {
	Handler *string `json:"h"`
}

// ListPauses reads a page of a namespace's pauses that are in force, by handler, the whole namespace's first.
func (e *Engine) ListPauses(ctx context.Context, namespace string, r task.PageRequest) (page task.Page[task.Pause], err error) {
	namespace = cmp.Or(namespace, DefaultNamespace)
	filter := struct{ Verb, Namespace string }{"ListPauses", namespace}
	var key pausePlace
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	if r.Token != "" && (key.Handler == nil || strings.ContainsRune(*key.Handler, 0)) {
		return page, errPageToken()
	}
	id, ok, err := e.findNamespace(ctx, namespace)
	if err != nil || !ok {
		return page, err
	}
	limit := r.Limit()
	found, err := e.store.ListPauses(ctx, id, key.Handler, limit+1)
	if err != nil {
		return page, err
	}
	page.Items = values(found, limit)
	for i := range page.Items {
		page.Items[i].Namespace = namespace
	}
	if len(found) > limit {
		page.NextToken, err = pageToken(filter, pausePlace{&found[limit-1].Handler})
	}
	return page, err
}
