package store

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Act is who does an operator's act, and why.
type Act struct {
	Actor  string
	Reason string
}

// taken is a step that this transaction has taken from its place (take_steps.sql).
type taken struct {
	TaskID     int64
	StepNo     int
	LaneID     int32
	Attempts   int
	Failures   int
	Dispatches int
	Epoch      int
	EventNo    int
	LostLeases int
	Started    bool
	Moved      int
}

// standing is where a step stands (find_step.sql).
type standing struct {
	NamespaceID  int32
	EndedState   *string
	TaskEndState *string
	Place        *string
	Failures     int
}

// canActOn says why an operator may not act on a step that stands so; nil: it is in error.
func (s standing) canActOn() error {
	switch {
	case deref(s.TaskEndState) == string(task.Cancelled):
		return task.Refuse(task.TaskFinished, "the task is cancelled")
	case s.EndedState != nil:
		return task.Refuse(task.StepFinished, "the step is %s", *s.EndedState)
	case deref(s.Place) == "parked", s.Failures > 0:
		return nil
	case deref(s.Place) == "lease":
		return task.Refuse(task.StepNotInError, "the step is in progress")
	}
	return task.Refuse(task.StepNotInError, "the step is pending")
}

// CancelTask ends every unfinished step of a task, running ones included. A task that is cancelled already stays as it is.
//
// It first locks every live row of the task in order, then looks again: what appeared meanwhile is locked without waiting.
// If any such lock is not to be had, everything is undone and tried again. Once every live row is held, no other
// transaction can change the task.
func (s *Store) CancelTask(ctx context.Context, id task.ID, act Act) (cancelled task.CancelAnswer, change Change, err error) {
	err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
		cancelled, change = task.CancelAnswer{}, Change{}
		var waited int
		if err := tx.QueryRow(ctx, sqlText("lock_task"), int64(id)).Scan(&waited); err != nil {
			return err
		}
		var standing, locked, canRun int
		if err := tx.QueryRow(ctx, sqlText("lock_task_again"), int64(id)).Scan(&standing, &locked, &canRun); err != nil {
			return err
		}
		if locked != standing {
			return errAgain
		}
		namespaceID, end, err := findTask(ctx, tx, id)
		if err != nil {
			return err
		}
		switch {
		case end == task.Cancelled:
			return s.readCancelled(ctx, tx, id, &cancelled)
		case end == task.Complete:
			return task.Refuse(task.TaskFinished, "the task is complete")
		case standing == 0:
			return errAgain // an unfinished task has a live row: it ended between two statements
		}
		if err := s.cancelLocked(ctx, tx, id, namespaceID, locked, act, &cancelled, &change); err != nil {
			return err
		}
		change.Tasks = []task.ID{id}
		if _, err = tx.Exec(ctx, sqlText("forget_deadline"), int64(id)); err != nil {
			return err
		}
		return s.readCancelled(ctx, tx, id, &cancelled)
	})
	return cancelled, change, err
}

// cancelLocked ends a task's steps, all of whose live rows this transaction holds.
func (s *Store) cancelLocked(ctx context.Context, tx pgx.Tx, id task.ID, namespaceID int32, locked int, act Act, cancelled *task.CancelAnswer, change *Change) error {
	rows, err := tx.Query(ctx, sqlText("cancel_task"), s.at(), int64(id), locked, namespaceID, orNil(act.Actor), orNil(act.Reason))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var (
			stepNo, dispatch, moved, steps *int
			sessionID                      *int32
			circuitID                      int32
			nonce                          *[16]byte
		)
		if err := rows.Scan(&stepNo, &sessionID, &nonce, &dispatch, &circuitID, &moved, &steps); err != nil {
			return err
		}
		if stepNo == nil {
			cancelled.Steps = *steps
			continue
		}
		cancelled.Leases++
		token := task.Token{
			NamespaceID: namespaceID, Step: id.Step(*stepNo), Dispatch: int32(*dispatch), SessionID: *sessionID, CircuitID: circuitID, Nonce: *nonce, //nolint:gosec // an int in the table
		}
		change.Freed = append(change.Freed, token)
		change.Revoked = append(change.Revoked, Revoked{Token: token, Reason: task.RevokedCancelled})
	}
	return rows.Err()
}

func (s *Store) readCancelled(ctx context.Context, tx pgx.Tx, id task.ID, cancelled *task.CancelAnswer) error {
	found, err := s.tasks(ctx, tx, []int64{int64(id)}, false)
	if err == nil && len(found) == 0 {
		return errAgain // purged in between
	}
	if err == nil {
		cancelled.Task = found[0]
	}
	return err
}

