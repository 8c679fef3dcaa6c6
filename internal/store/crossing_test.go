package store_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

var crossingFor = flag.Duration("crossing.for", 8*time.Second, "how long batches of every verb cross")

// TestCrossingBatchesOfEveryVerbMeetNoDeadlock lets four servers, each with several connections, do every verb to the same
// few tasks at once, in batches whose entries come in any order. All of them take their locks in one order, so no two wait
// for each other; and whatever they did, the tables are sound afterwards.
func TestCrossingBatchesOfEveryVerbMeetNoDeadlock(t *testing.T) {
	c := newCrowd(t, 4, 5)
	c.pauses = 1 << 30
	x := &crossing{crowd: c}
	for n := range 6 {
		x.sessions = append(x.sessions, c.open(fmt.Sprintf("worker %d", n)))
	}
	ctx, stop := context.WithTimeout(t.Context(), *crossingFor)
	defer stop()
	var all sync.WaitGroup
	for _, s := range c.servers {
		for _, verb := range []func(*store.Store){x.work, x.work, x.operate, x.sweep, x.meet} {
			all.Go(func() {
				for ctx.Err() == nil && !t.Failed() {
					verb(s)
				}
			})
		}
	}
	all.Wait()
	for _, id := range x.tasks {
		_, err := c.servers[0].Settle(t.Context(), id)
		c.ok(err)
	}
	c.sound()
	c.record()
	c.noDeadlocks()
	t.Logf("reached crossing_batches=%d", x.batches.Load())
	if x.batches.Load() < 100 {
		t.Errorf("only %d batches crossed", x.batches.Load())
	}
}

type crossing struct {
	*crowd
	batches  atomic.Int64
	sessions []store.SessionFence

	mu     sync.Mutex
	tasks  []task.ID
	tokens []task.Token // of the last claims, live or not
}

// recent are the tasks that the verbs meet on.
func (x *crossing) recent(n int) []task.ID {
	x.mu.Lock()
	defer x.mu.Unlock()
	return shuffled(x.tasks[max(len(x.tasks)-n, 0):])
}

func (x *crossing) held(n int) []task.Token {
	x.mu.Lock()
	defer x.mu.Unlock()
	some := shuffled(x.tokens)
	return some[:min(n, len(some))]
}

func (x *crossing) took(tokens []task.Token) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tokens = append(x.tokens, tokens...)
	x.tokens = x.tokens[max(len(x.tokens)-60, 0):]
}

// work submits, claims, reports, beats and hands back.
func (x *crossing) work(s *store.Store) {
	x.batches.Add(1)
	switch rand.IntN(6) {
	case 0:
		wide := []task.StepSpec{step(), step(), step(), step(), step(1, 2, 3, 4), step(2, 3), step(1, 4), step(5, 6, 7)}
		ids := x.submit(wide, slices.Clone(wide))
		x.mu.Lock()
		x.tasks = append(x.tasks, ids...)
		x.mu.Unlock()
	case 1:
		// For several sessions at once; those that were taken over meanwhile get nothing.
		claim := x.claimOf(1 + rand.IntN(20))
		claim.Sessions = append(claim.Sessions, x.sessions...)
		for i := range claim.Lanes[0].Slots {
			claim.Lanes[0].Slots[i] = claim.Sessions[i%len(claim.Sessions)].SessionID
		}
		grants, _, err := s.Claim(x.Context(), x.ns, claim)
		x.refusal(err)
		x.took(tokensOf(grants))
	case 2:
		var beats []store.Beat
		for _, token := range x.held(20) {
			beats = append(beats, store.Beat{Token: token, Checkpoint: `{"at":1}`})
		}
		_, err := s.Heartbeat(x.Context(), x.ns, beats)
		x.refusal(err)
	case 3:
		var leases []store.HeldLease
		for _, token := range x.held(10) {
			leases = append(leases, store.HeldLease{Step: token.Step, Nonce: token.Nonce})
		}
		outcome := []task.Outcome{task.Released, task.Undelivered}[rand.IntN(2)]
		_, change, err := s.GiveBack(x.Context(), x.ns, leases, outcome)
		x.refusal(err)
		x.settle(s, change)
	default:
		x.report(s)
	}
}

