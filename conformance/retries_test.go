package conformance_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func backoff(initial, most time.Duration, multiplier float64) func(*pb.StepDefinition) {
	return func(d *pb.StepDefinition) {
		d.Backoff = &pb.BackoffPolicy{
			Initial: durationpb.New(initial), Max: durationpb.New(most), Multiplier: &multiplier, Jitter: proto.Float64(0),
		}
	}
}

func header(text string) func(*pb.StepRetryableFailure) {
	return func(f *pb.StepRetryableFailure) {
		f.RetryHint = &pb.StepRetryableFailure_RetryAfterHeader{RetryAfterHeader: text}
	}
}

func at(instant time.Time) func(*pb.StepRetryableFailure) {
	return func(f *pb.StepRetryableFailure) {
		f.RetryHint = &pb.StepRetryableFailure_RetryAt{RetryAt: timestamppb.New(instant)}
	}
}

// one submits a task of one step and gives its dispatch.
func (s *system) one(w *worker, change ...func(*pb.StepDefinition)) *pb.ReadyStep {
	s.t.Helper()
	s.submit(inline(with(step("s"), change...)))
	return w.next()
}

// exactly checks that the next run comes a delay after the report, to the microsecond, wherever that is shown.
func (s *system) exactly(what string, r *pb.ReportStepResultResponse, delay time.Duration) {
	s.t.Helper()
	x := s.dispatch(r.GetStep().GetStepId(), r.GetStep().GetDispatch())
	got := x.GetNextRetryAt().AsTime().Sub(x.GetEndedAt().AsTime())
	if got != delay || r.GetAppliedDelay().AsDuration() != delay || x.GetDelay().AsDuration() != delay || !r.GetNextRetryAt().AsTime().Equal(x.GetNextRetryAt().AsTime()) {
		s.t.Errorf("%s: the delay is %v, the answer says %v, next run at %v and %v; want %v", what, got, r.GetAppliedDelay().AsDuration(),
			r.GetNextRetryAt().AsTime(), x.GetNextRetryAt().AsTime(), delay)
	}
	if step := s.step(r.GetStep().GetStepId()); stateOf(step) == "ERROR" {
		if got := step.GetNextRetryAt().AsTime().Sub(step.GetLastAttemptedAt().AsTime()); got != delay {
			s.t.Errorf("%s: next_retry_at is %v after last_attempted_at, not %v", what, got, delay)
		}
	}
}

// dispatch is one dispatch of a step.
func (s *system) dispatch(stepID string, n int32) *pb.Attempt {
	s.t.Helper()
	for _, a := range s.attempts(stepID) {
		if a.GetDispatch() == n {
			return a
		}
	}
	s.t.Fatalf("step %s has no dispatch %d", stepID, n)
	return nil
}

