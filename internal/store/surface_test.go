package store_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// The seed's two queries, verbatim but for the semicolon: task_id must be in scope.
const (
	seedRetries = `SELECT
  name,
  current_state,
  retry_eligible,
  next_retry_at,
  attempts,
  backoff_request_seconds
FROM get_step_readiness_status(task_id)
WHERE current_state = 'error'`
	seedFailures = `SELECT
  name,
  COUNT(*) as failure_count,
  AVG(attempts) as avg_attempts,
  MAX(backoff_request_seconds) as max_backoff
FROM get_step_readiness_status(task_id)
WHERE current_state = 'error'
GROUP BY name`
)

// surfaceNames are the objects a reader is promised.
var (
	surfaceFunctions = []string{
		"get_step_readiness_status", "get_step_readiness_status_batch", "get_task_execution_context",
		"get_task_execution_contexts_batch", "calculate_dependency_levels",
	}
	surfaceViews = []string{"step_attempts_v", "history_v", "system_health_counts", "slowest_steps"}
)

// asReader runs f on a connection that has the reader's rights only.
func (w *world) asReader(f func(*pgx.Conn)) {
	w.Helper()
	conn := w.db.Conn(w.T)
	if _, err := conn.Exec(w.Context(), "set role tasker_reader"); err != nil {
		w.Fatal(err)
	}
	f(conn)
}

func TestSeedQueriesRunVerbatimForAReader(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(), step(1, 2))
	after := 17 * time.Second
	w.report(w.run(id.Step(1)), task.RetryableFailure, func(r *task.Report) {
		r.Hint = task.Hint{Source: task.FromRetryAfter, After: &after}
	})
	w.succeed(id.Step(2))
	scopes := map[string]string{
		"a LATERAL column":          "select seed.* from (values (%[1]d::bigint)) as task (task_id) cross join lateral (%[2]s) as seed",
		"a psql variable":           "%[3]s",
		"a quoted psql variable":    "%[4]s",
		"a column of another table": "select seed.* from task_end right join (select task_id from step group by 1) task using (task_id) cross join lateral (%[2]s) as seed",
	}
	for name, scope := range scopes {
		t.Run(name, func(t *testing.T) {
			ask := func(seed string) string {
				unquoted := strings.Replace(seed, "(task_id)", fmt.Sprintf("(%d)", id), 1)
				quoted := strings.Replace(seed, "(task_id)", fmt.Sprintf("('%d')", id), 1)
				return strings.NewReplacer("%[1]d", id.String(), "%[2]s", seed, "%[3]s", unquoted, "%[4]s", quoted).Replace(scope)
			}
			run := func(conn querier) {
				var (
					step, state string
					eligible    bool
					nextAt      time.Time
					attempts    int
					seconds     float64
				)
				err := conn.QueryRow(t.Context(), ask(seedRetries)).Scan(&step, &state, &eligible, &nextAt, &attempts, &seconds)
				w.ok(err)
				equal(w, "row", fmt.Sprint(step, state, attempts, seconds), "s1error1 17")
				equal(w, "next_retry_at", nextAt.UTC(), w.now.Add(after))
				var (
					failures int
					average  float64
				)
				w.ok(conn.QueryRow(t.Context(), ask(seedFailures)).Scan(&step, &failures, &average, &seconds))
				equal(w, "row", fmt.Sprint(step, failures, average, seconds), "s11 1 17")
			}
			if strings.Contains(scope, "task_end") {
				run(w.db.Pool) // names a table: not a reader's query
				return
			}
			w.asReader(func(conn *pgx.Conn) { run(conn) })
		})
	}
}

