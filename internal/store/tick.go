package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Tick is what time alone has brought about, and what stands in the lanes that were asked about.
type Tick struct {
	ExpiresAt *time.Time // when the next lease ends; nil: nothing runs, or it was not asked for
	At        time.Time  // the clock it was judged by
	Overdue   bool       // a deadline has passed
	Parked    bool       // some step is parked: its task may be unsettled
	Probed    map[int32][]Probed
}

// Tick looks once at what time brings about, and into lanes, by namespace: one round trip, whatever is asked.
// When the next lease ends is told if leases is true: all of them are read for it.
func (s *Store) Tick(ctx context.Context, looks map[int32]Look, leases bool) (t Tick, err error) {
	b := &pgx.Batch{}
	b.Queue(sqlText("tick"), s.at(), leases).QueryRow(func(row pgx.Row) error {
		return row.Scan(&t.ExpiresAt, &t.At, &t.Overdue, &t.Parked)
	})
	t.Probed = make(map[int32][]Probed, len(looks))
	for namespaceID, look := range looks {
		queueProbe(b, namespaceID, look, func(p Probed) { t.Probed[namespaceID] = append(t.Probed[namespaceID], p) })
	}
	return t, s.Hot.SendBatch(ctx, b).Close()
}

// Unsettled finds tasks that ended in error without a note of it, at most 500. It reads all parked rows.
func (s *Store) Unsettled(ctx context.Context) ([]task.ID, error) {
	rows, err := s.Cold.Query(ctx, sqlText("unsettled"))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[task.ID])
}
