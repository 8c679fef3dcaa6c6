// Package floor measures the least that a step's life can cost on a given Postgres: the statements of submit, claim and
// complete, written with everything that correctness demands of them and nothing else. No policy, no RPC, no retries.
//
// It is the figure that a server's own is divided by, in the same run and on the same machine, and it is frozen: the
// statements change only together with [Version], because two figures measured against different floors say nothing
// about each other.
//
// What correctness demands, and the bare statements would not pay for:
//
//   - the leases are locked by one statement and moved by the next, in a fresh snapshot (sql/lock_leases.sql);
//   - `ready` and `backoff` have a second unique index, and each claim looks for due retries before fresh rows;
//   - each lease stores its own 128 random bits, each result its digest;
//   - each batch writes a history entry.
//
// A life is two commits: one submits a batch of tasks, the other completes the batch in hand and claims the next.
package floor

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/bench/floor/meter"
)

// Version names the frozen statements. Figures of different versions must not be compared.
const Version = 1

//go:embed sql/schema.sql
var schemaSQL string

const (
	dropSchemaSQL = "drop schema if exists tasker_bench_floor cascade"

	// backlogBatches bounds how far the submitter runs ahead: far enough that loops slower than it find full batches, near
	// enough that the tables stay as small as those of a server that keeps up.
	backlogBatches = 20
	// sweepInterval is how often a claim looks at a lane from its beginning, for rows that a transaction slower than
	// its successors committed behind the cursor.
	sweepInterval = 250 * time.Millisecond
	probeRounds   = 200
	// longestWindow is how long a window may last in which nothing ends.
	longestWindow = 30 * time.Second
	fanWidth      = 100

	chainLane, lifeLane, fanLane = 1, 2, 3
)

// Config says how to measure. The zero value of each field but DSN stands for its default.
type Config struct {
	// DSN of a scratch database on a server where the account may create a schema and run CHECKPOINT.
	DSN string
	// Duration of the measured window. Default 8 s.
	Duration time.Duration
	// Warmup before the window. Default 1 s.
	Warmup time.Duration
	// Batch is how many steps one transaction submits, claims and completes at most. Default 500.
	Batch int
	// Loops is how many connections claim and complete side by side. Default 2.
	Loops int
	// ChainSteps is the length of the chain whose steps are timed. Default 300.
	ChainSteps int
	// AllowFsyncOff accepts a server that flushes nothing: enough to see that the floor holds, never for a figure.
	AllowFsyncOff bool
}

func (c *Config) setDefaults() {
	c.Duration = cmp.Or(c.Duration, 8*time.Second)
	c.Warmup = cmp.Or(c.Warmup, time.Second)
	c.Batch = cmp.Or(c.Batch, 500)
	c.Loops = cmp.Or(c.Loops, 2)
	c.ChainSteps = cmp.Or(c.ChainSteps, 300)
}

// Result is what a run found. Times of a chain and of a commit are round trips seen from this process.
type Result struct {
	Version  int     `json:"version"`
	Postgres string  `json:"postgres"`
	Batch    int     `json:"batch"`
	Loops    int     `json:"loops"`
	Seconds  float64 `json:"seconds"`
	// Steps completed in the window; the bytes and commits below are of all steps of the run, each from submit to end.
	Steps       int64   `json:"steps"`
	StepsPerSec float64 `json:"steps_per_s"`
	// PostgresCPU is nil when the server is on another machine.
	PostgresCPU   *float64 `json:"pg_cpu_us_per_step"`
	GoCPU         float64  `json:"go_cpu_us_per_step"`
	WALBytes      float64  `json:"wal_bytes_per_step"`
	Commits       float64  `json:"commits_per_step"`
	ChainP50      float64  `json:"chain_ms_p50"`
	ChainP99      float64  `json:"chain_ms_p99"`
	Fsync         float64  `json:"fsync_ms"`
	DurableCommit float64  `json:"durable_commit_ms_p50"`
	RelaxedCommit float64  `json:"relaxed_commit_ms_p50"`
	LoadBefore    float64  `json:"load_before"`
	LoadAfter     float64  `json:"load_after"`
}