func TestReaderHasTheSurfaceAndNoTable(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	rows, err := w.db.Pool.Query(t.Context(), `select relname from pg_class
		where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') order by 1`)
	w.ok(err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	w.ok(err)
	if len(tables) < 20 {
		t.Fatalf("only %d tables", len(tables))
	}
	w.asReader(func(conn *pgx.Conn) {
		for _, table := range tables {
			_, err := conn.Exec(t.Context(), "select 1 from "+table+" limit 1")
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != pgerrcode.InsufficientPrivilege {
				t.Errorf("table %s: got %v, want 42501", table, err)
			}
		}
		for _, query := range []string{
			fmt.Sprintf("select * from get_step_readiness_status(%d)", id),
			fmt.Sprintf("select * from get_step_readiness_status(%d, array[%d])", id, id.Step(1)),
			fmt.Sprintf("select * from get_step_readiness_status(task_id => %d, step_ids => '{%d}')", id, id.Step(1)),
			fmt.Sprintf("select * from get_step_readiness_status_batch(array[%d])", id),
			fmt.Sprintf("select * from get_task_execution_context(%d)", id),
			fmt.Sprintf("select * from get_task_execution_contexts_batch('{%d}')", id),
			fmt.Sprintf("select * from calculate_dependency_levels(%d)", id),
			"select * from step_attempts_v", "select * from history_v", "select * from system_health_counts", "select * from slowest_steps",
		} {
			if _, err := conn.Exec(t.Context(), query); err != nil {
				t.Errorf("%s: %v", query, err)
			}
		}
		for _, forbidden := range []string{
			"select drop_task_partition(0, now())", "select ensure_task_partitions(0, 1)", "select roll_task_numbers(0, '1 day')",
			"select drop_history_partition('2020-01-01')", "select step_readiness_at('{}', null, now())", "create table planted (x int)",
			"select nextval('ready_seq')",
		} {
			_, err := conn.Exec(t.Context(), forbidden)
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != pgerrcode.InsufficientPrivilege {
				t.Errorf("%s: got %v, want 42501", forbidden, err)
			}
		}
		// A table of the caller's own must not be read with the owner's rights.
		if _, err := conn.Exec(t.Context(), "create temp table step (task_id bigint); create temp table task (task_id bigint)"); err == nil {
			var total int
			w.ok(conn.QueryRow(t.Context(), "select total_steps from get_task_execution_context($1)", id).Scan(&total))
			equal(w, "total_steps", total, 1)
		}
	})
}

func TestSurfaceFunctionsAreOneStableSelectWithAPinnedPath(t *testing.T) {
	w := newWorld(t)
	type function struct {
		Name, Owner, Language, Volatility string
		Definer, Public                   bool
		Settings                          []string
		Comment                           *string
	}
	rows, err := w.db.Pool.Query(t.Context(), `
		select proname, proowner::regrole::text, lanname, provolatile::text, prosecdef,
		  has_function_privilege('public', p.oid, 'execute'), proconfig, obj_description(p.oid, 'pg_proc')
		from pg_proc p join pg_language on pg_language.oid = prolang
		where proname = any ($1) order by 1`, surfaceFunctions)
	w.ok(err)
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[function])
	w.ok(err)
	equal(w, "functions", len(found), len(surfaceFunctions))
	for _, f := range found {
		if f.Owner != "tasker_owner" || f.Language != "sql" || f.Volatility != "s" || !f.Definer || f.Public || f.Comment == nil ||
			!slices.Contains(f.Settings, "search_path=public, pg_temp") {
			t.Errorf("%+v", f)
		}
	}
}

func TestEveryColumnOfTheSurfaceIsDocumented(t *testing.T) {
	w := newWorld(t)
	types := append([]string{"step_readiness", "task_execution", "step_dependency_level"}, surfaceViews...)
	rows, err := w.db.Pool.Query(t.Context(), `
		select c.relname || '.' || a.attname
		from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
		where c.relname = any ($1) and col_description(c.oid, a.attnum) is null`, types)
	w.ok(err)
	bare, err := pgx.CollectRows(rows, pgx.RowTo[string])
	w.ok(err)
	if len(bare) > 0 {
		t.Errorf("without a comment: %v", bare)
	}
	// The function's own comment names each of its columns too.
	for function, columns := range map[string]string{"get_step_readiness_status": "step_readiness", "get_task_execution_context": "task_execution"} {
		missing := value[*string](w, `select string_agg(a.attname, ', ') from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
			where c.relname = $1 and position(a.attname in (select obj_description(oid, 'pg_proc') from pg_proc where proname = $2)) = 0`, columns, function)
		if missing != nil {
			t.Errorf("%s does not tell of %s", function, *missing)
		}
	}
	equal(w, "objects without a comment", value[int](w, "select count(*) from pg_class where relname = any ($1) and obj_description(oid, 'pg_class') is null", surfaceViews), 0)
}