// findTask gives a task's namespace and its recorded end, empty when there is none.
func findTask(ctx context.Context, tx pgx.Tx, id task.ID) (namespaceID int32, end task.State, err error) {
	var state *string
	err = tx.QueryRow(ctx, sqlText("find_task"), int64(id)).Scan(&namespaceID, &state)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", task.Refuse(task.TaskNotFound, "there is no task %s", id)
	}
	return namespaceID, task.State(deref(state)), err
}

// takeStep takes a step in error from its place. It looks where the step stands, then takes it there; a step that moves
// in between is looked for again, in a fresh snapshot.
func (s *Store) takeStep(ctx context.Context, tx pgx.Tx, id task.StepID, act Act) (t taken, namespaceID int32, err error) {
	rows, err := tx.Query(ctx, sqlText("find_step"), int64(id.Task()), id.No())
	if err != nil {
		return t, 0, err
	}
	at, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[standing])
	if errors.Is(err, pgx.ErrNoRows) {
		return t, 0, task.Refuse(task.StepNotFound, "there is no step %s", id)
	}
	if err != nil {
		return t, 0, err
	}
	if err := at.canActOn(); err != nil {
		return t, 0, err
	}
	all, err := takeSteps(ctx, tx, []candidate{{int64(id.Task()), id.No(), *at.Place}})
	if err != nil {
		return t, 0, err
	}
	if len(all) == 0 {
		return t, 0, errAgain
	}
	_, err = tx.Exec(ctx, sqlText("reopen_tasks"), s.at(), []int64{int64(id.Task())}, at.NamespaceID, orNil(act.Actor), orNil(act.Reason))
	return all[0], at.NamespaceID, err
}

// candidate is a step and the place it was seen in.
type candidate struct {
	TaskID int64
	StepNo int
	Place  string
}

// takeSteps takes steps in error from their places, in lock order. Those that have moved are absent.
func takeSteps(ctx context.Context, tx pgx.Tx, steps []candidate) ([]taken, error) {
	slices.SortFunc(steps, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.TaskID, b.TaskID), cmp.Compare(a.StepNo, b.StepNo))
	})
	ids, nos, places := make([]int64, len(steps)), make([]int, len(steps)), make([]string, len(steps))
	for i, c := range steps {
		ids[i], nos[i], places[i] = c.TaskID, c.StepNo, c.Place
	}
	rows, err := tx.Query(ctx, sqlText("take_steps"), ids, nos, places)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[taken])
}

// RetryStep makes a step in error due now, with nothing counted against it, and re-opens its task.
func (s *Store) RetryStep(ctx context.Context, id task.StepID, act Act) (step task.StepView, change Change, err error) {
	err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
		change = Change{Tasks: []task.ID{id.Task()}}
		t, namespaceID, err := s.takeStep(ctx, tx, id, act)
		if err != nil {
			return err
		}
		if err := s.putBack(ctx, tx, namespaceID, []taken{t}, []*time.Duration{nil}, act, &change); err != nil {
			return err
		}
		step, err = s.stepNow(ctx, tx, id)
		return err
	})
	return step, change, err
}

// stepNow reads a step within the transaction that changed it.
func (s *Store) stepNow(ctx context.Context, tx pgx.Tx, id task.StepID) (task.StepView, error) {
	found, err := s.steps(ctx, tx, id.Task(), []int64{int64(id)}, false)
	if err == nil && len(found) == 0 {
		err = errAgain // purged in between
	}
	if err != nil {
		return task.StepView{}, err
	}
	return found[0], nil
}

// putBack puts taken steps back as new, each after its wait.
func (s *Store) putBack(ctx context.Context, tx pgx.Tx, namespaceID int32, steps []taken, waits []*time.Duration, act Act, change *Change) error {
	n := len(steps)
	ids, nos, lanes := make([]int64, n), make([]int, n), make([]int32, n)
	dispatches, epochs, events, started := make([]int, n), make([]int, n), make([]int, n), make([]bool, n)
	for i, t := range steps {
		ids[i], nos[i], lanes[i] = t.TaskID, t.StepNo, t.LaneID
		dispatches[i], epochs[i], events[i], started[i] = t.Dispatches, t.Epoch, t.EventNo, t.Started
	}
	rows, err := tx.Query(ctx, sqlText("retry_steps"), s.at(), ids, nos, lanes, dispatches, epochs, events, started, waits, namespaceID,
		orNil(act.Actor), orNil(act.Reason))
	if err != nil {
		return err
	}
	woken, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (w Wake, err error) {
		var seq *int64
		err = row.Scan(&w.LaneID, &seq, &w.Count, &w.DueAt)
		w.Seq = deref(seq)
		return w, err
	})
	change.Wake = append(change.Wake, woken...)
	return err
}

