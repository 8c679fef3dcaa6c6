package conformance_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/server"
)

// Every limit is tried at its value and one beyond.

func TestLimits_TenThousandStepsATask(t *testing.T) {
	s := start(t)
	many := func(n int) *pb.TaskSubmission {
		defs := make([]*pb.StepDefinition, n)
		for i := range defs {
			defs[i] = &pb.StepDefinition{Name: fmt.Sprint("s", i), Handler: proto.String("h")}
		}
		return inline(defs...)
	}
	invalid(t, s.validate(many(10_001)))
	made := s.submit(many(10_000))
	equal(t, "step_count", made.GetStepCount(), 10_000)
	got := s.task(made.GetTaskId()).GetExecutionContext()
	equal(t, "ready", got.GetReadySteps(), 10_000)
	last := s.worker(1).next()
	equal(t, "the last id", s.step(fmt.Sprint(value[int64](s, "select max(task_id + step_no) from step"))).GetName(), "s9999")
	s.report(success(last, ""))
	must[*pb.CancelTaskResponse](t)(s.cancelTask(made.GetTaskId()))
}

func TestLimits_FiftyThousandDependenciesATask(t *testing.T) {
	s := start(t)
	// 250 parents of 200 children are 50,000 edges.
	graph := func(extra int) *pb.TaskSubmission {
		var defs []*pb.StepDefinition
		var parents []string
		for i := range 250 {
			parents = append(parents, fmt.Sprint("p", i))
			defs = append(defs, &pb.StepDefinition{Name: parents[i]})
		}
		for i := range 200 {
			defs = append(defs, &pb.StepDefinition{Name: fmt.Sprint("c", i), DependsOn: parents})
		}
		for i := range extra {
			defs = append(defs, &pb.StepDefinition{Name: fmt.Sprint("x", i), DependsOn: parents[:1]})
		}
		return inline(defs...)
	}
	invalid(t, s.validate(graph(1)))
	if err := s.validate(graph(0)); err != nil {
		t.Errorf("50,000 edges: %v", err)
	}
	made := s.submit(graph(0))
	levels := value[int](s, "select max(dependency_level) from calculate_dependency_levels($1::text::bigint)", made.GetTaskId())
	equal(t, "levels", levels, 1)
}

// A join of all other steps is the widest there can be.
func TestLimits_FanInOfAllOtherSteps(t *testing.T) {
	s := start(t)
	var defs []*pb.StepDefinition
	var names []string
	for i := range 9_999 {
		names = append(names, fmt.Sprint("s", i))
		defs = append(defs, &pb.StepDefinition{Name: names[i], Handler: proto.String("nobody")})
	}
	defs = append(defs, &pb.StepDefinition{Name: "join", Handler: proto.String("h"), DependsOn: names})
	made := s.submit(inline(defs...))
	join := s.step(fmt.Sprint(value[int64](s, "select max(task_id + step_no) from step")))
	equal(t, "parents", join.GetTotalParents(), 9_999)
	equal(t, "blocked", join.GetDependenciesSatisfied(), false)
	must[*pb.CancelTaskResponse](t)(s.cancelTask(made.GetTaskId()))
	tooMany := append(names, "a", "b")
	defs[9_999] = &pb.StepDefinition{Name: "join", DependsOn: tooMany}
	invalid(t, s.validate(inline(defs...)))
}

