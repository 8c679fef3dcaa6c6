package history_test

import (
	"testing"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
)

// BenchmarkCheck checks 100,000 steps, each dispatched, confirmed, and concluded: 10,000 tasks of chains of ten, recorded a
// hundred events at a time.
func BenchmarkCheck(b *testing.B) {
	db := pgtest.New(b)
	_, err := db.Pool.Exec(b.Context(), `
		insert into namespace (name) values ('default');
		insert into lane (namespace_id, handler, priority) values (1, 'work', 1);
		insert into worker_session (namespace_id, worker_id, instance_id, replica_id, max_in_flight, handlers)
		values (1, 'w1', 'i', gen_random_uuid(), 10000, '{work}');
		insert into task (task_id, namespace_id, name, context, step_count, created_at)
		select n << 14, 1, 't', '{}', 10, '2026-03-01' from generate_series(1::bigint, 10000) as n;
		insert into task_end select n << 14, 'complete', '2026-03-01' from generate_series(1::bigint, 10000) as n;
		insert into history (recorded_at, namespace_id, kind, task_ids, attempts)
		select '2026-03-01', 1, 'submitted', array_agg(n << 14), array_agg(10) from generate_series(1::bigint, 10000) as n group by n / 100;
		insert into history (recorded_at, namespace_id, kind, task_ids, states)
		select '2026-03-02', 1, 'task_ended', array_agg(n << 14), array_agg('complete'::text) from generate_series(1::bigint, 10000) as n group by n / 100;
		insert into step (task_id, step_no, lane_id, retry_limit, retryable, max_lost_leases, name, parents, children)
		select n << 14, s, 1, 3, true, 3, 's' || s, case when s > 1 then array[s - 1] end, array[case when s < 10 then s + 1 else 2147483647 end]
		from generate_series(1::bigint, 10000) as n, generate_series(1, 10) as s;
		insert into history (recorded_at, namespace_id, kind, outcome, task_ids, step_nos, event_nos, dispatches, epochs, session_ids, attempts,
		  failures, lost_leases)
		select timestamptz '2026-03-01' + make_interval(secs => 10 * s + k), 1, (array['dispatched', 'confirmed', 'concluded'])[k]::history_kind,
		  case k when 3 then 'success'::dispatch_outcome end, array_agg(n << 14), array_agg(s), array_agg(k), array_agg(1), array_agg(1), array_agg(1),
		  array_agg(1), array_agg(0), array_agg(0::smallint)
		from generate_series(1::bigint, 10000) as n, generate_series(1, 10) as s, generate_series(1, 3) as k
		group by s, k, n / 100;
		insert into step_end (task_id, step_no, state, attempts, failures, dispatches, lost_leases, epoch, event_no, session_id, token, ended_at)
		select n << 14, s, 'complete', 1, 0, 1, 0, 1, 3, 1, gen_random_uuid(), timestamptz '2026-03-01' + make_interval(secs => 10 * s + 3)
		from generate_series(1::bigint, 10000) as n, generate_series(1, 10) as s;
		analyze`)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		r, err := history.Check(b.Context(), db.Pool, history.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if !r.Holds() || r.Steps != 100_000 || r.Attempts != 100_000 {
			b.Fatalf("%d steps, %d attempts, %v", r.Steps, r.Attempts, r.Violations[:min(3, len(r.Violations))])
		}
	}
}
