package engine

import (
	"context"
	"io"
	"slices"
	"time"

	"github.com/taskerhq/tasker/internal/task"
)

// watchEvery is how often a watched task is looked at when nobody says that it changed: on another server, say, whose
// word was lost.
const watchEvery = 2 * time.Second

// Watch follows one task. It never queues: whoever reads slowly is handed the newest state, and skips what came between.
type Watch struct {
	e         *Engine
	id        task.ID
	namespace string
	untilIdle bool
	revision  int64 // the last one handed out, or the one to resume after
	first     bool
	over      bool
	known     map[task.StepID]int64 // steps as handed out: id → event_no
	ping      chan struct{}
}

// TaskChange is one frame of a Watch: the task, and the steps that changed since the last frame.
type TaskChange struct {
	Revision int64 // the number of events of the task's steps so far: it rises with every change
	Snapshot bool  // Steps are all steps
	Task     *task.View
	Steps    []task.StepView
}

// WatchTask begins to follow a task. afterRevision resumes: a task that has not moved since is not sent again.
func (e *Engine) WatchTask(ctx context.Context, id task.ID, afterRevision int64, untilIdle bool) (*Watch, error) {
	t, _, err := e.GetTask(ctx, id, false, false)
	if err != nil {
		return nil, err
	}
	w := &Watch{
		e: e, id: id, namespace: t.Namespace, untilIdle: untilIdle, revision: afterRevision, first: true,
		known: map[task.StepID]int64{}, ping: make(chan struct{}, 1),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watching[w.namespace] >= e.conf.MaxStreams {
		return nil, task.Refuse(task.TooManyStreams, "this server has its fill of watches in this namespace").After(5 * time.Second)
	}
	e.watching[w.namespace]++
	e.watches[id] = append(e.watches[id], w)
	return w, nil
}

// Close ends the watch.
func (w *Watch) Close() {
	w.e.mu.Lock()
	defer w.e.mu.Unlock()
	if !slices.Contains(w.e.watches[w.id], w) {
		return // closed before
	}
	if w.e.watching[w.namespace]--; w.e.watching[w.namespace] == 0 {
		delete(w.e.watching, w.namespace)
	}
	left := slices.DeleteFunc(w.e.watches[w.id], func(x *Watch) bool { return x == w })
	if len(left) == 0 {
		delete(w.e.watches, w.id)
		return
	}
	w.e.watches[w.id] = left
}

// Next waits until the task has changed since the last frame. io.EOF follows the frame in which the task is complete or
// cancelled, or, with untilIdle, in error.
func (w *Watch) Next(ctx context.Context) (*TaskChange, error) {
	if w.over {
		return nil, io.EOF
	}
	for {
		c, err := w.look(ctx)
		if err != nil || c != nil {
			return c, err
		}
		if w.over {
			return nil, io.EOF
		}
		timer := time.NewTimer(watchEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		case <-w.ping:
			timer.Stop()
		}
	}
}

// look reads the task, and answers nil when nothing changed.
func (w *Watch) look(ctx context.Context) (*TaskChange, error) {
	view, steps, revision, err := w.e.store.WatchedTask(ctx, w.id)
	if err != nil {
		return nil, err
	}
	w.over = view.State == task.Complete || view.State == task.Cancelled || w.untilIdle && view.State == task.Errored
	if revision <= w.revision && (!w.first || w.revision != 0) {
		return nil, nil //nolint:nilnil // nothing new
	}
	c := &TaskChange{Revision: revision, Snapshot: w.first, Task: view}
	for _, s := range steps {
		if w.first || w.known[s.View.ID] != s.EventNo {
			c.Steps = append(c.Steps, s.View)
		}
		w.known[s.View.ID] = s.EventNo
	}
	w.first, w.revision = false, revision
	return c, nil
}

func (e *Engine) pingWatches(id task.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.watches[id] {
		select {
		case w.ping <- struct{}{}:
		default:
		}
	}
}
