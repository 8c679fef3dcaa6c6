package bench

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// chainScenario is a chain of four no-op steps at low load: what a person who submits a task waits for.
var chainScenario = scenario{
	name:  "chain",
	about: "four no-op steps in a row at low load, from the intended submit to the last report's answer: milliseconds",
	estimate: func(s *sizes) time.Duration {
		return 2*s.floorEstimate(s.floorWindow) + time.Duration(s.chains)*s.chainEvery
	},
	run: runChain,
}

const (
	shortChain = 4
	// warmChains run before those that count: a connection plans its statements when it first runs them.
	warmChains = 20
	// chainBar is the most that a chain of four may take, at the median, in milliseconds.
	chainBar = 10.0
	// chainInFlight is what the worker takes at once: as much as a worker of some size, enough for all chains of B2.
	chainInFlight = 100
	// chainTimeout bounds how long a chain may take.
	chainTimeout = time.Minute
)

func runChain(ctx context.Context, w *world) error {
	var least leastLatency
	if err := w.measureLeast(ctx, &least, "chain: the floor"); err != nil {
		return err
	}
	w.phase(time.Duration(w.chains)*w.chainEvery, "chain: %d chains of %d steps", w.chains, shortChain)
	c, err := w.openChains(ctx, "bench-chain", "bench.chain", shortChain, warmChains+w.chains)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.warmUp(warmChains); err != nil {
		return err
	}
	submit := newLatencies()
	spent, err := w.costOf(ctx, w.chains*shortChain, func() error { return c.onTime(w.chainEvery, submit) })
	if err != nil {
		return err
	}
	if err := w.measureLeast(ctx, &least, "chain: the floor again"); err != nil {
		return err
	}
	c.whole.recordIn(w.doc, "chain4")
	w.doc.Set("chain4.submit_p50_ms", submit.ms(50))
	w.doc.Set("chain4.step_p50_ms", c.steps.ms(50))
	w.doc.Set("chain4.step_p99_ms", c.steps.ms(99))
	spent.record(w.doc, "chain4")
	// The submit's call and commit, and four times a report's call and transaction.
	floor := least.call() + least.commit() + shortChain*(least.call()+least.step())
	least.record(w.doc, "chain4", floor)
	ours := c.whole.ms(50)
	w.doc.judge(row{
		name: "chain4", unit: "ms p50", ours: ours, floor: floor, ratio: ours / floor, bar: fmt.Sprintf("p50 ≤ %g ms", chainBar), met: ours <= chainBar,
		beside: "computed",
	})
	return nil
}

// leastLatency is what single things take on this machine, each measured before and after the scenario.
type leastLatency struct{ calls, commits, steps, fsyncs []float64 }

// measureLeast adds one measurement.
func (w *world) measureLeast(ctx context.Context, l *leastLatency, what string) error {
	w.phase(w.floorEstimate(w.floorWindow), "%s", what)
	f, err := w.runFloor(ctx, w.floorWindow)
	if err != nil {
		return err
	}
	call, err := w.roundTrip(ctx)
	if err != nil {
		return err
	}
	l.calls, l.commits = append(l.calls, call.ms(50)), append(l.commits, f.DurableCommit)
	l.steps, l.fsyncs = append(l.steps, f.ChainP50), append(l.fsyncs, f.Fsync)
	return nil
}

func (l *leastLatency) call() float64   { return median(l.calls) }
func (l *leastLatency) commit() float64 { return median(l.commits) }
func (l *leastLatency) step() float64   { return median(l.steps) }

func (l *leastLatency) record(d *Document, key string, floor float64) {
	d.Set(key+".floor_ms", floor)
	d.Set(key+".floor.call_ms", l.call())
	d.Set(key+".floor.step_ms", l.step())
	d.Set(key+".floor.durable_commit_ms", l.commit())
	d.Set(key+".floor.fsync_ms", median(l.fsyncs))
}

// chains are tasks whose steps run one after another, and the worker that runs them. Each step is reported in a call of
// its own as soon as it comes.
type chains struct {
	w      *world
	name   string
	length int
	ref    *pb.TemplateRef
	conns  []*grpc.ClientConn
	worker *worker
	tasks  pb.TaskServiceClient
	steps  *latencies // from one step's coming to the next one's
	whole  *latencies // from a chain's intended start to the answer to its last report

	alive   context.Context         //nolint:containedctx // the worker's life: ends when a report or the stream fails
	fail    context.CancelCauseFunc // ends it
	stream  sync.WaitGroup
	reports sync.WaitGroup
	left    sync.WaitGroup // chains that were begun and have not ended

	mu   sync.Mutex
	runs []chainRun
	warm int // the first so many ran to warm up
}

