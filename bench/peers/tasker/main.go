// Command tasker drives a Tasker server as bench/peers tells it to: it is the worker process, and submits through the same
// contract. It does what `tasker bench` does in its batched variant: tasks travel by the hundred, steps come by stream,
// and everything that came while a report was under way is reported in the next call.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/taskerhq/tasker/bench/peers/harness"
	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/worker"
)

const (
	batch      = 500 // tasks of one submit
	submitters = 2

	streams     = 2
	inFlight    = 1000 // of a stream
	reportBatch = 1000 // the most of one call
	reporters   = 2    // of a stream: while one call is answered, the next one gathers
	name        = "noop"
)

var (
	taskContext = `{"payload":"` + harness.Payload + `"}`
	success     = &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: `{"result":"` + strings.Repeat("x", 18) + `"}`}}
)

func main() {
	// The version is the server's, which whoever started it knows.
	harness.Main(harness.Identity{Peer: "tasker", Batch: batch, Submitters: submitters}, open)
}

type queue struct {
	submit    *grpc.ClientConn
	work      []*grpc.ClientConn
	ref       *pb.TemplateRef
	completed atomic.Int64 // steps whose report the server has answered, which it does when they are stored

	end     context.CancelFunc
	running sync.WaitGroup
}

func open(ctx context.Context, address string) (harness.Queue, error) {
	q := &queue{}
	var err error
	if q.submit, err = worker.Dial(address, insecure.NewCredentials()); err != nil {
		return nil, err
	}
	for range streams {
		conn, err := worker.Dial(address, insecure.NewCredentials())
		if err != nil {
			return nil, err
		}
		q.work = append(q.work, conn)
	}
	answer, err := pb.NewTemplateServiceClient(q.submit).RegisterTemplate(ctx, &pb.RegisterTemplateRequest{
		Template: &pb.Template{Name: name, Steps: []*pb.StepDefinition{{Name: name, Handler: proto.String(name)}}},
	})
	if err != nil {
		return nil, fmt.Errorf("registering the template: %w", err)
	}
	q.ref = &pb.TemplateRef{Name: name, Version: answer.GetTemplate().Version}
	return q, nil
}

// task carries its number as its name, one up: names do not begin with a minus.
func (q *queue) task(number int) *pb.TaskSubmission {
	return &pb.TaskSubmission{
		Name: proto.String(strconv.Itoa(number + 1)), Definition: &pb.TaskSubmission_Template{Template: q.ref}, Context: taskContext,
	}
}

func (q *queue) Submit(ctx context.Context, count, number int) error {
	request := &pb.BatchSubmitTasksRequest{}
	for range count {
		request.Tasks = append(request.Tasks, q.task(number))
	}
	answer, err := pb.NewTaskServiceClient(q.submit).BatchSubmitTasks(ctx, request)
	if err == nil && len(answer.GetResults()) != count {
		err = fmt.Errorf("%d of %d tasks were stored", len(answer.GetResults()), count)
	}
	return err
}

func (q *queue) SubmitOne(ctx context.Context, number int) error {
	_, err := pb.NewTaskServiceClient(q.submit).SubmitTask(ctx, &pb.SubmitTaskRequest{Task: q.task(number)})
	return err
}

func (q *queue) Work(ctx context.Context, started func(int)) error {
	ctx, q.end = context.WithCancel(ctx)
	for i, conn := range q.work {
		client := pb.NewWorkerServiceClient(conn)
		stream, err := client.ReadySteps(ctx, &pb.ReadyStepsRequest{
			WorkerId: fmt.Sprintf("bench-%d", i+1), InstanceId: strconv.Itoa(os.Getpid()), MaxInFlight: inFlight,
			Handlers: []*pb.HandlerSubscription{{Name: name}},
		})
		if err != nil {
			return fmt.Errorf("opening a stream: %w", err)
		}
		s := &session{queue: q, client: client, more: make(chan struct{}, reporters)}
		q.running.Go(func() { ended(ctx, s.follow(stream, started)) })
		for range reporters {
			q.running.Go(func() { ended(ctx, s.report(ctx)) })
		}
	}
	return nil
}

// ended ends the process where a session ends before it was told to: nothing that is measured then means anything.
func ended(ctx context.Context, err error) {
	if ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "tasker: a session ended:", err)
		os.Exit(1)
	}
}

func (q *queue) Completed(context.Context) (int64, error) { return q.completed.Load(), nil }

func (q *queue) Close(context.Context) error {
	if q.end != nil {
		q.end()
	}
	q.running.Wait()
	var err error
	for _, conn := range append(q.work, q.submit) {
		err = errors.Join(err, conn.Close())
	}
	return err
}

// session is one stream and those who report what it brings.
type session struct {
	queue  *queue
	client pb.WorkerServiceClient

	mu      sync.Mutex
	waiting []*pb.ReportStepResultRequest
	more    chan struct{} // look at waiting
}

// follow runs the handler on each step that comes: there is nothing to do, so a step is ready to be reported at once.
func (s *session) follow(stream grpc.ServerStreamingClient[pb.ReadyStepsResponse], started func(int)) error {
	for {
		frame, err := stream.Recv()
		if err != nil {
			return err
		}
		step, ok := frame.GetFrame().(*pb.ReadyStepsResponse_Step)
		if !ok {
			continue
		}
		number, err := strconv.Atoi(step.Step.GetTaskName())
		if err != nil {
			return fmt.Errorf("a step of a strange task came: %w", err)
		}
		started(number - 1)
		s.mu.Lock()
		s.waiting = append(s.waiting, &pb.ReportStepResultRequest{LeaseToken: step.Step.GetLeaseToken(), Outcome: success})
		s.mu.Unlock()
		select {
		case s.more <- struct{}{}:
		default:
		}
	}
}

// report reports everything that has come while the last calls were under way.
func (s *session) report(ctx context.Context) error {
	for {
		s.mu.Lock()
		n := min(len(s.waiting), reportBatch)
		reports := s.waiting[:n:n]
		s.waiting = s.waiting[n:]
		s.mu.Unlock()
		if n == 0 {
			select {
			case <-s.more:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		answer, err := s.client.BatchReportStepResults(ctx, &pb.BatchReportStepResultsRequest{Reports: reports})
		if err != nil {
			return fmt.Errorf("reporting %d results: %w", n, err)
		}
		if len(answer.GetEntries()) != n {
			return fmt.Errorf("%d results were reported and %d answered", n, len(answer.GetEntries()))
		}
		for _, entry := range answer.GetEntries() {
			if refused := entry.GetStatus(); refused.GetCode() != 0 {
				return fmt.Errorf("a result was refused: %s: %s", refused.GetReason(), refused.GetMessage())
			}
		}
		s.queue.completed.Add(int64(n))
	}
}
