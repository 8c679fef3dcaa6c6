package store

import (
	"github.com/jackc/pgx/v5"
)

// copyFrom is how many steps a submit must have for COPY to store them. COPY writes whole pages to the log and builds no arrays
// on either side, but takes two more round trips.
const copyFrom = 1000

func countSteps(tasks []*NewTask) (n int) {
	for _, t := range tasks {
		n += len(t.Steps)
	}
	return n
}

// stepColumns are the columns of a step in the order of a row of stepRows.
var stepColumns = []string{
	"task_id", "step_no", "lane_id", "name", "retry_limit", "retryable", "max_lost_leases", "parents", "children", "join_children",
	"join_stripe", "join_need", "backoff_initial", "backoff_multiplier", "backoff_max", "backoff_jitter", "max_retry_after",
	"lease_duration", "run_timeout", "max_elapsed", "non_retryable_codes", "handler_config",
}

// stepRows gives the steps of tasks to COPY one by one: the whole of them is never in memory twice.
type stepRows struct {
	tasks []*NewTask
	no    int // of the step that is given, counted from 1; 0: the task has not begun
	edges []edgesOut
	row   []any // used again for each step
}

var _ pgx.CopyFromSource = (*stepRows)(nil)

// Next goes on to the next step.
func (r *stepRows) Next() bool {
	for len(r.tasks) > 0 && r.no == len(r.tasks[0].Steps) {
		r.tasks, r.no = r.tasks[1:], 0
	}
	if len(r.tasks) == 0 {
		return false
	}
	if r.no == 0 {
		r.edges = childEdges(r.tasks[0].Steps)
	}
	r.no++
	return true
}

// Values are the step's columns.
func (r *stepRows) Values() ([]any, error) {
	t := r.tasks[0]
	s, e := &t.Steps[r.no-1], &r.edges[r.no-1]
	r.row = append(r.row[:0],
		int64(t.ID), int32(r.no), t.Lanes[r.no-1], s.Name, int32(s.RetryLimit), s.Retryable, int16(s.MaxLostLeases), //nolint:gosec // checked
		orNull[int32](s.Parents), orNull[int32](e.children), orNull[int32](e.joins), orNull[int16](e.stripe), orNull[int32](e.need),
		s.Initial, s.Multiplier, s.Max, s.Jitter, s.MaxRetryAfter, s.Lease, s.RunTimeout, s.MaxElapsed, s.NonRetryable, orNil(s.HandlerConfig))
	if len(s.NonRetryable) == 0 {
		r.row[len(r.row)-2] = nil
	}
	return r.row, nil
}

// Err is nil: what is copied is in memory.
func (r *stepRows) Err() error { return nil }

// orNull is an array, NULL when it is empty.
func orNull[T int16 | int32](v []int) []T {
	if len(v) == 0 {
		return nil
	}
	out := make([]T, len(v))
	for i, n := range v {
		out[i] = T(n)
	}
	return out
}
