package rpc_test

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/task"
)

var lease = task.Token{NamespaceID: 1, Step: task.NewID(0, 7).Step(3), Dispatch: 2, SessionID: 5, Nonce: [16]byte{1, 2, 3}}

func succeeds(results string) *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{LeaseToken: lease.String(), Outcome: &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: results}}}
}

func fails(change func(*pb.StepRetryableFailure)) *pb.ReportStepResultRequest {
	f := &pb.StepRetryableFailure{Failure: &pb.Failure{ErrorCode: "E", Message: "m"}}
	change(f)
	return &pb.ReportStepResultRequest{LeaseToken: lease.String(), Outcome: &pb.ReportStepResultRequest_RetryableFailure{RetryableFailure: f}}
}

func decoded(t *testing.T, req *pb.ReportStepResultRequest) task.Report {
	t.Helper()
	r, err := rpc.Report(req)
	if err != nil {
		t.Fatalf("%v: %v", req, err)
	}
	return r
}

// The same outcome has one digest, however it is written and however long the run took; another outcome has another.
func TestTheDigestIsOfTheOutcome(t *testing.T) {
	same := func(*pb.StepRetryableFailure) {}
	timed := succeeds("{}")
	timed.RunDuration = durationpb.New(time.Second)
	if a, b, c := decoded(t, succeeds("")), decoded(t, succeeds("{}")), decoded(t, timed); a.Digest != b.Digest || b.Digest != c.Digest {
		t.Error("equal outcomes, different digests")
	}
	seen := map[[32]byte]string{}
	for name, req := range map[string]*pb.ReportStepResultRequest{
		"success":       succeeds("{}"),
		"other results": succeeds(`{"a":1}`),
		"permanent": {LeaseToken: lease.String(), Outcome: &pb.ReportStepResultRequest_PermanentFailure{
			PermanentFailure: &pb.StepPermanentFailure{Failure: &pb.Failure{ErrorCode: "E", Message: "m"}},
		}},
		"retryable": fails(same),
		"skip":      fails(func(f *pb.StepRetryableFailure) { f.Accounting = pb.Accounting_ACCOUNTING_SKIP }),
		"circuit":   fails(func(f *pb.StepRetryableFailure) { f.Reach = pb.Reach_REACH_CIRCUIT }),
		"after 1 s": fails(func(f *pb.StepRetryableFailure) {
			f.RetryHint = &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(time.Second)}
		}),
		"after 2 s": fails(func(f *pb.StepRetryableFailure) {
			f.RetryHint = &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(2 * time.Second)}
		}),
		"header 1": fails(func(f *pb.StepRetryableFailure) {
			f.RetryHint = &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: "1"}
		}),
		"unreadable": fails(func(f *pb.StepRetryableFailure) {
			f.RetryHint = &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: "soon"}
		}),
		"at": fails(func(f *pb.StepRetryableFailure) {
			f.RetryHint = &pb.StepRetryableFailure_RetryAt{RetryAt: timestamppb.New(time.Unix(1, 0))}
		}),
		"code":    fails(func(f *pb.StepRetryableFailure) { f.Failure.ErrorCode = "F" }),
		"shifted": fails(func(f *pb.StepRetryableFailure) { f.Failure.ErrorCode, f.Failure.Message = "", "Em" }),
		"class":   fails(func(f *pb.StepRetryableFailure) { f.Failure.ErrorClass = "C" }),
		"status":  fails(func(f *pb.StepRetryableFailure) { f.Failure.HttpStatus = proto.Int32(503) }),
		"stack":   fails(func(f *pb.StepRetryableFailure) { f.Failure.StackTrace = "s" }),
		"details": fails(func(f *pb.StepRetryableFailure) { f.Failure.Details = "{}" }),
	} {
		digest := decoded(t, req).Digest
		if other, ok := seen[digest]; ok {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[digest] = name
	}
	if a, b := decoded(t, fails(same)), decoded(t, fails(func(f *pb.StepRetryableFailure) {
		f.Reach, f.Accounting = pb.Reach_REACH_STEP, pb.Accounting_ACCOUNTING_COUNT
	})); a.Digest != b.Digest {
		t.Error("a default that is written out changes the digest")
	}
}

func TestHints(t *testing.T) {
	ns := decoded(t, fails(func(f *pb.StepRetryableFailure) {
		f.RetryHint = &pb.StepRetryableFailure_RetryAfter{RetryAfter: durationpb.New(1500*time.Millisecond + 1)}
	}))
	if ns.Hint.Source != task.FromRetryAfter || *ns.Hint.After != 1500*time.Millisecond+time.Microsecond {
		t.Errorf("retry_after of a nanosecond more: %v %v", ns.Hint.Source, *ns.Hint.After)
	}
	at := time.Date(2031, 5, 1, 0, 0, 0, 0, time.UTC)
	if h := decoded(t, fails(func(f *pb.StepRetryableFailure) {
		f.RetryHint = &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: "Thu, 01 May 2031 00:00:00 GMT"}
	})).Hint; h.Source != task.FromHeaderDate || !h.At.Equal(at) {
		t.Errorf("a header with a date: %v", h)
	}
	if h := decoded(t, fails(func(f *pb.StepRetryableFailure) {
		f.RetryHint = &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: "whenever"}
	})).Hint; h.Source != task.FromHeaderUnreadable || h.After != nil || h.At != nil {
		t.Errorf("an unreadable header: %v", h)
	}
	if h := decoded(t, fails(func(*pb.StepRetryableFailure) {})).Hint; h != (task.Hint{}) {
		t.Errorf("no hint: %v", h)
	}
}

