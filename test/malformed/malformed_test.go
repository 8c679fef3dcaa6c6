package malformed_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
)

var (
	requests = flag.Int("malformed.requests", 1500, "how many bad requests are sent")
	seedFlag = flag.Uint64("malformed.seed", 0, "what is drawn is a function of it; 0: another each time")
)

// designed is the contract's table of reasons: what a refusal may be.
var designed = map[string]codes.Code{
	"VALIDATION": codes.InvalidArgument, "DAG_CYCLE": codes.InvalidArgument, "UNKNOWN_DEPENDENCY": codes.InvalidArgument,
	"DUPLICATE_STEP": codes.InvalidArgument, "PAYLOAD_TOO_LARGE": codes.InvalidArgument, "BAD_PAGE_TOKEN": codes.InvalidArgument,
	"TASK_NOT_FOUND": codes.NotFound, "STEP_NOT_FOUND": codes.NotFound, "TEMPLATE_NOT_FOUND": codes.NotFound,
	"CIRCUIT_NOT_FOUND":      codes.NotFound,
	"IDEMPOTENCY_KEY_REUSED": codes.AlreadyExists, "TEMPLATE_VERSION_EXISTS": codes.AlreadyExists,
	"LEASE_LOST": codes.FailedPrecondition, "RESULT_CONFLICT": codes.FailedPrecondition, "TASK_FINISHED": codes.FailedPrecondition,
	"STEP_FINISHED": codes.FailedPrecondition, "STEP_NOT_IN_ERROR": codes.FailedPrecondition, "TASK_NOT_FINISHED": codes.FailedPrecondition,
	"SESSION_TAKEN_OVER": codes.FailedPrecondition, "WORKER_ID_IN_USE": codes.FailedPrecondition,
	"CONFLICT": codes.Aborted, "RATE_LIMITED": codes.ResourceExhausted, "TOO_MANY_STREAMS": codes.ResourceExhausted,
}

// waiting are the calls that may be meant to wait for something that does not come.
var waiting = map[protoreflect.Name]bool{
	"ReadySteps": true, "WatchTask": true, "WatchCircuits": true, "PollReadySteps": true, "SubmitTask": true, "DrainWorker": true,
}

// patienceOf is how long a call may take.
func patienceOf(method protoreflect.MethodDescriptor) time.Duration {
	if waiting[method.Name()] {
		return 100 * time.Millisecond
	}
	return 20 * time.Second
}

// TestMalformedRequestsAboutLivingThings sends requests that are wrong, about what there is.
func TestMalformedRequestsAboutLivingThings(t *testing.T) {
	w := newWorld(t)
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	m := &mess{Rand: rand.New(rand.NewPCG(seed, 1)), w: w}
	answers := map[string]int{}
	for n := range *requests {
		if n%20 == 0 {
			w.liven()
		}
		method := w.methods[m.IntN(len(w.methods))]
		r := m.request(method)
		answer := w.send(method, r)
		answers[answer]++
		if strings.HasPrefix(answer, "!") {
			t.Errorf("request %d: %s is answered %s: %.1500s", n, method.FullName(), answer, fmt.Sprint(r))
		}
	}
	t.Logf("answers: %v", answers)
	if refused := answers["VALIDATION"]; refused < *requests/6 {
		t.Errorf("only %d of %d were refused as invalid: this test is too kind", refused, *requests)
	}
	for reason, within := range map[string]int{
		"OK": 100, "LEASE_LOST": 1500, "TASK_NOT_FOUND": 1500, "STEP_NOT_IN_ERROR": 1500, "RESULT_CONFLICT": 3000, "PAYLOAD_TOO_LARGE": 10_000,
	} {
		if answers[reason] == 0 && *requests >= within {
			t.Errorf("nothing was answered %s: this test does not get through to what is alive", reason)
		}
	}
	if log := w.log.String(); strings.Contains(log, "panic") {
		t.Errorf("the server panicked:\n%.3000s", log[strings.Index(log, "panic"):])
	}
	w.goesOn()
	w.isSound()
	t.Logf("reached malformed_living=%d", *requests)
}

