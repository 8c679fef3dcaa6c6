package store

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/pgtest"
)

// hotArgs are the hot statements with literal arguments, as psql would execute them.
var hotArgs = map[string]string{
	"claim": `null, '{1}', '{0}', '{100}', '{0}', array_fill(1, array[100]), array_fill(gen_random_uuid(), array[100]),
		'{1}', '{1}', '{5 s}', '{t}', 1, '{1}', '{t}', '{1}', '{1}', 0`,
	"lock_leases":  `'{16384}', '{1}', array[gen_random_uuid()]`,
	"lock_held":    `false, '{16384}', '{1}', array[gen_random_uuid()]`,
	"lock_expired": `null, '{16384}', '{1}', array[gen_random_uuid()]`,
	"complete":     `null, '{}', null, '{}', '{}', null, '{}', null, '{}', 1`,
	"fail":         `null, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', 1, '{}'`,
	"give_back":    `null, '{}', '{}', '{}', '{}', 1`,
	"heartbeat":    `null, '{}', '{}', 1`,
	"probe_lanes":  `1, '{h}', '{1}', '{5}'`,
	"tick":         `null, '{1}', '{h}', '{1}', '{1}', true, '{1}', '{5}', gen_random_uuid()`,

	"lock_circuits":    `'{1}', '{true}'`,
	"advance_circuits": `null, '{1}'`,
	"charge_circuits":  `null, '{1}', '{16384}', '{1}', array[gen_random_uuid()], '{success}', '{dependency}', '{false}', '{null}', '{null}', '{null}', '{}', '{}', '{}', '{}', '{}'`,
	"pace_circuits":    `null, '{1}'`,
	"circuit_gates":    `null, '{1}'`,
}

// leaf rows of a plan that read a big table whole. The lease table is small, and is read whole on purpose by the sweep.
var wholeRead = regexp.MustCompile(`Seq Scan on (ready|backoff|parked|lease|task|step|step_end|step_failure|task_end|join_wait|checkpoint|circuit|circuit_worker|worker_session|replica)\S*`)

// TestHotStatementsHaveOnePlanWhateverTheTablesHold guards against the plan flip: a generic plan that was made on an empty
// table, kept for the life of a connection, and is wrong once the table is full.
func TestHotStatementsHaveOnePlanWhateverTheTablesHold(t *testing.T) {
	for _, partitions := range []int{1, 3} {
		t.Run(fmt.Sprintf("partitions of tasks: %d", partitions), func(t *testing.T) { hotStatementsHaveOnePlan(t, partitions) })
	}
}

func hotStatementsHaveOnePlan(t *testing.T, partitions int) {
	t.Helper()
	db := pgtest.New(t)
	settings := db.Pool.Config().ConnConfig.Copy()
	for k, v := range HotSettings {
		settings.RuntimeParams[k] = v
	}
	plans := func() map[string]string {
		conn, err := pgx.ConnectConfig(t.Context(), settings)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		out := map[string]string{}
		for name, args := range hotArgs {
			if _, err := conn.Exec(t.Context(), fmt.Sprintf("prepare %s as %s", name, sqlText(name)), pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatalf("preparing %s: %v", name, err)
			}
			rows, err := conn.Query(t.Context(), fmt.Sprintf("explain (costs off) execute %s(%s)", name, args), pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Fatalf("explaining %s: %v", name, err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatalf("explaining %s: %v", name, err)
			}
			out[name] = strings.Join(lines, "\n")
		}
		return out
	}
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Pool.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}

	exec(fmt.Sprintf("select ensure_task_partitions(0, %d)", partitions))
	exec(`vacuum analyze`)
	empty := plans()
	if got := strings.Contains(empty["complete"], "_p1"); got != (partitions > 1) {
		t.Fatalf("with %d partitions:\n%s", partitions, empty["complete"])
	}
	exec(`
		insert into namespace (name) values ('default');
		insert into circuit (namespace_id, name) select 1, 'c' || n from generate_series(1, 1000) n;
		insert into circuit_worker (circuit_id, worker_id) select c, 'w' || n from generate_series(1, 100) c, generate_series(1, 20) n;
		insert into lane (namespace_id, handler, priority) values (1, 'h', 1);
		insert into task (task_id, namespace_id, name, context, step_count, created_at)
			select n::bigint << 14, 1, 't', '{}', 1, now() from generate_series(1, 10000) n;
		insert into step (task_id, step_no, lane_id, retry_limit, retryable, max_lost_leases, name, children)
			select n::bigint << 14, 1, 1, 3, true, 3, 's', '{2147483647}' from generate_series(1, 10000) n;
		insert into ready (lane_id, task_id, step_no, runnable_at)
			select 1, n::bigint << 14, 1, now() from generate_series(1, 10000) n;
		insert into lease (task_id, step_no, lane_id, session_id, token, attempts, failures, dispatches, epoch, event_no, lost_leases,
				undelivered, released, skipped, started, runnable_at, granted_at, until, lease_duration)
			select n::bigint << 14, 1, 1, 1, gen_random_uuid(), 0, 0, 1, 1, 1, 0, 0, 0, 0, false, now(), now(), now(), '30 s'
			from generate_series(1, 10000) n;
		insert into worker_session (namespace_id, worker_id, instance_id, replica_id, max_in_flight, handlers, labels, opened_at, seen_at)
			select 1, 'w' || n, '1', gen_random_uuid(), 1, '{h}', '{}', now(), now() from generate_series(1, 10000) n;
		insert into replica select gen_random_uuid(), now(), now() from generate_series(1, 1000)`)
	exec(`vacuum analyze`)
	full := plans()
	for name := range hotArgs {
		if empty[name] != full[name] {
			t.Errorf("%s has another plan on full tables than on empty ones:\n%s\n---\n%s", name, empty[name], full[name])
		}
		bad := wholeRead.FindString(full[name])
		if name == "tick" && bad == "Seq Scan on lease" {
			bad = wholeRead.FindString(strings.Replace(full[name], bad, "", 1))
		}
		if bad != "" {
			t.Errorf("%s reads a table whole: %s\n%s", name, bad, full[name])
		}
	}
}

// TestALookUpByIDPrunesToOnePartition holds the claim's look-ups against a database with many partitions.
func TestALookUpByIDPrunesToOnePartition(t *testing.T) {
	db := pgtest.New(t)
	conn := db.Conn(t)
	if _, err := conn.Exec(t.Context(), "select ensure_task_partitions(0, 5)"); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"task", "step", "step_end", "step_failure", "task_end", "join_wait", "checkpoint", "late_report"} {
		rows, err := conn.Query(t.Context(), fmt.Sprintf("explain (costs off) select * from %s where task_id = (3::bigint << 42) + 16384", table))
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		plan := strings.Join(lines, "\n")
		for _, part := range regexp.MustCompile(table+`_p\d+`).FindAllString(plan, -1) {
			if part != table+"_p3" {
				t.Errorf("a look-up in %s touches %s:\n%s", table, part, plan)
			}
		}
		if !strings.Contains(plan, table+"_p3") {
			t.Errorf("a look-up in %s misses its partition:\n%s", table, plan)
		}
	}
}
