package worker

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// openTimeout bounds the wait for a stream's first frame, and silences is how many idle intervals without any frame make a
// stream dead.
const (
	openTimeout = 15 * time.Second
	silences    = 3
)

// handover is how long a stream may go on bringing what was sent before another took over from it.
const handover = time.Second

// strayFor is how long after its end a stream that we gave up may still come to life in a server that stood still or was cut
// off, and take over from a newer one.
const strayFor = time.Minute

// stream is one ReadySteps call. Only the goroutine of follow touches it.
type stream struct {
	number int
	cancel context.CancelFunc
	opened bool
	closed bool
	// dead is how long the stream may be silent, and silence fires when it has been.
	dead    time.Duration
	silence *time.Timer
}

func (s *stream) close() {
	if s != nil {
		s.closed = true
		s.cancel()
		s.silence.Stop()
	}
}

// quiet fires when the stream is dead. A nil stream is never silent.
func (s *stream) quiet() <-chan time.Time {
	if s == nil {
		return nil
	}
	return s.silence.C
}

// arrival is a frame of a stream, or its end.
type arrival struct {
	from  *stream
	frame *taskerv1.ReadyStepsResponse
	err   error // the stream has ended
}

// follower keeps one stream open, or two while one takes over from the other.
type follower struct {
	w        *Worker
	arrivals chan arrival
	// current brings the frames. next is being opened and becomes current with its first frame. Either may be nil.
	current, next *stream
	count         int
	lostAt        time.Time // when the last stream was given up
	reopen        *time.Timer
	pause         *backoff
}

// follow keeps a stream open until life ends, and reopens it until stop. It returns early, with the reason, when the server
// says that this worker must not come back.
func (w *Worker) follow(life context.Context, stop <-chan struct{}) error {
	streams, cancel := context.WithCancel(life)
	defer cancel()
	f := &follower{
		w:        w,
		arrivals: make(chan arrival),
		reopen:   time.NewTimer(0),
		pause:    newBackoff(w.cfg.ReconnectDelay, max(w.cfg.ReconnectDelay, MaxReconnectDelay)),
	}
	defer f.reopen.Stop()
	for stopped := false; ; {
		select {
		case <-life.Done():
			return nil
		case <-stop:
			// From here on revocations come with the heartbeats, should the stream break.
			stop, stopped = nil, true
			f.next.close()
			f.next = nil
		case <-f.reopen.C:
			f.open(streams)
		case <-f.current.quiet():
			f.lose(life, f.current, fmt.Errorf("no frame for %s", f.current.dead))
		case <-f.next.quiet():
			f.lose(life, f.next, fmt.Errorf("no frame for %s", f.next.dead))
		case arrival := <-f.arrivals:
			if err := f.receive(life, arrival); err != nil {
				return err
			}
		}
		if stopped {
			f.reopen.Stop()
		}
	}
}

// receive acts on an arrival. Its error is why the worker must not come back.
func (f *follower) receive(life context.Context, arrival arrival) error {
	from := arrival.from
	switch {
	case from.closed:
	case arrival.err == nil:
		f.take(life, from, arrival.frame)
	case from != f.current && from != f.next:
		from.close()
	case from == f.current && f.next != nil:
		// The server may end the old stream before it says that the new one is open.
		f.lose(life, from, arrival.err)
	case f.ownDoing(from, arrival.err):
		f.lose(life, from, arrival.err)
	case judge(statusOf(arrival.err)) != again:
		return fmt.Errorf("following ready steps: %w", arrival.err)
	default:
		f.lose(life, from, arrival.err)
	}
	return nil
}

// ownDoing says that a stream may have been taken over from by another one of ours: one that its server took in and then
// refused, or died of, before we heard; or one from before that came late. Only this process knows the instance, so it is not
// to stop for that.
func (f *follower) ownDoing(from *stream, why error) bool {
	if statusOf(why).GetReason() != taskerv1.ErrorReason_ERROR_REASON_SESSION_TAKEN_OVER {
		return false
	}
	return f.count > from.number || !f.lostAt.IsZero() && time.Since(f.lostAt) < strayFor
}

