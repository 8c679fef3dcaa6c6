//go:build linux

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
)

// window is how many tasks may be unfinished before clients wait, so that they submit all through the run.
const window = 250

// load is what all clients and operators share.
type load struct {
	fleet *fleet
	room  atomic.Int64 // steps that are still to be submitted
	ended atomic.Int64 // tasks, by the database
	sent  atomic.Int64 // tasks
	tries atomic.Int64 // calls that had to be made again

	mu        sync.Mutex
	tasks     map[int64]*graph
	cancelled map[int64]bool // acknowledged
	repaired  map[int64]bool // tasks that operators have had a hand in
}

// passing are the codes of what a client may meet while servers and their database come and go.
var passing = []codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.ResourceExhausted}

// client submits graphs. It writes down what it sends before it sends it, and what it is answered.
type client struct {
	*load
	number  int
	draw    *rand.Rand
	journal *history.Journal
	serial  int
	doomed  []int64 // to be cancelled
}

func (l *load) submitAll(ctx context.Context, number int, seed uint64) (err error) {
	c := &client{load: l, number: number, draw: rand.New(rand.NewPCG(seed, uint64(number)))}
	if c.journal, err = history.OpenJournal(filepath.Join(l.fleet.dir, fmt.Sprintf("client-%d.journal", number))); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.journal.Close()) }()
	for {
		for l.sent.Load()-l.ended.Load() > window {
			if !sleep(ctx, 20*time.Millisecond) {
				return context.Cause(ctx)
			}
		}
		graphs := c.next()
		if len(graphs) == 0 {
			return c.cancelSome(ctx, true)
		}
		l.sent.Add(int64(len(graphs)))
		if err := c.submit(ctx, graphs); err != nil {
			return fmt.Errorf("submitting %s: %w", graphs[0].key, err)
		}
		if c.draw.IntN(25) == 0 {
			if err := c.submit(ctx, graphs); err != nil {
				return fmt.Errorf("submitting %s again: %w", graphs[0].key, err)
			}
		}
		if err := c.cancelSome(ctx, false); err != nil {
			return err
		}
	}
}

// next draws the tasks of one call, all of one namespace; none when enough are submitted.
func (c *client) next() (graphs []*graph) {
	namespace := namespaces[c.draw.IntN(len(namespaces))]
	for range 1 + c.draw.IntN(4) {
		c.serial++
		c.mu.Lock() // The room is given out to one at a time.
		if room := int(c.room.Load()); room > 0 {
			g := drawGraph(c.draw, namespace, fmt.Sprintf("client-%d-task-%d", c.number, c.serial), room)
			g.toBeCancelled = c.serial%12 == 5
			c.room.Add(-int64(g.size()))
			graphs = append(graphs, g)
		}
		c.mu.Unlock()
	}
	return graphs
}

// submit asks one server after another until the tasks are acknowledged.
func (c *client) submit(ctx context.Context, graphs []*graph) error {
	for _, g := range graphs {
		if err := c.journal.Write(history.Entry{Kind: history.SubmitSent, Namespace: g.namespace, Key: g.key}); err != nil {
			return err
		}
	}
	var (
		ids   []int64
		again []bool
	)
	err := c.ask(ctx, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		ids, again, err = c.call(ctx, taskerv1.NewTaskServiceClient(conn), graphs)
		return err
	})
	if err != nil {
		return err
	}
	for i, g := range graphs {
		entry := history.Entry{Kind: history.SubmitAnswered, Namespace: g.namespace, Key: g.key, TaskID: ids[i], AlreadySubmitted: again[i]}
		if err := c.journal.Write(entry); err != nil {
			return err
		}
		c.mu.Lock()
		_, known := c.tasks[ids[i]]
		c.tasks[ids[i]] = g
		c.mu.Unlock()
		if known && !again[i] {
			return fmt.Errorf("task %d was submitted again and called new", ids[i])
		}
		if g.toBeCancelled && !known {
			c.doomed = append(c.doomed, ids[i])
		}
	}
	return nil
}

// call makes one call: a single submit or a batch.
func (c *client) call(ctx context.Context, tasks taskerv1.TaskServiceClient, graphs []*graph) (ids []int64, again []bool, err error) {
	results := []*taskerv1.BatchSubmitTasksResult{}
	if len(graphs) == 1 {
		answer, err := tasks.SubmitTask(ctx, &taskerv1.SubmitTaskRequest{Namespace: graphs[0].namespace, Task: graphs[0].submission})
		if err != nil {
			return nil, nil, err
		}
		results = append(results, &taskerv1.BatchSubmitTasksResult{TaskId: answer.GetTask().GetTaskId(), AlreadySubmitted: answer.GetAlreadySubmitted()})
	} else {
		request := &taskerv1.BatchSubmitTasksRequest{Namespace: graphs[0].namespace}
		for _, g := range graphs {
			request.Tasks = append(request.Tasks, g.submission)
		}
		answer, err := tasks.BatchSubmitTasks(ctx, request)
		if err != nil {
			return nil, nil, err
		}
		results = answer.GetResults()
	}
	if len(results) != len(graphs) {
		return nil, nil, fmt.Errorf("%d tasks submitted, %d answered", len(graphs), len(results))
	}
	for _, result := range results {
		id, err := strconv.ParseInt(result.GetTaskId(), 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("reading a task id: %w", err)
		}
		ids, again = append(ids, id), append(again, result.GetAlreadySubmitted())
	}
	return ids, again, nil
}

