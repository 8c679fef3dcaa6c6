package engine_test

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/task"
)

// watchCircuits takes the first frame of a watch that goes on behind a revision.
func watchCircuits(t *testing.T, e *engine.Engine, after string) (*engine.CircuitWatch, engine.CircuitFrame) {
	t.Helper()
	w, err := e.WatchCircuits(t.Context(), "", nil, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, nextCircuitFrame(t, w)
}

func nextCircuitFrame(t *testing.T, w *engine.CircuitWatch) engine.CircuitFrame {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	f, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A watch that broke goes on behind the last revision it saw. One that this cluster cannot have told, as of before a restore, begins
// with a snapshot: nothing would ever come behind it.
func TestAWatchOfCircuitsGoesOnBehindItsRevision(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	hold := func() {
		t.Helper()
		if _, err := e.HoldCircuit(t.Context(), "", "svc", task.CircuitHold{Reason: "maintenance", Actor: "op"}); err != nil {
			t.Fatal(err)
		}
	}
	hold()
	w, f := watchCircuits(t, e, "")
	if !f.Snapshot || len(f.Circuits) != 1 || f.Circuits[0].State != task.CircuitHeld || len(f.Events) > 0 {
		t.Fatalf("a watch begins with %+v", f)
	}
	w.Close()
	if _, err := e.ReleaseCircuit(t.Context(), "", "svc", "op", "done"); err != nil {
		t.Fatal(err)
	}
	var causes []task.CircuitCause
	for w, f = watchCircuits(t, e, f.Revision); ; f = nextCircuitFrame(t, w) {
		if f.Snapshot || len(f.Circuits) != 1 || f.Circuits[0].Name != "svc" {
			t.Fatalf("a watch goes on with %+v", f)
		}
		for _, x := range f.Events {
			causes = append(causes, x.Cause)
		}
		if causes[len(causes)-1] == task.CauseRelease {
			break // What came before may come once more.
		}
	}
	if f.Circuits[0].State != task.CircuitHalfOpen {
		t.Errorf("behind the release it is %s", f.Circuits[0].State)
	}

	for _, foreign := range []string{
		strings.Repeat("9", len(f.Revision)), strconv.FormatUint(math.MaxUint64, 10), f.Revision + "0", "0" + f.Revision, "-1", "rubbish",
	} {
		if w, first := watchCircuits(t, e, foreign); !first.Snapshot || len(first.Circuits) != 1 {
			t.Errorf("behind revision %q comes %+v", foreign, first)
		} else {
			w.Close()
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if f, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("where nothing changed a watch tells %+v, %v", f, err)
	}
}