// chainRun is one chain.
type chainRun struct {
	intended time.Time // when it was to be submitted
	arrived  time.Time // when its last step so far came
	done     int
}

// openChains stores a template of so many steps in a row and opens a worker for it.
func (w *world) openChains(ctx context.Context, name, handler string, length, count int) (_ *chains, err error) {
	c := &chains{w: w, name: name, length: length, runs: make([]chainRun, count), steps: newLatencies(), whole: newLatencies()}
	if c.conns, err = dial(w.server().address, 2); err != nil {
		return nil, err
	}
	c.tasks = pb.NewTaskServiceClient(c.conns[0])
	alive, fail := context.WithCancelCause(ctx)
	c.alive, c.fail = alive, fail
	if c.ref, err = register(ctx, c.conns[0], chainTemplate(name, handler, length)); err == nil {
		c.worker, err = openWorker(alive, c.conns[1], "", name, handler, chainInFlight)
	}
	if err != nil {
		fail(nil)
		hangUp(c.conns)
		return nil, err
	}
	c.stream.Go(func() { c.fail(c.worker.follow(c.arrive)) })
	return c, nil
}

// arrive takes a step and reports it, beside the stream.
func (c *chains) arrive(step *pb.ReadyStep) {
	i, last, err := c.note(step, time.Now())
	if err != nil {
		c.fail(err)
		return
	}
	token := step.GetLeaseToken()
	c.reports.Go(func() {
		if err := c.worker.report(c.alive, token); err != nil {
			c.fail(err)
			return
		}
		c.w.ended.Add(1)
		if last {
			c.mu.Lock()
			c.whole.record(time.Since(c.runs[i].intended))
			c.mu.Unlock()
			c.left.Done()
		}
	})
}

// note checks that the step is its chain's next one, and tells which chain that is and whether it ends with it.
func (c *chains) note(step *pb.ReadyStep, now time.Time) (i int, last bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, err = strconv.Atoi(strings.TrimPrefix(step.GetTaskName(), c.name+"."))
	if err != nil || i < 0 || i >= len(c.runs) {
		return 0, false, fmt.Errorf("a step of task %q came, which is none of ours", step.GetTaskName())
	}
	run := &c.runs[i]
	if want := stepName(run.done); step.GetStepName() != want {
		return 0, false, fmt.Errorf("%s of chain %d came, not %s", step.GetStepName(), i, want)
	}
	if run.done > 0 {
		c.steps.record(now.Sub(run.arrived))
	}
	run.arrived = now
	run.done++
	return i, run.done == c.length, nil
}

// submit submits chain i, which was to begin at that time.
func (c *chains) submit(i int, intended time.Time) error {
	c.mu.Lock()
	c.runs[i].intended = intended
	c.mu.Unlock()
	if _, err := c.tasks.SubmitTask(c.alive, &pb.SubmitTaskRequest{Task: submission(c.ref, c.name+"."+strconv.Itoa(i))}); err != nil {
		return fmt.Errorf("submitting a chain: %w", err)
	}
	c.w.tasks.Add(1)
	c.w.steps.Add(int64(c.length))
	return nil
}

// warmUp runs the first chains, which do not count.
func (c *chains) warmUp(count int) error {
	if err := c.together(0, count); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps, c.whole, c.warm = newLatencies(), newLatencies(), count
	return nil
}

// onTime submits the chains that count by the timetable, whatever became of those before, and waits for their ends.
func (c *chains) onTime(every time.Duration, submit *latencies) error {
	c.left.Add(len(c.runs) - c.warm)
	err := onTime(c.alive, every, len(c.runs)-c.warm, nil, func(i int, at time.Time) error {
		err := c.submit(c.warm+i, at)
		submit.record(time.Since(at))
		return err
	})
	if err != nil {
		return err
	}
	return c.await()
}

// await waits until all chains have ended.
func (c *chains) await() error {
	ended := make(chan struct{})
	go func() {
		c.left.Wait()
		close(ended)
	}()
	timer := time.NewTimer(chainTimeout)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-c.alive.Done():
		return context.Cause(c.alive)
	case <-timer.C:
		return fmt.Errorf("chains have not ended after %s", chainTimeout)
	}
}

// close ends the worker. Chains that have not ended stay as they are: the run has failed.
func (c *chains) close() {
	c.worker.end()
	c.stream.Wait()
	c.reports.Wait()
	c.fail(nil)
	hangUp(c.conns)
}
