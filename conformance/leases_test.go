package conformance_test

import (
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func delivery(d time.Duration) func(*pb.PollReadyStepsRequest) {
	return func(r *pb.PollReadyStepsRequest) { r.DeliveryTimeout = durationpb.New(d) }
}

func waiting(d time.Duration) func(*pb.PollReadyStepsRequest) {
	return func(r *pb.PollReadyStepsRequest) { r.WaitDuration = durationpb.New(d) }
}

// A worker that vanishes in the middle of a run: its step runs elsewhere within the lease and a second.
func TestLease_OfAKilledWorkerEndsWithinItsLengthAndASecond(t *testing.T) {
	s := start(t)
	made := s.submit(inline(with(step("s"), leaseOf(5*time.Second))))
	first := s.worker(1)
	x := first.next()
	ends := s.beat(x).GetLeaseExpiresAt().AsTime()
	first.cancel()
	again := s.open(request("other", 1)).next()
	granted := s.step(again.GetStepId()).GetLease().GetGrantedAt().AsTime()
	if late := granted.Sub(ends); late < 0 || late > time.Second {
		t.Errorf("granted again %v after the lease's end", late)
	}
	equal(t, "the attempt", again.GetAttempt(), 1)
	step := s.named(made.GetTaskId(), "s")
	if step.GetLostLeases() != 1 || step.GetAttempts() != 0 || step.GetDispatches() != 2 || step.GetLastFailure() != nil {
		t.Errorf("after a lost lease: %v", step)
	}
	if lost := s.dispatch(x.GetStepId(), 1); lost.GetOutcome() != pb.DispatchOutcome_DISPATCH_OUTCOME_LOST_LEASE || lost.GetAttempt() != 0 {
		t.Errorf("the lost one: %v", lost)
	}
	// It was granted to somebody else: the first worker's report is evidence only.
	refused(t, s.reportErr(success(x, `{"n":1}`)), codes.FailedPrecondition, "LEASE_LOST")
	equal(t, "evidence", s.dispatch(x.GetStepId(), 1).GetLateReport().GetResults(), `{"n":1}`)
	s.report(success(again, `{"n":2}`))
	equal(t, "what counts", s.step(x.GetStepId()).GetResults(), `{"n":2}`)
}

func TestLease_LostTooOftenPoisonsTheStepAndALateReportStillCounts(t *testing.T) {
	s := start(t)
	made := s.submit(inline(with(step("s"), leaseOf(5*time.Second), lostLeases(1)), step("t", "s")))
	w := s.worker(1)
	x := w.next()
	s.beat(x)
	equal(t, "revoked", w.awaitRevoked(x.GetLeaseToken()), pb.RevokeReason_REVOKE_REASON_LEASE_LOST)
	step := s.named(made.GetTaskId(), "s")
	if stateOf(step) != "ERROR" || step.GetParkedReason() != pb.ParkedReason_PARKED_REASON_LEASE_EXPIRED || step.GetRetryEligible() ||
		step.GetReadyForExecution() || step.GetAttempts() != 0 || step.GetLostLeases() != 1 || step.GetNextRetryAt() != nil {
		t.Errorf("poisoned: %v", step)
	}
	code := value[string](s, "select error_code from get_step_readiness_status($1::text::bigint) where name = 's'", made.GetTaskId())
	equal(t, "error_code", code, "LEASE_EXPIRED")
	s.eventually("the task is in error", func() bool { return s.taskState(made.GetTaskId()) == "ERROR" })
	// Nobody else was granted it, so the token decides, not the clock.
	answer := s.report(success(x, `{"late":true}`))
	equal(t, "accepted", answer.GetStep().GetState(), pb.StepState_STEP_STATE_COMPLETE)
	equal(t, "re-opened", s.taskState(made.GetTaskId()), "IN_PROGRESS")
	equal(t, "the dependant gets it", w.next().GetDependencyResults()["s"], `{"late":true}`)
}

func TestLease_UnconfirmedDispatchesAreFreeFiveTimesInARowThenLost(t *testing.T) {
	s := start(t)
	made := s.submit(inline(with(step("s"), lostLeases(1))))
	id := s.named(made.GetTaskId(), "s").GetStepId()
	for n := range int32(6) {
		resp := s.poll("w", 1, delivery(time.Second), waiting(20*time.Second))
		if len(resp.GetSteps()) != 1 {
			t.Fatalf("dispatch %d: %v", n+1, resp)
		}
		x := resp.GetSteps()[0]
		equal(t, "dispatch", x.GetDispatch(), n+1)
		equal(t, "the attempt", x.GetAttempt(), 1)
		if s.taskState(made.GetTaskId()) != "PENDING" || s.step(id).GetLostLeases() != 0 {
			t.Errorf("before the end of dispatch %d: %v", n+1, s.step(id))
		}
	}
	s.eventually("the sixth counts as lost", func() bool {
		return s.step(id).GetParkedReason() == pb.ParkedReason_PARKED_REASON_LEASE_EXPIRED
	})
	equal(t, "lost leases", s.step(id).GetLostLeases(), 1)
	equal(t, "attempts", s.step(id).GetAttempts(), 0)
}

func TestLease_ReleaseIsFreeAHundredTimesInARow(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("s")))
	w := s.worker(1)
	for n := range 100 {
		x := w.next()
		equal(t, fmt.Sprint("release ", n+1), s.release(x, 0).GetCode(), 0)
	}
	x := w.next()
	equal(t, "lost leases", s.step(x.GetStepId()).GetLostLeases(), 0)
	s.release(x, 0)
	x = w.next()
	step := s.named(made.GetTaskId(), "s")
	equal(t, "lost leases after the 101st", step.GetLostLeases(), 1)
	equal(t, "attempts", step.GetAttempts(), 0)
	equal(t, "again", s.release(&pb.ReadyStep{LeaseToken: "nonsense"}, 0).GetReason(), pb.ErrorReason_ERROR_REASON_LEASE_LOST)
	s.report(success(x, ""))
}

