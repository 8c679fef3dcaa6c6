package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
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
	// OuterUnary and OuterStream see calls as they ended: metrics. Nil: nobody does.
	OuterUnary  grpc.UnaryServerInterceptor
	OuterStream grpc.StreamServerInterceptor
}

// Interceptors are the options that put what an operator decides, and what holds for every call, around every handler.
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
	around := &around{Services: s, Around: a}
	around.rescue = recovery.UnaryServerInterceptor(recovery.WithRecoveryHandlerContext(around.recovered))
	unary, stream := []grpc.UnaryServerInterceptor{around.unary()}, []grpc.StreamServerInterceptor{around.stream()}
	if a.OuterUnary != nil {
		unary = slices.Insert(unary, 0, a.OuterUnary)
	}
	if a.OuterStream != nil {
		stream = slices.Insert(stream, 0, a.OuterStream)
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...)}
}

// around is one interceptor for each kind of call rather than a chain of eight: a chain's frames are most of the stack that a
// small call needs, and a stack that has to grow for it costs a tenth of the call. Counting and panics are left to libraries.
type around struct {
	*Services
	Around
	rescue grpc.UnaryServerInterceptor // makes a panic an error
}

// unary bounds a call, finds out who calls, holds the request against the rules, and makes what went wrong a status.
// A call whose outcome is to be logged is logged once it has ended; most are not.
func (a *around) unary() grpc.UnaryServerInterceptor {
	write := logging.UnaryServerInterceptor(logTo(a.log), logOptions()...)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		began := time.Now()
		resp, err := a.bounded(ctx, began, req, info, handler)
		if isOurs(info.FullMethod) && a.log.Enabled(ctx, slog.Level(level(status.Code(err)))) {
			ctx = logging.InjectLogField(ctx, "grpc.time_ms", float64(time.Since(began).Microseconds())/1000)
			return write(ctx, req, info, func(context.Context, any) (any, error) { return resp, err })
		}
		return resp, err
	}
}

// bounded answers a call, and lets it end a little before its caller stops listening, so that the caller is told why.
func (a *around) bounded(ctx context.Context, began time.Time, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if isOurs(info.FullMethod) {
		left := a.Timeout + waitOf(req)
		if deadline, ok := ctx.Deadline(); ok {
			left = deadline.Sub(began)
			left -= min(left/20, 100*time.Millisecond)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, began.Add(left))
		defer cancel()
	}
	resp, err := a.rescue(ctx, req, info, func(ctx context.Context, req any) (any, error) {
		ctx, err := a.admit(ctx, req, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	})
	return resp, a.told(ctx, info.FullMethod, err)
}

// admit lets a call pass, as whoever it is that calls.
func (a *around) admit(ctx context.Context, req any, method string) (context.Context, error) {
	if !isOurs(method) {
		return ctx, nil
	}
	if err := a.Gate(); err != nil {
		return nil, err
	}
	known, err := identify(ctx, a.Authenticate, method, req)
	if err != nil {
		return nil, err
	}
	if m, ok := req.(proto.Message); ok {
		if err := a.rules.check(m); err != nil {
			return nil, err
		}
	}
	return known, nil
}

func (a *around) recovered(ctx context.Context, p any) error {
	a.Panicked()
	a.log.ErrorContext(ctx, "panic in a call", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return errPanic
}

func isOurs(method string) bool { return strings.HasPrefix(method, "/"+ourServices) }

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

// ---------------------------------------------------------------- deadline

// drainHorizon is the longest that DrainWorker waits.
const drainHorizon = time.Hour

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
