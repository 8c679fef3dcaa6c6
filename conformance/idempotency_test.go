package conformance_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func TestIdempotentReport_IsAnsweredAsItWasFirstHoweverTheStepWentOn(t *testing.T) {
	s := start(t)
	s.submit(inline(step("s")))
	w := s.worker(1)
	x := w.next()
	first := s.report(retryable(x, after(0)))
	again := func(what string) {
		t.Helper()
		got := s.report(retryable(x, after(0)))
		if !got.GetAlreadyRecorded() {
			t.Errorf("%s: %v", what, got)
		}
		got.AlreadyRecorded = false
		if !proto.Equal(got, first) {
			t.Errorf("%s: first %v, then %v", what, first, got)
		}
		refused(t, s.reportErr(success(x, "")), codes.FailedPrecondition, "RESULT_CONFLICT")
	}
	next := w.next()
	again("while it runs again")
	s.report(permanent(next))
	again("when it has failed for good")
	must[*pb.Step](t)(s.retryStep(x.GetStepId()))
	again("after an operator's reset")
	last := w.next()
	done := s.report(success(last, `{"n":1}`))
	again("when it is complete")
	repeat := s.report(success(last, `{"n":1}`))
	repeat.AlreadyRecorded = false
	if !proto.Equal(repeat, done) {
		t.Errorf("a success again: first %v, then %v", done, repeat)
	}
}

func TestIdempotentReport_OutcomesAreTheSameWhenEverythingButTheDurationIs(t *testing.T) {
	s := start(t)
	s.submit(inline(step("s")))
	x := s.worker(1).next()
	r := retryable(x, after(time.Hour))
	s.report(r)
	r.RunDuration = durationpb.New(-5)
	equal(t, "another duration", s.report(r).GetAlreadyRecorded(), true)
	for name, change := range map[string]func(*pb.StepRetryableFailure){
		"hint":       after(time.Hour + time.Microsecond),
		"no hint":    func(f *pb.StepRetryableFailure) { f.RetryHint = nil },
		"code":       func(f *pb.StepRetryableFailure) { f.Failure.ErrorCode = "OTHER" },
		"message":    func(f *pb.StepRetryableFailure) { f.Failure.Message = "other" },
		"accounting": skipped,
		"reach":      func(f *pb.StepRetryableFailure) { f.Reach = pb.Reach_REACH_CIRCUIT },
	} {
		err := s.reportErr(retryable(x, after(time.Hour), change))
		t.Run(name, func(t *testing.T) { refused(t, err, codes.FailedPrecondition, "RESULT_CONFLICT") })
	}
}

func TestIdempotentReport_OfOneTokenTwiceInABatchIsOne(t *testing.T) {
	s := start(t)
	s.submit(inline(step("s")))
	x := s.worker(1).next()
	resp := must[*pb.BatchReportStepResultsResponse](t)(s.workers.BatchReportStepResults(s.within(), &pb.BatchReportStepResultsRequest{
		Reports: []*pb.ReportStepResultRequest{success(x, `{"a":1}`), success(x, `{"a":1}`), success(x, `{"a":2}`), success(x, `{"a":1}`)},
	}))
	for i, want := range []pb.ErrorReason{0, 0, pb.ErrorReason_ERROR_REASON_RESULT_CONFLICT, 0} {
		equal(t, "entry", resp.GetEntries()[i].GetStatus().GetReason(), want)
	}
	equal(t, "attempts", s.step(x.GetStepId()).GetAttempts(), 1)
}

func keyed(key string, change ...func(*pb.TaskSubmission)) *pb.TaskSubmission {
	sub := inline(step("s"))
	sub.IdempotencyKey = &key
	for _, c := range change {
		c(sub)
	}
	return sub
}

func TestIdempotentSubmit_OneKeyWithTwoBodiesInOneBatchIsRefused(t *testing.T) {
	s := start(t)
	other := func(sub *pb.TaskSubmission) { sub.Context = `{"other":1}` }
	_, err := s.tasks.BatchSubmitTasks(s.within(), &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{keyed("a"), keyed("k"), keyed("k", other)}})
	refused(t, err, codes.AlreadyExists, "IDEMPOTENCY_KEY_REUSED")
	equal(t, "tasks made", value[int](s, "select count(*) from task"), 0)
	equal(t, "keys taken", value[int](s, "select count(*) from submit_key"), 0)
}

// A submit by the latest template is a retry of itself, also when the latest has changed since, and when it would refuse it.
func TestIdempotentSubmit_IsAnsweredBeforeItIsHeldAgainstANewerTemplate(t *testing.T) {
	s := start(t)
	register := func(schema string) {
		must[*pb.RegisterTemplateResponse](t)(s.templates.RegisterTemplate(s.within(), &pb.RegisterTemplateRequest{
			Template: &pb.Template{Name: "tpl", ContextSchema: schema, Steps: []*pb.StepDefinition{step("s")}},
		}))
	}
	sub := &pb.TaskSubmission{Definition: &pb.TaskSubmission_Template{Template: &pb.TemplateRef{Name: "tpl"}}, IdempotencyKey: proto.String("k")}
	register("")
	first := s.submit(sub)
	register(`{"required":["user_id"]}`)
	again := must[*pb.SubmitTaskResponse](t)(s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Task: sub}))
	if !again.GetAlreadySubmitted() || again.GetTask().GetTaskId() != first.GetTaskId() || again.GetTask().GetTemplate().GetVersion() != "0.1.0" {
		t.Errorf("again: %v", again)
	}
	batch := must[*pb.BatchSubmitTasksResponse](t)(s.tasks.BatchSubmitTasks(s.within(), &pb.BatchSubmitTasksRequest{Tasks: []*pb.TaskSubmission{sub}}))
	equal(t, "in a batch", batch.GetResults()[0].GetTaskId(), first.GetTaskId())
	sub.IdempotencyKey = proto.String("other")
	_, err := s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Task: sub})
	invalid(t, err)
}

func TestIdempotentSubmit_AKeyHeldByManyAtOnceMakesOneTask(t *testing.T) {
	s := start(t)
	ids := make(chan string)
	for range 16 {
		go func() {
			resp, err := s.tasks.SubmitTask(s.t.Context(), &pb.SubmitTaskRequest{Task: keyed("k")})
			if err != nil {
				t.Errorf("submitting: %v", err)
			}
			ids <- resp.GetTask().GetTaskId()
		}()
	}
	seen := map[string]bool{}
	for range 16 {
		seen[<-ids] = true
	}
	equal(t, "tasks", len(seen), 1)
	equal(t, "tasks made", value[int](s, "select count(*) from task"), 1)
}
