package bench

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/taskerhq/tasker/bench/floor"
	"github.com/taskerhq/tasker/bench/floor/meter"
)

// reading is the meter's, with the processor time of the stage's servers.
type reading struct {
	meter.Reading
	ServerCPU time.Duration
}

func (w *world) read(ctx context.Context) (reading, error) {
	r, err := w.meter.Read(ctx)
	if err != nil {
		return reading{}, err
	}
	all := reading{Reading: r}
	for _, server := range w.servers {
		all.ServerCPU += processTime(server.pid())
	}
	return all, nil
}

// processTime is what a process has used, zero where the system does not tell.
func processTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name stands in parentheses and may hold spaces; after it, the user and system times are the 12th and 13th fields,
	// in hundredths of a second.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// cost is what a step took. Processor times are microseconds; -1 is unknown, as where a process is on another machine.
type cost struct {
	postgres, server, client float64
	wal, commits             float64
}

// costBetween shares what two readings lie apart among steps.
func (w *world) costBetween(from, to reading, steps int64) cost {
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(steps) }
	c := cost{
		postgres: -1, server: -1, client: each(to.ProcessCPU - from.ProcessCPU),
		wal:     float64(to.WALBytes-from.WALBytes) / float64(steps),
		commits: float64(to.Commits-from.Commits) / float64(steps),
	}
	if w.meter.SeesPostgres() {
		c.postgres = each(to.PostgresCPU - from.PostgresCPU)
	}
	if to.ServerCPU > 0 {
		c.server = each(to.ServerCPU - from.ServerCPU)
	}
	return c
}

// costOf is what work of so many steps took. Sessions tell their commits a second late, which is long beside a short work:
// here, commits are the transaction numbers that were used, of which each transaction that writes or locks takes one.
func (w *world) costOf(ctx context.Context, steps int, work func() error) (cost, error) {
	number := func() (next int64, err error) {
		err = w.conn.QueryRow(ctx, "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&next)
		return next, err
	}
	first, err := number()
	if err != nil {
		return cost{}, fmt.Errorf("reading the next transaction's number: %w", err)
	}
	from, err := w.read(ctx)
	if err != nil {
		return cost{}, err
	}
	if err := work(); err != nil {
		return cost{}, err
	}
	to, err := w.read(ctx)
	if err != nil {
		return cost{}, err
	}
	last, err := number()
	if err != nil {
		return cost{}, fmt.Errorf("reading the next transaction's number: %w", err)
	}
	c := w.costBetween(from, to, int64(steps))
	c.commits = float64(last-first) / float64(steps)
	return c, nil
}

// floorCost is the floor's, whose server and client are one process.
func floorCost(f *floor.Result) cost {
	c := cost{postgres: -1, server: f.GoCPU, client: 0, wal: f.WALBytes, commits: f.Commits}
	if f.PostgresCPU != nil {
		c.postgres = *f.PostgresCPU
	}
	return c
}

// cpu is the processor time of all processes that are known.
func (c *cost) cpu() float64 { return max(c.postgres, 0) + max(c.server, 0) + c.client }

// record sets the cost's figures under a key.
func (c *cost) record(d *Document, key string) {
	known := func(f float64) any {
		if f < 0 {
			return nil
		}
		return f
	}
	d.Set(key+".cpu_us_per_step", c.cpu())
	d.Set(key+".pg_cpu_us_per_step", known(c.postgres))
	d.Set(key+".server_cpu_us_per_step", known(c.server))
	d.Set(key+".client_cpu_us_per_step", known(c.client))
	d.Set(key+".wal_bytes_per_step", c.wal)
	d.Set(key+".commits_per_step", c.commits)
}

func (c *cost) columns() string {
	known := func(f float64) string {
		if f < 0 {
			return "-"
		}
		return short(f)
	}
	return strings.Join([]string{
		short(c.cpu()), known(c.postgres), known(c.server), known(c.client), short(c.wal), short(c.commits),
	}, "\t")
}

// medianCost takes each of the costs at its median.
func medianCost(costs []cost) cost {
	of := func(pick func(*cost) float64) float64 {
		values := make([]float64, len(costs))
		for i := range costs {
			values[i] = pick(&costs[i])
		}
		return median(values)
	}
	return cost{
		postgres: of(func(c *cost) float64 { return c.postgres }), server: of(func(c *cost) float64 { return c.server }),
		client: of(func(c *cost) float64 { return c.client }), wal: of(func(c *cost) float64 { return c.wal }),
		commits: of(func(c *cost) float64 { return c.commits }),
	}
}
