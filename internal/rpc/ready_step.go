package rpc

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// maxInline is how many bytes of parents' results ride in a frame.
const maxInline = 1 << 20

// registration is how a worker introduces itself, in either of its ways.
type registration interface {
	GetWorkerId() string
	GetInstanceId() string
	GetHandlers() []*pb.HandlerSubscription
	GetMaxInFlight() int32
	GetLabels() map[string]string
	GetBuildId() string
	GetClientInfo() string
	GetDeliveryTimeout() *durationpb.Duration
	GetSendsHeartbeats() bool
	GetHeldLeaseTokens() []string
}

// registered is the registration as the engine takes it, and the tokens among those held that no server can have issued.
func registered(namespace string, r registration) (reg engine.Registration, strange []string) {
	reg = engine.Registration{
		Namespace: namespace,
		Session: store.Session{
			WorkerID: r.GetWorkerId(), InstanceID: r.GetInstanceId(), MaxInFlight: int(r.GetMaxInFlight()),
			Labels: labelList(r.GetLabels()), BuildID: r.GetBuildId(), ClientInfo: r.GetClientInfo(),
		},
		DeliveryTimeout: r.GetDeliveryTimeout().AsDuration(), Beats: r.GetSendsHeartbeats(),
	}
	for _, h := range r.GetHandlers() {
		reg.Handlers = append(reg.Handlers, h.GetName())
		if h.MaxInFlight != nil {
			if reg.HandlerLimits == nil {
				reg.HandlerLimits = map[string]int{}
			}
			reg.HandlerLimits[h.GetName()] = int(h.GetMaxInFlight())
		}
	}
	for _, text := range r.GetHeldLeaseTokens() {
		if token, ok := task.ParseToken(text); ok {
			reg.Held = append(reg.Held, token)
		} else {
			strange = append(strange, text)
		}
	}
	return reg, strange
}

// lostTokens are the tokens that a worker holds in vain.
func lostTokens(lost []task.Token, strange []string) []string {
	for _, t := range lost {
		strange = append(strange, t.String())
	}
	return strange
}

// stepParts are the messages that every dispatch has, in one piece of memory.
type stepParts struct {
	response pb.ReadyStepsResponse
	frame    pb.ReadyStepsResponse_Step
	step     pb.ReadyStep
	expires  timestamppb.Timestamp
	beatBy   durationpb.Duration
}

// stepFrame is a granted dispatch as a frame of its worker's stream.
func stepFrame(r *task.ReadyStep) *pb.ReadyStepsResponse {
	x := &stepParts{}
	x.response.Frame, x.frame.Step = &x.frame, x.fill(r)
	return &x.response
}

// readyStep is a granted dispatch as its worker gets it.
func readyStep(r *task.ReadyStep) *pb.ReadyStep { return (&stepParts{}).fill(r) }

func (x *stepParts) fill(r *task.ReadyStep) *pb.ReadyStep {
	step := &x.step
	step.Namespace, step.Handler, step.Circuit, step.Probe = r.Namespace, r.Handler, r.Circuit, r.Probe
	step.TaskName, step.StepName, step.Labels = r.TaskName, r.StepName, labelMap(r.Labels)
	step.IdempotencyKey, step.StepId, step.TaskId = stepTexts(r.Namespace, r.Token.Step)
	step.LeaseToken = r.Token.String()
	x.expires.Seconds, x.expires.Nanos = r.LeaseExpiresAt.Unix(), int32(r.LeaseExpiresAt.Nanosecond()) //nolint:gosec // below 10⁹
	x.beatBy.Seconds, x.beatBy.Nanos = int64(r.HeartbeatBy/time.Second), int32(r.HeartbeatBy%time.Second)
	step.LeaseExpiresAt, step.HeartbeatBy, step.Deadline = &x.expires, &x.beatBy, timestamp(stopsAt(r))
	step.Attempt, step.RetryLimit, step.Dispatch = count(r.Attempt), count(r.RetryLimit), count(r.Dispatch)
	step.Context, step.HandlerConfig = orObject(r.Context), orObject(r.HandlerConfig)
	step.Checkpoint, step.OmittedDependencies = r.Checkpoint, r.Omitted
	step.PreviousFailure, step.TraceContext = previousFailure(r.PreviousFailure), traceContext(r.TraceContext)
	if r.RunTimeout > 0 {
		step.RunTimeout = durationpb.New(r.RunTimeout)
	}
	room := maxInline
	for _, d := range r.Dependencies {
		if room -= len(d.Name) + len(d.Results); room < 0 {
			step.OmittedDependencies = append(step.OmittedDependencies, d.Name)
			continue
		}
		if step.DependencyResults == nil {
			step.DependencyResults = make(map[string]string, len(r.Dependencies))
		}
		step.DependencyResults[d.Name] = orObject(d.Results)
	}
	fitFrame(step)
	return step
}

