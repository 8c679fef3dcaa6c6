package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Retention says how long things are kept.
type Retention struct {
	Shard   int
	Tasks   time.Duration // how long an ended task is kept; unended ones are kept for ever
	History time.Duration // how long a day of history is kept; longer while a task that began in or before it is unfinished
	Roll    time.Duration // how often task numbers move on to a fresh partition; 0: a week
}

// Retained is what one round of retention did.
type Retained struct {
	PartitionsMade    int
	PartitionsDropped int
	DaysDropped       int
	TasksPurged       int
	KeysForgotten     int64
	SessionsForgotten int
	// Busy says that traffic was in the way of a drop, which the next round tries again.
	Busy bool
}

// How far ahead partitions of history are made, and how much is deleted at a time.
const (
	daysAhead  = 7
	purgeBatch = 500
	rowBatch   = 10_000
	// stragglers is the share of a partition's tasks, in per cent, up to which the rest is deleted row by row.
	stragglers = 1
)

// EnsurePartitions makes the partitions that the next tasks and days need.
func (s *Store) EnsurePartitions(ctx context.Context, shard int) (made int, err error) {
	// The next one only when seven eighths of the numbers are gone: every statement that finds tasks prepares to look into it.
	// What is left are 33 million. Should they not do until the next round, a submit makes it.
	const tasks = `select ensure_task_partitions($1::bigint << 40 | last_value, case when last_value & (1 << 28) - 1 < 7 << 25 then 1 else 2 end)
		from task_number_seq`
	if err := s.Cold.QueryRow(ctx, tasks, shard).Scan(&made); err != nil {
		return 0, err
	}
	const history = `select ensure_history_partitions((coalesce($1, now()) at time zone 'utc')::date + $2::int, 1)`
	for ahead := range daysAhead {
		var days int
		err := s.Cold.QueryRow(ctx, history, s.at(), ahead).Scan(&days)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && pgErr.Code == pgerrcode.CheckViolation {
			continue // the default partition holds rows of that day already: they stay there
		}
		if err != nil {
			return made, err
		}
		made += days
	}
	return made, nil
}

// Retain does one round of retention: makes partitions ahead, moves numbers on, drops what is old. Any server may, at any
// time: every step of it takes its own locks and does nothing twice.
func (s *Store) Retain(ctx context.Context, r Retention) (done Retained, err error) {
	if done.PartitionsMade, err = s.EnsurePartitions(ctx, r.Shard); err != nil {
		return done, err
	}
	roll := r.Roll
	if roll == 0 {
		roll = 7 * 24 * time.Hour
	}
	if _, err := s.Cold.Exec(ctx, "select roll_task_numbers($1, $2)", r.Shard, roll); err != nil {
		return done, err
	}
	var now time.Time
	if err := s.Cold.QueryRow(ctx, "select coalesce($1, now())", s.at()).Scan(&now); err != nil {
		return done, err
	}
	if r.Tasks > 0 {
		if err := s.retainTasks(ctx, now.Add(-r.Tasks), &done); err != nil {
			return done, err
		}
	}
	if r.History > 0 {
		if err := s.retainHistory(ctx, now.Add(-r.History), &done); err != nil {
			return done, err
		}
	}
	for {
		tag, err := s.Cold.Exec(ctx, sqlText("drop_submit_keys"), s.at(), rowBatch)
		if err != nil {
			return done, err
		}
		done.KeysForgotten += tag.RowsAffected()
		if tag.RowsAffected() < rowBatch {
			break
		}
	}
	if _, err := s.Cold.Exec(ctx, sqlText("drop_circuit_workers"), s.at()); err != nil {
		return done, err
	}
	if r.Tasks == 0 || r.History == 0 {
		return done, nil
	}
	// Budgets of tasks, and whoever checks the history, ask what circuits did.
	for {
		tag, err := s.Cold.Exec(ctx, sqlText("drop_circuit_events"), now.Add(-max(r.Tasks, r.History)), rowBatch)
		if err != nil {
			return done, err
		}
		if tag.RowsAffected() < rowBatch {
			break
		}
	}
	for {
		tag, err := s.Cold.Exec(ctx, sqlText("drop_pauses"), now.Add(-max(r.Tasks, r.History)), rowBatch)
		if err != nil {
			return done, err
		}
		if tag.RowsAffected() < rowBatch {
			break
		}
	}
	// As long as a task or a day of history is kept, so are the workers that they name.
	ended := now.Add(-max(r.Tasks, r.History))
	for {
		var forgotten int
		if err := s.Cold.QueryRow(ctx, sqlText("drop_sessions"), ended, rowBatch, s.at()).Scan(&forgotten); err != nil {
			return done, err
		}
		done.SessionsForgotten += forgotten
		if forgotten < rowBatch {
			break
		}
	}
	_, err = s.Cold.Exec(ctx, sqlText("drop_replicas"), ended)
	return done, err
}

// partition is a row of task_partitions.sql.
type partition struct {
	Part  int64
	Tasks int64
	Kept  int64
}

func (s *Store) retainTasks(ctx context.Context, endedBefore time.Time, done *Retained) error {
	rows, err := s.Cold.Query(ctx, sqlText("task_partitions"), endedBefore)
	if err != nil {
		return err
	}
	partitions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[partition])
	if err != nil {
		return err
	}
	for _, p := range partitions {
		switch {
		case p.Kept == 0:
			dropped, err := s.drop(ctx, done, "select drop_task_partition($1, $2)", p.Part, endedBefore)
			if err != nil {
				return err
			}
			done.PartitionsDropped += dropped
		case p.Kept*100 <= p.Tasks*stragglers:
			if err := s.purgeEnded(ctx, p.Part, endedBefore, done); err != nil {
				return err
			}
		}
	}
	return nil
}

// drop calls a function that drops a partition. Traffic in its way is no error.
func (s *Store) drop(ctx context.Context, done *Retained, statement string, args ...any) (dropped int, err error) {
	var ok bool
	err = s.Cold.QueryRow(ctx, statement, args...).Scan(&ok)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == pgerrcode.LockNotAvailable || pgErr.Code == pgerrcode.DeadlockDetected) {
		done.Busy = true
		return 0, nil
	}
	if ok {
		dropped = 1
	}
	return dropped, err
}

// purgeEnded deletes the ended tasks of a partition that a few unfinished ones keep from being dropped.
func (s *Store) purgeEnded(ctx context.Context, part int64, endedBefore time.Time, done *Retained) error {
	for {
		rows, err := s.Cold.Query(ctx, sqlText("ended_tasks_of"), part, endedBefore, purgeBatch)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil || len(ids) == 0 {
			return err
		}
		var purged int
		err = s.inTx(ctx, s.Cold, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, sqlText("lock_parked_of"), ids); err != nil {
				return err
			}
			return tx.QueryRow(ctx, sqlText("purge_tasks"), s.at(), ids, endedBefore, nil, nil, true, nil).Scan(&purged)
		})
		if err != nil {
			return err
		}
		done.TasksPurged += purged
		if purged == 0 {
			return nil // all of them were re-opened meanwhile
		}
	}
}

func (s *Store) retainHistory(ctx context.Context, before time.Time, done *Retained) error {
	rows, err := s.Cold.Query(ctx, sqlText("history_days"), before.UTC())
	if err != nil {
		return err
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[time.Time])
	if err != nil {
		return err
	}
	for _, day := range days {
		dropped, err := s.drop(ctx, done, "select drop_history_partition($1::date)", day)
		if err != nil {
			return err
		}
		done.DaysDropped += dropped
	}
	return nil
}
