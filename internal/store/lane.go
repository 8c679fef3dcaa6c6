package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// Lane is a row of table lane.
type Lane struct {
	ID          int32
	NamespaceID int32
	Handler     string
	Circuit     string
	Priority    int
}

// EnsureNamespace gives a namespace's id, making it on its first use.
func (s *Store) EnsureNamespace(ctx context.Context, name string) (id int32, err error) {
	err = s.retry(ctx, func() error {
		err := s.Cold.QueryRow(ctx, sqlText("upsert_namespace"), name).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return errAgain // somebody made it after our snapshot
		}
		return err
	})
	return id, err
}

// FindNamespace gives a namespace's id; ok is false when nobody has used it yet.
func (s *Store) FindNamespace(ctx context.Context, name string) (id int32, ok bool, err error) {
	err = s.Cold.QueryRow(ctx, sqlText("find_namespace"), name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return id, err == nil, err
}

// NamespaceExists tells whether a namespace has an id.
func (s *Store) NamespaceExists(ctx context.Context, id int32) (exists bool, err error) {
	err = s.Cold.QueryRow(ctx, sqlText("namespace_by_id"), id).Scan(&exists)
	return exists, err
}

// EnsureLane gives a lane's id, making it on its first use.
func (s *Store) EnsureLane(ctx context.Context, l Lane) (id int32, err error) {
	err = s.retry(ctx, func() error {
		err := s.Cold.QueryRow(ctx, sqlText("upsert_lane"), l.NamespaceID, l.Handler, l.Circuit, l.Priority).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return errAgain
		}
		return err
	})
	return id, err
}

// LaneByID reads one lane.
func (s *Store) LaneByID(ctx context.Context, id int32) (Lane, error) {
	rows, err := s.Hot.Query(ctx, sqlText("lane_by_id"), id)
	if err != nil {
		return Lane{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Lane])
}

// Probed says what stands in a lane.
type Probed struct {
	Lane  Lane
	Seq   *int64     // the lowest ready seq
	DueAt *time.Time // when the earliest backing-off step is due
	At    time.Time  // the database's clock
}

// ProbeLanes looks into the lanes of handlers without taking anything.
func (s *Store) ProbeLanes(ctx context.Context, namespaceID int32, handlers []string) ([]Probed, error) {
	rows, err := s.Hot.Query(ctx, sqlText("probe_lanes"), namespaceID, handlers)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (p Probed, err error) {
		err = row.Scan(&p.Lane.ID, &p.Lane.NamespaceID, &p.Lane.Handler, &p.Lane.Circuit, &p.Lane.Priority, &p.Seq, &p.DueAt, &p.At)
		return p, err
	})
}
