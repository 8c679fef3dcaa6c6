package engine_test

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func newEngine(t *testing.T, db *pgtest.DB) *engine.Engine {
	t.Helper()
	return startEngine(t, db, func(ctx context.Context) (*pgx.Conn, error) { return pgx.Connect(ctx, db.ConnString()) })
}

// startEngine runs an engine until the test's end. listen may be nil.
func startEngine(t *testing.T, db *pgtest.DB, listen func(context.Context) (*pgx.Conn, error)) *engine.Engine {
	t.Helper()
	e, run := restingEngine(t, db, listen)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the engine ended with %v", err)
		}
	})
	return e
}

// restingEngine makes an engine that does nothing by itself until run is called, which the caller must. Its store is closed at
// the test's end.
func restingEngine(t *testing.T, db *pgtest.DB, listen func(context.Context) (*pgx.Conn, error)) (_ *engine.Engine, run func(context.Context) error) {
	t.Helper()
	st, err := store.Open(t.Context(), db.Pool.Config(), 8)
	if err != nil {
		t.Fatal(err)
	}
	conf := engine.Config{Listen: listen}
	_, _ = rand.Read(conf.ReplicaID[:])
	t.Cleanup(st.Close)
	e := engine.New(st, conf)
	return e, e.Run
}

// spec is a step with the defaults that a submit fills in.
func spec(name string, parents ...int) task.StepSpec {
	return task.StepSpec{
		Name: name, Handler: name, Priority: 1, Parents: parents,
		Policy: task.Policy{RetryLimit: 3, Retryable: true, MaxLostLeases: 3},
	}
}

func submit(t *testing.T, e *engine.Engine, steps ...task.StepSpec) task.ID {
	t.Helper()
	answers, err := e.Submit(t.Context(), []*task.Submission{{Name: "t", Context: `{"k":1}`, Steps: steps}}, false)
	if err != nil {
		t.Fatal(err)
	}
	return answers[0].TaskID
}

func open(t *testing.T, e *engine.Engine, inFlight int, handlers ...string) *engine.Stream {
	t.Helper()
	st, err := e.Open(t.Context(), engine.Registration{Session: store.Session{
		WorkerID: "w", InstanceID: rand.Text(), MaxInFlight: inFlight, Handlers: handlers,
	}, Beats: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

// nextStep waits for a step frame.
func nextStep(t *testing.T, st *engine.Stream) *task.ReadyStep {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		f, err := st.Next(ctx)
		if err != nil {
			t.Fatalf("waiting for a step: %v", err)
		}
		if f.Step != nil {
			return f.Step
		}
	}
}

func succeed(t *testing.T, e *engine.Engine, r *task.ReadyStep, results string) *task.Reported {
	t.Helper()
	return report(t, e, task.Report{Token: r.Token, Outcome: task.Success, Results: results, Digest: [32]byte{1}})
}

func report(t *testing.T, e *engine.Engine, r task.Report) *task.Reported {
	t.Helper()
	a := e.Report(t.Context(), []task.Report{r})[0]
	if a.Err != nil {
		t.Fatalf("report: %v", a.Err)
	}
	return a.Reported
}

func TestStepsFlowFromSubmitToTheTasksEnd(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := open(t, e, 10, "a", "b", "c", "d")
	id := submit(t, e, spec("a"), spec("b", 1), spec("c", 1), spec("d", 2, 3))

	a := nextStep(t, st)
	if a.StepName != "a" || a.Context != `{"k":1}` || a.Attempt != 1 || a.Dispatch != 1 {
		t.Fatalf("first step is %+v", a)
	}
	zero := time.Duration(0)
	failed := report(t, e, task.Report{
		Token: a.Token, Outcome: task.RetryableFailure, Digest: [32]byte{9},
		Failure: task.Failure{ErrorCode: "BUSY"}, Hint: task.Hint{Source: task.FromRetryAfter, After: &zero},
	})
	if failed.State != task.StepError || failed.Attempts != 1 || !failed.RetryEligible || failed.DelaySource != task.FromRetryAfter {
		t.Fatalf("failed report answered %+v", failed)
	}
	a = nextStep(t, st)
	if a.StepName != "a" || a.Attempt != 2 || a.Dispatch != 2 || a.PreviousFailure == nil || a.PreviousFailure.ErrorCode != "BUSY" {
		t.Fatalf("retried step is %+v", a)
	}
	if got := succeed(t, e, a, `{"id":7}`); got.State != task.StepComplete || got.Attempts != 2 {
		t.Fatalf("success answered %+v", got)
	}
	again := succeed(t, e, a, `{"id":7}`)
	if !again.AlreadyRecorded || again.State != task.StepComplete {
		t.Fatalf("repeated success answered %+v", again)
	}
	for range 2 {
		x := nextStep(t, st)
		if len(x.Dependencies) != 1 || x.Dependencies[0].Results != `{"id":7}` {
			t.Fatalf("%s got dependencies %v", x.StepName, x.Dependencies)
		}
		succeed(t, e, x, `{}`)
	}
	d := nextStep(t, st)
	if d.StepName != "d" || len(d.Dependencies) != 2 || d.Handler != "d" || d.Namespace != "default" {
		t.Fatalf("join is %+v", d)
	}
	succeed(t, e, d, `{}`)
	var state string
	if err := db.Pool.QueryRow(t.Context(), "select state::text from task_end where task_id = $1", int64(id)).Scan(&state); err != nil || state != "complete" {
		t.Fatalf("task ended %q, %v", state, err)
	}
}
