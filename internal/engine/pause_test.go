package engine_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func pauseHandler(t *testing.T, e *engine.Engine, handler string, until *time.Time) *task.Pause {
	t.Helper()
	p, err := e.PauseHandler(t.Context(), task.Pause{Handler: handler, Reason: "maintenance", Actor: "ann", Until: until})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func resumeHandler(t *testing.T, e *engine.Engine, handler string) {
	t.Helper()
	if p, err := e.ResumeHandler(t.Context(), "", handler, store.Act{Actor: "bob"}); err != nil || p == nil || p.Reason != "maintenance" {
		t.Fatalf("resuming ended %+v, %v", p, err)
	}
}

// resting is an engine that never looks by itself, so that what wakes it is known. It begins to when run is called.
func resting(t *testing.T, db *pgtest.DB) (e *engine.Engine, run func()) {
	t.Helper()
	e, begin := restingEngine(t, db, nil)
	ctx, stop := context.WithCancel(context.Background())
	started := false
	done := make(chan error, 1)
	run = func() {
		started = true
		go func() { done <- begin(ctx) }()
	}
	t.Cleanup(func() {
		if !started {
			run()
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("the engine ended with %v", err)
		}
	})
	return e, run
}

func leased(t *testing.T, db *pgtest.DB) (n int) {
	t.Helper()
	if err := db.Pool.QueryRow(t.Context(), "select count(*) from lease").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAPausedHandlerGivesNothingUntilItIsResumed(t *testing.T) {
	db := pgtest.New(t)
	e, _ := resting(t, db)
	st := open(t, e, 10, "a", "b")
	submit(t, e, spec("a"))
	running := nextStep(t, st)
	pauseHandler(t, e, "a", nil)
	submit(t, e, spec("a"))
	report(t, e, failing(running)) // it goes on being reported, and may wake steps of its own
	submit(t, e, spec("b"))
	if got := nextStep(t, st); got.Handler != "b" {
		t.Errorf("a step of handler %s was dispatched", got.Handler)
	}
	steps, opened, err := e.Poll(t.Context(), registration("poller", "1", 5, "a"), 5, 50*time.Millisecond)
	if err != nil || len(steps) > 0 || len(opened.Notices) != 1 || opened.Notices[0].Reason != "paused" || opened.Notices[0].Until != nil {
		t.Errorf("a poll brought %v, %+v, %v", steps, opened.Notices, err)
	}
	resumeHandler(t, e, "a")
	if got := nextStep(t, st); got.Handler != "a" {
		t.Errorf("after the resume came %s", got.Handler)
	}
	steps, _, err = e.Poll(t.Context(), registration("poller", "1", 5, "a"), 5, 0)
	if err != nil || len(steps) > 0 {
		t.Errorf("nothing was left, and a poll brought %v, %v", steps, err)
	}

	pauseHandler(t, e, "", nil)
	pauseHandler(t, e, "b", nil)
	submit(t, e, spec("a"), spec("b", 1))
	if n := leased(t, db); n != 2 {
		t.Errorf("%d steps run in a paused namespace, and 2 ran before", n)
	}
	resumeHandler(t, e, "")
	first := nextStep(t, st)
	succeed(t, e, first, "{}")
	if n := leased(t, db); first.Handler != "a" || n != 2 {
		t.Errorf("after the namespace's resume came %s, and %d steps run", first.Handler, n)
	}
	resumeHandler(t, e, "b")
	if got := nextStep(t, st); got.Handler != "b" {
		t.Errorf("after both resumes came %s", got.Handler)
	}
}

func TestAPauseEndsByItself(t *testing.T) {
	db := pgtest.New(t)
	e, _ := resting(t, db)
	st := open(t, e, 10, "a")
	var until time.Time
	if err := db.Pool.QueryRow(t.Context(), "select clock_timestamp() + interval '700 ms'").Scan(&until); err != nil {
		t.Fatal(err)
	}
	pauseHandler(t, e, "a", &until)
	submit(t, e, spec("a"))
	if got := nextStep(t, st); got.GrantedAt.Before(until) {
		t.Errorf("a step was dispatched %s before the end of the pause", until.Sub(got.GrantedAt))
	}
	if page, err := e.ListPauses(t.Context(), "", task.PageRequest{}); err != nil || len(page.Items) > 0 {
		t.Errorf("in force are %v, %v", page.Items, err)
	}
}

// A server that nobody told of a pause is granted nothing, not even with what it is about to store itself; its look finds out.
func TestAServerThatDoesNotKnowOfAPauseIsGrantedNothing(t *testing.T) {
	db := pgtest.New(t)
	here, _ := resting(t, db)
	there, run := resting(t, db)
	st := openAs(t, there, registration("w", "1", 10, "a", "b"))
	pauseHandler(t, here, "a", nil)
	submit(t, there, spec("a"))
	submit(t, there, spec("b"))
	if n := leased(t, db); n != 0 {
		t.Errorf("S15: %d steps were dispatched by a server that did not know of the pause", n)
	}
	run()
	if got := nextStep(t, st); got.Handler != "b" {
		t.Errorf("S15: a step of paused handler %s was dispatched", got.Handler)
	}
	resumeHandler(t, here, "a")
	if got := nextStep(t, st); got.Handler != "a" {
		t.Errorf("after the resume came %s", got.Handler)
	}
}

// A server that comes when its namespace has been paused knows it before its first claim, and goes on with what is not paused.
func TestAServerThatComesLaterKnowsOfThePauses(t *testing.T) {
	db := pgtest.New(t)
	e, _ := resting(t, db)
	submit(t, e, spec("a"))
	submit(t, e, spec("b"))
	pauseHandler(t, e, "a", nil)
	later, _ := resting(t, db)
	st := open(t, later, 10, "a", "b")
	if got := nextStep(t, st); got.Handler != "b" {
		t.Errorf("S15: a step of paused handler %s was dispatched", got.Handler)
	}
	resumeHandler(t, later, "a")
	if got := nextStep(t, st); got.Handler != "a" {
		t.Errorf("after the resume came %s", got.Handler)
	}
}

// Servers tell each other at once: neither looks by itself.
func TestServersTellEachOtherOfPauses(t *testing.T) {
	db := pgtest.New(t)
	here, there := newEngine(t, db), newEngine(t, db)
	r := registration("w", "1", 10, "a")
	r.HeartbeatInterval = 20 * time.Millisecond
	st := openAs(t, there, r)
	isPaused := func(f engine.Frame) bool {
		return slices.ContainsFunc(f.Notices, func(n engine.Notice) bool { return n.Handler == "a" && n.Reason == "paused" })
	}
	pauseHandler(t, here, "a", nil)
	frame(t, st, isPaused)
	submit(t, here, spec("a"))
	resumeHandler(t, here, "a")
	nextStep(t, st)
	until := time.Now().Add(time.Hour)
	pauseHandler(t, here, "a", &until)
	f := frame(t, st, isPaused)
	if f.Notices[0].Until == nil || f.Notices[0].Until.Sub(until).Abs() > time.Microsecond {
		t.Errorf("it ends at %v; the worker is told %v", until, f.Notices[0].Until)
	}
}

func TestPausesAreListedPageByPage(t *testing.T) {
	e, _ := resting(t, pgtest.New(t))
	for _, h := range []string{"b", "", "c", "a"} {
		pauseHandler(t, e, h, nil)
	}
	var got []string
	token := ""
	for {
		page, err := e.ListPauses(t.Context(), "", task.PageRequest{Size: 1, Token: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range page.Items {
			if p.Namespace != "default" || p.Actor != "ann" || p.Since.IsZero() {
				t.Errorf("listed is %+v", p)
			}
			got = append(got, p.Handler)
		}
		if token = page.NextToken; token == "" {
			break
		}
	}
	if !slices.Equal(got, []string{"", "a", "b", "c"}) {
		t.Errorf("listed are %q", got)
	}
	for _, token := range []string{"x", "eyJoIjoiYSJ9"} {
		if _, err := e.ListPauses(t.Context(), "", task.PageRequest{Token: token}); reason(err) != task.BadPageToken {
			t.Errorf("token %s: %v", token, err)
		}
	}
	past := time.Now().Add(-time.Second)
	if _, err := e.PauseHandler(t.Context(), task.Pause{Handler: "a", Reason: "r", Until: &past}); reason(err) != task.Validation {
		t.Errorf("a pause that ended before it began: %v", err)
	}
	if p, err := e.ResumeHandler(t.Context(), "nowhere", "a", store.Act{}); p != nil || err != nil {
		t.Errorf("resuming in a namespace that is not there: %v, %v", p, err)
	}
}
