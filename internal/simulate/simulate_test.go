package simulate_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/simulate"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// run is one run to be found in the record.
type run struct {
	step     int // a task of one step each
	dispatch int
	worker   string
	outcome  string
	began    time.Time
	took     time.Duration
}

func (r run) failed() bool { return r.outcome == "retryable_failure" || r.outcome == "timed_out" }

// base is when the made-up records begin.
var base = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// record puts runs of the circuit svc into a database, as the verbs leave them.
func record(t testing.TB, db *pgtest.DB, runs []run) *pgx.Conn {
	t.Helper()
	conn := db.Conn(t)
	for _, sql := range []string{
		"insert into namespace (name) values ('default')",
		"insert into circuit (namespace_id, name) select namespace_id, 'svc' from namespace where name = 'default'",
		`insert into lane (namespace_id, handler, circuit, priority, circuit_id)
		 select namespace_id, 'call', 'svc', 1, circuit_id from circuit where name = 'svc'`,
		"select ensure_task_partitions(1, 1)",
		"create temporary table made (step int, dispatch int, worker text, outcome text, began timestamptz, ended timestamptz)",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	_, err := conn.CopyFrom(t.Context(), pgx.Identifier{"made"}, []string{"step", "dispatch", "worker", "outcome", "began", "ended"},
		pgx.CopyFromSlice(len(runs), func(i int) ([]any, error) {
			r := runs[i]
			return []any{r.step, r.dispatch, r.worker, r.outcome, r.began, r.began.Add(r.took)}, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`insert into worker_session (namespace_id, worker_id, instance_id, replica_id, max_in_flight, handlers)
		 select distinct namespace_id, worker, '1', uuid '00000000-0000-0000-0000-000000000001', 1, array['call'] from made cross join namespace where namespace.name = 'default'`,
		`insert into task (task_id, namespace_id, name, context, step_count, created_at)
		 select distinct step::bigint << 14, namespace_id, 'made', '{}', 1, now() from made cross join namespace where namespace.name = 'default'`,
		`insert into step (task_id, step_no, lane_id, retry_limit, retryable, max_lost_leases, name)
		 select distinct step::bigint << 14, 1, lane_id, 1000, true, 3, 'only' from made cross join lane where lane.circuit = 'svc'`,
		`insert into step_failure (task_id, step_no, dispatch, outcome, counted, attempt, failures, lost_leases, epoch, event_no, session_id, token,
		   started_at, ended_at)
		 select step::bigint << 14, 1, dispatch, outcome::dispatch_outcome, true, dispatch, dispatch, 0, 1, 1, session_id, gen_random_uuid(), began, ended
		 from made join worker_session on worker_id = worker where outcome <> 'success'`,
		`insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token, started_at,
		   ended_at)
		 select step::bigint << 14, 1, 'complete', dispatch, 0, dispatch, 0, 1, 1, session_id, gen_random_uuid(), began, ended
		 from made join worker_session on worker_id = worker where outcome = 'success'`,
		"analyze",
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%v\n%s", err, sql)
		}
	}
	return conn
}

// outage is a call every gap for as long as it takes, each of another step; those that begin within the outage fail. A step that
// failed is not tried again.
func outage(gap, all time.Duration, from, to time.Duration) (runs []run) {
	for at := time.Duration(0); at < all; at += gap {
		r := run{step: len(runs) + 1, dispatch: 1, worker: fmt.Sprint("w", len(runs)%4), outcome: "success", began: base.Add(at), took: gap / 2}
		if at >= from && at < to {
			r.outcome = "retryable_failure"
		}
		runs = append(runs, r)
	}
	return runs
}

func ptr[T any](v T) *T { return &v }

// replay replays svc under a policy of these fields.
func replay(t testing.TB, conn *pgx.Conn, until time.Time, p task.CircuitPolicy, fields ...string) simulate.Circuit {
	t.Helper()
	report, err := simulate.Replay(t.Context(), conn, simulate.Options{
		Namespace: "default", Circuit: "svc", Policy: p, Fields: fields, From: base.Add(-time.Second), Until: until,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Circuits) != 1 || report.Circuits[0].Name != "svc" {
		t.Fatalf("replayed %+v", report)
	}
	return report.Circuits[0]
}

func TestAnOutageTripsProbesAndCloses(t *testing.T) {
	// Ten calls a second; from 60 s to 90 s all fail.
	runs := outage(100*time.Millisecond, 3*time.Minute, time.Minute, 90*time.Second)
	conn := record(t, pgtest.New(t), runs)
	c := replay(t, conn, base.Add(3*time.Minute), task.CircuitPolicy{
		Window: ptr(10 * time.Second), MinObservations: ptr(20), FailureRateThreshold: ptr(0.5), OpenDuration: ptr(4 * time.Second),
		CloseAfterSuccesses: ptr(3), RecoveryWave: ptr(10),
	}, "window_duration", "min_observations", "failure_rate_threshold", "open_duration", "close_after_successes", "recovery_wave")
	if c.Runs != 1800 || c.Failed != 300 || c.Answered != 1500 {
		t.Errorf("the record has %+v", c)
	}
	if len(c.Recorded.Trips) != 0 || c.Recorded.State != "closed" {
		t.Errorf("what was recorded is told as %+v", c.Recorded)
	}
	if len(c.Replayed.Trips) != 1 {
		t.Fatalf("replayed %+v", c.Replayed)
	}
	trip := c.Replayed.Trips[0]
	// Of a window of ten buckets of a second, half is failed after five seconds, give or take the youngest bucket.
	if at := trip.At.Sub(base); at < 64*time.Second || at > 66*time.Second {
		t.Errorf("it trips after %v", at)
	}
	if trip.Cause != "failure_rate" || trip.Observed < 20 || 2*trip.Failed < trip.Observed || 2*(trip.Failed-1) >= trip.Observed {
		t.Errorf("it trips as %+v", trip)
	}
	// Open for 4, 8 and 16 seconds: probes fail about 69 s and 77 s and pass from 93 s on.
	if trip.Reopened != 2 || trip.Open.Duration().Round(100*time.Millisecond) != 28*time.Second {
		t.Errorf("it opens again %d times, and is open for %v", trip.Reopened, trip.Open.Duration())
	}
	if trip.PassedAt == nil || trip.ClosedAt == nil || trip.PassedAt.Before(base.Add(90*time.Second)) || trip.ClosedAt.Before(*trip.PassedAt) ||
		c.Replayed.State != "closed" || c.Replayed.Open != trip.Open {
		t.Errorf("it ends as %+v in %s", trip, c.Replayed.State)
	}
	// By the runs themselves: all that fail after the trip but the two probes are saved; what begins between 90 s and the end of the
	// probing is delayed, but for the probes.
	saved, delayed, sum, longest := -2, -3, 0.0, 0.0
	for _, r := range runs {
		switch {
		case r.began.Before(trip.At) || !r.began.Before(*trip.PassedAt):
		case r.failed():
			saved++
		default:
			delayed++
			d := trip.PassedAt.Sub(r.began).Seconds()
			sum, longest = sum+d, max(longest, d)
		}
	}
	if c.CallsSaved != saved || c.RunsDelayed != delayed || c.KeptBack < saved+delayed {
		t.Errorf("%d calls saved, %d runs delayed, %d kept back, want %d and %d", c.CallsSaved, c.RunsDelayed, c.KeptBack, saved, delayed)
	}
	if got := float64(c.LongestDelay); got < longest-0.2 || got > longest {
		t.Errorf("the longest delay is %v, want %v", got, longest)
	}
	if got := float64(c.DelayAdded); got > sum || got < sum-3*longest {
		t.Errorf("the delay added is %v, want somewhat below %v", got, sum)
	}
}

func TestAPolicyThatIsPatientNeverTrips(t *testing.T) {
	conn := record(t, pgtest.New(t), outage(100*time.Millisecond, 2*time.Minute, time.Minute, 65*time.Second))
	c := replay(t, conn, base.Add(2*time.Minute), task.CircuitPolicy{MinObservations: ptr(100), FailureRateThreshold: ptr(0.2)},
		"min_observations", "failure_rate_threshold")
	if len(c.Replayed.Trips) != 0 || c.KeptBack != 0 || c.CallsSaved != 0 || c.Replayed.Open != 0 {
		t.Errorf("50 of 600 calls fail: %+v", c)
	}
	c = replay(t, conn, base.Add(2*time.Minute), task.CircuitPolicy{MinObservations: ptr(100), FailureRateThreshold: ptr(0.05)},
		"min_observations", "failure_rate_threshold")
	if len(c.Replayed.Trips) == 0 || c.CallsSaved == 0 {
		t.Errorf("a threshold below the rate of failures does not trip: %+v", c)
	}
}

func TestAQuorumBarsTheOneWorkerThatFails(t *testing.T) {
	runs := outage(100*time.Millisecond, time.Minute, 0, 0)
	for i := range runs {
		if runs[i].worker == "w0" {
			runs[i].outcome = "retryable_failure"
		}
	}
	conn := record(t, pgtest.New(t), runs)
	p := task.CircuitPolicy{FailureRateThreshold: ptr(0.2), OpenDuration: ptr(10 * time.Second)}
	if c := replay(t, conn, base.Add(time.Minute), p, "failure_rate_threshold", "open_duration"); len(c.Replayed.Trips) == 0 {
		t.Errorf("a quarter of the calls fail, and it does not trip at a fifth: %+v", c)
	}
	p.MinFailingWorkers = ptr(2)
	c := replay(t, conn, base.Add(time.Minute), p, "failure_rate_threshold", "open_duration", "min_failing_workers")
	if len(c.Replayed.Trips) != 0 || c.Rerouted < 50 || c.KeptBack != 0 {
		t.Errorf("one worker of four fails: %+v", c)
	}
}

func TestSlowCallsTrip(t *testing.T) {
	runs := outage(100*time.Millisecond, time.Minute, 0, 0)
	for i := range runs {
		if runs[i].began.After(base.Add(30 * time.Second)) {
			runs[i].took = 2 * time.Second
		}
	}
	conn := record(t, pgtest.New(t), runs)
	p := task.CircuitPolicy{SlowCallDuration: ptr(2 * time.Second), SlowRateThreshold: ptr(0.1)}
	c := replay(t, conn, base.Add(time.Minute), p, "slow_call_duration", "slow_rate_threshold")
	if len(c.Replayed.Trips) == 0 || c.Replayed.Trips[0].Cause != "slow_rate" {
		t.Errorf("replayed %+v", c.Replayed)
	}
}

func TestWhatCannotBeReplayedIsRefused(t *testing.T) {
	conn := record(t, pgtest.New(t), outage(time.Second, 10*time.Second, 0, 0))
	ask := func(o simulate.Options) error {
		_, err := simulate.Replay(t.Context(), conn, o)
		return err
	}
	if err := ask(simulate.Options{Namespace: "default", Circuit: "other", From: base}); !errors.Is(err, simulate.ErrNoCircuit) {
		t.Errorf("a circuit without runs: %v", err)
	}
	if err := ask(simulate.Options{Namespace: "default", Fields: []string{"nonsense"}}); !errors.Is(err, &task.Error{Reason: task.Validation}) {
		t.Errorf("a field that is none: %v", err)
	}
	if err := ask(simulate.Options{Namespace: "default", From: base}); err != nil {
		t.Errorf("no change at all: %v", err)
	}
}

// A circuit's own record, replayed under the policy that it had, tells what happened.
func TestReplayUnderTheSamePolicyIsTheRecord(t *testing.T) {
	db := pgtest.New(t)
	st, err := store.Open(t.Context(), db.Pool.Config(), 8)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	conf := engine.Config{}
	_, _ = rand.Read(conf.ReplicaID[:])
	e := engine.New(st, conf)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	began := time.Now().Add(-time.Second)
	policy := task.CircuitPolicy{MinObservations: ptr(8), FailureRateThreshold: ptr(0.6), OpenDuration: ptr(time.Second), CloseAfterSuccesses: ptr(2)}
	fields := []string{"min_observations", "failure_rate_threshold", "open_duration", "close_after_successes"}
	if _, err := e.SetCircuitPolicy(t.Context(), "", "svc", policy, fields, "", ""); err != nil {
		t.Fatal(err)
	}
	stream, err := e.Open(t.Context(), engine.Registration{Beats: true, Session: store.Session{WorkerID: "w", InstanceID: "i", MaxInFlight: 1, Handlers: []string{"call"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	submission := &task.Submission{Name: "made", Context: "{}", Steps: []task.StepSpec{{
		Name: "only", Handler: "call", Circuit: "svc", Priority: 1, Policy: task.Policy{RetryLimit: 3, Retryable: true, MaxLostLeases: 3},
	}}}
	// Healthy, then failing until the second probe has failed, then healthy until it is closed.
	for i := range 40 {
		if _, err := e.Submit(t.Context(), []*task.Submission{submission}, false); err != nil {
			t.Fatal(err)
		}
		var step *task.ReadyStep
		for step == nil {
			f, err := stream.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			step = f.Step
		}
		r := task.Report{Token: step.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}}
		if i >= 5 && i < 14 {
			r = task.Report{Token: step.Token, Outcome: task.RetryableFailure, Digest: [32]byte{2}, Hint: task.Hint{Source: task.FromRetryAfter, After: ptr(time.Hour)}}
		}
		for _, a := range e.Report(t.Context(), []task.Report{r}) {
			if a.Err != nil {
				t.Fatal(a.Err)
			}
		}
	}
	c, err := e.GetCircuit(t.Context(), "", "svc")
	if err != nil {
		t.Fatal(err)
	}
	if c.State != task.CircuitClosed {
		t.Fatalf("in the end it is %+v", c)
	}
	report, err := simulate.Replay(t.Context(), db.Conn(t), simulate.Options{Namespace: "default", From: began})
	if err != nil {
		t.Fatal(err)
	}
	got := report.Circuits[0]
	if len(got.Recorded.Trips) != 1 || len(got.Replayed.Trips) != 1 || got.KeptBack != 0 {
		t.Fatalf("recorded %+v, replayed %+v", got.Recorded, got.Replayed)
	}
	was, is := got.Recorded.Trips[0], got.Replayed.Trips[0]
	if d := is.At.Sub(was.At).Abs(); d > 100*time.Millisecond || is.Cause != was.Cause || is.Observed != was.Observed || is.Failed != was.Failed ||
		is.Reopened != was.Reopened || is.Reopened == 0 || is.ClosedAt == nil || was.ClosedAt == nil || is.ClosedAt.Sub(*was.ClosedAt).Abs() > 100*time.Millisecond {
		t.Errorf("recorded %+v, replayed %+v", was, is)
	}
}

// BenchmarkReplay is the replay of one recorded run.
func BenchmarkReplay(b *testing.B) {
	gap := 20 * time.Millisecond
	all := time.Duration(b.N) * gap
	conn := record(b, pgtest.New(b), outage(gap, all, all/3, all/2))
	b.ResetTimer()
	c := replay(b, conn, base.Add(all), task.CircuitPolicy{}, []string{}...)
	b.ReportMetric(float64(len(c.Replayed.Trips)), "trips")
}
