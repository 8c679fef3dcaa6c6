package rpc

import (
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

type taskService struct {
	pb.UnimplementedTaskServiceServer
	*Services
}

// SubmitTask makes one task, and waits for its end if it was asked to.
func (s *taskService) SubmitTask(ctx context.Context, req *pb.SubmitTaskRequest) (*pb.SubmitTaskResponse, error) {
	if err := withinBatch(req); err != nil {
		return nil, err
	}
	sub, _, err := s.submission(ctx, submitterOf(ctx), theTask, req.GetTask())
	if err != nil {
		id, ok, lookErr := s.submittedBefore(ctx, req.GetTask())
		if lookErr != nil || !ok {
			return nil, errors.Join(err, lookErr)
		}
		resp := &pb.SubmitTaskResponse{AlreadySubmitted: true}
		return resp, s.awaitTask(ctx, id, req.GetWaitDuration(), resp)
	}
	answers, err := s.engine.Submit(ctx, []*task.Submission{sub}, false)
	if err != nil {
		return nil, err
	}
	if answers[0].Refused != nil {
		return nil, answers[0].Refused
	}
	resp := &pb.SubmitTaskResponse{AlreadySubmitted: answers[0].AlreadySubmitted}
	if a := answers[0]; !a.AlreadySubmitted && req.GetWaitDuration().AsDuration() <= 0 {
		// As it was made. By now it may have gone on: reading it would cost more than making it did.
		resp.Task = submittedTask(sub, a.Submitted)
		return resp, nil
	}
	return resp, s.awaitTask(ctx, answers[0].TaskID, req.GetWaitDuration(), resp)
}

// submittedBefore finds the task that a submit made whose repeat is now refused, since the template's latest version has
// changed: what was acknowledged once is acknowledged again.
func (s *taskService) submittedBefore(ctx context.Context, sub *pb.TaskSubmission) (id task.ID, ok bool, err error) {
	digest, err := submitDigest(sub)
	if err != nil || digest == nil {
		return 0, false, err
	}
	return s.engine.Submitted(ctx, caller(ctx).Namespace, sub.GetIdempotencyKey(), digest)
}

// awaitTask reads the task that a submit made: at once, or when it has ended, or at the end of the wait.
func (s *taskService) awaitTask(ctx context.Context, id task.ID, wait *durationpb.Duration, resp *pb.SubmitTaskResponse) error {
	waits := wait.AsDuration() > 0
	if waits {
		if err := s.waitForEnd(ctx, id, wait.AsDuration()); err != nil {
			return err
		}
	}
	view, leaves, err := s.engine.GetTask(ctx, id, false, waits)
	if err != nil {
		return err
	}
	resp.Task = taskMessage(&view)
	if waits && view.Ended() {
		resp.LeafResults = leafResults(&leaves)
	}
	return nil
}

// waitForEnd returns when the task has ended, or after wait. It leaves the caller's deadline a little time for the answer.
func (s *taskService) waitForEnd(ctx context.Context, id task.ID, wait time.Duration) error {
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)*9/10)
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	w, err := s.engine.WatchTask(ctx, id, 0, true)
	var refused *task.Error
	switch {
	case errors.As(err, &refused) && refused.Reason == task.TooManyStreams:
		// The task is made, and nobody can watch it now: wait to the end.
		<-waiting.Done()
		return ctx.Err()
	case err != nil:
		return err
	}
	defer w.Close()
	for {
		_, err := w.Next(waiting)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case waiting.Err() != nil:
			return ctx.Err() // the wait is over, which is no error, or the caller is gone
		case err != nil:
			return err
		}
	}
}

// maxBatchSteps is how many steps the tasks of one batch have at most.
const maxBatchSteps = 100_000

