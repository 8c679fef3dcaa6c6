package engine_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/task"
)

// at waits until so many transactions wait at the gate.
func (g *gate) at(n int) {
	g.Helper()
	for deadline := time.Now().Add(10 * time.Second); g.count(`select count(*) from pg_stat_activity
		where datname = current_database() and wait_event = 'advisory'`) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.Fatalf("not %d transactions came to the gate", n)
		}
	}
}

// waiting waits until so many calls wait for their transactions.
func waiting(t *testing.T, e *engine.Engine, n int64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); e.Stats().Waiting != n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls wait, not %d", e.Stats().Waiting, n)
		}
	}
}

// trySubmit submits a task of one step, and sends what it came to.
func trySubmit(t *testing.T, e *engine.Engine, name string, steps ...task.StepSpec) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := e.Submit(context.WithoutCancel(t.Context()), []*task.Submission{{Name: name, Context: "{}", Steps: steps}}, false)
		done <- err
	}()
	return done
}

// engineAlone gives an engine that does nothing in the background: the tables' upkeep would wait for transactions at the gate,
// and others for it.
func engineAlone(t *testing.T, db *pgtest.DB) *engine.Engine {
	t.Helper()
	e, run := restingEngine(t, db, nil)
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		if err := run(over); err != nil {
			t.Error(err)
		}
	})
	return e
}

// A step of a lane that the server knows goes out in the transaction that stores its task.
func TestASubmittedStepIsGrantedByTheTransactionThatStoresIt(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	st := open(t, e, 1000, "a")
	submit(t, e, spec("a"))
	nextStep(t, st)
	// Another look into the lane may be under way, as it is now and then: only one at a time is.
	for range 50 {
		id := int64(submit(t, e, spec("a")))
		nextStep(t, st)
		var one bool
		err := db.Pool.QueryRow(t.Context(), `select (select xmin::text from task where task_id = $1) = (select xmin::text from lease where task_id = $1)`, id).Scan(&one)
		if err != nil {
			t.Fatal(err)
		}
		if one {
			return
		}
	}
	t.Error("each of 50 steps took a transaction after the one that stored it")
}

// Tasks and reports share transactions, but not each other's errors.
func TestNeitherTasksNorReportsFailWithTheOthers(t *testing.T) {
	for _, x := range []struct{ name, task, message string }{
		{"a task is refused", "a NUL \x00", "none"},
		{"a report is refused", "none", "a NUL \x00"},
		{"both are refused", "a NUL \x00", "a NUL \x00"},
	} {
		t.Run(x.name, func(t *testing.T) {
			db := pgtest.New(t)
			e := engineAlone(t, db)
			st := open(t, e, 10, "a")
			var reports []task.Report
			for range 3 {
				submit(t, e, spec("a"))
				reports = append(reports, task.Report{Token: nextStep(t, st).Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}})
			}
			reports[1].Outcome, reports[1].Failure.Message = task.PermanentFailure, x.message
			// While two transactions wait for their COMMITs, the next one's work gathers.
			g := closeGate(t, db, "task")
			held := []<-chan error{trySubmit(t, e, "held", spec("b"))}
			g.at(1)
			held = append(held, trySubmit(t, e, "held", spec("b")))
			g.at(2)
			names := []string{"before", x.task, "after"}
			var submits []<-chan error
			for _, name := range names {
				submits = append(submits, trySubmit(t, e, name, spec("b")))
			}
			answers := make(chan []engine.ReportAnswer, 1)
			go func() { answers <- e.Report(context.WithoutCancel(t.Context()), reports) }()
			waiting(t, e, 2+3+3)
			g.open()
			for _, done := range held {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			for i, done := range submits {
				if err := <-done; (err != nil) != strings.Contains(names[i], "\x00") {
					t.Errorf("task %d is answered %v", i, err)
				}
			}
			for i, a := range <-answers {
				if (a.Err != nil) != (i == 1 && strings.Contains(x.message, "\x00")) {
					t.Errorf("report %d is answered %v", i, a.Err)
				}
			}
		})
	}
}

// A transaction that carries much keeps the next one waiting, but not when it hangs.
func TestATransactionThatHangsHoldsUpNoOther(t *testing.T) {
	db := pgtest.New(t)
	e := engineAlone(t, db)
	st := open(t, e, 100, "a")
	var reports []task.Report
	for range 30 {
		submit(t, e, spec("a"))
		reports = append(reports, task.Report{Token: nextStep(t, st).Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}})
	}
	failure := reports[29]
	reports, failure.Outcome = reports[:29], task.RetryableFailure
	g := closeGate(t, db, "task")
	g.execute("create constraint trigger gate after insert on step_end deferrable initially deferred for each row execute function gate()")
	first := trySubmit(t, e, "held", spec("b"))
	g.at(1)
	second := trySubmit(t, e, "held", spec("b"))
	g.at(2)
	// All of these gather behind the two, and come into one transaction when those are ended.
	answers := make(chan []engine.ReportAnswer, 1)
	go func() { answers <- e.Report(context.WithoutCancel(t.Context()), reports) }()
	waiting(t, e, 2+29)
	g.cut()
	if <-first == nil || <-second == nil {
		t.Fatal("a task was stored whose transaction came to nothing")
	}
	g.at(1)
	within, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if a := e.Report(within, []task.Report{failure})[0]; a.Err != nil {
		t.Errorf("a report beside a transaction that hangs is answered %v", a.Err)
	}
	g.at(1)
	g.open()
	for i, a := range <-answers {
		if a.Err != nil {
			t.Errorf("report %d is answered %v", i, a.Err)
		}
	}
}

// Large tasks hold up neither reports nor small tasks, however many there are.
func TestLargeTasksHaveTransactionsOfTheirOwn(t *testing.T) {
	db := pgtest.New(t)
	e := engineAlone(t, db)
	st := open(t, e, 10, "a")
	submit(t, e, spec("a"))
	r := nextStep(t, st)
	g := closeGate(t, db, "task")
	// Small tasks pass.
	g.execute(`create or replace function gate() returns trigger language plpgsql security definer as $$
		begin
			if new.name = 'large' then perform pg_advisory_xact_lock_shared(1); end if;
			return null;
		end $$`)
	steps := make([]task.StepSpec, 150)
	for i := range steps {
		steps[i] = spec("b")
	}
	var stored []<-chan error
	for range 3 {
		stored = append(stored, trySubmit(t, e, "large", steps...))
	}
	g.at(2)
	waiting(t, e, 3)
	within, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if a := e.Report(within, []task.Report{{Token: r.Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}}})[0]; a.Err != nil {
		t.Errorf("a report beside large tasks is answered %v", a.Err)
	}
	submit(t, e, spec("a"))
	if got := nextStep(t, st); got.TaskName != "t" {
		t.Errorf("a step of %s came", got.TaskName)
	}
	// One that finds no place waits no longer than its caller.
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := e.Submit(gone, []*task.Submission{{Name: "large", Context: "{}", Steps: steps}}, false); err == nil {
		t.Error("a task was stored though its caller had left")
	}
	g.at(2)
	g.open()
	for _, done := range stored {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := e.Stats().Submitted; n != 5 {
		t.Errorf("%d tasks were counted, not 5", n)
	}
}
