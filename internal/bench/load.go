package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// What a task and a result carry: as much as the floor's.
var (
	taskContext = `{"payload":"` + strings.Repeat("x", 100-len(`{"payload":""}`)) + `"}`
	stepResults = `{"result":"` + strings.Repeat("x", 32-len(`{"result":""}`)) + `"}`
	success     = &pb.ReportStepResultRequest_Success{Success: &pb.StepSuccess{Results: stepResults}}
)

// deliveryTimeout is the longest that the contract allows.
const deliveryTimeout = time.Minute

// dial makes connections to one server.
func dial(address string, n int) ([]*grpc.ClientConn, error) {
	var conns []*grpc.ClientConn
	for range n {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
		if err != nil {
			hangUp(conns)
			return nil, fmt.Errorf("making a connection: %w", err)
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

func hangUp(conns []*grpc.ClientConn) {
	for _, conn := range conns {
		_ = conn.Close() // nothing is under way
	}
}

// register stores a template and says how a task of it is submitted.
func register(ctx context.Context, conn *grpc.ClientConn, template *pb.Template) (*pb.TemplateRef, error) {
	answer, err := pb.NewTemplateServiceClient(conn).RegisterTemplate(ctx, &pb.RegisterTemplateRequest{Template: template})
	if err != nil {
		return nil, fmt.Errorf("registering template %s: %w", template.GetName(), err)
	}
	return &pb.TemplateRef{Name: template.GetName(), Version: answer.GetTemplate().Version}, nil
}

// chainTemplate is so many no-op steps in a row.
func chainTemplate(name, handler string, steps int) *pb.Template {
	template := &pb.Template{Name: name}
	for i := range steps {
		step := &pb.StepDefinition{Name: stepName(i), Handler: &handler}
		if i > 0 {
			step.DependsOn = []string{stepName(i - 1)}
		}
		template.Steps = append(template.Steps, step)
	}
	return template
}

func stepName(i int) string { return fmt.Sprintf("step_%03d", i) }

func submission(ref *pb.TemplateRef, name string) *pb.TaskSubmission {
	return &pb.TaskSubmission{
		Name: proto.String(name), Definition: &pb.TaskSubmission_Template{Template: ref}, Context: taskContext,
	}
}

// worker is a worker session: one stream that brings steps.
type worker struct {
	namespace, id, instance string

	client pb.WorkerServiceClient
	stream grpc.ServerStreamingClient[pb.ReadyStepsResponse]
	end    context.CancelFunc
}

// openWorker opens a stream and returns when the server has taken the session on.
func openWorker(ctx context.Context, conn *grpc.ClientConn, namespace, id, handler string, inFlight int32) (*worker, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{namespace: namespace, id: id, instance: uuid.NewString(), client: pb.NewWorkerServiceClient(conn), end: cancel}
	var err error
	w.stream, err = w.client.ReadySteps(ctx, &pb.ReadyStepsRequest{
		Namespace: namespace, WorkerId: id, InstanceId: w.instance, MaxInFlight: inFlight,
		Handlers: []*pb.HandlerSubscription{{Name: handler}},
		// Nothing here runs longer than its delivery may take, so no heartbeat is ever due; and a machine that is busy
		// with other things for a while is no cause to dispatch anything twice.
		DeliveryTimeout: durationpb.New(deliveryTimeout),
	})
	if err == nil {
		var first *pb.ReadyStepsResponse
		if first, err = w.stream.Recv(); err == nil && first.GetOpened() == nil {
			err = fmt.Errorf("the first frame is %T", first.GetFrame())
		}
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	return w, nil
}

// follow hands over every step that comes, until the stream is ended here. A lease that is lost ends the run: this load
// never gives cause for it.
func (w *worker) follow(take func(*pb.ReadyStep)) error {
	for {
		frame, err := w.stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the server ended a stream")
		case status.Code(err) == codes.Canceled && w.stream.Context().Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("following a stream: %w", err)
		}
		switch f := frame.GetFrame().(type) {
		case *pb.ReadyStepsResponse_Step:
			take(f.Step)
		case *pb.ReadyStepsResponse_Revoked:
			return fmt.Errorf("a lease was revoked: step %s, %s", f.Revoked.GetStepId(), f.Revoked.GetReason())
		case *pb.ReadyStepsResponse_Draining:
			return errors.New("the server goes away")
		}
	}
}

// drain has the server grant nothing more to the worker, and waits until it holds nothing.
func (w *worker) drain(ctx context.Context) error {
	answer, err := w.client.DrainWorker(ctx, &pb.DrainWorkerRequest{
		Namespace: w.namespace, WorkerId: w.id, InstanceId: w.instance, Deadline: timestamppb.New(time.Now().Add(drainTimeout)),
	})
	switch {
	case err != nil:
		return fmt.Errorf("draining a worker: %w", err)
	case len(answer.GetRemaining()) > 0:
		return fmt.Errorf("a worker that was drained still holds %d leases after %s", len(answer.GetRemaining()), drainTimeout)
	}
	return nil
}

// report tells the server of one success, and returns when it is recorded.
func (w *worker) report(ctx context.Context, token string) error {
	answer, err := w.client.ReportStepResult(ctx, &pb.ReportStepResultRequest{LeaseToken: token, Outcome: success})
	switch {
	case err != nil:
		return fmt.Errorf("reporting a result: %w", err)
	case answer.GetAlreadyRecorded():
		return fmt.Errorf("step %s was recorded before", answer.GetStep().GetStepId())
	}
	return nil
}

// reportAll tells the server of many results in one call.
func reportAll(ctx context.Context, client pb.WorkerServiceClient, reports []*pb.ReportStepResultRequest) error {
	answer, err := client.BatchReportStepResults(ctx, &pb.BatchReportStepResultsRequest{Reports: reports})
	if err != nil {
		return fmt.Errorf("reporting %d results: %w", len(reports), err)
	}
	if len(answer.GetEntries()) != len(reports) {
		return fmt.Errorf("%d results were reported and %d answered", len(reports), len(answer.GetEntries()))
	}
	for _, entry := range answer.GetEntries() {
		if s := entry.GetStatus(); s.GetCode() != 0 {
			return fmt.Errorf("a result was refused: %s: %s", s.GetReason(), s.GetMessage())
		}
		if entry.GetResult().GetAlreadyRecorded() {
			return fmt.Errorf("step %s was recorded before", entry.GetResult().GetStep().GetStepId())
		}
	}
	return nil
}