// BatchSubmitTasks makes all tasks or none.
func (s *taskService) BatchSubmitTasks(ctx context.Context, req *pb.BatchSubmitTasksRequest) (*pb.BatchSubmitTasksResponse, error) {
	if err := withinBatch(req); err != nil {
		return nil, err
	}
	var (
		resp   = &pb.BatchSubmitTasksResponse{Results: make([]*pb.BatchSubmitTasksResult, len(req.GetTasks()))}
		subs   []*task.Submission
		places []int
		steps  int
		by     = submitterOf(ctx)
	)
	for i, t := range req.GetTasks() {
		sub, _, err := s.submission(ctx, by, place{"tasks", i}, t)
		if err != nil {
			id, ok, lookErr := s.submittedBefore(ctx, t)
			if lookErr != nil || !ok {
				return nil, atIndex(i, errors.Join(err, lookErr))
			}
			resp.Results[i] = &pb.BatchSubmitTasksResult{TaskId: id.String(), AlreadySubmitted: true}
			continue
		}
		subs, places = append(subs, sub), append(places, i)
		// A template of many steps makes a small request a large one.
		if steps += len(sub.Steps); steps > maxBatchSteps {
			return nil, task.Invalid("tasks", "have more than %d steps in all: send them in parts", maxBatchSteps)
		}
	}
	if len(subs) == 0 {
		return resp, nil
	}
	answers, err := s.engine.Submit(ctx, subs, true)
	if err != nil {
		return nil, err
	}
	for k, a := range answers {
		if a.Refused != nil {
			return nil, atIndex(places[k], a.Refused)
		}
		resp.Results[places[k]] = &pb.BatchSubmitTasksResult{TaskId: a.TaskID.String(), AlreadySubmitted: a.AlreadySubmitted}
	}
	return resp, nil
}

// atIndex says which entry of a batch a refusal is about.
func atIndex(i int, err error) error {
	var (
		refused *task.Error
		fields  violations
	)
	switch {
	case errors.As(err, &refused):
		moved := *refused
		moved.Metadata = map[string]string{"index": strconv.Itoa(i)}
		for k, v := range refused.Metadata {
			moved.Metadata[k] = v
		}
		return &moved
	case errors.As(err, &fields):
		return indexed{violations: fields, index: i}
	}
	return err
}

// withinBatch refuses a request that is too large as a whole.
func withinBatch(req proto.Message) error {
	if size := proto.Size(req); size > maxBatch {
		return task.Refuse(task.PayloadTooLarge, "the request has %d bytes, at most %d are allowed: send it in parts", size, maxBatch).
			With("size", strconv.Itoa(size)).With("limit", strconv.Itoa(maxBatch))
	}
	return nil
}

// ValidateTask answers what SubmitTask would make.
func (s *taskService) ValidateTask(ctx context.Context, req *pb.ValidateTaskRequest) (*pb.ValidateTaskResponse, error) {
	if err := withinBatch(req); err != nil {
		return nil, err
	}
	sub, def, err := s.submission(ctx, submitterOf(ctx), theTask, req.GetTask())
	if err != nil {
		return nil, err
	}
	return &pb.ValidateTaskResponse{Template: def.ref, Steps: plan(sub.Steps)}, nil
}

// GetTask reads a task.
func (s *taskService) GetTask(ctx context.Context, req *pb.GetTaskRequest) (*pb.GetTaskResponse, error) {
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	view, leaves, err := s.engine.GetTask(ctx, id, req.GetIncludeContext(), req.GetIncludeLeafResults())
	if err != nil {
		return nil, err
	}
	return &pb.GetTaskResponse{
		Task: taskMessage(&view), ExecutionContext: executionContext(&view.Execution), LeafResults: leafResults(&leaves),
		OmittedLeaves: leaves.Omitted,
	}, nil
}

// ListTasks reads a page of a namespace's tasks.
func (s *taskService) ListTasks(ctx context.Context, req *pb.ListTasksRequest) (*pb.ListTasksResponse, error) {
	f := task.Filter{
		Namespace: caller(ctx).Namespace, TemplateName: req.GetTemplate().GetName(), TemplateVersion: req.GetTemplate().GetVersion(),
		Labels: labelList(req.GetLabels()), CreatedFrom: instant(req.GetCreatedFrom()), CreatedBefore: instant(req.GetCreatedBefore()),
	}
	for _, state := range req.GetStates() {
		f.States = append(f.States, task.State(taskStates.word(state)))
	}
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.View], error) { return s.engine.ListTasks(ctx, f, r) }, taskMessage)
	if err != nil {
		return nil, err
	}
	return &pb.ListTasksResponse{Tasks: list, NextPageToken: next}, nil
}

