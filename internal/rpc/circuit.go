package rpc

import (
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/task"
)

func circuitMessage(c *task.Circuit) *pb.Circuit {
	m := &pb.Circuit{
		Namespace: c.Namespace, Name: c.Name, State: circuitStates.value(string(c.State)), Generation: c.Generation, Since: timestamp(&c.Since),
		Cause: circuitCauses.value(string(c.Cause)), OpenUntil: timestamp(c.OpenUntil), Hold: holdMessage(c.Hold),
		Policy: policyMessage(&c.Policy), PolicyInForce: policyMessage(&c.InForce), ObservedCalls: count(c.Observed), FailedCalls: count(c.Failed),
		SlowCalls: count(c.Slow), FailingWorkers: count(c.FailingWorkers), SuccessfulProbes: count(c.Probes), Wave: count(c.Wave),
		WaveSuccesses: count(c.WaveDone), InFlight: count(c.InFlight), WaitingSteps: count(c.Waiting), CreatedAt: timestamp(&c.CreatedAt),
	}
	if c.OpenFor > 0 {
		m.LastOpenDuration = durationpb.New(c.OpenFor)
	}
	for _, b := range c.Barred {
		m.BarredWorkers = append(m.BarredWorkers, &pb.BarredWorker{WorkerId: b.WorkerID, Until: timestamppb.New(b.Until)})
	}
	return m
}

func holdMessage(h *task.CircuitHold) *pb.CircuitHold {
	if h == nil {
		return nil
	}
	return &pb.CircuitHold{Reason: h.Reason, Actor: h.Actor, StartsAt: timestamp(&h.From), EndsAt: timestamp(h.Until)}
}

func circuitEventMessage(e *task.CircuitEvent) *pb.CircuitEvent {
	m := &pb.CircuitEvent{
		EventId: strconv.FormatInt(e.ID, 10), Circuit: e.Circuit, RecordedAt: timestamppb.New(e.At), Generation: e.Generation,
		FromState: circuitStates.value(string(e.From)), ToState: circuitStates.value(string(e.To)), Cause: circuitCauses.value(string(e.Cause)),
		OpenUntil: timestamp(e.OpenUntil), Wave: count(e.Wave), Dispatch: count(e.Dispatch), WorkerIds: e.Workers, Actor: e.Actor,
		Reason: e.Reason, Hold: holdMessage(e.Hold), ObservedCalls: count(e.Observed), FailedCalls: count(e.Failed), SlowCalls: count(e.Slow),
		Policy: policyMessage(&e.Policy),
	}
	if e.Step != 0 {
		m.StepId = e.Step.String()
	}
	return m
}

// ---------------------------------------------------------------- policies

func policyMessage(p *task.CircuitPolicy) *pb.CircuitPolicy {
	return &pb.CircuitPolicy{
		WindowDuration: duration(p.Window), MinObservations: optional(p.MinObservations), FailureRateThreshold: p.FailureRateThreshold,
		SlowCallDuration: duration(p.SlowCallDuration), SlowRateThreshold: p.SlowRateThreshold,
		MinFailingWorkers: optional(p.MinFailingWorkers), OpenDuration: duration(p.OpenDuration), MaxOpenDuration: duration(p.MaxOpenDuration),
		MaxProbes: optional(p.MaxProbes), CloseAfterSuccesses: optional(p.CloseAfterSuccesses), RecoveryWave: optional(p.RecoveryWave),
		MaxInFlight: optional(p.MaxInFlight), Rate: p.Rate, SuspendBudgets: p.SuspendBudgets,
	}
}