// send makes a call and says how it was answered: OK, the reason of a refusal, "patience" for a call that waits, or
// "nothing" for a stream that ends without a frame. What no contract designs begins with an exclamation mark.
func (w *world) send(method protoreflect.MethodDescriptor, r proto.Message) string {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patienceOf(method))
	defer cancel()
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	answer := output(method)
	stream, err := w.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err == nil {
		if err = stream.SendMsg(r); err == nil || errors.Is(err, io.EOF) {
			err = stream.CloseSend()
		}
		if err == nil {
			err = stream.RecvMsg(answer)
		}
	}
	switch s := status.Convert(err); {
	case err == nil:
		return w.inside(answer)
	case errors.Is(err, io.EOF):
		return "nothing"
	case s.Code() == codes.DeadlineExceeded && waiting[method.Name()]:
		return "patience"
	case s.Code() == codes.ResourceExhausted && strings.Contains(s.Message(), "larger than max"):
		return "larger than a message may be"
	default:
		return judge(s)
	}
}

// judge holds a refusal against the table.
func judge(s *status.Status) string {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			if code, known := designed[info.GetReason()]; !known || code != s.Code() {
				return fmt.Sprintf("!%s with reason %s: %s", s.Code(), info.GetReason(), s.Message())
			}
			return info.GetReason()
		}
	}
	return fmt.Sprintf("!%s without a reason: %s", s.Code(), s.Message())
}

// inside judges the entries of a batch's answer, and keeps page tokens to be misused.
func (w *world) inside(answer proto.Message) string {
	bad := ""
	var walk func(protoreflect.Message)
	walk = func(msg protoreflect.Message) {
		if s, ok := msg.Interface().(*pb.EntryStatus); ok && s.GetCode() != 0 {
			reason := strings.TrimPrefix(s.GetReason().String(), "ERROR_REASON_")
			if code, known := designed[reason]; !known || int32(code) != s.GetCode() {
				bad = fmt.Sprintf("!entry with code %d, reason %s: %s", s.GetCode(), reason, s.GetMessage())
			}
		}
		msg.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			switch {
			case f.Name() == "next_page_token":
				w.pages = newest(w.pages, v.String())
			case f.Kind() != protoreflect.MessageKind || f.IsMap():
			case f.IsList():
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			default:
				walk(v.Message())
			}
			return true
		})
	}
	walk(answer.ProtoReflect())
	if bad != "" {
		return bad
	}
	return "OK"
}

// goesOn sees a task from its submit to its end.
func (w *world) goesOn() {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	sub, err := w.tasks.SubmitTask(ctx, &pb.SubmitTaskRequest{Namespace: "untouched", Task: &pb.TaskSubmission{Name: proto.String("last"), Definition: graph()}})
	w.ok(err)
	stream, err := w.workers.ReadySteps(ctx, &pb.ReadyStepsRequest{
		Namespace: "untouched", WorkerId: "last", InstanceId: "1", MaxInFlight: 10, Handlers: []*pb.HandlerSubscription{{Name: "h"}},
	})
	w.ok(err)
	for done := 0; done < 4; {
		frame, err := stream.Recv()
		w.ok(err)
		if step := frame.GetStep(); step != nil {
			_, err := w.workers.ReportStepResult(ctx, &pb.ReportStepResultRequest{
				LeaseToken: step.GetLeaseToken(), Outcome: &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: "{}"}},
			})
			w.ok(err)
			done++
		}
	}
	got, err := w.tasks.GetTask(ctx, &pb.GetTaskRequest{TaskId: sub.GetTask().GetTaskId()})
	w.ok(err)
	if got.GetTask().GetState() != pb.TaskState_TASK_STATE_COMPLETE {
		w.Errorf("the last task is %s", got.GetTask().GetState())
	}
}

// isSound has the checker decide.
func (w *world) isSound() {
	w.Helper()
	r, err := history.Check(w.Context(), w.db.Pool, history.Options{})
	w.ok(err)
	for i, v := range r.Violations {
		if i < 20 {
			w.Error(v)
		}
	}
	w.Logf("tasks %d %v, steps %d %v, dispatches %d, attempts %d", r.Tasks, r.States, r.Steps, r.Ended, r.Dispatches, r.Attempts)
}