// open starts another stream beside the current one, if any.
func (f *follower) open(streams context.Context) {
	ctx, cancel := context.WithCancel(streams)
	f.count++
	opening := &stream{number: f.count, cancel: cancel, dead: openTimeout, silence: time.NewTimer(openTimeout)}
	f.next = opening
	request := f.w.streamRequest()
	go func() {
		frames, err := f.w.cfg.Client.ReadySteps(ctx, request)
		for {
			var frame *taskerv1.ReadyStepsResponse
			if err == nil {
				frame, err = frames.Recv()
			}
			select {
			case f.arrivals <- arrival{from: opening, frame: frame, err: err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
}

func (w *Worker) streamRequest() *taskerv1.ReadyStepsRequest {
	request := &taskerv1.ReadyStepsRequest{
		Namespace:       w.cfg.Namespace,
		WorkerId:        w.cfg.WorkerID,
		InstanceId:      w.cfg.InstanceID,
		MaxInFlight:     int32(w.cfg.MaxInFlight), //nolint:gosec // New bounds it.
		Labels:          w.cfg.Labels,
		BuildId:         w.cfg.BuildID,
		ClientInfo:      w.cfg.ClientInfo,
		SendsHeartbeats: true,
		HeldLeaseTokens: w.heldTokens(),
	}
	if w.cfg.DeliveryTimeout > 0 {
		request.DeliveryTimeout = durationpb.New(w.cfg.DeliveryTimeout)
	}
	if w.cfg.IdleHeartbeat > 0 {
		request.HeartbeatInterval = durationpb.New(w.cfg.IdleHeartbeat)
	}
	for _, subscription := range w.cfg.Subscriptions {
		handler := &taskerv1.HandlerSubscription{Name: subscription.Handler}
		if subscription.MaxInFlight > 0 {
			most := int32(subscription.MaxInFlight) //nolint:gosec // New bounds it.
			handler.MaxInFlight = &most
		}
		request.Handlers = append(request.Handlers, handler)
	}
	return request
}

// heldTokens are the leases that this worker still counts as its own.
func (w *Worker) heldTokens() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	tokens := make([]string, 0, len(w.runs))
	for token, run := range w.runs {
		if !run.lost {
			tokens = append(tokens, token)
		}
	}
	return tokens
}

// take acts on a frame. Frames of a kind that is not known here are passed over.
func (f *follower) take(life context.Context, from *stream, frame *taskerv1.ReadyStepsResponse) {
	f.w.journal(FrameReceived{Stream: from.number, Frame: frame})
	log := f.w.cfg.Logger.With("stream", from.number)
	switch frame := frame.GetFrame().(type) {
	case *taskerv1.ReadyStepsResponse_Opened:
		f.promote(life, from, frame.Opened)
	case *taskerv1.ReadyStepsResponse_Step:
		f.w.begin(life, frame.Step)
	case *taskerv1.ReadyStepsResponse_Revoked:
		f.w.revoke(frame.Revoked.GetLeaseToken(), frame.Revoked.GetReason())
	case *taskerv1.ReadyStepsResponse_Heartbeat:
		f.w.clock.set(frame.Heartbeat.GetServerTime())
	case *taskerv1.ReadyStepsResponse_Draining:
		log.InfoContext(life, "the server is going away")
		if from == f.current && f.next == nil {
			f.reopen.Reset(f.pause.next())
		}
	case *taskerv1.ReadyStepsResponse_Notice:
		log.DebugContext(life, "nothing to do", "blockers", len(frame.Notice.GetBlockers()))
	}
	from.silence.Reset(from.dead)
}

// promote makes a stream that has opened the current one, and only then ends the one before. What that one still brings was
// sent before it was taken over from, and counts.
func (f *follower) promote(life context.Context, from *stream, opened *taskerv1.SessionOpened) {
	f.w.clock.set(opened.GetServerTime())
	from.opened = true
	if interval := opened.GetHeartbeatInterval().AsDuration(); interval > 0 {
		from.dead = silences * interval
	}
	if from == f.next {
		if f.current != nil {
			time.AfterFunc(handover, f.current.cancel)
		}
		f.current, f.next = from, nil
	}
	f.pause.reset()
	f.w.opened(opened)
	f.w.cfg.Logger.InfoContext(life, "stream open", "stream", from.number, "leases", opened.GetInFlight(), "lost", len(opened.GetLostLeaseTokens()))
}

// opened takes in what the server said about the session.
func (w *Worker) opened(opened *taskerv1.SessionOpened) {
	w.mu.Lock()
	w.deliveryTimeout = opened.GetDeliveryTimeout().AsDuration()
	w.mu.Unlock()
	for _, token := range opened.GetLostLeaseTokens() {
		w.revoke(token, taskerv1.RevokeReason_REVOKE_REASON_LEASE_LOST)
	}
}

// lose gives a stream up and sees to another.
func (f *follower) lose(life context.Context, lost *stream, why error) {
	lost.close()
	f.lostAt = time.Now()
	if lost == f.current {
		f.current = nil
	} else {
		f.next = nil
	}
	if f.next != nil {
		return // another is being opened already
	}
	delay := f.pause.next() + retryDelay(why)
	f.w.cfg.Logger.WarnContext(life, "stream ended", "stream", lost.number, "opened", lost.opened, "reopen_in", delay.String(), "error", why)
	f.reopen.Reset(delay)
}
