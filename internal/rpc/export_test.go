package rpc

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/task"
)

// What the tests look at from inside.

// CodeOf is the code of a reason in the table.
func CodeOf(r pb.ErrorReason) (codes.Code, bool) {
	v, ok := verdicts[r]
	return v.code, ok
}

// ReasonOf is the contract's name of a reason.
func ReasonOf(r task.Reason) pb.ErrorReason { return reasonOf(r) }

// Status is an error as the status of a call.
func Status(ctx context.Context, log *slog.Logger, err error) *status.Status {
	return refuse(ctx, log, "/tasker.v1.TaskService/GetTask", err).status()
}

// Entry is an error as the status of an entry.
func Entry(ctx context.Context, log *slog.Logger, err error) *pb.EntryStatus {
	return refuse(ctx, log, "/tasker.v1.TaskService/GetTask", err).entry()
}

// Violations makes an error of many fields.
func Violations(fields ...*pb.FieldViolation) error { return violations(fields) }

// Check holds a message against the contract's rules.
func Check(m proto.Message) error {
	r, err := compileRules()
	if err != nil {
		return err
	}
	return r.check(m)
}

// Obvious tells whether a message keeps the rules at a glance.
func Obvious(m proto.Message) bool { return obvious(m) }

// Judge gives a check that goes through all rules of a message.
func Judge() (func(proto.Message) error, error) {
	r, err := compileRules()
	if err != nil {
		return nil, err
	}
	return r.judge, nil
}

// Report decodes a report.
func Report(req *pb.ReportStepResultRequest) (task.Report, error) { return report(req) }

// ReadyStep makes a step's frame.
func ReadyStep(r *task.ReadyStep) *pb.ReadyStep { return readyStep(r) }

// RunTimeout reads handler_config.timeout.
func RunTimeout(config string) (*time.Duration, error) { return runTimeout("handler_config", config) }

// CheckContext holds a context against a schema.
func CheckContext(schema, context string) error {
	s, err := compileSchema("context_schema", schema)
	if err != nil {
		return err
	}
	return s.check("context", context)
}

// SubmitDigest is what a submit's idempotency key compares.
func SubmitDigest(sub *pb.TaskSubmission) ([]byte, error) { return submitDigest(sub) }

// Words of each enum that mirrors words of the database.
func Words() map[string]map[string]bool {
	return map[string]map[string]bool{
		"TaskState": wordsOf(taskStates), "StepState": wordsOf(stepStates), "ExecutionStatus": wordsOf(executionStatuses),
		"RecommendedAction": wordsOf(recommendedActions), "HealthStatus": wordsOf(healthStatuses), "ParkedReason": wordsOf(parkedReasons),
		"DelaySource": wordsOf(delaySources), "DispatchOutcome": wordsOf(outcomes), "RevokeReason": wordsOf(revokeReasons),
		"BlockerReason": wordsOf(blockerReasons), "Blame": wordsOf(blames), "WaitingFor": wordsOf(waits),
		"CircuitState": wordsOf(circuitStates), "CircuitCause": wordsOf(circuitCauses),
	}
}

func wordsOf[E enum](v vocabulary[E]) map[string]bool {
	words := map[string]bool{}
	for word := range v.values {
		words[word] = true
	}
	return words
}

// MaxFrame is the limit of a frame.
const MaxFrame = maxBatch

// CallerOf is who made the call.
func CallerOf(ctx context.Context) Caller { return caller(ctx) }

// Collect reads a page of tasks.
func Collect(req *pb.ListTasksRequest, fetch func(task.PageRequest) (task.Page[task.View], error)) ([]*pb.Task, string, error) {
	return collect(req, fetch, taskMessage)
}

// Reported makes the answer to a report.
func Reported(r *task.Report, a *task.Reported) *pb.ReportStepResultResponse { return reported(r, a) }

// Step makes a step's message.
func Step(v *task.StepView) *pb.Step { return stepMessage(v) }

// Circuit makes a circuit's message.
func Circuit(c *task.Circuit) *pb.Circuit { return circuitMessage(c) }

// CircuitEvent makes an event's message.
func CircuitEvent(e *task.CircuitEvent) *pb.CircuitEvent { return circuitEventMessage(e) }

// CircuitPolicy decodes a policy.
func CircuitPolicy(m *pb.CircuitPolicy) task.CircuitPolicy { return circuitPolicy(m) }

// PolicyFields are the fields that a request changes.
func PolicyFields(req *pb.SetCircuitPolicyRequest) []string { return policyFields(req) }

// CircuitFrames makes frames of what a watch of circuits hands out.
func CircuitFrames(f engine.CircuitFrame) []*pb.WatchCircuitsResponse { return circuitFrames(f) }

// WatchFrames makes frames of a change that comes after a revision.
func WatchFrames(c *engine.TaskChange, before int64) []*pb.WatchTaskResponse {
	return watchFrames(c, before)
}
