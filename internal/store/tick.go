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
	Pauses    map[int32]int32 // the number of a namespace's pauses, of those looked into
}

// Ask is what a Tick is to find out, and to say.
type Ask struct {
	Looks              map[int32]Look // into lanes, by namespace
	SessionIDs, Epochs []int32        // sessions, and the epoch that each is taken to stand in
	Leases             bool           // whether to tell when the next lease ends: all of them are read for it
	Alive              *[16]byte      // the server that says it is alive, and its sessions with it; nil: it is not said
}

// Tick looks once at what time brings about, and at what else is asked: one statement, whatever that is. It fails where nothing
// can be written.
func (s *Store) Tick(ctx context.Context, ask Ask) (t Tick, err error) {
	var (
		namespaceIDs, lanes                             []int32
		after                                           []int64
		names                                           []string
		laneIDs, laneNamespaces, priorities, circuitIDs []int32
		laneHandlers, circuits                          []string
		generations                                     []int64
		probedAt                                        time.Time
		seqs, returned                                  []*int64
		dueAt                                           []*time.Time
		horizon                                         Horizon
		ids                                             []int32
		kept, drained, superseded                       []bool
		pausedIDs, pauses                               []int32
	)
	for namespaceID, look := range ask.Looks {
		for _, name := range look.Handlers {
			namespaceIDs, names = append(namespaceIDs, namespaceID), append(names, name)
		}
		lanes, after = append(lanes, look.Lanes...), append(after, look.After...)
	}
	if err := s.Hot.QueryRow(ctx, sqlText("tick"), s.at(), namespaceIDs, names, ask.SessionIDs, ask.Epochs, ask.Leases, lanes, after, ask.Alive).Scan(
		&t.ExpiresAt, &t.At, &t.Overdue, &t.Parked, &probedAt, &laneIDs, &laneNamespaces, &laneHandlers, &circuits, &priorities, &circuitIDs,
		&generations, &seqs, &returned, &dueAt, &horizon.Drawn, &horizon.Oldest, &horizon.Next, &ids, &kept, &drained, &superseded,
		&pausedIDs, &pauses); err != nil {
		return Tick{}, err
	}
	t.Probed = make(map[int32][]Probed, len(ask.Looks))
	for i, id := range laneIDs {
		l := Lane{
			ID: id, NamespaceID: laneNamespaces[i], Handler: laneHandlers[i], Circuit: circuits[i], Priority: int(priorities[i]), CircuitID: circuitIDs[i],
		}
		t.Probed[l.NamespaceID] = append(t.Probed[l.NamespaceID], Probed{
			Lane: l, CircuitGeneration: generations[i], Seq: seqs[i], Returned: returned[i], DueAt: dueAt[i], At: probedAt, Horizon: horizon,
		})
	}
	for i, id := range ids {
		t.Kept = append(t.Kept, Kept{SessionID: id, Kept: kept[i], Drained: drained[i], Superseded: superseded[i]})
	}
	t.Pauses = make(map[int32]int32, len(pausedIDs))
	for i, id := range pausedIDs {
		t.Pauses[id] = pauses[i]
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
