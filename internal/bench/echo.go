package bench

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// ServeEmpty is a gRPC server that does nothing but answer: what a unary call costs before anything is done in it, and a stream
// on which nothing comes but idle frames. Idle, it takes as little memory for a connection as the server does: with a reading
// buffer of gRPC's own size calls are answered faster. It says on out where it listens, and ends with ctx.
func ServeEmpty(ctx context.Context, out io.Writer, idle bool) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	var options []grpc.ServerOption
	if idle {
		options = append(options, grpc.ReadBufferSize(4<<10))
	}
	server := grpc.NewServer(options...)
	healthpb.RegisterHealthServer(server, health.NewServer())
	pb.RegisterWorkerServiceServer(server, &emptyWorkers{born: time.Now(), rested: time.AfterFunc(emptyRest, debug.FreeOSMemory)})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	fmt.Fprintln(out, "serving on", listener.Addr())
	return server.Serve(listener)
}

const (
	// emptyBeat is how often an idle frame is sent. A connection's are sent together, at one of the instants that lie emptyGrain
	// apart: as a server's.
	emptyBeat  = 15 * time.Second
	emptyGrain = 250 * time.Millisecond
	// emptyRest is how long after the last stream was opened its garbage is given back.
	emptyRest = 5 * time.Second
)

// emptyWorkers opens streams and has nothing for them.
type emptyWorkers struct {
	pb.UnimplementedWorkerServiceServer
	born   time.Time // instants are counted from it
	rested *time.Timer
}

// ReadySteps says that the stream is open, and sends idle frames.
func (e *emptyWorkers) ReadySteps(_ *pb.ReadyStepsRequest, stream grpc.ServerStreamingServer[pb.ReadyStepsResponse]) error {
	frame := &pb.ReadyStepsResponse{Frame: &pb.ReadyStepsResponse_Opened{Opened: &pb.SessionOpened{HeartbeatInterval: durationpb.New(emptyBeat)}}}
	if err := stream.Send(frame); err != nil {
		return err
	}
	e.rested.Reset(emptyRest)
	frame = &pb.ReadyStepsResponse{Frame: &pb.ReadyStepsResponse_Heartbeat{Heartbeat: &pb.StreamHeartbeat{}}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	var own time.Duration
	if from, ok := peer.FromContext(stream.Context()); ok {
		own = time.Duration(crc32.ChecksumIEEE([]byte(from.Addr.String()))%uint32(emptyBeat/emptyGrain)) * emptyGrain
	}
	for {
		now := time.Since(e.born)
		timer.Reset((now + emptyBeat - own).Truncate(emptyBeat) + own - now)
		select {
		case <-timer.C:
			if err := stream.Send(frame); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// emptyCalls measures how many empty unary calls a second this machine makes and answers, with as many callers and
// connections as a unary load has.
func (w *world) emptyCalls(ctx context.Context) (perSecond float64, err error) {
	conns, err := dial(w.echo.address, unaryConnections)
	if err != nil {
		return 0, err
	}
	defer hangUp(conns)
	open, closeWindow := context.WithCancel(ctx)
	defer closeWindow()
	var calls atomic.Int64
	var group errgroup.Group
	for i := range unarySubmitters + unaryReporters {
		client := healthpb.NewHealthClient(conns[i%len(conns)])
		group.Go(func() error {
			for open.Err() == nil {
				if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
					return fmt.Errorf("calling the empty server: %w", err)
				}
				calls.Add(1)
			}
			return nil
		})
	}
	before, begun := int64(0), time.Now()
	for _, wait := range []time.Duration{w.callWindow / 4, w.callWindow} {
		before, begun = calls.Load(), time.Now()
		pause(ctx, wait)
	}
	perSecond = float64(calls.Load()-before) / time.Since(begun).Seconds()
	closeWindow()
	return perSecond, group.Wait()
}

// roundTrip times single empty calls, one after another.
func (w *world) roundTrip(ctx context.Context) (*latencies, error) {
	conns, err := dial(w.echo.address, 1)
	if err != nil {
		return nil, err
	}
	defer hangUp(conns)
	client := healthpb.NewHealthClient(conns[0])
	times := newLatencies()
	for i := range w.probes + w.probes/10 {
		begun := time.Now()
		if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
			return nil, fmt.Errorf("calling the empty server: %w", err)
		}
		if i >= w.probes/10 { // the first ones make the connection
			times.record(time.Since(begun))
		}
	}
	return times, nil
}

// pause waits, as long as ctx lets it.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
