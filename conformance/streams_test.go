package conformance_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/server"
)

func TestStream_BeginsWithWhatHoldsForTheSession(t *testing.T) {
	s := start(t)
	r := request("w", 2)
	r.HeartbeatInterval, r.DeliveryTimeout = durationpb.New(7*time.Second), nil
	r.HeldLeaseTokens = []string{"nonsense"}
	w := s.open(r)
	o := w.opened
	if o.GetHeartbeatInterval().AsDuration() != 7*time.Second || o.GetDeliveryTimeout().AsDuration() != 5*time.Second ||
		!slices.Equal(o.GetLostLeaseTokens(), []string{"nonsense"}) || o.GetInFlight() != 0 {
		t.Errorf("opened: %v", o)
	}
	if off := value[time.Time](s, "select clock_timestamp()").Sub(o.GetServerTime().AsTime()).Abs(); off > 5*time.Second {
		t.Errorf("server_time is %v off the database's clock", off)
	}
	equal(t, "the default interval", s.open(request("d", 1)).opened.GetHeartbeatInterval().AsDuration(), 15*time.Second)
}

func TestStream_TellsAReconnectingWorkerWhichLeasesItLost(t *testing.T) {
	s := start(t)
	s.submit(inline(step("kept"), step("lost"), step("unsaid")))
	w := s.worker(3)
	steps := w.several(3)
	s.report(success(steps["lost"], ""))
	s.beat(steps["kept"])
	w.cancel()
	r := request("w", 3)
	r.HeldLeaseTokens = []string{steps["kept"].GetLeaseToken(), steps["lost"].GetLeaseToken()}
	again := s.open(r)
	if lost := again.opened.GetLostLeaseTokens(); !slices.Equal(lost, []string{steps["lost"].GetLeaseToken()}) {
		t.Errorf("lost: %v", lost)
	}
	// Never confirmed and not held: it goes back at once.
	x := again.next()
	equal(t, "sent again", x.GetStepName(), "unsaid")
	equal(t, "at no cost", x.GetAttempt(), 1)
	s.report(success(steps["kept"], ""))
}

func TestStream_OlderOneOfASessionEndsAsTakenOverAndItsLeasesStayValid(t *testing.T) {
	s := start(t)
	s.submit(inline(step("a")))
	older := s.worker(2)
	a := older.next()
	r := request("w", 2)
	r.HeldLeaseTokens = []string{a.GetLeaseToken()}
	newer := s.open(r)
	equal(t, "counted in the new stream", newer.opened.GetInFlight(), 1)
	refused(t, older.end(), codes.FailedPrecondition, "SESSION_TAKEN_OVER")
	s.submit(inline(step("b")))
	equal(t, "the newer one gets", newer.next().GetStepName(), "b")
	s.report(success(a, ""))
	refused(t, s.refusedStream(func() *pb.ReadyStepsRequest {
		other := request("w", 1)
		other.InstanceId = "another"
		return other
	}()), codes.FailedPrecondition, "WORKER_ID_IN_USE")
}

func TestStream_OlderOneEndsAsTakenOverOnAnotherServerToo(t *testing.T) {
	s := start(t)
	other := startOn(t, s.db)
	older := s.worker(1)
	newer := other.worker(1)
	refused(t, older.end(), codes.FailedPrecondition, "SESSION_TAKEN_OVER")
	s.submit(inline(step("a")))
	x := newer.next()
	// Capacity freed by a report that landed on the other server is seen.
	s.submit(inline(step("b")))
	s.report(success(x, ""))
	equal(t, "the next", newer.next().GetStepName(), "b")
}

func TestStream_ANamespaceThatNobodyUsedYetIsServedOnceSomebodyDoes(t *testing.T) {
	s := start(t)
	r := request("w", 1)
	r.Namespace = "later"
	w := s.open(r)
	must[*pb.SubmitTaskResponse](t)(s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Namespace: "later", Task: inline(step("s"))}))
	equal(t, "served", w.next().GetNamespace(), "later")
}