func TestLease_ReleasedWithADelayComesBackNotBeforeIt(t *testing.T) {
	s := start(t)
	s.submit(inline(step("s")))
	w := s.worker(1)
	x := w.next()
	before := value[time.Time](s, "select clock_timestamp()")
	s.release(x, 1500*time.Millisecond)
	step := s.step(x.GetStepId())
	if step.GetReadyForExecution() || stateOf(step) != "PENDING" || step.GetNextRetryAt() != nil {
		t.Errorf("while it waits: %v", step)
	}
	again := w.next()
	if waited := s.step(again.GetStepId()).GetLease().GetGrantedAt().AsTime().Sub(before); waited < 1500*time.Millisecond {
		t.Errorf("granted again after %v", waited)
	}
	entry := s.release(x, 0)
	equal(t, "released twice", entry.GetReason(), pb.ErrorReason_ERROR_REASON_LEASE_LOST)
}

func TestLease_LengthFollowsTheStepTheTimeoutAndTheWorker(t *testing.T) {
	s := start(t)
	for name, c := range map[string]struct {
		change []func(*pb.StepDefinition)
		beats  bool
		want   time.Duration
	}{
		"a worker that beats":                     {nil, true, 30 * time.Second},
		"a worker that beats, whatever the run":   {[]func(*pb.StepDefinition){config(`{"timeout":60}`)}, true, 30 * time.Second},
		"one that does not":                       {nil, false, 30 * time.Second},
		"one that does not, with a long run":      {[]func(*pb.StepDefinition){config(`{"timeout":60}`)}, false, 65 * time.Second},
		"one that does not, with a short run":     {[]func(*pb.StepDefinition){config(`{"timeout":20}`)}, false, 30 * time.Second},
		"the step's own":                          {[]func(*pb.StepDefinition){leaseOf(7 * time.Second), config(`{"timeout":60}`)}, false, 7 * time.Second},
		"the step's own, for a worker that beats": {[]func(*pb.StepDefinition){leaseOf(time.Hour)}, true, time.Hour},
	} {
		s.submit(inline(with(step("s"), c.change...)))
		resp := s.poll(name, 1, waiting(20*time.Second), func(r *pb.PollReadyStepsRequest) {
			r.SendsHeartbeats, r.DeliveryTimeout = c.beats, durationpb.New(3*time.Second)
		})
		x := resp.GetSteps()[0]
		lease := s.step(x.GetStepId()).GetLease()
		equal(t, name+": until it is confirmed", lease.GetExpiresAt().AsTime().Sub(lease.GetGrantedAt().AsTime()), 3*time.Second)
		equal(t, name+": told", x.GetLeaseExpiresAt().AsTime().Equal(lease.GetExpiresAt().AsTime()), true)
		equal(t, name+": heartbeat_by", x.GetHeartbeatBy().AsDuration(), c.want/3)
		s.beat(x)
		lease = s.step(x.GetStepId()).GetLease()
		equal(t, name, lease.GetExpiresAt().AsTime().Sub(lease.GetConfirmedAt().AsTime()).Round(time.Millisecond), c.want)
		s.report(success(x, ""))
	}
}

