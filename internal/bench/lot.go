package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// lot is so many one-step tasks of one handler.
type lot struct {
	w         *world
	namespace string
	handler   string
	ref       *pb.TemplateRef
	conns     []*grpc.ClientConn
	recorded  atomic.Int64 // of its steps' reports, successes and failures
}

const lotInFlight = 2000

// openLot stores the template of a lot. Its name is the handler's, too.
func (w *world) openLot(ctx context.Context, namespace, name string) (*lot, error) {
	l := &lot{w: w, namespace: namespace, handler: name}
	var err error
	if l.conns, err = dial(w.last().address, batchSubmitters); err != nil {
		return nil, err
	}
	template := chainTemplate(name, name, 1)
	template.Namespace = namespace
	if l.ref, err = register(ctx, l.conns[0], template); err != nil {
		hangUp(l.conns)
		return nil, err
	}
	return l, nil
}

// submit stores n tasks; beside a crew that runs them, never more than the backlog ahead of it.
func (l *lot) submit(ctx context.Context, n int, x *crew) error {
	var (
		group  errgroup.Group
		stored atomic.Int64
		base   = l.recorded.Load()
	)
	left := make(chan int, n/submitBatch+1)
	for n > 0 {
		left <- min(n, submitBatch)
		n -= min(n, submitBatch)
	}
	close(left)
	for _, conn := range l.conns {
		client := pb.NewTaskServiceClient(conn)
		group.Go(func() error {
			for size := range left {
				if x != nil {
					if err := x.await(func() bool { return stored.Load()-(l.recorded.Load()-base) < backlog }); err != nil {
						return err
					}
				}
				request := &pb.BatchSubmitTasksRequest{Namespace: l.namespace}
				for range size {
					request.Tasks = append(request.Tasks, submission(l.ref, l.handler))
				}
				if _, err := client.BatchSubmitTasks(ctx, request); err != nil {
					return fmt.Errorf("submitting %d tasks: %w", size, err)
				}
				stored.Add(int64(size))
				l.w.tasks.Add(int64(size))
				l.w.steps.Add(int64(size))
			}
			return nil
		})
	}
	return group.Wait()
}

// work opens a worker for the lot. Its answers are the usual success unless said otherwise.
func (l *lot) work(ctx context.Context, result answer) (*crew, error) {
	return l.w.openCrew(ctx, crewConfig{
		namespace: l.namespace, handler: l.handler, inFlight: lotInFlight, answer: result,
		recorded: func(reports []*pb.ReportStepResultRequest) { l.recorded.Add(int64(len(reports))) },
	})
}

// drain opens a worker and waits until n more reports of the lot are recorded.
func (l *lot) drain(ctx context.Context, n int, result answer) (time.Duration, error) {
	want := l.recorded.Load() + int64(n)
	begun := time.Now()
	x, err := l.work(ctx, result)
	if err != nil {
		return 0, err
	}
	err = x.await(func() bool { return l.recorded.Load() >= want })
	took := time.Since(begun)
	if closeErr := x.close(); err == nil {
		err = closeErr
	}
	return took, err
}

// run submits n tasks and runs them meanwhile.
func (l *lot) run(ctx context.Context, n int) (time.Duration, error) {
	want := l.recorded.Load() + int64(n)
	x, err := l.work(ctx, nil)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	err = l.submit(ctx, n, x)
	if err == nil {
		err = x.await(func() bool { return l.recorded.Load() >= want })
	}
	took := time.Since(begun)
	if closeErr := x.close(); err == nil {
		err = closeErr
	}
	return took, err
}

func (l *lot) close() { hangUp(l.conns) }
