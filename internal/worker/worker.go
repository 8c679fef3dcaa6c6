// Package worker takes ready steps from a server, runs a handler on each, and reports how it ended.
//
// It is the worker protocol of WorkerService over the generated stubs and nothing more: what `tasker work`, the demo and the
// tests run. Its nouns:
//
//	run     one dispatch of a step on this worker, known by its lease token from the step frame until the server has answered
//	        its report (or its release), or the lease is known to be lost
//	stream  one ReadySteps call; the newest that has opened is the one that counts
//	outbox  reports and releases that the server has not answered yet
//
// Four things go on at once. The streams bring steps and revocations (stream.go). Every step runs in a goroutine of its own
// (run.go). One timer beats for all runs together (heartbeat.go). One sender works the outbox off, everything that waits in
// one call, the next call when the last was answered (outbox.go). They meet in the table of runs alone.
//
// A worker stops in order: no stream is opened any more, DrainWorker ends the grants, the runs go on, beating and reporting,
// until they end or DrainTimeout has passed; what is left then is cancelled and handed back.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// Defaults of Config.
const (
	DefaultHeartbeatEvery = 2 * time.Second
	DefaultDrainTimeout   = 30 * time.Second
	DefaultReconnectDelay = time.Second
	MaxReconnectDelay     = 30 * time.Second
)

// mostInFlight is the most leases that a server gives one session.
const mostInFlight = 10000

// lastWords bounds the time for what is still to be reported or handed back when a drain has run out of time.
const lastWords = 5 * time.Second

// ErrStopped is the cause with which a run's context ends when the worker cannot wait for it any longer.
var ErrStopped = errors.New("the worker stops")

// Revoked is the cause with which a run's context ends when its lease is lost. Nothing is reported for such a run.
type Revoked struct {
	Reason taskerv1.RevokeReason
}

// Error says why.
func (r *Revoked) Error() string { return "lease revoked: " + r.Reason.String() }

// Handler runs one step and says how it ended, with Success, PermanentFailure or RetryableFailure. nil hands the step back
// to be run by somebody else. The context ends when the lease is lost (its cause is a *Revoked; what the handler returns
// then counts for nothing) or when the worker must go (ErrStopped).
type Handler func(ctx context.Context, run *Run) Outcome

// Subscription is one kind of work that the worker takes.
type Subscription struct {
	// Handler is the name that steps give.
	Handler string
	// MaxInFlight bounds the steps of this handler. 0 means the worker's own bound.
	MaxInFlight int
	// Run does the work.
	Run Handler
}

// Config says what a worker takes, and from where. Client, Subscriptions and MaxInFlight must be set.
type Config struct {
	// Client speaks to the servers. Its connection must reconnect by itself; see Dial.
	Client taskerv1.WorkerServiceClient
	// Namespace to work for. Empty means the server's default.
	Namespace string
	// WorkerID is the worker's name, unique among the live ones of its namespace.
	WorkerID string
	// InstanceID is which process bears the name. Default: a random one.
	InstanceID string
	// Subscriptions are the kinds of work, each handler once.
	Subscriptions []Subscription
	// MaxInFlight is the most steps at once.
	MaxInFlight int
	// Labels, BuildID and ClientInfo are shown by ListWorkers.
	Labels              map[string]string
	BuildID, ClientInfo string
	// DeliveryTimeout is how long a dispatch may stay unconfirmed. 0 means the server's default.
	DeliveryTimeout time.Duration
	// IdleHeartbeat is how often an idle stream is to carry a frame. 0 means the server's default.
	IdleHeartbeat time.Duration
	// HeartbeatEvery is the time between two heartbeats for all runs. Leases that ask for more get more. Default 2 s.
	HeartbeatEvery time.Duration
	// DrainTimeout is how long runs may go on once the worker is stopping. Default 30 s.
	DrainTimeout time.Duration
	// ReconnectDelay is the greatest wait before the first reconnect; it doubles up to MaxReconnectDelay. Default 1 s.
	ReconnectDelay time.Duration
	// Logger gets what happens to streams and leases. Default: slog.Default().
	Logger *slog.Logger
	// Journal, where set, is given every frame before it is acted on and every answer before it is believed: FrameReceived,
	// ReportSent, ReportAnswered, HeartbeatAnswered, ReleaseAnswered. It is called by one goroutine at a time.
	Journal func(event any)
}

// Worker is one worker process's session. Make it with New and run it once.
type Worker struct {
	cfg      Config
	handlers map[string]Handler
	outbox   *outbox
	clock    clock

	mu       sync.Mutex
	runs     map[string]*Run // by lease token
	stopping bool            // steps that still come are handed back unrun
	// deliveryTimeout is how long the server waits for a dispatch to be confirmed. 0 until it has said so.
	deliveryTimeout time.Duration

	// beatSoon asks for a heartbeat schedule to be looked at anew; settled says that a run has left the table.
	beatSoon, settled chan struct{}
	handling          sync.WaitGroup // handlers that run

	journaling sync.Mutex
}

