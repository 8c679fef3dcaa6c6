package conformance_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// What the hot path pays for is decided here: an index or a trigger that slips in is paid for with every step.
func TestSchema_HasNoForeignKeysNoTriggersAndNoIndexBeyondTheNamed(t *testing.T) {
	s := start(t)
	equal(t, "foreign keys", value[int](s, "select count(*) from pg_constraint where contype = 'f'"), 0)
	equal(t, "triggers", value[int](s, "select count(*) from pg_trigger where not tgisinternal"), 0)
	rows, err := s.db.Pool.Query(s.within(), `
		select t.relname || ' (' || array_to_string(array(
		    select a.attname from unnest(i.indkey::int[]) with ordinality as k (attnum, place)
		    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum order by k.place), ', ') || ')'
		from pg_index i join pg_class t on t.oid = i.indrelid
		where t.relnamespace = 'public'::regnamespace and not t.relispartition
		  and t.relname = any (array['task', 'step', 'ready', 'backoff', 'lease', 'parked', 'step_end', 'step_failure', 'task_end',
		    'join_wait', 'checkpoint', 'submit_key', 'history'])
		order by 1`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"backoff (lane_id, due_at)", "backoff (task_id, step_no)", "checkpoint (task_id, step_no)", "join_wait (task_id, step_no, stripe)",
		"lease (circuit_id)",                                                                                    // only leases of steps behind a shared circuit stand in it
		"lease (task_id, step_no)", "parked (task_id, step_no)", "ready (lane_id, seq)", "ready (lane_id, seq)", // and those that came back from a dispatch
		"ready (task_id, step_no)", "step (task_id, step_no)",
		"step_end (task_id, step_no)", "step_failure (task_id, step_no, dispatch)", "submit_key (namespace_id, key)",
		"submit_key (task_id)", // only submits with a key pay for it; a purge finds the key by it
		"task (task_id)",
		"task_end (task_id)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("indexes:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestIds_AreDecimalAndAStepsIsItsTasksPlusItsNumber(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("a"), step("b")))
	id, err := strconv.ParseInt(made.GetTaskId(), 10, 64)
	if err != nil || id <= 0 || id%(1<<14) != 0 {
		t.Fatalf("task_id %q", made.GetTaskId())
	}
	for n, x := range s.all(made.GetTaskId()) {
		equal(t, "step_id", x.GetStepId(), fmt.Sprint(id+int64(n)+1))
	}
	for _, bad := range []string{"", "0", "-1", "01", "1e5", "9223372036854775808", "0x10", " 1"} {
		_, err := s.tasks.GetTask(s.within(), &pb.GetTaskRequest{TaskId: bad})
		if c := status.Code(err); c != codes.InvalidArgument && c != codes.NotFound {
			t.Errorf("task_id %q: %v", bad, err)
		}
	}
}

// A server that dies between a failure and the record of its task's end leaves it to whoever looks next.
func TestTask_AnEndThatACrashKeptFromTheRecordIsRecordedSoon(t *testing.T) {
	s := start(t)
	x := s.one(s.worker(1))
	s.report(permanent(x))
	ended := func() bool { return s.task(x.GetTaskId()).GetTask().GetEndedAt() != nil }
	s.eventually("the end is recorded", ended)
	s.exec("delete from task_end")
	begun := time.Now()
	s.eventually("the end is recorded again", ended)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("recorded after %v", took)
	}
}

// A value that the database refuses fails its own report or submit, and shows nothing of the database.
func TestBatch_NobodyGetsAnotherCallersError(t *testing.T) {
	s := start(t)
	s.exec("alter table step_failure add constraint poisoned check (error_code <> 'POISON')")
	s.exec("alter table task add constraint poisoned check (name <> 'POISON')")
	const many = 16
	var wait sync.WaitGroup
	refusals := make([]error, many)
	for i := range many {
		wait.Go(func() {
			sub := inline(step("s"))
			if i == 5 {
				sub.Name = new(string)
				*sub.Name = "POISON"
			}
			_, refusals[i] = s.tasks.SubmitTask(t.Context(), &pb.SubmitTaskRequest{Task: sub})
		})
	}
	wait.Wait()
	onlyFifth := func(what string, i int, code codes.Code) {
		t.Helper()
		if (code != codes.OK) != (i == 5) {
			t.Errorf("%s %d: %v", what, i, code)
		}
	}
	for i, err := range refusals {
		onlyFifth("submit", i, status.Code(err))
	}
	refused(t, refusals[5], codes.Internal, "INTERNAL")
	for _, secret := range []string{"poisoned", "check", "POISON", "task_", "23514", "SQLSTATE"} {
		if strings.Contains(refusals[5].Error(), secret) {
			t.Errorf("the refusal tells of the database: %v", refusals[5])
		}
	}
	s.submit(inline(step("s")))
	w := s.worker(many)
	batch := &pb.BatchReportStepResultsRequest{}
	for i := range many {
		r := permanent(w.next())
		if i == 5 {
			r.GetPermanentFailure().Failure.ErrorCode = "POISON"
		}
		batch.Reports = append(batch.Reports, r)
	}
	resp := must[*pb.BatchReportStepResultsResponse](t)(s.workers.BatchReportStepResults(s.within(), batch))
	for i, e := range resp.GetEntries() {
		onlyFifth("report", i, codes.Code(e.GetStatus().GetCode()))
	}
	poisoned := batch.GetReports()[5]
	poisoned.GetPermanentFailure().Failure.ErrorCode = "FINE"
	s.report(poisoned) // the lease still stands
}

func TestDelivery_MayTakeFiveSecondsUnlessTheWorkerSaysOtherwise(t *testing.T) {
	s := start(t)
	s.submit(inline(step("a"), step("b")))
	r := request("w", 1)
	r.DeliveryTimeout = nil
	by := map[string]*pb.ReadyStep{
		"stream": s.open(r).next(),
		"poll":   s.poll("p", 1, waiting(20*time.Second), func(r *pb.PollReadyStepsRequest) { r.DeliveryTimeout = nil }).GetSteps()[0],
	}
	for name, x := range by {
		lease := s.step(x.GetStepId()).GetLease()
		equal(t, name, lease.GetExpiresAt().AsTime().Sub(lease.GetGrantedAt().AsTime()), 5*time.Second)
		if lease.GetConfirmedAt() != nil {
			t.Errorf("%s: confirmed before its worker said so", name)
		}
	}
}

// Without shared circuits, a failure that reaches one acts on its step alone, and the answer says so.
func TestReach_OfAStepAloneIsSaid(t *testing.T) {
	s := start(t)
	reach := func(f *pb.StepRetryableFailure) { f.Reach = pb.Reach_REACH_CIRCUIT }
	answer := s.report(retryable(s.one(s.worker(1)), after(time.Hour), reach))
	if answer.GetAppliedReach() != pb.Reach_REACH_STEP || len(answer.GetChangedCircuits()) != 0 {
		t.Errorf("answered: %v", answer)
	}
}
