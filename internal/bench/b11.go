package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// b11Scenario is a load that comes right after empty tables were vacuumed and Postgres was restarted, when plans are made
// that suit empty tables.
var b11Scenario = scenario{
	name:  "B11",
	about: "a load right after a VACUUM of empty tables and a restart of Postgres, ANALYZE in its middle: what each statement takes against its usual",
	estimate: func(s *sizes) time.Duration {
		return time.Duration(4*s.freshSteps)*stepTime + 3*stageEstimate
	},
	run: runB11,
}

// planBar is how many times its usual time a statement may take a step.
const planBar = 3.0

func runB11(ctx context.Context, w *world) error {
	w.phase(stageEstimate, "B11: restarting")
	// Twice the same way, but for what the tables held when the plans were made.
	if err := w.restart(ctx); err != nil {
		return err
	}
	n := w.freshSteps
	l, err := w.openLot(ctx, "", "bench-fresh")
	if err != nil {
		return err
	}
	w.phase(2*time.Duration(n)*stepTime, "B11: the usual, %d steps", n)
	if _, err := l.run(ctx, n); err != nil { // warms up
		l.close()
		return err
	}
	counted, err := w.resetStatements(ctx)
	if err != nil {
		l.close()
		return err
	}
	var usualTook time.Duration
	spentUsual, err := w.costOf(ctx, n, func() (err error) {
		usualTook, err = l.run(ctx, n)
		return err
	})
	l.close()
	if err != nil {
		return err
	}
	var usual statementTimes
	if counted {
		if usual, err = w.readStatements(ctx); err != nil {
			return err
		}
	}

	w.phase(stageEstimate, "B11: vacuuming empty tables and restarting")
	if err := w.stopServers(); err != nil {
		return err
	}
	if err := w.vacuumEmpty(ctx); err != nil {
		return err
	}
	if err := w.restart(ctx); err != nil {
		return err
	}
	if _, err := w.resetStatements(ctx); err != nil {
		return err
	}
	w.phase(2*time.Duration(n)*stepTime, "B11: %d steps after it", n+n/2)
	if l, err = w.openLot(ctx, "", "bench-fresh"); err != nil {
		return err
	}
	defer l.close()
	var took time.Duration
	var analyzed int64
	// Half as many again run when the analysis is over for certain.
	all := n + n/2
	spent, err := w.costOf(ctx, all, func() (err error) {
		if took, analyzed, err = w.runAnalyzed(ctx, l, n); err != nil {
			return err
		}
		after, err := l.run(ctx, n/2)
		took += after
		return err
	})
	if err != nil {
		return err
	}
	spentUsual.record(w.doc, "B11.usual")
	spent.record(w.doc, "B11.fresh")
	w.doc.Set("B11.steps", float64(all))
	w.doc.Set("B11.analyzed_at_step", float64(analyzed))
	w.doc.Set("B11.postgres_restarted", w.databases.own != nil)
	rate, usualRate := float64(all)/took.Seconds(), float64(n)/usualTook.Seconds()
	r := row{name: "B11.rate", unit: "steps/s", ours: rate, floor: usualRate, ratio: rate / usualRate, beside: "usual"}
	if !counted {
		// Nothing tells the statements apart: three times as long for all of them together would be missed by no one.
		r.bar, r.met = fmt.Sprintf("≥ 1/%g", planBar), r.ratio >= 1/planBar
		w.doc.judge(r)
		return nil
	}
	w.doc.judge(r)
	now, err := w.readStatements(ctx)
	if err != nil {
		return err
	}
	name, was, is, err := worstStatement(usual, float64(n), now, float64(all))
	if err != nil {
		return err
	}
	w.doc.Set("B11.worst", name)
	w.doc.judge(row{
		name: "B11", unit: "µs a step", ours: is, floor: was, ratio: is / was, beside: "usual", bar: fmt.Sprintf("≤ %g", planBar), met: is/was <= planBar,
	})
	return nil
}

// restart ends the servers, restarts Postgres if it is ours, and starts a server.
func (w *world) restart(ctx context.Context) error {
	if err := w.stopServers(); err != nil {
		return err
	}
	if err := w.restartPostgres(ctx); err != nil {
		return err
	}
	_, err := w.addServer(ctx)
	return err
}

// vacuumEmpty vacuums and analyzes all tables, when those of the queue are empty.
func (w *world) vacuumEmpty(ctx context.Context) error {
	var live int64
	err := w.conn.QueryRow(ctx, "select (select count(*) from ready) + (select count(*) from backoff) + (select count(*) from lease)").Scan(&live)
	if err != nil {
		return fmt.Errorf("looking whether the queue is empty: %w", err)
	}
	if live != 0 {
		return fmt.Errorf("%d steps are left in the queue", live)
	}
	if _, err := w.conn.Exec(ctx, "vacuum (analyze)"); err != nil {
		return fmt.Errorf("vacuuming: %w", err)
	}
	return nil
}

// runAnalyzed runs n steps of a lot and analyzes all tables when half of them have ended. It tells after how many that was
// over.
func (w *world) runAnalyzed(ctx context.Context, l *lot, n int) (took time.Duration, at int64, err error) {
	conn, err := pgx.Connect(ctx, w.url)
	if err != nil {
		return 0, 0, fmt.Errorf("connecting: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	ran, cancel := context.WithCancel(ctx)
	defer cancel()
	analyzed := make(chan error, 1)
	go func() {
		for ran.Err() == nil && l.recorded.Load() < int64(n/2) {
			pause(ran, time.Millisecond)
		}
		_, err := conn.Exec(ctx, "analyze")
		at = l.recorded.Load()
		analyzed <- err
	}()
	took, err = l.run(ctx, n)
	cancel()
	err = errors.Join(err, <-analyzed) // at is written by then
	return took, at, err
}