func TestReadinessColumnsAreThePromisedOnes(t *testing.T) {
	w := newWorld(t)
	names := func(object string) string {
		return value[string](w, "select string_agg(attname, ', ' order by attnum) from pg_attribute where attrelid = $1::text::regclass and attnum > 0", object)
	}
	equal(w, "get_step_readiness_status", names("step_readiness"), "workflow_step_id, task_id, name, current_state, "+
		"dependencies_satisfied, retry_eligible, ready_for_execution, last_failure_at, next_retry_at, total_parents, completed_parents, "+
		"attempts, retry_limit, backoff_request_seconds, last_attempted_at, dispatches, lost_leases, error_code, circuit, blocked_by, "+
		"last_started_at, epoch, waiting_for, waiting_until")
	equal(w, "get_task_execution_context", names("task_execution"), "task_id, status, total_steps, pending_steps, in_progress_steps, "+
		"completed_steps, failed_steps, ready_steps, waiting_for_retry_steps, cancelled_steps, execution_status, recommended_action, "+
		"completion_percentage, health_status")
}

// querier is a connection or a pool.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// ---------------------------------------------------------------- the readiness rule, row by row

func TestNextRetryFollowsTheSeedsTableAndIsEligibleOnlyThen(t *testing.T) {
	w := newWorld(t)
	s := step()
	s.RetryLimit = 8
	id := w.submit(s)
	for n, want := range []float64{2, 4, 8, 16, 30, 30, 30} {
		w.fail(id.Step(1), task.RetryableFailure)
		failedAt := w.now
		v := w.step(id.Step(1))
		equal(w, "attempts", v.Attempts, n+1)
		equal(w, "delay", v.NextRetryAt.Sub(failedAt).Seconds(), want)
		equal(w, "state", v.State, task.StepError)
		w.now = v.NextRetryAt.Add(-time.Microsecond)
		equal(w, "a microsecond early", w.step(id.Step(1)).RetryEligible, false)
		equal(w, "granted early", len(w.claim(1)), 0)
		w.now = *v.NextRetryAt
		v = w.step(id.Step(1))
		equal(w, "eligible in time", v.RetryEligible && v.ReadyForExecution, true)
		w.sound(id)
	}
}

func TestJitterIsAddedOnTopAndStored(t *testing.T) {
	w := newWorld(t)
	s := step()
	s.RetryLimit, s.Jitter = 1000, nil
	id := w.submit(s)
	seen := map[time.Duration]bool{}
	for range 20 {
		w.fail(id.Step(1), task.RetryableFailure)
		v := w.step(id.Step(1))
		delay := v.NextRetryAt.Sub(w.now)
		base := min(30*time.Second, time.Duration(math.Pow(2, float64(v.Attempts)))*time.Second)
		if delay < base || delay > base+base/10 {
			t.Errorf("attempt %d: delay %v is outside [%v, %v]", v.Attempts, delay, base, base+base/10)
		}
		seen[delay-base] = true
		equal(w, "next_retry_at asked for again", *w.step(id.Step(1)).NextRetryAt, *v.NextRetryAt)
		w.now = *v.NextRetryAt
	}
	if len(seen) < 10 {
		t.Errorf("only %d different jitters", len(seen))
	}
}

