package peers

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Document is everything that one run found.
type Document struct {
	facts
	quick     bool
	rounds    int
	sizes     sizes
	ended     time.Time
	loadAfter float64
	peers     []*peer
	turns     map[string][]*turn // of each peer, by round
}

// comparison is a ratio that is to be reached, taken within each round: the machine changes between two.
type comparison struct {
	what     string
	of, with string // peers
	command  string // of which the figure is
	figure   func(*measurement) float64
	bar      string // empty: it is only told
	met      func(ratio float64) bool
	holds    bool // whatever else the machine does
}

func logBytes(m *measurement) float64 { return m.wal }

func ahead(ratio float64) bool { return ratio > 1 }

// comparisons are the bars of B1 among peers.
var comparisons = []comparison{
	{"log bytes of a whole life, Tasker ÷ River", taskerName, riverName, life, logBytes, "≤ 0.7", func(r float64) bool { return r <= 0.7 }, true},
	{"backlog worked off a second, Tasker ÷ River", taskerName, riverName, drain, (*measurement).perSecond, "> 1", ahead, false},
	{"backlog worked off a second, Tasker ÷ DBOS", taskerName, dbosName, drain, (*measurement).perSecond, "> 1", ahead, false},
	{"backlog worked off a second, Tasker ÷ pg-boss", taskerName, bossName, drain, (*measurement).perSecond, "> 1", ahead, false},
	{
		"backlog worked off a second, Tasker ÷ graphile-worker", taskerName, graphileName, drain, (*measurement).perSecond,
		"≥ 0.6", func(r float64) bool { return r >= 0.6 }, false,
	},
	{
		"whole lives a second, Tasker ÷ the floor", taskerName, floorName, life, (*measurement).perSecond,
		"≥ 0.6", func(r float64) bool { return r >= 0.6 }, false,
	},
	{"whole lives a second, Tasker ÷ River", taskerName, riverName, life, (*measurement).perSecond, "", nil, false},
	{"whole lives a second, Tasker ÷ DBOS", taskerName, dbosName, life, (*measurement).perSecond, "", nil, false},
	{"whole lives a second, Tasker ÷ pg-boss", taskerName, bossName, life, (*measurement).perSecond, "", nil, false},
	{"whole lives a second, Tasker ÷ graphile-worker", taskerName, graphileName, life, (*measurement).perSecond, "", nil, false},
}

// Write prints the page.
func (d *Document) Write(out io.Writer) error {
	var b strings.Builder
	b.WriteString(`# Tasker and its peers on one Postgres

<!-- Written by "make bench-peers" (bench/peers). Do not edit: each run replaces all of it. -->

What other queues that keep their jobs in Postgres do on the same machine, beside Tasker and beside the floor (the least that the
same work costs on this Postgres). This page is written by ` + "`make bench-peers`" + ` and replaced as a whole by each run: no two figures here
are of different runs. What Tasker does by itself, and how far from its floor, is told by ` + "`make bench`" + `.

**They do not do the same thing.** Tasker pays for gRPC and for a second process: its server stands between the worker and Postgres,
and each step is submitted, delivered and reported over the network stack. The others are libraries within the worker's own process, which
speak to Postgres directly. Tasker also keeps a graph for each task, a history entry for each dispatch and report, and a lease with a token
for each step; what the others keep differs. All jobs are no-ops of about 100 bytes, so what is compared is the queue alone.

`)
	if d.quick {
		b.WriteString("**These figures are of a quick run: it shows that everything works, and is too short for a figure to quote.**\n\n")
	}
	d.writeFacts(&b)
	d.writeTable(&b)
	d.writeComparisons(&b)
	d.writeMeaning(&b)
	_, err := io.WriteString(out, b.String())
	return err
}

