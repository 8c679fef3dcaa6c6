package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func init() {
	// The seed that a failure prints repeats it. The command line has the last word.
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.steps": "50", "rapid.checks": "75"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
}

// machines is how many databases the sequences of verbs are spread over; each runs -rapid.checks of them.
const machines = 4

// TestReadinessEqualsWhatAClaimGrantsNext drives the store with random sequences of verbs and holds it against the model
// after each of them (S13): states, counts, instants to the microsecond, and that the steps which the readiness table
// calls ready are those that a claim of everything is granted.
func TestReadinessEqualsWhatAClaimGrantsNext(t *testing.T) {
	rigs := make([]*rig, machines)
	t.Run("machines", func(t *testing.T) {
		for n := range rigs {
			rigs[n] = &rig{}
			t.Run(fmt.Sprint(n), func(t *testing.T) {
				t.Parallel()
				rigs[n].run(t)
			})
		}
	})
	if t.Failed() {
		return
	}
	sequences, reached := 0, map[string]int{}
	for _, r := range rigs {
		sequences += r.count
		for what, n := range r.reached {
			reached[what] += n
		}
	}
	t.Logf("reached %v", reached)
	t.Logf("reached store_sequences=%d", sequences)
	// A test that quietly does less proves less.
	for what, within := range due {
		if reached[what] == 0 && sequences >= within {
			t.Errorf("%d sequences never came to: %s", sequences, what)
		}
	}
}

// due are things that a test must have come to, each with the number of sequences that make sure of it.
var due = map[string]int{
	"report accepted": 50, "report already recorded": 200, "report RESULT_CONFLICT": 200, "report LEASE_LOST": 200,
	"late success accepted": 200, "late failure accepted": 200, "late report of a lost lease accepted": 400,
	"late report of a poisoned step accepted": 2000, "run timed out": 400, "deadline ended a run": 200,
	"deadline parked a waiting step": 200, "undelivered": 100, "lost lease": 200, "poisoned": 400, "released": 100,
	"released with delay": 200, "failed for good: permanent": 200, "failed for good: exhausted": 200, "skipped": 200,
	"clamped": 400, "task complete": 100, "task in error": 400, "task re-opened": 1000, "task cancelled": 200,
	"task purged": 400, "granted a due retry": 400, "granted past a dead session": 400, "retried": 200, "resolved": 200,
	"completed by hand": 200, "kept by a pause": 100, "resumed": 200, "kept from who does not know of a pause": 200,
}

func (r *rig) run(t *testing.T) {
	r.setUp(t)
	rapid.Check(t, func(rt *rapid.T) {
		x := r.begin(rt)
		x.submit(rt)
		rt.Repeat(map[string]func(*rapid.T){"": x.check, "verb": x.verb})
		x.finish()
	})
	// The second opinion: what the store wrote down of all sequences, replayed by somebody who knows neither it nor the model.
	found, err := history.Check(context.Background(), r.s.Cold, history.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range found.Violations {
		if i < 20 {
			t.Error(v)
		}
	}
}

// verb does one of the verbs that can do something now, drawn by weight.
func (x *machine) verb(t *rapid.T) {
	x.t = t
	runs := len(x.running()) > 0
	inError := len(x.m.find(func(s *modelStep) bool { return s.state() == "error" })) > 0
	overdue, unsettled := len(x.m.overdue()) > 0, slices.ContainsFunc(x.m.tasks, func(mt *modelTask) bool { return mt.mayEnd })
	verbs := map[string]func(*rapid.T){}
	var names []string
	may := func(possible bool, weight int, name string, do func(*rapid.T)) {
		if possible {
			verbs[name] = do
			names = append(names, slices.Repeat([]string{name}, weight)...)
		}
	}
	may(len(x.m.tasks) < 6, 3, "submit", x.submit)
	may(true, 6, "claim", x.claimSome)
	may(true, 6, "jump", x.jump)
	may(true, 1, "tick", x.tick)
	may(true, 1, "cancel", x.cancel)
	may(true, 1, "purge", x.purge)
	may(true, 1, "retry any", x.retry)
	may(true, 1, "session", x.session)
	may(true, 1, "pause", x.pause)
	may(len(x.m.pauses) > 0, 3, "resume", x.resume)
	may(runs, 8, "report", x.reportSome)
	may(runs, 3, "flush", x.flush)
	may(runs, 3, "heartbeat", x.heartbeat)
	may(runs, 3, "expire", x.expire)
	may(runs, 3, "lose", x.lose)
	may(runs, 2, "give back", x.giveBack)
	may(len(x.issued) > 0, 4, "report stale", x.reportStale)
	may(inError, 2, "retry", x.retry)
	may(inError, 2, "end", x.endStep)
	may(inError, 1, "bulk retry", x.bulkRetry)
	may(overdue, 4, "deadlines", x.enforce)
	may(unsettled, 6, "settle", x.settle)
	verbs[pick(x, "verb", names...)](t)
}

// rig is a database that sequences of verbs run on, one after the other, each in a namespace of its own.
type rig struct {
	s       *store.Store
	now     time.Time
	ids     *store.TaskIDs
	count   int
	reached map[string]int
}

func (r *rig) setUp(t *testing.T) {
	t.Helper()
	config, err := pgxpool.ParseConfig(pgtest.New(t).ConnString())
	if err != nil {
		t.Fatal(err)
	}
	r.reached = map[string]int{}
	r.now = time.Date(2026, 10, 25, 0, 59, 58, 123_456_000, time.UTC) // an hour that Europe/Berlin has twice
	if r.s, err = store.Open(context.Background(), config, 2); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.s.Close)
	r.s.At = func() *time.Time { return &r.now }
	r.ids = &store.TaskIDs{Store: r.s}
}