func TestExplicitBackoffReplacesAndIsOverwrittenAndCleared(t *testing.T) {
	w := newWorld(t)
	s := step()
	s.RetryLimit = 6
	id := w.submit(s)
	hint := func(d time.Duration) func(*task.Report) {
		return func(r *task.Report) { r.Hint = task.Hint{Source: task.FromRetryAfter, After: &d} }
	}
	fail := func(with ...func(*task.Report)) view {
		w.report(w.run(id.Step(1)), task.RetryableFailure, with...)
		return w.step(id.Step(1))
	}
	v := fail(hint(120 * time.Second)) // longer than the backoff
	equal(w, "delay", v.NextRetryAt.Sub(w.now), 120*time.Second)
	equal(w, "backoff_request", *v.BackoffRequest, 120*time.Second)
	w.now = *v.NextRetryAt
	v = fail(hint(time.Second)) // shorter: 4 s would be the backoff
	equal(w, "delay", v.NextRetryAt.Sub(w.now), time.Second)
	w.now = *v.NextRetryAt
	v = fail(hint(0)) // now
	equal(w, "delay", v.NextRetryAt.Sub(w.now), 0)
	equal(w, "ready", v.ReadyForExecution, true)
	v = fail() // absent: overwritten by NULL
	if v.BackoffRequest != nil {
		t.Errorf("backoff_request stays %v", *v.BackoffRequest)
	}
	equal(w, "delay", v.NextRetryAt.Sub(w.now), 16*time.Second)
	w.now = *v.NextRetryAt
	v = fail(hint(5 * time.Second))
	w.now = *v.NextRetryAt
	g := w.run(id.Step(1))
	running := w.step(id.Step(1))
	equal(w, "state", running.State, task.StepInProgress)
	if running.NextRetryAt != nil || running.LastFailure == nil || running.BackoffRequest == nil {
		t.Errorf("in progress, next_retry_at is NULL and the last failure's columns stay: %+v", running)
	}
	w.report(g, task.Success)
	v = w.step(id.Step(1))
	if v.BackoffRequest != nil || v.NextRetryAt != nil || v.ErrorCode != "" {
		t.Errorf("a success clears the delay, got %+v", v)
	}
}

func TestAnchorIsTheReportsOwnInstant(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	g := w.run(id.Step(1))
	started := w.now
	w.pass(20 * time.Second)
	after := 10 * time.Second
	w.report(g, task.RetryableFailure, func(r *task.Report) { r.Hint = task.Hint{Source: task.FromRetryAfter, After: &after} })
	v := w.step(id.Step(1))
	equal(w, "next_retry_at", v.NextRetryAt.UTC(), started.Add(30*time.Second))
	equal(w, "last_attempted_at", v.LastAttemptedAt.UTC(), w.now)
	equal(w, "last_started_at", v.LastStartedAt.UTC(), started)
	equal(w, "last_attempted_at + backoff_request_seconds = next_retry_at, in the seed's own words", value[bool](w, `
		select last_attempted_at + (backoff_request_seconds * interval '1 second') = next_retry_at
		from get_step_readiness_status($1)`, id), true)
}

func TestPermanentNotRetryableAndExhaustedAreNeverEligible(t *testing.T) {
	notRetryable := step()
	notRetryable.Retryable = false
	once := step()
	once.RetryLimit = 1
	listed := step()
	listed.NonRetryable = []string{"BROKEN"}
	for name, c := range map[string]struct {
		step    task.StepSpec
		outcome task.Outcome
		reason  string
	}{
		"permanent":           {step(), task.PermanentFailure, "permanent"},
		"retryable: false":    {notRetryable, task.RetryableFailure, "permanent"},
		"exhausted":           {once, task.RetryableFailure, "exhausted"},
		"non_retryable_codes": {listed, task.RetryableFailure, "permanent"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.submit(c.step, step(1))
			equal(w, "the first run happens", w.step(id.Step(1)).ReadyForExecution, true)
			w.fail(id.Step(1), c.outcome)
			w.pass(10 * 365 * 24 * time.Hour)
			v := w.step(id.Step(1))
			equal(w, "state", v.State, task.StepError)
			equal(w, "retry_eligible", v.RetryEligible, false)
			equal(w, "ready", v.ReadyForExecution, false)
			equal(w, "reason", v.ParkedReason, c.reason)
			if v.NextRetryAt != nil {
				t.Errorf("next_retry_at is %v", v.NextRetryAt)
			}
			equal(w, "granted", len(w.claim(10)), 0)
			x := w.task(id).Execution
			equal(w, "never waiting … healthy", fmt.Sprint(x.ExecutionStatus, x.RecommendedAction, x.HealthStatus), "blocked_by_failures"+"handle_failures"+"blocked")
			w.sound(id)
		})
	}
}

