package store_test

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/taskerhq/tasker/bench/floor/meter"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

var benchURL = flag.String("bench.url", "", "a migrated database to run benchmarks in, instead of one without fsync")

// benchBatch is how many steps a transaction of the benchmarks moves.
const benchBatch = 500

// bench is a store of one namespace, lane and session, to be measured.
type bench struct {
	*testing.B
	s       *store.Store
	ns      int32
	lane    int32
	circuit int32 // that the lane stands behind; 0: none
	session store.SessionFence
	ids     *store.TaskIDs
	conn    *pgx.Conn
	meter   *meter.Meter
}

// newBench has the lane stand behind a circuit, unless that is empty. The circuit stays closed.
func newBench(b *testing.B, circuit string) *bench {
	ctx := b.Context()
	url := *benchURL
	if url == "" {
		url = pgtest.New(b).ConnString()
	}
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		b.Fatal(err)
	}
	x := &bench{B: b}
	x.s, err = store.Open(context.WithoutCancel(ctx), config, 4)
	x.must(err)
	b.Cleanup(x.s.Close)
	x.ids = &store.TaskIDs{Store: x.s}
	x.ns, err = x.s.EnsureNamespace(ctx, "bench")
	x.must(err)
	x.lane, x.circuit, err = x.s.EnsureLane(ctx, store.Lane{NamespaceID: x.ns, Handler: "bench", Circuit: circuit, Priority: 1})
	x.must(err)
	id, epoch, _, err := x.s.OpenSession(ctx, x.ns, [16]byte{1}, store.Session{
		WorkerID: rand.Text(), InstanceID: "1", MaxInFlight: 1000, Handlers: []string{"bench"},
	})
	x.must(err)
	x.session = store.SessionFence{SessionID: id, Epoch: epoch, DeliveryTimeout: 5 * time.Second, Beats: true}
	x.conn, err = pgx.Connect(ctx, url)
	x.must(err)
	b.Cleanup(func() { _ = x.conn.Close(context.WithoutCancel(ctx)) })
	x.meter, err = meter.New(ctx, x.conn)
	x.must(err)
	return x
}

func (x *bench) must(err error) {
	if err != nil {
		x.Fatal(err)
	}
}

// measure tells what the work that do does costs a step.
func (x *bench) measure(prefix string, do func() (steps int64)) {
	ctx := context.WithoutCancel(x.Context())
	_, err := x.conn.Exec(ctx, "checkpoint")
	x.must(err)
	before, err := x.meter.Read(ctx)
	x.must(err)
	n := float64(do())
	after, err := x.meter.Read(ctx)
	x.must(err)
	x.ReportMetric(float64((after.PostgresCPU-before.PostgresCPU).Microseconds())/n, prefix+"pg-µs/step")
	x.ReportMetric(float64((after.ProcessCPU-before.ProcessCPU).Microseconds())/n, prefix+"go-µs/step")
	x.ReportMetric(float64(after.WALBytes-before.WALBytes)/n, prefix+"wal-B/step")
}

var benchTask = &task.Submission{Namespace: "bench", Name: "life", Context: `{"user_id":12345678901234567890}`, Steps: []task.StepSpec{{
	Name: "no_op", Handler: "bench", Priority: 1, Policy: task.Policy{RetryLimit: 3, Retryable: true, MaxLostLeases: 3},
}}}

// submit stores a batch of one-step tasks.
func (x *bench) submit(ctx context.Context) error {
	numbers, err := x.ids.Take(ctx, benchBatch)
	if err != nil {
		return err
	}
	tasks := make([]store.NewTask, benchBatch)
	for i := range tasks {
		tasks[i] = store.NewTask{ID: numbers[i], Lanes: []int32{x.lane}, Submission: benchTask}
	}
	_, _, err = x.s.Submit(ctx, x.ns, tasks, false)
	return err
}

// loop is a connection of the engine's: it reports what it holds.
type loop struct {
	cursor int64
	held   []task.Report
}

// flush reports what the loop holds, and claims as much anew if it is to.
func (x *bench) flush(ctx context.Context, l *loop, claiming bool, room int) error {
	var claim *store.Claim
	if claiming {
		claim = &store.Claim{
			Lanes:    []store.LaneWant{{LaneID: x.lane, CircuitID: x.circuit, After: l.cursor, Slots: slices.Repeat([]int32{x.session.SessionID}, room)}},
			Sessions: []store.SessionFence{x.session},
		}
		if x.circuit != 0 {
			claim.Circuits = []store.CircuitWant{{CircuitID: x.circuit, LaneID: x.lane}}
		}
	}
	f, err := x.s.Turn(ctx, x.ns, nil, l.held, claim)
	if err != nil {
		return err
	}
	l.held = nil
	for _, grant := range f.Grants {
		l.held = append(l.held, task.Report{Token: grant.Step.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}})
		l.cursor = max(l.cursor, *grant.Seq)
	}
	return nil
}

