package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

const (
	// backlog bounds how far the submitters run ahead of the completions, as the floor's does.
	backlog = 10_000
	// submitBatch is how many tasks one call submits.
	submitBatch = 500

	lifeWorkers  = 2
	lifeInFlight = 1000 // of a worker
	lifeHandler  = "bench.life"
	lifeCircuit  = "bench-service"

	batchSubmitters = 2
	// Where each has a call of its own, as many calls of either kind are under way as a batch has entries.
	unarySubmitters  = submitBatch
	unaryReporters   = submitBatch // of all workers
	unaryConnections = 4

	// drainTimeout is how long the steps that are left at the end may take.
	drainTimeout = time.Minute
)

// variant is how tasks and results travel.
type variant int

const (
	batched variant = iota
	unary
	gated // batched, each step behind a circuit that stays closed
)

// lives is what a window of whole lives of one-step tasks showed.
type lives struct {
	perSecond float64
	cost      cost
	load      float64
}

func (s *sizes) livesEstimate() time.Duration { return s.warmup + s.window + time.Second }

// flow is a load under way.
type flow struct {
	w       *world
	variant variant
	ref     *pb.TemplateRef
	room    *semaphore.Weighted // of the backlog

	submitted, completed atomic.Int64
	// progressed says that something was completed: look again.
	progressed chan struct{}
}

// runLives submits one-step tasks and reports their steps until the window is over, and waits until everything that was
// submitted has ended.
//
// Where there are several servers, the workers are on the first and the submits go to the last.
//
// Rate, processor time and commits are those of the window. Log bytes are those of the whole load, which begins and ends
// with no live row, so that each counted step has paid for all of its life.
func (w *world) runLives(ctx context.Context, v variant) (lives, error) {
	submitConns, err := dial(w.last().address, unaryConnections/2)
	if err != nil {
		return lives{}, err
	}
	defer hangUp(submitConns)
	workConns, err := dial(w.server().address, lifeWorkers)
	if err != nil {
		return lives{}, err
	}
	defer hangUp(workConns)
	f := &flow{w: w, variant: v, room: semaphore.NewWeighted(backlog), progressed: make(chan struct{}, 1)}
	life := chainTemplate("bench-life", lifeHandler, 1)
	if v == gated {
		life.Name = "bench-gated"
		life.Steps[0].Circuit = proto.String(lifeCircuit)
	}
	if f.ref, err = register(ctx, submitConns[0], life); err != nil {
		return lives{}, err
	}
	// Both the floor and the server write into a log that was just closed, so both log whole pages anew.
	if _, err := w.conn.Exec(ctx, "checkpoint"); err != nil {
		return lives{}, fmt.Errorf("making a checkpoint: %w", err)
	}
	first, err := w.read(ctx)
	if err != nil {
		return lives{}, err
	}
	workers, group, ctx, err := f.start(ctx, workConns)
	if err != nil {
		return lives{}, err
	}
	open, closeWindow := context.WithCancel(ctx)
	defer closeWindow()
	var submitters errgroup.Group
	f.submit(ctx, open, &submitters, submitConns)

	from, to, steps, err := f.measure(ctx)
	closeWindow()
	if submitErr := submitters.Wait(); submitErr != nil {
		err = submitErr
	}
	if err == nil {
		err = f.drain(ctx)
	}
	for _, x := range workers {
		x.end()
	}
	if groupErr := group.Wait(); groupErr != nil {
		err = groupErr // what it broke is only the consequence
	}
	if err != nil {
		return lives{}, err
	}
	final, err := w.read(context.WithoutCancel(ctx))
	if err != nil {
		return lives{}, err
	}
	l := lives{perSecond: float64(steps) / to.At.Sub(from.At).Seconds(), cost: w.costBetween(from, to, steps), load: to.Load}
	l.cost.wal = float64(final.WALBytes-first.WALBytes) / float64(f.completed.Load())
	return l, nil
}

// measure takes readings at the beginning and the end of the window, and tells how many steps ended in it.
func (f *flow) measure(ctx context.Context) (from, to reading, steps int64, err error) {
	before, err := f.pass(ctx, f.w.warmup, 0)
	if err != nil {
		return from, to, 0, err
	}
	if from, err = f.w.read(ctx); err != nil {
		return from, to, 0, err
	}
	after, err := f.pass(ctx, f.w.window, before)
	if err != nil {
		return from, to, 0, err
	}
	to, err = f.w.read(ctx)
	return from, to, after - before, err
}

