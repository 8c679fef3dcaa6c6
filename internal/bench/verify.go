package bench

import (
	"context"
	"fmt"
)

// LossError says that the database does not hold what the server had confirmed, or holds it twice.
type LossError struct{ found found }

// found is the database's account of the run beside ours.
type found struct {
	tasks, steps                               int64 // confirmed by the server
	stored, complete                           int64 // tasks
	ended, endedWell, live, dispatched, closed int64 // steps
}

// Error tells both accounts.
func (e *LossError) Error() string {
	f := e.found
	return fmt.Sprintf("work was lost or doubled: the server confirmed %d tasks of %d steps; the database holds %d tasks, %d of them complete, "+
		"and %d ends of steps, %d of them complete; %d steps are live; history has %d dispatches and %d successes",
		f.tasks, f.steps, f.stored, f.complete, f.ended, f.endedWell, f.live, f.dispatched, f.closed)
}

// verify holds the database against what was submitted: each step must have been dispatched once and ended once.
func (w *world) verify(ctx context.Context) error {
	f := found{tasks: w.tasks.Load(), steps: w.steps.Load()}
	err := w.databases.conn.QueryRow(ctx, `
		select (select count(*) from task),
		       (select count(*) from task_end where state = 'complete'),
		       (select count(*) from step_end),
		       (select count(*) from step_end where state = 'complete'),
		       (select count(*) from ready) + (select count(*) from backoff) + (select count(*) from lease) + (select count(*) from parked),
		       (select coalesce(sum(cardinality(task_ids)), 0) from history where kind = 'dispatched'),
		       (select coalesce(sum(cardinality(task_ids)), 0) from history where kind = 'concluded' and outcome = 'success')`).
		Scan(&f.stored, &f.complete, &f.ended, &f.endedWell, &f.live, &f.dispatched, &f.closed)
	if err != nil {
		return fmt.Errorf("verifying the run: %w", err)
	}
	w.doc.Set("tasks", f.tasks)
	w.doc.Set("steps", f.steps)
	w.doc.Set("lost", f.steps-f.endedWell)
	w.doc.Set("doubled", max(f.dispatched, f.closed)-f.steps)
	if f.tasks == 0 || f.stored != f.tasks || f.complete != f.tasks || f.ended != f.steps || f.endedWell != f.steps || f.live != 0 ||
		f.dispatched != f.steps || f.closed != f.steps {
		return &LossError{f}
	}
	return nil
}
