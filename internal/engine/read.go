package engine

import (
	"context"
	"slices"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// Bounds of one answer, in bytes of results.
const (
	maxLeafBytes       = 1 << 20
	maxDependencyBytes = 3_500_000
)

// filterWindow is how many rows of a list one page looks at when a filter thins it out.
const filterWindow = 1000

// findNamespace gives a namespace's id; ok is false when nobody has used it: it holds nothing then.
func (e *Engine) findNamespace(ctx context.Context, name string) (id int32, ok bool, err error) {
	if name == "" {
		name = DefaultNamespace
	}
	e.mu.Lock()
	id, ok = e.spaces[name]
	e.mu.Unlock()
	if ok {
		return id, true, nil
	}
	id, ok, err = e.store.FindNamespace(ctx, name)
	if ok {
		e.mu.Lock()
		e.spaces[name] = id
		e.mu.Unlock()
	}
	return id, ok, err
}

func noTask(id task.ID) error { return task.Refuse(task.TaskNotFound, "there is no task %s", id) }

func noStep(id task.StepID) error { return task.Refuse(task.StepNotFound, "there is no step %s", id) }

// GetTask reads a task and, if asked, the results of its leaves, in one snapshot.
func (e *Engine) GetTask(ctx context.Context, id task.ID, withContext, withLeaves bool) (v task.View, leaves task.LeafResults, err error) {
	if withLeaves {
		var ok bool
		v, leaves, ok, err = e.store.TaskWithLeaves(ctx, id, withContext, maxLeafBytes)
		if err == nil && !ok {
			err = noTask(id)
		}
		return v, leaves, err
	}
	found, err := e.store.Tasks(ctx, []task.ID{id}, withContext)
	if err != nil {
		return v, leaves, err
	}
	if len(found) == 0 {
		return v, leaves, noTask(id)
	}
	return found[0], leaves, nil
}

// taskKey is a place in a list of tasks: the page goes on below it.
type taskKey struct {
	ID task.ID `json:"t"`
}

// ListTasks reads a page of a namespace's tasks, the newest first. A filtered page may be short and have a token.
func (e *Engine) ListTasks(ctx context.Context, f task.Filter, r task.PageRequest) (page task.Page[task.View], err error) {
	slices.Sort(f.Labels)
	slices.Sort(f.States)
	filter := struct {
		Verb   string
		Filter task.Filter
	}{"ListTasks", f}
	var key taskKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	if r.Token != "" && key.ID <= 0 {
		return page, errPageToken()
	}
	namespaceID, ok, err := e.findNamespace(ctx, f.Namespace)
	if err != nil || !ok {
		return page, err
	}
	items, next, err := e.store.ListTasks(ctx, namespaceID, f, key.ID, r.Limit())
	if err != nil {
		return page, err
	}
	page.Items = items
	if next > 0 {
		page.NextToken, err = pageToken(filter, taskKey{next})
	}
	return page, err
}

// GetStep reads one step.
func (e *Engine) GetStep(ctx context.Context, id task.StepID, withPayloads bool) (task.StepView, error) {
	found, err := e.store.Steps(ctx, id.Task(), []int{id.No()}, withPayloads)
	if err != nil {
		return task.StepView{}, err
	}
	if len(found) == 0 {
		return task.StepView{}, noStep(id)
	}
	return found[0], nil
}

// stepKey is a place in a list of a task's steps: the page goes on above it.
type stepKey struct {
	No int `json:"s"`
}

// ListSteps reads a page of a task's steps, by number, in one of states (none: all).
func (e *Engine) ListSteps(ctx context.Context, id task.ID, states []task.StepState, r task.PageRequest) (page task.Page[task.StepView], err error) {
	slices.Sort(states)
	filter := struct {
		Verb   string
		Task   task.ID
		States []task.StepState
	}{"ListSteps", id, states}
	var key stepKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	if key.No < 0 || key.No > task.MaxSteps {
		return page, errPageToken()
	}
	count, ok, err := e.store.StepCount(ctx, id)
	if err != nil {
		return page, err
	}
	if !ok {
		return page, noTask(id)
	}
	limit := r.Limit()
	window := limit
	if len(states) > 0 {
		window = filterWindow
	}
	var numbers []int
	for no := key.No + 1; no <= count && len(numbers) < window; no++ {
		numbers = append(numbers, no)
	}
	if len(numbers) == 0 {
		return page, nil
	}
	last := numbers[len(numbers)-1]
	steps, err := e.store.Steps(ctx, id, numbers, false)
	if err != nil {
		return page, err
	}
	for _, s := range steps {
		if len(states) > 0 && !slices.Contains(states, s.State) {
			continue
		}
		if len(page.Items) == limit {
			last = page.Items[limit-1].ID.No()
			break
		}
		page.Items = append(page.Items, s)
	}
	if last < count {
		page.NextToken, err = pageToken(filter, stepKey{last})
	}
	return page, err
}

// attemptKey is a place in a list of dispatches: the page goes on below it.
type attemptKey struct {
	Dispatch int `json:"d"`
}

// ListStepAttempts reads a page of a step's dispatches, the newest first.
func (e *Engine) ListStepAttempts(ctx context.Context, id task.StepID, r task.PageRequest) (page task.Page[task.AttemptView], err error) {
	filter := struct {
		Verb string
		Step task.StepID
	}{"ListStepAttempts", id}
	var key attemptKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	if key.Dispatch < 0 || key.Dispatch > 1<<31-1 {
		return page, errPageToken()
	}
	count, ok, err := e.store.StepCount(ctx, id.Task())
	if err != nil {
		return page, err
	}
	if !ok || id.No() > count {
		return page, noStep(id)
	}
	limit := r.Limit()
	page.Items, err = e.store.Attempts(ctx, id, key.Dispatch, limit)
	if err == nil && len(page.Items) == limit && page.Items[limit-1].Dispatch > 1 {
		page.NextToken, err = pageToken(filter, attemptKey{page.Items[limit-1].Dispatch})
	}
	return page, err
}

// workerKey is a place in a list of sessions: the page goes on above it.
type workerKey struct {
	Worker  string `json:"w"`
	Session int32  `json:"s"`
}

// ListWorkers reads a page of a namespace's worker sessions, by worker_id. handler, if set, must be one they take.
func (e *Engine) ListWorkers(ctx context.Context, namespace, handler string, r task.PageRequest) (page task.Page[task.WorkerView], err error) {
	filter := struct{ Verb, Namespace, Handler string }{"ListWorkers", namespace, handler}
	var key workerKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	namespaceID, ok, err := e.findNamespace(ctx, namespace)
	if err != nil || !ok {
		return page, err
	}
	limit := r.Limit()
	page.Items, err = e.store.Workers(ctx, namespaceID, store.WorkerKey{WorkerID: key.Worker, SessionID: key.Session}, limit, handler)
	if err == nil && len(page.Items) == limit {
		page.NextToken, err = pageToken(filter, workerKey{Worker: page.Items[limit-1].WorkerID, Session: page.Items[limit-1].SessionID})
	}
	return page, err
}

// GetDependencyResults reads a page of the results of a leased step's parents, by number: of all of them, or of those
// named. A page holds at most maxDependencyBytes, but at least one result.
func (e *Engine) GetDependencyResults(ctx context.Context, token task.Token, names []string, r task.PageRequest) (page task.Page[task.DependencyResult], err error) {
	filter := struct {
		Verb  string
		Token task.Token
		Names []string
	}{"GetDependencyResults", token, names}
	var key stepKey
	if err := parsePageToken(r.Token, filter, &key); err != nil {
		return page, err
	}
	if key.No < 0 || key.No > task.MaxSteps {
		return page, errPageToken()
	}
	held, err := e.store.LeaseHeld(ctx, token)
	if err != nil {
		return page, err
	}
	if !held {
		return page, task.Refuse(task.LeaseLost, "the lease is lost")
	}
	found, err := e.store.NamedDependencyResults(ctx, token.Step, names, key.No, r.Limit(), maxDependencyBytes)
	if err != nil || len(found) == 0 {
		return page, err
	}
	for _, f := range found {
		page.Items = append(page.Items, task.DependencyResult{Name: f.Name, Results: f.Results})
	}
	last := found[len(found)-1].StepNo
	rest, err := e.store.NamedDependencyResults(ctx, token.Step, names, last, 1, 0)
	if err == nil && len(rest) > 0 {
		page.NextToken, err = pageToken(filter, stepKey{last})
	}
	return page, err
}