func TestLimits_PayloadsOfOneMebibyte(t *testing.T) {
	s := start(t)
	const mebi = 1 << 20
	w := s.worker(1)
	tooLarge := func(what string, err error) {
		t.Helper()
		if status.Code(err) == codes.ResourceExhausted {
			t.Errorf("%s: RESOURCE_EXHAUSTED, which clients retry for ever", what)
		}
		refused(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE")
	}
	sub := func(context, config string) *pb.TaskSubmission {
		x := inline(with(step("s"), func(d *pb.StepDefinition) { d.HandlerConfig = config }))
		x.Context = context
		return x
	}
	tooLarge("context", s.validate(sub(object(mebi+1), "")))
	tooLarge("handler_config", s.validate(sub("", object(mebi+1))))
	tooLarge("both", s.validate(sub(object(mebi/2), object(mebi/2+1))))
	s.submit(sub(object(mebi), ""))
	equal(t, "context", len(w.next().GetContext()), mebi)
	w.cancel()
	w = s.open(request("v", 1))
	s.submit(sub(object(mebi/2), object(mebi/2)))
	x := w.next()
	equal(t, "both", len(x.GetContext())+len(x.GetHandlerConfig()), mebi)

	detailed := func(size int) *pb.ReportStepResultRequest {
		r := retryable(x, after(0))
		r.GetRetryableFailure().Failure.Details = object(size)
		return r
	}
	tooLarge("details", s.reportErr(detailed(mebi+1)))
	s.report(detailed(mebi))
	x = w.next()
	equal(t, "details of the run before", len(x.GetPreviousFailure().GetFailure().GetDetails()), mebi)
	tooLarge("results", s.reportErr(success(x, object(mebi+1))))
	tooLarge("results of 4 MiB", s.reportErr(success(x, object(4*mebi))))
	tooLarge("results just below the transport's limit", s.reportErr(success(x, object(8*mebi-4096))))
	checkpoint := func(size int) *pb.EntryStatus {
		c := object(size)
		resp := must[*pb.HeartbeatStepsResponse](t)(s.workers.HeartbeatSteps(s.within(), &pb.HeartbeatStepsRequest{
			Heartbeats: []*pb.StepHeartbeat{{LeaseToken: x.GetLeaseToken(), Checkpoint: &c}},
		}))
		return resp.GetEntries()[0].GetStatus()
	}
	equal(t, "checkpoint", checkpoint(256<<10+1).GetReason(), pb.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE)
	equal(t, "checkpoint", checkpoint(256<<10).GetReason(), 0)
	s.report(success(x, object(mebi)))
	equal(t, "results", len(s.step(x.GetStepId()).GetResults()), mebi)

	schema := func(size int) *pb.Template {
		const frame = `{"description":""}`
		return &pb.Template{Name: "tpl", ContextSchema: `{"description":"` + strings.Repeat("x", size-len(frame)) + `"}`, Steps: []*pb.StepDefinition{step("s")}}
	}
	_, err := s.register(schema(mebi + 1))
	tooLarge("context_schema", err)
	must[*pb.RegisterTemplateResponse](t)(s.register(schema(mebi)))
}

func TestLimits_NamesOf255BytesAreKeptWhole(t *testing.T) {
	s := start(t)
	name := strings.Repeat("é", 127) + "x" // 255 bytes
	build := func(n string) *pb.TaskSubmission {
		sub := &pb.TaskSubmission{Name: &n, IdempotencyKey: &n, Labels: map[string]string{n: n}}
		sub.Definition = &pb.TaskSubmission_Inline{Inline: &pb.InlineSteps{Steps: []*pb.StepDefinition{{Name: n, Handler: &n, Circuit: &n, NonRetryableCodes: []string{n}}}}}
		return sub
	}
	invalid(t, s.validate(build(name+"x")))
	equal(t, "every field is named", len(fields(s.validate(build(name+"x")))) >= 8, true)
	made := s.submit(build(name))
	if made.GetName() != name || made.GetLabels()[name] != name {
		t.Errorf("the task: %v", made)
	}
	r := request(name, 1, name)
	r.InstanceId, r.BuildId, r.ClientInfo = name, name, name
	x := s.open(r).next()
	if x.GetStepName() != name || x.GetHandler() != name || x.GetTaskName() != name || x.GetLabels()[name] != name {
		t.Errorf("the step: %v", x)
	}
	failed := retryable(x, after(time.Hour))
	failed.GetRetryableFailure().Failure.ErrorCode = name
	equal(t, "a listed code of 255 bytes", s.report(failed).GetStep().GetParkedReason(), pb.ParkedReason_PARKED_REASON_PERMANENT)
	found := must[*pb.ListTasksResponse](t)(s.tasks.ListTasks(s.within(), &pb.ListTasksRequest{Labels: map[string]string{name: name}})).GetTasks()
	equal(t, "found by label", len(found), 1)
}

func TestLimits_SixtyFourLabels(t *testing.T) {
	s := start(t)
	labels := map[string]string{}
	for i := range 65 {
		labels[fmt.Sprint("k", i)] = "v"
	}
	sub := inline(step("s"))
	sub.Labels = labels
	invalid(t, s.validate(sub))
	delete(labels, "k64")
	equal(t, "labels", len(s.submit(sub).GetLabels()), 64)
}

func TestLimits_BatchesOfAThousand(t *testing.T) {
	s := start(t)
	batch := func(n int) error {
		r := &pb.BatchSubmitTasksRequest{}
		for range n {
			r.Tasks = append(r.Tasks, inline(step("s")))
		}
		resp, err := s.tasks.BatchSubmitTasks(s.within(), r)
		if err == nil && len(resp.GetResults()) != n {
			t.Errorf("%d results of %d", len(resp.GetResults()), n)
		}
		return err
	}
	invalid(t, batch(1001))
	invalid(t, batch(0))
	if err := batch(1000); err != nil {
		t.Fatal(err)
	}
	steps := s.poll("w", 1000, waiting(20*time.Second)).GetSteps()
	if len(steps) == 0 {
		t.Fatal("nothing was granted")
	}
	var (
		reports  []*pb.ReportStepResultRequest
		beats    []*pb.StepHeartbeat
		releases []*pb.StepRelease
	)
	for i := range 1001 {
		token := steps[i%len(steps)].GetLeaseToken()
		reports = append(reports, success(steps[i%len(steps)], ""))
		beats, releases = append(beats, &pb.StepHeartbeat{LeaseToken: token}), append(releases, &pb.StepRelease{LeaseToken: fmt.Sprint(i)})
	}
	ctx := s.within()
	_, err := s.workers.HeartbeatSteps(ctx, &pb.HeartbeatStepsRequest{Heartbeats: beats})
	invalid(t, err)
	if resp, err := s.workers.HeartbeatSteps(ctx, &pb.HeartbeatStepsRequest{Heartbeats: beats[:1000]}); err != nil || len(resp.GetEntries()) != 1000 {
		t.Errorf("1000 heartbeats: %v", err)
	}
	_, err = s.workers.ReleaseSteps(ctx, &pb.ReleaseStepsRequest{Releases: releases})
	invalid(t, err)
	if resp, err := s.workers.ReleaseSteps(ctx, &pb.ReleaseStepsRequest{Releases: releases[:1000]}); err != nil || len(resp.GetEntries()) != 1000 {
		t.Errorf("1000 releases: %v", err)
	}
	_, err = s.workers.BatchReportStepResults(ctx, &pb.BatchReportStepResultsRequest{Reports: reports})
	invalid(t, err)
	resp, err := s.workers.BatchReportStepResults(ctx, &pb.BatchReportStepResultsRequest{Reports: reports[:1000]})
	if err != nil || len(resp.GetEntries()) != 1000 {
		t.Fatalf("1000 reports: %v", err)
	}
	for i, e := range resp.GetEntries() {
		if e.GetStatus().GetCode() != 0 {
			t.Fatalf("report %d: %v", i, e.GetStatus())
		}
	}
}

func TestLimits_BatchesOfThreeAndAHalfMebibytes(t *testing.T) {
	s := start(t)
	const limit = 3<<20 + 512<<10
	sized := func(size int) *pb.BatchSubmitTasksRequest {
		r := &pb.BatchSubmitTasksRequest{}
		for range 4 {
			sub := inline(step("s"))
			sub.Context = object(900_000)
			r.Tasks = append(r.Tasks, sub)
		}
		last := r.GetTasks()[3]
		for d := size - proto.Size(r); d != 0; d = size - proto.Size(r) {
			last.Context = object(len(last.GetContext()) + d)
		}
		return r
	}
	_, err := s.tasks.BatchSubmitTasks(s.within(), sized(limit+1))
	refused(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE")
	must[*pb.BatchSubmitTasksResponse](t)(s.tasks.BatchSubmitTasks(s.within(), sized(limit)))
}

func TestLimits_PagesOfAThousandFiftyByDefault(t *testing.T) {
	s := start(t)
	var defs []*pb.StepDefinition
	for i := range 1001 {
		defs = append(defs, step(fmt.Sprint("s", i)))
	}
	id := s.submit(inline(defs...)).GetTaskId()
	for size, want := range map[int32]int{0: 50, 1: 1, 999: 999, 1000: 1000, 1001: 1000, 1 << 30: 1000} {
		page := must[*pb.ListStepsResponse](t)(s.steps.ListSteps(s.within(), &pb.ListStepsRequest{TaskId: id, PageSize: size}))
		if len(page.GetSteps()) != want || page.GetNextPageToken() == "" {
			t.Errorf("page_size %d gives %d steps, token %q", size, len(page.GetSteps()), page.GetNextPageToken())
		}
	}
	_, err := s.steps.ListSteps(s.within(), &pb.ListStepsRequest{TaskId: id, PageSize: -1})
	invalid(t, err)
}

func TestLimits_HeldTokensOfAReconnect(t *testing.T) {
	s := start(t)
	r := request("w", 1)
	for i := range 10_001 {
		r.HeldLeaseTokens = append(r.HeldLeaseTokens, fmt.Sprint("token", i))
	}
	invalid(t, s.refusedStream(r))
	r.HeldLeaseTokens = r.GetHeldLeaseTokens()[:10_000]
	equal(t, "lost", len(s.open(r).opened.GetLostLeaseTokens()), 10_000)
}

func TestLimits_TransportTakesEightMebibytesAndHeadersOf32(t *testing.T) {
	s := start(t)
	large := &pb.SubmitTaskRequest{Task: inline(step("s"))}
	large.Task.Context = object(8<<20 - 1000)
	_, err := s.tasks.SubmitTask(s.within(), large)
	refused(t, err, codes.InvalidArgument, "PAYLOAD_TOO_LARGE")
	large.Task.Context = object(8<<20 + 1000)
	_, err = s.tasks.SubmitTask(s.within(), large)
	equal(t, "beyond the transport's limit", status.Code(err), codes.ResourceExhausted)
	for size, ok := range map[int]bool{30 << 10: true, 33 << 10: false} {
		ctx := metadata.AppendToOutgoingContext(s.within(), "x-large", strings.Repeat("h", size))
		_, err := s.tasks.ListTasks(ctx, &pb.ListTasksRequest{})
		if ok != (err == nil) {
			t.Errorf("headers of %d bytes: %v", size, err)
		}
	}
}

// While the database does not answer, a bounded number of calls wait; what comes beyond is told to come again.
func TestLimits_CallsThatWaitAreBounded(t *testing.T) {
	const most = 3
	s := start(t, func(c *server.Config) { c.MaxWaiting = most })
	s.submit(inline(step("warm"))) // the lane and the namespace exist
	tx, err := s.db.Pool.Begin(s.within())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(s.within(), "lock table task in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.within())
	defer cancel()
	answers := make(chan error)
	for range most + 1 {
		go func() {
			_, err := s.tasks.SubmitTask(ctx, &pb.SubmitTaskRequest{Task: inline(step("s"))})
			answers <- err
		}()
	}
	// Exactly one is too many.
	err = <-answers
	refused(t, err, codes.ResourceExhausted, "RATE_LIMITED")
	if retryIn(err) <= 0 {
		t.Errorf("no RetryInfo: %v", err)
	}
	if err := tx.Commit(s.within()); err != nil {
		t.Fatal(err)
	}
	for range most {
		if err := <-answers; err != nil {
			t.Errorf("a call within the bound: %v", err)
		}
	}
}
