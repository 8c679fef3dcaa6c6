// Package simulate replays what was recorded of shared circuits under another policy.
//
//	run     one recorded run of a step that called a circuit: when it began and ended, how, and on which worker
//	replay  the runs of one circuit, led in their order through the circuit's own state machine, which is that of the schema
//	trip    from the moment a circuit leaves closed to the moment it is closed again
//
// The record says what happened, not what would have: a run that the replayed circuit keeps back is gone, and the one that would
// have been made later in its stead is not known. So what passes for probes and waves are the runs that began at such a time.
package simulate

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

//go:embed sql/*.sql
var sqlFiles embed.FS

func sqlText(name string) string {
	text, err := sqlFiles.ReadFile("sql/" + name + ".sql")
	if err != nil {
		panic(err) // embedded: a misspelt name
	}
	return string(text)
}

// Options say what to replay, and under which policy.
type Options struct {
	Namespace string
	Circuit   string             // empty: every one that had runs
	Policy    task.CircuitPolicy // its fields named in Fields are set on the circuit, beside what is set on it; nil: unset
	Fields    []string           // as task.CircuitPolicy.Set names them
	From      time.Time          // runs that ended at or after
	Until     time.Time          // and before; zero: now
}

// Report is what a replay came to.
type Report struct {
	Namespace string    `json:"namespace"`
	From      time.Time `json:"from"`
	Until     time.Time `json:"until"`
	Circuits  []Circuit `json:"circuits"`
}

// Circuit is one circuit's replay beside its record.
type Circuit struct {
	Name     string  `json:"circuit"`
	Runs     int     `json:"runs"`     // recorded
	Failed   int     `json:"failed"`   // of them, retryable failures and run timeouts
	Answered int     `json:"answered"` // of them, successes and permanent failures
	Recorded Outcome `json:"recorded"`
	Replayed Outcome `json:"replayed"`

	// KeptBack runs began while the replayed circuit let none through.
	KeptBack int `json:"keptBack"`
	// CallsSaved are those of them that failed.
	CallsSaved int `json:"callsSaved"`
	// RunsDelayed are those of them that were answered: they would have come later, by this much in all and at most.
	RunsDelayed  int     `json:"runsDelayed"`
	DelayAdded   Seconds `json:"delayAddedSeconds"`
	LongestDelay Seconds `json:"longestDelaySeconds"`
	// Rerouted runs were those of workers that the replay had barred: another worker would have had them.
	Rerouted int `json:"rerouted"`
}

// Outcome is what happened to a circuit within the time.
type Outcome struct {
	Trips []Trip  `json:"trips"`
	Open  Seconds `json:"openSeconds"` // in all; while probing and recovering it is not open
	State string  `json:"state"`       // in the end
}

// Trip is a circuit's way from closed to closed.
type Trip struct {
	At       time.Time  `json:"at"`
	Cause    string     `json:"cause"`
	Observed int        `json:"observed"` // in the window, when it was judged
	Failed   int        `json:"failed"`
	Slow     int        `json:"slow"`
	Reopened int        `json:"reopened"` // how often probes or waves failed
	Open     Seconds    `json:"openSeconds"`
	PassedAt *time.Time `json:"passedAt"` // when the probes had passed for good; nil: not within the time
	ClosedAt *time.Time `json:"closedAt"` // nil: not within the time
}

// Seconds is a duration that is written as a number of seconds.
type Seconds float64

// Duration is the same to the millisecond.
func (s Seconds) Duration() time.Duration {
	return time.Duration(float64(s) * float64(time.Second)).Round(time.Millisecond)
}

// ErrNoCircuit is that the one circuit that was asked for had no runs within the time.
var ErrNoCircuit = errors.New("no recorded run of that circuit ended within the time")

// Replay reads the record in one snapshot and changes nothing.
func Replay(ctx context.Context, conn *pgx.Conn, o Options) (report Report, err error) {
	set, err := changes(o.Policy, o.Fields)
	if err != nil {
		return report, err
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return report, fmt.Errorf("replaying circuits: %w", err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	r := replay{tx: tx, Options: o, set: set}
	if report, err = r.all(ctx); err != nil {
		return report, fmt.Errorf("replaying circuits: %w", err)
	}
	if o.Circuit != "" && len(report.Circuits) == 0 {
		return report, ErrNoCircuit
	}
	return report, nil
}

type replay struct {
	Options
	tx  pgx.Tx
	set []byte
}

func (r *replay) all(ctx context.Context) (report Report, err error) {
	// Sorting the runs takes longest; plans for single look-ups do not help.
	if _, err := r.tx.Exec(ctx, "set local work_mem = '128MB'; set local jit = off"); err != nil {
		return report, err
	}
	if r.Until.IsZero() {
		if err := r.tx.QueryRow(ctx, "select now()").Scan(&r.Until); err != nil {
			return report, err
		}
	}
	report = Report{Namespace: r.Namespace, From: r.From, Until: r.Until, Circuits: []Circuit{}}
	if _, err := r.tx.Exec(ctx, sqlText("recorded_runs"), r.Namespace, r.Circuit, r.From, r.Until); err != nil {
		return report, fmt.Errorf("reading the recorded runs: %w", err)
	}
	if _, err := r.tx.Exec(ctx, sqlText("replay")); err != nil {
		return report, err
	}
	rows, _ := r.tx.Query(ctx, sqlText("circuits"), r.Namespace)
	type found struct {
		id int32
		Circuit
	}
	circuits, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f found, err error) {
		err = row.Scan(&f.id, &f.Name, &f.Runs, &f.Failed, &f.Answered)
		return f, err
	})
	if err != nil {
		return report, err
	}
	for _, f := range circuits {
		if err := r.one(ctx, f.id, &f.Circuit); err != nil {
			return report, fmt.Errorf("%s: %w", f.Name, err)
		}
		report.Circuits = append(report.Circuits, f.Circuit)
	}
	return report, nil
}