// What the readiness table calls ready is what a worker with room for everything is sent, and nothing else.
func TestReadiness_EqualsWhatTheStreamGrantsNext(t *testing.T) {
	s := start(t)
	made := s.submit(inline(
		step("fresh"), step("done"), step("child", "done"), step("blocked", "child"), step("waiting"), step("due"), step("gone"), step("runs"),
		with(step("other"), handlerOf("x")),
	))
	taken := s.worker(6).several(7 - 1)
	_ = taken
	all := func() map[string]*pb.Step {
		m := map[string]*pb.Step{}
		for _, x := range s.all(made.GetTaskId()) {
			m[x.GetName()] = x
		}
		return m
	}
	ready := func() (names []string) {
		for name, x := range all() {
			if x.GetReadyForExecution() {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	// The worker took the first six of seven, in the order of submission; hand back what is to be fresh.
	for name, x := range taken {
		switch name {
		case "fresh":
			s.release(x, 0)
		case "done":
			s.report(success(x, ""))
		case "waiting":
			s.report(retryable(x, after(time.Hour)))
		case "due":
			s.report(retryable(x, after(0)))
		case "gone":
			s.report(permanent(x))
		}
	}
	// The stream takes what is ready at once, so look at what it holds: nothing that is ready may be left, and nothing that
	// it was sent may have been anything else.
	s.eventually("the worker is full or nothing is ready", func() bool {
		left := slices.DeleteFunc(ready(), func(n string) bool { return n == "other" })
		held := 0
		for _, x := range all() {
			if x.GetLease() != nil {
				held++
			}
		}
		return len(left) == 0 || held == 6
	})
	if got := ready(); !slices.Equal(got, []string{"other"}) {
		t.Errorf("ready, and not sent to a worker with room: %v", got)
	}
	now := all()
	for name, want := range map[string]string{
		"fresh": "IN_PROGRESS", "child": "IN_PROGRESS", "due": "IN_PROGRESS", "runs": "IN_PROGRESS",
		"waiting": "ERROR", "gone": "ERROR", "blocked": "PENDING", "done": "COMPLETE", "other": "PENDING",
	} {
		equal(t, name, stateOf(now[name]), want)
	}
}

func TestReadiness_BacksOffByTheSeedsTable(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(20))
	for n, seconds := range []int{2, 4, 8, 16, 30, 30} {
		answer := s.report(retryable(x))
		s.exactly(fmt.Sprintf("failure %d", n+1), answer, time.Duration(seconds)*time.Second)
		equal(t, "delay_source", answer.GetDelaySource(), pb.DelaySource_DELAY_SOURCE_BACKOFF)
		step := s.step(x.GetStepId())
		if step.GetRetryEligible() || step.GetReadyForExecution() || step.GetBackoffRequestDuration() != nil {
			t.Errorf("while it waits: %v", step)
		}
		// As if the time had passed.
		s.exec("update backoff set due_at = now() where task_id = $1::text::bigint", x.GetTaskId())
		s.exec("update step_failure set next_retry_at = now() where task_id = $1::text::bigint", x.GetTaskId())
		x = w.next()
	}
}

func (s *system) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.db.Pool.Exec(s.within(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
}

func TestReadiness_EachStepHasItsOwnPolicy(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(9), backoff(10*time.Millisecond, 50*time.Millisecond, 3))
	for n, ms := range []int{10, 30, 50, 50} {
		s.exactly(fmt.Sprintf("failure %d", n+1), s.report(retryable(x)), time.Duration(ms)*time.Millisecond)
		x = w.next()
	}
}

func TestReadiness_JitterIsAddedOnTopDrawnOnceAndNeverToADirectedDelay(t *testing.T) {
	s := start(t)
	var extra []time.Duration
	for i := range 8 {
		// A handler of its own: the retries of those before come due meanwhile.
		name := fmt.Sprintf("h%d", i)
		x := s.one(s.open(request(name, 1, name)), func(d *pb.StepDefinition) { d.Handler, d.Backoff = &name, nil }) // all defaults
		answer := s.report(retryable(x))
		delay := answer.GetAppliedDelay().AsDuration()
		if delay < 2*time.Second || delay > 2200*time.Millisecond {
			t.Errorf("the first delay is %v", delay)
		}
		s.exactly("stored", answer, delay)
		s.exactly("asked for again", answer, delay)
		extra = append(extra, delay-2*time.Second)
	}
	slices.Sort(extra)
	if len(slices.Compact(extra)) < 4 {
		t.Errorf("jitters: %v", extra)
	}
	x := s.one(s.worker(1), func(d *pb.StepDefinition) { d.Backoff = &pb.BackoffPolicy{Jitter: proto.Float64(1)} })
	s.exactly("directed", s.report(retryable(x, after(10*time.Second))), 10*time.Second)
}

func TestReadiness_ExplicitReplacesExponentialAlsoWhenShorter(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(9), backoff(time.Hour, time.Hour, 1))
	answer := s.report(retryable(x, after(50*time.Millisecond)))
	s.exactly("shorter", answer, 50*time.Millisecond)
	equal(t, "delay_source", answer.GetDelaySource(), pb.DelaySource_DELAY_SOURCE_RETRY_AFTER)
	x = w.next()
	answer = s.report(retryable(x, after(2*time.Hour)))
	s.exactly("longer", answer, 2*time.Hour)
	equal(t, "backoff_request", s.step(x.GetStepId()).GetBackoffRequestDuration().AsDuration(), 2*time.Hour)
}

func TestReadiness_ZeroMeansNow(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, backoff(time.Hour, time.Hour, 1))
	answer := s.report(retryable(x, after(0)))
	s.exactly("zero", answer, 0)
	again := w.next()
	equal(t, "the attempt", again.GetAttempt(), 2)
	equal(t, "backoff_request", s.step(x.GetStepId()).GetBackoffRequestDuration().AsDuration(), 0)
	if s.step(x.GetStepId()).GetBackoffRequestDuration() == nil {
		t.Error("a delay of 0 is not the same as none")
	}
}

