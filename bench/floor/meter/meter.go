// Package meter reads what a stretch of work cost: processor time of Postgres and of this process, WAL written,
// transactions committed, and how fast the disk confirms a commit.
//
// A [Reading] is a set of running totals. Two readings around the work give its cost, so the same meter serves the
// floor and the server that is measured against it. Wall-clock rates move with whatever else the machine is doing;
// processor time and bytes a step hardly do, which is why they are the figures to compare.
package meter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// ticksPerSecond is the unit of the processor times in /proc, the same on every Linux architecture Go runs on.
const ticksPerSecond = 100

// Meter reads totals over one connection, which nothing else may use meanwhile.
type Meter struct {
	conn *pgx.Conn
	// postmaster is the process whose children are the server's processes; 0 when the server runs elsewhere.
	postmaster int
}

// Reading is a set of totals at one moment. Only differences between two readings of one meter mean anything.
type Reading struct {
	At time.Time
	// PostgresCPU is the time all processes of the server have used, those already ended included.
	// It stays zero when the server is not on this machine; see [Meter.SeesPostgres].
	PostgresCPU time.Duration
	// ProcessCPU is the time this process has used.
	ProcessCPU time.Duration
	// WALBytes is the position in the write-ahead log.
	WALBytes int64
	// Commits counts the transactions of the connected database. A session adds its own about once a second, and at
	// once after pg_stat_force_next_flush().
	Commits int64
	// Load is the load average of the last minute; zero where the system does not tell.
	Load float64
}

// CommitTimes says what durability costs on this server: the round trip of a transaction that writes one small record.
type CommitTimes struct {
	// Durable waits for the disk, Relaxed does not. The difference of the two is the disk's own share.
	Durable, Relaxed Percentiles
}

// Fsync is the time the disk takes to confirm one commit, at the median.
func (c CommitTimes) Fsync() time.Duration {
	return max(0, c.Durable.P50-c.Relaxed.P50)
}

// Percentiles of a set of durations.
type Percentiles struct {
	P50, P99 time.Duration
}

// PercentilesOf sorts samples in place and picks from them. No samples give zeros.
func PercentilesOf(samples []time.Duration) Percentiles {
	if len(samples) == 0 {
		return Percentiles{}
	}
	slices.Sort(samples)
	return Percentiles{P50: samples[len(samples)/2], P99: samples[len(samples)*99/100]}
}

// New makes a meter of the server that conn leads to.
func New(ctx context.Context, conn *pgx.Conn) (*Meter, error) {
	var backend int
	if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
		return nil, fmt.Errorf("asking for the server process: %w", err)
	}
	m := &Meter{conn: conn}
	// The process id may belong to another machine or container, where a local process of that number is a stranger.
	if p, err := readProcess(backend); err == nil && strings.HasPrefix(p.name, "postgres") {
		m.postmaster = p.parent
	}
	return m, nil
}

// SeesPostgres tells whether the server's processor time can be read, that is, whether it runs on this machine.
func (m *Meter) SeesPostgres() bool { return m.postmaster != 0 }

// Read takes the totals of this moment.
func (m *Meter) Read(ctx context.Context) (Reading, error) {
	var r Reading
	err := m.conn.QueryRow(ctx, `
		select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, xact_commit
		from pg_stat_database where datname = current_database()`).Scan(&r.WALBytes, &r.Commits)
	if err != nil {
		return Reading{}, fmt.Errorf("reading the server's totals: %w", err)
	}
	if r.ProcessCPU, err = ownTime(); err != nil {
		return Reading{}, fmt.Errorf("reading this process's time: %w", err)
	}
	if m.SeesPostgres() {
		if r.PostgresCPU, err = familyTime(m.postmaster); err != nil {
			return Reading{}, err
		}
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(text), " ")
		if r.Load, err = strconv.ParseFloat(first, 64); err != nil {
			return Reading{}, fmt.Errorf("reading the load average: %w", err)
		}
	}
	r.At = time.Now()
	return r, nil
}

// ProbeCommit commits rounds small transactions that wait for the disk and as many that do not, in turns, so that a
// disturbance meets both.
func (m *Meter) ProbeCommit(ctx context.Context, rounds int) (CommitTimes, error) {
	var durable, relaxed []time.Duration
	for range rounds {
		for mode, samples := range map[string]*[]time.Duration{"on": &durable, "off": &relaxed} {
			begun := time.Now()
			batch := &pgx.Batch{}
			batch.Queue("select set_config('synchronous_commit', $1, true)", mode)
			// A message that no one decodes is the smallest thing that makes a transaction write a commit record.
			batch.Queue("select pg_logical_emit_message(true, 'probe', 'x')")
			if err := m.conn.SendBatch(ctx, batch).Close(); err != nil {
				return CommitTimes{}, fmt.Errorf("probing the commit: %w", err)
			}
			*samples = append(*samples, time.Since(begun))
		}
	}
	return CommitTimes{Durable: PercentilesOf(durable), Relaxed: PercentilesOf(relaxed)}, nil
}

// process is one line of /proc/PID/stat.
type process struct {
	name   string
	parent int
	// own and gone are the times of the process and of its children that have ended.
	own, gone time.Duration
}

func readProcess(pid int) (process, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return process{}, err
	}
	// The name stands in parentheses and may hold spaces and parentheses itself.
	open, end := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
	if open < 0 || end < open {
		return process{}, fmt.Errorf("process %d: unreadable stat line", pid)
	}
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 15 {
		return process{}, fmt.Errorf("process %d: stat line of %d fields", pid, len(fields))
	}
	number := func(field int) int64 {
		n, fault := strconv.ParseInt(fields[field], 10, 64)
		err = errors.Join(err, fault)
		return n
	}
	const tick = time.Second / ticksPerSecond
	p := process{
		name:   string(text[open+1 : end]),
		parent: int(number(1)),
		own:    time.Duration(number(11)+number(12)) * tick,
		gone:   time.Duration(number(13)+number(14)) * tick,
	}
	return p, err
}

// familyTime sums a process and its children, the ended ones included: a total that never falls when a child ends.
func familyTime(root int) (time.Duration, error) {
	head, err := readProcess(root)
	if err != nil {
		return 0, fmt.Errorf("reading the server's time: %w", err)
	}
	total := head.own + head.gone
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		// A process that ends between the listing and the reading is in its parent's total by the next reading.
		if p, err := readProcess(pid); err == nil && p.parent == root {
			total += p.own + p.gone
		}
	}
	return total, nil
}