// report records outcomes and claims in the same transaction; what came late is recorded beside it.
func (x *crossing) report(s *store.Store) {
	zero := time.Duration(0)
	var reports []task.Report
	for _, token := range x.held(1 + rand.IntN(30)) {
		r := outcomeOf(token, []task.Outcome{task.Success, task.Success, task.RetryableFailure, task.PermanentFailure}[rand.IntN(4)])
		if r.Outcome == task.RetryableFailure {
			r.Hint = task.Hint{Source: task.FromRetryAfter, After: &zero}
		}
		reports = append(reports, r)
	}
	f, err := s.Turn(x.Context(), x.ns, nil, reports, x.claimOf(rand.IntN(10)+1))
	if err != nil {
		x.refusal(err)
		return
	}
	x.took(tokensOf(f.Grants))
	x.settle(s, f.Change)
	for i, a := range f.Answers {
		if a.Late {
			_, change, err := s.ReportLate(x.Context(), &reports[i])
			x.refusal(err)
			x.settle(s, change)
		}
	}
}

// operate does what operators do.
func (x *crossing) operate(s *store.Store) {
	tasks := x.recent(6)
	if len(tasks) == 0 {
		x.work(s)
		return
	}
	x.batches.Add(1)
	id := tasks[0]
	step := id.Step(1 + rand.IntN(8))
	var (
		change store.Change
		err    error
	)
	switch n := rand.IntN(20); {
	case n == 0:
		_, change, err = s.CancelTask(x.Context(), id, act)
	case n == 1:
		change, err = s.PurgeTask(x.Context(), tasks[len(tasks)-1], act)
	case n < 5:
		_, _, _, change, err = s.BulkRetrySteps(x.Context(), x.ns, task.BulkRetry{Tasks: tasks, ParkedOnly: n == 2}, store.StepKey{})
	case n < 12:
		_, change, err = s.RetryStep(x.Context(), step, act)
	case n < 16:
		_, change, err = s.ResolveStep(x.Context(), step, act)
	default:
		_, change, err = s.CompleteStep(x.Context(), step, "{}", act)
	}
	x.refusal(err)
	x.settle(s, change)
}

// meet says that a server is alive, looks at sessions, and takes one of them over.
func (x *crossing) meet(s *store.Store) {
	x.batches.Add(1)
	var ids, epochs []int32
	for _, f := range shuffled(x.sessions) {
		ids, epochs = append(ids, f.SessionID), append(epochs, f.Epoch)
	}
	_, err := s.Tick(x.Context(), store.Ask{SessionIDs: ids, Epochs: epochs, Leases: true, Alive: &[16]byte{2}})
	x.refusal(err)
	switch rand.IntN(50) {
	case 1, 2:
		// Of a handler that nobody has: claims go on, since they know of all to come.
		_, _, err := s.PauseHandler(x.Context(), x.ns, task.Pause{Handler: "nobody", Reason: "r"})
		x.refusal(err)
	case 3:
		_, _, err := s.ResumeHandler(x.Context(), x.ns, "nobody", act)
		x.refusal(err)
	case 0:
		_, _, _, err := s.OpenSession(x.Context(), x.ns, [16]byte{2}, store.Session{
			WorkerID: "worker 0", InstanceID: "1", MaxInFlight: 1_000_000, Handlers: []string{"work"},
		})
		x.refusal(err)
	}
}

// sweep does what every server does by itself.
func (x *crossing) sweep(s *store.Store) {
	x.batches.Add(1)
	switch rand.IntN(3) {
	case 0:
		_, err := s.Tick(x.Context(), store.Ask{Looks: map[int32]store.Look{x.ns: {Handlers: []string{"work"}}}, Leases: true})
		x.refusal(err)
		unsettled, err := s.Unsettled(x.Context())
		x.refusal(err)
		for _, id := range unsettled {
			x.settle(s, store.Change{Settle: []task.ID{id}})
		}
	case 1:
		// Leases run out at random. The test waits for no lock itself: its order would be any.
		x.execute(`update lease set until = now()
			where ctid = any (array(select ctid from lease where random() < 0.05 for update skip locked))`)
		leases, err := s.ExpiredLeases(x.Context(), 100)
		x.refusal(err)
		_, change, err := s.Expire(x.Context(), x.ns, shuffled(leases))
		x.refusal(err)
		x.settle(s, change)
	default:
		for _, id := range x.recent(4) {
			x.settle(s, store.Change{Settle: []task.ID{id}})
		}
	}
}