// machine is one sequence.
type machine struct {
	*rig
	m        *model
	t        *rapid.T // of the action under way
	ns       int32
	lanes    []int32
	sessions []store.SessionFence // that may be granted to
	dead     store.SessionFence   // has been taken over
	watcher  store.SessionFence
	keys     map[string]*modelTask
	issued   []issued
	serial   int
	before   store.Pauses        // what a server knew before the last pause or resume
	errors   map[*modelTask]bool // tasks whose end in error was recorded when they were last looked at
}

// issued is a token that a claim has handed out.
type issued struct {
	*dispatch
	token task.Token
}

// priorities are drawn from for each step; one handler has lanes for some.
var (
	machineHandlers   = []string{"a", "b"}
	machinePriorities = []int{0, 1, 3}
)

func (r *rig) begin(t *rapid.T) *machine {
	r.count++
	r.now = r.now.Add(time.Hour)
	x := &machine{rig: r, t: t, m: &model{now: r.now, deadlines: map[modelDeadline]bool{}, pauses: map[string]modelPause{}, fences: map[int32]int{}}, keys: map[string]*modelTask{}, errors: map[*modelTask]bool{}}
	var err error
	x.ns, err = r.s.EnsureNamespace(context.Background(), fmt.Sprintf("n%d", r.count))
	x.ok(err)
	for _, h := range machineHandlers {
		for _, p := range machinePriorities {
			id, _, err := r.s.EnsureLane(context.Background(), store.Lane{NamespaceID: x.ns, Handler: h, Priority: p})
			x.ok(err)
			x.lanes = append(x.lanes, id)
		}
	}
	x.dead = x.open("dead", true)
	x.open("dead", true)
	x.sessions = []store.SessionFence{x.open("beats", true), x.open("silent", false)}
	x.watcher = x.open("watcher", true)
	return x
}

// finish ends every task, so that nothing of this sequence expires or comes due in the next.
func (x *machine) finish() {
	ctx := context.Background()
	for _, mt := range x.m.tasks {
		_, _, err := x.s.CancelTask(ctx, task.ID(mt.id), operator)
		x.reason(err)
	}
	x.now = x.now.Add(time.Hour)
	due, err := x.s.DueDeadlines(ctx, 1000)
	x.ok(err)
	for _, d := range due {
		_, err := x.s.EnforceDeadline(ctx, d)
		x.ok(err)
	}
}

func (x *machine) open(worker string, beats bool) store.SessionFence {
	id, epoch, _, err := x.s.OpenSession(context.Background(), x.ns, [16]byte{1}, store.Session{
		WorkerID: worker, InstanceID: "1", MaxInFlight: 100, Handlers: machineHandlers,
	})
	x.ok(err)
	x.m.fences[id] = x.m.revision
	f := store.SessionFence{SessionID: id, Epoch: epoch, DeliveryTimeout: 5 * sec, Beats: beats}
	if !beats {
		f.DeliveryTimeout = 2 * sec
	}
	return f
}

func (x *machine) ok(err error) {
	if err != nil {
		x.t.Helper()
		x.t.Fatal(err)
	}
}

// act begins an action.
func (x *machine) act(t *rapid.T) context.Context {
	x.t = t
	x.m.woken = map[int32]bool{}
	return context.Background()
}