func TestReadiness_EveryFailureOverwritesTheRequestAndSuccessClearsIt(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(9), backoff(10*time.Millisecond, 10*time.Millisecond, 1))
	s.report(retryable(x, after(20*time.Millisecond)))
	x = w.next()
	if running := s.step(x.GetStepId()); running.GetNextRetryAt() != nil || running.GetLastFailure().GetErrorCode() != "BUSY" {
		t.Errorf("while it runs, next_retry_at is unset and the last failure stays: %v", running)
	}
	s.exactly("absent: the backoff again", s.report(retryable(x)), 10*time.Millisecond)
	if failed := s.step(x.GetStepId()); failed.GetBackoffRequestDuration() != nil {
		t.Errorf("the request of the failure before stays: %v", failed)
	}
	x = w.next()
	s.report(retryable(x, after(time.Millisecond)))
	s.report(success(w.next(), ""))
	if done := s.step(x.GetStepId()); done.GetBackoffRequestDuration() != nil || done.GetNextRetryAt() != nil || done.GetAttempts() != 4 {
		t.Errorf("after the success: %v", done)
	}
}

func TestReadiness_AnchorIsTheReportSoThatALongRunDoesNotEatItsDelay(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w)
	s.beat(x)
	started := s.step(x.GetStepId()).GetLease().GetConfirmedAt().AsTime()
	s.eventually("the run lasts", func() bool { return time.Since(started) > 1200*time.Millisecond })
	answer := s.report(retryable(x, after(time.Second)))
	s.exactly("after a long run", answer, time.Second)
	if wait := answer.GetNextRetryAt().AsTime().Sub(started); wait < 2200*time.Millisecond {
		t.Errorf("the next run may come %v after the start of this one", wait)
	}
	step := s.step(x.GetStepId())
	if !step.GetLastStartedAt().AsTime().Equal(started) {
		t.Errorf("last_started_at is %v, not the confirmation's %v", step.GetLastStartedAt().AsTime(), started)
	}
}

func TestReadiness_PermanentFailureIsNeverRetriedUntilRetryStep(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(1000))
	answer := s.report(permanent(x))
	equal(t, "parked_reason", answer.GetStep().GetParkedReason(), pb.ParkedReason_PARKED_REASON_PERMANENT)
	step := s.step(x.GetStepId())
	if step.GetRetryEligible() || step.GetReadyForExecution() || step.GetNextRetryAt() != nil || answer.GetNextRetryAt() != nil || answer.GetAppliedDelay() != nil {
		t.Errorf("a permanent failure: %v, answered %v", step, answer)
	}
	equal(t, "attempts", step.GetAttempts(), 1)
	step = must[*pb.Step](t)(s.retryStep(x.GetStepId()))
	if step.GetAttempts() != 0 || step.GetEpoch() != 2 || step.GetLostLeases() != 0 || step.GetNextRetryAt() != nil || step.GetLastFailure() != nil {
		t.Errorf("after RetryStep: %v", step)
	}
	again := w.next()
	equal(t, "attempt numbers restart", again.GetAttempt(), 1)
	equal(t, "dispatch numbers do not", again.GetDispatch(), 2)
}