// A failure is recorded whatever its texts hold.
func TestTextsOfAFailureAreCutAndMended(t *testing.T) {
	r := decoded(t, fails(func(f *pb.StepRetryableFailure) {
		f.Failure.Message, f.Failure.StackTrace = strings.Repeat("ü", 4096), strings.Repeat("x", 4097)
		f.Failure.ErrorClass, f.Failure.ErrorCode = strings.Repeat("c", 300), "a\x00b"
	}))
	f := r.Failure
	if len(f.Message) > 4096 || !utf8.ValidString(f.Message) || !strings.HasSuffix(f.Message, "…") {
		t.Errorf("message: %d bytes", len(f.Message))
	}
	if len(f.StackTrace) != 4096 || !strings.HasSuffix(f.StackTrace, "…") || len(f.ErrorClass) != 255 {
		t.Errorf("stack trace %d, class %d bytes", len(f.StackTrace), len(f.ErrorClass))
	}
	if f.ErrorCode != "a\uFFFDb" {
		t.Errorf("code %q", f.ErrorCode)
	}
	whole := strings.Repeat("x", 4096)
	if got := decoded(t, fails(func(f *pb.StepRetryableFailure) { f.Failure.Message = whole })).Failure.Message; got != whole {
		t.Error("a message of 4096 bytes was cut")
	}
}

func TestReportsThatAreRefused(t *testing.T) {
	big := `{"a":"` + strings.Repeat("x", 1<<20) + `"}`
	for name, c := range map[string]struct {
		req    *pb.ReportStepResultRequest
		reason task.Reason
		field  string
	}{
		"no outcome":       {&pb.ReportStepResultRequest{LeaseToken: lease.String()}, task.Validation, "outcome"},
		"a foreign token":  {&pb.ReportStepResultRequest{LeaseToken: "x", Outcome: succeeds("").GetOutcome()}, task.LeaseLost, ""},
		"results: list":    {succeeds("[]"), task.Validation, "success.results"},
		"results: too big": {succeeds(big), task.PayloadTooLarge, "success.results"},
		"details: too big": {fails(func(f *pb.StepRetryableFailure) { f.Failure.Details = big }), task.PayloadTooLarge, "retryable_failure.failure.details"},
		"details: text":    {fails(func(f *pb.StepRetryableFailure) { f.Failure.Details = "oops" }), task.Validation, "retryable_failure.failure.details"},
	} {
		_, err := rpc.Report(c.req)
		var refused *task.Error
		if !errors.As(err, &refused) || refused.Reason != c.reason || refused.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFrameNamesWhatDoesNotFit(t *testing.T) {
	half := `{"x":"` + strings.Repeat("y", 600<<10) + `"}`
	r := &task.ReadyStep{
		Token: lease, Namespace: "n", Dependencies: []task.DependencyResult{{Name: "a", Results: half}, {Name: "b", Results: half}},
		Omitted: []string{"c"},
	}
	step := rpc.ReadyStep(r)
	if len(step.GetDependencyResults()) != 1 || step.GetDependencyResults()["a"] != half {
		t.Errorf("%d results in the frame", len(step.GetDependencyResults()))
	}
	if got := strings.Join(step.GetOmittedDependencies(), ","); got != "c,b" {
		t.Errorf("omitted: %s", got)
	}
	// Everything at its limit, and ten thousand parents with long names.
	mega := strings.Repeat("z", 1<<20)
	r = &task.ReadyStep{
		Token: lease, Context: mega, Checkpoint: mega[:256<<10], Dependencies: []task.DependencyResult{{Name: "a", Results: mega[:1<<20-10]}},
		PreviousFailure: &task.PreviousFailure{Failure: task.Failure{Details: mega, Message: mega[:4096], StackTrace: mega[:4096]}},
	}
	if size := proto.Size(rpc.ReadyStep(r)); size > rpc.MaxFrame {
		t.Errorf("a frame of %d bytes", size)
	}
	for range 10_000 {
		r.Omitted = append(r.Omitted, strings.Repeat("n", 255))
	}
	if size := proto.Size(rpc.ReadyStep(r)); size > rpc.MaxFrame {
		t.Errorf("a frame of %d bytes, with ten thousand parents", size)
	}
}

func TestTheDeadlineOfARunIsTheEarliest(t *testing.T) {
	granted := time.Unix(1000, 0)
	early, late := granted.Add(time.Second), granted.Add(time.Hour)
	for name, c := range map[string]struct {
		timeout  time.Duration
		deadline *time.Time
		want     *time.Time
	}{
		"none":           {0, nil, nil},
		"timeout":        {time.Second, nil, &early},
		"deadline":       {0, &late, &late},
		"timeout first":  {time.Second, &late, &early},
		"deadline first": {2 * time.Hour, &late, &late},
	} {
		got := rpc.ReadyStep(&task.ReadyStep{Token: lease, GrantedAt: granted, RunTimeout: c.timeout, Deadline: c.deadline}).GetDeadline()
		if (got == nil) != (c.want == nil) || got != nil && !got.AsTime().Equal(*c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}