func TestIndependentBranchesDrainBeforeATaskIsInError(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(), step(2), step(1))
	w.fail(id.Step(1), task.PermanentFailure)
	v := w.task(id)
	equal(w, "state", v.State, task.InProgress)
	equal(w, "health", v.Execution.HealthStatus, "recovering")
	w.succeed(id.Step(2))
	equal(w, "state", w.task(id).State, task.InProgress)
	w.succeed(id.Step(3))
	v = w.task(id)
	equal(w, "state", v.State, task.Errored)
	equal(w, "blocked step", w.step(id.Step(4)).State, task.StepPending)
	w.sound(id)
}

func TestBlockedByNamesTheFailedAncestorHoweverFar(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(1), step(2), step(), step(3, 4))
	equal(w, "blocked", fmt.Sprint(w.step(id.Step(5)).BlockedBy), "[s3 s4]")
	w.fail(id.Step(1), task.PermanentFailure)
	equal(w, "child", fmt.Sprint(w.step(id.Step(2)).BlockedBy), "[s1]")
	equal(w, "grandchild", fmt.Sprint(w.step(id.Step(3)).BlockedBy), "[s1 s2]")
	equal(w, "join", fmt.Sprint(w.step(id.Step(5)).BlockedBy), "[s1 s3 s4]")
	equal(w, "itself", len(w.step(id.Step(1)).BlockedBy), 0)
	equal(w, "other", len(w.step(id.Step(4)).BlockedBy), 0)
}

func TestStepIDsFilterChangesRowsNeverValues(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step(), step(1, 2), step(3))
	w.fail(id.Step(1), task.PermanentFailure)
	w.succeed(id.Step(2))
	whole := value[string](w, "select json_agg(r order by workflow_step_id)::text from get_step_readiness_status($1) r", id)
	single := value[string](w, `select json_agg(one order by one.workflow_step_id)::text
		from generate_series(1, 4) n cross join lateral get_step_readiness_status($1::bigint, array[$1::bigint + n]) one`, int64(id))
	equal(w, "one by one", single, whole)
	batch := value[string](w, "select json_agg(r order by workflow_step_id)::text from get_step_readiness_status_batch(array[$1::bigint, $1::bigint]) r", id)
	equal(w, "by batch", batch, whole)
	equal(w, "foreign ids", value[int](w, "select count(*) from get_step_readiness_status($1, '{1, 2, 3}')", id), 0)
	equal(w, "no ids", value[int](w, "select count(*) from get_step_readiness_status($1, '{}')", id), 0)
	equal(w, "unknown task", value[int](w, "select count(*) from get_step_readiness_status(1)"), 0)
	equal(w, "unknown task's context", value[int](w, "select count(*) from get_task_execution_context(1)"), 0)
}

func TestReadinessIsTheSameInEveryTimeZone(t *testing.T) {
	w := newWorld(t)
	w.s.At = nil
	id := w.submit(step(), step(1))
	w.fail(id.Step(1), task.RetryableFailure)
	var first string
	for _, zone := range []string{"UTC", "Asia/Tokyo", "America/New_York", "Australia/Lord_Howe"} {
		conn := w.db.Conn(t)
		_, err := conn.Exec(t.Context(), "set timezone = '"+zone+"'")
		w.ok(err)
		var got string
		w.ok(conn.QueryRow(t.Context(), `select string_agg(concat_ws('|', name, retry_eligible, ready_for_execution,
			extract(epoch from next_retry_at), extract(epoch from last_failure_at)), ';' order by name)
			from steps_of_task_at($1, null, now() - interval '1 minute')`, id).Scan(&got))
		if first == "" {
			first = got
		}
		equal(w, zone, got, first)
	}
}