func TestReadiness_RetryableFalseMeansOneRunAndAnyFailureIsFinal(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(5), func(d *pb.StepDefinition) { d.Retryable = proto.Bool(false) })
	answer := s.report(retryable(x, after(0)))
	equal(t, "parked_reason", answer.GetStep().GetParkedReason(), pb.ParkedReason_PARKED_REASON_PERMANENT)
	equal(t, "the step's", s.step(x.GetStepId()).GetParkedReason(), pb.ParkedReason_PARKED_REASON_PERMANENT)
	equal(t, "retry_eligible", s.step(x.GetStepId()).GetRetryEligible(), false)
	equal(t, "the task", s.taskState(x.GetTaskId()), "ERROR")
}

func TestReadiness_ExhaustedIsNotEligibleAndHasNoNextRetry(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(2))
	equal(t, "after one", s.report(retryable(x, after(0))).GetStep().GetParkedReason(), pb.ParkedReason_PARKED_REASON_UNSPECIFIED)
	answer := s.report(retryable(w.next(), after(0)))
	equal(t, "after two", answer.GetStep().GetParkedReason(), pb.ParkedReason_PARKED_REASON_EXHAUSTED)
	step := s.step(x.GetStepId())
	if step.GetRetryEligible() || step.GetNextRetryAt() != nil || step.GetAttempts() != step.GetRetryLimit() || step.GetParkedReason() != pb.ParkedReason_PARKED_REASON_EXHAUSTED {
		t.Errorf("exhausted: %v", step)
	}
}

func TestReadiness_ListedErrorCodesAreFinal(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	listed := func(d *pb.StepDefinition) { d.NonRetryableCodes = []string{"BUSY"} }
	answer := s.report(retryable(s.one(w, retryLimit(5), listed), after(0)))
	equal(t, "parked_reason", answer.GetStep().GetParkedReason(), pb.ParkedReason_PARKED_REASON_PERMANENT)
}

// The answer to a report and the step say the same of why it is failed for good, also when several reasons meet.
func TestReadiness_WhyItIsParkedIsTheSameInTheAnswerAndInTheStep(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	for name, c := range map[string]struct {
		change []func(*pb.StepDefinition)
		report func(*pb.ReadyStep) *pb.ReportStepResultRequest
	}{
		"permanent at the limit":     {[]func(*pb.StepDefinition){retryLimit(1)}, permanent},
		"not retryable at the limit": {[]func(*pb.StepDefinition){retryLimit(1), func(d *pb.StepDefinition) { d.Retryable = proto.Bool(false) }}, func(x *pb.ReadyStep) *pb.ReportStepResultRequest { return retryable(x) }},
		"listed at the limit":        {[]func(*pb.StepDefinition){retryLimit(1), func(d *pb.StepDefinition) { d.NonRetryableCodes = []string{"BUSY"} }}, func(x *pb.ReadyStep) *pb.ReportStepResultRequest { return retryable(x) }},
		"exhausted":                  {[]func(*pb.StepDefinition){retryLimit(1)}, func(x *pb.ReadyStep) *pb.ReportStepResultRequest { return retryable(x) }},
	} {
		x := s.one(w, c.change...)
		answer := s.report(c.report(x))
		again := s.report(c.report(x))
		stands := s.step(x.GetStepId()).GetParkedReason()
		if answer.GetStep().GetParkedReason() != stands || again.GetStep().GetParkedReason() != stands || stands == 0 {
			t.Errorf("%s: the step says %v, the answer %v, the answer again %v", name, stands, answer.GetStep().GetParkedReason(), again.GetStep().GetParkedReason())
		}
	}
}

