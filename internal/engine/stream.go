package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// Frame is one message to a worker; exactly one field says which.
type Frame struct {
	Step      *task.ReadyStep
	Revoked   *store.Revoked
	Notices   []Notice // one a handler
	Heartbeat bool
	Draining  bool

	InFlight int // of a heartbeat: the leases counted for the session
}

// Notice says why a handler has no step to give although the session has room.
type Notice struct {
	Handler string
	// Reason is nothing_ready, not_due, handler_limit, drained, circuit_open, circuit_probing (half-open or recovering),
	// circuit_limit, circuit_held, worker_barred or paused (the handler, or the namespace).
	Reason  string
	Circuit string     // whose state it is; empty: none
	Until   *time.Time // when that may change by itself; nil: not known
}

// Stream is a worker's open ReadySteps call. Frames wait in it until they are sent; their number is bounded by the session's
// max_in_flight.
type Stream struct {
	hub     *hub
	session *session
	opened  Opened

	// sending is held from the taking of a frame until it is sent, so that frames keep their order. It comes before the hub's mutex,
	// and that before mu.
	sending  sync.Mutex
	send     func(Frame) error // while it is served
	panicked string            // what send did that somebody else called

	mu       sync.Mutex
	frames   []Frame
	beatDue  bool // an idle frame, which is not among the frames: nothing is allocated for it
	inFlight int  // what it says
	over     bool
	cause    error // nil: ended with OK
	wake     chan struct{}
}

// admit refuses a stream or a poll that has no place here. It needs h.mu.
func (h *hub) admit(polling bool) error {
	switch {
	case h.draining || h.closed:
		return task.Refuse(task.Draining, "this server is going away: try another one").After(time.Second)
	case !polling && h.streams >= h.e.conf.MaxStreams:
		return task.Refuse(task.TooManyStreams, "this server has its fill of streams in this namespace").After(5 * time.Second)
	case polling && h.polls >= h.e.conf.MaxStreams:
		return task.Refuse(task.RateLimited, "this server has its fill of polls in this namespace").After(time.Second)
	}
	return nil
}

// Open opens a worker's stream. It gets the session's frames from now on; an older stream of the session ends.
func (e *Engine) Open(ctx context.Context, r Registration) (*Stream, error) {
	h, s, opened, err := e.openSession(ctx, &r, false)
	if err != nil {
		return nil, err
	}
	st := &Stream{hub: h, session: s, opened: opened, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	s.opening--
	if err := h.admit(false); err != nil {
		return nil, err
	}
	if s.gone {
		return nil, s.takenOver()
	}
	h.streams++
	if s.newest != nil {
		// What the older stream has not handed out moves over.
		st.frames = s.newest.takeSteps()
	}
	s.endStreams()
	s.streams[st], s.newest = true, st
	s.noticed = nil
	h.beatLater(s)
	h.work.Broadcast()
	if len(st.frames) > 0 {
		st.signal()
	}
	return st, nil
}

// Opened is what the worker is told first.
func (st *Stream) Opened() Opened { return st.opened }

// Serve hands the stream's frames to send, one after another and in their order, until the stream ends or send fails. A cause it ended
// for is returned; nil stands for OK. Some calls of send are made by other goroutines, but none once Serve has returned.
func (st *Stream) Serve(send func(Frame) error) error {
	st.sending.Lock()
	st.send = send
	st.sending.Unlock()
	defer func() {
		st.sending.Lock()
		st.send = nil
		st.sending.Unlock()
	}()
	for {
		err := st.sendOwn()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		<-st.wake
	}
}

// sendOwn sends what waits, or panics as somebody did who sent it on its behalf.
func (st *Stream) sendOwn() error {
	st.sending.Lock()
	defer st.sending.Unlock()
	if st.panicked != "" {
		panic(st.panicked)
	}
	return st.sendWaiting()
}

// sendWaiting needs st.sending: it sends the frames that wait.
func (st *Stream) sendWaiting() error {
	for {
		f, ok, err := st.take()
		if !ok {
			return err
		}
		if err := st.send(f); err != nil {
			return err
		}
	}
}

// sendTogether sends what waits in streams of one connection: one goroutine wakes for them and not each one's own, and what it sends
// without a pause becomes few writes. A stream that is being sent to, or is not served, is left to whoever serves it.
//
// If a worker does not read and a frame must wait for it, those behind it wait too, until their next idle frame is due: hub.beat then
// leaves each to whoever serves it.
func sendTogether(streams []*Stream) {
	for _, st := range streams {
		if !st.sendOnBehalf() {
			st.signal()
		}
	}
}

// sendOnBehalf sends what waits in place of the goroutine that serves the stream. False: that one is to do it.
func (st *Stream) sendOnBehalf() bool {
	if !st.sending.TryLock() {
		return false
	}
	defer st.sending.Unlock()
	if st.send == nil {
		return false
	}
	// A panic is that of whoever serves the stream, where it is seen to.
	defer func() {
		if p := recover(); p != nil {
			st.panicked = fmt.Sprintf("%v\n%s", p, debug.Stack())
			st.End(nil)
		}
	}()
	if err := st.sendWaiting(); err != nil {
		st.End(err) // if it was not for that
	}
	return true
}

// Next waits for the next frame of a stream that is not served, for those who want frames and have no call to send them by. io.EOF
// ends the stream with OK; a *task.Error is told to the worker.
func (st *Stream) Next(ctx context.Context) (Frame, error) {
	for {
		f, ok, err := st.take()
		if ok || err != nil {
			return f, err
		}
		select {
		case <-st.wake:
		case <-ctx.Done():
			return Frame{}, ctx.Err()
		}
	}
}

// take takes the next frame that waits, if one does. Behind the last one comes what ended the stream.
func (st *Stream) take() (f Frame, ok bool, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case len(st.frames) > 0:
		f = st.frames[0]
		st.frames[0] = Frame{}
		st.frames = st.frames[1:]
		if len(st.frames) == 0 {
			st.frames = nil // idle streams hold no buffer
		}
		return f, true, nil
	case st.beatDue:
		st.beatDue = false
		return Frame{Heartbeat: true, InFlight: st.inFlight}, true, nil
	case st.over && st.cause == nil:
		return f, false, io.EOF
	case st.over:
		return f, false, st.cause
	}
	return f, false, nil
}

