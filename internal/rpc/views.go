package rpc

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

func taskMessage(v *task.View) *pb.Task {
	t := &pb.Task{
		TaskId: v.ID.String(), Namespace: v.Namespace, Name: v.Name, State: taskStates.value(string(v.State)), Labels: labelMap(v.Labels),
		Context: v.Context, NotBefore: timestamp(v.NotBefore), Deadline: timestamp(v.Deadline), CreatedAt: timestamppb.New(v.CreatedAt),
		CreatedBy: v.CreatedBy, EndedAt: timestamp(v.EndedAt), StepCount: count(v.StepCount),
	}
	if v.TemplateName != "" {
		t.Template = &pb.TemplateRef{Name: v.TemplateName, Version: &v.TemplateVersion}
	}
	return t
}

// submittedTask is a task as its submit made it.
func submittedTask(sub *task.Submission, made task.Submitted) *pb.Task {
	return taskMessage(&task.View{
		ID: made.TaskID, Namespace: sub.Namespace, Name: sub.Name, State: task.Pending, Labels: sub.Labels, NotBefore: sub.NotBefore,
		Deadline: sub.Deadline, CreatedAt: made.CreatedAt, CreatedBy: sub.Actor, StepCount: len(sub.Steps),
		TemplateName: sub.TemplateName, TemplateVersion: sub.TemplateVersion,
	})
}

func executionContext(x *task.ExecutionContext) *pb.TaskExecutionContext {
	return &pb.TaskExecutionContext{
		TotalSteps: count(x.Total), PendingSteps: count(x.Pending), ReadySteps: count(x.Ready), InProgressSteps: count(x.InProgress),
		WaitingForRetrySteps: count(x.WaitingForRetry), FailedSteps: count(x.Failed), CompletedSteps: count(x.Completed),
		CancelledSteps: count(x.Cancelled), ExecutionStatus: executionStatuses.value(x.ExecutionStatus),
		RecommendedAction: recommendedActions.value(x.RecommendedAction), HealthStatus: healthStatuses.value(x.HealthStatus),
		CompletionPercentage: x.CompletionPercentage,
	}
}

func leafResults(l *task.LeafResults) map[string]string {
	results := make(map[string]string, len(l.Results))
	for _, r := range l.Results {
		results[r.Name] = r.Results
	}
	return results
}

func stepMessage(v *task.StepView) *pb.Step {
	s := &pb.Step{
		StepId: v.ID.String(), TaskId: v.ID.Task().String(), Name: v.Name, Handler: v.Handler, State: stepStates.value(string(v.State)),
		DependenciesSatisfied: v.DependenciesSatisfied, RetryEligible: v.RetryEligible, ReadyForExecution: v.ReadyForExecution,
		BlockedBy: v.BlockedBy, TotalParents: count(v.TotalParents), CompletedParents: count(v.CompletedParents), Attempts: count(v.Attempts),
		RetryLimit: count(v.RetryLimit), Dispatches: count(v.Dispatches), LostLeases: count(v.LostLeases), Epoch: count(v.Epoch),
		ParkedReason: parkedReasons.value(v.ParkedReason), NextRetryAt: timestamp(v.NextRetryAt), LastFailureAt: timestamp(v.LastFailureAt),
		LastAttemptedAt: timestamp(v.LastAttemptedAt), LastStartedAt: timestamp(v.LastStartedAt),
		BackoffRequestDuration: duration(v.BackoffRequest), LastFailure: failureMessage(v.LastFailure), Circuit: v.Circuit,
		Priority: count(v.Priority), EndedAt: timestamp(v.EndedAt), DependsOn: v.DependsOn, Results: v.Results, Checkpoint: v.Checkpoint,
		HandlerConfig: v.HandlerConfig, WaitingFor: waits.value(v.WaitingFor), WaitingUntil: timestamp(v.WaitingUntil),
	}
	if l := v.Lease; l != nil {
		s.Lease = &pb.StepLease{
			WorkerId: l.WorkerID, InstanceId: l.InstanceID, Dispatch: count(l.Dispatch), GrantedAt: timestamppb.New(l.GrantedAt),
			ConfirmedAt: timestamp(l.ConfirmedAt), ExpiresAt: timestamppb.New(l.ExpiresAt),
		}
	}
	return s
}

func attemptMessage(v *task.AttemptView) *pb.Attempt {
	a := &pb.Attempt{
		Dispatch: count(v.Dispatch), Attempt: count(v.Attempt), Epoch: count(v.Epoch), WorkerId: v.WorkerID, InstanceId: v.InstanceID,
		DispatchedAt: timestamp(v.GrantedAt), StartedAt: timestamp(v.StartedAt), EndedAt: timestamp(v.EndedAt),
		Outcome: outcomes.value(string(v.Outcome)), Failure: failureMessage(v.Failure), Delay: duration(v.Delay),
		DelaySource: delaySources.value(string(v.DelaySource)), DelayClamped: v.DelayClamped, NextRetryAt: timestamp(v.NextRetryAt),
	}
	if l := v.Late; l != nil {
		a.LateReport = &pb.LateReport{
			RecordedAt: timestamppb.New(l.RecordedAt), Outcome: outcomes.value(string(l.Outcome)), Failure: failureMessage(l.Failure),
			Results: l.Results, Reports: count(l.Reports),
		}
	}
	return a
}

func workerMessage(v *task.WorkerView) *pb.Worker {
	w := &pb.Worker{
		WorkerId: v.WorkerID, InstanceId: v.InstanceID, MaxInFlight: count(v.MaxInFlight), InFlight: count(v.InFlight),
		Labels: labelMap(v.Labels), BuildId: v.BuildID, ClientInfo: v.ClientInfo, OpenedAt: timestamppb.New(v.OpenedAt),
		SeenAt: timestamppb.New(v.SeenAt), DrainedAt: timestamp(v.DrainedAt), ClosedAt: timestamp(v.ClosedAt),
	}
	for _, h := range v.Handlers {
		w.Handlers = append(w.Handlers, &pb.HandlerSubscription{Name: h})
	}
	return w
}
