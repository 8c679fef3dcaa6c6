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
	Probed    map[int32][]Probed
	Kept      []Kept
}

// Tick looks once at what time brings about, and into the lanes of handlers, by namespace, and says that sessions are alive,
// which stand in epochs: one statement, whatever is asked. It fails where nothing can be written.
func (s *Store) Tick(ctx context.Context, handlers map[int32][]string, sessionIDs, epochs []int32) (t Tick, err error) {
	var (
		namespaceIDs, laneIDs, laneNamespaces, priorities []int32
		names, laneHandlers, circuits                     []string
		probedAt                                          time.Time
		seqs                                              []*int64
		dueAt                                             []*time.Time
		ids                                               []int32
		kept, drained, superseded                         []bool
	)
	for namespaceID, some := range handlers {
		for _, name := range some {
			namespaceIDs, names = append(namespaceIDs, namespaceID), append(names, name)
		}
	}
	if err := s.Hot.QueryRow(ctx, sqlText("tick"), s.at(), namespaceIDs, names, sessionIDs, epochs).Scan(
		&t.ExpiresAt, &t.At, &t.Overdue, &t.Parked, &probedAt, &laneIDs, &laneNamespaces, &laneHandlers, &circuits, &priorities, &seqs, &dueAt,
		&ids, &kept, &drained, &superseded); err != nil {
		return Tick{}, err
	}
	t.Probed = make(map[int32][]Probed, len(handlers))
	for i, id := range laneIDs {
		l := Lane{ID: id, NamespaceID: laneNamespaces[i], Handler: laneHandlers[i], Circuit: circuits[i], Priority: int(priorities[i])}
		t.Probed[l.NamespaceID] = append(t.Probed[l.NamespaceID], Probed{Lane: l, Seq: seqs[i], DueAt: dueAt[i], At: probedAt})
	}
	for i, id := range ids {
		t.Kept = append(t.Kept, Kept{SessionID: id, Kept: kept[i], Drained: drained[i], Superseded: superseded[i]})
	}
	return t, nil
}

// Unsettled finds tasks that ended in error without a note of it, at most 500. It reads all parked rows.
func (s *Store) Unsettled(ctx context.Context) ([]task.ID, error) {
	rows, err := s.Cold.Query(ctx, sqlText("unsettled"))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[task.ID])
}
