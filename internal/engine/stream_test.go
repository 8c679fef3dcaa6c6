package engine

import (
	"context"
	"sync"
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
	st.beat(3)
	st.beat(2)
	if f := next(); !f.Heartbeat || f.InFlight != 2 {
		t.Errorf("the idle frame is %+v", f)
	}
	none()

	step := &task.ReadyStep{}
	st.beat(2)
	st.push(Frame{Step: step})
	st.beat(1)
	if f := next(); f.Step != step {
		t.Errorf("instead of the step: %+v", f)
	}
	if f := next(); !f.Heartbeat || f.InFlight != 1 {
		t.Errorf("the idle frame behind the step is %+v", f)
	}
	none()

	st.beat(0)
	st.push(Frame{Step: step})
	if f := next(); f.Step != step {
		t.Errorf("instead of the step: %+v", f)
	}
	none()

	st.end(nil)
	st.beat(1)
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
