package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a database of its own with one namespace, one worker session, and a clock that stands still.
type world struct {
	*testing.T
	db      *pgtest.DB
	s       *store.Store
	ns      int32
	ids     *store.TaskIDs
	session store.SessionFence
	now     time.Time
	held    map[task.StepID]store.Grant // granted by run, not asked for yet
}

// epoch is where a world's clock starts: not a round number of anything, in no daylight-saving gap.
var epoch = time.Date(2026, 3, 14, 15, 9, 26, 535_897_000, time.UTC)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, db: pgtest.New(t), now: epoch, held: map[task.StepID]store.Grant{}}
	config, err := pgxpool.ParseConfig(w.db.ConnString())
	if err != nil {
		t.Fatal(err)
	}
	// As a server does: the right to read and write rows, and no more.
	config.ConnConfig.RuntimeParams["role"] = "tasker_runtime"
	if w.s, err = store.Open(context.WithoutCancel(t.Context()), config, 4); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.s.Close)
	w.s.At = func() *time.Time { return &w.now }
	w.ids = &store.TaskIDs{Store: w.s}
	if w.ns, err = w.s.EnsureNamespace(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	w.session = w.open("worker")
	return w
}

func (w *world) open(workerID string) store.SessionFence {
	w.Helper()
	id, epoch, _, err := w.s.OpenSession(w.Context(), w.ns, [16]byte{1}, store.Session{
		WorkerID: workerID, InstanceID: "1", MaxInFlight: 10_000, Handlers: []string{"work"},
	})
	w.ok(err)
	return store.SessionFence{SessionID: id, Epoch: epoch, DeliveryTimeout: 5 * time.Second, Beats: true}
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// refused demands a refusal.
func (w *world) refused(err error, reason task.Reason) {
	w.Helper()
	var refusal *task.Error
	if !errors.As(err, &refusal) || refusal.Reason != reason {
		w.Errorf("got %v, want %s", err, reason)
	}
}

// pass moves the clock.
func (w *world) pass(d time.Duration) { w.now = w.now.Add(d) }

// step is a step of a submit: named by its place, jitter 0, so that delays are exact.
func step(parents ...int) task.StepSpec {
	none := 0.0
	return task.StepSpec{
		Handler: "work", Priority: 1, Parents: parents,
		Policy: task.Policy{RetryLimit: 3, Retryable: true, MaxLostLeases: 3, Jitter: &none},
	}
}

// submit stores a task; its steps are named s1, s2, …
func (w *world) submit(steps ...task.StepSpec) task.ID {
	w.Helper()
	return w.submitAs(task.Submission{}, steps...)
}

func (w *world) submitAs(sub task.Submission, steps ...task.StepSpec) task.ID {
	w.Helper()
	ids, err := w.ids.Take(w.Context(), 1)
	w.ok(err)
	if sub.Name == "" {
		sub.Name = "task"
	}
	sub.Namespace, sub.Context, sub.Steps = "default", `{"a":1}`, steps
	lanes := make([]int32, len(steps))
	for i := range steps {
		if steps[i].Name == "" {
			steps[i].Name = fmt.Sprintf("s%d", i+1)
		}
		lane, _, err := w.s.EnsureLane(w.Context(), store.Lane{
			NamespaceID: w.ns, Handler: steps[i].Handler, Circuit: steps[i].Circuit, Priority: steps[i].Priority,
		})
		w.ok(err)
		lanes[i] = lane
	}
	if len(sub.Digest) == 0 {
		sub.Digest = []byte("digest")
	}
	answers, _, err := w.s.Submit(w.Context(), w.ns, []store.NewTask{{ID: ids[0], Lanes: lanes, Submission: &sub}}, true)
	w.ok(err)
	if answers[0].Refused != nil {
		w.Fatal(answers[0].Refused)
	}
	return answers[0].TaskID
}

// claim takes up to n steps of every lane, but for those that are paused. A circuit stands behind one lane at most.
func (w *world) claim(n int) []store.Grant {
	w.Helper()
	rows, err := w.db.Pool.Query(w.Context(), `select lane_id, coalesce(circuit_id, 0), namespace.pauses from lane join namespace using (namespace_id)
		where not exists (select from pauses_over(lane.namespace_id, lane.handler, $1)) order by 1`, w.now)
	w.ok(err)
	claim := &store.Claim{Sessions: []store.SessionFence{w.session}}
	defer rows.Close()
	for rows.Next() {
		want := store.LaneWant{Slots: slices.Repeat([]int32{w.session.SessionID}, n)}
		w.ok(rows.Scan(&want.LaneID, &want.CircuitID, &claim.Pauses))
		claim.Lanes = append(claim.Lanes, want)
		if want.CircuitID != 0 {
			claim.Circuits = append(claim.Circuits, store.CircuitWant{CircuitID: want.CircuitID, Exclusive: true, LaneID: want.LaneID})
		}
	}
	w.ok(rows.Err())
	grants, _, err := w.s.Claim(w.Context(), w.ns, claim)
	w.ok(err)
	return grants
}

// run gives the grant of a step, claiming all that is ready if it must.
func (w *world) run(id task.StepID) store.Grant {
	w.Helper()
	if _, ok := w.held[id]; !ok {
		for _, g := range w.claim(1000) {
			w.held[g.Step.Token.Step] = g
		}
	}
	g, ok := w.held[id]
	if !ok {
		w.Fatalf("step %s was not granted", id)
	}
	delete(w.held, id)
	return g
}

// report reports an outcome. with may change the report.
func (w *world) report(g store.Grant, outcome task.Outcome, with ...func(*task.Report)) task.Reported {
	w.Helper()
	r := task.Report{Token: g.Step.Token, Outcome: outcome}
	if outcome == task.Success {
		r.Results = `{"ok":true}`
	} else {
		r.Failure = task.Failure{ErrorCode: "BROKEN", Message: "it broke"}
	}
	for _, f := range with {
		f(&r)
	}
	r.Digest = sha256.Sum256(fmt.Append(nil, r.Outcome, r.Results, r.Failure, r.Hint.After, r.Hint.At))
	f, err := w.s.Turn(w.Context(), w.ns, nil, []task.Report{r}, nil)
	w.ok(err)
	if f.Answers[0].Reported == nil {
		w.Fatalf("the report was not taken: %+v", f.Answers[0])
	}
	w.settleAll(f.Change)
	return *f.Answers[0].Reported
}

func (w *world) settleAll(c store.Change) {
	w.Helper()
	for _, id := range c.Settle {
		_, err := w.s.Settle(w.Context(), id)
		w.ok(err)
	}
}

func (w *world) succeed(id task.StepID) { w.Helper(); w.report(w.run(id), task.Success) }

func (w *world) fail(id task.StepID, outcome task.Outcome) { w.Helper(); w.report(w.run(id), outcome) }

// exhaust makes a step fail for good by failing retry_limit times.
func (w *world) exhaust(id task.StepID) {
	w.Helper()
	for !w.step(id).Parked() {
		w.fail(id, task.RetryableFailure)
		w.pass(time.Hour)
	}
}

// view is a step as the store reads it.
type view struct{ task.StepView }

// Parked tells whether the step failed for good.
func (v view) Parked() bool { return v.ParkedReason != "" }

func (w *world) step(id task.StepID) view {
	w.Helper()
	found, err := w.s.Steps(w.Context(), id.Task(), []int{id.No()}, true)
	w.ok(err)
	if len(found) != 1 {
		w.Fatalf("step %s: found %d", id, len(found))
	}
	return view{found[0]}
}

func (w *world) task(id task.ID) task.View {
	w.Helper()
	found, err := w.s.Tasks(w.Context(), []task.ID{id}, true)
	w.ok(err)
	if len(found) != 1 {
		w.Fatalf("task %s: found %d", id, len(found))
	}
	return found[0]
}

// value reads one value.
func value[T any](w *world, sql string, args ...any) (v T) {
	w.Helper()
	if err := w.db.Pool.QueryRow(w.Context(), sql, args...).Scan(&v); err != nil {
		w.Fatalf("%s: %v", sql, err)
	}
	return v
}

// equal demands that two values are the same.
func equal[T comparable](w *world, what string, got, want T) {
	w.Helper()
	if got != want {
		w.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// sound demands what must hold of every task at every instant: readiness is what a claim grants, the buckets sum to the
// total, the state is what the steps make it, and each step stands in one place.
func (w *world) sound(id task.ID) {
	w.Helper()
	v := w.task(id)
	x := v.Execution
	equal(w, "sum of the buckets", x.Pending+x.Ready+x.InProgress+x.WaitingForRetry+x.Failed+x.Completed+x.Cancelled, x.Total)
	steps, err := w.s.AllSteps(w.Context(), id)
	w.ok(err)
	var ready, ended, running int
	for _, s := range steps {
		if s.ReadyForExecution {
			ready++
			if !s.RetryEligible || !s.DependenciesSatisfied {
				w.Errorf("step %s is ready, but retry_eligible %v, dependencies_satisfied %v", s.Name, s.RetryEligible, s.DependenciesSatisfied)
			}
		}
		switch s.State {
		case task.StepComplete, task.StepCancelled, task.StepResolvedManually:
			ended++
		case task.StepInProgress:
			running++
		}
	}
	equal(w, "ready steps of the context and of the readiness table", x.Ready, ready)
	equal(w, "steps in progress of the context and of the readiness table", x.InProgress, running)
	equal(w, "ended steps", x.Completed+x.Cancelled, ended)
	double := value[int](w, `select count(*) from (
		select step_no from (
			select step_no from ready where task_id = $1 union all select step_no from backoff where task_id = $1
			union all select step_no from lease where task_id = $1 union all select step_no from parked where task_id = $1
			union all select step_no from step_end where task_id = $1) standing
		group by 1 having count(*) > 1) double`, id)
	equal(w, "steps that stand in two places", double, 0)
	if end := value[*string](w, "select (select state::text from task_end where task_id = $1)", id); end != nil {
		equal(w, "recorded end", *end, string(v.State))
	}
}