// heed checks what a verb says it changed: each lane in which something became runnable is named, so that nobody waits
// for the sweep, and each task that may have come to its end.
func (x *machine) heed(c store.Change) {
	x.t.Helper()
	for lane := range x.m.woken {
		if !slices.ContainsFunc(c.Wake, func(w store.Wake) bool { return w.LaneID == lane }) {
			x.t.Fatalf("lane %d holds something new, and the wakes are %+v", lane, c.Wake)
		}
	}
	for _, id := range c.Settle {
		x.task(int64(id)).mayEnd = true
	}
}

func (x *machine) task(id int64) *modelTask {
	for _, t := range x.m.tasks {
		if t.id == id {
			return t
		}
	}
	x.t.Helper()
	x.t.Fatalf("no task %d was submitted", id)
	return nil
}

func (x *machine) stepOf(id task.StepID) *modelStep { return x.task(int64(id.Task())).steps[id.No()-1] }

// reason is the reason of a refusal; empty for none. Any other error fails the test.
func (x *machine) reason(err error) string {
	x.t.Helper()
	var refusal *task.Error
	if errors.As(err, &refusal) {
		return string(refusal.Reason)
	}
	x.ok(err)
	return ""
}

func same[T comparable](x *machine, what string, got, want T) {
	if got != want {
		x.t.Helper()
		x.t.Fatalf("%s: the store says %v, the model %v", what, got, want)
	}
}

func pick[T any](x *machine, what string, from ...T) T {
	return rapid.SampledFrom(from).Draw(x.t, what)
}

// some draws up to n of a list, in the list's order.
func some[T any](x *machine, what string, n int, from []T) []T {
	if len(from) == 0 {
		return nil
	}
	at := rapid.SliceOfNDistinct(rapid.IntRange(0, len(from)-1), 1, min(n, len(from)), rapid.ID[int]).Draw(x.t, what)
	slices.Sort(at)
	chosen := make([]T, len(at))
	for i, k := range at {
		chosen[i] = from[k]
	}
	return chosen
}

func (x *machine) chance(what string, percent int) bool {
	return rapid.IntRange(0, 99).Draw(x.t, what) >= 100-percent
}

func machineDigest(s string) (d [32]byte) { return sha256.Sum256([]byte(s)) }

// submit stores one or two tasks, some of them under a key that was used before.
func (x *machine) submit(t *rapid.T) {
	ctx := x.act(t)
	n, all := pick(x, "tasks", 1, 1, 2), x.chance("all or nothing", 30)
	ids, err := x.ids.Take(ctx, n)
	x.ok(err)
	tasks, subs := make([]*modelTask, n), make([]store.NewTask, n)
	for i, id := range ids {
		tasks[i] = &modelTask{id: int64(id), key: pick(x, "key", "", "", "k1", "k2"), digest: pick(x, "digest", "d", "d", "e")}
		subs[i] = x.drawTask(tasks[i])
	}
	var answers []store.SubmitAnswer
	var change store.Change
	if !all && x.chance("in a turn", 50) {
		f, turnErr := x.s.Turn(ctx, x.ns, subs, nil, nil)
		answers, change, err = f.Submitted, f.Change, turnErr
	} else {
		answers, change, err = x.s.Submit(ctx, x.ns, subs, all)
	}
	x.ok(err)
	before, refused := map[string]*modelTask{}, false
	for key, first := range x.keys {
		before[key] = first
	}
	var fresh []*modelTask
	for i, mt := range tasks {
		first := x.keys[mt.key]
		switch {
		case mt.key == "", first == nil:
			if mt.key != "" {
				x.keys[mt.key] = mt
			}
			fresh = append(fresh, mt)
			same(x, "id", int64(answers[i].TaskID), mt.id)
		case first.digest == mt.digest:
			same(x, "known id", answers[i].Submitted, task.Submitted{TaskID: task.ID(first.id), AlreadySubmitted: true})
		default:
			refused = true
			if answers[i].Refused == nil || answers[i].Refused.Reason != task.IdempotencyKeyReused {
				t.Fatalf("a key used for another body is answered %+v", answers[i])
			}
		}
	}
	if refused && all {
		x.keys = before
		same(x, "wakes of a refused batch", len(change.Wake), 0)
		return
	}
	for _, mt := range fresh {
		x.m.submit(mt)
	}
	x.heed(change)
}

