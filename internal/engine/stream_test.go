package engine

import (
	"context"
	"testing"

	"github.com/taskerhq/tasker/internal/task"
)

// A worker that does not read gets one idle frame when it does, the last one, and none behind a frame that says as much.
func TestIdleFramesDoNotPileUp(t *testing.T) {
	st := &Stream{wake: make(chan struct{}, 1)}
	next := func() Frame {
		t.Helper()
		f, err := st.Next(t.Context())
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
	none()

	st.end(nil)
	st.beat(1)
	if f, err := st.Next(t.Context()); err == nil {
		t.Errorf("after the end: %+v", f)
	}
}
