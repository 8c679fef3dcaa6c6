package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/rpc"
)

// Run is a server's whole life: it returns when ctx has ended and everything is stopped, or when the server cannot go on. It
// writes one line to out when it is ready for the first time: "serving on " and its address.
func Run(ctx context.Context, c Config, out io.Writer, log *slog.Logger) (err error) {
	if err := c.Check(); err != nil {
		return err
	}
	paceCollector()
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	defer listener.Close() //nolint:errcheck // closed by the gRPC server before, or never used
	creds, err := transport(&c, listener.Addr())
	if err != nil {
		return err
	}
	log.InfoContext(ctx, "listening", "address", listener.Addr().String())
	db, err := openDatabase(ctx, &c, log)
	if err != nil {
		return err
	}
	s, err := assemble(&c, db, log, grpc.Creds(creds)) //nolint:contextcheck // a stream brings its own
	if err != nil {
		db.close(ctx)
		return err
	}
	return s.run(ctx, listener, out)
}

// process is a server with everything wired and nothing started.
type process struct {
	conf     *Config
	log      *slog.Logger
	db       *database
	engine   *engine.Engine
	services *rpc.Services
	ready    *readiness
	metrics  *metrics
	grpc     *grpc.Server
}

func assemble(c *Config, db *database, log *slog.Logger, creds grpc.ServerOption) (*process, error) {
	p := &process{conf: c, log: log, db: db}
	conf := engine.Config{
		Shard: c.Shard, Log: log, Retention: c.Retention, PartitionInterval: c.PartitionInterval, MaxWaiting: c.MaxWaiting, MaxStreams: c.MaxStreams,
	}
	_, _ = rand.Read(conf.ReplicaID[:]) // never fails
	conf.Side = func(ctx context.Context) (*pgx.Conn, error) { return db.connect(ctx, "tasker vacuum") }
	if c.Notify {
		conf.Listen = db.listen
	}
	p.engine = engine.New(db.store, conf)
	var err error
	if p.services, err = rpc.New(p.engine, log, rpc.Settings{DrainGrace: p.moveTime(), StreamAge: c.ConnectionAge}); err != nil {
		return nil, err
	}
	p.ready = newReadiness(db, log, p.engine.Pulse, p.engine.LearnClock)
	p.metrics = newMetrics(p.engine, db.store)
	p.grpc = grpc.NewServer(append(p.limits(), append(p.services.Interceptors(rpc.Around{
		Timeout: c.CallTimeout, Gate: p.ready.gate, Panicked: p.metrics.panics.Inc,
		OuterUnary:  p.metrics.calls.UnaryServerInterceptor(),
		OuterStream: p.metrics.calls.StreamServerInterceptor(),
	}), creds)...)...)
	p.services.Register(p.grpc)
	healthpb.RegisterHealthServer(p.grpc, p.ready.health)
	if c.Reflection {
		reflection.Register(p.grpc)
	}
	p.metrics.calls.InitializeMetrics(p.grpc)
	return p, nil
}

// Limits of a connection.
const (
	maxStreamsPerConnection = 256
	maxHeaders              = 32 << 10
	handshakeTime           = 10 * time.Second
	pingEvery               = 20 * time.Second // of a connection on which nothing comes
	pingAnswer              = 10 * time.Second
	clientPings             = 10 * time.Second // no client may ping more often
	readBuffer              = 4 << 10          // thousands of idle connections hold one each
	callWorkers             = 1024             // goroutines whose stacks have grown; a call that finds none free gets one of its own
)

func (p *process) limits() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(rpc.Codec()),
		grpc.MaxRecvMsgSize(rpc.MaxRecv),
		grpc.MaxSendMsgSize(rpc.MaxSend),
		grpc.MaxConcurrentStreams(maxStreamsPerConnection),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.ReadBufferSize(readBuffer),
		grpc.NumStreamWorkers(callWorkers),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			// A connection that is too old takes no new calls, and ends with its last one. Streams are asked to move when they
			// are as old, so that none is ever cut.
			MaxConnectionAge: p.conf.ConnectionAge,
			Time:             pingEvery,
			Timeout:          pingAnswer,
		}),
		// C-core, Java and .NET ping idle connections; a server that minds would drop them.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: clientPings, PermitWithoutStream: true}),
	}
}

var errStopped = errors.New("stopped")

// run serves until ctx ends or something that cannot be missed does, and stops everything.
func (p *process) run(ctx context.Context, listener net.Listener, out io.Writer) error {
	// What serves goes on after ctx: a stop takes its time.
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	g, life := errgroup.WithContext(life)
	g.Go(func() error { p.ready.follow(life); return nil })
	g.Go(func() error {
		select {
		case <-p.ready.first:
			fmt.Fprintln(out, "serving on", listener.Addr())
			return p.engine.Run(life)
		case <-life.Done():
			return nil
		}
	})
	if p.conf.MetricsListen != "" {
		g.Go(func() error { return p.metrics.serve(life, p.conf.MetricsListen, p.log) })
	}
	g.Go(func() error {
		select {
		case <-p.db.gone():
			return fmt.Errorf("the server's own PostgreSQL is gone: %w", p.db.own.Err())
		case <-life.Done():
			return nil
		}
	})
	served := make(chan error, 1)
	go func() { served <- p.grpc.Serve(listener) }()

	var err error
	select {
	case <-ctx.Done():
	case <-life.Done():
	case err = <-served:
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.conf.ShutdownTimeout)
	defer cancel()
	p.stop(deadline)
	end(errStopped)
	if groupErr := g.Wait(); !errors.Is(groupErr, context.Canceled) {
		err = errors.Join(err, groupErr)
	}
	p.db.close(deadline)
	p.log.InfoContext(ctx, "stopped")
	return err
}

// moveTime is how long workers have to open a stream elsewhere.
func (p *process) moveTime() time.Duration { return p.conf.ShutdownTimeout * 4 / 10 }

// stop ends the serving in order. ctx bounds all of it; a fifth is left for what is stopped after.
func (p *process) stop(ctx context.Context) {
	p.log.InfoContext(ctx, "stopping", "streams", p.engine.Stats().Streams)
	p.ready.stop()
	p.engine.StopDispatch()
	p.services.EndWatches()
	p.awaitStreams(ctx)
	p.engine.CloseStreams()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.grpc.GracefulStop()
	}()
	limit := time.NewTimer(p.conf.ShutdownTimeout * 4 / 10)
	defer limit.Stop()
	select {
	case <-done:
	case <-limit.C:
		p.log.WarnContext(ctx, "calls are cut: they took too long to end")
		p.grpc.Stop()
		<-done
	}
}

// awaitStreams gives workers the time to move. Meanwhile their reports are taken as ever.
func (p *process) awaitStreams(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.moveTime())
	defer cancel()
	for waiting := true; waiting && p.engine.Stats().Streams > 0; {
		waiting = sleep(ctx, 20*time.Millisecond)
	}
}