// BenchmarkVerbs is what each verb costs by itself, one after another, over a backlog of all steps. One op is one step.
func BenchmarkVerbs(b *testing.B) { benchVerbs(b, "") }

// BenchmarkGatedVerbs is the same of steps behind a closed circuit.
func BenchmarkGatedVerbs(b *testing.B) { benchVerbs(b, "service") }

func benchVerbs(b *testing.B, circuit string) {
	x := newBench(b, circuit)
	batches := (b.N + benchBatch - 1) / benchBatch
	each := func(verb string, do func() error) {
		x.measure(verb+"-", func() int64 {
			for range batches {
				x.must(do())
			}
			return int64(batches * benchBatch)
		})
	}
	b.ResetTimer()
	each("submit", func() error { return x.submit(b.Context()) })
	var granted []loop
	cursor := int64(0)
	each("claim", func() error {
		l := loop{cursor: cursor}
		err := x.flush(b.Context(), &l, true, benchBatch)
		granted, cursor = append(granted, l), l.cursor
		return err
	})
	each("complete", func() error {
		l := granted[0]
		granted = granted[1:]
		return x.flush(b.Context(), &l, false, 0)
	})
}

// BenchmarkLives is the whole life of one-step tasks as the engine drives the store, without an engine: a submitter stores
// them by the 500, and two loops complete what they hold and claim the next 500 in one transaction. One op is one step.
// Beside the time it tells what bench/floor tells: processor time of Postgres and of this process, and log bytes, a step.
func BenchmarkLives(b *testing.B) { benchLives(b, "") }

// BenchmarkGatedLives is the same of steps behind a closed circuit.
func BenchmarkGatedLives(b *testing.B) { benchLives(b, "service") }

func benchLives(b *testing.B, circuit string) {
	const loops, ahead = 2, 20 * benchBatch
	x := newBench(b, circuit)
	var submitted, ended atomic.Int64
	progress := make(chan struct{}, 1)
	b.ResetTimer()
	x.measure("", func() int64 {
		g, ctx := errgroup.WithContext(b.Context())
		g.Go(func() error {
			for submitted.Load() < int64(b.N) {
				if submitted.Load()-ended.Load() > ahead {
					select {
					case <-progress:
					case <-ctx.Done():
					}
					continue
				}
				if err := x.submit(ctx); err != nil {
					return err
				}
				submitted.Add(benchBatch)
			}
			return nil
		})
		for range loops {
			g.Go(func() error {
				var l loop
				for ended.Load() < int64(b.N) || len(l.held) > 0 {
					held := len(l.held)
					if err := x.flush(ctx, &l, true, benchBatch); err != nil {
						return err
					}
					ended.Add(int64(held))
					select {
					case progress <- struct{}{}:
					default:
					}
					if len(l.held) == 0 {
						l.cursor = 0 // the other loop passed something by, or there is nothing yet
					}
				}
				return nil
			})
		}
		x.must(g.Wait())
		return ended.Load()
	})
}

// BenchmarkChain is a chain's step as the engine records it: one report, and a claim that finds its child. One op is one step.
func BenchmarkChain(b *testing.B) {
	x := newBench(b, "")
	const length = 1000
	chain := &task.Submission{Namespace: "bench", Name: "chain", Context: "{}"}
	for i := range length {
		s := benchTask.Steps[0]
		s.Name = fmt.Sprint("s", i+1)
		if i > 0 {
			s.Parents = []int{i}
		}
		chain.Steps = append(chain.Steps, s)
	}
	var l loop
	for i := 0; b.Loop(); i++ {
		if i%length == 0 {
			b.StopTimer()
			id, err := x.ids.Take(b.Context(), 1)
			x.must(err)
			_, _, err = x.s.Submit(b.Context(), x.ns, []store.NewTask{{ID: id[0], Lanes: slices.Repeat([]int32{x.lane}, length), Submission: chain}}, false)
			x.must(err)
			x.must(x.flush(b.Context(), &l, true, 16))
			b.StartTimer()
		}
		x.must(x.flush(b.Context(), &l, true, 16))
	}
}
