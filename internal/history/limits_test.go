package history_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/internal/history"
)

// ended has a step of the circuit's record, which waits, be ended by a budget of time at second 170.
const (
	endsStep8 = `delete from ready where step_no = 8 and task_id = 9 << 14;
		select ev(170, 'parked', (9 << 14) + 8, 1, dispatch => 0, attempts => 0, failures => 0, lost => 0, state => 'parked', code => 'DEADLINE_EXCEEDED');
		insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch, event_no, lost_leases,
		  undelivered, released, skipped, started)
		select 9 << 14, 8, lane_id, 'deadline_exceeded', 'DEADLINE_EXCEEDED', at(170), 0, 0, 0, 1, 1, 0, 0, 0, 0, false from lane where circuit = 'svc';`
	endsStep1 = `delete from backoff where step_no = 1 and task_id = 9 << 14;
		select ev(170, 'parked', (9 << 14) + 1, 5, dispatch => 2, attempts => 2, failures => 2, lost => 0, state => 'parked', code => 'DEADLINE_EXCEEDED');
		insert into parked (task_id, step_no, lane_id, reason, error_code, parked_at, attempts, failures, dispatches, epoch, event_no, lost_leases,
		  undelivered, released, skipped, started, first_started_at)
		select 9 << 14, 1, lane_id, 'deadline_exceeded', 'DEADLINE_EXCEEDED', at(170), 2, 2, 2, 1, 5, 0, 0, 0, 0, true, at(102) from lane where circuit = 'svc';`
	suspends = `update circuit_event set policy.suspend_budgets = true;`
)

// Every way to let go too much, or to end a step too early, is noticed, and by its name.
func TestViolationsOfLimitsAndBudgets(t *testing.T) {
	for _, tt := range []struct{ name, sql, want string }{
		{
			"too many at once",
			`update circuit_event set policy.max_in_flight = 1 where generation = 2`,
			`2 steps of circuit "svc" run at 2026-03-01T00:01:42Z, its max_in_flight is 1`,
		},
		{
			"too many at once, of two states",
			`update circuit_event set policy.max_in_flight = 1 where generation in (7, 8); update history set recorded_at = at(140.5) where kind = 'dispatched' and step_nos = '{6}' and task_ids[1] = 9 << 14;
			 update history set recorded_at = at(141) where kind = 'concluded' and step_nos = '{5}' and task_ids[1] = 9 << 14; update step_end set ended_at = at(141) where step_no = 5 and task_id = 9 << 14`,
			`S11: step 147462, dispatch 1: 2 steps of circuit "svc" run at 2026-03-01T00:02:20.5Z, its max_in_flight is 1`,
		},
		{
			"too many starts at once",
			`update circuit_event set policy.rate = 0.5 where generation = 2`,
			`starts 1.999995s too early at 2026-03-01T00:01:42Z for the rate of circuit "svc", which is 0.5/s`,
		},
		{
			"too many starts within a time",
			`update circuit_event set policy.rate = 0.4 where generation in (6, 7)`,
			`S11: step 147461, dispatch 1: starts 499.9945ms too early at 2026-03-01T00:02:19Z for the rate of circuit "svc", which is 0.4/s`,
		},
		{
			"more than a wave",
			`select ran(8, 139.5, 141); delete from ready where step_no = 8`,
			`S11: step 147464, dispatch 1: 2 steps of circuit "svc" run at 2026-03-01T00:02:19.5Z, its wave is of 1`,
		},
		{
			"ended by a deadline that nobody set",
			endsStep8,
			`S5: step 147464: ended by a budget of time that it does not have`,
		},
		{
			"ended before its deadline",
			endsStep8 + `update task set deadline = at(172) where task_id = 9 << 14`,
			`S5: step 147464: ended 2s before its budget of time was up`,
		},
		{
			"ended at a deadline that had been put off",
			endsStep8 + suspends + `update task set deadline = at(165) where task_id = 9 << 14`,
			`S5: step 147464: ended 35s before its budget of time was up`,
		},
		{
			"a planned hold of which somebody took note late",
			endsStep8 + suspends + `update task set deadline = at(165) where task_id = 9 << 14;
			 update circuit_event set recorded_at = at(159.5), hold_from = at(150) where generation = 10`,
			`S5: step 147464: ended 35s before its budget of time was up`,
		},
		{
			"a hold that was planned while it was open, and begins later than that ends",
			endsStep8 + suspends + `update task set deadline = at(165) where task_id = 9 << 14;
			 update circuit_event set generation = generation + 20 where generation > 3; update circuit_event set generation = generation - 19 where generation > 20;
			 select cev(104, 4, 'open', 'open', 'hold'); update circuit set generation = 13; update lease set circuit_generation = 13 where probe;
			 update circuit_event set policy.suspend_budgets = true, hold_from = at(150), hold_until = at(160) where generation = 4`,
			`S5: step 147464: ended 35s before its budget of time was up`,
		},
		{
			"tried for less long than it may be",
			endsStep1 + suspends + `update step set max_elapsed = interval '30 s' where task_id = 9 << 14 and step_no = 1`,
			`S5: step 147457, dispatch 2: ended 2s before its budget of time was up`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := circuitRecord(t)
			if _, err := db.Pool.Exec(t.Context(), tt.sql); err != nil {
				t.Fatal(err)
			}
			got := check(t, db)
			if !slices.ContainsFunc(got.Violations, func(v history.Violation) bool { return strings.Contains(v.String(), tt.want) }) {
				t.Errorf("no violation says %q, but:", tt.want)
			}
			if len(got.Violations) > 2 || t.Failed() {
				t.Errorf("%d violations: %v", got.Total, got.Violations)
			}
		})
	}
}

