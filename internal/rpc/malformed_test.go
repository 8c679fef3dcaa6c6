package rpc_test

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/task"
)

var malformedRequests = flag.Int("malformed.requests", 1000, "how many bad requests TestMalformedRequests makes")

// mess makes messages that nobody should send: each field is left out, hostile, or nearly right.
type mess struct {
	*rand.Rand
	texts []string
	room  int // bytes that texts may still add: the transport's own limit is not what is tried here
	keep  int // of eight fields, how many stay as they are
}

func newMess(seed uint64) *mess {
	m := &mess{Rand: rand.New(rand.NewPCG(seed, 1)), room: 6 << 20, keep: 2}
	m.texts = []string{
		"", " ", "a", "default", "t", "s", "-1", "0", "1", "16384", "16385", "9223372036854775807", "99999999999999999999", "é", "𝄞", "\u202e", "a\x00b", "\x7f",
		"a=b", "'; drop table task; --", `\`, `"`, "{}", "[]", "{", "null", `{"a":1,"a":2}`, `{"a":"\u0000"}`, `{"a":1e131071}`, `{"a":1e999999999}`,
		`{"timeout":1e400}`, `{"timeout":-1}`, `{"timeout":"x"}`, `{"timeout":0.0000001}`, strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000),
		strings.Repeat("[", 100_000), strings.Repeat("x", 256), strings.Repeat("x", 5000), `{"a":"` + strings.Repeat("x", 1<<20) + `"}`,
		`{"$ref":"http://127.0.0.1:1/x"}`, `{"pattern":"(a+)+$"}`, `{"type":[]}`, "1.2.3", "1.2", "01.2.3", "1.2.3-", "Wed, 21 Oct 2015 07:28:00 GMT", "120", "-120", "1e9",
		task.Token{NamespaceID: 1, Step: task.NewID(0, 1).Step(1), Dispatch: 1, SessionID: 1}.String(),
		task.Token{NamespaceID: math.MaxInt32, Step: task.NewID(511, 1<<39).Step(10_000), Dispatch: math.MaxInt32, SessionID: math.MaxInt32}.String(),
		strings.Repeat("A", 50), "AAAA", strings.Repeat("_", 255),
	}
	return m
}

// fill sets fields of a message. depth bounds what is nested.
func (m *mess) fill(msg protoreflect.Message, depth int) {
	fields := msg.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if m.IntN(8) < m.keep || depth > 5 {
			continue
		}
		switch {
		case f.IsMap():
			entries := msg.Mutable(f).Map()
			for range m.IntN(4) {
				entries.Set(m.scalar(f.MapKey()).MapKey(), m.scalar(f.MapValue()))
			}
		case f.IsList():
			list := msg.Mutable(f).List()
			for range m.some() {
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
}

// some is how many entries a list gets: mostly few, now and then more than is allowed.
func (m *mess) some() int {
	if m.IntN(40) == 0 {
		return 1001
	}
	return m.IntN(4)
}

func (m *mess) scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	whole := []int64{0, 1, -1, 3, 4, 60, 1000, 1001, 10_000, 31_536_001, math.MaxInt32, math.MinInt32}
	n := whole[m.IntN(len(whole))]
	switch f.Kind() {
	case protoreflect.StringKind:
		text := m.texts[m.IntN(len(m.texts))]
		if m.room -= len(text); m.room < 0 {
			text = ""
		}
		return protoreflect.ValueOfString(text)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(m.texts[m.IntN(len(m.texts))]))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(m.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber([]int32{0, 1, 2, 3, 4, 99, -1}[m.IntN(7)]))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		if m.IntN(4) == 0 {
			n = []int64{math.MaxInt64, math.MinInt64, 253402300800, 1_000_000_000_000_000_000}[m.IntN(4)]
		}
		return protoreflect.ValueOfInt64(n)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64([]float64{0, 1, -1, 0.5, 101, math.NaN(), math.Inf(1), 1e308}[m.IntN(8)])
	default:
		panic(fmt.Sprintf("the contract has a field of kind %s: teach this test", f.Kind()))
	}
}

