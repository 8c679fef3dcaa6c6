package contract_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// minimal are the smallest valid messages that clients send, those that need nothing left out.
var minimal = map[protoreflect.Name]proto.Message{
	"TaskSubmission":          inlineTask(),
	"SubmitTaskRequest":       &pb.SubmitTaskRequest{Task: inlineTask()},
	"BatchSubmitTasksRequest": &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{inlineTask()}},
	"ValidateTaskRequest":     &pb.ValidateTaskRequest{Task: inlineTask()},
	"GetTaskRequest":          &pb.GetTaskRequest{TaskId: "16384"},
	"CancelTaskRequest":       &pb.CancelTaskRequest{TaskId: "16384"},
	"WatchTaskRequest":        &pb.WatchTaskRequest{TaskId: "16384"},
	"PurgeTaskRequest":        &pb.PurgeTaskRequest{TaskId: "16384"},
	"GetStepRequest":          &pb.GetStepRequest{StepId: "16385"},
	"ListStepsRequest":        &pb.ListStepsRequest{TaskId: "16384"},
	"ListStepAttemptsRequest": &pb.ListStepAttemptsRequest{StepId: "16385"},
	"RetryStepRequest":        &pb.RetryStepRequest{StepId: "16385"},
	"ResolveStepRequest":      &pb.ResolveStepRequest{StepId: "16385"},
	"CompleteStepRequest":     &pb.CompleteStepRequest{StepId: "16385"},
	"BulkRetryFilter":         &pb.BulkRetryFilter{Handlers: []string{"charge"}},
	"BulkRetryStepsRequest":   &pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{Handlers: []string{"charge"}}},
	"Template":                template(),
	"TemplateRef":             &pb.TemplateRef{Name: "t"},
	"StepDefinition":          &pb.StepDefinition{Name: "a"},
	"StepOverride":            &pb.StepOverride{Name: "a"},
	"InlineSteps":             &pb.InlineSteps{Steps: steps(1)},
	"RegisterTemplateRequest": &pb.RegisterTemplateRequest{Template: template()},
	"GetTemplateRequest":      &pb.GetTemplateRequest{Template: &pb.TemplateRef{Name: "t"}},
	"HandlerSubscription":     &pb.HandlerSubscription{Name: "charge"},
	"ReadyStepsRequest":       &pb.ReadyStepsRequest{WorkerId: "w", InstanceId: "i", Handlers: handlers(1), MaxInFlight: 1},
	"PollReadyStepsRequest":   &pb.PollReadyStepsRequest{WorkerId: "w", InstanceId: "i", Handlers: handlers(1), MaxInFlight: 1},
	"ReportStepResultRequest": report(),
	"BatchReportStepResultsRequest": &pb.BatchReportStepResultsRequest{
		Reports: []*pb.ReportStepResultRequest{report()},
	},
	"HeartbeatStepsRequest":       &pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{{LeaseToken: "x"}}},
	"StepHeartbeat":               &pb.StepHeartbeat{LeaseToken: "x"},
	"ReleaseStepsRequest":         &pb.ReleaseStepsRequest{Releases: []*pb.StepRelease{{LeaseToken: "x"}}},
	"StepRelease":                 &pb.StepRelease{LeaseToken: "x"},
	"DrainWorkerRequest":          &pb.DrainWorkerRequest{WorkerId: "w", InstanceId: "i"},
	"GetDependencyResultsRequest": &pb.GetDependencyResultsRequest{LeaseToken: "x"},
	"ListTasksRequest":            &pb.ListTasksRequest{},
	"ListTemplatesRequest":        &pb.ListTemplatesRequest{},
	"ListWorkersRequest":          &pb.ListWorkersRequest{},
	"BackoffPolicy":               &pb.BackoffPolicy{},
	"Failure":                     &pb.Failure{},
	"NonRetryableCodes":           &pb.NonRetryableCodes{},
	"StepPermanentFailure":        &pb.StepPermanentFailure{},
	"StepRetryableFailure":        &pb.StepRetryableFailure{},
	"StepSuccess":                 &pb.StepSuccess{},
	"TraceContext":                &pb.TraceContext{},
	"CircuitPolicy":               &pb.CircuitPolicy{},
	"CircuitObservation":          &pb.CircuitObservation{Circuit: "c", Calls: 1},
	"GetCircuitRequest":           &pb.GetCircuitRequest{Circuit: "c"},
	"ListCircuitsRequest":         &pb.ListCircuitsRequest{},
	"SetCircuitPolicyRequest":     &pb.SetCircuitPolicyRequest{Circuit: "c", Policy: &pb.CircuitPolicy{MaxProbes: proto.Int32(2)}},
	"HoldCircuitRequest":          &pb.HoldCircuitRequest{Circuit: "c", Reason: "maintenance"},
	"ReleaseCircuitRequest":       &pb.ReleaseCircuitRequest{Circuit: "c"},
	"ListCircuitEventsRequest":    &pb.ListCircuitEventsRequest{},
	"PauseHandlerRequest":         &pb.PauseHandlerRequest{Handler: "h", Reason: "maintenance"},
	"ResumeHandlerRequest":        &pb.ResumeHandlerRequest{Handler: "h"},
	"ListPausesRequest":           &pb.ListPausesRequest{},
	"WatchCircuitsRequest":        &pb.WatchCircuitsRequest{},
}

func inlineTask() *pb.TaskSubmission {
	return &pb.TaskSubmission{
		Name:       proto.String("t"),
		Definition: &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: steps(1)}},
	}
}

