package rpc

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/task"
)

type circuitService struct {
	pb.UnimplementedCircuitServiceServer
	*Services
}

// GetCircuit reads one circuit, or the namespace's default policy.
func (s *circuitService) GetCircuit(ctx context.Context, req *pb.GetCircuitRequest) (*pb.GetCircuitResponse, error) {
	var (
		circuit *task.Circuit
		err     error
	)
	if req.GetCircuit() == "" {
		circuit, err = s.engine.CircuitDefaults(ctx, caller(ctx).Namespace)
	} else {
		circuit, err = s.engine.GetCircuit(ctx, caller(ctx).Namespace, req.GetCircuit())
	}
	if err != nil {
		return nil, err
	}
	return &pb.GetCircuitResponse{Circuit: circuitMessage(circuit)}, nil
}

// ListCircuits reads a page of a namespace's circuits.
func (s *circuitService) ListCircuits(ctx context.Context, req *pb.ListCircuitsRequest) (*pb.ListCircuitsResponse, error) {
	q := task.CircuitQuery{Namespace: caller(ctx).Namespace, MinWaiting: int(req.GetMinWaitingSteps())}
	for _, state := range req.GetStates() {
		q.States = append(q.States, task.CircuitState(circuitStates.word(state)))
	}
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.Circuit], error) { return s.engine.CircuitPage(ctx, q, r) }, circuitMessage)
	if err != nil {
		return nil, err
	}
	return &pb.ListCircuitsResponse{Circuits: list, NextPageToken: next}, nil
}

// SetCircuitPolicy sets and unsets fields of a policy.
func (s *circuitService) SetCircuitPolicy(ctx context.Context, req *pb.SetCircuitPolicyRequest) (*pb.SetCircuitPolicyResponse, error) {
	fields := policyFields(req)
	if len(fields) == 0 {
		return nil, task.Invalid("policy", "sets nothing, and update_mask names nothing to unset")
	}
	circuit, err := s.engine.SetCircuitPolicy(ctx, caller(ctx).Namespace, req.GetCircuit(), circuitPolicy(req.GetPolicy()), fields,
		caller(ctx).Actor, req.GetReason())
	if err != nil {
		return nil, err
	}
	return &pb.SetCircuitPolicyResponse{Circuit: circuitMessage(circuit)}, nil
}

// HoldCircuit keeps a circuit shut.
func (s *circuitService) HoldCircuit(ctx context.Context, req *pb.HoldCircuitRequest) (*pb.HoldCircuitResponse, error) {
	hold := task.CircuitHold{Reason: req.GetReason(), Actor: caller(ctx).Actor, Until: instant(req.GetEndsAt())}
	if from := instant(req.GetStartsAt()); from != nil {
		hold.From = *from
	}
	circuit, err := s.engine.HoldCircuit(ctx, caller(ctx).Namespace, req.GetCircuit(), hold)
	if err != nil {
		return nil, err
	}
	return &pb.HoldCircuitResponse{Circuit: circuitMessage(circuit)}, nil
}

// ReleaseCircuit lets a circuit probe.
func (s *circuitService) ReleaseCircuit(ctx context.Context, req *pb.ReleaseCircuitRequest) (*pb.ReleaseCircuitResponse, error) {
	circuit, err := s.engine.ReleaseCircuit(ctx, caller(ctx).Namespace, req.GetCircuit(), caller(ctx).Actor, req.GetReason())
	if err != nil {
		return nil, err
	}
	return &pb.ReleaseCircuitResponse{Circuit: circuitMessage(circuit)}, nil
}

// ListCircuitEvents reads a page of the record.
func (s *circuitService) ListCircuitEvents(ctx context.Context, req *pb.ListCircuitEventsRequest) (*pb.ListCircuitEventsResponse, error) {
	q := task.CircuitEventQuery{
		Namespace: caller(ctx).Namespace, Circuit: req.GetCircuit(), From: instant(req.GetRecordedFrom()), To: instant(req.GetRecordedBefore()),
	}
	list, next, err := collect(req, func(r task.PageRequest) (task.Page[task.CircuitEvent], error) {
		return s.engine.CircuitEventPage(ctx, q, r)
	}, circuitEventMessage)
	if err != nil {
		return nil, err
	}
	return &pb.ListCircuitEventsResponse{Events: list, NextPageToken: next}, nil
}

// WatchCircuits sends changes of circuits as they come.
func (s *circuitService) WatchCircuits(req *pb.WatchCircuitsRequest, stream grpc.ServerStreamingServer[pb.WatchCircuitsResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	stop := s.onDrain(cancel)
	defer stop()
	names := slices.Compact(slices.Sorted(slices.Values(req.GetCircuits())))
	w, err := s.engine.WatchCircuits(ctx, caller(ctx).Namespace, names, req.GetAfterRevision())
	if err != nil {
		return err
	}
	defer w.Close()
	revision := req.GetAfterRevision()
	return watch(ctx, w.Next, func(f engine.CircuitFrame) []*pb.WatchCircuitsResponse {
		revision = f.Revision
		return circuitFrames(f)
	}, func() *pb.WatchCircuitsResponse {
		return &pb.WatchCircuitsResponse{
			Revision: revision, Frame: &pb.WatchCircuitsResponse_Heartbeat{Heartbeat: &pb.CircuitsHeartbeat{ServerTime: s.now()}},
		}
	}, stream.Send)
}
