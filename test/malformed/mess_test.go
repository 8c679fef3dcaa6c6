package malformed_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// mess draws what is sent, as a function of its seed and of what is alive.
type mess struct {
	*rand.Rand
	w *world
	// What may still be added to a request, lest lists of lists of long texts eat the machine.
	bytes, fields int
}

// hostile are texts that nobody should send.
var hostile = []string{
	"", " ", "\n", "-", "-1", "0", "00", "+1", "1e3", "9223372036854775807", "9223372036854775808", "16384", "16385", "a\x00b", "\u202e", "é\u0301", "\x7f",
	"'; drop table task; --", `"`, `\`, "%s%n", "../../etc/passwd", "{}", "[]", "{", "null", "true", `{"a":1,"a":2}`, `{"a":"\u0000"}`, `{"\u0000":1}`,
	`{"a":"\ud800"}`, `{"a":1e131072}`, `{"a":1e-131072}`, `{"a":NaN}`, `{"timeout":-1}`, `{"timeout":1e400}`, `{"timeout":"30"}`, `{"timeout":null}`,
	`{"timeout":0.0000001}`, `{"timeout":9223372036854775808}`, strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000), strings.Repeat("x", 256),
	strings.Repeat("é", 5000), `{"a":"` + strings.Repeat("x", 1<<20) + `"}`, "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "-120", "1e9",
	"99999999999999999999", "latest", "1.2.3", "1.2.3-", "01.2.3", "99999999999.0.0", `{"$ref":"file:///etc/passwd"}`, `{"pattern":"("}`, `{"type":[]}`,
}

func (m *mess) one(of ...string) string { return of[m.IntN(len(of))] }

// live draws one of what is alive, or something that is not.
func (m *mess) live(of []string) string {
	if len(of) == 0 || m.IntN(6) == 0 {
		return m.one(hostile...)
	}
	return of[m.IntN(len(of))]
}

// text draws a text for a field by its name: mostly something that exists, so that it is the rest that is wrong.
func (m *mess) text(f protoreflect.FieldDescriptor) string {
	if m.IntN(4) == 0 {
		return m.one(hostile...)
	}
	switch name := string(f.Name()); name {
	case "lease_token", "held_lease_tokens":
		return m.live(m.w.tokens)
	case "task_id", "task_ids":
		return m.live(m.w.taskIDs)
	case "step_id":
		return m.live(m.w.stepIDs)
	case "page_token":
		return m.live(m.w.pages)
	case "worker_id":
		return m.one("w", "v", "u", m.w.livelyName())
	case "instance_id":
		return m.one("1", "2")
	case "handler", "handlers":
		return m.one("h", "g", "s1")
	case "name", "names", "step_names", "depends_on":
		return m.one("t", "s1", "s2", "s3", "s4", "h", "made")
	case "circuit", "circuits", "changed_circuits":
		return m.one("c1", "c2", "c/3")
	case "paths":
		return m.one("rate", "max_probes", "window_duration", "open_duration", "nothing")
	case "namespace":
		return m.one("", "default", "other", "a.b-c_d")
	case "results", "details", "checkpoint", "context", "handler_config", "context_schema":
		return m.one("{}", `{"a": [1, {"b": null}]}`, `{"timeout": 1}`, `{"é": "𝄞"}`, `{"type": "object"}`)
	case "retry_after_header":
		return m.one("0", "1", "120", "Wed, 21 Oct 2015 07:28:00 GMT", " 5 ")
	case "version":
		return m.one("", "1.0.0", "0.1.0", "1.0.0-rc.1")
	case "idempotency_key":
		return m.one("k1", "k2", fmt.Sprint(m.IntN(1<<30)))
	}
	return m.one("a", "E", "some text", "é")
}

var wholes = []int64{0, 1, 2, -1, 3, 60, 99, 100, 1000, 1001, 10_000, 10_001, math.MaxInt32, math.MinInt32}

func (m *mess) scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	n := wholes[m.IntN(len(wholes))]
	switch f.Kind() {
	case protoreflect.StringKind:
		text := strings.ToValidUTF8(m.text(f), "?")
		if m.bytes -= len(text); m.bytes < 0 {
			text = ""
		}
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(m.one(hostile...)))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(m.IntN(2) == 0)
	case protoreflect.EnumKind:
		values := f.Enum().Values()
		if m.IntN(5) == 0 {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber([]int32{0, 99, -1}[m.IntN(3)]))
		}
		return protoreflect.ValueOfEnum(values.Get(m.IntN(values.Len())).Number())
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64([]int64{n, n, math.MaxInt64, math.MinInt64, time.Now().Unix(), 253402300800}[m.IntN(6)])
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64([]float64{0, 0.5, 1, 2, 101, -1, math.NaN(), math.Inf(1), 1e308}[m.IntN(9)])
	}
	panic("the contract has a field of a new kind: " + f.Kind().String())
}

// fill sets fields of a message at random, most of them of the few that it has room for.
func (m *mess) fill(msg protoreflect.Message, depth int) {
	fields := msg.Descriptor().Fields()
	for i := range fields.Len() {
		if m.IntN(3) > 0 {
			m.set(msg, fields.Get(i), depth)
		}
	}
}

func (m *mess) set(msg protoreflect.Message, f protoreflect.FieldDescriptor, depth int) {
	m.fields--
	switch {
	case depth > 6 || m.fields < 0:
	case f.IsMap():
		entries := msg.Mutable(f).Map()
		for range m.IntN(4) {
			if f.MapValue().Kind() == protoreflect.MessageKind {
				v := entries.NewValue()
				m.fill(v.Message(), depth+1)
				entries.Set(m.scalar(f.MapKey()).MapKey(), v)
				continue
			}
			entries.Set(m.scalar(f.MapKey()).MapKey(), m.scalar(f.MapValue()))
		}
	case f.IsList():
		list := msg.Mutable(f).List()
		n := m.IntN(4)
		if m.IntN(60) == 0 {
			n = 1001
		}
		for range n {
			if f.Kind() == protoreflect.MessageKind {
				m.fill(list.AppendMutable().Message(), depth+1)
			} else {
				list.Append(m.scalar(f))
			}
		}
	case f.Kind() == protoreflect.MessageKind:
		m.fill(msg.Mutable(f).Message(), depth+1)
	default:
		msg.Set(f, m.scalar(f))
	}
}

// spoil changes one field, somewhere in a message that was right.
func (m *mess) spoil(msg protoreflect.Message, depth int) {
	fields := msg.Descriptor().Fields()
	if fields.Len() == 0 {
		return
	}
	f := fields.Get(m.IntN(fields.Len()))
	switch deeper := f.Kind() == protoreflect.MessageKind && !f.IsMap() && msg.Has(f) && m.IntN(4) > 0; {
	case deeper && f.IsList():
		list := msg.Mutable(f).List()
		m.spoil(list.Get(m.IntN(list.Len())).Message(), depth+1)
	case deeper:
		m.spoil(msg.Mutable(f).Message(), depth+1)
	case m.IntN(8) == 0:
		msg.Clear(f)
	default:
		m.set(msg, f, depth)
	}
}

// right makes a request that the server would take, about what is alive. nil: there is none of this kind.
func (m *mess) right(name protoreflect.Name) proto.Message {
	handlers := []*pb.HandlerSubscription{{Name: "h"}}
	token, taskID, stepID := m.live(m.w.tokens), m.live(m.w.taskIDs), m.live(m.w.stepIDs)
	calling := graph()
	calling.Inline.Steps[0].Circuit = proto.String(m.one("c1", "c2"))
	sub := &pb.TaskSubmission{
		Name: proto.String("t"), Context: "{}", Definition: calling, Labels: map[string]string{"a": "1"},
		Overrides: []*pb.StepOverride{{Name: "s1", RetryLimit: proto.Int32(5)}},
	}
	failed := &pb.ReportStepResultRequest{LeaseToken: token, Outcome: &pb.ReportStepResultRequest_RetryableFailure{
		RetryableFailure: &pb.StepRetryableFailure{
			Failure: &pb.Failure{ErrorCode: "E", Message: "m", Details: "{}", HttpStatus: proto.Int32(503)}, RetryHint: m.hint(),
			Reach: pb.Reach_REACH_CIRCUIT, Blame: pb.Blame(m.IntN(4)),
		},
	}, Observations: []*pb.CircuitObservation{{Circuit: "c1", Calls: 3, FailedCalls: 2, SlowCalls: 1}}}
	ends := timestamppb.New(time.Now().Add(time.Duration(m.IntN(3)) * time.Second))
	policy := &pb.CircuitPolicy{
		WindowDuration: durationpb.New(time.Second), MinObservations: proto.Int32(2), OpenDuration: durationpb.New(time.Second), Rate: proto.Float64(50),
	}
	done := &pb.ReportStepResultRequest{LeaseToken: m.live(m.w.tokens), Outcome: &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: "{}"}}}
	template := &pb.Template{Name: "made", ContextSchema: `{"type": "object"}`, Steps: graph().Inline.GetSteps()}
	for _, r := range []proto.Message{
		&pb.SubmitTaskRequest{Task: sub}, &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{sub, proto.CloneOf(sub)}},
		&pb.ValidateTaskRequest{Task: sub}, &pb.GetTaskRequest{TaskId: taskID}, &pb.ListTasksRequest{PageSize: 2, Labels: map[string]string{"a": "1"}},
		&pb.CancelTaskRequest{TaskId: taskID}, &pb.WatchTaskRequest{TaskId: taskID}, &pb.PurgeTaskRequest{TaskId: taskID},
		&pb.ReadyStepsRequest{WorkerId: "w", InstanceId: "1", MaxInFlight: 2, Handlers: handlers, HeldLeaseTokens: []string{token}},
		&pb.PollReadyStepsRequest{WorkerId: "v", InstanceId: "1", MaxInFlight: 2, MaxSteps: proto.Int32(1), Handlers: handlers},
		failed, &pb.BatchReportStepResultsRequest{Reports: []*pb.ReportStepResultRequest{failed, done}},
		&pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{{LeaseToken: token, Checkpoint: proto.String("{}")}}},
		&pb.ReleaseStepsRequest{Releases: []*pb.StepRelease{{LeaseToken: token}}},
		&pb.DrainWorkerRequest{WorkerId: "u", InstanceId: "1", Deadline: nil}, &pb.GetDependencyResultsRequest{LeaseToken: token},
		&pb.ListWorkersRequest{PageSize: 2}, &pb.GetStepRequest{StepId: stepID}, &pb.ListStepsRequest{TaskId: taskID, PageSize: 2},
		&pb.ListStepAttemptsRequest{StepId: stepID, PageSize: 2}, &pb.RetryStepRequest{StepId: stepID}, &pb.ResolveStepRequest{StepId: stepID},
		&pb.CompleteStepRequest{StepId: stepID, Results: "{}"}, &pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{Handlers: []string{"h"}}, MaxSteps: proto.Int32(3)},
		&pb.RegisterTemplateRequest{Template: template}, &pb.GetTemplateRequest{Template: &pb.TemplateRef{Name: "made"}}, &pb.ListTemplatesRequest{PageSize: 2},
		&pb.GetCircuitRequest{Circuit: "c1"}, &pb.ListCircuitsRequest{PageSize: 2}, &pb.ListCircuitEventsRequest{Circuit: proto.String("c2"), PageSize: 2},
		&pb.SetCircuitPolicyRequest{Circuit: m.one("c1", "c2", ""), Policy: policy, Reason: "r"}, &pb.WatchCircuitsRequest{Circuits: []string{"c1", "c2"}},
		&pb.HoldCircuitRequest{Circuit: "c1", Reason: "r", EndsAt: ends}, &pb.ReleaseCircuitRequest{Circuit: "c1"},
		&pb.PauseHandlerRequest{Handler: m.one("h", "", "i"), Reason: "r", Until: ends}, &pb.ResumeHandlerRequest{Handler: m.one("h", "", "i")},
		&pb.ListPausesRequest{PageSize: 2},
	} {
		if r.ProtoReflect().Descriptor().Name() == name {
			return r
		}
	}
	panic("teach this test to make a " + string(name))
}

func (m *mess) hint() *pb.StepRetryableFailure_RetryAfter {
	return &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(time.Duration(m.IntN(1000)) * time.Millisecond)}
}

// request draws what is sent to a method: right but for one to three places, or random all over.
func (m *mess) request(method protoreflect.MethodDescriptor) proto.Message {
	m.bytes, m.fields = 10<<20, 10_000
	r := m.right(method.Input().Name())
	if m.IntN(4) == 0 {
		proto.Reset(r)
		m.fill(r.ProtoReflect(), 0)
		return r
	}
	for range 1 + m.IntN(3) {
		m.spoil(r.ProtoReflect(), 0)
	}
	return r
}
