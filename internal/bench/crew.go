package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

const (
	// reportBatch and reportBytes are the most that one call reports.
	reportBatch = 1000
	reportBytes = 3 << 20
	// patience bounds every wait for work that is under way.
	patience = 5 * time.Minute
)

// answer makes a step's report.
type answer func(*pb.ReadyStep) *pb.ReportStepResultRequest

// succeed reports the usual success.
func succeed(step *pb.ReadyStep) *pb.ReportStepResultRequest {
	return &pb.ReportStepResultRequest{LeaseToken: step.GetLeaseToken(), Outcome: success}
}

// reportBatches reports the steps of one worker, as many at a time as have come while the last calls were under way. Each
// client has one call under way: of two, the second one's gathers while the first one's is answered.
func (w *worker) reportBatches(
	ctx context.Context, group *errgroup.Group, clients []pb.WorkerServiceClient, result answer, recorded func([]*pb.ReportStepResultRequest),
) {
	var (
		mu      sync.Mutex
		waiting []*pb.ReportStepResultRequest
	)
	more := newSignal(len(clients))
	take := func() []*pb.ReportStepResultRequest {
		mu.Lock()
		defer mu.Unlock()
		n := fitting(waiting)
		taken := waiting[:n:n]
		waiting = waiting[n:]
		return taken
	}
	followed := newSignal(0)
	group.Go(func() error {
		defer close(followed)
		return w.follow(func(step *pb.ReadyStep) {
			report := result(step)
			mu.Lock()
			waiting = append(waiting, report)
			mu.Unlock()
			more.say()
		})
	})
	for _, client := range clients {
		group.Go(func() error {
			for {
				reports := take()
				if len(reports) == 0 {
					select {
					case <-more:
						continue
					case <-followed:
						return nil
					}
				}
				if err := reportAll(ctx, client, reports); err != nil {
					w.end()
					return err
				}
				recorded(reports)
			}
		})
	}
}

// fitting is how many of the reports one call may carry.
func fitting(reports []*pb.ReportStepResultRequest) int {
	bytes := 0
	for i, report := range reports {
		bytes += len(report.GetSuccess().GetResults())
		if i == reportBatch || i > 0 && bytes > reportBytes {
			return i
		}
	}
	return len(reports)
}

// signal says "look again". One that finds the channel full is dropped: the ones in it will do.
type signal chan struct{}

func newSignal(listeners int) signal { return make(signal, listeners) }

func (s signal) say() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// crew is workers that run whatever comes for one handler.
type crew struct {
	w       *world
	conns   []*grpc.ClientConn
	workers []*worker
	group   *errgroup.Group
	ctx     context.Context //nolint:containedctx // the crew's life: ends when one of it fails
	done    signal          // something was recorded
}

// crewConfig says who is to work on what.
type crewConfig struct {
	namespace, handler string
	inFlight           int32
	// at are the servers that dispatch to the workers, one each. Default: the stage's first.
	at []*process
	// crossing has each worker report to all of them in turn, so that the steps of one task end on different servers.
	crossing bool
	answer   answer
	// recorded is told of what a server has recorded, after the books.
	recorded func([]*pb.ReportStepResultRequest)
}

// openCrew opens the workers' streams.
func (w *world) openCrew(ctx context.Context, c crewConfig) (*crew, error) {
	if c.at == nil {
		c.at = []*process{w.server()}
	}
	if c.answer == nil {
		c.answer = succeed
	}
	x := &crew{w: w, done: newSignal(1)}
	// A name of its own: whoever had this crew's before may not have been seen to leave.
	number := w.crews.Add(1)
	x.group, ctx = errgroup.WithContext(ctx)
	x.ctx = ctx
	for _, server := range c.at {
		conns, err := dial(server.address, 1)
		if err != nil {
			return nil, errors.Join(err, x.close())
		}
		x.conns = append(x.conns, conns...)
	}
	for i := range x.conns {
		// Two reporters each, see reportBatches.
		clients := []pb.WorkerServiceClient{pb.NewWorkerServiceClient(x.conns[i]), pb.NewWorkerServiceClient(x.conns[i])}
		if c.crossing {
			clients = clients[:0]
			for _, conn := range x.conns {
				clients = append(clients, pb.NewWorkerServiceClient(conn))
			}
		}
		member, err := openWorker(ctx, x.conns[i], c.namespace, fmt.Sprintf("%s-%d-%d", c.handler, number, i+1), c.handler, c.inFlight)
		if err != nil {
			return nil, errors.Join(err, x.close())
		}
		x.workers = append(x.workers, member)
		member.reportBatches(ctx, x.group, clients, c.answer, func(reports []*pb.ReportStepResultRequest) {
			x.book(reports)
			if c.recorded != nil {
				c.recorded(reports)
			}
			x.done.say()
		})
	}
	return x, nil
}

func (x *crew) book(reports []*pb.ReportStepResultRequest) {
	for _, report := range reports {
		if report.GetSuccess() != nil {
			x.w.ended.Add(1)
		} else {
			x.w.failed.Add(1)
		}
	}
}

// await waits until it holds, which only what the crew records can bring about.
func (x *crew) await(holds func() bool) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for !holds() {
		select {
		case <-x.done:
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		case <-timer.C:
			return fmt.Errorf("what was to come has not come in %s", patience)
		}
	}
	return nil
}

// drain lets the workers report what they hold and take nothing more. Steps that nobody took stay as they are.
func (x *crew) drain() error {
	for _, member := range x.workers {
		if err := member.drain(x.ctx); err != nil {
			return err
		}
	}
	return nil
}

// close ends the workers. The error is the one that ended them before, if one did.
func (x *crew) close() error {
	for _, member := range x.workers {
		member.end()
	}
	err := x.group.Wait()
	hangUp(x.conns)
	return err
}
