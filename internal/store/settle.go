package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Settle records that a task has ended in error, if it has: a step of it failed for good and nothing else can run. It is
// called after the commit of any final failure, and of any success or ending in a task that has a parked step.
//
// It locks the task's parked rows first, so that nobody re-opens the task while it looks, and looks in a fresh snapshot.
func (s *Store) Settle(ctx context.Context, id task.ID) (change Change, err error) {
	err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
		change = Change{}
		var parked int
		if err := tx.QueryRow(ctx, sqlText("lock_parked"), int64(id)).Scan(&parked); err != nil || parked == 0 {
			return err
		}
		tag, err := tx.Exec(ctx, sqlText("settle"), s.at(), int64(id))
		if err == nil && tag.RowsAffected() > 0 {
			change.Tasks = []task.ID{id}
		}
		return err
	})
	return change, err
}

// Deadline is an instant after which a task's steps, or one of them, are given up.
type Deadline struct {
	DueAt       time.Time
	TaskID      task.ID
	StepNo      int    // 0: the whole task
	NamespaceID *int32 // nil: the task is gone
}

// DueDeadlines finds deadlines that have passed, the oldest first.
func (s *Store) DueDeadlines(ctx context.Context, limit int) ([]Deadline, error) {
	rows, err := s.Cold.Query(ctx, sqlText("due_deadlines"), s.at(), limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Deadline])
}

// EnforceDeadline parks the steps that still wait under a deadline that has passed. Leases under it end by themselves, at
// the same instant; as long as one stands, or somebody holds a row, the deadline stays and is enforced again. One that circuits
// have suspended is put off.
func (s *Store) EnforceDeadline(ctx context.Context, d Deadline) (change Change, err error) {
	err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
		change = Change{}
		if d.NamespaceID != nil {
			var postponed bool
			err := tx.QueryRow(ctx, sqlText("postpone_deadline"), s.at(), d.DueAt, int64(d.TaskID), d.StepNo).Scan(&postponed)
			if postponed || err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			var parked int
			if err := tx.QueryRow(ctx, sqlText("park_overdue"), s.at(), int64(d.TaskID), d.StepNo, *d.NamespaceID).Scan(&parked); err != nil {
				return err
			}
			if parked > 0 {
				change = Change{Tasks: []task.ID{d.TaskID}, Settle: []task.ID{d.TaskID}}
			}
		}
		_, err := tx.Exec(ctx, sqlText("drop_deadline"), s.at(), d.DueAt, int64(d.TaskID), d.StepNo)
		return err
	})
	return change, err
}