func template() *pb.Template { return &pb.Template{Name: "t", Steps: steps(1)} }

func report() *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{
		LeaseToken: "x",
		Outcome:    &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{}},
	}
}

func steps(n int) []*pb.StepDefinition {
	out := make([]*pb.StepDefinition, n)
	for i := range out {
		out[i] = &pb.StepDefinition{Name: fmt.Sprintf("s%d", i)}
	}
	return out
}

func handlers(n int) []*pb.HandlerSubscription {
	out := make([]*pb.HandlerSubscription, n)
	for i := range out {
		out[i] = &pb.HandlerSubscription{Name: fmt.Sprintf("h%d", i)}
	}
	return out
}

// with gives a copy of base that has one field set to value; nil clears it.
func with(t *testing.T, base proto.Message, field string, value any) proto.Message {
	t.Helper()
	message := proto.Clone(base)
	m := message.ProtoReflect()
	fd := m.Descriptor().Fields().ByName(protoreflect.Name(field))
	if fd == nil {
		t.Fatalf("%s has no field %s", m.Descriptor().Name(), field)
	}
	m.Clear(fd)
	switch value := value.(type) {
	case nil:
	case proto.Message:
		m.Set(fd, protoreflect.ValueOfMessage(value.ProtoReflect()))
	case protoreflect.Enum:
		m.Set(fd, protoreflect.ValueOfEnum(value.Number()))
	case map[string]string:
		for k, v := range value {
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfString(v))
		}
	case []string:
		for _, v := range value {
			m.Mutable(fd).List().Append(protoreflect.ValueOfString(v))
		}
	case []protoreflect.EnumNumber:
		for _, v := range value {
			m.Mutable(fd).List().Append(protoreflect.ValueOfEnum(v))
		}
	case []proto.Message:
		for _, v := range value {
			m.Mutable(fd).List().Append(protoreflect.ValueOfMessage(v.ProtoReflect()))
		}
	default:
		m.Set(fd, protoreflect.ValueOf(value))
	}
	return message
}

// a makes a list of values, those of messages in the one form that with knows.
func a(in ...any) []any {
	out := make([]any, len(in))
	for i, v := range in {
		switch v := v.(type) {
		case []*pb.StepDefinition:
			out[i] = messages(v)
		case []*pb.StepOverride:
			out[i] = messages(v)
		case []*pb.TaskSubmission:
			out[i] = messages(v)
		case []*pb.HandlerSubscription:
			out[i] = messages(v)
		case []*pb.ReportStepResultRequest:
			out[i] = messages(v)
		case []*pb.StepHeartbeat:
			out[i] = messages(v)
		case []*pb.StepRelease:
			out[i] = messages(v)
		case []*pb.CircuitObservation:
			out[i] = messages(v)
		default:
			out[i] = v
		}
	}
	return out
}

func messages[M proto.Message](in []M) []proto.Message {
	out := make([]proto.Message, len(in))
	for i, m := range in {
		out[i] = m
	}
	return out
}

// states are the bounds of a filter by state that knows n states.
func states(n int) values {
	all := make([]protoreflect.EnumNumber, n)
	for i := range all {
		all[i] = protoreflect.EnumNumber(i + 1)
	}
	number := func(n int) []protoreflect.EnumNumber { return []protoreflect.EnumNumber{protoreflect.EnumNumber(n)} }
	return values{a([]protoreflect.EnumNumber{}, all), a(number(0), number(n+1), append(all[:n:n], 1))}
}

// subscriptions are the bounds of a list of handlers.
func subscriptions() values {
	return values{a(handlers(1), handlers(256)), a(handlers(0), handlers(257), []*pb.HandlerSubscription{{}})}
}

func tasks(n int) []*pb.TaskSubmission            { return repeat(n, inlineTask) }
func reports(n int) []*pb.ReportStepResultRequest { return repeat(n, report) }
func overrides(n int) []*pb.StepOverride {
	return repeat(n, func() *pb.StepOverride { return &pb.StepOverride{Name: "s"} })
}

func heartbeats(n int) []*pb.StepHeartbeat {
	return repeat(n, func() *pb.StepHeartbeat { return &pb.StepHeartbeat{LeaseToken: "x"} })
}

func releases(n int) []*pb.StepRelease {
	return repeat(n, func() *pb.StepRelease { return &pb.StepRelease{LeaseToken: "x"} })
}

func observations(n int) []*pb.CircuitObservation {
	return repeat(n, func() *pb.CircuitObservation { return &pb.CircuitObservation{Circuit: "c", Calls: 1} })
}

func mask(paths ...string) proto.Message { return &fieldmaskpb.FieldMask{Paths: paths} }

func fieldsOfAPolicy() []string {
	fields := (&pb.CircuitPolicy{}).ProtoReflect().Descriptor().Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = string(fields.Get(i).Name())
	}
	return names
}

func repeat[M any](n int, one func() M) []M {
	out := make([]M, n)
	for i := range out {
		out[i] = one()
	}
	return out
}

func many(n int, s string) []string    { return repeat(n, func() string { return s }) }
func rep(s string, n int) string       { return strings.Repeat(s, n) }
func secs(n float64) proto.Message     { return &durationpb.Duration{Seconds: int64(n)} }
func dur(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }
func nanos(n int64) proto.Message {
	return &durationpb.Duration{Seconds: n / 1e9, Nanos: int32(n % 1e9)}
}
func at(n int64) *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: n} }

func pairs(n int) map[string]string {
	out := map[string]string{}
	for i := range n {
		out[fmt.Sprintf("k%d", i)] = "v"
	}
	return out
}