func TestNamespace_UnknownOnesAreEmptyInReadsAndMadeByNoRead(t *testing.T) {
	s := start(t)
	for name, count := range map[string]func() (int, error){
		"tasks": func() (int, error) {
			r, err := s.tasks.ListTasks(s.within(), &pb.ListTasksRequest{Namespace: "nowhere"})
			return len(r.GetTasks()), err
		},
		"workers": func() (int, error) {
			r, err := s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{Namespace: "nowhere"})
			return len(r.GetWorkers()), err
		},
		"templates": func() (int, error) {
			r, err := s.templates.ListTemplates(s.within(), &pb.ListTemplatesRequest{Namespace: "nowhere"})
			return len(r.GetTemplates()), err
		},
		"retried": func() (int, error) {
			r, err := s.steps.BulkRetrySteps(s.within(), &pb.BulkRetryStepsRequest{Namespace: "nowhere", Filter: &pb.BulkRetryFilter{Handlers: []string{"h"}}})
			return int(r.GetRetriedSteps()), err
		},
		"drained": func() (int, error) {
			r, err := s.workers.DrainWorker(s.within(), &pb.DrainWorkerRequest{Namespace: "nowhere", WorkerId: "w", InstanceId: "1"})
			return len(r.GetRemaining()), err
		},
		"validated": func() (int, error) {
			_, err := s.tasks.ValidateTask(s.within(), &pb.ValidateTaskRequest{Namespace: "nowhere", Task: inline(step("s"))})
			return 0, err
		},
	} {
		n, err := count()
		if err != nil || n != 0 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	equal(t, "namespaces", value[int](s, "select count(*) from namespace where name = 'nowhere'"), 0)
	must[*pb.SubmitTaskResponse](t)(s.tasks.SubmitTask(s.within(), &pb.SubmitTaskRequest{Namespace: "nowhere", Task: inline(step("s"))}))
	equal(t, "after a submit", value[int](s, "select count(*) from namespace where name = 'nowhere'"), 1)
	must[*pb.RegisterTemplateResponse](t)(s.templates.RegisterTemplate(s.within(), &pb.RegisterTemplateRequest{
		Template: &pb.Template{Namespace: "elsewhere", Name: "t", Steps: []*pb.StepDefinition{step("s")}},
	}))
	equal(t, "after a registration", value[int](s, "select count(*) from namespace where name = 'elsewhere'"), 1)
	for name, ok := range map[string]bool{"a": true, strings.Repeat("n", 63): true, strings.Repeat("n", 64): false, "A": false, "a b": false, "a/b": false, "0._-": true} {
		_, err := s.tasks.ListTasks(s.within(), &pb.ListTasksRequest{Namespace: name})
		if ok != (err == nil) {
			t.Errorf("namespace %q: %v", name, err)
		}
	}
	// Nothing of one is seen in another.
	got := must[*pb.ListTasksResponse](t)(s.tasks.ListTasks(s.within(), &pb.ListTasksRequest{}))
	equal(t, "tasks of the default one", len(got.GetTasks()), 0)
}

func TestStream_IdleFramesComeFromTheDispatcherAndSayWhyNothingIsSent(t *testing.T) {
	s := start(t)
	deferred := inline(with(step("s"), handlerOf("deferred")))
	deferred.NotBefore = timestamppb.New(time.Now().Add(time.Hour))
	s.submit(deferred)
	s.submit(inline(with(step("a"), handlerOf("limited")), with(step("b"), handlerOf("limited"))))
	r := request("w", 10, "empty", "deferred", "limited")
	r.Handlers[2].MaxInFlight = proto.Int32(1)
	r.HeartbeatInterval = durationpb.New(5 * time.Second)
	w := s.open(r)
	begun := time.Now()
	w.next()
	var idle *pb.StreamHeartbeat
	var notice *pb.DispatchNotice
	for idle == nil || notice == nil {
		f := w.frame()
		if f.GetStep() != nil {
			t.Fatalf("a second step of a handler that takes one: %v", f)
		}
		if f.GetHeartbeat() != nil {
			idle = f.GetHeartbeat()
		}
		if f.GetNotice() != nil {
			notice = f.GetNotice()
		}
	}
	if waited := time.Since(begun); waited < 4*time.Second || waited > 12*time.Second {
		t.Errorf("the idle frame came after %v", waited)
	}
	equal(t, "leases counted in the idle frame", idle.GetInFlight(), 1)
	if off := value[time.Time](s, "select clock_timestamp()").Sub(idle.GetServerTime().AsTime()).Abs(); off > 5*time.Second {
		t.Errorf("server_time is %v off the database's clock", off)
	}
	reasons := map[string]pb.BlockerReason{}
	for _, b := range notice.GetBlockers() {
		reasons[b.GetHandler()] = b.GetReason()
		if b.GetReason() == pb.BlockerReason_BLOCKER_REASON_NOT_DUE && b.GetUntil().AsTime().Sub(deferred.GetNotBefore().AsTime()).Abs() > 5*time.Second {
			t.Errorf("due at %v, not %v", b.GetUntil().AsTime(), deferred.GetNotBefore().AsTime())
		}
	}
	for handler, want := range map[string]pb.BlockerReason{
		"empty": pb.BlockerReason_BLOCKER_REASON_NOTHING_READY, "deferred": pb.BlockerReason_BLOCKER_REASON_NOT_DUE,
		"limited": pb.BlockerReason_BLOCKER_REASON_HANDLER_LIMIT,
	} {
		equal(t, handler, reasons[handler], want)
	}
}