// cancelSome cancels some of the tasks that are to be cancelled, or all.
func (c *client) cancelSome(ctx context.Context, all bool) error {
	for len(c.doomed) > 0 && (all || c.draw.IntN(2) == 0) {
		id := c.doomed[0]
		c.doomed = c.doomed[1:]
		err := c.ask(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
			_, err := taskerv1.NewTaskServiceClient(conn).CancelTask(ctx, &taskerv1.CancelTaskRequest{TaskId: strconv.FormatInt(id, 10), Reason: "chaos"})
			return err
		})
		switch {
		case err == nil:
			c.mu.Lock()
			c.cancelled[id] = true
			c.mu.Unlock()
		case status.Code(err) != codes.FailedPrecondition: // it was complete before
			return fmt.Errorf("cancelling task %d: %w", id, err)
		}
	}
	return nil
}

// ask makes a call until there is an answer, each time of another server. Now and then it hangs up early, which leaves it
// open whether the call took effect.
func (c *client) ask(ctx context.Context, call func(context.Context, *grpc.ClientConn) error) error {
	for {
		patience := 5 * time.Second
		if c.draw.IntN(15) == 0 {
			patience = time.Duration(c.draw.IntN(20_000)) * time.Microsecond
		}
		try, cancel := context.WithTimeout(ctx, patience)
		err := call(try, c.fleet.anyServer(c.draw))
		cancel()
		if err == nil || ctx.Err() != nil || !slices.Contains(passing, status.Code(err)) {
			return err
		}
		c.tries.Add(1)
		if !sleep(ctx, time.Duration(c.draw.IntN(200))*time.Millisecond) {
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

// operate repairs failed steps, as people would, until ctx ends.
func (l *load) operate(ctx context.Context, seed uint64) error {
	draw := rand.New(rand.NewPCG(seed, 1<<32))
	for sleep(ctx, time.Duration(100+draw.IntN(300))*time.Millisecond) {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := l.repairOne(call, draw)
		cancel()
		// A step that moved on meanwhile is nobody's fault.
		if code := status.Code(err); ctx.Err() == nil && err != nil && code != codes.FailedPrecondition && !slices.Contains(passing, code) {
			return fmt.Errorf("repairing a step: %w", err)
		}
	}
	return nil
}

// repairOne takes some task in error and retries, resolves or completes one of its failed steps.
func (l *load) repairOne(ctx context.Context, draw *rand.Rand) error {
	conn := l.fleet.anyServer(draw)
	listed, err := taskerv1.NewTaskServiceClient(conn).ListTasks(ctx, &taskerv1.ListTasksRequest{
		Namespace: namespaces[draw.IntN(len(namespaces))], States: []taskerv1.TaskState{taskerv1.TaskState_TASK_STATE_ERROR}, PageSize: 20,
	})
	if err != nil || len(listed.GetTasks()) == 0 {
		return err
	}
	task := listed.GetTasks()[draw.IntN(len(listed.GetTasks()))]
	steps := taskerv1.NewStepServiceClient(l.fleet.anyServer(draw))
	failed, err := steps.ListSteps(ctx, &taskerv1.ListStepsRequest{TaskId: task.GetTaskId(), States: []taskerv1.StepState{taskerv1.StepState_STEP_STATE_ERROR}})
	if err != nil || len(failed.GetSteps()) == 0 {
		return err
	}
	id, err := strconv.ParseInt(task.GetTaskId(), 10, 64)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.repaired[id] = true
	l.mu.Unlock()
	step := failed.GetSteps()[draw.IntN(len(failed.GetSteps()))].GetStepId()
	switch draw.IntN(4) {
	case 0:
		_, err = steps.BulkRetrySteps(ctx, &taskerv1.BulkRetryStepsRequest{
			Filter: &taskerv1.BulkRetryFilter{TaskIds: []string{task.GetTaskId()}}, SpreadDuration: durationpb.New(time.Second), Reason: "chaos",
		})
	case 1:
		_, err = steps.RetryStep(ctx, &taskerv1.RetryStepRequest{StepId: step, Reason: "chaos"})
	case 2:
		_, err = steps.ResolveStep(ctx, &taskerv1.ResolveStepRequest{StepId: step, Reason: "chaos"})
	default:
		_, err = steps.CompleteStep(ctx, &taskerv1.CompleteStepRequest{StepId: step, Results: `{"by": "hand"}`, Reason: "chaos"})
	}
	return err
}