// Close ends the stream. Steps that were not handed out go back at once, at no cost to them.
func (st *Stream) Close() {
	h, s := st.hub, st.session
	st.End(nil)
	h.mu.Lock()
	if !s.streams[st] {
		h.mu.Unlock()
		return
	}
	delete(s.streams, st)
	if len(s.streams) == 0 {
		h.beats.remove(s)
	}
	h.streams--
	left := st.takeSteps()
	h.mu.Unlock()
	var back []store.HeldLease
	for _, f := range left {
		back = append(back, heldLease(f.Step))
	}
	if len(back) > 0 {
		h.e.giveBack(h.id, back, task.Undelivered)
	}
	h.leave(s)
}

func heldLease(r *task.ReadyStep) store.HeldLease {
	return store.HeldLease{Step: r.Token.Step, Nonce: r.Token.Nonce}
}

// push hands a frame over.
func (st *Stream) push(f Frame) {
	st.put(f)
	st.signal()
}

// put is push for those who have the frame sent. A frame stands for an idle frame that waits, too, and which counted the leases before
// it.
func (st *Stream) put(f Frame) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.over {
		st.frames = append(st.frames, f)
		st.beatDue = false
	}
}

// putBeat hands an idle frame over, behind the frames that wait, for those who have it sent. A worker that does not read gets one when
// it does, not all that it missed. waited: the one before has not been sent yet.
func (st *Stream) putBeat(inFlight int) (waited bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	waited = st.beatDue
	if !st.over {
		st.beatDue, st.inFlight = true, inFlight
	}
	return waited
}

// Drain asks the worker to open another stream.
func (st *Stream) Drain() { st.push(Frame{Draining: true}) }

// End ends the stream behind the frames that wait: Serve then returns cause. Nothing is granted to it from now on, since nobody would
// be handed it.
func (st *Stream) End(cause error) {
	st.hub.mu.Lock()
	if st.session.newest == st {
		st.session.newest = nil
	}
	st.hub.mu.Unlock()
	st.end(cause)
}

// end is End for those who hold the hub's mutex and see to it themselves that nothing more is granted to it.
func (st *Stream) end(cause error) {
	st.mu.Lock()
	if !st.over {
		st.over, st.cause = true, cause
	}
	st.mu.Unlock()
	st.signal()
}

func (st *Stream) signal() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// takeSteps takes the steps that were not handed out yet.
func (st *Stream) takeSteps() []Frame {
	st.mu.Lock()
	defer st.mu.Unlock()
	var steps, rest []Frame
	for _, f := range st.frames {
		if f.Step != nil {
			steps = append(steps, f)
		} else {
			rest = append(rest, f)
		}
	}
	st.frames = rest
	return steps
}

// poll is a PollReadySteps call that waits.
type poll struct {
	max   int
	mu    sync.Mutex
	steps []*task.ReadyStep
	over  bool
	done  chan struct{} // closed when it has something, or waits no longer
}

func (p *poll) wanted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return 0
	}
	return p.max - len(p.steps)
}

// give hands a step over; false when the poll has returned.
func (p *poll) give(r *task.ReadyStep) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || len(p.steps) >= p.max {
		return false
	}
	p.steps = append(p.steps, r)
	return true
}

// finishWithSteps lets the poll return if it has any.
func (p *poll) finishWithSteps() {
	p.mu.Lock()
	some := len(p.steps) > 0
	p.mu.Unlock()
	if some {
		p.finish()
	}
}

// finish lets the poll return with what it has.
func (p *poll) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.over = true
		close(p.done)
	}
}

// Poll waits up to wait for steps and returns with the first batch of them, at most maxSteps.
func (e *Engine) Poll(ctx context.Context, r Registration, maxSteps int, wait time.Duration) ([]*task.ReadyStep, Opened, error) {
	h, s, opened, err := e.openSession(ctx, &r, true)
	if err != nil {
		return nil, opened, err
	}
	p := &poll{max: max(maxSteps, 1), done: make(chan struct{})}
	h.mu.Lock()
	s.opening--
	if err := h.admit(true); err != nil {
		h.mu.Unlock()
		return nil, opened, err
	}
	h.polls++
	if s.polls == nil {
		s.polls = map[*poll]bool{}
	}
	s.polls[p] = true
	h.work.Broadcast()
	h.mu.Unlock()

	timer := time.NewTimer(wait)
	select {
	case <-p.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	timer.Stop()
	p.finish()
	h.mu.Lock()
	h.polls--
	delete(s.polls, p)
	s.quietAt = time.Now()
	if len(p.steps) == 0 {
		opened.Notices = h.notices(nil, s)
	}
	h.mu.Unlock()
	if ctx.Err() != nil {
		// The caller is gone: what it was about to get goes back.
		var back []store.HeldLease
		for _, r := range p.steps {
			back = append(back, heldLease(r))
		}
		if len(back) > 0 {
			e.giveBack(h.id, back, task.Undelivered)
		}
		return nil, opened, ctx.Err()
	}
	return p.steps, opened, nil
}