func TestBackoffDelayIsClampedAtEveryFailureCountAndTimeZone(t *testing.T) {
	w := newWorld(t)
	for _, zone := range []string{"UTC", "Asia/Tokyo", "America/New_York"} {
		conn := w.db.Conn(t)
		_, err := conn.Exec(t.Context(), "set timezone = '"+zone+"'")
		w.ok(err)
		var wrong *string
		w.ok(conn.QueryRow(t.Context(), `
			select string_agg(n || ': ' || backoff_delay(n::int, null, null, null), ', ')
			from (select generate_series(0, 100) union select least(2::bigint ^ generate_series(0, 31), 2147483647)::bigint) as counts (n)
			where backoff_delay(n::int, null, null, null) is distinct from
				case when n = 0 then interval '0' else make_interval(secs => least(2.0 ^ least(n, 10), 30)::float8) end`).Scan(&wrong))
		if wrong != nil {
			t.Errorf("%s: %s", zone, *wrong)
		}
		// No instant plus a delay depends on the zone's daylight saving: the result is in seconds.
		var days int
		w.ok(conn.QueryRow(t.Context(), `select extract(day from backoff_delay(2147483647, '1 day', 10, '300 days'))::int`).Scan(&days))
		equal(w, "days field", days, 0)
	}
	// The seed's own expression overflows; one such row would fail the whole readiness query.
	_, err := w.db.Pool.Exec(t.Context(), "select least(power(2, 44) * interval '1 second', interval '30 seconds')")
	if err == nil {
		t.Log("this PostgreSQL takes the seed's expression at 44 attempts")
	}
	s := step()
	s.RetryLimit = 1000
	id := w.submit(s)
	_, err = w.db.Pool.Exec(t.Context(), "update ready set failures = 5000, attempts = 500")
	w.ok(err)
	w.fail(id.Step(1), task.RetryableFailure)
	equal(w, "delay", w.step(id.Step(1)).NextRetryAt.Sub(w.now), 30*time.Second)
}

// ---------------------------------------------------------------- the task

func TestExecutionContextBucketsAndStatuses(t *testing.T) {
	w := newWorld(t)
	expect := func(id task.ID, state task.State, buckets, words string) {
		t.Helper()
		v := w.task(id)
		x := v.Execution
		equal(w, "state", v.State, state)
		equal(w, "buckets", fmt.Sprint(x.Pending, x.Ready, x.InProgress, x.WaitingForRetry, x.Failed, x.Completed, x.Cancelled), buckets)
		equal(w, "words", strings.Join([]string{x.ExecutionStatus, x.RecommendedAction, x.HealthStatus}, " "), words)
		// The reader's function at this clock's instant says the same.
		equal(w, "status in SQL", value[string](w, "select status from task_state_at($1, $2)", id, w.now), string(state))
		w.sound(id)
	}
	later := w.now.Add(time.Hour)
	deferred := w.submitAs(task.Submission{NotBefore: &later}, step(), step(1))
	expect(deferred, task.Pending, "2 0 0 0 0 0 0", "waiting_for_dependencies wait_for_dependencies healthy")

	id := w.submit(step(), step(1), step(1))
	expect(id, task.Pending, "2 1 0 0 0 0 0", "has_ready_steps execute_ready_steps healthy")
	g := w.run(id.Step(1))
	expect(id, task.Pending, "2 0 1 0 0 0 0", "processing wait_for_completion healthy")
	_, err := w.s.Heartbeat(t.Context(), w.ns, []store.Beat{{Token: g.Step.Token}})
	w.ok(err)
	expect(id, task.InProgress, "2 0 1 0 0 0 0", "processing wait_for_completion healthy")
	w.report(g, task.RetryableFailure)
	expect(id, task.InProgress, "2 0 0 1 0 0 0", "waiting_for_retry wait_for_retry recovering")
	w.pass(2 * time.Second)
	expect(id, task.InProgress, "2 1 0 0 0 0 0", "has_ready_steps execute_ready_steps healthy")
	w.succeed(id.Step(1))
	expect(id, task.InProgress, "0 2 0 0 0 1 0", "has_ready_steps execute_ready_steps healthy")
	w.fail(id.Step(2), task.PermanentFailure)
	expect(id, task.InProgress, "0 0 1 0 1 1 0", "processing wait_for_completion recovering")
	w.succeed(id.Step(3))
	expect(id, task.Errored, "0 0 0 0 1 2 0", "blocked_by_failures handle_failures blocked")
	_, _, err = w.s.ResolveStep(t.Context(), id.Step(2), act)
	w.ok(err)
	expect(id, task.Complete, "0 0 0 0 0 3 0", "all_complete finalize_task healthy")
	equal(w, "percentage", w.task(id).Execution.CompletionPercentage, 100)

	cancelled := w.submit(step(), step(1), step(2))
	w.succeed(cancelled.Step(1))
	_, _, err = w.s.CancelTask(t.Context(), cancelled, act)
	w.ok(err)
	expect(cancelled, task.Cancelled, "0 0 0 0 0 1 2", "cancelled none unknown")
	equal(w, "percentage", w.task(cancelled).Execution.CompletionPercentage, 33.33)
}

