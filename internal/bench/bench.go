// Package bench measures a whole server against the project's floor, on this machine and in one run.
//
// The server is a process of its own, as an operator would start it; the load comes from this process, through gRPC. A
// figure stands beside the one that bench/floor reached in the same run, in turns with it, because what a machine can do
// changes by the minute; the ratio of the two is what lasts.
//
// The nouns:
//
//	scenario  one kind of load and the figures it gives; a file each, named in the table of scenario.go
//	stage     a database of its own for each scenario, and the servers on it
//	round     one turn of a scenario: the floor, then the server
//	crew      workers that run whatever comes and report it in batches
//	pulse     one-step tasks that are submitted by the clock, whose waits are timed
//	lot       so many one-step tasks, run as fast as they can be
//	filler    rows that stand in the tables and only weigh
//	cost      what a stretch of work took: processor time by process, log bytes, commits
//	document  all figures of a run
//
// Where a rate is measured the load is a closed loop with a bounded backlog, as the floor's is. Where a latency is
// measured the load keeps its own timetable, and a late start counts as latency.
//
// A scenario ends by holding its database against what was submitted: every step must have been dispatched once, and once
// more for each failure, and ended once; then internal/history replays the record of it and decides the invariants. Figures
// of a server that loses or repeats work mean nothing.
package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/taskerhq/tasker/bench/floor"
	"github.com/taskerhq/tasker/bench/floor/meter"
)

// Config says what to run, and on what.
type Config struct {
	// Scenarios by name, in any order. Empty: all.
	Scenarios []string
	// Quick runs everything shorter: enough to see that it works, too short for a figure to quote.
	Quick bool
	// Full runs the sizes that take long: backlogs of ten million, ten minutes under an old snapshot, ten thousand streams.
	Full bool
	// DatabaseURL is a server on which databases are made and dropped again. Empty: a fresh cluster of our own.
	DatabaseURL string
	// DataDir is where the cluster of our own is made, on the disk that is to be measured. Empty: the temporary directory.
	DataDir string
	// Binary is the command that becomes the server when "serve" and its flags are added to it. Empty: this program.
	Binary []string
	// ServeArgs are further flags of the measured server.
	ServeArgs []string
	// AllowFsyncOff accepts a database that flushes nothing: enough to see that the benchmark works, never for a figure.
	AllowFsyncOff bool
	// Logger gets what happens to the processes. Nil: nothing is logged.
	Logger *slog.Logger
	// Progress, if set, is told what is going on and how much of the estimated time has passed.
	Progress func(what string, done, total time.Duration)

	// sizes replaces those that Quick chooses, and beforeVerify runs before the database is checked: tests set them.
	sizes        *sizes
	beforeVerify func(context.Context, *world) error
}

// world is what the scenarios of one run share, and the stage on which the one that sees it plays.
type world struct {
	*Config
	sizes
	*stage
	doc       *Document
	log       *slog.Logger
	databases *databases
	echo      *process
	progress  *progress
	totals    *found // of the stages that are over
	// collectorPercent is GOGC as this program was started, by which the floor runs.
	collectorPercent int
}

// loadCollectorPercent is GOGC while this process is the load.
const loadCollectorPercent = 400

// Run runs scenarios and gives their figures. The document is of use even where an error says that work was lost.
func Run(ctx context.Context, c Config) (doc *Document, err error) {
	chosen, err := choose(c.Scenarios)
	if err != nil {
		return nil, err
	}
	if c.Quick && c.Full {
		return nil, errors.New("a run cannot be both quick and full")
	}
	w := &world{Config: &c, doc: &Document{}, log: c.Logger, sizes: usualSizes, totals: &found{}}
	// The load's own collector shall take as little as a busy server's: it is not what is measured.
	w.collectorPercent = debug.SetGCPercent(loadCollectorPercent)
	defer debug.SetGCPercent(w.collectorPercent)
	switch {
	case c.sizes != nil:
		w.sizes = *c.sizes
	case c.Quick:
		w.sizes = quickSizes
	case c.Full:
		w.sizes = fullSizes()
	}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if len(c.Binary) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("finding this program's file: %w", err)
		}
		c.Binary = []string{self}
	}
	estimate := startEstimate
	for _, s := range chosen {
		estimate += 2*stageEstimate + s.estimate(&w.sizes)
	}
	w.progress = showProgress(c.Progress, estimate)
	defer w.progress.end()

	w.phase(startEstimate, "starting the database")
	defer func() { err = errors.Join(err, w.close(context.WithoutCancel(ctx))) }()
	if err := w.open(ctx); err != nil {
		return nil, err
	}
	if err := w.facts(ctx); err != nil {
		return nil, err
	}
	for _, s := range chosen {
		if err := w.play(ctx, &s); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx) // what broke by it is of no interest
			}
			return w.doc, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return w.doc, nil
}