func (d *Document) writeFacts(b *strings.Builder) {
	b.WriteString("## The run\n\n| | |\n|---|---|\n")
	fact := func(name, format string, args ...any) {
		fmt.Fprintf(b, "| %s | %s |\n", name, fmt.Sprintf(format, args...))
	}
	fact("date", "%s, for %s", d.began.UTC().Format("2006-01-02 15:04 UTC"), d.ended.Sub(d.began).Round(time.Second))
	fact("machine", "%d cores, %s, %.1f GiB of memory, %s; peers, Postgres and server share it", d.cpus, d.model, d.memoryGiB, d.system)
	fact("load average", "%.2f before, %.2f after (the run itself keeps every core busy)", d.loadBefore, d.loadAfter)
	fact("PostgreSQL", "%s, one that the run starts: %s", d.postgres, strings.Join(d.settings, ", "))
	if floors := d.turns[floorName]; len(floors) > 0 {
		fsync := spread(floors, milli, func(t *turn) float64 { return t.floors.Fsync })
		commit := spread(floors, milli, func(t *turn) float64 { return t.floors.DurableCommit })
		fact("a commit", "%s ms, of which the disk takes %s ms", commit, fsync)
	}
	versions := []string{"Go " + d.golang}
	if d.node != "" {
		versions = append(versions, "Node.js "+d.node)
	}
	for _, p := range d.peers {
		if p.name != floorName {
			versions = append(versions, p.name+" "+d.turns[p.name][0].version)
		}
	}
	fact("versions", "%s", strings.Join(versions, ", "))
	jobs := whole(float64(d.sizes.jobs)) + " jobs of backlog and as many of lives"
	for _, p := range d.peers {
		if p.share != 0 {
			jobs += fmt.Sprintf(" (%s: %s)", p.name, whole(float64(p.jobs(d.sizes.jobs))))
		}
	}
	fact("sizes", "rounds: %d; %s; %g jobs a second for %g s of timetable; floor: %s", d.rounds, jobs, d.sizes.rate, d.sizes.seconds, d.sizes.window)
	b.WriteString("\n")
}

// columns of the table, each a figure of one command.
var columns = []struct {
	title   string
	command string
	digits  func(float64) string
	figure  func(*measurement) float64
	holds   bool // whatever else the machine does
}{
	{"backlog worked off, jobs/s", drain, whole, (*measurement).perSecond, false},
	{"whole lives, jobs/s", life, whole, (*measurement).perSecond, false},
	{"latency p50, ms", latency, milli, func(m *measurement) float64 { return m.P50 }, false},
	{"latency p99, ms", latency, milli, func(m *measurement) float64 { return m.P99 }, false},
	{"log bytes/job", life, whole, func(m *measurement) float64 { return m.wal }, true},
	{"commits/job", life, fine, func(m *measurement) float64 { return m.commits }, true},
	{"Postgres, CPU s/1000", life, milli, func(m *measurement) float64 { return m.postgres }, false},
	{"server, CPU s/1000", life, milli, func(m *measurement) float64 { return m.server }, false},
	{"client, CPU s/1000", life, milli, func(m *measurement) float64 { return m.client }, false},
}

func (d *Document) writeTable(b *strings.Builder) {
	b.WriteString("## Figures\n\nMedian of the rounds, and in brackets the least and the greatest.\n\n| |")
	for _, c := range columns {
		fmt.Fprintf(b, " %s |", c.title)
	}
	b.WriteString(" other_cores |\n|---|" + strings.Repeat("---|", len(columns)+1) + "\n")
	marked := false
	for _, p := range d.peers {
		turns := d.turns[p.name]
		fmt.Fprintf(b, "| %s |", p.name)
		for _, c := range columns {
			cell, disturbed := "–", false
			if _, ok := turns[0].made[c.command]; ok {
				cell = spread(turns, c.digits, func(t *turn) float64 {
					m := t.made[c.command]
					disturbed = disturbed || m.disturbed() && !c.holds
					return c.figure(&m)
				})
			}
			if c.command == life && c.title == "server, CPU s/1000" && !p.served {
				cell, disturbed = "–", false
			}
			if disturbed {
				cell, marked = cell+" †", true
			}
			fmt.Fprintf(b, " %s |", cell)
		}
		fmt.Fprintf(b, " %s |\n", spread(turns, milli, (*turn).others))
	}
	b.WriteString("\n")
	if marked {
		fmt.Fprintf(b, "† Something else on the machine used more than %g cores in at least one of the rounds, and did so again when the turn was repeated. "+
			"Figures so marked say little. Log bytes and commits hold whatever else goes on.\n\n", mostOthers)
	}
}

