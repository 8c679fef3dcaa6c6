package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// stream is for a stream what unary is for a unary call. A stream waits for days, and whatever is around it waits with it, on a
// stack of its own.
func (a *around) stream(write grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		began := time.Now()
		counts := a.Counts(info.FullMethod)
		counts.Began()
		received := &received{ServerStream: stream, around: a, counts: counts, method: info.FullMethod, ctx: stream.Context()}
		err := a.safely(received.ctx, func() error {
			if isOurs(info.FullMethod) {
				if err := a.Gate(); err != nil {
					return err
				}
			}
			return handler(srv, received)
		})
		ctx := stream.Context()
		err = a.told(ctx, info.FullMethod, err)
		took, code := time.Since(began), status.Code(err)
		counts.Ended(code, took)
		if isOurs(info.FullMethod) && a.log.Enabled(ctx, slog.Level(level(code))) {
			ctx = logging.InjectLogField(ctx, "grpc.time_ms", float64(took.Microseconds())/1000)
			return write(srv, &inContext{ServerStream: stream, ctx: ctx}, info, func(any, grpc.ServerStream) error { return err })
		}
		return err
	}
}

// inContext is a stream with another context.
type inContext struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // it is how gRPC hands a stream's context on
}

// Context is the other one.
func (s *inContext) Context() context.Context { return s.ctx }

// safely makes a panic of f an error.
func (a *around) safely(ctx context.Context, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = a.recovered(ctx, p)
		}
	}()
	return f()
}

// received is a stream whose messages are counted. The caller of one of ours is found out by its first message, and each
// message that comes is held against the rules.
type received struct {
	grpc.ServerStream
	around *around
	counts Counts
	method string
	ctx    context.Context //nolint:containedctx // it is how gRPC hands a stream's context on
}

// Context is the call's, with the caller in it once the first message has come.
func (s *received) Context() context.Context { return s.ctx }

// SendMsg sends a message.
func (s *received) SendMsg(m any) error {
	err := s.ServerStream.SendMsg(m)
	if err == nil {
		s.counts.Sent()
	}
	return err
}

// RecvMsg receives a message, and of a stream of ours finds out who sent it, and checks it.
func (s *received) RecvMsg(m any) error {
	return apart(func() error {
		if err := s.ServerStream.RecvMsg(m); err != nil {
			return err
		}
		s.counts.Received()
		if !isOurs(s.method) {
			return nil
		}
		ctx, err := identify(s.ctx, s.around.Authenticate, s.method, m)
		if err != nil {
			return err
		}
		s.ctx = ctx
		if m, ok := m.(proto.Message); ok {
			return s.around.rules.check(m)
		}
		return nil
	})
}

// apart runs f on a stack of its own, which goes when f is done, and panics if f does. A stack that has grown stays as large
// for as long as its call lasts, and to open a stream takes four times the stack that waiting does.
func apart(f func() error) error {
	var err error
	var panicked string
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				panicked = fmt.Sprintf("%v\n%s", p, debug.Stack())
			}
		}()
		err = f()
	}()
	<-done
	if panicked != "" {
		panic(panicked)
	}
	return err
}