// ResolveStep ends a step in error as resolved_manually: its dependants go on without its results.
func (s *Store) ResolveStep(ctx context.Context, id task.StepID, act Act) (task.StepView, Change, error) {
	return s.endStep(ctx, id, task.StepResolvedManually, nil, act)
}

// CompleteStep ends a step in error as complete, with results that its dependants see.
func (s *Store) CompleteStep(ctx context.Context, id task.StepID, results string, act Act) (task.StepView, Change, error) {
	return s.endStep(ctx, id, task.StepComplete, &results, act)
}

func (s *Store) endStep(ctx context.Context, id task.StepID, state task.StepState, results *string, act Act) (step task.StepView, change Change, err error) {
	err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
		// Another step of the task may be parked, and nothing else left to run: settle looks again.
		change = Change{Tasks: []task.ID{id.Task()}, Settle: []task.ID{id.Task()}}
		t, namespaceID, err := s.takeStep(ctx, tx, id, act)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sqlText("end_step"), s.at(), t.TaskID, t.StepNo, string(state), t.Attempts, t.Failures, t.Dispatches,
			t.LostLeases, t.Epoch, t.EventNo, results, namespaceID, orNil(act.Actor), orNil(act.Reason))
		if err != nil {
			return err
		}
		change.Wake, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (w Wake, err error) {
			err = row.Scan(&w.LaneID, &w.Seq, &w.Count)
			return w, err
		})
		if err != nil {
			return err
		}
		step, err = s.stepNow(ctx, tx, id)
		return err
	})
	return step, change, err
}

// StepKey is a place in a list of steps over all tasks.
type StepKey struct {
	TaskID int64
	StepNo int
}

// BulkRetrySteps does RetryStep to the steps in error that a filter finds after a key, up to r.MaxSteps of them, coming
// due evenly over r.Spread. It answers how many were reset, and the key to go on from; more is false at the end.
func (s *Store) BulkRetrySteps(ctx context.Context, namespaceID int32, r task.BulkRetry, after StepKey) (retried int, next StepKey, more bool, change Change, err error) {
	limit := r.MaxSteps
	if limit <= 0 || limit > task.MaxBulkRetry {
		limit = task.MaxBulkRetry
	}
	var taskIDs []int64
	for _, id := range r.Tasks {
		taskIDs = append(taskIDs, int64(id))
	}
	act := Act{Actor: r.Actor, Reason: r.Reason}
	err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
		retried, next, more, change = 0, after, false, Change{}
		rows, err := tx.Query(ctx, sqlText("bulk_retry_candidates"), namespaceID, after.TaskID, after.StepNo, limit, r.Handlers, r.ErrorCodes,
			orNil(r.TemplateName), taskIDs, r.FailedFrom, r.FailedBefore, r.ParkedOnly)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[candidate])
		if err != nil || len(found) == 0 {
			return err
		}
		last := found[len(found)-1]
		next, more = StepKey{last.TaskID, last.StepNo}, len(found) == limit
		steps, err := takeSteps(ctx, tx, found)
		if err != nil || len(steps) == 0 {
			return err
		}
		waits := make([]*time.Duration, len(steps))
		ids := make([]int64, len(steps))
		for i, t := range steps {
			ids[i] = t.TaskID
			if r.Spread > 0 {
				wait := r.Spread * time.Duration(i) / time.Duration(len(steps))
				waits[i] = &wait
			}
		}
		ids = slices.Compact(ids)
		if _, err := tx.Exec(ctx, sqlText("reopen_tasks"), s.at(), ids, namespaceID, orNil(act.Actor), orNil(act.Reason)); err != nil {
			return err
		}
		for _, id := range ids {
			change.Tasks = append(change.Tasks, task.ID(id))
		}
		retried = len(steps)
		return s.putBack(ctx, tx, namespaceID, steps, waits, act, &change)
	})
	return retried, next, more, change, err
}

// PurgeTask deletes an ended task with everything that belongs to it, its idempotency key included.
func (s *Store) PurgeTask(ctx context.Context, id task.ID, act Act) (change Change, err error) {
	err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
		ids := []int64{int64(id)}
		if _, err := tx.Exec(ctx, sqlText("lock_parked_of"), ids); err != nil {
			return err
		}
		namespaceID, end, err := findTask(ctx, tx, id)
		if err != nil {
			return err
		}
		if end == "" {
			return task.Refuse(task.TaskNotFinished, "the task has not ended")
		}
		var purged int
		err = tx.QueryRow(ctx, sqlText("purge_tasks"), s.at(), ids, nil, namespaceID, orNil(act.Actor), false, orNil(act.Reason)).Scan(&purged)
		if err == nil && purged != 1 {
			return errAgain
		}
		change = Change{Tasks: []task.ID{id}}
		return err
	})
	return change, err
}