func TestLease_HeartbeatExtendsItAndStoresACheckpointForTheNextRun(t *testing.T) {
	s := start(t)
	s.submit(inline(with(step("s"), leaseOf(5*time.Second))))
	w := s.worker(1)
	x := w.next()
	begin := s.beat(x).GetLeaseExpiresAt().AsTime()
	s.eventually("the lease is extended beyond its first end", func() bool {
		entry := s.beat(x)
		return entry.GetStatus().GetCode() == 0 && entry.GetLeaseExpiresAt().AsTime().Sub(begin) > 5*time.Second
	})
	for _, c := range []*string{proto.String(`{"at":1}`), nil} { // the second leaves the first in place
		must[*pb.HeartbeatStepsResponse](t)(s.workers.HeartbeatSteps(s.within(), &pb.HeartbeatStepsRequest{
			Heartbeats: []*pb.StepHeartbeat{{LeaseToken: x.GetLeaseToken(), Checkpoint: c}},
		}))
	}
	s.report(retryable(x, after(0)))
	equal(t, "handed to the next run", w.next().GetCheckpoint(), `{"at":1}`)
}

// The validity of a report is decided by its token and never by the clock.
func TestLease_LateReportCountsWhileNobodyElseWasGrantedTheStep(t *testing.T) {
	s := start(t)
	s.submit(inline(step("s")))
	x := s.poll("w", 1, delivery(time.Second), waiting(20*time.Second)).GetSteps()[0]
	s.eventually("the delivery lease has ended", func() bool { return stateOf(s.step(x.GetStepId())) == "PENDING" })
	answer := s.report(success(x, `{"ok":1}`))
	if answer.GetStep().GetState() != pb.StepState_STEP_STATE_COMPLETE || answer.GetAlreadyRecorded() || answer.GetStep().GetAttempts() != 1 {
		t.Errorf("the late report: %v", answer)
	}
	// So it does for a step that was handed back.
	s.submit(inline(step("s")))
	x = s.poll("w", 1, waiting(20*time.Second)).GetSteps()[0]
	s.release(x, time.Hour)
	answer = s.report(retryable(x, after(time.Hour)))
	equal(t, "after a release", answer.GetStep().GetAttempts(), 1)
	// But never across an operator's reset.
	must[*pb.Step](t)(s.retryStep(x.GetStepId()))
	refused(t, s.reportErr(permanent(x)), codes.FailedPrecondition, "RESULT_CONFLICT")
	s.poll("w", 1, waiting(20*time.Second), delivery(time.Minute))
	equal(t, "the step", stateOf(s.step(x.GetStepId())), "IN_PROGRESS")
}

func TestLease_ResetBeginsANewEpochAndOldTokensAreWorthNothing(t *testing.T) {
	s := start(t)
	s.submit(inline(with(step("s"), leaseOf(5*time.Second), lostLeases(1))))
	x := s.poll("w", 1, waiting(20*time.Second)).GetSteps()[0]
	s.beat(x)
	s.eventually("the step is poisoned", func() bool { return stateOf(s.step(x.GetStepId())) == "ERROR" })
	must[*pb.Step](t)(s.retryStep(x.GetStepId()))
	refused(t, s.reportErr(success(x, "")), codes.FailedPrecondition, "LEASE_LOST")
	step := s.step(x.GetStepId())
	if stateOf(step) != "PENDING" || step.GetEpoch() != 2 || step.GetLostLeases() != 0 || !step.GetReadyForExecution() {
		t.Errorf("after the reset: %v", step)
	}
}

// Somebody who invents tokens learns nothing, changes nothing and leaves nothing behind.
func TestFence_InventedTokensLeaveNoTrace(t *testing.T) {
	s := start(t)
	s.submit(inline(step("s")))
	w := s.worker(1)
	x := w.next()
	raw, err := base64.RawURLEncoding.DecodeString(x.GetLeaseToken())
	if err != nil {
		t.Fatal(err)
	}
	forged := func(change func(b []byte)) *pb.ReadyStep {
		b := append([]byte(nil), raw...)
		change(b)
		return &pb.ReadyStep{LeaseToken: base64.RawURLEncoding.EncodeToString(b)}
	}
	for name, y := range map[string]*pb.ReadyStep{
		"another secret":    forged(func(b []byte) { b[36] ^= 1 }),
		"a later dispatch":  forged(func(b []byte) { b[15], b[36] = 77, b[36]^1 }),
		"another namespace": forged(func(b []byte) { b[3], b[36] = 77, b[36]^1 }),
		"another step":      forged(func(b []byte) { b[12], b[36] = 2, b[36]^1 }),
	} {
		refused(t, s.reportErr(success(y, `{"planted":true}`)), codes.FailedPrecondition, "LEASE_LOST")
		equal(t, name+": heartbeat", s.beat(y).GetStatus().GetReason(), pb.ErrorReason_ERROR_REASON_LEASE_LOST)
		equal(t, name+": release", s.release(y, 0).GetReason(), pb.ErrorReason_ERROR_REASON_LEASE_LOST)
		_, err := s.workers.GetDependencyResults(s.within(), &pb.GetDependencyResultsRequest{LeaseToken: y.GetLeaseToken()})
		refused(t, err, codes.FailedPrecondition, "LEASE_LOST")
	}
	for _, a := range s.attempts(x.GetStepId()) {
		if a.GetDispatch() != 1 {
			t.Errorf("a dispatch that never was: %v", a)
		}
	}
	equal(t, "records of other namespaces or dispatches", value[int](s, "select count(*) from history where namespace_id = 77 or 77 = any (dispatches)"), 0)
	s.report(success(x, ""))
}