func TestDependencyLevels(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(3), step(), step(2), step(2, 1), step(2))
	equal(w, "levels", value[string](w, "select string_agg(workflow_step_id - $1 || ':' || dependency_level, ' ') from calculate_dependency_levels($1)", int64(id)),
		"2:0 3:1 5:1 1:2 4:3")
	// Short cuts along a chain: walking every path would take for ever.
	const n = 2000
	steps := make([]task.StepSpec, n)
	for i := range steps {
		steps[i] = step()
		for k := 1; k <= 5 && i-k >= 0; k++ {
			steps[i].Parents = append([]int{i - k + 1}, steps[i].Parents...)
		}
	}
	chain := w.submit(steps...)
	equal(w, "deepest", value[int](w, "select max(dependency_level) from calculate_dependency_levels($1)", chain), n-1)
	equal(w, "steps", value[int](w, "select count(*) from calculate_dependency_levels($1)", chain), n)
}

func TestAttemptsSayWhoWhenOutcomeErrorDelayAndWhy(t *testing.T) {
	w := newWorld(t)
	s := step()
	s.RetryLimit = 4
	id := w.submit(s)
	after := 100 * 24 * time.Hour
	w.report(w.run(id.Step(1)), task.RetryableFailure, func(r *task.Report) { r.Failure.HTTPStatus = 503 })
	w.pass(2 * time.Second)
	w.report(w.run(id.Step(1)), task.RetryableFailure, func(r *task.Report) {
		r.Hint = task.Hint{Source: task.FromHeaderSeconds, After: &after}
	})
	w.pass(24 * time.Hour)
	g := w.run(id.Step(1))
	attempts, err := w.s.Attempts(t.Context(), id.Step(1), 0, 10)
	w.ok(err)
	equal(w, "attempts", len(attempts), 3)
	equal(w, "running", attempts[0].Outcome, "")
	equal(w, "worker", attempts[0].WorkerID, "worker")
	equal(w, "source", attempts[1].DelaySource, task.FromHeaderSeconds)
	equal(w, "clamped", attempts[1].DelayClamped, true)
	equal(w, "delay", *attempts[1].Delay, 24*time.Hour)
	equal(w, "first", attempts[2].DelaySource, task.FromBackoff)
	equal(w, "status", attempts[2].Failure.HTTPStatus, 503)
	equal(w, "ended_at + delay = next_retry_at", attempts[1].EndedAt.Add(*attempts[1].Delay), *attempts[1].NextRetryAt)
	w.report(g, task.Success)
	attempts, err = w.s.Attempts(t.Context(), id.Step(1), 3, 1)
	w.ok(err)
	equal(w, "page", len(attempts), 1)
	equal(w, "page", attempts[0].Dispatch, 2)
	equal(w, "outcomes", value[string](w, "select string_agg(outcome || ' ' || attempt || ' ' || worker_id, ', ' order by dispatch) from step_attempts_v where task_id = $1", id),
		"retryable_failure 1 worker, retryable_failure 2 worker, success 3 worker")
}