// New checks the configuration and makes a worker of it.
func New(cfg Config) (*Worker, error) {
	switch {
	case cfg.Client == nil:
		return nil, errors.New("worker: no client")
	case cfg.WorkerID == "":
		return nil, errors.New("worker: no worker id")
	case len(cfg.Subscriptions) == 0:
		return nil, errors.New("worker: no handler")
	case cfg.MaxInFlight < 1 || cfg.MaxInFlight > mostInFlight:
		return nil, fmt.Errorf("worker: max in flight is %d, must be 1 to %d", cfg.MaxInFlight, mostInFlight)
	}
	if cfg.InstanceID == "" {
		cfg.InstanceID = uuid.NewString()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	setDefault(&cfg.HeartbeatEvery, DefaultHeartbeatEvery)
	setDefault(&cfg.DrainTimeout, DefaultDrainTimeout)
	setDefault(&cfg.ReconnectDelay, DefaultReconnectDelay)
	w := &Worker{
		cfg:      cfg,
		handlers: make(map[string]Handler, len(cfg.Subscriptions)),
		runs:     make(map[string]*Run),
		beatSoon: make(chan struct{}, 1),
		settled:  make(chan struct{}, 1),
	}
	w.outbox = newOutbox(w)
	for _, subscription := range cfg.Subscriptions {
		if subscription.Run == nil {
			return nil, fmt.Errorf("worker: handler %q has nothing to run", subscription.Handler)
		}
		if subscription.MaxInFlight < 0 || subscription.MaxInFlight > mostInFlight {
			return nil, fmt.Errorf("worker: max in flight of handler %q is %d, must be 1 to %d", subscription.Handler, subscription.MaxInFlight, mostInFlight)
		}
		if _, twice := w.handlers[subscription.Handler]; twice {
			return nil, fmt.Errorf("worker: handler %q is named twice", subscription.Handler)
		}
		w.handlers[subscription.Handler] = subscription.Run
	}
	return w, nil
}

func setDefault(value *time.Duration, fallback time.Duration) {
	if *value <= 0 {
		*value = fallback
	}
}

// Run works until ctx ends and everything begun has been settled, and then returns nil; or until the server says that this
// worker must stop, and then returns why.
func (w *Worker) Run(ctx context.Context) error {
	// What is running must outlive the wish to stop: the goroutines live until the drain is over.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var loops sync.WaitGroup
	loops.Go(func() { w.beat(life) })
	loops.Go(func() { w.outbox.work(life) })
	refused := make(chan error, 1)
	loops.Go(func() { refused <- w.follow(life, ctx.Done()) })

	var err error
	select {
	case <-ctx.Done():
		w.cfg.Logger.InfoContext(life, "stopping", "runs", w.held())
	case err = <-refused:
		w.cfg.Logger.ErrorContext(life, "refused by the server", "error", err, "runs", w.held())
	}
	w.drain(life)
	end()
	loops.Wait()
	return err
}

// drain returns when nothing is left to run, to report or to hand back, or when there is no more time.
func (w *Worker) drain(life context.Context) {
	w.mu.Lock()
	w.stopping = true
	w.mu.Unlock()

	ctx, cancel := context.WithTimeout(life, w.cfg.DrainTimeout)
	defer cancel()
	granting := make(chan struct{})
	go func() {
		defer close(granting)
		w.endGrants(ctx)
	}()
	w.awaitSettled(ctx)
	<-granting
	// A step may have been on its way when the grants ended.
	w.awaitSettled(ctx)
	if w.held() == 0 {
		return
	}
	w.cfg.Logger.WarnContext(life, "out of time: handing back what still runs", "runs", w.held())
	w.mu.Lock()
	for _, run := range w.runs {
		run.cancel(ErrStopped)
	}
	w.mu.Unlock()
	w.awaitHandlers()
	last, cancel := context.WithTimeout(life, lastWords)
	defer cancel()
	w.awaitSettled(last)
	if left := w.held(); left > 0 {
		w.cfg.Logger.ErrorContext(life, "leaving runs whose end the server has not answered; their leases will run out", "runs", left)
	}
}

// endGrants calls DrainWorker until it is answered. It waits in the server until no lease is left, because until then a step
// may be on its way to us.
func (w *Worker) endGrants(ctx context.Context) {
	deadline, _ := ctx.Deadline()
	request := &taskerv1.DrainWorkerRequest{
		Namespace:  w.cfg.Namespace,
		WorkerId:   w.cfg.WorkerID,
		InstanceId: w.cfg.InstanceID,
		Deadline:   w.clock.stamp(deadline),
	}
	pause := newBackoff(retryFirst, retryMost)
	for {
		_, err := w.cfg.Client.DrainWorker(ctx, request)
		if err == nil || ctx.Err() != nil {
			return
		}
		if verdict := judge(statusOf(err)); verdict != again {
			w.cfg.Logger.WarnContext(ctx, "cannot drain", "error", err)
			return
		}
		if w.held() == 0 {
			// No server, and nothing that needs one. What it may have granted meanwhile was never confirmed and goes back by itself.
			return
		}
		if !pause.wait(ctx, retryDelay(err)) {
			return
		}
	}
}

// awaitSettled waits until no run is left or ctx ends.
func (w *Worker) awaitSettled(ctx context.Context) {
	for w.held() > 0 {
		select {
		case <-w.settled:
		case <-ctx.Done():
			return
		}
	}
}

// awaitHandlers waits for handlers that were told to stop, but not for ever.
func (w *Worker) awaitHandlers() {
	returned := make(chan struct{})
	go func() {
		w.handling.Wait()
		close(returned)
	}()
	timer := time.NewTimer(lastWords)
	defer timer.Stop()
	select {
	case <-returned:
	case <-timer.C:
	}
}

// held is how many runs are in the table.
func (w *Worker) held() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.runs)
}

func (w *Worker) journal(event any) {
	if w.cfg.Journal == nil {
		return
	}
	w.journaling.Lock()
	defer w.journaling.Unlock()
	w.cfg.Journal(event)
}

// poke leaves a message in a channel that holds one.
func poke(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}
