package history_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/pgtest"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// busy is a store on which several workers, clients and operators act at random, all at once, by the database's own clock.
// Delays and leases are milliseconds, so that everything that time can do to a step happens within seconds.
type busy struct {
	*testing.T
	db   *pgtest.DB
	s    *store.Store
	ns   int32
	lane int32
	ids  *store.TaskIDs

	mu    sync.Mutex
	tasks []task.ID
	done  map[string]int // what happened, by name
}

const (
	deliveryTimeout = 40 * time.Millisecond
	leaseDuration   = 60 * time.Millisecond
	maxInFlight     = 6
)

func newBusy(t *testing.T) *busy {
	t.Helper()
	b := &busy{T: t, db: pgtest.New(t), done: map[string]int{}}
	config, err := pgxpool.ParseConfig(b.db.ConnString())
	b.ok(err)
	config.MaxConns = 8
	b.s, err = store.Open(context.WithoutCancel(t.Context()), config, 8)
	b.ok(err)
	t.Cleanup(b.s.Close)
	b.ns, err = b.s.EnsureNamespace(t.Context(), "default")
	b.ok(err)
	b.lane, _, err = b.s.EnsureLane(t.Context(), store.Lane{NamespaceID: b.ns, Handler: "work", Priority: 1})
	b.ok(err)
	b.ids = &store.TaskIDs{Store: b.s}
	return b
}

func (b *busy) ok(err error) {
	b.Helper()
	if err != nil {
		b.Error(err)
	}
}

// note counts what a verb did; a refusal is something that happened, any other error is a fault.
func (b *busy) note(what string, err error) {
	b.Helper()
	var refused *task.Error
	if errors.As(err, &refused) {
		what += " " + string(refused.Reason)
	} else if err != nil {
		b.Errorf("%s: %v", what, err)
	}
	b.mu.Lock()
	b.done[what]++
	b.mu.Unlock()
}

func pointer[T any](v T) *T { return &v }

// policies are drawn for each step: default backoff is too slow for a test, so every one has its own.
func policyOf(rng *rand.Rand) task.Policy {
	p := task.Policy{
		RetryLimit: 1 + rng.IntN(4), Retryable: rng.IntN(8) > 0, MaxLostLeases: 1 + rng.IntN(3), Initial: pointer(time.Duration(1+rng.IntN(20)) * time.Millisecond),
		Multiplier: pointer(1 + 2*rng.Float64()), Max: pointer(40 * time.Millisecond), Lease: pointer(leaseDuration),
		MaxRetryAfter: pointer(30 * time.Millisecond), NonRetryable: []string{"FINAL"},
	}
	if rng.IntN(3) == 0 {
		p.RunTimeout = pointer(50 * time.Millisecond)
	}
	if rng.IntN(6) == 0 {
		p.MaxElapsed = pointer(150 * time.Millisecond)
	}
	if rng.IntN(2) == 0 {
		p.Jitter = pointer(rng.Float64())
	}
	return p
}

func (b *busy) submit(rng *rand.Rand) {
	var batch []store.NewTask
	ids, err := b.ids.Take(b.Context(), 1+rng.IntN(3))
	b.ok(err)
	for _, id := range ids {
		sub := &task.Submission{Namespace: "default", Name: "t", Context: "{}", IdempotencyKey: id.String(), Digest: []byte{1}}
		switch rng.IntN(8) {
		case 0:
			sub.NotBefore = pointer(time.Now().Add(time.Duration(rng.IntN(60)) * time.Millisecond))
		case 1:
			sub.Deadline = pointer(time.Now().Add(time.Duration(50+rng.IntN(200)) * time.Millisecond))
		}
		n := 1 + rng.IntN(7)
		for no := 1; no <= n; no++ {
			s := task.StepSpec{Name: fmt.Sprint("s", no), Handler: "work", Priority: 1, Policy: policyOf(rng)}
			for parent := 1; parent < no; parent++ {
				if rng.IntN(3) == 0 {
					s.Parents = append(s.Parents, parent)
				}
			}
			sub.Steps = append(sub.Steps, s)
		}
		batch = append(batch, store.NewTask{ID: id, Lanes: slices.Repeat([]int32{b.lane}, n), Submission: sub})
	}
	answers, _, err := b.s.Submit(b.Context(), b.ns, batch, true)
	b.note("submit", err)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range answers {
		b.tasks = append(b.tasks, a.TaskID)
	}
}

