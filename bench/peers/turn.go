package peers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/bench/floor"
	"github.com/taskerhq/tasker/bench/floor/meter"
	"github.com/taskerhq/tasker/bench/peers/harness"
)

// Commands of a turn, in their order.
const (
	fill    = "fill"
	drain   = "drain"
	latency = "latency"
	life    = "life"
)

// turn is one peer's, in a database of its own.
type turn struct {
	run   *run
	peer  *peer
	round int
	url   string

	version string
	floors  floor.Result // of the floor's turn only
	made    map[string]measurement

	conn   *pgx.Conn
	meter  *meter.Meter
	server *process
	client *process
}

// measurement is what the program answered to a command, and what that cost.
type measurement struct {
	harness.Measurement
	// Of each job. Commits are the transactions that wrote, which are those that wait for the disk.
	wal, commits float64
	// CPU seconds of 1,000 jobs.
	postgres, server, client float64
	// others is how many cores everything else on the machine used meanwhile.
	others float64
}

func (m *measurement) perSecond() float64 { return float64(m.Jobs) / m.Seconds }

// disturbed tells whether something else on the machine took part in the measurement.
func (m *measurement) disturbed() bool { return m.others > mostOthers }

// disturbed tells whether any of the turn's figures is.
func (t *turn) disturbed() bool {
	for command, m := range t.made {
		if command != fill && m.disturbed() {
			return true
		}
	}
	return false
}

// calm takes from another turn of the same round what was less disturbed there.
func (t *turn) calm(again *turn) {
	for command, m := range again.made {
		if m.others < t.made[command].others {
			t.made[command] = m
			if t.peer.program == nil {
				t.floors = again.floors
			}
		}
	}
}

// others is how many cores everything else used over the turn.
func (t *turn) others() float64 {
	var cores, seconds float64
	for command, m := range t.made {
		if command != fill {
			cores, seconds = cores+m.others*m.Seconds, seconds+m.Seconds
		}
	}
	return cores / seconds
}

// take has the peer's program do everything, and holds the database against what it says.
func (t *turn) take(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := t.connect(ctx); err != nil {
		return err
	}
	defer t.conn.Close(context.WithoutCancel(ctx))
	defer func() {
		for _, p := range []*process{t.client, t.server} {
			if p != nil {
				err = errors.Join(err, p.stop())
			}
		}
	}()
	if err := t.start(ctx); err != nil {
		return err
	}
	jobs := t.peer.jobs(t.run.jobs)
	var total int64
	for _, command := range []struct {
		name   string
		line   string
		before string // is said to the database first, and not measured
	}{
		// A checkpoint makes what follows log whole pages, the same for all, and finds nothing else to write meanwhile.
		{fill, fmt.Sprintf("%s %d", fill, jobs), "checkpoint"},
		{drain, drain, "analyze"},
		{latency, fmt.Sprintf("%s %g %g", latency, t.run.rate, t.run.seconds), "checkpoint"},
		{life, fmt.Sprintf("%s %d", life, jobs), "checkpoint"},
	} {
		if _, err := t.conn.Exec(ctx, command.before); err != nil {
			return fmt.Errorf("%s: %w", command.before, err)
		}
		m, err := t.measure(ctx, command.line)
		if err != nil {
			return fmt.Errorf("%s: %w", command.name, err)
		}
		t.keep(command.name, m)
		if command.name != drain { // of what was filled
			total += m.Jobs
		}
	}
	return t.verify(ctx, total)
}

// floor has the floor take the turn: whole lives only, which is what it knows.
func (t *turn) floor(ctx context.Context) error {
	if err := t.connect(ctx); err != nil {
		return err
	}
	defer t.conn.Close(context.WithoutCancel(ctx))
	from, err := t.read(ctx)
	if err != nil {
		return err
	}
	f, err := floor.Run(ctx, floor.Config{DSN: t.url, Duration: t.run.window, Warmup: t.run.warmup})
	if err != nil {
		return err
	}
	to, err := t.read(ctx)
	if err != nil {
		return err
	}
	t.floors, t.version = f, fmt.Sprintf("statements %d", f.Version)
	m := measurement{wal: f.WALBytes, commits: f.Commits, client: f.GoCPU / 1e3, others: others(from, to)}
	m.Measurement = harness.Measurement{Command: life, Jobs: f.Steps, Seconds: f.Seconds}
	if f.PostgresCPU != nil {
		m.postgres = *f.PostgresCPU / 1e3
	}
	t.keep(life, m)
	return nil
}

