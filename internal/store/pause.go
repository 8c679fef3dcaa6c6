package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Pauses are those of a namespace that are in force.
type Pauses struct {
	// Revision rises with each pause and resume. What a claim names by it, it has left out.
	Revision int32
	At       time.Time // the database's clock, by which they are in force
	// Until is when each ends by itself, by handler; nil: when it is resumed. The handler of a whole namespace's is empty.
	Until map[string]*time.Time
}

// Pauses reads the pauses of a namespace.
func (s *Store) Pauses(ctx context.Context, namespaceID int32) (p Pauses, err error) {
	var (
		handlers []string
		untils   []*time.Time
	)
	err = s.Hot.QueryRow(ctx, sqlText("read_pauses"), s.at(), namespaceID).Scan(&p.Revision, &p.At, &handlers, &untils)
	p.Until = make(map[string]*time.Time, len(handlers))
	for i, h := range handlers {
		p.Until[h] = untils[i]
	}
	return p, err
}

// PauseHandler stops the dispatching of a handler, or of all where p.Handler is empty: once it has returned, no claim of any
// server is granted a step of it. It replaces an earlier pause of the same handler. p.Since is for it to set.
func (s *Store) PauseHandler(ctx context.Context, namespaceID int32, p task.Pause) (_ task.Pause, revision int32, err error) {
	err = s.onPauses(ctx, namespaceID, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, sqlText("raise_pauses"), namespaceID).Scan(&revision); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, sqlText("fence_sessions"), s.at(), namespaceID, revision).Scan(&p.Since); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlText("end_pause"), p.Since, namespaceID, p.Handler, orNil(p.Actor), "paused anew"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlText("insert_pause"), namespaceID, p.Handler, p.Since, p.Until, p.Reason, orNil(p.Actor))
		return err
	})
	return p, revision, err
}

// ResumeHandler ends a handler's pause and gives it; nil where none was in force.
func (s *Store) ResumeHandler(ctx context.Context, namespaceID int32, handler string, act Act) (ended *task.Pause, revision int32, err error) {
	err = s.onPauses(ctx, namespaceID, func(tx pgx.Tx) error {
		ended = nil
		var lasted bool
		p := task.Pause{Handler: handler}
		err := tx.QueryRow(ctx, sqlText("end_pause"), s.at(), namespaceID, handler, orNil(act.Actor), orNil(act.Reason)).
			Scan(&lasted, &p.Reason, &p.Actor, &p.Since, &p.Until)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil || !lasted {
			return err
		}
		ended = &p
		return tx.QueryRow(ctx, sqlText("raise_pauses"), namespaceID).Scan(&revision)
	})
	return ended, revision, err
}

// onPauses runs f in a transaction that has the pauses of a namespace for itself.
func (s *Store) onPauses(ctx context.Context, namespaceID int32, f func(pgx.Tx) error) error {
	return s.inTx(ctx, s.Hot, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlText("lock_pauses"), namespaceID); err != nil {
			return err
		}
		return f(tx)
	})
}

// ListPauses reads pauses that are in force, by handler, those behind after; nil: from the first.
func (s *Store) ListPauses(ctx context.Context, namespaceID int32, after *string, limit int) ([]*task.Pause, error) {
	rows, err := s.Cold.Query(ctx, sqlText("list_pauses"), s.at(), namespaceID, after, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*task.Pause, error) {
		var p task.Pause
		err := row.Scan(&p.Handler, &p.Reason, &p.Actor, &p.Since, &p.Until)
		return &p, err
	})
}
