package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// Gauge is a reading of the database, for metrics.
type Gauge struct {
	Lanes    []LaneGauge
	Circuits []CircuitGauge
	Pauses   []PauseGauge // in force
	Leases   int64
	XminAge  int64 // transactions since the oldest snapshot in use
}

// LaneGauge is what stands in a lane. Counts end at maxGauged.
type LaneGauge struct {
	Namespace    string
	Handler      string
	Circuit      string
	Priority     int
	Ready        int64
	Waiting      int64
	OldestDueAge time.Duration // 0: nothing may run
}

// CircuitGauge is a shared circuit as it stands.
type CircuitGauge struct {
	Namespace string
	Circuit   string
	State     task.CircuitState
	InFlight  int64
	Waiting   int64 // counted up to 10,000
}

// PauseGauge is a pause that is in force.
type PauseGauge struct {
	Namespace string
	Handler   string // empty: every handler of the namespace
	Age       time.Duration
}

// maxGauged is how far a lane's steps are counted.
const maxGauged = 10_000

// Gauge reads what all namespaces hold.
func (s *Store) Gauge(ctx context.Context) (g Gauge, err error) {
	rows, err := s.Cold.Query(ctx, sqlText("gauge_lanes"), s.at(), maxGauged)
	if err != nil {
		return g, err
	}
	g.Lanes, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (l LaneGauge, err error) {
		var age *time.Duration
		err = row.Scan(&l.Namespace, &l.Handler, &l.Circuit, &l.Priority, &l.Ready, &l.Waiting, &age)
		l.OldestDueAge = deref(age)
		return l, err
	})
	if err != nil {
		return g, err
	}
	if rows, err = s.Cold.Query(ctx, sqlText("gauge_circuits")); err != nil {
		return g, err
	}
	if g.Circuits, err = pgx.CollectRows(rows, pgx.RowToStructByPos[CircuitGauge]); err != nil {
		return g, err
	}
	if rows, err = s.Cold.Query(ctx, sqlText("gauge_pauses"), s.at()); err != nil {
		return g, err
	}
	if g.Pauses, err = pgx.CollectRows(rows, pgx.RowToStructByPos[PauseGauge]); err != nil {
		return g, err
	}
	return g, s.Cold.QueryRow(ctx, sqlText("gauge_database")).Scan(&g.Leases, &g.XminAge)
}
