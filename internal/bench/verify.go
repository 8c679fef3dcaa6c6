package bench

import (
	"context"
	"fmt"
	"strings"

	"github.com/taskerhq/tasker/internal/history"
)

// LossError says that a database does not hold what the server had confirmed, or holds it twice.
type LossError struct{ found found }

// found is the database's account of a scenario beside ours.
type found struct {
	tasks, steps                               int64 // confirmed by the server, or put there as filler
	failures                                   int64 // confirmed
	left                                       left  // filler that nobody was to take
	stored, complete                           int64 // tasks
	ended, endedWell, live, dispatched, closed int64 // steps
}

// lost is how many steps have not ended as they should; below zero: more than there were.
func (f *found) lost() int64 { return f.steps - f.left.steps - f.endedWell }

// doubled is how many dispatches or successes there are beyond one a step and one a failure.
func (f *found) doubled() int64 {
	return max(f.dispatched-f.failures, f.closed) - (f.steps - f.left.steps)
}

func (f *found) holds() bool {
	run := f.steps - f.left.steps
	return f.tasks > 0 && f.stored == f.tasks && f.complete == f.tasks-f.left.tasks && f.ended == run && f.endedWell == run &&
		f.live == f.left.live && f.dispatched == run+f.failures && f.closed == run
}

// Error tells both accounts.
func (e *LossError) Error() string {
	f := e.found
	return fmt.Sprintf("work was lost or doubled: of %d tasks of %d steps, %d and %d were to be left, and %d failures were confirmed; "+
		"the database holds %d tasks, %d of them complete, and %d ends of steps, %d of them complete; %d steps are live; "+
		"history has %d dispatches and %d successes",
		f.tasks, f.steps, f.left.tasks, f.left.steps, f.failures, f.stored, f.complete, f.ended, f.endedWell, f.live, f.dispatched, f.closed)
}

// ViolationError says that the record of a scenario breaks a promise.
type ViolationError struct{ Report history.Report }

// maxTold is how many violations the error tells.
const maxTold = 5

// Error tells the first violations.
func (e *ViolationError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the history breaks %d promises:", e.Report.Total)
	for _, v := range e.Report.Violations[:min(len(e.Report.Violations), maxTold)] {
		fmt.Fprintf(&b, "\n  %s", v)
	}
	return b.String()
}

// verify holds the stage's database against its books, then has the checker replay its history.
func (w *world) verify(ctx context.Context) error {
	f, err := w.count(ctx)
	if err != nil {
		return err
	}
	w.totals.tasks += f.tasks
	w.totals.steps += f.steps
	w.doc.Set("tasks", w.totals.tasks)
	w.doc.Set("steps", w.totals.steps)
	w.doc.Set("lost", f.lost()) // of one that lost something, no scenario follows
	w.doc.Set("doubled", f.doubled())
	if !f.holds() {
		return &LossError{f}
	}
	report, err := history.Check(ctx, w.conn, history.Options{Sample: w.sample})
	if err != nil {
		return err
	}
	w.totals.dispatched += int64(report.Dispatches)
	w.doc.Set("violations", report.Total)
	w.doc.Set("checked_dispatches", w.totals.dispatched)
	if !report.Holds() {
		return &ViolationError{report}
	}
	return nil
}

// count takes the database's account.
func (w *world) count(ctx context.Context) (found, error) {
	f := found{tasks: w.tasks.Load(), steps: w.steps.Load(), failures: w.failed.Load(), left: w.left}
	err := w.conn.QueryRow(ctx, `
		select (select count(*) from task),
		       (select count(*) from task_end where state = 'complete'),
		       (select count(*) from step_end),
		       (select count(*) from step_end where state = 'complete'),
		       (select count(*) from ready) + (select count(*) from backoff) + (select count(*) from lease) + (select count(*) from parked),
		       (select coalesce(sum(cardinality(task_ids)), 0) from history where kind = 'dispatched'),
		       (select coalesce(sum(cardinality(task_ids)), 0) from history where kind = 'concluded' and outcome = 'success')`).
		Scan(&f.stored, &f.complete, &f.ended, &f.endedWell, &f.live, &f.dispatched, &f.closed)
	if err != nil {
		return f, fmt.Errorf("verifying the run: %w", err)
	}
	return f, nil
}

// holdsUp is the error of an account that does not hold.
func (w *world) holdsUp(ctx context.Context) error {
	f, err := w.count(ctx)
	if err == nil && !f.holds() {
		err = &LossError{f}
	}
	return err
}
