package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Tick is what time alone has brought about, and what stands in the lanes that were asked about.
type Tick struct {
	ExpiresAt *time.Time // when the next lease ends; nil: nothing runs
	At        time.Time  // the clock it was judged by
	Overdue   bool       // a deadline has passed
	Parked    bool       // some step is parked: its task may be unsettled
	Standby   bool       // this Postgres cannot be written to
	Probed    map[int32][]Probed
	Kept      []Kept
}

// Tick looks once at what time brings about, and into the lanes of handlers, by namespace, and says that sessions are alive,
// which stand in epochs: one round trip, whatever is asked.
func (s *Store) Tick(ctx context.Context, handlers map[int32][]string, sessionIDs, epochs []int32) (t Tick, err error) {
	b := &pgx.Batch{}
	b.Queue(sqlText("tick"), s.at()).QueryRow(func(row pgx.Row) error {
		return row.Scan(&t.ExpiresAt, &t.At, &t.Overdue, &t.Parked, &t.Standby)
	})
	t.Probed = make(map[int32][]Probed, len(handlers))
	for namespaceID, names := range handlers {
		queueProbe(b, namespaceID, names, func(p Probed) { t.Probed[namespaceID] = append(t.Probed[namespaceID], p) })
	}
	if len(sessionIDs) > 0 {
		// The last of them: it waits for locks, and a COMMIT follows it.
		each(b, "keep_sessions", func(rows pgx.Rows) error {
			var k Kept
			err := rows.Scan(&k.SessionID, &k.Kept, &k.Drained, &k.Superseded)
			t.Kept = append(t.Kept, k)
			return err
		}, sessionIDs, epochs, s.at())
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
