package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
)

// graph draws a task of 4 to 14 steps. Delays are short and limits wide, so that most of them complete.
func graph() *taskerv1.InlineSteps {
	g := &taskerv1.InlineSteps{}
	for no := range 4 + rand.IntN(11) {
		s := &taskerv1.StepDefinition{
			Name: fmt.Sprintf("s%d", no+1), Handler: pointer(handlers[rand.IntN(len(handlers))]),
			RetryLimit: pointer[int32](8), MaxLostLeases: pointer[int32](20), NonRetryableCodes: []string{"FINAL"},
			Backoff: &taskerv1.BackoffPolicy{Initial: durationpb.New(50 * time.Millisecond), Max: durationpb.New(400 * time.Millisecond)},
			Lease:   durationpb.New(5 * time.Second), Priority: pointer(int32(rand.IntN(4))),
		}
		if rand.IntN(4) == 0 {
			s.HandlerConfig = `{"timeout": 1}`
		}
		// Mostly the steps just before, so that graphs are deep as well as wide.
		for parent := range no {
			if rand.IntN(no+1) < 2 || parent == no-1 && rand.IntN(3) > 0 {
				s.DependsOn = append(s.DependsOn, fmt.Sprintf("s%d", parent+1))
			}
		}
		g.Steps = append(g.Steps, s)
	}
	return g
}

func pointer[T any](v T) *T { return &v }

