package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// One token twice in a batch, and a neighbour beside it: the step is recorded once, each caller gets its own answer, and
// the join below counts one parent (S2).
func TestOneTokenTwiceInABatch(t *testing.T) {
	for _, x := range []struct {
		name   string
		second task.Report
		want   task.Reason // empty: already recorded
	}{
		{"with the same outcome", task.Report{Outcome: task.Success, Results: "{}", Digest: [32]byte{1}}, ""},
		{"with another outcome", task.Report{Outcome: task.Success, Results: `{"a":1}`, Digest: [32]byte{2}}, task.ResultConflict},
	} {
		t.Run(x.name, func(t *testing.T) {
			db := pgtest.New(t)
			e := newEngine(t, db)
			st := open(t, e, 10, "a", "b", "c", "d")
			id := submit(t, e, spec("a"), spec("b"), spec("c", 1, 2))
			submit(t, e, spec("d"))
			steps := map[string]*task.ReadyStep{}
			for range 3 {
				r := nextStep(t, st)
				steps[r.StepName] = r
			}
			first := task.Report{Token: steps["a"].Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}}
			x.second.Token = first.Token
			neighbour := task.Report{Token: steps["d"].Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}}
			answers := e.Report(t.Context(), []task.Report{first, x.second, neighbour})
			// Either may be the one that is recorded: they may share a transaction or meet in two.
			recorded := func(a engine.ReportAnswer) bool { return a.Reported != nil && !a.Reported.AlreadyRecorded }
			took, other := answers[0], answers[1]
			if !recorded(took) {
				took, other = other, took
			}
			if !recorded(took) || took.Reported.Attempts != 1 || recorded(other) {
				t.Errorf("S4: not one of the two is recorded: %+v, %+v", took, other)
			}
			switch {
			case x.want == "" && other.Err != nil:
				t.Errorf("S4: the other is answered %v", other.Err)
			case x.want != "" && reason(other.Err) != x.want:
				t.Errorf("S4: the other is answered %v", other.Err)
			}
			if a := answers[2]; a.Err != nil {
				t.Errorf("the neighbour is answered %v", a.Err)
			}
			var arrived, ready int
			err := db.Pool.QueryRow(t.Context(), `select (select coalesce(sum(arrived), 0) from join_wait where task_id = $1 and step_no = 3),
				(select count(*) from lease where task_id = $1 and step_no = 3) + (select count(*) from ready where task_id = $1 and step_no = 3)`,
				int64(id)).Scan(&arrived, &ready)
			if err != nil || arrived != 1 || ready != 0 {
				t.Errorf("S2: %d parents of the join have arrived, and it stands ready %d times (%v)", arrived, ready, err)
			}
		})
	}
}

// A value that the database refuses fails its own caller alone, however many reports share its transaction.
func TestAReportThatTheDatabaseRefusesFailsAlone(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	st := open(t, e, 10, "a")
	var reports []task.Report
	for range 7 {
		submit(t, e, spec("a"))
		reports = append(reports, task.Report{Token: nextStep(t, st).Token, Outcome: task.Success, Results: "{}", Digest: [32]byte{1}})
	}
	reports[3].Outcome, reports[3].Failure.Message = task.PermanentFailure, "a NUL \x00 in the middle"
	for i, a := range e.Report(t.Context(), reports) {
		if (a.Err != nil) != (i == 3) {
			t.Errorf("report %d is answered %v", i, a.Err)
		}
	}
}