// turn is one thing that happened to a circuit.
type turn struct {
	at                     time.Time
	from, to               string
	cause                  *string // nil: the end of the time
	observed, failed, slow *int
}

func (r *replay) one(ctx context.Context, id int32, c *Circuit) error {
	rows, _ := r.tx.Query(ctx, `
		select at, from_state, to_state, cause, observed, failed, slow, kept_back, saved, delayed, delay_s, longest_delay_s, rerouted
		from pg_temp.circuit_replayed($1, $2, $3, $4)`, id, string(r.set), r.From, r.Until)
	turns, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t turn, err error) {
		err = row.Scan(&t.at, &t.from, &t.to, &t.cause, &t.observed, &t.failed, &t.slow,
			&c.KeptBack, &c.CallsSaved, &c.RunsDelayed, &c.DelayAdded, &c.LongestDelay, &c.Rerouted)
		return t, err
	})
	if err != nil {
		return err
	}
	c.Replayed = outcome(turns, r.Until)
	rows, _ = r.tx.Query(ctx, sqlText("recorded_events"), r.Namespace, c.Name, r.From, r.Until)
	turns, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t turn, err error) {
		err = row.Scan(&t.at, &t.from, &t.to, &t.cause, &t.observed, &t.failed, &t.slow)
		return t, err
	})
	if err != nil {
		return fmt.Errorf("reading its record: %w", err)
	}
	c.Recorded = outcome(turns, r.Until)
	return nil
}

// outcome puts together what happened to a circuit until an instant.
func outcome(turns []turn, until time.Time) Outcome {
	o := Outcome{Trips: []Trip{}, State: string(task.CircuitClosed)}
	const open, recovering, closed = string(task.CircuitOpen), string(task.CircuitRecovering), string(task.CircuitClosed)
	var trip *Trip // under way
	since := until // when it last opened
	leave := func(at time.Time) {
		if o.State == open && trip != nil {
			trip.Open += Seconds(at.Sub(since).Seconds())
		}
	}
	for _, t := range turns {
		if t.cause == nil || t.to == o.State {
			continue
		}
		leave(t.at)
		switch {
		case t.to == open:
			since = t.at
			if trip != nil {
				trip.Reopened++
				trip.PassedAt = nil
				break
			}
			o.Trips = append(o.Trips, Trip{At: t.at, Cause: *t.cause, Observed: zero(t.observed), Failed: zero(t.failed), Slow: zero(t.slow)})
			trip = &o.Trips[len(o.Trips)-1]
		case trip != nil && (t.to == recovering || t.to == closed):
			if trip.PassedAt == nil {
				trip.PassedAt = &t.at
			}
			if t.to == closed {
				trip.ClosedAt, trip = &t.at, nil
			}
		}
		o.State = t.to
	}
	leave(until)
	for _, t := range o.Trips {
		o.Open += t.Open
	}
	return o
}

func zero(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

// changes are fields of a policy as attributes of the type circuit_policy.
func changes(p task.CircuitPolicy, fields []string) ([]byte, error) {
	var set task.CircuitPolicy
	if err := set.Set(p, fields); err != nil {
		return nil, err
	}
	if err := set.Check(); err != nil {
		return nil, err
	}
	all := map[string]any{
		"window_duration": span(p.Window), "min_observations": p.MinObservations, "failure_rate_threshold": p.FailureRateThreshold,
		"slow_call_duration": span(p.SlowCallDuration), "slow_rate_threshold": p.SlowRateThreshold, "min_failing_workers": p.MinFailingWorkers,
		"open_duration": span(p.OpenDuration), "max_open_duration": span(p.MaxOpenDuration), "max_probes": p.MaxProbes,
		"close_after_successes": p.CloseAfterSuccesses, "recovery_wave": p.RecoveryWave, "max_in_flight": p.MaxInFlight, "rate": p.Rate,
		"suspend_budgets": p.SuspendBudgets,
	}
	out := map[string]any{}
	for _, f := range fields {
		out[f] = all[f]
	}
	return json.Marshal(out)
}

// span is an interval as Postgres reads it.
func span(d *time.Duration) any {
	if d == nil {
		return nil
	}
	return fmt.Sprintf("%d microseconds", d.Microseconds())
}