func (d *Document) writeComparisons(b *strings.Builder) {
	var rows strings.Builder
	for _, c := range comparisons {
		ours, theirs := d.turns[c.of], d.turns[c.with]
		if len(ours) == 0 || len(theirs) == 0 {
			continue
		}
		var ratios []float64
		mark := ""
		for i := range ours {
			a, b := ours[i].made[c.command], theirs[i].made[c.command]
			ratios = append(ratios, c.figure(&a)/c.figure(&b))
			if (a.disturbed() || b.disturbed()) && !c.holds {
				mark = " †"
			}
		}
		bar, met := c.bar, "no"
		switch {
		case bar == "":
			bar, met = "–", "–"
		case c.met(median(ratios)):
			met = "yes"
		}
		fmt.Fprintf(&rows, "| %s | %s%s | %s | %s |\n", c.what, between(ratios, milli), mark, bar, met)
	}
	if rows.Len() > 0 {
		b.WriteString("## Ratios\n\nEach is taken within a round; then the median of the rounds, and in brackets the least and the greatest.\n\n" +
			"| ratio | found | bar | met |\n|---|---|---|---|\n" + rows.String() + "\n")
	}
}

func (d *Document) writeMeaning(b *strings.Builder) {
	b.WriteString(`## What the columns mean

- **backlog worked off**: all jobs are there before the worker starts; from its start until the queue itself says that the last completion
  is stored.
- **whole lives**: jobs are submitted in batches while the worker runs, at most 10,000 ahead of it; from the first submit to the last stored
  completion. Log bytes, commits and processor time are of these: each job has paid for all of its life.
- **latency**: single jobs at random moments at a low rate, whatever became of those before; from the moment when a job was to be submitted until
  its handler has it.
- **commits**: transactions that wrote, the ones that wait for the disk.
- **server**, **client**: Tasker's server process; the process that submits and works.
- **other_cores**: cores used by everything else on the machine meanwhile.

Each turn has a fresh database, with a checkpoint before what is measured, and ends by counting in the database what was submitted. All are set
for throughput, by the project's own advice where it gives any; none runs with its defaults but Tasker's server.

`)
	for _, p := range d.peers {
		fmt.Fprintf(b, "- **%s**: %s.\n", p.name, p.about)
	}
}

func spread(turns []*turn, digits func(float64) string, figure func(*turn) float64) string {
	var values []float64
	for _, t := range turns {
		values = append(values, figure(t))
	}
	return between(values, digits)
}

// between is the median with the least and the greatest, where there is more than one.
func between(values []float64, digits func(float64) string) string {
	if len(values) == 1 {
		return digits(values[0])
	}
	return fmt.Sprintf("%s (%s–%s)", digits(median(values)), digits(slices.Min(values)), digits(slices.Max(values)))
}

// median of values; of an even number, the mean of the two in the middle.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// whole has thousands apart.
func whole(f float64) string {
	digits := strconv.FormatFloat(math.Round(f), 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// fine is for shares of one job.
func fine(f float64) string { return strconv.FormatFloat(f, 'f', 4, 64) }

// milli has three digits that mean something.
func milli(f float64) string {
	switch {
	case f >= 100:
		return whole(f)
	case f >= 10:
		return strconv.FormatFloat(f, 'f', 1, 64)
	case f >= 1:
		return strconv.FormatFloat(f, 'f', 2, 64)
	}
	return strconv.FormatFloat(f, 'f', 3, 64)
}