// A task that the database refuses fails its own caller alone.
func TestASubmitThatTheDatabaseRefusesFailsAlone(t *testing.T) {
	e := newEngine(t, pgtest.New(t))
	subs := make([]*task.Submission, 5)
	done := make(chan error, len(subs))
	for i := range subs {
		subs[i] = &task.Submission{Name: "t", Context: "{}", Steps: []task.StepSpec{spec("a")}}
	}
	subs[2].Name = "a NUL \x00"
	for _, sub := range subs {
		go func() {
			_, err := e.Submit(t.Context(), []*task.Submission{sub}, false)
			if (err != nil) != strings.Contains(sub.Name, "\x00") {
				done <- errors.Join(errors.New("submit "+sub.Name), err)
				return
			}
			done <- nil
		}()
	}
	for range subs {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A row whose transaction commits late stands behind the cursor of the server that has claimed later rows meanwhile, and
// the word of it may be lost with the server that wrote it. In a lane that is in use it is found all the same (L2).
func TestARowCommittedBehindTheCursorIsFound(t *testing.T) {
	db := pgtest.New(t)
	// Nothing looks into all lanes now and then: a lane in use has to look after itself.
	e, run := restingEngine(t, db, nil)
	t.Cleanup(func() {
		over, cancel := context.WithCancel(context.Background())
		cancel()
		if err := run(over); err != nil {
			t.Error(err)
		}
	})
	st := open(t, e, 100, "a")
	// Its COMMITs wait at the gate.
	late := silentServer(t, db)
	submit(t, e, spec("a"))
	succeed(t, e, nextStep(t, st), "{}")
	g := closeGate(t, db, "ready")
	g.execute(`create or replace function gate() returns trigger language plpgsql security definer as $$
		begin
			if current_setting('application_name') = 'late' then perform pg_advisory_xact_lock_shared(1); end if;
			return null;
		end $$`)
	for range 2 {
		stored := make(chan error, 1)
		go func() { stored <- late("a") }()
		g.blocked()
		submit(t, e, spec("a"))
		if r := nextStep(t, st); r.TaskName != "t" {
			t.Fatalf("%s was granted before it was committed", r.TaskName)
		}
		g.open()
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
		submit(t, e, spec("a")) // the lane is in use
		within, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		for found := false; !found; {
			f, err := st.Next(within)
			if err != nil {
				t.Fatalf("L2: the row behind the cursor was not found: %v", err)
			}
			found = f.Step != nil && f.Step.TaskName == "late"
		}
		cancel()
		g.shut()
	}
}

// A server that is killed between its commit and the word of it leaves steps that nobody heard of, in lanes that nobody uses.
func TestALostWakeIsMadeGoodWithinASecond(t *testing.T) {
	db := pgtest.New(t)
	e := newEngine(t, db)
	silent := silentServer(t, db)
	unused := []string{"b", "c", "d"}
	st := open(t, e, 100, append(unused, "a")...)
	submit(t, e, spec("a"))
	// The claim that comes with it looks into all lanes, for the last time of its own accord.
	succeed(t, e, nextStep(t, st), "{}")
	for _, handler := range unused {
		if err := silent(handler); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		r := nextStep(t, st)
		if took := time.Since(began); r.TaskName != "late" || took > 2*time.Second {
			t.Errorf("L2: %s was found after %v", r.TaskName, took)
		}
	}
}

// silentServer gives a function that submits a task named late, of one step, as a server of which nobody hears. Its connections
// have the application_name late.
func silentServer(t *testing.T, db *pgtest.DB) func(handler string) error {
	t.Helper()
	config, err := pgxpool.ParseConfig(db.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.RuntimeParams["application_name"] = "late"
	other, err := store.Open(t.Context(), config, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	return func(handler string) error {
		ids := &store.TaskIDs{Store: other}
		id, err := ids.Take(t.Context(), 1)
		if err != nil {
			return err
		}
		ns, err := other.EnsureNamespace(t.Context(), "default")
		if err != nil {
			return err
		}
		lane, _, err := other.EnsureLane(t.Context(), store.Lane{NamespaceID: ns, Handler: handler, Priority: 1})
		if err != nil {
			return err
		}
		sub := &task.Submission{Name: "late", Context: "{}", Steps: []task.StepSpec{spec(handler)}}
		_, _, err = other.Submit(t.Context(), ns, []store.NewTask{{ID: id[0], Lanes: []int32{lane}, Submission: sub}}, false)
		return err
	}
}