func TestAttemptsShowALateReportedLeaseOnce(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	g := w.run(id.Step(1))
	_, err := w.s.Heartbeat(t.Context(), w.ns, []store.Beat{{Token: g.Step.Token}})
	w.ok(err)
	w.pass(time.Minute)
	leases, err := w.s.ExpiredLeases(t.Context(), 10)
	w.ok(err)
	_, _, err = w.s.Expire(t.Context(), w.ns, leases)
	w.ok(err)
	equal(w, "lost", w.step(id.Step(1)).LostLeases, 1)
	equal(w, "a lost lease changes nothing", w.step(id.Step(1)).State, task.StepPending)
	answer, _, err := w.s.ReportLate(t.Context(), &task.Report{Token: g.Step.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}})
	w.ok(err)
	if answer.Reported == nil {
		t.Fatalf("got %+v", answer)
	}
	attempts, err := w.s.Attempts(t.Context(), id.Step(1), 0, 10)
	w.ok(err)
	equal(w, "attempts", len(attempts), 1)
	equal(w, "outcome", attempts[0].Outcome, task.Success)
}

func TestSystemHealthCountsAndSlowestSteps(t *testing.T) {
	w := newWorld(t)
	w.s.At = nil
	id := w.submit(step(), step(), step())
	w.succeed(id.Step(1))
	w.fail(id.Step(2), task.PermanentFailure)
	w.submit(step())
	equal(w, "counts", value[string](w, `select concat_ws(' ', total_tasks, unfinished_tasks, ready_steps, in_progress_steps, failed_steps,
		permanent_steps, waiting_for_retry_steps, connected_workers) from system_health_counts`), "2 2 1 1 1 1 0 1")
	equal(w, "slowest", value[string](w, "select string_agg(name || ' ' || task_name || ' ' || namespace, ',') from slowest_steps"), "s1 task default")
}

func TestHistoryUnfolds(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step(), step())
	w.succeed(id.Step(1))
	w.succeed(id.Step(2))
	equal(w, "events of a step", value[string](w, `select string_agg(kind || ' ' || event_no, ', ' order by event_no)
		from history_v where task_id = $1 and step_no = 1`, id), "dispatched 1, concluded 2")
	equal(w, "of the task", value[string](w, `select string_agg(kind || coalesce(' ' || state, ''), ', ' order by history_id)
		from history_v where task_id = $1 and step_no is null`, id), "submitted, task_ended complete")
}

func TestPrunesToOnePartitionByID(t *testing.T) {
	w := newWorld(t)
	w.ok(w.db.Pool.QueryRow(t.Context(), "select ensure_task_partitions(0, 8)").Scan(new(int)))
	id := w.submit(step())
	for _, sql := range []string{
		"select * from steps_of_task_at(%d, null, now())", "select * from task_state_at(%d, now())",
		"select * from step_attempts_v where task_id = %d",
	} {
		rows, err := w.db.Pool.Query(t.Context(), "explain (analyze, timing off, summary off, costs off) "+fmt.Sprintf(sql, id))
		w.ok(err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		w.ok(err)
		for i, line := range lines {
			if (strings.Contains(line, "on step_p") || strings.Contains(line, "on step_end_p") || strings.Contains(line, "on task_p")) &&
				!strings.Contains(line, "_p0") && !strings.Contains(line, "never executed") {
				t.Errorf("%s reads another partition: %s (line %d)", sql, line, i)
			}
		}
	}
}