func TestStream_AHandlersOwnLimitHoldsWithinTheSessions(t *testing.T) {
	s := start(t)
	var defs []*pb.StepDefinition
	for i := range 4 {
		defs = append(defs, with(step(fmt.Sprint("l", i)), handlerOf("limited")))
	}
	for i := range 3 {
		defs = append(defs, with(step(fmt.Sprint("f", i)), handlerOf("free")))
	}
	s.submit(inline(defs...))
	r := request("w", 4, "limited", "free")
	r.Handlers[0].MaxInFlight = proto.Int32(1)
	w := s.open(r)
	var limited *pb.ReadyStep
	for range 4 {
		if x := w.next(); x.GetHandler() == "limited" {
			if limited != nil {
				t.Fatalf("two steps of a handler that takes one: %v and %v", limited, x)
			}
			limited = x
		}
	}
	for range 3 {
		s.report(success(limited, ""))
		limited = w.next()
		equal(t, "the next", limited.GetHandler(), "limited")
	}
}

func TestQueue_FourPrioritiesAreServedEightToFourToTwoToOne(t *testing.T) {
	s := start(t)
	var defs []*pb.StepDefinition
	for i := range 40 {
		for p := range int32(4) {
			defs = append(defs, with(step(fmt.Sprintf("p%d-%d", p, i)), func(d *pb.StepDefinition) { d.Priority = proto.Int32(p) }))
		}
	}
	s.submit(inline(defs...))
	w := s.worker(1)
	got := map[string]int{}
	for range 45 {
		x := w.next()
		got[x.GetStepName()[:2]]++
		s.report(success(x, ""))
	}
	for name, want := range map[string]int{"p0": 24, "p1": 12, "p2": 6, "p3": 3} {
		if n := got[name]; n < want-2 || n > want+2 {
			t.Errorf("of 45 steps %v, want 24 : 12 : 6 : 3", got)
		}
	}
}

func TestQueue_HandlersTakeTurns(t *testing.T) {
	s := start(t)
	var defs []*pb.StepDefinition
	for i := range 30 {
		defs = append(defs, with(step(fmt.Sprint("many", i)), handlerOf("many")))
	}
	for i := range 3 {
		defs = append(defs, with(step(fmt.Sprint("few", i)), handlerOf("few")))
	}
	s.submit(inline(defs...))
	w := s.worker(1, "many", "few")
	few := 0
	for range 8 {
		x := w.next()
		if x.GetHandler() == "few" {
			few++
		}
		s.report(success(x, ""))
	}
	equal(t, "of the small handler among the first eight", few, 3)
}

func TestQueue_GoesByTheTimeStepsBecameRunnableAndAReturnedOneKeepsItsPlace(t *testing.T) {
	s := start(t)
	var ids []string
	for range 6 {
		ids = append(ids, s.submit(inline(step("s"))).GetTaskId())
	}
	w := s.worker(1)
	first := w.next()
	equal(t, "the first", first.GetTaskId(), ids[0])
	s.release(first, 0)
	for _, want := range ids {
		x := w.next()
		equal(t, "the next", x.GetTaskId(), want)
		s.report(success(x, ""))
	}
	// Poll and stream share the queue, and a due retry goes before what came after it.
	w.cancel()
	s.submit(inline(step("old")))
	x := s.poll("p", 1, waiting(20*time.Second)).GetSteps()[0]
	s.report(retryable(x, after(0)))
	s.submit(inline(step("young")))
	equal(t, "the retry first", s.poll("p", 1, waiting(20*time.Second)).GetSteps()[0].GetStepName(), "old")
}