// The seed's own expression fails for a step that has failed often, and takes the whole query with it. Ours does not.
func TestReadiness_SurvivesAnyNumberOfFailuresAsTheSeedsSnippetDoesNot(t *testing.T) {
	s := start(t)
	_, err := s.db.Pool.Exec(s.within(), "select now() + least(power(2, 44) * interval '1 second', interval '30 seconds')")
	var pgErr *pgconn.PgError
	if err == nil || !strings.Contains(err.Error(), pgerrcode.DatetimeFieldOverflow) {
		t.Errorf("the seed's snippet at 44 attempts: %v (%v)", err, pgErr)
	}
	w := s.worker(1)
	x := s.one(w, retryLimit(1000), backoff(2*time.Second, 30*time.Second, 100))
	id, stepID := x.GetTaskId(), x.GetStepId()
	for _, failures := range []int{43, 44, 1000, math.MaxInt32 - 1} {
		s.exec("update lease set failures = $2 where task_id = $1::text::bigint", id, failures)
		s.exactly(fmt.Sprint("failure ", failures+1), s.report(retryable(x)), 30*time.Second)
		equal(t, "rows of the readiness query", value[int](s, "select count(*) from get_step_readiness_status($1::text::bigint)", id), 1)
		must[*pb.Step](t)(s.retryStep(stepID))
		x = w.next()
	}
}

func TestClamp_RetryAfterIsClampedAndReportedBack(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	most := func(d time.Duration) func(*pb.StepDefinition) {
		return func(x *pb.StepDefinition) { x.MaxRetryAfter = durationpb.New(d) }
	}
	day := 24 * time.Hour
	hour := time.Hour
	for _, c := range []struct {
		limit   func(*pb.StepDefinition)
		hint    func(*pb.StepRetryableFailure)
		delay   time.Duration
		clamped bool
	}{
		{most(hour), after(hour - time.Microsecond), hour - time.Microsecond, false},
		{most(hour), after(hour), hour, false},
		{most(hour), after(hour + time.Microsecond), hour, true},
		{most(hour), header("3601"), hour, true},
		{most(hour), header("3600"), hour, false},
		{nil, after(day), day, false},
		{nil, after(day + time.Second), day, true},
		{nil, header("86401"), day, true},
		{nil, header("-1"), 0, true},
	} {
		change := []func(*pb.StepDefinition){}
		if c.limit != nil {
			change = append(change, c.limit)
		}
		x := s.one(w, change...)
		answer := s.report(retryable(x, c.hint))
		equal(t, "delay_clamped", answer.GetDelayClamped(), c.clamped)
		equal(t, "backoff_request", s.step(x.GetStepId()).GetBackoffRequestDuration().AsDuration(), c.delay)
		equal(t, "of the attempt", s.dispatch(x.GetStepId(), 1).GetDelayClamped(), c.clamped)
		if c.delay > 0 {
			s.exactly("clamped", answer, c.delay)
		} else {
			w.next()
		}
	}
}

func TestClamp_TypedHintsOutOfRangeAreInvalidAndTheLeaseStays(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w)
	raw := func(seconds int64, nanos int32) func(*pb.StepRetryableFailure) {
		return func(f *pb.StepRetryableFailure) {
			f.RetryHint = &pb.StepRetryableFailure_RetryAfter{RetryAfter: &durationpb.Duration{Seconds: seconds, Nanos: nanos}}
		}
	}
	instant := func(seconds int64) func(*pb.StepRetryableFailure) {
		return func(f *pb.StepRetryableFailure) {
			f.RetryHint = &pb.StepRetryableFailure_RetryAt{RetryAt: &timestamppb.Timestamp{Seconds: seconds}}
		}
	}
	for name, hint := range map[string]func(*pb.StepRetryableFailure){
		"-1 ns": raw(0, -1), "-1 s": raw(-1, 0), "1e18 s": raw(1e18, 0), "above 100 years": raw(3155760001, 0), "mixed signs": raw(1, -1),
		"too many nanos": raw(1, 1e9), "least int64": raw(math.MinInt64, 0), "before 1970": instant(-1), "after 9999": instant(253402300800),
		"greatest int64": instant(math.MaxInt64),
	} {
		err := s.reportErr(retryable(x, hint))
		if t.Run(name, func(t *testing.T) { invalid(t, err) }); len(fields(err)) == 0 {
			t.Errorf("%s: no field is named", name)
		}
	}
	equal(t, "at the bound", s.report(retryable(x, raw(3155760000, 0))).GetDelayClamped(), true)
}

