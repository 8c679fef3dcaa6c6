package bench

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// filler puts tasks into the tables without the server: copies of one that the server stored, so that each row is what
// the server writes, in a small part of the time.
type filler struct {
	w *world
	// sample is the task that is copied, steps how many it has, live how many of them stand in a queue's table. Its rows are
	// kept in tables of this session: in the real ones, it may be run.
	sample      int64
	steps, live int64
	made        int64 // tasks: the sample and its copies
	// per is how many copies one statement makes.
	per int64
}

const (
	// fillerRows is about how many steps one statement copies: few enough for a cancelled run to end soon.
	fillerRows = 50_000
	// recordTasks is how many tasks one record of the history is about, as after a submit of that many.
	recordTasks = 500
	taskIDShift = 14 // a task's id is its number, shifted: the low bits are for its steps
)

// openFiller has a server store the task that is to be copied. Nobody may subscribe to its handler before.
func (w *world) openFiller(ctx context.Context, namespace string, task *pb.TaskSubmission) (*filler, error) {
	conns, err := dial(w.server().address, 1)
	if err != nil {
		return nil, err
	}
	defer hangUp(conns)
	answer, err := pb.NewTaskServiceClient(conns[0]).SubmitTask(ctx, &pb.SubmitTaskRequest{Namespace: namespace, Task: task})
	if err != nil {
		return nil, fmt.Errorf("submitting the task to copy: %w", err)
	}
	f := &filler{w: w}
	if _, err := fmt.Sscan(answer.GetTask().GetTaskId(), &f.sample); err != nil {
		return nil, fmt.Errorf("reading a task's id: %w", err)
	}
	err = w.conn.QueryRow(ctx, `
		select (select count(*) from step where task_id = $1),
		       (select count(*) from ready where task_id = $1) + (select count(*) from backoff where task_id = $1)`, f.sample).
		Scan(&f.steps, &f.live)
	if err != nil {
		return nil, fmt.Errorf("counting the sample's steps: %w", err)
	}
	for _, table := range fillerTables {
		if _, err := w.conn.Exec(ctx, fmt.Sprintf("create temporary table %s as select * from %s where task_id = %d", f.kept(table), table, f.sample)); err != nil {
			return nil, fmt.Errorf("keeping the task to copy: %w", err)
		}
	}
	f.per = max(1, fillerRows/f.steps)
	f.book(1)
	return f, nil
}

// fillerTables hold what a task that has not begun consists of.
var fillerTables = []string{"task", "step", "ready", "backoff"}

// kept is where the sample's rows of a table are.
func (f *filler) kept(table string) string { return fmt.Sprintf("bench_%s_%d", table, f.sample) }

func (f *filler) book(tasks int64) {
	f.made += tasks
	f.w.tasks.Add(tasks)
	f.w.steps.Add(tasks * f.steps)
}

// leave says that all of it but the tasks that were run is to be there still at the end.
func (f *filler) leave(run int64) {
	f.w.left.tasks += f.made - run
	f.w.left.steps += (f.made - run) * f.steps
	f.w.left.live += (f.made - run) * f.live
}

// add makes copies, under numbers that the server has not given away and never will.
func (f *filler) add(ctx context.Context, copies int64) error {
	for copies > 0 {
		n := min(copies, f.per)
		if err := pgx.BeginFunc(ctx, f.w.conn, func(tx pgx.Tx) error { return f.copy(ctx, tx, n) }); err != nil {
			return fmt.Errorf("filling the tables: %w", err)
		}
		f.book(n)
		copies -= n
	}
	return nil
}

// copy makes n copies.
func (f *filler) copy(ctx context.Context, tx pgx.Tx, n int64) error {
	var first int64
	// The servers take numbers by blocks of 1,024, one nextval each.
	err := tx.QueryRow(ctx, "select setval('task_number_seq', nextval('task_number_seq') + (($1 + 1023) / 1024) * 1024) - (($1 + 1023) / 1024) * 1024", n).
		Scan(&first)
	if err != nil {
		return err
	}
	// No statement copies as many as a partition has numbers: those of the first and the last are all there are.
	if _, err := tx.Exec(ctx, "select ensure_task_partitions($1, 1), ensure_task_partitions($2, 1)", first, first+n-1); err != nil {
		return err
	}
	for _, table := range fillerTables {
		columns, err := f.columns(ctx, tx, table)
		if err != nil {
			return err
		}
		sql := fmt.Sprintf("insert into %s (task_id, %s) select (copy.number << %d), %s from generate_series($1::bigint, $2::bigint) as copy (number) cross join %s as sample",
			table, columns, taskIDShift, columns, f.kept(table))
		if _, err := tx.Exec(ctx, sql, first, first+n-1); err != nil {
			return fmt.Errorf("copying rows of %s: %w", table, err)
		}
	}
	_, err = tx.Exec(ctx, fmt.Sprintf(`
		insert into history (recorded_at, namespace_id, kind, task_ids, attempts)
		select clock_timestamp(), max(namespace_id), 'submitted', array_agg(number << %d), array_agg(step_count)
		from generate_series($1::bigint, $2::bigint) as copy (number)
		cross join %s as sample
		group by number / %d`, taskIDShift, f.kept("task"), recordTasks), first, first+n-1)
	return err
}

// columns lists what is copied of a row: all but the task's id, and the place in the queue, which is each row's own.
func (f *filler) columns(ctx context.Context, tx pgx.Tx, table string) (string, error) {
	rows, _ := tx.Query(ctx, `
		select quote_ident(attname) from pg_attribute
		where attrelid = $1::text::regclass and attnum > 0 and not attisdropped and attname not in ('task_id', 'seq')
		order by attnum`, table)
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return strings.Join(columns, ", "), err
}
