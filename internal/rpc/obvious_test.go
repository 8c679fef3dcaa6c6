package rpc_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/rpc"
)

// plainRequests are what most workers and clients send. They must be obvious, or nothing is gained.
func plainRequests() []proto.Message {
	report := &pb.ReportStepResultRequest{LeaseToken: "token", Outcome: &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: "{}"}}}
	sub := &pb.TaskSubmission{
		Name: proto.String("Order_7"), Context: `{"user_id":7}`, IdempotencyKey: proto.String("order/7:1-a"), Priority: proto.Int32(3),
		Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "registration", Version: proto.String("1.20.0")}},
	}
	return []proto.Message{
		report, &pb.BatchReportStepResultsRequest{Reports: []*pb.ReportStepResultRequest{report}},
		&pb.SubmitTaskRequest{Namespace: "a.b-c_1", Task: sub},
		&pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{sub, {Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "t"}}}}},
	}
}

func TestPlainRequestsAreObvious(t *testing.T) {
	for _, m := range plainRequests() {
		if !rpc.Obvious(m) {
			t.Errorf("%s is not: %v", m.ProtoReflect().Descriptor().Name(), m)
		}
		if err := rpc.Check(m); err != nil {
			t.Error(err)
		}
	}
}

// What is obvious is what the rules find nothing in: said of a plain request with one field of it made hostile or nearly
// right, fields included that obvious has never heard of.
func TestTheObviousKeepsTheRules(t *testing.T) {
	judge, err := rpc.Judge()
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Log("seed", seed)
	m := newMess(seed)
	m.texts = append(m.texts, "", "a", "A.b:c/d-e", "-a", ".a", "a b", "a\x00", "\n", "1.2.3", "1.2", "1.2.3.4", "01.2.3", "1.0.0-rc.1", "1.2.", ".1.2",
		"1234567890.1.1", "default", "Default", strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 255), strings.Repeat("a", 256))
	obvious, broken := 0, 0
	for range 20_000 {
		plain := plainRequests()
		msg := proto.Clone(plain[m.IntN(len(plain))])
		m.room = 1 << 20
		m.disturb(msg.ProtoReflect())
		err := judge(msg)
		if err != nil {
			broken++
		}
		if rpc.Obvious(msg) {
			obvious++
			if err != nil {
				t.Errorf("obvious, and the rules say: %v\n%v", err, msg)
			}
		}
	}
	if obvious < 1000 || broken < 1000 {
		t.Errorf("%d of the messages were obvious and %d broke a rule: too few to tell", obvious, broken)
	}
}

// disturb sets one field, somewhere.
func (m *mess) disturb(msg protoreflect.Message) {
	fields := msg.Descriptor().Fields()
	f := fields.Get(m.IntN(fields.Len()))
	if f.Kind() == protoreflect.MessageKind && !f.IsMap() && msg.Has(f) && m.IntN(8) > 0 {
		if !f.IsList() {
			m.disturb(msg.Mutable(f).Message())
			return
		}
		list := msg.Mutable(f).List()
		m.disturb(list.Get(m.IntN(list.Len())).Message())
		return
	}
	msg.Clear(f)
	switch {
	case m.IntN(8) == 0: // left out
	case f.IsMap() || f.IsList():
		m.keep = 4
		m.fill(msg, 4)
	case f.Kind() == protoreflect.MessageKind:
		m.keep = 4
		m.fill(msg.Mutable(f).Message(), 4)
	default:
		msg.Set(f, m.scalar(f))
	}
}
