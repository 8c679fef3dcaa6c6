package rpc

import (
	"context"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

type stepService struct {
	pb.UnimplementedStepServiceServer
	*Services
}

// GetStep reads one step.
func (s *stepService) GetStep(ctx context.Context, req *pb.GetStepRequest) (*pb.GetStepResponse, error) {
	id, err := stepID(req.GetStepId())
	if err != nil {
		return nil, err
	}
	step, err := s.engine.GetStep(ctx, id, req.GetIncludePayloads())
	if err != nil {
		return nil, err
	}
	return &pb.GetStepResponse{Step: stepMessage(&step)}, nil
}

// ListSteps reads a page of a task's steps.
func (s *stepService) ListSteps(ctx context.Context, req *pb.ListStepsRequest) (*pb.ListStepsResponse, error) {
	id, err := taskID(req.GetTaskId())
	if err != nil {
		return nil, err
	}
	states := make([]task.StepState, len(req.GetStates()))
	for i, state := range req.GetStates() {
		states[i] = task.StepState(stepStates.word(state))
	}
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.StepView], error) {
		return s.engine.ListSteps(ctx, id, states, r)
	}, stepMessage)
	if err != nil {
		return nil, err
	}
	return &pb.ListStepsResponse{Steps: list, NextPageToken: next}, nil
}

// ListStepAttempts reads a page of a step's dispatches.
func (s *stepService) ListStepAttempts(ctx context.Context, req *pb.ListStepAttemptsRequest) (*pb.ListStepAttemptsResponse, error) {
	id, err := stepID(req.GetStepId())
	if err != nil {
		return nil, err
	}
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.AttemptView], error) {
		return s.engine.ListStepAttempts(ctx, id, r)
	}, attemptMessage)
	if err != nil {
		return nil, err
	}
	return &pb.ListStepAttemptsResponse{Attempts: list, NextPageToken: next}, nil
}

// RetryStep resets a step in error.
func (s *stepService) RetryStep(ctx context.Context, req *pb.RetryStepRequest) (*pb.RetryStepResponse, error) {
	id, err := stepID(req.GetStepId())
	if err != nil {
		return nil, err
	}
	step, err := s.engine.RetryStep(ctx, id, act(ctx, req))
	if err != nil {
		return nil, err
	}
	return &pb.RetryStepResponse{Step: stepMessage(&step)}, nil
}

// ResolveStep lets a failed step's dependants go on without it.
func (s *stepService) ResolveStep(ctx context.Context, req *pb.ResolveStepRequest) (*pb.ResolveStepResponse, error) {
	id, err := stepID(req.GetStepId())
	if err != nil {
		return nil, err
	}
	step, err := s.engine.ResolveStep(ctx, id, act(ctx, req))
	if err != nil {
		return nil, err
	}
	return &pb.ResolveStepResponse{Step: stepMessage(&step)}, nil
}

// CompleteStep ends a failed step with results.
func (s *stepService) CompleteStep(ctx context.Context, req *pb.CompleteStepRequest) (*pb.CompleteStepResponse, error) {
	id, err := stepID(req.GetStepId())
	if err != nil {
		return nil, err
	}
	if err := checkObject("results", req.GetResults(), maxPayload); err != nil {
		return nil, err
	}
	step, err := s.engine.CompleteStep(ctx, id, req.GetResults(), act(ctx, req))
	if err != nil {
		return nil, err
	}
	return &pb.CompleteStepResponse{Step: stepMessage(&step)}, nil
}

// BulkRetrySteps resets the failed steps that a filter finds.
func (s *stepService) BulkRetrySteps(ctx context.Context, req *pb.BulkRetryStepsRequest) (*pb.BulkRetryStepsResponse, error) {
	f := req.GetFilter()
	bulk := task.BulkRetry{
		Namespace: caller(ctx).Namespace, Handlers: f.GetHandlers(), ErrorCodes: f.GetErrorCodes(), TemplateName: f.GetTemplateName(),
		FailedFrom: instant(f.GetFailedFrom()), FailedBefore: instant(f.GetFailedBefore()), ParkedOnly: f.GetParkedOnly(),
		MaxSteps: int(req.GetMaxSteps()), Spread: req.GetSpreadDuration().AsDuration(), Actor: caller(ctx).Actor, Reason: req.GetReason(),
	}
	for _, text := range f.GetTaskIds() {
		// An id that no task can have finds none, but must not widen the filter to all.
		id, ok := task.ParseID(text)
		if !ok {
			id = -1
		}
		bulk.Tasks = append(bulk.Tasks, id)
	}
	retried, next, err := s.engine.BulkRetrySteps(ctx, bulk, req.GetPageToken())
	if err != nil {
		return nil, err
	}
	return &pb.BulkRetryStepsResponse{RetriedSteps: count(retried), NextPageToken: next}, nil
}

// stepID reads an id. One that no step can have is of a step that does not exist.
func stepID(text string) (task.StepID, error) {
	id, ok := task.ParseStepID(text)
	if !ok {
		return 0, task.Refuse(task.StepNotFound, "there is no step %s", text).With("step_id", text)
	}
	return id, nil
}

// PauseHandler stops the dispatching of a handler or a namespace.
func (s *stepService) PauseHandler(ctx context.Context, req *pb.PauseHandlerRequest) (*pb.PauseHandlerResponse, error) {
	p, err := s.engine.PauseHandler(ctx, task.Pause{
		Namespace: caller(ctx).Namespace, Handler: req.GetHandler(), Reason: req.GetReason(), Actor: caller(ctx).Actor, Until: instant(req.GetUntil()),
	})
	if err != nil {
		return nil, err
	}
	return &pb.PauseHandlerResponse{Pause: pauseMessage(p)}, nil
}

// ResumeHandler ends a pause.
func (s *stepService) ResumeHandler(ctx context.Context, req *pb.ResumeHandlerRequest) (*pb.ResumeHandlerResponse, error) {
	ended, err := s.engine.ResumeHandler(ctx, caller(ctx).Namespace, req.GetHandler(), act(ctx, req))
	if err != nil {
		return nil, err
	}
	return &pb.ResumeHandlerResponse{Pause: pauseMessage(ended)}, nil
}

// ListPauses reads a page of a namespace's pauses.
func (s *stepService) ListPauses(ctx context.Context, req *pb.ListPausesRequest) (*pb.ListPausesResponse, error) {
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.Pause], error) {
		return s.engine.ListPauses(ctx, caller(ctx).Namespace, r)
	}, pauseMessage)
	if err != nil {
		return nil, err
	}
	return &pb.ListPausesResponse{Pauses: list, NextPageToken: next}, nil
}

func pauseMessage(p *task.Pause) *pb.Pause {
	if p == nil {
		return nil
	}
	return &pb.Pause{
		Namespace: p.Namespace, Handler: p.Handler, Reason: p.Reason, Actor: p.Actor, Since: timestamp(&p.Since), Until: timestamp(p.Until),
	}
}
