// Package store holds every SQL statement of Tasker: one file in sql/ a statement, one method a verb.
//
// A step's state is the table its row stands in (see migrations/002_tables.sql). Every verb that moves a live row locks
// it first and acts in a later statement, in a fresh snapshot. Some do both in one statement: a claim, since ready and backoff
// rows are never updated; a success, whose delete by key and token is its lock; a failure, and the putting off of a lease's end,
// which are undone and run again when a heartbeat came in between (must_move). What a claim is let by a circuit is decided under
// that row's lock, taken by the statement before it; that it knows of every pause, by the row of its session.
//
// Refusals that a caller may see are *task.Error. Every other error is a bug of ours or the database's trouble.
package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/task"
)

//go:embed sql/*.sql
var sqlFiles embed.FS

// Store runs the statements. Hot and Cold are pools on the same database: Hot's connections have HotSettings, which
// leave each hot statement one possible plan.
type Store struct {
	Hot  *pgxpool.Pool
	Cold *pgxpool.Pool

	// At, if set, is the clock of every statement: tests set it. Nil means the database's clock.
	At func() *time.Time
}

// HotSettings are the run-time parameters of the hot pool's connections. The hot statements are written so that their
// generic plan has one possible shape, whatever the tables looked like when it was made.
var HotSettings = map[string]string{
	"plan_cache_mode":   "force_generic_plan",
	"enable_seqscan":    "off",
	"enable_hashjoin":   "off",
	"enable_mergejoin":  "off",
	"enable_bitmapscan": "off",
	"enable_memoize":    "off",
	"jit":               "off",
}

// stalled ends a transaction whose server has stopped in the middle of it. What it has locked, a circuit above all, others need.
const stalled = "10s"

// Open makes a store on the database that config names. Hot statements get hotConns connections of their own.
func Open(ctx context.Context, config *pgxpool.Config, hotConns int32) (*Store, error) {
	hot := config.Copy()
	hot.MaxConns = hotConns
	hot.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = stalled
	// pgx asks a connection that was idle for a second whether it lives. The engine's look comes hardly oftener, and fails by
	// itself on one that does not.
	hot.ShouldPing = func(_ context.Context, p pgxpool.ShouldPingParams) bool { return p.IdleDuration > 2*time.Second }
	for k, v := range HotSettings {
		hot.ConnConfig.RuntimeParams[k] = v
	}
	hotPool, err := pgxpool.NewWithConfig(ctx, hot)
	if err != nil {
		return nil, fmt.Errorf("opening the hot pool: %w", err)
	}
	cold := config.Copy()
	cold.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = stalled
	cold.ConnConfig.RuntimeParams["jit"] = "off" // compiling takes longer than any of the cold statements
	coldPool, err := pgxpool.NewWithConfig(ctx, cold)
	if err != nil {
		hotPool.Close()
		return nil, fmt.Errorf("opening the cold pool: %w", err)
	}
	return &Store{Hot: hotPool, Cold: coldPool}, nil
}

// Close closes both pools, waiting for the connections in use.
func (s *Store) Close() {
	s.Hot.Close()
	s.Cold.Close()
}

// at is the statements' first argument: the instant they act at, nil for the database's own clock.
func (s *Store) at() *time.Time {
	if s.At == nil {
		return nil
	}
	return s.At()
}

var texts = func() map[string]string {
	entries, err := sqlFiles.ReadDir("sql")
	if err != nil {
		panic(err)
	}
	texts := make(map[string]string, len(entries))
	for _, e := range entries {
		b, err := sqlFiles.ReadFile("sql/" + e.Name())
		if err != nil {
			panic(err)
		}
		texts[strings.TrimSuffix(e.Name(), ".sql")] = string(b)
	}
	return texts
}()

// sqlText is the text of sql/name.sql.
func sqlText(name string) string {
	text, ok := texts[name]
	if !ok {
		panic("no statement sql/" + name + ".sql")
	}
	return text
}

// errAgain makes inTx roll back and run the transaction again in a fresh snapshot.
var errAgain = errors.New("the rows moved: again")

// codeNotMoved is raised by must_move() when a statement moved other rows than were locked.
const codeNotMoved = "TK001"

// maxTries bounds how often inTx runs a transaction.
const maxTries = 12

// inTx runs f in a READ COMMITTED transaction, again after a deadlock, a serialization failure or errAgain, with a
// jittered pause in between. A caller whose transaction never gets through is told to try later.
func (s *Store) inTx(ctx context.Context, pool *pgxpool.Pool, f func(pgx.Tx) error) error {
	return s.retry(ctx, func() error { return pgx.BeginFunc(ctx, pool, f) })
}

func (s *Store) retry(ctx context.Context, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if err == nil || !again(err) {
			return err
		}
		if try == maxTries {
			return task.Refuse(task.Conflict, "other transactions kept moving the same rows").After(time.Second)
		}
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(try) * int64(2*time.Millisecond)))) //nolint:gosec // jitter, not a secret
		select {
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		case <-pause.C:
		}
	}
}

// again tells whether running the whole transaction again may help.
func again(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code == pgerrcode.SerializationFailure || pgErr.Code == pgerrcode.DeadlockDetected || pgErr.Code == codeNotMoved
	}
	return errors.Is(err, errAgain)
}

// DataError tells whether the database refused a value that was sent, so that the batch it came in may be split.
func DataError(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgerrcode.IsDataException(pgErr.Code) || pgerrcode.IsIntegrityConstraintViolation(pgErr.Code) ||
		pgErr.Code == pgerrcode.ProgramLimitExceeded)
}
