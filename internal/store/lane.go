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
	CircuitID   int32 // 0: none
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

// EnsureLane gives a lane's id and its circuit's, making both on their first use.
func (s *Store) EnsureLane(ctx context.Context, l Lane) (id, circuitID int32, err error) {
	err = s.retry(ctx, func() error {
		err := s.Cold.QueryRow(ctx, sqlText("upsert_lane"), l.NamespaceID, l.Handler, l.Circuit, l.Priority).Scan(&id, &circuitID)
		if errors.Is(err, pgx.ErrNoRows) {
			return errAgain
		}
		return err
	})
	return id, circuitID, err
}

// LaneByID reads one lane.
func (s *Store) LaneByID(ctx context.Context, id int32) (Lane, error) {
	rows, err := s.Hot.Query(ctx, sqlText("lane_by_id"), id)
	if err != nil {
		return Lane{}, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Lane])
}

// Look says which lanes of a namespace to look into, and from where.
type Look struct {
	Handlers []string
	Lanes    []int32
	After    []int64 // of each of Lanes: nothing but what came back from a dispatch is sought up to it
}

// Probed says what stands in a lane.
type Probed struct {
	Lane Lane
	// CircuitGeneration is that of the lane's circuit; 0: it has none.
	CircuitGeneration int64
	Seq               *int64     // the lowest ready seq, of those beyond Look.After
	Returned          *int64     // the lowest seq of a ready step that came back from a dispatch
	DueAt             *time.Time // when the earliest backing-off step is due
	At                time.Time  // the database's clock
	Horizon           Horizon
}

// Horizon is what a look tells about rows of ready that are yet to appear.
type Horizon struct {
	Drawn  int64 // the last seq drawn, read after the snapshot was taken
	Oldest int64 // the snapshot's: every transaction before it has ended
	Next   int64 // the snapshot's: no transaction from it on had begun to write
}

// ProbeLanes looks into lanes without taking anything.
func (s *Store) ProbeLanes(ctx context.Context, namespaceID int32, look Look) (probed []Probed, err error) {
	b := &pgx.Batch{}
	queueProbe(b, namespaceID, look, func(p Probed) { probed = append(probed, p) })
	return probed, s.Hot.SendBatch(ctx, b).Close()
}

func queueProbe(b *pgx.Batch, namespaceID int32, look Look, found func(Probed)) {
	each(b, "probe_lanes", func(rows pgx.Rows) error {
		var p Probed
		err := rows.Scan(&p.Lane.ID, &p.Lane.NamespaceID, &p.Lane.Handler, &p.Lane.Circuit, &p.Lane.Priority, &p.Lane.CircuitID, &p.CircuitGeneration, &p.Seq, &p.Returned, &p.DueAt, &p.At,
			&p.Horizon.Drawn, &p.Horizon.Oldest, &p.Horizon.Next)
		found(p)
		return err
	}, namespaceID, look.Handlers, look.Lanes, look.After)
}