// play runs a scenario on a stage of its own, and checks what it left there.
func (w *world) play(ctx context.Context, s *scenario) (err error) {
	begun := time.Now()
	w.phase(stageEstimate, "%s: making a database", s.name)
	on, err := w.openStage(ctx, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, on.closeStage(context.WithoutCancel(ctx))) }()
	if err := s.run(ctx, on); err != nil {
		return err
	}
	reading, err := on.meter.Read(ctx)
	if err != nil {
		return err
	}
	w.doc.Set(s.name+".load_after", reading.Load)
	w.phase(stageEstimate, "%s: checking what it left", s.name)
	// A server that goes on working may change what is being looked at; and its sessions tell their last figures when
	// they end.
	if err := on.stopServers(); err != nil {
		return err
	}
	if w.beforeVerify != nil {
		if err := w.beforeVerify(ctx, on); err != nil {
			return err
		}
	}
	if err := on.verify(ctx); err != nil {
		return err
	}
	w.doc.Set(s.name+".wall_s", time.Since(begun).Seconds())
	return nil
}

const startEstimate = 4 * time.Second

// open starts what all scenarios share.
func (w *world) open(ctx context.Context) (err error) {
	if w.databases, err = openDatabases(ctx, w); err != nil {
		return err
	}
	if w.echo, err = w.spawn(ctx, nil, "bench", "echo"); err != nil {
		return fmt.Errorf("starting the empty server: %w", err)
	}
	return nil
}

func (w *world) close(ctx context.Context) error {
	var err error
	if w.echo != nil {
		err = w.echo.stop()
	}
	if w.databases != nil {
		err = errors.Join(err, w.databases.close(ctx))
	}
	return err
}

// phase says what goes on for about that long.
func (w *world) phase(about time.Duration, format string, args ...any) {
	w.progress.phase(about, fmt.Sprintf(format, args...))
}

// facts records what the figures depend on besides the program.
func (w *world) facts(ctx context.Context) error {
	var version, fsync, commit string
	err := w.databases.conn.QueryRow(ctx, `
		select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')`).
		Scan(&version, &fsync, &commit)
	if err != nil {
		return fmt.Errorf("asking for the database's settings: %w", err)
	}
	probe, err := meter.New(ctx, w.databases.conn)
	if err != nil {
		return err
	}
	reading, err := probe.Read(ctx)
	if err != nil {
		return err
	}
	disk, err := probe.ProbeCommit(ctx, w.probes/2)
	if err != nil {
		return err
	}
	for _, fact := range []struct {
		key   string
		value any
	}{
		{"quick", w.Quick},
		{"full", w.Full},
		{"cpus", runtime.NumCPU()},
		{"go", runtime.Version()},
		{"postgres", version},
		{"fsync", fsync},
		{"synchronous_commit", commit},
		{"floor_version", floor.Version},
		{"load_before", reading.Load},
		{"fsync_ms", float64(disk.Fsync().Microseconds()) / 1e3},
		{"durable_commit_ms", float64(disk.Durable.P50.Microseconds()) / 1e3},
	} {
		w.doc.Set(fact.key, fact.value)
	}
	return nil
}

// runFloor measures the floor for a window.
func (w *world) runFloor(ctx context.Context, window time.Duration) (floor.Result, error) {
	defer debug.SetGCPercent(debug.SetGCPercent(w.collectorPercent))
	result, err := floor.Run(ctx, floor.Config{
		DSN: w.databases.floorURL, Duration: window, Warmup: w.warmup, AllowFsyncOff: w.AllowFsyncOff,
	})
	if err != nil {
		return result, fmt.Errorf("measuring the floor: %w", err)
	}
	return result, nil
}

// floorEstimate is about how long runFloor takes.
func (s *sizes) floorEstimate(window time.Duration) time.Duration {
	return window + s.warmup + 1500*time.Millisecond
}