// pass lets time go by, on a slow machine as much more of it as the load needs to complete a step beyond those before. It
// tells how many are complete.
func (f *flow) pass(ctx context.Context, d time.Duration, before int64) (int64, error) {
	pause(ctx, d)
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	for {
		if n := f.completed.Load(); n > before || ctx.Err() != nil {
			return n, ctx.Err()
		}
		select {
		case <-f.progressed:
		case <-ctx.Done():
		case <-timer.C:
			return 0, fmt.Errorf("no step has ended in %s", drainTimeout)
		}
	}
}

// start opens the workers' streams and begins to report what comes. The context ends when one of them fails.
func (f *flow) start(ctx context.Context, conns []*grpc.ClientConn) ([]*worker, *errgroup.Group, context.Context, error) {
	group, ctx := errgroup.WithContext(ctx)
	var workers []*worker
	for i, conn := range conns {
		x, err := openWorker(ctx, conn, "", fmt.Sprintf("bench-life-%d", i+1), lifeHandler, lifeInFlight)
		if err != nil {
			for _, other := range workers {
				other.end()
			}
			return nil, nil, nil, err
		}
		workers = append(workers, x)
	}
	for _, x := range workers {
		if f.variant != unary {
			x.reportBatches(ctx, group, []pb.WorkerServiceClient{x.client, x.client}, succeed, f.recorded)
		} else {
			f.reportSingly(ctx, group, x)
		}
	}
	return workers, group, ctx, nil
}

// submit begins to submit, never more than the backlog ahead, until the window closes.
func (f *flow) submit(ctx, open context.Context, group *errgroup.Group, conns []*grpc.ClientConn) {
	if f.variant != unary {
		for i := range batchSubmitters {
			group.Go(func() error { return f.submitBatches(ctx, open, pb.NewTaskServiceClient(conns[i%len(conns)])) })
		}
		return
	}
	for i := range unarySubmitters {
		group.Go(func() error { return f.submitSingly(ctx, open, pb.NewTaskServiceClient(conns[i%len(conns)])) })
	}
}

func (f *flow) submitBatches(ctx, open context.Context, client pb.TaskServiceClient) error {
	request := &pb.BatchSubmitTasksRequest{}
	for range submitBatch {
		request.Tasks = append(request.Tasks, submission(f.ref, "life"))
	}
	for f.room.Acquire(open, submitBatch) == nil {
		answer, err := client.BatchSubmitTasks(ctx, request)
		if err != nil {
			return fmt.Errorf("submitting %d tasks: %w", submitBatch, err)
		}
		f.stored(int64(len(answer.GetResults())))
	}
	return nil
}

func (f *flow) submitSingly(ctx, open context.Context, client pb.TaskServiceClient) error {
	request := &pb.SubmitTaskRequest{Task: submission(f.ref, "life")}
	for f.room.Acquire(open, 1) == nil {
		if _, err := client.SubmitTask(ctx, request); err != nil {
			return fmt.Errorf("submitting a task: %w", err)
		}
		f.stored(1)
	}
	return nil
}

func (f *flow) stored(n int64) {
	f.submitted.Add(n)
	f.w.tasks.Add(n)
	f.w.steps.Add(n)
}

func (f *flow) recorded(reports []*pb.ReportStepResultRequest) { f.ended(int64(len(reports))) }

func (f *flow) ended(n int64) {
	f.w.ended.Add(n)
	f.completed.Add(n)
	f.room.Release(n)
	select {
	case f.progressed <- struct{}{}:
	default:
	}
}

// reportSingly reports each step of one worker in a call of its own.
func (f *flow) reportSingly(ctx context.Context, group *errgroup.Group, x *worker) {
	tokens := make(chan string, lifeInFlight)
	group.Go(func() error {
		defer close(tokens)
		// The channel holds all that may be in flight: it never blocks.
		return x.follow(func(step *pb.ReadyStep) { tokens <- step.GetLeaseToken() })
	})
	for range unaryReporters / lifeWorkers {
		group.Go(func() error {
			for token := range tokens {
				if err := x.report(ctx, token); err != nil {
					x.end()
					return err
				}
				f.ended(1)
			}
			return nil
		})
	}
}

// drain waits until everything that was submitted has ended.
func (f *flow) drain(ctx context.Context) error {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	for f.completed.Load() < f.submitted.Load() {
		select {
		case <-f.progressed:
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return fmt.Errorf("%d of %d steps have not ended after %s", f.submitted.Load()-f.completed.Load(), f.submitted.Load(), drainTimeout)
		}
	}
	return nil
}
