package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// watchPause bounds the wait before a broken watch is resumed.
const watchPause = time.Second

// follow hands every frame of a task to take until the task has ended, and returns the task as it ended. It resumes after a
// lost connection, for as long as it takes: a person can end it. What take answers ends it. With idle it also ends at error.
func (s *session) follow(ctx context.Context, id string, idle bool, take func(*taskerv1.WatchTaskResponse) error) (*taskerv1.Task, error) {
	request := &taskerv1.WatchTaskRequest{TaskId: id, UntilIdle: idle}
	var (
		task   *taskerv1.Task
		failed error
	)
	taken := func(frame *taskerv1.WatchTaskResponse) error {
		failed = take(frame)
		return failed
	}
	for {
		err := s.followOnce(ctx, request, &task, taken)
		switch {
		case failed != nil:
			return nil, failed
		case err == nil:
			return task, nil
		}
		// Before the first frame nothing shows that there is such a task, or such a server.
		if task == nil || !resumes(err) || ctx.Err() != nil {
			return nil, fmt.Errorf("watching task %s: %w", id, err)
		}
		fmt.Fprintf(s.cli.stderr, "tasker: watching again: %v\n", status.Convert(err).Message())
		timer := time.NewTimer(rand.N(watchPause)) //nolint:gosec // Jitter is no secret.
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("watching task %s: %w", id, ctx.Err())
		}
	}
}

// resumes says whether a watch that ended so can go on.
func resumes(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.Internal, codes.Unknown, codes.DeadlineExceeded:
		return true
	default:
		return false
	}
}

var errUnended = status.Error(codes.Unavailable, "the stream ended before the task did")

// followOnce reads one stream. It keeps the place to resume at in request and the newest state in task.
func (s *session) followOnce(ctx context.Context, request *taskerv1.WatchTaskRequest, task **taskerv1.Task, take func(*taskerv1.WatchTaskResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.tasks.WatchTask(ctx, request)
	if err != nil {
		return err
	}
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if !ended((*task).GetState(), request.GetUntilIdle()) {
				return errUnended
			}
			return nil
		}
		if err != nil {
			return err
		}
		if newest := frame.GetSnapshot().GetTask(); newest != nil {
			*task = newest
		}
		if newest := frame.GetChange().GetTask(); newest != nil {
			*task = newest
		}
		// Within a snapshot of several frames there is nowhere to resume at.
		if !frame.GetSnapshot().GetMore() {
			revision := frame.GetRevision()
			request.AfterRevision = &revision
		}
		if err := take(frame); err != nil {
			return err
		}
	}
}

func ended(state taskerv1.TaskState, idle bool) bool {
	switch state {
	case taskerv1.TaskState_TASK_STATE_COMPLETE, taskerv1.TaskState_TASK_STATE_CANCELLED:
		return true
	case taskerv1.TaskState_TASK_STATE_ERROR:
		return idle
	default:
		return false
	}
}

// watch shows a task until it has ended: on a terminal, with redraw, as the readiness table in place; else a line for each
// change, or each frame as it came. It fails unless the task is complete in the end.
func (s *session) watch(ctx context.Context, id string, idle, redraw bool) error {
	board := &board{session: s, steps: map[string]*taskerv1.Step{}, live: &live{printer: s.printer}}
	show := board.line
	if redraw && s.terminal {
		show = board.draw
	}
	task, err := s.follow(ctx, id, idle, func(frame *taskerv1.WatchTaskResponse) error {
		return s.stream(frame, func() error { return show(frame) })
	})
	if err != nil {
		return err
	}
	if task.GetState() != taskerv1.TaskState_TASK_STATE_COMPLETE {
		return &exitError{code: 1, err: fmt.Errorf("task %s ended in state %s", id, word(task.GetState()))}
	}
	return nil
}

// board is a watched task as it was last seen.
type board struct {
	*session
	live  *live
	task  *taskerv1.Task
	sum   *taskerv1.TaskExecutionContext
	steps map[string]*taskerv1.Step
}

// update takes a frame in and returns the steps that it says something new of.
func (b *board) update(frame *taskerv1.WatchTaskResponse) []*taskerv1.Step {
	snapshot, change := frame.GetSnapshot(), frame.GetChange()
	if task := snapshot.GetTask(); task != nil {
		b.task, b.sum = task, snapshot.GetExecutionContext()
	}
	if task := change.GetTask(); task != nil {
		b.task, b.sum = task, change.GetExecutionContext()
	}
	news := append(slices.Clone(snapshot.GetSteps()), change.GetSteps()...)
	for _, step := range news {
		b.steps[step.GetStepId()] = step
	}
	return news
}

// draw shows the readiness table in place.
func (b *board) draw(frame *taskerv1.WatchTaskResponse) error {
	b.update(frame)
	if frame.GetSnapshot().GetMore() {
		return nil
	}
	steps := make([]*taskerv1.Step, 0, len(b.steps))
	for _, step := range b.steps {
		steps = append(steps, step)
	}
	slices.SortFunc(steps, byID)
	lines := append([]string{b.headline()}, b.readiness(steps, false).lines()...)
	return b.live.draw(lines)
}

func (b *board) headline() string {
	return fmt.Sprintf("task %s %s %s  %s  %d of %d steps complete", b.task.GetTaskId(), oneLine(b.task.GetName()), b.state(word(b.task.GetState())),
		word(b.sum.GetExecutionStatus()), b.sum.GetCompletedSteps(), b.sum.GetTotalSteps())
}

// atCircuit says what a step's shared circuit holds it back by, or a pause of its handler, if one does.
func atCircuit(step *taskerv1.Step) string {
	switch step.GetWaitingFor() {
	case taskerv1.WaitingFor_WAITING_FOR_CIRCUIT, taskerv1.WaitingFor_WAITING_FOR_LIMIT, taskerv1.WaitingFor_WAITING_FOR_PAUSED:
		return strings.TrimSpace(fmt.Sprintf("waiting_for %s (%s) %s", word(step.GetWaitingFor()), oneLine(cmp.Or(step.GetCircuit(), step.GetHandler())),
			instant(step.GetWaitingUntil())))
	default:
		return ""
	}
}

// line says what has changed: one line for each step, and one for the task when its own state has.
func (b *board) line(frame *taskerv1.WatchTaskResponse) error {
	before := b.task.GetState()
	now := time.Now().Format("15:04:05.000")
	for _, step := range b.update(frame) {
		parts := []string{
			now, step.GetStepId(), oneLine(step.GetName()), b.state(word(step.GetState())),
			fmt.Sprintf("attempts %d/%d", step.GetAttempts(), step.GetRetryLimit()),
		}
		if code := step.GetLastFailure().GetErrorCode(); code != "" && step.GetState() == taskerv1.StepState_STEP_STATE_ERROR {
			parts = append(parts, oneLine(code))
		}
		if reason := word(step.GetParkedReason()); reason != "" {
			parts = append(parts, reason)
		}
		if next := step.GetNextRetryAt(); next != nil {
			parts = append(parts, "next_retry_at "+instant(next))
		}
		if waiting := atCircuit(step); waiting != "" {
			parts = append(parts, waiting)
		}
		if err := b.write(strings.Join(parts, "  ") + "\n"); err != nil {
			return err
		}
	}
	if b.task.GetState() == before {
		return nil
	}
	return b.printf("%s  %s\n", now, b.headline())
}
