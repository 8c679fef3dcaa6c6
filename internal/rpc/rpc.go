// Package rpc is the gRPC face of the engine: a call in, an engine verb, an answer out.
//
// A handler takes its request apart into the nouns of package task, calls the verb of the same name, and puts the answer
// together; the translation stands in one file a noun. Whatever a handler returns as an error becomes a status in one place,
// errors.go. Around every handler stand the interceptors of interceptor.go, in this order from the outside in:
//
//	metrics      counts and times, by method and code
//	logging      one line when a call ends; never a payload, a token or a message
//	deadline     a call without a deadline gets one; a deadline is shortened so that its passing can still be told
//	status       errors become statuses
//	recovery     a panic becomes an error
//	gate         nothing passes before the database was ready once
//	caller       who calls, and for which namespace
//	validation   the rules written in the proto files
package rpc

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/task"
)

// Limits of a message. The transport's own stands above them, so that a request that is too large can be told so.
const (
	maxBatch   = 3<<20 + 512<<10 // of a batch request, a frame and a page of results
	maxPayload = 1 << 20
	// MaxRecv is the transport's limit of a request.
	MaxRecv = 8 << 20
	// MaxSend is the transport's limit of an answer. No answer is meant to come near it.
	MaxSend = 16 << 20
)

// Services holds what the handlers share.
type Services struct {
	engine    *engine.Engine
	log       *slog.Logger
	rules     *rules
	templates *templateCache
	settings  Settings
	// draining ends with a cause when the server goes away: watches end by it.
	draining context.Context //nolint:containedctx // the server's life, not a call's
	drain    context.CancelCauseFunc
}

// Settings are what an operator decides about the services.
type Settings struct {
	// DrainGrace is how long a stream stays open after a draining frame.
	DrainGrace time.Duration
	// StreamAge is how old a worker's stream gets, give or take a tenth, before it is asked to move, so that no connection has
	// to be cut for its age. 0: as old as it likes.
	StreamAge time.Duration
}

// New compiles the contract's rules; it takes some tens of milliseconds.
func New(e *engine.Engine, log *slog.Logger, settings Settings) (*Services, error) {
	rules, err := compileRules()
	if err != nil {
		return nil, err
	}
	s := &Services{engine: e, log: log, rules: rules, templates: newTemplateCache(), settings: settings}
	s.draining, s.drain = context.WithCancelCause(context.Background())
	return s, nil
}

// now is what clients are told as the database's time.
func (s *Services) now() *timestamppb.Timestamp { return timestamppb.New(s.engine.Now()) }

// EndWatches tells everybody who watches tasks or circuits to watch them on another server. Workers' streams are ended by the engine.
func (s *Services) EndWatches() {
	s.drain(task.Refuse(task.Draining, "this server is going away: watch on another one"))
}

// onDrain cancels a watch when the server goes away. stop undoes it.
func (s *Services) onDrain(cancel context.CancelCauseFunc) (stop func() bool) {
	return context.AfterFunc(s.draining, func() { cancel(context.Cause(s.draining)) })
}

// Register puts the services on a server.
func (s *Services) Register(r grpc.ServiceRegistrar) {
	pb.RegisterTaskServiceServer(r, &taskService{Services: s})
	pb.RegisterWorkerServiceServer(r, &workerService{Services: s})
	pb.RegisterStepServiceServer(r, &stepService{Services: s})
	pb.RegisterTemplateServiceServer(r, &templateService{Services: s})
	pb.RegisterCircuitServiceServer(r, &circuitService{Services: s})
}
