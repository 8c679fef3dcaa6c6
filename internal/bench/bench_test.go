package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/pflag"

	"github.com/taskerhq/tasker/internal/bench"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/server"
)

// TestMain is also the program that the benchmark starts: this test binary as the server, and as the empty server.
func TestMain(m *testing.M) {
	var run func(context.Context) error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "serve":
		run = serve
	case len(os.Args) > 2 && os.Args[1] == "bench" && os.Args[2] == "echo":
		run = func(ctx context.Context) error {
			return bench.ServeEmpty(ctx, os.Stdout, slices.Contains(os.Args, "--idle"))
		}
	default:
		pgtest.Main(m)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(ctx context.Context) error {
	conf := server.Default()
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	conf.Bind(flags)
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	if err := conf.ReadEnvironment(flags, os.Getenv); err != nil {
		return err
	}
	log, err := conf.Logger(os.Stderr)
	if err != nil {
		return err
	}
	return server.Run(ctx, conf, os.Stdout, log)
}

// tiny is a run on the tests' cluster.
func tiny(t *testing.T, scenarios ...string) bench.Config {
	t.Helper()
	c := bench.Config{Scenarios: scenarios, DatabaseURL: pgtest.NewEmpty(t).ConnString(), AllowFsyncOff: true}
	c.Tiny()
	return c
}

// shown is what a scenario's figures must be, even in a run this small.
type shown struct {
	positive []string       // keys of numbers above 0
	numbers  []string       // keys of numbers
	equal    map[string]any // what no noise can excuse, on any machine
	rows     []string       // of the table
}

var scenarios = map[string]shown{
	"chain": {
		positive: []string{
			"chain4.p50_ms", "chain4.p99_ms", "chain4.ratio", "chain4.floor_ms", "chain4.step_p50_ms", "chain4.submit_p50_ms",
			"chain4.wal_bytes_per_step",
		},
		rows: []string{"chain4"},
	},
	"B2": {
		positive: []string{"B2.p50_ms", "B2.ratio", "B2.floor_ms", "B2.many.p50_ms", "B2.many.steps_per_s", "B2.commits_per_step"},
		rows:     []string{"B2"},
	},
	"B1": {
		positive: []string{
			"B1.load_after", "B1.floor.steps_per_s", "B1.floor.wal_bytes_per_step", "B1.floor.pg_cpu_us_per_step", "B1.floor.commits_per_step",
			"B1.batched.steps_per_s", "B1.batched.ratio", "B1.batched.pg_cpu_us_per_step", "B1.batched.server_cpu_us_per_step",
			"B1.batched.client_cpu_us_per_step", "B1.batched.wal_bytes_per_step", "B1.batched.wal_ratio",
			"B1.gated.steps_per_s", "B1.gated.ratio", "B1.gated.cpu_ratio", "B1.gated.wal_bytes_per_step",
			"B1.unary.steps_per_s", "B1.unary.ratio", "B1.unary.bound", "B1.unary.of_bound", "B1.unary.empty_calls_per_s",
		},
		rows: []string{"B1.batched", "B1.unary", "B1.gated", "its floor"},
	},
	"B3": {
		positive: []string{"B3.wide.elapsed_ms", "B3.wide.ratio", "B3.narrow.elapsed_ms", "B3.wide2.elapsed_ms", "B3.narrow2.commits_per_step"},
		equal:    map[string]any{"B3.deadlocks.met": true},
		rows:     []string{"B3.wide", "B3.narrow2"},
	},
	"B4": {
		positive: []string{"B4.due.p99_ms", "B4.due.ratio", "B4.beside.ratio", "B4.fresh.drain_ms", "B4.due.wal_bytes_per_step"},
		equal:    map[string]any{"B4.due.early": 0.0},
		rows:     []string{"B4.first", "B4.due", "B4.beside"},
	},
	"B5": {
		positive: []string{"B5.equal.p99_ms", "B5.backing_off.ratio", "B5.blocked.ratio", "B5.open_circuit.ratio", "B5.trip.wal_bytes", "B5.release.wal_bytes", "B5.ready_600.ratio"},
		rows:     []string{"B5.equal", "B5.blocked"},
	},
	"B6": {
		positive: []string{"B6.rate.ratio", "B6.wait.ratio", "B6.snapshot_age", "B6.before.start.p99_ms", "B6.under.part3.start.p99_ms"},
		rows:     []string{"B6.rate", "B6.wait"},
	},
	"B7": {
		positive: []string{"B7.shared.rss_kib", "B7.own.rss_kib", "B7.shared.streams"},
		numbers:  []string{"B7.shared.postgres_core", "B7.own.postgres_core", "B7.shared.floor.memory_kib", "B7.own.floor.core"}, // differences
		rows:     []string{"B7.shared.memory", "B7.own.statements", "B7.own.core"},
	},
	"B8": {
		positive: []string{"B8.floor.hop.p50_ms", "B8.1.start.p99_ms", "B8.2.start.p99_ms", "B8.2.throughput_per_s", "B8.notifications"},
		equal:    map[string]any{"B8.notify_in_data_tx.met": true},
		rows:     []string{"B8.1", "B8.2"},
	},
	"B9": {
		positive: []string{"B9.ratio", "B9.beside.start.p99_ms", "B9.busy.steps_per_s", "B9.busy.wal_bytes_per_step"},
		rows:     []string{"B9"},
	},
	"B10": {
		positive: []string{"B10.100.us_per_kb", "B10.131072.wal_per_byte", "B10.time.ratio", "B10.wal.ratio", "B10.inserted_rows"},
		equal:    map[string]any{"B10.rewritten.met": true},
		rows:     []string{"B10.100", "B10.time", "B10.wal"},
	},
	"B11": {
		positive: []string{"B11.rate.ratio", "B11.steps", "B11.fresh.wal_bytes_per_step"},
		rows:     []string{"B11.rate"},
	},
}

// TestRun runs everything, small, and sees that each figure is there, that nothing was lost, and that the databases that
// were made are gone. There are two runs, side by side: most of the time they wait.
func TestRun(t *testing.T) {
	var halves [2][]string
	for i, s := range bench.Scenarios() {
		halves[i%2] = append(halves[i%2], s[0])
	}
	url := pgtest.NewEmpty(t).ConnString()
	t.Run("half", func(t *testing.T) {
		for _, names := range halves {
			t.Run(strings.Join(names, " "), func(t *testing.T) {
				t.Parallel()
				runHalf(t, url, names)
			})
		}
	})
	if left := benchDatabases(t, url); left != 0 {
		t.Errorf("%d databases of the runs are left", left)
	}
}

func runHalf(t *testing.T, url string, names []string) {
	c := bench.Config{Scenarios: names, DatabaseURL: url, AllowFsyncOff: true}
	c.Tiny()
	var told atomic.Int64
	c.Progress = func(what string, done, total time.Duration) {
		if what == "" || done < 0 || done > total {
			t.Errorf("progress: %q, %s of %s", what, done, total)
		}
		told.Add(1)
	}
	doc, err := bench.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if told.Load() < 10 {
		t.Errorf("progress was told %d times, want each phase to tell", told.Load())
	}
	body, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var figures map[string]any
	if err := json.Unmarshal(body, &figures); err != nil {
		t.Fatalf("%v in\n%s", err, body)
	}
	var table bytes.Buffer
	if err := doc.Write(&table); err != nil {
		t.Fatal(err)
	}
	want := []shown{{
		positive: []string{"cpus", "steps", "tasks", "checked_dispatches", "durable_commit_ms"},
		equal:    map[string]any{"lost": 0.0, "doubled": 0.0, "violations": 0.0, "fsync": "off", "quick": false},
	}}
	for _, name := range names {
		s, ok := scenarios[name]
		if !ok {
			t.Errorf("nobody has said what %s is to show", name)
		}
		want = append(want, s)
	}
	for _, s := range want {
		for _, key := range s.positive {
			if f, ok := figures[key].(float64); !ok || f <= 0 {
				t.Errorf("%s = %v, want a number above 0", key, figures[key])
			}
		}
		for _, key := range s.numbers {
			if _, ok := figures[key].(float64); !ok {
				t.Errorf("%s = %v, want a number", key, figures[key])
			}
		}
		for key, want := range s.equal {
			if figures[key] != want {
				t.Errorf("%s = %v, want %v", key, figures[key], want)
			}
		}
		for _, name := range s.rows {
			if !strings.Contains(table.String(), "\n"+name+" ") && !strings.Contains(table.String(), "\n  "+name+" ") {
				t.Errorf("the table lacks %q:\n%s", name, &table)
			}
		}
	}
}

// TestRunTellsLossAndDoubling plants, after a good run, what a bad server would have left behind.
func TestRunTellsLossAndDoubling(t *testing.T) {
	tests := map[string]string{
		"a step's end is lost":    "delete from step_end where step_no = 1 and task_id = (select min(task_id) from step_end)",
		"a task's end is lost":    "delete from task_end where task_id = (select min(task_id) from task_end)",
		"a task is lost":          "delete from task where task_id = (select min(task_id) from task)",
		"a dispatch is doubled":   "insert into history (recorded_at, kind, task_ids) select recorded_at, kind, task_ids[1:1] from history where kind = 'dispatched' limit 1",
		"a success is doubled":    "insert into history (recorded_at, kind, outcome, task_ids) select recorded_at, kind, outcome, task_ids[1:1] from history where kind = 'concluded' limit 1",
		"a step ended otherwise":  "update step_end set state = 'cancelled' where step_no = 1 and task_id = (select min(task_id) from step_end)",
		"a live row is left over": "insert into ready (lane_id, task_id, step_no, runnable_at) select lane_id, task_id, step_no, now() from step limit 1",
	}
	c := tiny(t, "chain")
	c.BeforeVerify(func(ctx context.Context, conn *pgx.Conn, verify func(context.Context) error) error {
		if err := verify(ctx); err != nil {
			return err
		}
		for name, planted := range tests {
			t.Run(name, func(t *testing.T) {
				tx, err := conn.Begin(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback(ctx)
				if tag, err := tx.Exec(ctx, planted); err != nil || tag.RowsAffected() == 0 {
					t.Fatalf("planting: %s, %v", tag, err)
				}
				var loss *bench.LossError
				if err := verify(ctx); !errors.As(err, &loss) {
					t.Errorf("error = %v, want a loss", err)
				}
			})
		}
		_, err := conn.Exec(ctx, tests["a step's end is lost"])
		return err
	})
	doc, err := bench.Run(t.Context(), c)
	var loss *bench.LossError
	if !errors.As(err, &loss) {
		t.Fatalf("the run's error = %v, want a loss", err)
	}
	if lost, _ := json.Marshal(doc); !bytes.Contains(lost, []byte(`"lost":1,`)) {
		t.Errorf("the document does not tell the loss: %s", lost)
	}
}

// TestRunTellsViolation plants what the counts do not show, and the replay of the history does.
func TestRunTellsViolation(t *testing.T) {
	c := tiny(t, "chain")
	c.BeforeVerify(func(ctx context.Context, conn *pgx.Conn, verify func(context.Context) error) error {
		if _, err := conn.Exec(ctx, "update step_end set dispatches = 2 where step_no = 2 and task_id = (select min(task_id) from step_end)"); err != nil {
			return err
		}
		return verify(ctx)
	})
	doc, err := bench.Run(t.Context(), c)
	var violation *bench.ViolationError
	if !errors.As(err, &violation) || !strings.Contains(err.Error(), "S14") {
		t.Fatalf("error = %v, want a violation of S14", err)
	}
	if told, _ := json.Marshal(doc); !bytes.Contains(told, []byte(`"violations":1`)) {
		t.Errorf("the document does not tell it: %s", told)
	}
}

func TestRunRefusesUnknownScenario(t *testing.T) {
	_, err := bench.Run(t.Context(), bench.Config{Scenarios: []string{"B1", "B99"}})
	if err == nil || !strings.Contains(err.Error(), "B99") || !strings.Contains(err.Error(), "chain") {
		t.Errorf("error = %v, want one that names B99 and what there is", err)
	}
}

// TestRunTellsWhyServerDidNotStart sees that a wrong flag of the server is told by the server's own words.
func TestRunTellsWhyServerDidNotStart(t *testing.T) {
	c := tiny(t, "chain")
	c.ServeArgs = []string{"--database-connections", "0"}
	_, err := bench.Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "--database-connections must be") {
		t.Errorf("error = %v, want the server's", err)
	}
	if left := benchDatabases(t, c.DatabaseURL); left != 0 {
		t.Errorf("%d databases of the run are left", left)
	}
}

// TestRunStops sees that a run that is interrupted ends soon and leaves nothing behind.
func TestRunStops(t *testing.T) {
	c := tiny(t, "B1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.Progress = func(what string, _, _ time.Duration) {
		if strings.HasSuffix(what, "batched") {
			cancel()
		}
	}
	if _, err := bench.Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want context.Canceled", err)
	}
	if left := benchDatabases(t, c.DatabaseURL); left != 0 {
		t.Errorf("%d databases of the run are left", left)
	}
}

func benchDatabases(t *testing.T, url string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), `select count(*) from pg_database where datname like 'tasker\_bench\_%'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
