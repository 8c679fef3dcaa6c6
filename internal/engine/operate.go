package engine

import (
	"context"
	"slices"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// operateTimeout bounds an operator's act once it has begun: its commit is never cancelled by a caller that goes away.
const operateTimeout = 30 * time.Second

// CancelTask ends every unfinished step of a task and tells the workers of those that run.
func (e *Engine) CancelTask(ctx context.Context, id task.ID, act store.Act) (task.CancelAnswer, error) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), operateTimeout)
	defer done()
	answer, change, err := e.store.CancelTask(ctx, id, act)
	if err == nil {
		e.changed(change)
	}
	return answer, err
}

// RetryStep makes a step in error due now, as new, and re-opens its task.
func (e *Engine) RetryStep(ctx context.Context, id task.StepID, act store.Act) (task.StepView, error) {
	return e.operate(ctx, func(ctx context.Context) (task.StepView, store.Change, error) {
		return e.store.RetryStep(ctx, id, act)
	})
}

// ResolveStep ends a step in error as resolved_manually; its dependants go on.
func (e *Engine) ResolveStep(ctx context.Context, id task.StepID, act store.Act) (task.StepView, error) {
	return e.operate(ctx, func(ctx context.Context) (task.StepView, store.Change, error) {
		return e.store.ResolveStep(ctx, id, act)
	})
}

// CompleteStep ends a step in error as complete, with results (one JSON object; empty means {}).
func (e *Engine) CompleteStep(ctx context.Context, id task.StepID, results string, act store.Act) (task.StepView, error) {
	if results == "" {
		results = "{}"
	}
	return e.operate(ctx, func(ctx context.Context) (task.StepView, store.Change, error) {
		return e.store.CompleteStep(ctx, id, results, act)
	})
}

// operate does an act on a step and tells of it.
func (e *Engine) operate(ctx context.Context, act func(context.Context) (task.StepView, store.Change, error)) (task.StepView, error) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), operateTimeout)
	defer done()
	step, change, err := act(ctx)
	if err == nil {
		e.changed(change)
	}
	return step, err
}

// bulkKey is a place in a list of steps over all tasks: the page goes on above it.
type bulkKey struct {
	Task int64 `json:"t"`
	Step int   `json:"s"`
}

// BulkRetrySteps does RetryStep to the steps in error that a filter finds. It answers how many, and a token to go on with.
func (e *Engine) BulkRetrySteps(ctx context.Context, r task.BulkRetry, token string) (retried int, next string, err error) {
	slices.Sort(r.Tasks)
	f := r
	f.MaxSteps, f.Spread, f.Actor, f.Reason = 0, 0, "", ""
	filter := struct {
		Verb   string
		Filter task.BulkRetry
	}{"BulkRetrySteps", f}
	var key bulkKey
	if err := parsePageToken(token, filter, &key); err != nil {
		return 0, "", err
	}
	if key.Step < 0 || key.Step > task.MaxSteps {
		return 0, "", errPageToken()
	}
	namespaceID, ok, err := e.findNamespace(ctx, r.Namespace)
	if err != nil || !ok {
		return 0, "", err
	}
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), operateTimeout)
	defer done()
	retried, after, more, change, err := e.store.BulkRetrySteps(ctx, namespaceID, r, store.StepKey{TaskID: key.Task, StepNo: key.Step})
	if err != nil {
		return 0, "", err
	}
	e.changed(change)
	if more {
		next, err = pageToken(filter, bulkKey{Task: after.TaskID, Step: after.StepNo})
	}
	return retried, next, err
}

// PurgeTask deletes an ended task with everything that belongs to it.
func (e *Engine) PurgeTask(ctx context.Context, id task.ID, act store.Act) error {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), operateTimeout)
	defer done()
	change, err := e.store.PurgeTask(ctx, id, act)
	if err == nil {
		e.changed(change)
	}
	return err
}
