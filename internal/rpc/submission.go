package rpc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/task"
)

// submitter is what a call says of all the tasks it submits.
type submitter struct{ namespace, actor, trace string }

func submitterOf(ctx context.Context) submitter {
	c := caller(ctx)
	return submitter{namespace: c.Namespace, actor: c.Actor, trace: callTrace(ctx)}
}

// place is where a submission stands in its request. Its path is written out only if something is wrong with it.
type place struct {
	field string
	index int // below 0: the field is no list
}

func (p place) String() string {
	if p.index < 0 {
		return p.field
	}
	return p.field + "[" + strconv.Itoa(p.index) + "]"
}

// theTask is the place of the only one.
var theTask = place{field: "task", index: -1}

// submission is what a client asks for, checked.
func (s *Services) submission(ctx context.Context, by submitter, at place, sub *pb.TaskSubmission) (*task.Submission, *definition, error) {
	def, err := s.definitionOf(ctx, by.namespace, at, sub)
	if err != nil {
		return nil, nil, err
	}
	if err := checkContext(at, sub.GetContext(), def); err != nil {
		return nil, nil, err
	}
	steps, err := specs(at, sub, def)
	if err != nil {
		return nil, nil, err
	}
	digest, err := submitDigest(sub)
	if err != nil {
		return nil, nil, err
	}
	t := &task.Submission{
		Namespace: by.namespace, Name: sub.GetName(), TemplateName: def.ref.GetName(), TemplateVersion: def.ref.GetVersion(),
		Context: orObject(sub.GetContext()), Labels: labelList(sub.GetLabels()), IdempotencyKey: sub.GetIdempotencyKey(), Digest: digest,
		NotBefore: instant(sub.GetNotBefore()), Deadline: instant(sub.GetDeadline()), TraceContext: by.trace,
		Actor: by.actor, Steps: steps,
	}
	if given := sub.GetTraceContext(); given != nil {
		t.TraceContext = traceText(given.GetTraceparent(), given.GetTracestate())
	}
	if sub.Name == nil {
		t.Name = def.ref.GetName()
	}
	return t, def, nil
}

// definitionOf finds the steps: those of a template, or the task's own.
func (s *Services) definitionOf(ctx context.Context, namespace string, at place, sub *pb.TaskSubmission) (*definition, error) {
	if inline := sub.GetInline(); inline != nil {
		def, err := checkDefinition(inline.GetSteps())
		if err != nil {
			return nil, under(at.String()+".inline", err)
		}
		return def, nil
	}
	def, err := s.template(ctx, namespace, sub.GetTemplate())
	return def, err
}

// checkContext checks a task's context, alone and beside the largest handler_config: a worker is sent both.
func checkContext(at place, context string, def *definition) error {
	if err := checkObject("context", context, maxPayload); err != nil {
		return under(at.String(), err)
	}
	if size := len(context) + def.largest; size > maxPayload {
		field := at.String() + ".context"
		return task.Refuse(task.PayloadTooLarge, "%d bytes together with the handler_config of step %q, at most %d are allowed",
			size, def.steps[def.largestN-1].Name, maxPayload).
			At(field).With("field", field).With("size", strconv.Itoa(size)).With("limit", strconv.Itoa(maxPayload))
	}
	if def.schema == nil {
		return nil
	}
	return def.schema.check(at.String()+".context", context)
}

// specs are the definition's steps with the task's own priority and overrides.
func specs(at place, sub *pb.TaskSubmission, def *definition) ([]task.StepSpec, error) {
	priority := defaultPriority
	if sub.Priority != nil {
		priority = int(sub.GetPriority())
	}
	steps := slices.Clone(def.steps)
	for i := range steps {
		if !def.priority[i] {
			steps[i].Priority = priority
		}
	}
	if len(sub.GetOverrides()) == 0 {
		return steps, nil
	}
	seen := make(map[int]bool, len(sub.GetOverrides()))
	for i, o := range sub.GetOverrides() {
		field := fmt.Sprintf("%s.overrides[%d].name", at, i)
		switch no := def.number[o.GetName()]; {
		case no == 0:
			return nil, task.Refuse(task.UnknownDependency, "there is no step %q", o.GetName()).
				At(field).With("step", o.GetName()).With("dependency", o.GetName())
		case seen[no]:
			return nil, task.Invalid(field, "step %q is overridden twice", o.GetName())
		default:
			seen[no] = true
			override(&steps[no-1], o)
		}
	}
	return steps, nil
}

// submitDigest tells one body from another, for the idempotency key, which is therefore not in it.
func submitDigest(sub *pb.TaskSubmission) ([]byte, error) {
	if sub.IdempotencyKey == nil {
		return nil, nil // nothing will be compared
	}
	body := proto.CloneOf(sub)
	body.IdempotencyKey = nil
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("digesting a submit: %w", err)
	}
	digest := sha256.Sum256(wire)
	return digest[:], nil
}

// under puts a refusal's field below path.
func under(path string, err error) error {
	var (
		refused *task.Error
		fields  violations
	)
	switch {
	case errors.As(err, &refused):
		// A copy: the definition that refused may be shared.
		moved := *refused
		moved.Field = joinField(path, refused.Field)
		if f, ok := refused.Metadata["field"]; ok {
			moved.Metadata = withField(refused.Metadata, joinField(path, f))
		}
		return &moved
	case errors.As(err, &fields):
		moved := make(violations, len(fields))
		for i, f := range fields {
			moved[i] = &pb.FieldViolation{Field: joinField(path, f.GetField()), Description: f.GetDescription()}
		}
		return moved
	}
	return err
}

func joinField(path, field string) string {
	if field == "" || path == "" {
		return path + field
	}
	return path + "." + field
}

// ---------------------------------------------------------------- trace context

// callTrace is the trace of the call itself, which a task's workers join unless its submit names another.
func callTrace(ctx context.Context) string {
	parent := strings.Join(metadata.ValueFromIncomingContext(ctx, "traceparent"), "")
	state := strings.Join(metadata.ValueFromIncomingContext(ctx, "tracestate"), ",")
	if len(parent) > 255 || len(state) > 512 {
		return ""
	}
	return traceText(parent, state)
}

// traceText is both headers in one text. Neither holds a line break.
func traceText(parent, state string) string {
	if state == "" {
		return parent
	}
	return parent + "\n" + state
}

func traceContext(text string) *pb.TraceContext {
	if text == "" {
		return nil
	}
	parent, state, _ := strings.Cut(text, "\n")
	return &pb.TraceContext{Traceparent: parent, Tracestate: state}
}