func (t *turn) keep(command string, m measurement) {
	t.made[command] = m
	line := fmt.Sprintf("round %d  %-15s  %-7s  %7d jobs  %9.0f/s  %6.0f B  %6.4f commits  %6.3f + %.3f + %.3f CPU s/1000  others %.2f",
		t.round+1, t.peer.name, command, m.Jobs, m.perSecond(), m.wal, m.commits, m.postgres, m.server, m.client, m.others)
	if command == latency {
		line += fmt.Sprintf("  p50 %.2f ms  p99 %.2f ms", m.P50, m.P99)
	}
	t.run.Said(line)
}

func (t *turn) connect(ctx context.Context) error {
	var err error
	if t.conn, err = pgx.Connect(ctx, t.url); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	t.meter, err = meter.New(ctx, t.conn)
	return err
}

// start starts the peer's program, and its server if it has one.
func (t *turn) start(ctx context.Context) error {
	target := t.url
	if t.peer.served {
		var err error
		environment := []string{"TASKER_DATABASE_URL=" + t.url}
		t.server, err = spawn(ctx, t.run.Root, environment, "bin/tasker", "serve", "--listen", "127.0.0.1:0", "--auto-migrate", "--reflection=false")
		if err != nil {
			return fmt.Errorf("starting the server: %w", err)
		}
		line, err := t.server.line(ctx)
		if err != nil {
			return fmt.Errorf("starting the server: %w", err)
		}
		var ok bool
		if target, ok = strings.CutPrefix(string(line), "serving on "); !ok {
			return fmt.Errorf("the server said %q first", line)
		}
	}
	var err error
	if t.client, err = spawn(ctx, t.run.Root, []string{"PEER_TARGET=" + target}, t.peer.program...); err != nil {
		return err
	}
	var who harness.Identity
	if err := t.client.answer(ctx, "", &who); err != nil {
		return err
	}
	if t.version = strings.TrimPrefix(who.Version, "v"); t.peer.served {
		t.version, err = taskerVersion(ctx, t.run.Root)
	}
	return err
}

// reading is the state of everything that costs are told from.
type reading struct {
	meter.Reading
	server, client, busy time.Duration
	transactions         int64
}

func (t *turn) read(ctx context.Context) (r reading, err error) {
	// The number that the next writing transaction gets: unlike the statistics of sessions, it is never late.
	err = t.conn.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&r.transactions)
	if err != nil {
		return r, fmt.Errorf("reading the next transaction's number: %w", err)
	}
	for p, used := range map[*process]*time.Duration{t.server: &r.server, t.client: &r.client} {
		if p == nil {
			continue
		}
		if *used, err = meter.ProcessTime(p.pid()); err != nil {
			return r, err
		}
	}
	if r.busy, err = meter.BusyTime(); err != nil {
		return r, err
	}
	r.Reading, err = t.meter.Read(ctx)
	return r, err
}

// others is how many cores were used between two readings by what is not measured, nor measures.
func others(from, to reading) float64 {
	ours := to.PostgresCPU - from.PostgresCPU + to.ProcessCPU - from.ProcessCPU + to.server - from.server + to.client - from.client
	return max(0, (to.busy-from.busy-ours).Seconds()/to.At.Sub(from.At).Seconds())
}

// measure gives a command and reads what obeying it cost.
func (t *turn) measure(ctx context.Context, command string) (m measurement, err error) {
	from, err := t.read(ctx)
	if err != nil {
		return m, err
	}
	if err := t.client.answer(ctx, command, &m.Measurement); err != nil {
		return m, err
	}
	to, err := t.read(ctx)
	if err != nil {
		return m, err
	}
	if m.Jobs == 0 {
		return m, errors.New("it did nothing")
	}
	jobs := float64(m.Jobs)
	m.wal = float64(to.WALBytes-from.WALBytes) / jobs
	m.commits = float64(to.transactions-from.transactions) / jobs
	m.postgres = (to.PostgresCPU - from.PostgresCPU).Seconds() / jobs * 1e3
	m.server = (to.server - from.server).Seconds() / jobs * 1e3
	m.client = (to.client - from.client).Seconds() / jobs * 1e3
	m.others = others(from, to)
	return m, nil
}

// verify holds the database against what was submitted: a queue that loses work has no figures.
func (t *turn) verify(ctx context.Context, submitted int64) error {
	question, want := t.peer.completed, submitted
	if question == "" {
		question, want = t.peer.left, 0
	}
	var found int64
	if err := t.conn.QueryRow(ctx, question).Scan(&found); err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	if found != want {
		return fmt.Errorf("%d jobs were submitted and confirmed; the database says %d to %q, not %d", submitted, found, question, want)
	}
	return nil
}
