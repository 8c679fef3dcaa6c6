package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskerhq/tasker/internal/task"
)

// A worker that does not read gets one idle frame when it does, the last one, behind all that waits for it. A step that comes after
// one, which is not counted in it, stands for it.
func TestIdleFramesDoNotPileUp(t *testing.T) {
	st := &Stream{wake: make(chan struct{}, 1)}
	next := func() Frame {
		t.Helper()
		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		f, err := st.Next(soon)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	none := func() {
		t.Helper()
		over, cancel := context.WithCancel(t.Context())
		cancel()
		for range 2 { // the first may find a signal of what was taken already
			if f, err := st.Next(over); err == nil {
				t.Fatalf("one more frame: %+v", f)
			}
		}
	}
	st.putBeat(3)
	st.putBeat(2)
	if f := next(); !f.Heartbeat || f.InFlight != 2 {
		t.Errorf("the idle frame is %+v", f)
	}
	none()

	step := &task.ReadyStep{}
	st.putBeat(2)
	st.push(Frame{Step: step})
	st.putBeat(1)
	if f := next(); f.Step != step {
		t.Errorf("instead of the step: %+v", f)
	}
	if f := next(); !f.Heartbeat || f.InFlight != 1 {
		t.Errorf("the idle frame behind the step is %+v", f)
	}
	none()

	st.putBeat(0)
	st.push(Frame{Step: step})
	if f := next(); f.Step != step {
		t.Errorf("instead of the step: %+v", f)
	}
	none()

	st.end(nil)
	st.putBeat(1)
	if f, err := st.Next(t.Context()); err == nil {
		t.Errorf("after the end: %+v", f)
	}
}

// A worker that is told why it gets nothing gets its idle frame all the same, behind it.
func TestAnIdleFrameComesBesideANotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hub{beats: newBeats()}
		h.work = sync.NewCond(&h.mu)
		defer h.shut()
		st := &Stream{wake: make(chan struct{}, 1)}
		s := &session{drained: true, streams: map[*Stream]bool{st: true}, newest: st}
		s.reg.Handlers, s.reg.HeartbeatInterval = []string{"a"}, time.Minute
		h.mu.Lock()
		h.beatLater(s)
		h.mu.Unlock()
		time.Sleep(time.Minute)
		h.mu.Lock()
		h.beat()
		h.mu.Unlock()
		for _, heartbeat := range []bool{false, true} {
			f, err := st.Next(t.Context())
			if err != nil || f.Heartbeat != heartbeat || (len(f.Notices) == 1) == heartbeat {
				t.Fatalf("an idle frame: %t; came %+v, %v", heartbeat, f, err)
			}
		}
	})
}

// Whoever sends a stream's frames, they keep their order, no two are sent at once, and none once Serve has returned.
func TestFramesKeepTheirOrderWhoeverSendsThem(t *testing.T) {
	const frames = 5000
	st := &Stream{hub: &hub{}, session: &session{}, wake: make(chan struct{}, 1)}
	var (
		sending, served atomic.Bool
		helpers, last   int
		group           sync.WaitGroup
		stop            = make(chan struct{})
	)
	for range 3 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					sendTogether([]*Stream{st})
					runtime.Gosched()
				}
			}
		})
	}
	group.Go(func() {
		for i := range frames {
			st.push(Frame{InFlight: i + 1})
			if i%7 == 0 {
				runtime.Gosched()
			}
		}
		st.end(nil)
	})
	own := goroutine()
	err := st.Serve(func(f Frame) error {
		if !sending.CompareAndSwap(false, true) || served.Load() {
			t.Error("a frame is sent beside another one, or after the stream's end")
		}
		if f.InFlight != last+1 {
			t.Errorf("frame %d comes after %d", f.InFlight, last)
		}
		last = f.InFlight
		if goroutine() != own {
			helpers++
		}
		sending.Store(false)
		return nil
	})
	served.Store(true)
	if err != nil || last != frames {
		t.Errorf("serving ended with %v after %d frames, want %d", err, last, frames)
	}
	st.push(Frame{InFlight: frames + 1}) // nobody is to send it
	close(stop)
	group.Wait()
	if helpers == 0 {
		t.Error("no frame was sent by another goroutine: this shows nothing")
	}
}

// goroutine names the goroutine that runs.
func goroutine() string {
	line, _, _ := strings.Cut(string(debug.Stack()), "\n")
	return line
}

// A frame that cannot be sent ends the stream with what came of it, also if another goroutine sent it.
func TestAFrameThatCannotBeSentEndsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		st := &Stream{hub: &hub{}, session: &session{}, wake: make(chan struct{}, 1)}
		ended := make(chan error, 1)
		go func() { ended <- st.Serve(func(Frame) error { return broken }) }()
		synctest.Wait()
		st.putBeat(0)
		if !st.sendOnBehalf() {
			t.Fatal("a stream that rests is left to the one that serves it")
		}
		if err := <-ended; !errors.Is(err, broken) {
			t.Errorf("it ended with %v", err)
		}
	})
}

// A panic while a frame is sent on behalf of a stream is that of whoever serves it: nobody else's, and nobody waits for it.
func TestAPanicIsThatOfWhoeverServesTheStream(t *testing.T) {
	for _, byItself := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			st := &Stream{hub: &hub{}, session: &session{}, wake: make(chan struct{}, 1)}
			panicked := make(chan any, 1)
			go func() {
				defer func() { panicked <- recover() }()
				_ = st.Serve(func(Frame) error { panic("no such frame") })
			}()
			synctest.Wait()
			if byItself {
				st.push(Frame{Draining: true})
			} else {
				st.putBeat(0)
				sendTogether([]*Stream{st})
			}
			if p := fmt.Sprint(<-panicked); !strings.Contains(p, "no such frame") {
				t.Errorf("by itself: %t; serving ended with %s", byItself, p)
			}
			if st.sendOnBehalf() {
				t.Error("it is sent to after its end")
			}
		})
	}
}

// Workers that do not read keep an idle frame from the others of their connection once, however many they are.
func TestWorkersThatDoNotReadHoldTheirConnectionUpOnce(t *testing.T) {
	h := &hub{beats: newBeats()}
	h.work = sync.NewCond(&h.mu)
	defer h.shut()
	var (
		sessions []*session
		streams  []*Stream
		serving  sync.WaitGroup
		begun    = make(chan struct{}, 10)
		read     = make(chan struct{})
		got      = make(chan int, 100)
	)
	const stuck, all = 5, 8 // those that do not read, and all
	for i := range all {
		st := &Stream{hub: h, session: &session{}, wake: make(chan struct{}, 1)}
		s := &session{drained: true, streams: map[*Stream]bool{st: true}, newest: st}
		s.reg.HeartbeatInterval, s.reg.Connection = time.Hour, 7
		sessions, streams = append(sessions, s), append(streams, st)
		serving.Go(func() {
			_ = st.Serve(func(Frame) error {
				if i < stuck {
					begun <- struct{}{}
					<-read
				}
				got <- i
				return nil
			})
		})
	}
	for round := range 2 {
		h.mu.Lock()
		for _, s := range sessions {
			h.beats.add(s, 0)
		}
		h.beat()
		h.mu.Unlock()
		if round == 0 {
			<-begun // the others of the burst wait behind it now
		}
	}
	heard := map[int]bool{}
	for len(heard) < all-stuck {
		select {
		case i := <-got:
			heard[i] = true
		case <-time.After(10 * time.Second):
			t.Fatalf("of the workers that read only %v have got an idle frame", heard)
		}
	}
	close(read)
	for _, st := range streams {
		st.end(nil)
	}
	serving.Wait()
}
