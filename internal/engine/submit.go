package engine

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// Bounds of the tasks that share a transaction with reports, which wait for it.
const (
	maxSubmits     = 500
	maxSubmitSteps = 1000
)

// A task of more steps or bytes than these is large: it has a transaction of its own, so that it holds up neither reports nor
// other tasks. Of a namespace, two of them are under way at a time.
const (
	largeSteps      = 100
	largeBytes      = 64 << 10
	maxLargeSubmits = 2
)

// pendingSubmit is a task that waits for its transaction.
type pendingSubmit struct {
	task store.NewTask
	size int               // bytes
	done chan submitAnswer // buffered
}

type submitAnswer struct {
	store.SubmitAnswer
	err error
}

func (p *pendingSubmit) answer(a store.SubmitAnswer, err error) { p.done <- submitAnswer{a, err} }

func goingAway() error {
	return task.Refuse(task.Draining, "this server is going away").After(time.Second)
}

// Submit stores tasks of one namespace; they are stored when it returns. Tasks of concurrent calls share transactions with
// each other and with reports, unless they are large. With allOrNothing the tasks have a transaction of their own, and one
// refusal stores none.
func (e *Engine) Submit(ctx context.Context, subs []*task.Submission, allOrNothing bool) ([]store.SubmitAnswer, error) {
	namespaceID, err := e.namespace(ctx, subs[0].Namespace)
	if err != nil {
		return nil, err
	}
	if err := e.admit(len(subs)); err != nil {
		return nil, err
	}
	defer e.dismiss(len(subs))
	tasks, err := e.number(ctx, namespaceID, subs)
	if err != nil {
		return nil, err
	}
	if allOrNothing {
		return e.submitAlone(ctx, namespaceID, tasks, true)
	}
	if slices.ContainsFunc(tasks, large) {
		places := e.hub(namespaceID).large
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		defer func() { <-places }()
		return e.submitAlone(ctx, namespaceID, tasks, false)
	}
	pending := make([]*pendingSubmit, len(tasks))
	for i, t := range tasks {
		pending[i] = &pendingSubmit{task: t, size: size(t), done: make(chan submitAnswer, 1)}
	}
	e.hub(namespaceID).enqueueSubmits(pending)
	answers := make([]store.SubmitAnswer, len(tasks))
	for i, p := range pending {
		select {
		case a := <-p.done:
			if a.err != nil {
				return nil, a.err
			}
			answers[i] = a.SubmitAnswer
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return answers, nil
}

// large tells whether a task is to have a transaction of its own.
func large(t store.NewTask) bool { return len(t.Steps) > largeSteps || size(t) > largeBytes }

// size is the payload of a task, in bytes.
func size(t store.NewTask) int {
	n := len(t.Context)
	for i := range t.Steps {
		n += len(t.Steps[i].HandlerConfig)
	}
	return n
}

// submitAlone stores tasks in a transaction of their own.
func (e *Engine) submitAlone(ctx context.Context, namespaceID int32, tasks []store.NewTask, allOrNothing bool) ([]store.SubmitAnswer, error) {
	// Not the caller's context: a commit under way is never cancelled.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	answers, change, err := e.store.Submit(ctx, namespaceID, tasks, allOrNothing)
	e.stats.stored(answers, err)
	if err == nil {
		e.changed(change)
	}
	return answers, err
}

// Submitted finds the task that an idempotency key made of a body with this digest; ok is false when there is none.
func (e *Engine) Submitted(ctx context.Context, namespace, key string, digest []byte) (id task.ID, ok bool, err error) {
	namespaceID, ok, err := e.findNamespace(ctx, namespace)
	if err != nil || !ok {
		return 0, false, err
	}
	id, made, ok, err := e.store.Submitted(ctx, namespaceID, key)
	return id, ok && bytes.Equal(made, digest), err
}

// number gives tasks their ids and steps their lanes.
func (e *Engine) number(ctx context.Context, namespaceID int32, subs []*task.Submission) ([]store.NewTask, error) {
	ids, err := e.ids.Take(ctx, len(subs))
	if err != nil {
		return nil, err
	}
	tasks := make([]store.NewTask, len(subs))
	for i, sub := range subs {
		tasks[i] = store.NewTask{ID: ids[i], Submission: sub, Lanes: make([]int32, len(sub.Steps))}
		for k := range sub.Steps {
			s := &sub.Steps[k]
			tasks[i].Lanes[k], err = e.laneID(ctx, store.Lane{NamespaceID: namespaceID, Handler: s.Handler, Circuit: s.Circuit, Priority: s.Priority})
			if err != nil {
				return nil, err
			}
		}
	}
	return tasks, nil
}

func (h *hub) enqueueSubmits(pending []*pendingSubmit) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		for _, p := range pending {
			p.answer(store.SubmitAnswer{}, goingAway())
		}
		return
	}
	h.submits = append(h.submits, pending...)
	h.gathered()
}

// takeSubmits needs h.mu.
func (h *hub) takeSubmits() []*pendingSubmit {
	n, steps, payload := 0, 0, 0
	for n < len(h.submits) && n < maxSubmits && steps < maxSubmitSteps && payload < maxBatchBytes {
		steps += len(h.submits[n].task.Steps)
		payload += h.submits[n].size
		n++
	}
	taken := h.submits[:n:n]
	h.submits = h.submits[n:]
	return taken
}