// stepTexts are a step's idempotency key, its id, and its task's, in one text.
func stepTexts(namespace string, id task.StepID) (key, step, of string) {
	const scheme = "tasker/"
	b := make([]byte, 0, 128) // on the stack; a namespace's name that is longer has it grow
	b = append(append(append(b, scheme...), namespace...), '/')
	from := len(b)
	b = strconv.AppendInt(b, int64(id), 10)
	n := len(b)
	text := string(strconv.AppendInt(b, int64(id.Task()), 10))
	return text[:n], text[from:n], text[n:]
}

// fitFrame keeps a frame within its limit. Ordinary payloads at their limits stay below it: 1 MiB each of results, of context
// with handler_config, and of a failure's details, and 256 KiB of checkpoint. Thousands of long names of omitted parents on
// top of that do not. What can be read elsewhere then goes: the results, the details, and at last names, which
// GetDependencyResults without names does not need.
func fitFrame(step *pb.ReadyStep) {
	if len(step.GetOmittedDependencies()) < 1000 || proto.Size(step) <= maxBatch {
		return
	}
	for name := range step.GetDependencyResults() {
		step.OmittedDependencies = append(step.OmittedDependencies, name)
	}
	step.DependencyResults = nil
	if over := proto.Size(step) - maxBatch; over > 0 && step.GetPreviousFailure().GetFailure() != nil {
		step.PreviousFailure.Failure.Details = ""
	}
	for over := proto.Size(step) - maxBatch; over > 0; {
		last := len(step.GetOmittedDependencies()) - 1
		over -= len(step.GetOmittedDependencies()[last])
		step.OmittedDependencies = step.GetOmittedDependencies()[:last]
	}
}

// stopsAt is when the server will stop the run at the latest. The run timeout counts from the confirmation; taken from the
// grant it errs on the safe side.
func stopsAt(r *task.ReadyStep) *time.Time {
	at := r.Deadline
	if r.RunTimeout > 0 {
		if timeout := r.GrantedAt.Add(r.RunTimeout); at == nil || timeout.Before(*at) {
			at = &timeout
		}
	}
	return at
}

func previousFailure(f *task.PreviousFailure) *pb.PreviousFailure {
	if f == nil {
		return nil
	}
	return &pb.PreviousFailure{
		Attempt: count(f.Attempt), Dispatch: count(f.Dispatch), Outcome: outcomes.value(string(f.Outcome)), Failure: failureMessage(&f.Failure),
		EndedAt: timestamp(&f.EndedAt),
	}
}

func failureMessage(f *task.Failure) *pb.Failure {
	if f == nil {
		return nil
	}
	m := &pb.Failure{ErrorCode: f.ErrorCode, Message: f.Message, ErrorClass: f.ErrorClass, StackTrace: f.StackTrace, Details: f.Details}
	if f.HTTPStatus != 0 {
		status := count(f.HTTPStatus)
		m.HttpStatus = &status
	}
	return m
}

func blocker(n *engine.Notice) *pb.DispatchBlocker {
	return &pb.DispatchBlocker{Handler: n.Handler, Reason: blockerReasons.value(n.Reason), Until: timestamp(n.Until), Circuit: n.Circuit}
}
