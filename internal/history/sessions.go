package history

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// span is how long a session held a confirmed lease. A zero end: it holds it still.
type span struct{ from, to time.Time }

// checkSessions goes through each session's confirmed leases in time.
func (c *checker) checkSessions(ctx context.Context, tx pgx.Tx) error {
	limits := map[int32]int{}
	var (
		id    int32
		limit int
	)
	rows, _ := tx.Query(ctx, sqlText("sessions"))
	if _, err := pgx.ForEachRow(rows, []any{&id, &limit}, func() error {
		limits[id] = limit
		return nil
	}); err != nil {
		return err
	}
	var dropped bool
	if err := tx.QueryRow(ctx, sqlText("sessions_dropped")).Scan(&dropped); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(c.heldBy)) {
		limit, known := limits[id]
		if !known && dropped {
			continue // as old as what retention keeps
		}
		if !known {
			c.r.add(Violation{Invariant: "S10", Message: fmt.Sprintf("session %d held leases and does not exist", id)})
			continue
		}
		if most, at := mostAtOnce(c.heldBy[id]); most > limit {
			c.r.add(Violation{Invariant: "S10", Message: fmt.Sprintf("session %d held %d confirmed leases at %s, its max_in_flight is %d", id, most,
				at.UTC().Format(time.RFC3339Nano), limit)})
		}
	}
	return nil
}

// mostAtOnce is how many spans overlap at most, and when first. A span that ends where another begins does not overlap it.
func mostAtOnce(spans []span) (most int, when time.Time) {
	type turn struct {
		at   time.Time
		step int
	}
	turns := make([]turn, 0, 2*len(spans))
	for _, s := range spans {
		turns = append(turns, turn{s.from, 1})
		if !s.to.IsZero() {
			turns = append(turns, turn{s.to, -1})
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.step, b.step)) })
	held := 0
	for _, t := range turns {
		if held += t.step; held > most {
			most, when = held, t.at
		}
	}
	return most, when
}
