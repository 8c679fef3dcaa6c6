package engine

import (
	"bytes"
	"context"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// Bounds of one submit transaction.
const (
	maxSubmitTasks = 500
	maxSubmitSteps = 10_000
)

// pendingSubmit is a task that waits for its transaction.
type pendingSubmit struct {
	task store.NewTask
	done chan submitAnswer // buffered
}

type submitAnswer struct {
	store.SubmitAnswer
	err error
}

// Submit stores tasks of one namespace; they are stored when it returns. Single tasks of concurrent calls share
// transactions. With allOrNothing the tasks have a transaction of their own, and one refusal stores none.
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
		// Not the caller's context: a commit under way is never cancelled.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		answers, change, err := e.store.Submit(ctx, namespaceID, tasks, true)
		if err == nil {
			e.changed(change)
		}
		return answers, err
	}
	pending := make([]*pendingSubmit, len(tasks))
	for i, t := range tasks {
		pending[i] = &pendingSubmit{task: t, done: make(chan submitAnswer, 1)}
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
			p.done <- submitAnswer{err: task.Refuse(task.Draining, "this server is going away").After(time.Second)}
		}
		return
	}
	h.submits = append(h.submits, pending...)
	h.stored.Signal()
}

// submitLoop stores what has gathered, as flushLoop records reports.
func (h *hub) submitLoop() {
	for {
		h.mu.Lock()
		for len(h.submits) == 0 && !h.closed {
			h.stored.Wait()
		}
		n, steps := 0, 0
		for n < len(h.submits) && n < maxSubmitTasks && (n == 0 || steps+len(h.submits[n].task.Steps) <= maxSubmitSteps) {
			steps += len(h.submits[n].task.Steps)
			n++
		}
		batch := h.submits[:n:n]
		h.submits = h.submits[n:]
		closed := h.closed
		h.mu.Unlock()
		if closed {
			for _, p := range batch {
				p.done <- submitAnswer{err: task.Refuse(task.Draining, "this server is going away").After(time.Second)}
			}
			if n == 0 {
				return
			}
			continue
		}
		h.storeTasks(batch)
	}
}

func (h *hub) storeTasks(batch []*pendingSubmit) {
	ctx, cancel := context.WithTimeout(h.e.background, flushTimeout)
	defer cancel()
	tasks := make([]store.NewTask, len(batch))
	for i, p := range batch {
		tasks[i] = p.task
	}
	answers, change, err := h.e.store.Submit(ctx, h.id, tasks, false)
	if store.DataError(err) && len(batch) > 1 {
		// A value that the database refuses must not fail its neighbours.
		h.storeTasks(batch[:len(batch)/2])
		h.storeTasks(batch[len(batch)/2:])
		return
	}
	h.e.stats.submitted.Add(int64(len(batch)))
	if err == nil {
		h.e.changed(change)
	}
	for i, p := range batch {
		if err != nil {
			p.done <- submitAnswer{err: err}
			continue
		}
		p.done <- submitAnswer{SubmitAnswer: answers[i]}
	}
}