// A row that becomes visible behind a lane's cursor is found, though nobody announces it.
func TestQueue_ARowThatAppearsBehindTheCursorIsFound(t *testing.T) {
	s := start(t)
	hidden := s.submit(inline(step("hidden")))
	tx, err := s.db.Pool.Begin(s.within())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(s.within(), "select from ready for update"); err != nil {
		t.Fatal(err)
	}
	w := s.worker(5)
	s.submit(inline(step("seen")))
	equal(t, "passes the locked one", w.next().GetStepName(), "seen")
	if err := tx.Commit(s.within()); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	equal(t, "found", w.next().GetTaskId(), hidden.GetTaskId())
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("found after %v", took)
	}
}

func TestPoll_ObeysItsOwnBoundsAndTellsWhatAStreamTells(t *testing.T) {
	s := start(t)
	var defs []*pb.StepDefinition
	for i := range 6 {
		defs = append(defs, step(fmt.Sprint("s", i)))
	}
	s.submit(inline(defs...))
	first := s.poll("p", 5, waiting(10*time.Second), func(r *pb.PollReadyStepsRequest) { r.MaxSteps = proto.Int32(2) })
	equal(t, "max_steps", len(first.GetSteps()), 2)
	equal(t, "in_flight", first.GetInFlight(), 2)
	lost := first.GetSteps()[0]
	s.report(success(lost, ""))
	second := s.poll("p", 5, waiting(10*time.Second), func(r *pb.PollReadyStepsRequest) {
		r.HeldLeaseTokens = []string{lost.GetLeaseToken(), first.GetSteps()[1].GetLeaseToken(), "nonsense"}
	})
	equal(t, "max_in_flight", len(second.GetSteps()), 4)
	equal(t, "in_flight, the steps included", second.GetInFlight(), 5)
	told := second.GetLostLeaseTokens()
	slices.Sort(told)
	want := []string{lost.GetLeaseToken(), "nonsense"}
	slices.Sort(want)
	if !slices.Equal(told, want) {
		t.Errorf("lost: %v, want %v", told, want)
	}
	third := s.poll("p", 5)
	equal(t, "when it is full", len(third.GetSteps()), 0)
	equal(t, "in_flight when it is full", third.GetInFlight(), 5)
	empty := s.poll("q", 5, waiting(time.Second))
	if len(empty.GetSteps()) != 0 || len(empty.GetBlockers()) != 1 || empty.GetBlockers()[0].GetReason() != pb.BlockerReason_BLOCKER_REASON_NOTHING_READY {
		t.Errorf("with nothing to do: %v", empty)
	}
	_, err := s.workers.PollReadySteps(s.within(), &pb.PollReadyStepsRequest{
		WorkerId: "p", InstanceId: "another", MaxInFlight: 1, Handlers: []*pb.HandlerSubscription{{Name: "h"}},
	})
	refused(t, err, codes.FailedPrecondition, "WORKER_ID_IN_USE")
}

func TestDrain_NothingIsGrantedAfterItAndWhatIsLeftIsNamed(t *testing.T) {
	s := start(t)
	s.submit(inline(with(step("a"), leaseOf(time.Hour))))
	w := s.worker(2)
	a := w.next()
	s.beat(a)
	drain := func(wait time.Duration) *pb.DrainWorkerResponse {
		return must[*pb.DrainWorkerResponse](t)(s.workers.DrainWorker(s.within(), &pb.DrainWorkerRequest{
			WorkerId: "w", InstanceId: "w-1", Deadline: timestamppb.New(time.Now().Add(wait)),
		}))
	}
	left := drain(200 * time.Millisecond).GetRemaining()
	if len(left) != 1 || left[0].GetStepId() != a.GetStepId() || left[0].GetHandler() != "h" ||
		!left[0].GetExpiresAt().AsTime().Equal(s.step(a.GetStepId()).GetLease().GetExpiresAt().AsTime()) {
		t.Errorf("left: %v", left)
	}
	s.submit(inline(step("b")))
	s.report(success(a, ""))
	equal(t, "left at the end", len(drain(20*time.Second).GetRemaining()), 0)
	if listed := must[*pb.ListWorkersResponse](t)(s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{})).GetWorkers(); len(listed) != 1 || listed[0].GetDrainedAt() == nil {
		t.Errorf("listed: %v", listed)
	}
	// It cannot be undone for this instance; a new one works.
	w.cancel()
	s.eventually("its session has ended", func() bool {
		return must[*pb.ListWorkersResponse](t)(s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{})).GetWorkers()[0].GetClosedAt() != nil
	})
	same := s.open(request("w", 2))
	same.cancel()
	s.eventually("its session has ended again", func() bool {
		return must[*pb.ListWorkersResponse](t)(s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{})).GetWorkers()[0].GetClosedAt() != nil
	})
	equal(t, "granted to the drained instance", value[int](s, "select count(*) from lease"), 0)
	r := request("w", 2)
	r.InstanceId = "w-2"
	equal(t, "a new instance gets", s.open(r).next().GetStepName(), "b")
	equal(t, "a session that never was", len(must[*pb.DrainWorkerResponse](t)(s.workers.DrainWorker(s.within(), &pb.DrainWorkerRequest{WorkerId: "x", InstanceId: "y"})).GetRemaining()), 0)
}