// sound are requests that would be answered. Most of the mess begins with one of them, to get past the first check.
func sound(name protoreflect.FullName) proto.Message {
	handlers := []*pb.HandlerSubscription{{Name: "s", MaxInFlight: proto.Int32(1)}}
	step := &pb.StepDefinition{Name: "s", HandlerConfig: `{"timeout": 1}`, Backoff: &pb.BackoffPolicy{}, NonRetryableCodes: []string{"NO"}}
	sub := &pb.TaskSubmission{
		Name: proto.String("t"), Context: "{}", IdempotencyKey: proto.String("k"), Labels: map[string]string{"a": "1"},
		Definition: &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: []*pb.StepDefinition{step, {Name: "t", DependsOn: []string{"s"}}}}},
		Overrides:  []*pb.StepOverride{{Name: "s", RetryLimit: proto.Int32(5), NonRetryableCodes: &pb.NonRetryableCodes{}}},
	}
	lease := task.Token{NamespaceID: 1, Step: task.NewID(0, 1).Step(1), Dispatch: 1, SessionID: 1}.String()
	policy := &pb.CircuitPolicy{WindowDuration: durationpb.New(time.Minute), MaxProbes: proto.Int32(3), Rate: proto.Float64(0.5)}
	failed := &pb.ReportStepResultRequest{LeaseToken: lease, Observations: []*pb.CircuitObservation{{Circuit: "s", Calls: 3, FailedCalls: 1}}, Outcome: &pb.ReportStepResultRequest_RetryableFailure{RetryableFailure: &pb.StepRetryableFailure{
		Failure: &pb.Failure{ErrorCode: "E", Details: "{}"}, RetryHint: &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: "1"},
		Reach: pb.Reach_REACH_CIRCUIT, Blame: pb.Blame_BLAME_DEPENDENCY,
	}}}
	for _, m := range []proto.Message{
		&pb.SubmitTaskRequest{Task: sub}, &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{sub, sub}}, &pb.ValidateTaskRequest{Task: sub},
		&pb.GetTaskRequest{TaskId: "16777216"}, &pb.ListTasksRequest{Labels: map[string]string{"a": "1"}, Template: &pb.TemplateRef{Name: "t"}},
		&pb.CancelTaskRequest{TaskId: "16777216"}, &pb.WatchTaskRequest{TaskId: "16777216", UntilIdle: true}, &pb.PurgeTaskRequest{TaskId: "16777216"},
		&pb.ReadyStepsRequest{WorkerId: "w", InstanceId: "1", MaxInFlight: 1, Handlers: handlers, HeldLeaseTokens: []string{lease}},
		&pb.PollReadyStepsRequest{WorkerId: "p", InstanceId: "1", MaxInFlight: 1, Handlers: handlers, HeldLeaseTokens: []string{lease}},
		failed, &pb.BatchReportStepResultsRequest{Reports: []*pb.ReportStepResultRequest{failed, failed}},
		&pb.HeartbeatStepsRequest{Heartbeats: []*pb.StepHeartbeat{{LeaseToken: lease, Checkpoint: proto.String("{}")}}},
		&pb.ReleaseStepsRequest{Releases: []*pb.StepRelease{{LeaseToken: lease}}}, &pb.DrainWorkerRequest{WorkerId: "w", InstanceId: "1"},
		&pb.GetDependencyResultsRequest{LeaseToken: lease, StepNames: []string{"s"}}, &pb.ListWorkersRequest{Handler: proto.String("s")},
		&pb.GetStepRequest{StepId: "16777217"}, &pb.ListStepsRequest{TaskId: "16777216"}, &pb.ListStepAttemptsRequest{StepId: "16777217"},
		&pb.RetryStepRequest{StepId: "16777217"}, &pb.ResolveStepRequest{StepId: "16777217"}, &pb.CompleteStepRequest{StepId: "16777217", Results: "{}"},
		&pb.BulkRetryStepsRequest{Filter: &pb.BulkRetryFilter{Handlers: []string{"s"}, TaskIds: []string{"16777216"}}},
		&pb.RegisterTemplateRequest{Template: &pb.Template{Name: "t", ContextSchema: `{"type": "object"}`, Steps: []*pb.StepDefinition{step}}},
		&pb.GetTemplateRequest{Template: &pb.TemplateRef{Name: "t"}}, &pb.ListTemplatesRequest{Name: proto.String("t")},
		&pb.GetCircuitRequest{Circuit: "s"}, &pb.ListCircuitsRequest{MinWaitingSteps: 1, States: []pb.CircuitState{pb.CircuitState_CIRCUIT_STATE_OPEN}},
		&pb.SetCircuitPolicyRequest{Circuit: "s", Policy: policy, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"window_duration", "max_probes", "rate"}}},
		&pb.HoldCircuitRequest{Circuit: "s", Reason: "r", EndsAt: timestamppb.New(time.Now().Add(time.Second))}, &pb.ReleaseCircuitRequest{Circuit: "s"},
		&pb.PauseHandlerRequest{Handler: "s", Reason: "r", Until: timestamppb.New(time.Now().Add(time.Second))}, &pb.ResumeHandlerRequest{Handler: "s"},
		&pb.ListPausesRequest{}, &pb.ListCircuitEventsRequest{Circuit: proto.String("s")}, &pb.WatchCircuitsRequest{Circuits: []string{"s"}},
	} {
		if m.ProtoReflect().Descriptor().FullName() == name {
			return m
		}
	}
	panic("no sound " + name)
}

