package history_test

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

//go:embed testdata/clean.sql
var cleanSQL string

// clean is a database with the faultless record in it.
func clean(t *testing.T) *pgtest.DB {
	t.Helper()
	db := pgtest.New(t)
	if _, err := db.Pool.Exec(t.Context(), cleanSQL); err != nil {
		t.Fatal(err)
	}
	return db
}

func check(t *testing.T, db *pgtest.DB, journals ...string) history.Report {
	t.Helper()
	r, err := history.Check(t.Context(), db.Pool, history.Options{Journals: journals, Sample: -1})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCleanRecordHolds(t *testing.T) {
	got := check(t, clean(t))
	for _, v := range got.Violations {
		t.Error(v)
	}
	want := history.Report{
		Tasks:  7,
		States: map[string]int{"complete": 2, "error": 1, "cancelled": 1, "pending": 1, "in_progress": 2},
		Steps:  16,
		Ended:  map[string]int{"complete": 5, "error": 3, "cancelled": 3, "pending": 3, "in_progress": 1, "resolved_manually": 1},

		Dispatches: 18, Attempts: 13, Failures: 9, Uncounted: 1, LostLeases: 2, Undelivered: 1, Retried: 1, LateAccepted: 1, LateReports: 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// event is the condition that picks one event of one step of the clean record that stands in a record of its own.
func event(step string, eventNo int) string {
	return fmt.Sprintf("task_ids[1] + step_nos[1] = %s and event_nos[1] = %d and cardinality(task_ids) = 1", step, eventNo)
}

// Every way to break a promise is noticed, and by its name.
func TestViolations(t *testing.T) {
	const (
		task1, task2, task3, task4, task6, task7 = "(1 << 14)", "(2 << 14)", "(3 << 14)", "(4 << 14)", "(6 << 14)", "(7 << 14)"
	)
	for _, tt := range []struct{ name, sql, want string }{
		{
			"granted after its end",
			`select ev(17, 'dispatched', ` + task1 + ` + 4, 3, dispatch => 2, session => 1)`,
			"S1: step 16388, dispatch 2: dispatched after the step was complete",
		},
		{
			"granted after the cancel",
			`select ev(37, 'dispatched', ` + task4 + ` + 3, 2, dispatch => 1, session => 1)`,
			"S1: step 65539, dispatch 1: dispatched after the step was cancelled",
		},
		{
			"granted before its parent ended",
			`update history set recorded_at = at(1.5) where kind = 'dispatched' and cardinality(task_ids) = 2`,
			"S2: step 16386, dispatch 1: dispatched 500ms before its parent 16385 ended",
		},
		{
			"granted behind a failed parent",
			`select ev(3, 'dispatched', ` + task2 + ` + 2, 1, session => 1)`,
			"S2: step 32770, dispatch 1: dispatched while its parent 32769 is parked",
		},
		{
			"runnable behind a failed parent",
			`insert into ready (lane_id, task_id, step_no, runnable_at) values (1, ` + task2 + `, 2, at(3))`,
			"S2: step 32770: stands in ready before its parents ended",
		},
		{
			"granted twice at once",
			`select ev(58, 'dispatched', ` + task7 + ` + 2, 7, dispatch => 4, session => 2)`,
			"S3: step 114690, dispatch 4: dispatched while dispatch 3 still held its lease",
		},
		{
			"a dispatch number left out",
			`update history set dispatches = '{4}' where ` + event(task7+"+2", 5) + `; update history set dispatches = '{4}' where ` + event(task7+"+2", 6),
			"S3: step 114690, dispatch 4: follows dispatch 2",
		},
		{
			"confirmed by another session",
			`update history set session_ids = '{2}' where ` + event(task7+"+2", 6),
			"S3: step 114690, dispatch 3: confirmed while the step is lease with dispatch 3 of session 1",
		},
		{
			"timed out without a lease",
			`select ev(16, 'concluded', ` + task1 + ` + 4, 3, session => 1, outcome => 'timed_out', attempts => 2, failures => 1, lost => 0, state => 'parked')`,
			"S3: step 16388, dispatch 1: concluded as timed_out while the step was complete",
		},
		{
			"a result under an old lease",
			`update history set dispatches = '{1}' where ` + event(task1+"+2", 8),
			"S4: step 16386, dispatch 1: a success was accepted while the step was lease with dispatch 3 of session 2",
		},
		{
			"two results of one dispatch",
			`select ev(16.5, 'concluded', ` + task1 + ` + 4, 3, session => 1, outcome => 'success', attempts => 2, failures => 0, lost => 0)`,
			"S4: step 16388, dispatch 1: a success was accepted while the step was complete",
		},
		{
			"a result after the run timeout",
			`update history set kind = 'concluded', outcome = 'success', event_nos = '{7}', epochs = '{1}', attempts = '{3}', failures = '{2}', lost_leases = '{0}'
			 where kind = 'late';
			 update history set event_nos[1] = event_nos[1] + 1 where ` + event(task1+"+2", 7) + ` and kind = 'dispatched'`,
			"S4: step 16386, dispatch 2: a success was accepted while the step was backoff with dispatch 2 of session 2",
		},
		{
			"a late report accepted after the reset",
			`select ev(82, 'retried', ` + task7 + ` + 1, 4, epoch => 2, attempts => 0, failures => 0, lost => 0, state => 'ready');
			 select ev(83, 'concluded', ` + task7 + ` + 1, 5, session => 2, epoch => 2, outcome => 'success', attempts => 1, failures => 0, lost => 0)`,
			"S4: step 114689, dispatch 1: a success was accepted while the step was ready with dispatch 1 of session 2",
		},
		{
			"resolved although it is complete",
			`select ev(17, 'resolved', ` + task1 + ` + 4, 3, attempts => 1, failures => 0, lost => 0, state => 'resolved_manually')`,
			"S4: step 16388, dispatch 1: resolved by hand while it is complete",
		},
		{
			"taken for late although accepted",
			`update history set dispatches = '{1}' where kind = 'late'; update late_report set dispatch = 1`,
			"S4: step 16386, dispatch 1: a report was taken for late although the dispatch was concluded by one",
		},
		{
			"more attempts than allowed",
			`update step set retry_limit = 2 where task_id = ` + task1 + ` and step_no = 2`,
			"S5: step 16386, dispatch 3: 3 attempts of 2",
		},
		{
			"retried although exhausted",
			`update step set retry_limit = 2 where task_id = ` + task1 + ` and step_no = 2`,
			"S5: step 16386, dispatch 2: goes to backoff after its last failure (exhausted)",
		},
		{
			"more lost leases than allowed",
			`update history set states = '{ready}' where ` + event(task7+"+1", 3),
			"S5: step 114689, dispatch 1: goes to ready with 1 lost leases of 1",
		},
		{
			"an unconfirmed dispatch counted as lost",
			`delete from history where ` + event(task7+"+1", 2) + `; update history set event_nos = '{2}' where ` + event(task7+"+1", 3),
			"S5: step 114689, dispatch 1: a dispatch that was never confirmed counts as a lost lease",
		},
		{
			"granted too early",
			`update history set recorded_at = at(7.149999) where ` + event(task1+"+2", 4),
			"S6: step 16386, dispatch 2: dispatched 1µs before it was due",
		},
		{
			"granted before not_before",
			`select ev(3599.5, 'dispatched', (5 << 14) + 1, 1, session => 1)`,
			"S6: step 81921, dispatch 1: dispatched 500ms before it was due",
		},
		{
			"a delay a little too short",
			`update history set base_delays = array[interval '3.999998 s'], next_retry_ats = array[at(13.399998)] where ` + event(task1+"+2", 6),
			"S6: step 16386, dispatch 2: the delay after failure 2 is 3.999998s, the policy says 4s",
		},
		{
			"a delay beyond its own maximum",
			`update history set base_delays = array[interval '4.5 s'], next_retry_ats = array[at(58.5)] where ` + event(task7+"+2", 4),
			"S6: step 114690, dispatch 2: the delay after failure 2 is 4.5s, the policy says 1.5s",
		},
		{
			"too much jitter",
			`update history set jitters = array[interval '0.200002 s'], next_retry_ats = array[at(7.200002)] where ` + event(task1+"+2", 3),
			"S6: step 16386, dispatch 1: the jitter is 200.002ms of a delay of 2s",
		},
		{
			"jitter on a delay that was asked for",
			`update history set jitters = array[interval '1 ms'], next_retry_ats = array[at(22.001)] where ` + event(task3+"+1", 2),
			"S6: step 49153, dispatch 1: a delay that was asked for got a jitter of 1ms",
		},
		{
			"a delay asked for beyond the clamp",
			`update step set max_retry_after = interval '999 ms' where task_id = ` + task3,
			"S6: step 49153, dispatch 1: the delay asked for is 1s after clamping, outside of 0 to 999ms",
		},
		{
			"a delay that starts elsewhere",
			`update history set next_retry_ats = array[at(22.000001)] where ` + event(task3+"+1", 2),
			"S6: step 49153, dispatch 1: the delay starts 1µs after the failure was recorded",
		},
		{
			"a delay that starts too early",
			`update history set next_retry_ats = array[at(21.999999)] where ` + event(task3+"+1", 2),
			"its delays start at 2026-03-01T00:00:20.999999Z, it was made at 2026-03-01T00:00:21Z",
		},
		{
			"a delay without a source",
			`update history set delay_sources = null where ` + event(task1+"+2", 3),
			`S6: step 16386, dispatch 1: a delay of 2s comes from nowhere (source "")`,
		},
		{
			"a task that is gone",
			`delete from step_end where task_id = ` + task3 + `; delete from step where task_id = ` + task3 + `; delete from step_failure where task_id = ` +
				task3 + `; delete from task_end where task_id = ` + task3 + `; delete from task where task_id = ` + task3,
			"S7: task 49152: was submitted and is gone",
		},
		{
			"a task submitted twice",
			`select task_ev(1, 'submitted', ` + task3 + `, steps => 1)`,
			"S7: task 49152: submitted 2 times",
		},
		{
			"more leases than a session may hold",
			`update worker_session set max_in_flight = 1 where worker_id = 'w1'`,
			"S10: session 1 held 2 confirmed leases at 2026-03-01T00:00:04Z, its max_in_flight is 1",
		},
		{
			"granted after a permanent failure",
			`select ev(3, 'dispatched', ` + task2 + ` + 1, 3, dispatch => 2, session => 1)`,
			"S12: step 32769, dispatch 2: dispatched after a permanent failure",
		},
		{
			"retried after a permanent failure",
			`update history set states = '{backoff}', delay_sources = '{backoff}', base_delays = '{2 s}', jitters = '{0}', next_retry_ats = array[at(4)] where ` +
				event(task2+"+1", 2),
			"S12: step 32769, dispatch 1: goes to backoff after its last failure (permanent)",
		},
		{
			"retried with a code that is final",
			`update history set error_codes = '{CARD_DECLINED}' where ` + event(task7+"+2", 4),
			"S12: step 114690, dispatch 2: goes to backoff after its last failure (permanent)",
		},
		{
			"an end that its steps do not make",
			`update task_end set state = 'complete' where task_id = ` + task2 + `; update history set states = '{complete}' where kind = 'task_ended' and task_ids[1] = ` + task2,
			`S13: task 32768: its steps make it error, its recorded end is "complete"`,
		},
		{
			"complete without a record of it",
			`delete from task_end where task_id = ` + task3 + `; delete from history where kind = 'task_ended' and states = '{complete}' and task_ids[1] = ` + task3,
			`S13: task 49152: its steps make it complete, its recorded end is ""`,
		},
		{
			"ended twice",
			`select task_ev(17, 'task_ended', ` + task1 + `, 'complete')`,
			"S13: task 16384: completed 2 times",
		},
		{
			"a readiness that no stream would grant",
			`create or replace function get_step_readiness_status_batch(task_ids bigint[]) returns setof step_readiness language sql stable
			 as $$ select * from step_readiness_at(task_ids, null, timestamptz '2000-01-01') $$`,
			"S13: step 81921: is pending and ready: true; it shows as pending and ready: false",
		},
		{
			"an event left out",
			`delete from history where ` + event(task1+"+2", 5),
			"S14: step 16386, dispatch 2: event 6 (concluded) follows event 4",
		},
		{
			"counters that nothing explains",
			`update history set attempts = '{3}' where ` + event(task1+"+2", 6),
			"S14: step 16386, dispatch 2: concluded timed_out leaves 3 attempts, 2 failures, 0 lost leases; replayed: 2, 2, 0",
		},
		{
			"given up without a reason",
			`update step set retryable = true where task_id = ` + task6 + ` and step_no = 1`,
			"S14: step 98305, dispatch 1: goes to parked after failure 1, which may be retried",
		},
		{
			"a step that stands nowhere",
			`delete from ready`,
			"S14: step 98307: stands nowhere, the history leaves it ready",
		},
		{
			"a step that stands twice",
			`insert into ready (lane_id, task_id, step_no, runnable_at) values (1, ` + task7 + `, 2, at(60))`,
			"S14: step 114690: stands in ",
		},
		{
			"counters that differ",
			`update lease set attempts = 1`,
			"S14: step 114690: stands as lease (attempts 1,",
		},
		{
			"a wait that differs",
			`update backoff set due_at = due_at - interval '1 us' where task_id = ` + task6,
			"S14: step 98306: stands as backoff",
		},
		{
			"a failure that is not stored",
			`delete from step_failure where task_id = ` + task7 + ` and step_no = 1`,
			"S14: step 114689, dispatch 1: a lost_lease of the history is not stored",
		},
		{
			"a failure that nobody recorded",
			`select fl(9, ` + task1 + ` + 3, 1, 'timed_out', 1, 1, 0, 3, 1)`,
			"S14: step 16387, dispatch 1: a timed_out is stored that the history does not have",
		},
		{
			"a stored failure that differs",
			`update step_failure set error_code = 'OTHER' where task_id = ` + task1 + ` and dispatch = 1`,
			"S14: step 16386, dispatch 1: the stored failure is ",
		},
		{
			"a late report that is not stored",
			`delete from late_report`,
			"S14: step 16386, dispatch 2: a late report stands in the history only",
		},
		{
			"a step of no task",
			`insert into ready (lane_id, task_id, step_no, runnable_at) values (1, 99 << 14, 1, at(60))`,
			"S14: step 1622017: a row in ready of a task that is neither stored nor in the history",
		},
		{
			"a purged task that stands",
			`insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch, event_no, lost_leases,
			 undelivered, released, skipped, started) values (8 << 14, 1, 1, 'permanent', '', at(60), 1, 1, 1, 1, 2, 0, 0, 0, 0, true)`,
			"S14: step 131073: stands in parked and is no step of a stored task",
		},
		{
			"a task that nobody submitted",
			`delete from history where kind = 'submitted' and task_ids[1] = ` + task3,
			"S14: task 49152: is stored and nobody submitted it",
		},
		{
			"records that cannot be read",
			`update history set attempts = '{1,1}' where ` + event(task3+"+1", 2),
			"its arrays differ in length",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := clean(t)
			if _, err := db.Pool.Exec(t.Context(), tt.sql); err != nil {
				t.Fatal(err)
			}
			r := check(t, db)
			if !slices.ContainsFunc(r.Violations, func(v history.Violation) bool { return strings.Contains(v.String(), tt.want) }) {
				t.Errorf("got %v\nwant %s", r.Violations, tt.want)
			}
			if r.Holds() || len(r.Violations) > 12 {
				t.Errorf("%d violations: %v", r.Total, r.Violations)
			}
		})
	}
}

// What retention dropped cannot be replayed, and is not held against anybody.
func TestRetention(t *testing.T) {
	db := clean(t)
	_, err := db.Pool.Exec(t.Context(), `
		delete from history where task_ids[1] = 3 << 14;
		delete from step where task_id = 1 << 14; delete from step_end where task_id = 1 << 14; delete from step_failure where task_id = 1 << 14;
		delete from late_report; delete from task_end where task_id = 1 << 14; delete from task where task_id = 1 << 14;
		insert into partition_drop (partition, from_value, to_value) values ('history_20260228', '', '');
		insert into history (recorded_at, kind, reason, task_ids) values (at(100), 'retention', 'history_20260228', '{}'),
		  (at(100), 'retention', 'task_p0', array[1 << 14, 2 << 14])`)
	if err != nil {
		t.Fatal(err)
	}
	r := check(t, db)
	if !r.Holds() || r.Skipped != 1 || r.Tasks != 5 {
		t.Errorf("%d tasks, %d skipped, %v", r.Tasks, r.Skipped, r.Violations)
	}
}

// Failure 10 of a step under the defaults waits as long as failure 5, to the microsecond.
func TestDefaultDelays(t *testing.T) {
	db := clean(t)
	for f, delay := range map[int]string{1: "2 s", 2: "4 s", 3: "8 s", 4: "16 s", 5: "30 s", 6: "30 s", 1000: "30 s"} {
		var same bool
		if err := db.Pool.QueryRow(t.Context(), "select backoff_delay($1, null, null, null) = $2::text::interval", f, delay).Scan(&same); err != nil || !same {
			t.Errorf("failure %d: the database's delay is not %s (%v)", f, delay, err)
		}
	}
}