// What is just within its bounds breaks nothing, and is counted.
func TestLimitsAndBudgetsHold(t *testing.T) {
	for _, tt := range []struct {
		name, sql string
		want      [7]int // Full, Paced, LostProbes, OutOfTime, PastDeadline, PastElapsed, violations
	}{
		{"limits", `update circuit_event set policy.max_in_flight = 2, policy.rate = 20`, [7]int{2, 2, 0, 0, 0, 0, 0}},
		{"a rate that is reached", `update circuit_event set policy.rate = 0.5 where generation > 5`, [7]int{}},
		// Who was first within an instant is not on record: the short one may have ended before the other began.
		{"a step of a wave in no time", `select ran(8, 139, 139); delete from ready where step_no = 8`, [7]int{}},
		{"a deadline", endsStep8 + `update task set deadline = at(170) where task_id = 9 << 14`, [7]int{3: 1}},
		{
			"a deadline that was put off", endsStep8 + suspends + `update task set deadline = at(130) where task_id = 9 << 14`,
			[7]int{3: 1, 4: 3},
		},
		{
			"a budget that was put off", endsStep1 + suspends + `update step set max_elapsed = interval '28 s' where task_id = 9 << 14 and step_no = 1`,
			[7]int{3: 1},
		},
		{"a success past max_elapsed", `update step set max_elapsed = interval '10 s' where task_id = 1 << 14 and step_no = 2`, [7]int{5: 1}},
		{
			"a probe that is lost",
			`update history set outcome = 'lost_lease', lost_leases = '{1}', event_nos = '{3}' where kind = 'concluded' and outcome = 'released' and step_nos = '{3}' and task_ids[1] = 9 << 14;
			 select ev(114.5, 'confirmed', (9 << 14) + 3, 2, session => 1); select fl(115, (9 << 14) + 3, 1, 'lost_lease', 0, 0, 1, 3, 1, code => 'LEASE_EXPIRED');
			 update ready set lost_leases = 1, released = 0, event_no = 3, started = true where task_id = 9 << 14 and step_no = 3`,
			[7]int{2: 1},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := circuitRecord(t)
			if _, err := db.Pool.Exec(t.Context(), tt.sql); err != nil {
				t.Fatal(err)
			}
			got := check(t, db)
			if counts := [7]int{got.Full, got.Paced, got.LostProbes, got.OutOfTime, got.PastDeadline, got.PastElapsed, got.Total}; counts != tt.want {
				t.Errorf("%v, want %v: %v", counts, tt.want, got.Violations)
			}
		})
	}
}