// anyStep draws a step: one in error where there is one, else, or now and then, any of a recent task.
func (b *busy) anyStep(rng *rand.Rand) task.StepID {
	var step int64
	if rng.IntN(4) > 0 {
		const inError = `select coalesce((select task_id + step_no from (
			select task_id, step_no from parked union all select task_id, step_no from backoff where failures > 0) e order by random() limit 1), 0)`
		b.ok(b.s.Cold.QueryRow(b.Context(), inError).Scan(&step))
	}
	if step != 0 {
		return task.StepID(step)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	recent := b.tasks[max(0, len(b.tasks)-40):]
	return recent[rng.IntN(len(recent))].Step(1 + rng.IntN(7))
}

// fill submits while workers have little to do.
func (b *busy) fill(rng *rand.Rand) {
	var waiting int
	b.ok(b.s.Cold.QueryRow(b.Context(), "select count(*) from ready").Scan(&waiting))
	if waiting < 20 {
		b.submit(rng)
	}
}

// worker is one session with the tokens it was granted, those it has lost without knowing included.
type worker struct {
	*busy
	fence  store.SessionFence
	tokens []task.Token
}

func (b *busy) worker(name string) *worker {
	b.Helper()
	id, epoch, _, err := b.s.OpenSession(b.Context(), b.ns, [16]byte{1}, store.Session{WorkerID: name, InstanceID: "1", MaxInFlight: maxInFlight, Handlers: []string{"work"}})
	b.ok(err)
	return &worker{busy: b, fence: store.SessionFence{SessionID: id, Epoch: epoch, DeliveryTimeout: deliveryTimeout, Beats: true}}
}

// room is how many more leases the session may be granted: it asks the table, as a server that has lost its memory would.
func (w *worker) room() int {
	held, err := w.s.SessionLeases(w.Context(), w.ns, w.fence.SessionID)
	w.ok(err)
	return maxInFlight - len(held)
}

func (w *worker) report(rng *rand.Rand, token task.Token) task.Report {
	r := task.Report{Token: token, Outcome: task.Success, Results: "{}"}
	switch rng.IntN(10) {
	case 0:
		r.Outcome, r.Failure = task.PermanentFailure, task.Failure{ErrorCode: "BROKEN"}
	case 1, 2, 3, 4:
		r.Outcome, r.Failure = task.RetryableFailure, task.Failure{ErrorCode: []string{"BUSY", "FINAL", ""}[rng.IntN(3)]}
		r.Skip = rng.IntN(4) == 0
		switch rng.IntN(6) {
		case 0:
			r.Hint = task.Hint{Source: task.FromRetryAfter, After: pointer(time.Duration(rng.IntN(60)) * time.Millisecond)}
		case 1:
			r.Hint = task.Hint{Source: task.FromRetryAt, At: pointer(time.Now().Add(time.Duration(rng.IntN(60)-20) * time.Millisecond))}
		case 2:
			r.Hint = task.ParseRetryAfter([]string{"0", "-5", "soon", "99999999999999999999"}[rng.IntN(4)], time.Now())
		}
	}
	r.Digest = sha256.Sum256(fmt.Append(nil, r.Outcome, r.Failure, r.Skip, r.Hint.Source))
	return r
}

func (w *worker) act(rng *rand.Rand) {
	var reports []task.Report
	var beats []store.Beat
	var back []store.HeldLease
	kept := w.tokens[:0]
	for _, token := range w.tokens {
		switch n := rng.IntN(12); {
		case n < 3:
			reports = append(reports, w.report(rng, token))
		case n < 6:
			beats = append(beats, store.Beat{Token: token})
			kept = append(kept, token)
		case n < 7:
			back = append(back, store.HeldLease{Step: token.Step, Nonce: token.Nonce, LaneID: w.lane, Delay: time.Duration(rng.IntN(2)*rng.IntN(20)) * time.Millisecond})
			if rng.IntN(2) == 0 {
				kept = append(kept, token) // and reports it after all
			}
		default:
			kept = append(kept, token)
		}
	}
	w.tokens = kept
	var claim *store.Claim
	if room := w.room(); room > 0 && rng.IntN(3) > 0 {
		claim = &store.Claim{
			Lanes:    []store.LaneWant{{LaneID: w.lane, Slots: slices.Repeat([]int32{w.fence.SessionID}, 1+rng.IntN(room))}},
			Sessions: []store.SessionFence{w.fence},
		}
	}
	if len(reports) > 0 || claim != nil {
		w.flush(reports, claim)
	}
	if len(beats) > 0 {
		_, err := w.s.Heartbeat(w.Context(), w.ns, beats)
		w.note("heartbeat", err)
	}
	if len(back) > 0 {
		_, change, err := w.s.GiveBack(w.Context(), w.ns, back, task.Released)
		w.note("release", err)
		w.settle(change)
	}
}

func (w *worker) flush(reports []task.Report, claim *store.Claim) {
	f, err := w.s.Turn(w.Context(), w.ns, nil, reports, claim)
	w.note("flush", err)
	w.settle(f.Change)
	for _, g := range f.Grants {
		w.tokens = append(w.tokens, g.Step.Token)
	}
	for i, a := range f.Answers {
		if !a.Late {
			continue
		}
		answer, change, err := w.s.ReportLate(w.Context(), &reports[i])
		if err == nil && answer.Refused != nil {
			err = answer.Refused
		}
		w.note("late report", err)
		w.settle(change)
	}
}

func (b *busy) settle(c store.Change) {
	for _, id := range c.Settle {
		_, err := b.s.Settle(b.Context(), id)
		b.note("settle", err)
	}
}

// sweep does what time alone brings about.
func (b *busy) sweep() {
	expired, err := b.s.ExpiredLeases(b.Context(), 100)
	b.ok(err)
	if len(expired) > 0 {
		_, change, err := b.s.Expire(b.Context(), b.ns, expired)
		b.note("expire", err)
		b.settle(change)
	}
	due, err := b.s.DueDeadlines(b.Context(), 100)
	b.ok(err)
	for _, d := range due {
		change, err := b.s.EnforceDeadline(b.Context(), d)
		b.note("deadline", err)
		b.settle(change)
	}
}

func (b *busy) operate(rng *rand.Rand) {
	act := store.Act{Actor: "operator", Reason: "test"}
	step := b.anyStep(rng)
	id := step.Task()
	var change store.Change
	var err error
	what := ""
	switch rng.IntN(16) {
	case 0:
		what = "cancel"
		_, change, err = b.s.CancelTask(b.Context(), id, act)
	case 1, 2:
		what = "resolve"
		_, change, err = b.s.ResolveStep(b.Context(), step, act)
	case 3, 4:
		what = "complete"
		_, change, err = b.s.CompleteStep(b.Context(), step, "{}", act)
	case 5:
		what = "purge"
		change, err = b.s.PurgeTask(b.Context(), id, act)
	default:
		what = "retry"
		_, change, err = b.s.RetryStep(b.Context(), step, act)
	}
	b.note(what, err)
	b.settle(change)
}

// Whatever happens on a store, all at once, its record holds: in the middle of it and at its end.
func TestStoreHolds(t *testing.T) {
	b := newBusy(t)
	workers := []*worker{b.worker("w1"), b.worker("w2"), b.worker("w3")}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	length := 4 * time.Second
	if testing.Short() {
		length = time.Second
	}
	b.submit(rand.New(rand.NewPCG(seed, 0)))
	end := time.Now().Add(length)
	var running sync.WaitGroup
	run := func(n uint64, act func(*rand.Rand)) {
		running.Go(func() {
			for rng := rand.New(rand.NewPCG(seed, n)); time.Now().Before(end) && !t.Failed(); {
				act(rng)
			}
		})
	}
	for i, w := range workers {
		run(uint64(i), w.act)
	}
	run(10, b.fill)
	run(11, b.operate)
	run(12, b.operate)
	run(13, func(*rand.Rand) { b.sweep() })
	run(14, func(*rand.Rand) {
		r, err := history.Check(t.Context(), b.db.Pool, history.Options{Sample: 20})
		b.ok(err)
		for _, v := range r.Violations {
			t.Error(v)
		}
		b.note("check", nil)
	})
	running.Wait()

	r, err := history.Check(t.Context(), b.db.Pool, history.Options{Sample: -1})
	b.ok(err)
	for _, v := range r.Violations[:min(20, len(r.Violations))] {
		t.Error(v)
	}
	t.Logf("%+v", r)
	t.Logf("%v", b.done)
	// A run in which little happened would prove little.
	for what, count := range map[string]int{
		"tasks": r.Tasks, "dispatches": r.Dispatches, "attempts": r.Attempts, "failures": r.Failures, "lost leases": r.LostLeases,
		"undelivered": r.Undelivered, "released": r.Released, "retried": r.Retried, "late reports accepted": r.LateAccepted, "late reports": r.LateReports,
	} {
		if count == 0 && !testing.Short() {
			t.Errorf("no %s in the whole run", what)
		}
	}
}