func circuitPolicy(m *pb.CircuitPolicy) task.CircuitPolicy {
	if m == nil {
		return task.CircuitPolicy{}
	}
	return task.CircuitPolicy{
		Window: span(m.GetWindowDuration()), MinObservations: number(m.MinObservations), FailureRateThreshold: m.FailureRateThreshold,
		SlowCallDuration: span(m.GetSlowCallDuration()), SlowRateThreshold: m.SlowRateThreshold,
		MinFailingWorkers: number(m.MinFailingWorkers), OpenDuration: span(m.GetOpenDuration()), MaxOpenDuration: span(m.GetMaxOpenDuration()),
		MaxProbes: number(m.MaxProbes), CloseAfterSuccesses: number(m.CloseAfterSuccesses), RecoveryWave: number(m.RecoveryWave),
		MaxInFlight: number(m.MaxInFlight), Rate: m.Rate, SuspendBudgets: m.SuspendBudgets,
	}
}

// PolicyOf reads a policy that no call brought, by the rules that those of calls go by.
func PolicyOf(m *pb.CircuitPolicy) (task.CircuitPolicy, error) {
	rules, err := compileRules()
	if err != nil {
		return task.CircuitPolicy{}, err
	}
	if err := rules.check(m); err != nil {
		return task.CircuitPolicy{}, err
	}
	return circuitPolicy(m), nil
}

func optional(n *int) *int32 {
	if n == nil {
		return nil
	}
	return proto.Int32(count(*n))
}

func number(n *int32) *int {
	if n == nil {
		return nil
	}
	m := int(*n)
	return &m
}

// policyFields are the fields that a request changes, by their names, in the order of the contract: those that its mask names,
// or else those that are set.
func policyFields(req *pb.SetCircuitPolicyRequest) []string {
	named := map[string]bool{}
	for _, path := range req.GetUpdateMask().GetPaths() {
		named[path] = true
	}
	policy := req.GetPolicy().ProtoReflect()
	all := policy.Descriptor().Fields()
	var fields []string
	for i := range all.Len() {
		f := all.Get(i)
		if named[string(f.Name())] || len(named) == 0 && has(policy, f) {
			fields = append(fields, string(f.Name()))
		}
	}
	return fields
}

func has(m protoreflect.Message, f protoreflect.FieldDescriptor) bool { return m.IsValid() && m.Has(f) }

// ---------------------------------------------------------------- watch

// circuitFrames is a frame of a watch as messages of a bearable size. Only the last one bears the revision: a stream that breaks
// before it is resumed from what the client had before.
func circuitFrames(f engine.CircuitFrame) []*pb.WatchCircuitsResponse {
	var (
		frames   []*pb.WatchCircuitsResponse
		circuits = make([]*pb.Circuit, len(f.Circuits))
		events   = make([]*pb.CircuitEvent, len(f.Events))
	)
	for i, c := range f.Circuits {
		circuits[i] = circuitMessage(c)
	}
	for i, e := range f.Events {
		events[i] = circuitEventMessage(e)
	}
	for first := true; first || len(circuits)+len(events) > 0; first = false {
		room := maxBatch
		n := fitting(circuits, &room)
		var k int
		if n == len(circuits) {
			k = fitting(events, &room)
		}
		more := n < len(circuits) || k < len(events)
		m := &pb.WatchCircuitsResponse{}
		if f.Snapshot {
			m.Frame = &pb.WatchCircuitsResponse_Snapshot{Snapshot: &pb.CircuitsSnapshot{Circuits: circuits[:n], More: more}}
		} else {
			m.Frame = &pb.WatchCircuitsResponse_Change{Change: &pb.CircuitsChange{Circuits: circuits[:n], Events: events[:k]}}
		}
		if !more {
			m.Revision = f.Revision
		}
		frames, circuits, events = append(frames, m), circuits[n:], events[k:]
	}
	return frames
}

// fitting is how many of the messages there is room for, and takes it. An empty frame has room for one at least.
func fitting[M proto.Message](list []M, room *int) int {
	for n, m := range list {
		size := proto.Size(m) + 8 // its tag and length
		if size > *room && *room < maxBatch {
			return n
		}
		*room -= size
	}
	return len(list)
}
