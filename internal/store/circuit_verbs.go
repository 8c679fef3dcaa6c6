package store

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/task"
)

// policyFields are where a policy's attributes are scanned to, and taken from as arguments, in the order of circuit_policy.
func policyFields(p *task.CircuitPolicy) []any {
	return []any{
		&p.Window, &p.MinObservations, &p.FailureRateThreshold, &p.SlowCallDuration, &p.SlowRateThreshold, &p.MinFailingWorkers,
		&p.OpenDuration, &p.MaxOpenDuration, &p.MaxProbes, &p.CloseAfterSuccesses, &p.RecoveryWave, &p.MaxInFlight, &p.Rate,
		&p.SuspendBudgets,
	}
}

func policyArgs(p *task.CircuitPolicy) []any {
	return []any{
		p.Window, p.MinObservations, p.FailureRateThreshold, p.SlowCallDuration, p.SlowRateThreshold, p.MinFailingWorkers,
		p.OpenDuration, p.MaxOpenDuration, p.MaxProbes, p.CloseAfterSuccesses, p.RecoveryWave, p.MaxInFlight, p.Rate,
		p.SuspendBudgets,
	}
}

// EnsureCircuit gives a circuit's id, making it on its first use.
func (s *Store) EnsureCircuit(ctx context.Context, namespaceID int32, name string) (id int32, err error) {
	err = s.retry(ctx, func() error {
		err := s.Cold.QueryRow(ctx, sqlText("ensure_circuit"), namespaceID, name).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) {
			return errAgain // somebody made it after our snapshot
		}
		return err
	})
	return id, err
}

// CircuitFilter chooses circuits of a namespace.
type CircuitFilter struct {
	Names      []string // nil: all
	States     []task.CircuitState
	MinWaiting int
	After      string
	Limit      int // 0: no bound
}

// Circuits reads circuits as they stand, by name, without locks. Their Namespace is left to the caller.
func (s *Store) Circuits(ctx context.Context, namespaceID int32, f CircuitFilter) ([]*task.Circuit, error) {
	var states []string
	for _, x := range f.States {
		states = append(states, string(x))
	}
	if f.Limit == 0 {
		f.Limit = math.MaxInt32
	}
	rows, err := s.Cold.Query(ctx, sqlText("read_circuits"), s.at(), namespaceID, f.Names, states, f.MinWaiting, f.After, f.Limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*task.Circuit, error) {
		var (
			c                 task.Circuit
			cause             *string
			openFor           *time.Duration
			holdReason, actor *string
			holdFrom          *time.Time
			holdUntil         *time.Time
			workers           []string
			untils            []time.Time
		)
		into := []any{
			&c.ID, &c.Name, &c.State, &c.Generation, &c.Since, &cause, &c.OpenUntil, &openFor, &holdReason, &actor, &holdFrom, &holdUntil,
			&c.Observed, &c.Failed, &c.Slow, &c.FailingWorkers, &c.Probes, &c.Wave, &c.WaveDone, &c.InFlight, &c.Waiting,
			&workers, &untils, &c.CreatedAt,
		}
		into = append(into, policyFields(&c.Policy)...)
		into = append(into, policyFields(&c.InForce)...)
		if err := row.Scan(into...); err != nil {
			return nil, err
		}
		c.Cause, c.OpenFor = task.CircuitCause(deref(cause)), deref(openFor)
		if holdFrom != nil {
			c.Hold = &task.CircuitHold{Reason: deref(holdReason), Actor: deref(actor), From: *holdFrom, Until: holdUntil}
		}
		for i, w := range workers {
			c.Barred = append(c.Barred, task.BarredWorker{WorkerID: w, Until: untils[i]})
		}
		return &c, nil
	})
}

// CircuitDefaults reads a namespace's default policy, and what is in force for a circuit that sets nothing.
func (s *Store) CircuitDefaults(ctx context.Context, namespaceID int32) (set, inForce task.CircuitPolicy, err error) {
	err = s.Cold.QueryRow(ctx, sqlText("circuit_defaults"), namespaceID).Scan(append(policyFields(&set), policyFields(&inForce)...)...)
	return set, inForce, err
}

// SetCircuitPolicy changes the policy set on a circuit: change is told what is set, and says what shall be.
func (s *Store) SetCircuitPolicy(ctx context.Context, id int32, act Act, change func(task.CircuitPolicy) (task.CircuitPolicy, error)) error {
	return s.onCircuits(ctx, []int32{id}, func(tx pgx.Tx) error {
		var p task.CircuitPolicy
		if err := tx.QueryRow(ctx, sqlText("circuit_policy"), id).Scan(policyFields(&p)...); err != nil {
			return err
		}
		p, err := change(p)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sqlText("set_circuit_policy"), append([]any{s.at(), id, orNil(act.Actor), orNil(act.Reason)}, policyArgs(&p)...)...)
		return err
	})
}