// CancelTask ends a task.
func (s *taskService) CancelTask(ctx context.Context, req *pb.CancelTaskRequest) (*pb.CancelTaskResponse, error) {
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	answer, err := s.engine.CancelTask(ctx, id, act(ctx, req))
	if err != nil {
		return nil, err
	}
	return &pb.CancelTaskResponse{Task: taskMessage(&answer.Task), CancelledSteps: count(answer.Steps), RevokedLeases: count(answer.Leases)}, nil
}

// PurgeTask deletes an ended task.
func (s *taskService) PurgeTask(ctx context.Context, req *pb.PurgeTaskRequest) (*pb.PurgeTaskResponse, error) {
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	view, _, err := s.engine.GetTask(ctx, id, false, false)
	if err != nil {
		return nil, err
	}
	if err := s.engine.PurgeTask(ctx, id, act(ctx, req)); err != nil {
		return nil, err
	}
	return &pb.PurgeTaskResponse{PurgedSteps: count(view.StepCount)}, nil
}

// act is who does what an operator does, and why.
func act(ctx context.Context, req interface{ GetReason() string }) store.Act {
	return store.Act{Actor: caller(ctx).Actor, Reason: req.GetReason()}
}

// taskID reads an id. One that no task can have is of a task that does not exist.
func taskID(text string) (task.ID, error) {
	id, ok := task.ParseID(text)
	if !ok {
		return 0, task.Refuse(task.TaskNotFound, "there is no task %s", text).With("task_id", text)
	}
	return id, nil
}

// ---------------------------------------------------------------- watch

// maxFrameSteps is how many steps a frame carries at most.
const maxFrameSteps = 1000

// WatchTask sends a task's changes as they come.
func (s *taskService) WatchTask(req *pb.WatchTaskRequest, stream grpc.ServerStreamingServer[pb.WatchTaskResponse]) error {
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	stop := s.onDrain(cancel)
	defer stop()
	w, err := s.engine.WatchTask(ctx, id, req.GetAfterRevision(), req.GetUntilIdle())
	if err != nil {
		return err
	}
	defer w.Close()
	revision := req.GetAfterRevision()
	return watch(ctx, w.Next, func(c *engine.TaskChange) []*pb.WatchTaskResponse {
		frames := watchFrames(c, revision)
		revision = c.Revision
		return frames
	}, func() *pb.WatchTaskResponse {
		return &pb.WatchTaskResponse{
			Revision: revision, Frame: &pb.WatchTaskResponse_Heartbeat{Heartbeat: &pb.WatchHeartbeat{ServerTime: s.now()}},
		}
	}, stream.Send)
}

// fittingSteps is how many of the steps one frame carries, one at least. The task beside them is small.
func fittingSteps(steps []*pb.Step) int {
	room := maxBatch
	for n, step := range steps {
		if room -= proto.Size(step); n == maxFrameSteps || room < 0 && n > 0 {
			return n
		}
	}
	return len(steps)
}

// watchFrames is a change as frames of a bearable size. Only the last one bears its revision: a stream that breaks before it
// is resumed from what the client had before.
func watchFrames(c *engine.TaskChange, before int64) []*pb.WatchTaskResponse {
	var frames []*pb.WatchTaskResponse
	steps := messages(c.Steps, stepMessage)
	for first := true; first || len(steps) > 0; first = false {
		n := fittingSteps(steps)
		f := &pb.WatchTaskResponse{Revision: before}
		if n == len(steps) {
			f.Revision = c.Revision
		}
		if c.Snapshot {
			f.Frame = &pb.WatchTaskResponse_Snapshot{Snapshot: &pb.TaskSnapshot{
				Task: taskMessage(c.Task), ExecutionContext: executionContext(&c.Task.Execution), Steps: steps[:n], More: len(steps) > n,
			}}
		} else {
			f.Frame = &pb.WatchTaskResponse_Change{Change: &pb.TaskChange{
				Task: taskMessage(c.Task), ExecutionContext: executionContext(&c.Task.Execution), Steps: steps[:n],
			}}
		}
		frames, steps = append(frames, f), steps[n:]
	}
	return frames
}