// drawTask draws a graph with its policies, and writes it down for the store.
func (x *machine) drawTask(mt *modelTask) store.NewTask {
	sub := &task.Submission{Name: "t", Context: "{}", IdempotencyKey: mt.key, Digest: []byte(mt.digest)}
	if d := pick[time.Duration](x, "not before", 0, 0, 0, -sec, 3*sec); d != 0 {
		mt.notBefore = x.now.Add(d)
		sub.NotBefore = &mt.notBefore
	}
	if d := pick[time.Duration](x, "deadline", 0, 0, 0, 0, 12*sec); d != 0 {
		mt.deadline = x.now.Add(d)
		sub.Deadline = &mt.deadline
	}
	nt := store.NewTask{ID: task.ID(mt.id), Submission: sub}
	steps := pick(x, "steps", 1, 2, 3, 4, 5)
	for no := 1; no <= steps; no++ {
		lane := pick(x, "lane", 0, 1, 2, 3, 4, 5)
		s := &modelStep{no: no, name: fmt.Sprintf("s%d", no), lane: x.lanes[lane], handler: machineHandlers[lane/3], policy: x.drawPolicy()}
		for p := 1; p < no; p++ {
			if x.chance("parent", 40) {
				s.parents = append(s.parents, p)
			}
		}
		mt.steps = append(mt.steps, s)
		nt.Lanes = append(nt.Lanes, s.lane)
		sub.Steps = append(sub.Steps, s.spec(machineHandlers[lane/3], machinePriorities[lane%3]))
	}
	return nt
}

func (x *machine) drawPolicy() modelPolicy {
	p := modelPolicy{limit: 3, retryable: true, jitter: 0.1, maxRetryAfter: 24 * time.Hour, maxLost: 3}
	if x.chance("default policy", 30) {
		return p
	}
	p.limit, p.retryable = pick(x, "retry_limit", 1, 2, 3, 4, 12), !x.chance("not retryable", 10)
	p.curve, p.jitter = rapid.IntRange(0, len(curves)-1).Draw(x.t, "curve"), pick(x, "jitter", 0, 0, 0.5, 1)
	p.maxRetryAfter = pick[time.Duration](x, "max_retry_after", 24*time.Hour, 4*sec)
	p.lease = pick[time.Duration](x, "lease", 0, 0, 6*sec)
	p.runTimeout = pick[time.Duration](x, "timeout", 0, 0, 4*sec, 40*sec)
	p.maxElapsed = pick[time.Duration](x, "max_elapsed", 0, 0, 0, 9*sec)
	p.maxLost = pick(x, "max_lost_leases", 1, 2, 3)
	if x.chance("final codes", 20) {
		p.finalCodes = []string{`a "quoted", \ code`, "FINAL"}
	}
	return p
}

func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func unlessZero(d time.Duration) *time.Duration {
	if d == 0 {
		return nil
	}
	return &d
}

func (s *modelStep) spec(handler string, priority int) task.StepSpec {
	p := s.policy
	spec := task.StepSpec{Name: s.name, Handler: handler, Priority: priority, Parents: s.parents, Policy: task.Policy{
		RetryLimit: p.limit, Retryable: p.retryable, Initial: curves[p.curve].initial, Multiplier: curves[p.curve].multiplier,
		Max: curves[p.curve].maximum, Lease: unlessZero(p.lease), RunTimeout: unlessZero(p.runTimeout),
		MaxElapsed: unlessZero(p.maxElapsed), MaxLostLeases: p.maxLost, NonRetryable: p.finalCodes,
	}}
	if p.jitter != 0.1 {
		spec.Jitter = &p.jitter
	}
	if p.maxRetryAfter != 24*time.Hour {
		spec.MaxRetryAfter = &p.maxRetryAfter
	}
	return spec
}

// jump moves the clock on: by a little, or to the instant at which the next thing happens, or just before it.
func (x *machine) jump(t *rapid.T) {
	x.act(t)
	next := x.m.next()
	switch {
	case x.chance("by", 40) || next.IsZero():
		x.now = x.now.Add(pick(x, "duration", time.Microsecond, 700*ms, 3*sec, 11*sec, 70*sec))
	case x.chance("just before", 25):
		x.now = next.Add(-time.Microsecond)
	default:
		x.now = next
	}
	x.m.now = x.now
}

// next is the first instant after now at which time changes something; zero: there is none.
func (m *model) next() (next time.Time) {
	at := func(t time.Time) {
		if t.After(m.now) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, s := range m.find(func(*modelStep) bool { return true }) {
		if s.place == isWaiting {
			at(s.runnableAt)
		}
		if l := s.lease; l != nil {
			at(l.until)
			at(l.stop)
			if !l.confirmed.IsZero() && l.runTimeout > 0 {
				at(l.confirmed.Add(l.runTimeout))
			}
		}
	}
	for d := range m.deadlines {
		at(d.due)
	}
	for _, p := range m.pauses {
		at(p.until)
	}
	return next
}