// spoil breaks a message's bytes.
func (m *mess) spoil(wire []byte) []byte {
	wire = append([]byte(nil), wire...)
	switch m.IntN(4) {
	case 0:
		return wire[:m.IntN(len(wire)+1)]
	case 1:
		for range 1 + m.IntN(8) {
			if len(wire) > 0 {
				wire[m.IntN(len(wire))] = byte(m.IntN(256))
			}
		}
		return wire
	case 2:
		return protowire.AppendBytes(protowire.AppendTag(wire, protowire.Number(1+m.IntN(30)), protowire.BytesType), []byte{0xff, 0xc0, 0x00})
	default:
		return append(wire, byte(m.IntN(256)), byte(m.IntN(256)), byte(m.IntN(256)))
	}
}

// No request makes the server fail: whatever comes is answered, refused, or means nothing, but is never an internal error.
func TestMalformedRequests(t *testing.T) {
	conn := serve(t, rpc.Settings{})
	var methods []protoreflect.MethodDescriptor
	for _, file := range []protoreflect.FileDescriptor{
		pb.File_tasker_v1_task_service_proto, pb.File_tasker_v1_worker_service_proto, pb.File_tasker_v1_step_service_proto,
		pb.File_tasker_v1_template_service_proto, pb.File_tasker_v1_circuit_service_proto,
	} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for k := range service.Methods().Len() {
				methods = append(methods, service.Methods().Get(k))
			}
		}
	}
	answered := map[codes.Code]int{}
	for n := range *malformedRequests {
		m := newMess(uint64(n))
		method := methods[n%len(methods)]
		req := sound(method.Input().FullName()).ProtoReflect()
		if m.IntN(3) == 0 {
			proto.Reset(req.Interface())
		} else {
			m.keep = 6
		}
		m.fill(req, 0)
		wire, err := proto.MarshalOptions{AllowPartial: true}.Marshal(req.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if m.IntN(5) == 0 {
			wire = m.spoil(wire)
		}
		code := send(t, conn, method, wire)
		answered[code]++
		if code == codes.Internal || code == codes.Unknown || code == codes.Unavailable {
			shown := fmt.Sprintf("%.2000s", fmt.Sprint(req.Interface()))
			t.Errorf("seed %d: %s is answered %s: %s", n, method.FullName(), code, shown)
		}
	}
	t.Logf("answered: %v", answered)
	if answered[codes.InvalidArgument] < *malformedRequests/3 {
		t.Errorf("only %d of %d were refused as invalid: this test is too kind", answered[codes.InvalidArgument], *malformedRequests)
	}
	fmt.Printf("reached malformed_requests=%d\n", *malformedRequests)
}

// send makes one call. A call that is still waiting after a moment was understood.
func send(t *testing.T, conn *grpc.ClientConn, method protoreflect.MethodDescriptor, wire []byte) codes.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path, grpc.ForceCodecV2(rawCodec{rpc.Codec()}))
	if err != nil {
		t.Fatalf("opening %s: %v", path, err)
	}
	output, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		t.Fatal(err)
	}
	if err = stream.SendMsg(&raw{wire}); err == nil {
		err = stream.CloseSend()
	}
	if err != nil {
		return status.Code(err)
	}
	return status.Code(stream.RecvMsg(output.New().Interface()))
}
