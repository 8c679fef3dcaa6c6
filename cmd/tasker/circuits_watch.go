package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// circuitsPause is the longest time between two looks at circuits that are watched: their counters move without a frame.
const circuitsPause = 2 * time.Second

// watchCircuits shows circuits until it is interrupted: on a terminal as the table in place; else a line for each circuit, then for
// each event, or each frame as it came.
func (s *session) watchCircuits(ctx context.Context, request *taskerv1.ListCircuitsRequest, limit int) error {
	if s.terminal && s.format == "table" {
		return s.drawCircuits(ctx, request, limit)
	}
	lines := &circuitLines{printer: s.printer, states: request.GetStates(), least: request.GetMinWaitingSteps(), seen: map[string]int64{}}
	return s.followCircuits(ctx, func(frame *taskerv1.WatchCircuitsResponse) error {
		return s.stream(frame, func() error { return lines.show(frame) })
	})
}

// drawCircuits draws the table anew whenever something has happened, and every now and then.
func (s *session) drawCircuits(ctx context.Context, request *taskerv1.ListCircuitsRequest, limit int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, over := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		over <- s.followCircuits(ctx, func(*taskerv1.WatchCircuitsResponse) error {
			select {
			case changed <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	live := &live{printer: s.printer}
	ticker := time.NewTicker(circuitsPause)
	defer ticker.Stop()
	for {
		select {
		case err := <-over:
			return err
		case <-changed:
		case <-ticker.C:
		}
		request.PageToken = ""
		answer, err := s.listCircuits(ctx, request, limit)
		switch {
		case ctx.Err() != nil || err != nil && resumes(err):
			continue // The watch says what becomes of it.
		case err != nil:
			return err
		}
		if err := live.draw(s.circuitTable(answer.GetCircuits()).lines()); err != nil {
			return err
		}
	}
}

var errWatchEnded = status.Error(codes.Unavailable, "the stream ended")

// followCircuits hands every frame to take until it is interrupted. It resumes after a lost connection, for as long as it takes.
func (s *session) followCircuits(ctx context.Context, take func(*taskerv1.WatchCircuitsResponse) error) error {
	request := &taskerv1.WatchCircuitsRequest{Namespace: s.namespace}
	var failed error
	taken := func(frame *taskerv1.WatchCircuitsResponse) error {
		failed = take(frame)
		return failed
	}
	for begun := false; ; {
		err := s.followCircuitsOnce(ctx, request, &begun, taken)
		switch {
		case failed != nil:
			return failed
		case ctx.Err() != nil && begun:
			return nil // Looking on is over when the reader says so.
		case !begun || !resumes(err):
			// Before the first frame nothing shows that there is such a server.
			return fmt.Errorf("watching circuits: %w", err)
		}
		fmt.Fprintf(s.cli.stderr, "tasker: watching again: %v\n", status.Convert(err).Message())
		timer := time.NewTimer(rand.N(watchPause)) //nolint:gosec // Jitter is no secret.
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// followCircuitsOnce reads one stream. It keeps the place to resume at in request.
func (s *session) followCircuitsOnce(ctx context.Context, request *taskerv1.WatchCircuitsRequest, begun *bool, take func(*taskerv1.WatchCircuitsResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.circuits.WatchCircuits(ctx, request)
	if err != nil {
		return err
	}
	for {
		frame, err := stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errWatchEnded
			}
			return err
		}
		*begun = true
		if revision := frame.GetRevision(); revision != "" {
			request.AfterRevision = revision
		}
		if err := take(frame); err != nil {
			return err
		}
	}
}

// circuitLines says what happens to circuits, a line each.
type circuitLines struct {
	*printer
	states []taskerv1.CircuitState
	least  int32
	seen   map[string]int64 // circuit → its last event that was shown: events may come twice
}

func (l *circuitLines) show(frame *taskerv1.WatchCircuitsResponse) error {
	now := time.Now().Format("15:04:05.000")
	for _, x := range frame.GetSnapshot().GetCircuits() {
		if !l.wanted(x.GetState()) || x.GetWaitingSteps() < l.least {
			continue
		}
		parts := []string{now, oneLine(x.GetName()), l.state(word(x.GetState()))}
		if until := x.GetOpenUntil(); until != nil {
			parts = append(parts, "open_until "+instant(until))
		}
		if reason := x.GetHold().GetReason(); reason != "" {
			parts = append(parts, brief(reason))
		}
		if err := l.write(strings.Join(append(parts, "waiting_steps "+waiting(x)), "  ") + "\n"); err != nil {
			return err
		}
	}
	for _, e := range frame.GetChange().GetEvents() {
		id, _ := strconv.ParseInt(e.GetEventId(), 10, 64)
		if id <= l.seen[e.GetCircuit()] || !l.wanted(e.GetToState()) {
			continue
		}
		l.seen[e.GetCircuit()] = id
		if err := l.write(strings.Join(l.event(now, e), "  ") + "\n"); err != nil {
			return err
		}
	}
	return nil
}

func (l *circuitLines) wanted(state taskerv1.CircuitState) bool {
	return len(l.states) == 0 || slices.Contains(l.states, state)
}

func (l *circuitLines) event(now string, e *taskerv1.CircuitEvent) []string {
	parts := []string{now, oneLine(e.GetCircuit()), l.state(word(e.GetToState())), word(e.GetCause())}
	if e.GetFromState() != e.GetToState() {
		parts[2] = l.state(word(e.GetFromState())) + " -> " + parts[2]
	}
	if until := e.GetOpenUntil(); until != nil {
		parts = append(parts, "open_until "+instant(until))
	}
	if e.GetWave() > 0 {
		parts = append(parts, fmt.Sprintf("wave %d", e.GetWave()))
	}
	if e.GetObservedCalls() > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d calls failed, %d slow", e.GetFailedCalls(), e.GetObservedCalls(), e.GetSlowCalls()))
	}
	if e.GetReason() != "" {
		parts = append(parts, brief(e.GetReason()))
	}
	return slices.DeleteFunc(parts, func(part string) bool { return part == "" })
}