func TestFence_TokensAreNewForEveryDispatchAndNeverDerivable(t *testing.T) {
	s := start(t)
	s.submit(inline(step("s")))
	w := s.worker(1)
	seen, keys := map[string]bool{}, map[string]bool{}
	for range 20 {
		x := w.next()
		raw, err := base64.RawURLEncoding.DecodeString(x.GetLeaseToken())
		if err != nil || len(raw) < 16 || seen[string(raw[len(raw)-16:])] {
			t.Fatalf("token %q: %v", x.GetLeaseToken(), err)
		}
		seen[string(raw[len(raw)-16:])] = true
		keys[x.GetIdempotencyKey()] = true
		s.release(x, 0)
	}
	equal(t, "idempotency keys of one step", len(keys), 1)
}

// ---------------------------------------------------------------- deadlines

func TestDeadline_ParksWhatWaitsAndRevokesWhatRuns(t *testing.T) {
	s := start(t)
	sub := inline(step("waits"), step("runs"), step("idle"), step("blocked", "runs"))
	sub.Deadline = timestamppb.New(time.Now().Add(3 * time.Second))
	made := s.submit(sub)
	w := s.worker(2)
	steps := w.several(2)
	s.report(retryable(steps["waits"], after(time.Hour)))
	s.release(w.next(), time.Hour) // idle
	entry := s.beat(steps["runs"])
	if got := entry.GetDeadline().AsTime(); got.Sub(sub.GetDeadline().AsTime()).Abs() > time.Microsecond {
		t.Errorf("told to stop at %v, not %v", got, sub.GetDeadline().AsTime())
	}
	equal(t, "told to the worker", w.awaitRevoked(steps["runs"].GetLeaseToken()), pb.RevokeReason_REVOKE_REASON_DEADLINE_EXCEEDED)
	s.eventually("the task is in error", func() bool { return s.taskState(made.GetTaskId()) == "ERROR" })
	for _, x := range s.all(made.GetTaskId()) {
		want := pb.ParkedReason_PARKED_REASON_DEADLINE_EXCEEDED
		if x.GetName() == "blocked" {
			want = pb.ParkedReason_PARKED_REASON_UNSPECIFIED
		}
		equal(t, x.GetName(), x.GetParkedReason(), want)
		if x.GetName() != "blocked" {
			code := value[string](s, "select error_code from get_step_readiness_status($1::text::bigint) where name = $2", made.GetTaskId(), x.GetName())
			equal(t, x.GetName(), code, "DEADLINE_EXCEEDED")
		}
	}
	refused(t, s.reportErr(success(steps["runs"], "")), codes.FailedPrecondition, "LEASE_LOST")
}

func TestDeadline_OfAStepIsItsMaxElapsedFromTheFirstDispatch(t *testing.T) {
	s := start(t)
	elapsed := func(d *pb.StepDefinition) { d.MaxElapsed = durationpb.New(2 * time.Second) }
	made := s.submit(inline(with(step("waits"), elapsed), with(step("runs"), elapsed), step("free")))
	w := s.worker(3)
	steps := w.several(3)
	s.report(retryable(steps["waits"], after(time.Hour)))
	s.beat(steps["runs"])
	s.beat(steps["free"])
	equal(t, "told to the worker", w.awaitRevoked(steps["runs"].GetLeaseToken()), pb.RevokeReason_REVOKE_REASON_DEADLINE_EXCEEDED)
	s.eventually("the waiting step is given up", func() bool {
		return s.named(made.GetTaskId(), "waits").GetParkedReason() == pb.ParkedReason_PARKED_REASON_DEADLINE_EXCEEDED
	})
	s.report(success(steps["free"], ""))
	equal(t, "the task", s.taskState(made.GetTaskId()), "ERROR")
}