func TestClamp_ABadHeaderNeverFailsAReport(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	for _, text := range []string{
		"", " ", "NaN", "Infinity", "1e18", "+5", "0x10", "1.5", "٣", "soon", "120, 240", "Fri, 99 Foo 2999 99:99:99 GMT", "\x00", "12\n34",
		strings.Repeat("9", 100_000), strings.Repeat("x", 100_000), "-99999999999999999999999",
	} {
		x := s.one(w, retryLimit(1000), backoff(time.Hour, time.Hour, 1))
		answer, err := s.workers.ReportStepResult(s.within(), retryable(x, header(text)))
		if err != nil {
			t.Fatalf("a header of %d bytes, %.20q: %v", len(text), text, err)
		}
		switch answer.GetDelaySource() {
		case pb.DelaySource_DELAY_SOURCE_HEADER_UNREADABLE:
			s.exactly(fmt.Sprintf("%.20q counts as absent", text), answer, time.Hour)
		case pb.DelaySource_DELAY_SOURCE_HEADER_SECONDS:
			if !answer.GetDelayClamped() {
				t.Errorf("%.20q: %v", text, answer)
			}
			if answer.GetAppliedDelay().AsDuration() == 0 {
				w.next()
			}
		default:
			t.Errorf("%.20q: %v", text, answer)
		}
	}
}

func TestClamp_RetryAtIsStoredAsItsDistanceFromTheReport(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w)
	when := time.Now().Add(90 * time.Second).Truncate(time.Microsecond)
	answer := s.report(retryable(x, at(when)))
	if !answer.GetNextRetryAt().AsTime().Equal(when) || answer.GetDelaySource() != pb.DelaySource_DELAY_SOURCE_RETRY_AT {
		t.Errorf("asked for %v, got %v", when, answer)
	}
	s.exactly("retry_at", answer, answer.GetAppliedDelay().AsDuration())
	literal := value[bool](s, `select next_retry_at = last_attempted_at + backoff_request_seconds * interval '1 second'
		from get_step_readiness_status($1::text::bigint)`, x.GetTaskId())
	equal(t, "the seed's own sum", literal, true)
	equal(t, "its type", value[string](s, "select pg_typeof(backoff_request_seconds)::text from get_step_readiness_status($1::text::bigint)", x.GetTaskId()), "numeric")
	past := s.report(retryable(s.one(w), at(time.Now().Add(-time.Hour))))
	if past.GetAppliedDelay().AsDuration() != 0 || !past.GetDelayClamped() {
		t.Errorf("an instant that is past means now: %v", past)
	}
}

// ---------------------------------------------------------------- attempts

func TestAttempts_CountSuccessesFailuresAndTimeouts(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, retryLimit(9), config(`{"timeout": 1}`), backoff(0, 0, 1))
	equal(t, "run_timeout", x.GetRunTimeout().AsDuration(), time.Second)
	s.report(retryable(x))
	x = w.next()
	s.beat(x)
	confirmed := s.step(x.GetStepId()).GetLease().GetConfirmedAt().AsTime()
	equal(t, "revoked", w.awaitRevoked(x.GetLeaseToken()), pb.RevokeReason_REVOKE_REASON_TIMED_OUT)
	again := w.next()
	equal(t, "the attempt after a failure and a timeout", again.GetAttempt(), 3)
	equal(t, "why it runs again", again.GetPreviousFailure().GetFailure().GetErrorCode(), "TIMED_OUT")
	timedOut := s.attempts(x.GetStepId())[1]
	if timedOut.GetOutcome() != pb.DispatchOutcome_DISPATCH_OUTCOME_TIMED_OUT || timedOut.GetAttempt() != 2 {
		t.Errorf("the timeout: %v", timedOut)
	}
	if lasted := timedOut.GetEndedAt().AsTime().Sub(confirmed); lasted < time.Second || lasted > 3*time.Second {
		t.Errorf("timed out %v after the confirmation", lasted)
	}
	// The server concluded it: what the worker says later is evidence, not a contradiction.
	refused(t, s.reportErr(success(x, "")), codes.FailedPrecondition, "LEASE_LOST")
	s.report(success(again, ""))
	equal(t, "attempts", s.step(x.GetStepId()).GetAttempts(), 3)
}

