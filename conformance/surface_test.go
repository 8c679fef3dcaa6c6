package conformance_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/server"
)

// The seed's two questions, word for word.
const (
	seedRetries = `SELECT
  name,
  current_state,
  retry_eligible,
  next_retry_at,
  attempts,
  backoff_request_seconds
FROM get_step_readiness_status(task_id)
WHERE current_state = 'error';`
	seedFailures = `SELECT
  name,
  COUNT(*) as failure_count,
  AVG(attempts) as avg_attempts,
  MAX(backoff_request_seconds) as max_backoff
FROM get_step_readiness_status(task_id)
WHERE current_state = 'error'
GROUP BY name;`
)

func TestSurface_TheSeedsQuestionsTakeTheIdAsTheContractPrintsIt(t *testing.T) {
	s := start(t)
	made := s.submit(inline(step("a"), step("b"), step("c", "a", "b")))
	steps := s.worker(2).several(2)
	s.report(retryable(steps["a"], after(90*time.Second)))
	s.report(success(steps["b"], ""))
	conn := s.db.Conn(t)
	if _, err := conn.Exec(s.within(), "set role tasker_reader; set timezone = 'America/New_York'"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{made.GetTaskId(), "'" + made.GetTaskId() + "'"} { // :task_id and :'task_id' of psql
		var (
			name, state string
			eligible    bool
			next        time.Time
			attempts    int
			seconds     float64
		)
		err := conn.QueryRow(s.within(), strings.Replace(seedRetries, "(task_id)", "("+id+")", 1)).Scan(&name, &state, &eligible, &next, &attempts, &seconds)
		if err != nil || fmt.Sprint(name, state, eligible, attempts, seconds) != "aerrorfalse 1 90" || !next.Equal(s.step(steps["a"].GetStepId()).GetNextRetryAt().AsTime()) {
			t.Errorf("with %s: %s %s %v %v %d %v, %v", id, name, state, eligible, next, attempts, seconds, err)
		}
		var failures int
		var average float64
		err = conn.QueryRow(s.within(), strings.Replace(seedFailures, "(task_id)", "("+id+")", 1)).Scan(&name, &failures, &average, &seconds)
		if err != nil || fmt.Sprint(name, failures, average, seconds) != "a1 1 90" {
			t.Errorf("with %s: %s %d %v %v, %v", id, name, failures, average, seconds, err)
		}
	}
}

// The contract and the SQL surface say the same of every step, column by column.
func TestSurface_SaysOfAStepWhatTheContractSays(t *testing.T) {
	s := start(t)
	made := s.submit(inline(
		step("a"), step("b", "a"), step("waits"), step("parked"), step("below", "parked", "b"), step("runs"),
		with(step("c"), func(d *pb.StepDefinition) { d.Circuit = d.Handler }),
	))
	w := s.worker(7)
	steps := w.several(5)
	s.report(success(steps["a"], ""))
	s.report(retryable(steps["waits"], after(time.Hour)))
	s.report(permanent(steps["parked"]))
	s.beat(steps["runs"])
	for _, x := range s.all(made.GetTaskId()) {
		var row struct {
			state, name                              string
			satisfied, eligible, ready               bool
			parents, done, attempts, limit           int32
			dispatches, lost, epoch                  int32
			failedAt, nextAt, attemptedAt, startedAt *time.Time
			circuit                                  *string
		}
		err := s.db.Pool.QueryRow(s.within(), `select current_state, name, dependencies_satisfied, retry_eligible, ready_for_execution, total_parents,
			completed_parents, attempts, retry_limit, dispatches, lost_leases, epoch, last_failure_at, next_retry_at, last_attempted_at, last_started_at, circuit
			from get_step_readiness_status($1::text::bigint, array[$2::text::bigint])`, x.GetTaskId(), x.GetStepId()).
			Scan(&row.state, &row.name, &row.satisfied, &row.eligible, &row.ready, &row.parents, &row.done, &row.attempts, &row.limit, &row.dispatches,
				&row.lost, &row.epoch, &row.failedAt, &row.nextAt, &row.attemptedAt, &row.startedAt, &row.circuit)
		if err != nil {
			t.Fatal(err)
		}
		instant := func(at *time.Time) string {
			if at == nil {
				return "-"
			}
			return at.UTC().String()
		}
		stamp := func(at interface {
			AsTime() time.Time
			IsValid() bool
		},
		) string {
			if !at.IsValid() {
				return "-"
			}
			return at.AsTime().String()
		}
		circuit := ""
		if row.circuit != nil {
			circuit = *row.circuit
		}
		sql := fmt.Sprint(strings.ToUpper(row.state), row.name, row.satisfied, row.eligible, row.ready, row.parents, row.done, row.attempts, row.limit, row.dispatches,
			row.lost, row.epoch, instant(row.failedAt), instant(row.nextAt), instant(row.attemptedAt), instant(row.startedAt), circuit)
		contract := fmt.Sprint(stateOf(x), x.GetName(), x.GetDependenciesSatisfied(), x.GetRetryEligible(), x.GetReadyForExecution(), x.GetTotalParents(),
			x.GetCompletedParents(), x.GetAttempts(), x.GetRetryLimit(), x.GetDispatches(), x.GetLostLeases(), x.GetEpoch(), stamp(x.GetLastFailureAt()),
			stamp(x.GetNextRetryAt()), stamp(x.GetLastAttemptedAt()), stamp(x.GetLastStartedAt()), x.GetCircuit())
		equal(t, x.GetName(), contract, sql)
	}
}

// An idle server asks the database next to nothing, however many streams it holds.
func TestIdle_StreamsCostTheDatabaseNothing(t *testing.T) {
	s := start(t, func(c *server.Config) { c.LogLevel = "error" })
	for i := range 40 {
		conn := s.dial()
		for k := range 5 {
			stream, err := pb.NewWorkerServiceClient(conn).ReadySteps(s.within(), request(fmt.Sprintf("w%d-%d", i, k), 1, fmt.Sprint("h", k)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Statements are counted by looking, oftener than any connection sends them, at when each connection sent its last.
	conn, err := pgx.Connect(s.within(), pgtest.Server(t).ConnString("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	const window = 10 * time.Second
	seen := map[string]bool{}
	look := func() {
		rows, _ := conn.Query(s.within(), `select pid || ' ' || query_start from pg_stat_activity
			where datname = $1 and backend_type = 'client backend' and query_start is not null`, s.db.Name)
		sent, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range sent {
			seen[x] = true
		}
	}
	rate := func() float64 {
		look()
		before, begun := len(seen), time.Now()
		s.eventually("the window has passed", func() bool {
			look()
			return time.Since(begun) >= window
		})
		return float64(len(seen)-before) / time.Since(begun).Seconds()
	}
	// What opening the streams left on its connections is part of the first window.
	var rates []float64
	for range 4 {
		rates = append(rates, rate())
		if rates[len(rates)-1] < 2 {
			return
		}
	}
	t.Errorf("%.2f statements a second for 200 idle streams", rates)
}
