package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// WatchedStep is a step with the number of its last event.
type WatchedStep struct {
	View    task.StepView
	EventNo int64
}

// WatchedTask reads a task, all its steps and its revision in one snapshot. The revision counts 1 for the submit, 2
// for each event of a step and 1 while the task's end stands, so that it rises with every change, a re-opening included.
func (s *Store) WatchedTask(ctx context.Context, id task.ID) (v *task.View, steps []WatchedStep, revision int64, err error) {
	snapshot := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, s.Cold, snapshot, func(tx pgx.Tx) error {
		views, err := s.tasks(ctx, tx, []int64{int64(id)}, false)
		if err != nil {
			return err
		}
		if len(views) == 0 {
			return task.Refuse(task.TaskNotFound, "no such task").With("task_id", id.String())
		}
		v = &views[0]
		all, err := s.steps(ctx, tx, id, nil, false)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sqlText("event_nos"), int64(id))
		if err != nil {
			return err
		}
		events := map[int]int64{}
		var (
			no    int
			event int64
		)
		revision = 1
		if v.Ended() {
			revision++
		}
		if _, err := pgx.ForEachRow(rows, []any{&no, &event}, func() error {
			events[no] = event
			revision += 2 * event
			return nil
		}); err != nil {
			return err
		}
		for _, view := range all {
			steps = append(steps, WatchedStep{View: view, EventNo: events[view.ID.No()]})
		}
		return nil
	})
	return v, steps, revision, err
}
