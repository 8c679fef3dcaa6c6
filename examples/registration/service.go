package registration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Headers with which a worker says what a call is for. A service needs the first to answer a repeated call without doing
// its work twice; the others it only remembers.
const (
	HeaderIdempotencyKey = "Idempotency-Key"
	HeaderAttempt        = "X-Attempt"
	HeaderDispatch       = "X-Dispatch"
)

// Call is one request as a service saw it.
type Call struct {
	Service        string
	User           int64
	IdempotencyKey string
	Attempt        int
	Dispatch       int
	BeganAt        time.Time
	// EndedAt is when the answer was written, or the caller gave up. Zero while the call goes on.
	EndedAt time.Time
	// Answer is what was answered. The caller may have been gone by then.
	Answer Answer
	// NotBefore is the instant that a Retry-After asked the caller to wait for. Zero when there was none.
	NotBefore time.Time
	// Repeated: the work had been done by an earlier call with this key, and was not done again.
	Repeated bool
}

// Services are the four servers. Start makes them.
type Services struct {
	// URLs by name of the service.
	URLs map[string]string

	seed    uint64
	steady  bool
	servers []*http.Server
	closing chan struct{}

	mu    sync.Mutex
	down  bool
	calls []*Call
	// planned counts a user's calls at a service, which is its place in the plan; done has the keys under which work was done.
	planned map[place]int
	done    map[string]bool
}

type place struct {
	service string
	user    int64
}

// Start lets the services listen on loopback addresses of their own.
func Start(ctx context.Context, seed uint64) (*Services, error) {
	return (&Services{seed: seed}).listen(ctx)
}

// StartSteady starts services without a plan: they serve everybody at once, unless SetDown has them down.
func StartSteady(ctx context.Context) (*Services, error) {
	return (&Services{steady: true}).listen(ctx)
}

// SetDown has all services answer every call with 503 and do nothing, or ends that.
func (s *Services) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

func (s *Services) listen(ctx context.Context) (*Services, error) {
	s.URLs, s.closing = make(map[string]string, len(Steps)), make(chan struct{})
	s.planned, s.done = make(map[place]int), make(map[string]bool)
	for _, step := range Steps {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("starting %s: %w", step.Service, err), s.Close())
		}
		s.URLs[step.Service] = "http://" + listener.Addr().String()
		server := &http.Server{
			Handler:           s.handler(step.Service),
			ReadHeaderTimeout: 10 * time.Second,
			// Callers are killed in the middle of a call here; that is no news.
			ErrorLog: log.New(discard{}, "", 0),
		}
		s.servers = append(s.servers, server)
		go func() { _ = server.Serve(listener) }()
	}
	return s, nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Close ends the servers and every call that hangs.
func (s *Services) Close() error {
	select {
	case <-s.closing:
		return nil
	default:
	}
	close(s.closing)
	var errs []error
	for _, server := range s.servers {
		errs = append(errs, server.Close())
	}
	return errors.Join(errs...)
}

// Calls is everything that was asked so far, in the order in which it came.
func (s *Services) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := make([]Call, len(s.calls))
	for i, call := range s.calls {
		calls[i] = *call
	}
	return calls
}

// handler answers POST /users/{id}: do for this user what the service does.
func (s *Services) handler(service string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /users/{id}", func(w http.ResponseWriter, r *http.Request) {
		user, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
		key := r.Header.Get(HeaderIdempotencyKey)
		attempt, errAttempt := strconv.Atoi(r.Header.Get(HeaderAttempt))
		dispatch, errDispatch := strconv.Atoi(r.Header.Get(HeaderDispatch))
		if err = errors.Join(err, errAttempt, errDispatch); err != nil || key == "" {
			http.Error(w, fmt.Sprintf("user id, %s, %s and %s are needed: %v", HeaderIdempotencyKey, HeaderAttempt, HeaderDispatch, err), http.StatusBadRequest)
			return
		}
		call, plan := s.begin(service, user, key, attempt, dispatch)
		s.answer(w, r, call, plan)
	})
	return mux
}

// begin notes a call and decides its answer.
func (s *Services) begin(service string, user int64, key string, attempt, dispatch int) (*Call, Plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	plan := PlanFor(s.seed, service, user)
	if s.steady {
		plan = Plan{After: created, Latency: steadyLatency}
	}
	call := &Call{Service: service, User: user, IdempotencyKey: key, Attempt: attempt, Dispatch: dispatch, BeganAt: time.Now()}
	if s.down {
		call.Answer = unavailable
	} else if s.done[service+" "+key] {
		// The user was served and the caller never heard of it, or was killed before it could say so.
		call.Answer, call.Repeated = created, true
	} else {
		at := place{service, user}
		call.Answer = plan.Call(s.planned[at])
		s.planned[at]++
	}
	s.calls = append(s.calls, call)
	return call, plan
}

// answer takes the time the plan says, and then answers, or does not.
func (s *Services) answer(w http.ResponseWriter, r *http.Request, call *Call, plan Plan) {
	var ready <-chan time.Time // never, for a call that hangs
	if call.Answer.Status != 0 {
		timer := time.NewTimer(plan.Latency)
		defer timer.Stop()
		ready = timer.C
	}
	select {
	case <-ready:
	case <-r.Context().Done():
		// A service that was about to do its work does it, whether or not the caller still listens.
	case <-s.closing:
	}

	s.mu.Lock()
	now := time.Now()
	if header, until := retryAfter(call.Answer, now); header != "" {
		w.Header().Set("Retry-After", header)
		call.NotBefore = until
	}
	if call.Answer.Status == created.Status {
		s.done[call.Service+" "+call.IdempotencyKey] = true
	}
	call.EndedAt = now
	s.mu.Unlock()

	if call.Answer.Status == 0 {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(call.Answer.Status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"service": call.Service, "user_id": call.User, "status": http.StatusText(call.Answer.Status),
	})
}

// retryAfter writes the header, and says from when on it allows another call.
func retryAfter(answer Answer, now time.Time) (header string, until time.Time) {
	switch {
	case answer.RetryAfter <= 0:
		return "", time.Time{}
	case answer.AsDate:
		// A date has no fractions; it is rounded up, as a service would that means what it says.
		until = now.Add(answer.RetryAfter).Truncate(time.Second).Add(time.Second)
		return until.UTC().Format(http.TimeFormat), until
	default:
		return strconv.Itoa(int(answer.RetryAfter / time.Second)), now.Add(answer.RetryAfter)
	}
}