func TestAttempts_SkippedRunsAreNotCountedAHundredTimesInARowAndGrowTheDelay(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w, backoff(time.Millisecond, 4*time.Millisecond, 2))
	for n, ms := range []int{1, 2, 4, 4} {
		answer := s.report(retryable(x, skipped))
		s.exactly(fmt.Sprintf("skipped %d", n), answer, time.Duration(ms)*time.Millisecond)
		equal(t, "attempts", answer.GetStep().GetAttempts(), 0)
		x = w.next()
		equal(t, "the attempt it would be", x.GetAttempt(), 1)
	}
	for range 96 {
		equal(t, "attempts", s.report(retryable(x, skipped)).GetStep().GetAttempts(), 0)
		x = w.next()
	}
	equal(t, "the 101st in a row", s.report(retryable(x, skipped)).GetStep().GetAttempts(), 1)
}

func TestAttempts_ListShowsWhoWhenOutcomeErrorDelayAndWhy(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	x := s.one(w)
	failed := retryable(x, after(20*time.Millisecond))
	failed.GetRetryableFailure().Failure = &pb.Failure{
		ErrorCode: "E", Message: "m", ErrorClass: "c", HttpStatus: proto.Int32(503), StackTrace: "t", Details: `{"d":1}`,
	}
	s.report(failed)
	s.report(success(w.next(), ""))
	got := s.attempts(x.GetStepId())
	if len(got) != 2 || got[0].GetDispatch() != 2 || got[0].GetOutcome() != pb.DispatchOutcome_DISPATCH_OUTCOME_SUCCESS || got[0].GetAttempt() != 2 {
		t.Fatalf("attempts: %v", got)
	}
	first := got[1]
	if !proto.Equal(first.GetFailure(), failed.GetRetryableFailure().GetFailure()) || first.GetWorkerId() != "w" || first.GetInstanceId() != "w-1" ||
		first.GetDelay().AsDuration() != 20*time.Millisecond || first.GetDelaySource() != pb.DelaySource_DELAY_SOURCE_RETRY_AFTER ||
		first.GetNextRetryAt().AsTime().Sub(first.GetEndedAt().AsTime()) != 20*time.Millisecond || first.GetStartedAt() == nil ||
		first.GetOutcome() != pb.DispatchOutcome_DISPATCH_OUTCOME_RETRYABLE_FAILURE || first.GetEpoch() != 1 {
		t.Errorf("the first: %v", first)
	}
}

func TestFailures_TextsAreCutWithAMarkAndNeverRefused(t *testing.T) {
	s := start(t)
	w := s.worker(1)
	for size, want := range map[int]int{4095: 4095, 4096: 4096, 4097: 4096, 1 << 20: 4096} {
		x := s.one(w)
		long := strings.Repeat("é", size/2) + strings.Repeat("x", size%2)
		f := retryable(x, after(time.Hour))
		f.GetRetryableFailure().Failure = &pb.Failure{ErrorCode: "E", Message: long, StackTrace: long, ErrorClass: long}
		s.report(f)
		kept := s.step(x.GetStepId()).GetLastFailure()
		for what, text := range map[string]string{"message": kept.GetMessage(), "stack_trace": kept.GetStackTrace()} {
			cut := size > 4096
			if len(text) > want || len(text) < want-4 || strings.HasSuffix(text, "…") != cut || !cut && text != long {
				t.Errorf("%s of %d bytes is kept with %d", what, size, len(text))
			}
		}
		if n := len(kept.GetErrorClass()); n > 255 || n < 251 {
			t.Errorf("error_class is kept with %d bytes", n)
		}
	}
	x := s.one(w)
	word := func(n int) *pb.ReportStepResultRequest {
		f := retryable(x, after(time.Hour))
		f.GetRetryableFailure().Failure.ErrorCode = strings.Repeat("E", n)
		return f
	}
	invalid(t, s.reportErr(word(256)))
	s.report(word(255))
	nul := retryable(s.one(w), after(time.Hour))
	nul.GetRetryableFailure().Failure.Message = "a\x00b"
	s.report(nul)
}