// Run makes the schema, measures, checks that every step that was submitted ended exactly once, and drops the schema.
func Run(ctx context.Context, cfg Config) (result Result, err error) {
	cfg.setDefaults()
	conn, err := connect(ctx, cfg.DSN)
	if err != nil {
		return Result{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var fsync string
	err = conn.QueryRow(ctx, "select current_setting('server_version'), current_setting('fsync')").Scan(&result.Postgres, &fsync)
	if err != nil {
		return Result{}, fmt.Errorf("asking for the server's settings: %w", err)
	}
	if fsync != "on" && !cfg.AllowFsyncOff {
		return Result{}, errors.New("the server runs with fsync off: what does not survive a crash has no cost to measure")
	}
	// One simple-protocol message is one transaction: the old schema is replaced, or everything stays as it was.
	if _, err := conn.Exec(ctx, dropSchemaSQL+";"+schemaSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
		return Result{}, fmt.Errorf("making the schema: %w", err)
	}
	defer func() {
		_, dropErr := conn.Exec(context.WithoutCancel(ctx), dropSchemaSQL)
		err = errors.Join(err, dropErr)
	}()

	r := &run{cfg: cfg, conn: conn}
	if r.meter, err = meter.New(ctx, conn); err != nil {
		return Result{}, err
	}
	result.Version, result.Batch, result.Loops = Version, cfg.Batch, cfg.Loops
	if err := r.fan(ctx); err != nil {
		return Result{}, fmt.Errorf("fan-out and fan-in: %w", err)
	}
	chain, err := r.chain(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("chain: %w", err)
	}
	result.ChainP50, result.ChainP99 = milliseconds(chain.P50), milliseconds(chain.P99)
	commit, err := r.meter.ProbeCommit(ctx, probeRounds)
	if err != nil {
		return Result{}, err
	}
	result.DurableCommit, result.RelaxedCommit = milliseconds(commit.Durable.P50), milliseconds(commit.Relaxed.P50)
	result.Fsync = milliseconds(commit.Fsync())
	if err := r.lives(ctx, &result); err != nil {
		return Result{}, fmt.Errorf("single steps: %w", err)
	}
	return result, r.verify(ctx)
}

// connect opens a session in which each statement has one possible plan, whatever the tables held when it was made.
func connect(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("reading the DSN: %w", err)
	}
	for _, setting := range [][2]string{
		{"search_path", "tasker_bench_floor"},
		{"plan_cache_mode", "force_generic_plan"},
		{"jit", "off"},
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"enable_hashjoin", "off"},
		{"enable_mergejoin", "off"},
	} {
		cfg.RuntimeParams[setting[0]] = setting[1]
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return conn, nil
}

// run holds what the scenarios share; its connection serves one of them at a time.
type run struct {
	cfg   Config
	conn  *pgx.Conn
	meter *meter.Meter
	// tasks and steps count all that was submitted. One goroutine at a time submits.
	tasks, steps int64
}

// fan runs one task of 1 → fanWidth → 1 steps: it prepares the statements, and shows that the join opens once.
func (r *run) fan(ctx context.Context) error {
	parents, middle := [][]int{nil}, []int(nil)
	for no := range fanWidth {
		parents = append(parents, []int{1})
		middle = append(middle, no+2)
	}
	if err := r.submit(ctx, r.conn, fanLane, 1, append(parents, middle)); err != nil {
		return err
	}
	next := turn{lane: fanLane, limit: 2 * fanWidth}
	for _, width := range []int{1, fanWidth, 1, 0} {
		granted, err := next.run(ctx, r.conn)
		if err != nil {
			return err
		}
		if len(granted) != width {
			return fmt.Errorf("%d steps became ready, want %d", len(granted), width)
		}
		next.report = granted
	}
	return nil
}

// chain times each step of a chain: one pipelined transaction that completes the step and claims the next.
func (r *run) chain(ctx context.Context) (meter.Percentiles, error) {
	parents := [][]int{nil}
	for no := 1; no < r.cfg.ChainSteps; no++ {
		parents = append(parents, []int{no})
	}
	if err := r.submit(ctx, r.conn, chainLane, 1, parents); err != nil {
		return meter.Percentiles{}, err
	}
	next := turn{lane: chainLane, limit: 1}
	granted, err := next.run(ctx, r.conn)
	var samples []time.Duration
	for err == nil && len(granted) > 0 {
		next.after, next.report = granted[0].seq, granted
		begun := time.Now()
		granted, err = next.run(ctx, r.conn)
		samples = append(samples, time.Since(begun))
	}
	if err == nil && len(samples) != r.cfg.ChainSteps {
		err = fmt.Errorf("%d steps ran of %d", len(samples), r.cfg.ChainSteps)
	}
	return meter.PercentilesOf(samples), err
}

// lives runs one-step tasks through the loops until the window is over and all that was submitted has ended.
//
// Rate and processor time are those of the window. Bytes and commits are those of the whole scenario, which begins and
// ends with empty tables, so that each counted step has paid for all of its life.
func (r *run) lives(ctx context.Context, result *Result) error {
	if _, err := r.conn.Exec(ctx, "checkpoint"); err != nil {
		return err
	}
	first, err := r.meter.Read(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	open, closeWindow := context.WithCancel(ctx)
	defer closeWindow()
	flow := &flow{
		backlog: int64(backlogBatches * r.cfg.Batch),
		wake:    make(chan struct{}, r.cfg.Loops), ended: make(chan struct{}, 1), last: make(chan struct{}),
	}
	group.Go(func() error { return r.submitLives(ctx, open, flow) })
	for session := range r.cfg.Loops {
		group.Go(func() error { return r.workLives(ctx, flow, session) })
	}
	var marks [2]struct {
		meter.Reading
		completed int64
	}
	for i, wait := range []time.Duration{r.cfg.Warmup, r.cfg.Duration} {
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-time.After(wait):
		}
		// On a machine that is busy with other things a short window lasts until something has ended in it.
		for limit := time.Now().Add(longestWindow); i > 0 && flow.completed.Load() == marks[0].completed && ctx.Err() == nil && time.Now().Before(limit); {
			pause := time.NewTimer(time.Millisecond)
			select {
			case <-ctx.Done():
			case <-pause.C:
			}
			pause.Stop()
		}
		marks[i].completed = flow.completed.Load()
		if marks[i].Reading, err = r.meter.Read(ctx); err != nil {
			return err
		}
	}
	closeWindow()
	if err := group.Wait(); err != nil {
		return err
	}
	final, err := r.meter.Read(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	from, to := marks[0], marks[1]
	result.Steps, result.Seconds = to.completed-from.completed, to.At.Sub(from.At).Seconds()
	if result.Steps == 0 {
		return errors.New("no step ended within the window")
	}
	result.StepsPerSec = float64(result.Steps) / result.Seconds
	result.GoCPU = microseconds(to.ProcessCPU-from.ProcessCPU) / float64(result.Steps)
	if r.meter.SeesPostgres() {
		result.PostgresCPU = new(float64)
		*result.PostgresCPU = microseconds(to.PostgresCPU-from.PostgresCPU) / float64(result.Steps)
	}
	result.WALBytes = float64(final.WALBytes-first.WALBytes) / float64(flow.completed.Load())
	result.Commits = float64(final.Commits-first.Commits) / float64(flow.completed.Load())
	result.LoadBefore, result.LoadAfter = first.Load, final.Load
	return nil
}

// flow is what the submitter and the loops tell each other. The channels only say "look again": a signal that finds
// its channel full is dropped, for the one already there will do.
type flow struct {
	backlog              int64
	submitted, completed atomic.Int64
	wake                 chan struct{} // steps were submitted
	ended                chan struct{} // steps were completed
	last                 chan struct{} // closed when nothing more will be submitted
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// submitLives submits batches of one-step tasks, never more than the backlog ahead, until the window closes.
func (r *run) submitLives(ctx, open context.Context, f *flow) error {
	defer close(f.last)
	return inSession(ctx, r.cfg.DSN, func(conn *pgx.Conn) error {
		for {
			if f.submitted.Load()-f.completed.Load() > f.backlog {
				select {
				case <-f.ended:
				case <-open.Done():
				}
			} else if err := r.submit(ctx, conn, lifeLane, r.cfg.Batch, [][]int{nil}); err != nil {
				return err
			} else {
				f.submitted.Add(int64(r.cfg.Batch))
				signal(f.wake)
			}
			if open.Err() != nil {
				return ctx.Err()
			}
		}
	})
}

// workLives is one loop: complete what it holds and claim the next, in one transaction, until nothing is left.
func (r *run) workLives(ctx context.Context, f *flow, session int) error {
	return inSession(ctx, r.cfg.DSN, func(conn *pgx.Conn) error {
		next := turn{lane: lifeLane, limit: r.cfg.Batch, session: session}
		var cursor int64
		var swept time.Time
		for {
			isLast := false
			select {
			case <-f.last:
				isLast = true
			default:
			}
			next.after = cursor
			if isLast || time.Since(swept) > sweepInterval {
				next.after, swept = 0, time.Now()
			}
			granted, err := next.run(ctx, conn)
			if err != nil {
				return err
			}
			f.completed.Add(int64(len(next.report)))
			signal(f.ended)
			for _, d := range granted {
				cursor = max(cursor, d.seq)
			}
			if next.report = granted; len(granted) > 0 {
				continue
			}
			if isLast {
				return nil
			}
			select {
			case <-f.wake:
			case <-f.last:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

// inSession runs work on a connection of its own, and has the server count the session's commits before it ends.
func inSession(ctx context.Context, dsn string, work func(*pgx.Conn) error) error {
	conn, err := connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := work(conn); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "select pg_stat_force_next_flush()")
	return err
}

// verify fails unless every submitted step has ended once, its history is whole and no live row is left. A floor that
// lost work would be a low one.
func (r *run) verify(ctx context.Context) error {
	var tasks, steps, live, submitted, dispatched, completed int64
	err := r.conn.QueryRow(ctx, `
		select (select count(*) from task_end), (select count(*) from step_end),
		       (select count(*) from ready) + (select count(*) from backoff) + (select count(*) from lease),
		       (select sum(cardinality(task_ids)) from history where kind = 1),
		       (select sum(cardinality(task_ids)) from history where kind = 2),
		       (select sum(cardinality(task_ids)) from history where kind = 3)`).
		Scan(&tasks, &steps, &live, &submitted, &dispatched, &completed)
	if err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	if tasks != r.tasks || steps != r.steps || live != 0 || submitted != r.steps || dispatched != r.steps || completed != r.steps {
		return fmt.Errorf("submitted %d tasks of %d steps; %d and %d ended, %d live rows are left, and the history has %d submitted, %d dispatched, %d completed",
			r.tasks, r.steps, tasks, steps, live, submitted, dispatched, completed)
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
