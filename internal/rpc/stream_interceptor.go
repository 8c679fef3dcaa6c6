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
func (a *around) stream() grpc.StreamServerInterceptor {
	write := logging.StreamServerInterceptor(logTo(a.log), logOptions()...)
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if !isOurs(info.FullMethod) {
			return a.told(stream.Context(), info.FullMethod, safely(stream.Context(), a.recovered, func() error { return handler(srv, stream) }))
		}
		began := time.Now()
		err := a.Gate()
		if err == nil {
			received := &received{ServerStream: stream, who: a.Authenticate, method: info.FullMethod, rules: a.rules, ctx: stream.Context()}
			err = safely(received.ctx, a.recovered, func() error { return handler(srv, received) })
		}
		err = a.told(stream.Context(), info.FullMethod, err)
		if ctx := stream.Context(); a.log.Enabled(ctx, slog.Level(level(status.Code(err)))) {
			ctx = logging.InjectLogField(ctx, "grpc.time_ms", float64(time.Since(began).Microseconds())/1000)
			return write(srv, &received{ServerStream: stream, ctx: ctx}, info, func(any, grpc.ServerStream) error { return err })
		}
		return err
	}
}

// safely makes a panic of f the error that recovered tells of it. The library's interceptor, which unary calls have, would stand on
// the stack of every idle stream.
func safely(ctx context.Context, recovered func(context.Context, any) error, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = recovered(ctx, p)
		}
	}()
	return f()
}

// received is a stream of ours: its caller is found out by its first message, and each message is held against the rules.
type received struct {
	grpc.ServerStream
	who    Authenticate
	method string
	rules  *rules
	ctx    context.Context //nolint:containedctx // it is how gRPC hands a stream's context on
}

// Context is the call's, with the caller in it once the first message has come.
func (s *received) Context() context.Context { return s.ctx }

// RecvMsg receives a message, finds out who sent it, and checks it.
func (s *received) RecvMsg(m any) error {
	return apart(func() error {
		if err := s.ServerStream.RecvMsg(m); err != nil {
			return err
		}
		ctx, err := identify(s.ctx, s.who, s.method, m)
		if err != nil {
			return err
		}
		s.ctx = ctx
		if m, ok := m.(proto.Message); ok {
			return s.rules.check(m)
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
