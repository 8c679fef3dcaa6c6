package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// b6Scenario is a steady rate under a transaction that idles and keeps the database from forgetting dead rows.
var b6Scenario = scenario{
	name:  "B6",
	about: "a steady rate of steps while a REPEATABLE READ transaction idles: rate and waits against those before it began",
	estimate: func(s *sizes) time.Duration {
		return s.floorEstimate(s.floorWindow) + s.oldBefore + s.oldDuring + 2*time.Second
	},
	run: runB6,
}

// Bars of B6, as shares of what was before the snapshot.
const (
	oldRateBar = 0.9
	oldWaitBar = 2.0

	// oldEvery is the timetable's grain: so many tasks are submitted by one call.
	oldEvery = 20 * time.Millisecond
	// oldParts is into how many parts the time under the snapshot is cut: the last one is judged, when most is dead.
	oldParts = 3
)

func runB6(ctx context.Context, w *world) error {
	w.phase(w.floorEstimate(w.floorWindow), "B6: the floor")
	floor, err := w.runFloor(ctx, w.floorWindow)
	if err != nil {
		return err
	}
	size := max(1, w.oldRate*int(oldEvery/time.Millisecond)/1000)
	p, err := w.openPulse(ctx, "", "bench-steady", size, w.server(), w.server())
	if err != nil {
		return err
	}
	defer p.close() //nolint:errcheck // an error of its crew is an error of its runs
	w.phase(w.oldBefore, "B6: %d steps a second", w.oldRate)
	if _, err := p.run(oldEvery, int(w.oldBefore/oldEvery)/4); err != nil { // warms up
		return err
	}
	var before *pulseTimes
	spentBefore, err := w.costOf(ctx, size*int(w.oldBefore/oldEvery), func() (err error) {
		before, err = p.run(oldEvery, int(w.oldBefore/oldEvery))
		return err
	})
	if err != nil {
		return err
	}

	old, err := w.openSnapshot(ctx)
	if err != nil {
		return err
	}
	defer old.Close(context.WithoutCancel(ctx)) // ends the transaction
	var during *pulseTimes
	var spent cost
	part := w.oldDuring / oldParts
	for i := range oldParts {
		w.phase(part, "B6: under a snapshot, part %d of %d", i+1, oldParts)
		spent, err = w.costOf(ctx, size*int(part/oldEvery), func() (err error) {
			during, err = p.run(oldEvery, int(part/oldEvery))
			return err
		})
		if err != nil {
			return err
		}
		during.recordIn(w.doc, fmt.Sprintf("B6.under.part%d", i+1))
	}
	var held int64
	err = w.conn.QueryRow(ctx, "select coalesce(max(age(backend_xmin)), 0) from pg_stat_activity where datname = current_database() and state = 'idle in transaction'").Scan(&held)
	if err != nil {
		return fmt.Errorf("reading the snapshot's age: %w", err)
	}

	before.recordIn(w.doc, "B6.before")
	spentBefore.record(w.doc, "B6.before")
	spent.record(w.doc, "B6.under")
	w.doc.Set("B6.intended_per_s", float64(size)/oldEvery.Seconds())
	w.doc.Set("B6.floor.steps_per_s", floor.StepsPerSec)
	w.doc.Set("B6.snapshot_age", float64(held))
	rate := during.perSecond / before.perSecond
	w.doc.judge(row{
		name: "B6.rate", unit: "steps/s", ours: during.perSecond, floor: before.perSecond, ratio: rate, beside: "before",
		// A snapshot that held nothing would prove nothing.
		bar: fmt.Sprintf("≥ %g", oldRateBar), met: rate >= oldRateBar && held > 0,
	})
	ours, was := during.start.ms(99), before.start.ms(99)
	w.doc.judge(row{
		name: "B6.wait", unit: "ms p99 start", ours: ours, floor: was, ratio: ours / was, beside: "before",
		bar: fmt.Sprintf("≤ %g", oldWaitBar), met: ours/was <= oldWaitBar,
	})
	return nil
}

// openSnapshot begins a transaction that has looked at the queue and idles from then on.
func (w *world) openSnapshot(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	for _, sql := range []string{"begin isolation level repeatable read", "select count(*) from ready"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
			return nil, fmt.Errorf("opening a snapshot: %w", err)
		}
	}
	return conn, nil
}