// submitTasks is the role of a client: it submits tasks until it was answered for so many steps, spread over a time. Every
// submit is written down before it is first sent, and its answer before it is believed.
func submitTasks(ctx context.Context, conn *grpc.ClientConn) error {
	name := os.Getenv("CHAOS_NAME")
	wanted, err := strconv.Atoi(os.Getenv("CHAOS_STEPS"))
	if err != nil {
		return err
	}
	spread, err := time.ParseDuration(os.Getenv("CHAOS_SPREAD"))
	if err != nil {
		return err
	}
	journal, err := history.OpenJournal(os.Getenv("CHAOS_JOURNAL"))
	if err != nil {
		return err
	}
	const callers = 4
	var (
		all  sync.WaitGroup
		mu   sync.Mutex
		errs error
	)
	began := time.Now()
	for caller := range callers {
		all.Go(func() {
			c := &client{tasks: taskerv1.NewTaskServiceClient(conn), journal: journal}
			for n, steps := 0, 0; steps < wanted/callers; n++ {
				count, err := c.submit(ctx, fmt.Sprintf("%s-%d-%d", name, caller, n))
				if err != nil {
					mu.Lock()
					errs = errors.Join(errs, err)
					mu.Unlock()
					return
				}
				steps += count
				pause(ctx, time.Until(began.Add(spread*time.Duration(steps)/time.Duration(wanted/callers))))
			}
		})
	}
	all.Wait()
	return errors.Join(errs, journal.Close())
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

type client struct {
	tasks   taskerv1.TaskServiceClient
	journal *history.Journal
}

// submit submits one or a few tasks, as often as it takes.
func (c *client) submit(ctx context.Context, key string) (steps int, err error) {
	request := &taskerv1.BatchSubmitTasksRequest{}
	for n := range 1 + rand.IntN(3) {
		g := graph()
		steps += len(g.GetSteps())
		request.Tasks = append(request.Tasks, &taskerv1.TaskSubmission{
			Name: pointer("chaos"), Definition: &taskerv1.TaskSubmission_Inline{Inline: g}, IdempotencyKey: pointer(fmt.Sprintf("%s-%d", key, n)),
		})
	}
	for _, t := range request.GetTasks() {
		if err := c.journal.Write(history.Entry{Kind: history.SubmitSent, Namespace: "default", Key: t.GetIdempotencyKey()}); err != nil {
			return 0, err
		}
	}
	for {
		var entries []history.Entry
		entries, err = c.try(ctx, request)
		if err == nil {
			for _, e := range entries {
				if err := c.journal.Write(e); err != nil {
					return 0, err
				}
			}
			return steps, nil
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.ResourceExhausted, codes.Canceled:
		default:
			return 0, fmt.Errorf("submitting %s: %w", key, err)
		}
		if ctx.Err() != nil {
			return 0, errors.Join(err, context.Cause(ctx))
		}
		pause(ctx, rand.N(300*time.Millisecond))
	}
}

// try makes one call: for one task either of the two.
func (c *client) try(ctx context.Context, request *taskerv1.BatchSubmitTasksRequest) (entries []history.Entry, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	answered := func(key, taskID string, already bool) error {
		id, err := strconv.ParseInt(taskID, 10, 64)
		entries = append(entries, history.Entry{
			Kind: history.SubmitAnswered, Namespace: "default", Key: key, TaskID: id, AlreadySubmitted: already,
		})
		return err
	}
	if tasks := request.GetTasks(); len(tasks) == 1 {
		r, err := c.tasks.SubmitTask(ctx, &taskerv1.SubmitTaskRequest{Task: tasks[0]})
		if err != nil {
			return nil, err
		}
		return entries, answered(tasks[0].GetIdempotencyKey(), r.GetTask().GetTaskId(), r.GetAlreadySubmitted())
	}
	r, err := c.tasks.BatchSubmitTasks(ctx, request)
	if err != nil {
		return nil, err
	}
	for i, t := range request.GetTasks() {
		if err := answered(t.GetIdempotencyKey(), r.GetResults()[i].GetTaskId(), r.GetResults()[i].GetAlreadySubmitted()); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

// operate is the role of an operator, who retries, resolves, completes and cancels at random until told to stop.
func operate(ctx context.Context, conn *grpc.ClientConn) error {
	tasks, steps := taskerv1.NewTaskServiceClient(conn), taskerv1.NewStepServiceClient(conn)
	for ctx.Err() == nil {
		pause(ctx, rand.N(200*time.Millisecond))
		call, cancel := context.WithTimeout(ctx, 3*time.Second)
		err := act(call, tasks, steps)
		cancel()
		switch status.Code(err) {
		case codes.OK, codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.Canceled, codes.FailedPrecondition,
			codes.NotFound, codes.ResourceExhausted:
		default:
			return fmt.Errorf("operating: %w", err)
		}
	}
	return nil
}

func act(ctx context.Context, tasks taskerv1.TaskServiceClient, steps taskerv1.StepServiceClient) error {
	const reason = "chaos"
	page, err := tasks.ListTasks(ctx, &taskerv1.ListTasksRequest{PageSize: 40})
	if err != nil || len(page.GetTasks()) == 0 {
		return err
	}
	t := page.GetTasks()[rand.IntN(len(page.GetTasks()))]
	switch n := rand.IntN(20); n {
	case 0:
		_, err = tasks.CancelTask(ctx, &taskerv1.CancelTaskRequest{TaskId: t.GetTaskId(), Reason: reason})
		return err
	case 1:
		_, err = steps.BulkRetrySteps(ctx, &taskerv1.BulkRetryStepsRequest{
			Filter: &taskerv1.BulkRetryFilter{ErrorCodes: []string{"BAD", "FINAL"}}, SpreadDuration: durationpb.New(time.Second), Reason: reason,
		})
		return err
	default:
		list, err := steps.ListSteps(ctx, &taskerv1.ListStepsRequest{TaskId: t.GetTaskId()})
		if err != nil {
			return err
		}
		for _, s := range list.GetSteps() {
			if s.GetState() != taskerv1.StepState_STEP_STATE_ERROR {
				continue
			}
			switch n % 3 {
			case 0:
				_, err = steps.RetryStep(ctx, &taskerv1.RetryStepRequest{StepId: s.GetStepId(), Reason: reason})
			case 1:
				_, err = steps.ResolveStep(ctx, &taskerv1.ResolveStepRequest{StepId: s.GetStepId(), Reason: reason})
			case 2:
				_, err = steps.CompleteStep(ctx, &taskerv1.CompleteStepRequest{StepId: s.GetStepId(), Results: `{"by": "hand"}`, Reason: reason})
			}
			return err
		}
	}
	return nil
}