// SetCircuitDefaults changes a namespace's default policy, and gives the circuits that it may decide.
func (s *Store) SetCircuitDefaults(ctx context.Context, namespaceID int32, act Act, change func(task.CircuitPolicy) (task.CircuitPolicy, error)) (ids []int32, err error) {
	rows, err := s.Cold.Query(ctx, sqlText("circuit_ids"), namespaceID)
	if err != nil {
		return nil, err
	}
	if ids, err = pgx.CollectRows(rows, pgx.RowTo[int32]); err != nil {
		return nil, err
	}
	return ids, s.onCircuits(ctx, ids, func(tx pgx.Tx) error {
		var p, inForce task.CircuitPolicy
		if err := tx.QueryRow(ctx, sqlText("circuit_defaults"), namespaceID).Scan(append(policyFields(&p), policyFields(&inForce)...)...); err != nil {
			return err
		}
		p, err := change(p)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, sqlText("set_circuit_defaults"), append([]any{s.at(), namespaceID, orNil(act.Actor), orNil(act.Reason)}, policyArgs(&p)...)...)
		return err
	})
}

// HoldCircuit keeps a circuit shut from h.From (zero: now) on.
func (s *Store) HoldCircuit(ctx context.Context, id int32, h task.CircuitHold) error {
	var from *time.Time
	if !h.From.IsZero() {
		from = &h.From
	}
	return s.onCircuits(ctx, []int32{id}, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sqlText("hold_circuit"), s.at(), id, from, h.Until, orNil(h.Reason), orNil(h.Actor))
		return err
	})
}

// ReleaseCircuit ends a hold, or an open circuit's wait. changed is false where there was neither.
func (s *Store) ReleaseCircuit(ctx context.Context, id int32, act Act) (changed bool, err error) {
	err = s.onCircuits(ctx, []int32{id}, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sqlText("release_circuit"), s.at(), id, orNil(act.Actor), orNil(act.Reason))
		changed = tag.RowsAffected() > 0
		return err
	})
	return changed, err
}

// onCircuits runs f in a transaction that has circuits, sorted by id, for itself, after time has had its due of them.
func (s *Store) onCircuits(ctx context.Context, ids []int32, f func(pgx.Tx) error) error {
	exclusive := make([]bool, len(ids))
	for i := range exclusive {
		exclusive[i] = true
	}
	return s.inTx(ctx, s.Hot, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, sqlText("lock_circuits"), ids, exclusive); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, sqlText("advance_circuits"), s.at(), ids); err != nil {
			return err
		}
		return f(tx)
	})
}

// CircuitEvents reads the record of a namespace's circuits, newest first.
func (s *Store) CircuitEvents(ctx context.Context, namespaceID int32, q task.CircuitEventQuery) ([]*task.CircuitEvent, error) {
	before := q.Before
	if before == 0 {
		before = math.MaxInt64
	}
	rows, err := s.Cold.Query(ctx, sqlText("list_circuit_events"), namespaceID, orNil(q.Circuit), q.From, q.To, before, q.Limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, readCircuitEvent)
}

// CircuitRevision is a watcher's place in the record: what is read after it begins where it ends.
func (s *Store) CircuitRevision(ctx context.Context) (revision string, err error) {
	err = s.Cold.QueryRow(ctx, sqlText("circuit_revision")).Scan(&revision)
	return revision, err
}

// CircuitEventsSince reads, oldest first, what may have come after a revision; some of it may have been read before.
func (s *Store) CircuitEventsSince(ctx context.Context, namespaceID int32, names []string, revision string) ([]*task.CircuitEvent, error) {
	rows, err := s.Cold.Query(ctx, sqlText("circuit_events_since"), namespaceID, names, revision)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, readCircuitEvent)
}

func readCircuitEvent(row pgx.CollectableRow) (*task.CircuitEvent, error) {
	var (
		e                                            task.CircuitEvent
		wave, stepNo, dispatch, observed, fail, slow *int
		taskID                                       *int64
		actor, reason                                *string
		from, until                                  *time.Time
	)
	into := []any{
		&e.ID, &e.Circuit, &e.At, &e.Generation, &e.From, &e.To, &e.Cause, &e.OpenUntil, &wave, &taskID, &stepNo, &dispatch, &e.Workers,
		&actor, &reason, &from, &until, &observed, &fail, &slow,
	}
	if err := row.Scan(append(into, policyFields(&e.Policy)...)...); err != nil {
		return nil, err
	}
	e.Wave, e.Dispatch, e.Observed, e.Failed, e.Slow = deref(wave), deref(dispatch), deref(observed), deref(fail), deref(slow)
	e.Actor, e.Reason = deref(actor), deref(reason)
	if taskID != nil {
		e.Step = task.ID(*taskID).Step(deref(stepNo))
	}
	if from != nil {
		e.Hold = &task.CircuitHold{Reason: e.Reason, Actor: e.Actor, From: *from, Until: until}
	}
	return &e, nil
}
