package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/selector"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// registers is a request that carries a template.
type registers interface{ GetTemplate() *pb.Template }

// Around is what an operator decides about the interceptors.
type Around struct {
	// Authenticate finds out who calls. Nil: Anonymous.
	Authenticate Authenticate
	// Timeout bounds a unary call that came without a deadline; a wait that the request asks for comes on top.
	Timeout time.Duration
	// Gate, if it answers an error, refuses every call with it.
	Gate func() error
	// Panicked is called for every panic that was caught.
	Panicked func()
	// Outer interceptors see calls as they ended: metrics.
	OuterUnary  []grpc.UnaryServerInterceptor
	OuterStream []grpc.StreamServerInterceptor
}

// Interceptors are the options that put the chain around every handler.
func (s *Services) Interceptors(a Around) []grpc.ServerOption {
	if a.Authenticate == nil {
		a.Authenticate = Anonymous
	}
	if a.Gate == nil {
		a.Gate = func() error { return nil }
	}
	if a.Panicked == nil {
		a.Panicked = func() {}
	}
	ours := selector.MatchFunc(func(_ context.Context, c interceptors.CallMeta) bool {
		return strings.HasPrefix(c.Service, ourServices)
	})
	only := func(i grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
		return selector.UnaryServerInterceptor(i, ours)
	}
	recovered := func(ctx context.Context, p any) error {
		a.Panicked()
		s.log.ErrorContext(ctx, "panic in a call", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		return errPanic
	}
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(append(a.OuterUnary[:len(a.OuterUnary):len(a.OuterUnary)],
			only(logUnary(s.log)),
			only(deadlineUnary(a.Timeout)),
			s.statusUnary,
			recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(recovered)),
			only(gateUnary(a.Gate)),
			only(callerUnary(a.Authenticate)),
			only(s.rules.unary),
		)...),
		grpc.ChainStreamInterceptor(append(a.OuterStream[:len(a.OuterStream):len(a.OuterStream)], s.streamInterceptor(a, recovered))...),
	}
}

// ourServices begins the names of Tasker's own services; others are gRPC's.
const ourServices = "tasker."

var errPanic = errors.New("panic")

// ---------------------------------------------------------------- logging

func logOptions() []logging.Option {
	return []logging.Option{
		logging.WithLogOnEvents(logging.FinishCall),
		logging.WithLevels(level),
		logging.WithErrorFields(func(err error) logging.Fields {
			for _, d := range status.Convert(err).Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok {
					return logging.Fields{"reason", info.GetReason()}
				}
			}
			return nil
		}),
	}
}

// logUnary logs calls once they have ended, if their outcome is to be logged at all: most are not, and to get ready for it
// would be a tenth of what a small call costs.
func logUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	write := logging.UnaryServerInterceptor(logTo(log), logOptions()...)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		began := time.Now()
		resp, err := handler(ctx, req)
		if !log.Enabled(ctx, slog.Level(level(status.Code(err)))) {
			return resp, err
		}
		ctx = logging.InjectLogField(ctx, "grpc.time_ms", float64(time.Since(began).Microseconds())/1000)
		return write(ctx, req, info, func(context.Context, any) (any, error) { return resp, err })
	}
}

// logTo writes the middleware's fields under our own names. The status message is left out: it may repeat what a caller sent.
func logTo(log *slog.Logger) logging.Logger {
	names := map[string]string{
		"grpc.service": "service", "grpc.method": "method", "grpc.code": "code", "grpc.time_ms": "milliseconds", "peer.address": "peer",
		"reason": "reason",
	}
	return logging.LoggerFunc(func(ctx context.Context, l logging.Level, _ string, fields ...any) {
		if !log.Enabled(ctx, slog.Level(l)) {
			return
		}
		attrs := make([]slog.Attr, 0, len(names))
		for i := 0; i+1 < len(fields); i += 2 {
			if name, ok := names[fmt.Sprint(fields[i])]; ok {
				attrs = append(attrs, slog.Any(name, fields[i+1]))
			}
		}
		log.LogAttrs(ctx, slog.Level(l), "call finished", attrs...)
	})
}

// level keeps what happens all the time out of an ordinary log: workers report and beat by the thousand, clients make mistakes.
func level(code codes.Code) logging.Level {
	switch code {
	case codes.OK, codes.Canceled, codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition:
		return logging.LevelDebug
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return logging.LevelError
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Aborted:
		return logging.LevelWarn
	default:
		return logging.LevelInfo
	}
}

// ---------------------------------------------------------------- status

func (s *Services) statusUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	return resp, s.told(ctx, info.FullMethod, err)
}

// told is an error as the status it becomes. gRPC's own statuses, such as an unknown method's, are left as they are; a wrapped
// one is not meant for the caller.
func (s *Services) told(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if st, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return st.GRPCStatus().Err()
	}
	return refuse(ctx, s.log, method, err).status().Err()
}

// ---------------------------------------------------------------- gate

func gateUnary(gate func() error) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if err := gate(); err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// ---------------------------------------------------------------- deadline

// drainHorizon is the longest that DrainWorker waits.
const drainHorizon = time.Hour

// deadlineUnary bounds every call, and lets it end a little before its caller stops listening, so that the caller is told why.
func deadlineUnary(timeout time.Duration) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		left := timeout + waitOf(req)
		if deadline, ok := ctx.Deadline(); ok {
			left = time.Until(deadline)
			left -= min(left/20, 100*time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(ctx, left)
		defer cancel()
		return handler(ctx, req)
	}
}

// waitOf is how long a request asks to be kept waiting.
func waitOf(req any) time.Duration {
	switch r := req.(type) {
	case *pb.DrainWorkerRequest:
		if r.GetDeadline() != nil {
			return min(max(time.Until(r.GetDeadline().AsTime()), 0), drainHorizon)
		}
	case interface{ GetWaitDuration() *durationpb.Duration }:
		return min(max(r.GetWaitDuration().AsDuration(), 0), time.Minute)
	}
	return 0
}

// ---------------------------------------------------------------- validation

func (r *rules) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if m, ok := req.(proto.Message); ok {
		if err := r.check(m); err != nil {
			return nil, err
		}
	}
	return handler(ctx, req)
}