func TestWorkers_ListShowsWhatTheySaidAndHold(t *testing.T) {
	s := start(t)
	s.submit(inline(step("a")))
	r := request("w", 7, "h", "x")
	r.Labels, r.BuildId, r.ClientInfo = map[string]string{"zone": "b"}, "v1", "test/1"
	s.open(r).next()
	all := must[*pb.ListWorkersResponse](t)(s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{Handler: proto.String("x")})).GetWorkers()
	if len(all) != 1 {
		t.Fatalf("workers: %v", all)
	}
	x := all[0]
	if x.GetWorkerId() != "w" || x.GetInstanceId() != "w-1" || x.GetMaxInFlight() != 7 || x.GetInFlight() != 1 || x.GetLabels()["zone"] != "b" ||
		x.GetBuildId() != "v1" || x.GetClientInfo() != "test/1" || x.GetOpenedAt() == nil || x.GetSeenAt() == nil || x.GetClosedAt() != nil || len(x.GetHandlers()) != 2 {
		t.Errorf("worker: %v", x)
	}
	// By worker_id, whoever came first; and one that ended a day ago is shown no more, unless it holds something.
	s.open(request("b", 1))
	s.open(request("a", 1))
	listed := func() (ids []string) {
		for _, x := range must[*pb.ListWorkersResponse](t)(s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{})).GetWorkers() {
			ids = append(ids, x.GetWorkerId())
		}
		return ids
	}
	equal(t, "all", fmt.Sprint(listed()), "[a b w]")
	s.exec("update worker_session set closed_at = now() - interval '1 day' where worker_id in ('b', 'w')")
	equal(t, "a day later", fmt.Sprint(listed()), "[a w]")
	none := must[*pb.ListWorkersResponse](t)(s.workers.ListWorkers(s.within(), &pb.ListWorkersRequest{Handler: proto.String("y")})).GetWorkers()
	equal(t, "of another handler", len(none), 0)
}

func TestStream_NumberOfThemIsBounded(t *testing.T) {
	s := start(t, func(c *server.Config) { c.MaxStreams = 2 })
	a := s.open(request("a", 1))
	s.open(request("b", 1))
	err := s.refusedStream(request("c", 1))
	refused(t, err, codes.ResourceExhausted, "TOO_MANY_STREAMS")
	if retryIn(err) <= 0 {
		t.Errorf("no RetryInfo: %v", err)
	}
	a.cancel()
	s.eventually("a place is free", func() bool { return s.refusedStream(request("c", 1)) == nil })
}

func TestStream_StepsCarryTheTraceOfTheirSubmit(t *testing.T) {
	s := start(t)
	w := s.worker(3)
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	traced := func(given *pb.TraceContext, headers ...string) *pb.TraceContext {
		sub := inline(step("s"))
		sub.TraceContext = given
		ctx := metadata.AppendToOutgoingContext(s.within(), headers...)
		must[*pb.SubmitTaskResponse](t)(s.tasks.SubmitTask(ctx, &pb.SubmitTaskRequest{Task: sub}))
		x := w.next()
		s.report(success(x, ""))
		return x.GetTraceContext()
	}
	given := &pb.TraceContext{Traceparent: parent, Tracestate: "a=1,b=2"}
	if got := traced(given, "traceparent", "other"); !proto.Equal(got, given) {
		t.Errorf("the given one came as %v", got)
	}
	if got := traced(nil, "traceparent", parent, "tracestate", "a=1"); got.GetTraceparent() != parent || got.GetTracestate() != "a=1" {
		t.Errorf("the call's came as %v", got)
	}
	if got := traced(nil); got != nil {
		t.Errorf("none came as %v", got)
	}
}
