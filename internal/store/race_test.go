package store_test

import (
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

var raceRounds = flag.Int("race.rounds", 100, "rounds of each race of two verbs")

// race runs rounds of a race on two servers, then demands a sound database without a deadlock.
func race(t *testing.T, round func(c *crowd, a, b *store.Store)) {
	t.Helper()
	c := newCrowd(t, 2, 4)
	for range *raceRounds {
		round(c, c.servers[0], c.servers[1])
		if t.Failed() {
			return
		}
	}
	c.sound()
	c.record()
	c.noDeadlocks()
}

// A claim moves a row from one table to another while a cancel looks for it: seen in neither, it would outlive its task.
func TestRaceOfCancelAndClaim(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step(), step(), step(), step(1, 2, 3)})[0]
		together(
			func() { _, _, err := a.CancelTask(c.Context(), id, act); c.refusal(err) },
			func() { c.claim(b, 2); c.claim(b, 2) },
		)
		if n := c.count("select count(*) from lease where task_id = $1", id); n != 0 {
			t.Errorf("S1: %d leases of a cancelled task", n)
		}
		if n := c.count("select count(*) from step_end where task_id = $1 and state = 'cancelled'", id); n != 4 {
			t.Errorf("%d of 4 steps are cancelled", n)
		}
	})
}

// The same with the claim certain to be moving the row while the cancel looks: in one snapshot it is seen nowhere.
func TestCancelFindsAStepThatAClaimIsMoving(t *testing.T) {
	c := newCrowd(t, 2, 4)
	id := c.submit([]task.StepSpec{step(), step(1)})[0]
	open := c.closeGate("lease")
	together(
		func() { c.claim(c.servers[0], 1) },
		func() {
			(&world{T: t, db: c.db}).untilBlocked(1)
			_, _, err := c.servers[1].CancelTask(c.Context(), id, act)
			c.refusal(err)
		},
		func() {
			(&world{T: t, db: c.db}).untilBlocked(2)
			open()
		},
	)
	if n := c.count("select count(*) from lease where task_id = $1", id); n != 0 {
		t.Errorf("S1: %d leases of a cancelled task", n)
	}
	c.sound()
}

// A completing transaction wakes children while a cancel ends them.
func TestRaceOfCancelAndComplete(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step(), step(1), step(1)})[0]
		token := c.claim(a, 1)[0]
		var took verdict
		together(
			func() { took, _ = c.verdictOf(a, outcomeOf(token, task.Success)) },
			func() { _, _, err := b.CancelTask(c.Context(), id, act); c.refusal(err) },
		)
		complete := c.count("select count(*) from step_end where task_id = $1 and state = 'complete'", id)
		cancelled := c.count("select count(*) from step_end where task_id = $1 and state = 'cancelled'", id)
		if complete+cancelled != 3 || (took == accepted) != (complete == 1) {
			t.Errorf("the report was %s, and %d steps are complete, %d cancelled", took, complete, cancelled)
		}
	})
}

// The last step's success and a cancel: the task ends once, as one of them says.
func TestRaceOfCancelAndTheLastSuccess(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step()})[0]
		token := c.claim(a, 1)[0]
		var (
			took    verdict
			refused task.Reason
		)
		together(
			func() { took, _ = c.verdictOf(a, outcomeOf(token, task.Success)) },
			func() { _, _, err := b.CancelTask(c.Context(), id, act); refused = c.refusal(err) },
		)
		if (took == accepted) != (refused == task.TaskFinished) {
			t.Errorf("the report was %s, and the cancel %q", took, refused)
		}
	})
}

// A step that lost its lease waits for a claim and for its late report: one of them gets it.
func TestRaceOfALateReportAndAClaim(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step(), step(1)})[0]
		token := c.claim(a, 1)[0]
		_, _, err := a.GiveBack(c.Context(), c.ns, []store.HeldLease{{Step: token.Step, Nonce: token.Nonce}}, task.Undelivered)
		c.ok(err)
		var (
			took   verdict
			tokens []task.Token
		)
		together(
			func() { took, _ = c.verdictOf(a, outcomeOf(token, task.Success)) },
			func() { tokens = c.claim(b, 1) },
		)
		again := len(tokens) == 1 && tokens[0].Step == id.Step(1)
		if again == (took == accepted) || again && took != lost {
			t.Errorf("S4: the late report was %s, and the claim got %v", took, tokens)
		}
		together(func() { c.cancelled(a, id) }, func() { c.cancelled(b, id) })
	})
}

func (c *crowd) cancelled(s *store.Store, id task.ID) {
	_, _, err := s.CancelTask(c.Context(), id, act)
	c.refusal(err)
}

// A heartbeat updates the lease row between the lock and the delete of a report. A statement that did both would find the
// row's old place empty, accept the report and leave the lease behind.
func TestRaceOfHeartbeatAndReport(t *testing.T) {
	w := newWorld(t)
	for _, outcome := range []task.Outcome{task.Success, task.RetryableFailure} {
		id := w.submit(step())
		g := w.run(id.Step(1))
		beat := w.db.Conn(t)
		for _, sql := range []string{"begin", fmt.Sprintf("update lease set until = until + interval '1 s' where task_id = %d", id)} {
			_, err := beat.Exec(t.Context(), sql)
			w.ok(err)
		}
		took := make(chan *task.Reported, 1)
		go func() {
			f, err := w.s.Turn(t.Context(), w.ns, nil, []task.Report{outcomeOf(g.Step.Token, outcome)}, nil)
			if err != nil || len(f.Answers) != 1 {
				t.Errorf("the report failed: %v", err)
				took <- nil
				return
			}
			took <- f.Answers[0].Reported
		}()
		w.untilBlocked(1)
		_, err := beat.Exec(t.Context(), "commit")
		w.ok(err)
		if r := <-took; r == nil {
			t.Errorf("%s was not taken", outcome)
		}
		equal(w, "S4: leases of a concluded run, after "+string(outcome), value[int](w, "select count(*) from lease where task_id = $1", id), 0)
		w.sound(id)
	}
}

// A sweep that has found a lease expired gives way to the heartbeat that came in meanwhile.
func TestRaceOfHeartbeatAndExpiry(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step()})[0]
		token := c.claim(a, 1)[0]
		_, err := a.Heartbeat(c.Context(), c.ns, []store.Beat{{Token: token}})
		c.ok(err)
		c.execute("update lease set until = now() where task_id = $1", id)
		var (
			beat  map[[16]byte]store.Extended
			ended []store.Ended
		)
		together(
			func() {
				var err error
				beat, err = a.Heartbeat(c.Context(), c.ns, []store.Beat{{Token: token}})
				c.refusal(err)
			},
			func() {
				var err error
				ended, _, err = b.Expire(c.Context(), c.ns, []store.HeldLease{{Step: token.Step, Nonce: token.Nonce}})
				c.refusal(err)
			},
		)
		if len(beat)+len(ended) != 1 {
			t.Errorf("the heartbeat extended %d leases, and the sweep ended %d", len(beat), len(ended))
		}
		c.cancelled(a, id)
	})
}

func (c *crowd) execute(sql string, args ...any) {
	c.Helper()
	_, err := c.db.Pool.Exec(c.Context(), sql, args...)
	c.ok(err)
}

// The two last failures of a task: each transaction still sees the other's step running, so whoever decided the task's
// end in it would leave it undecided (write skew).
func TestRaceOfTwoLastFailures(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step(), step(), step(1, 2)})[0]
		tokens := c.claim(a, 2)
		fail := func(s *store.Store, token task.Token) func() {
			return func() {
				took, change := c.verdictOf(s, outcomeOf(token, task.PermanentFailure))
				if took != accepted {
					t.Errorf("a failure was %s", took)
				}
				c.settle(s, change)
			}
		}
		together(fail(a, tokens[0]), fail(b, tokens[1]))
		if n := c.count("select count(*) from task_end where task_id = $1 and state = 'error'", id); n != 1 {
			t.Errorf("S13: a task whose two last steps failed has %d ends in error", n)
		}
	})
}

// The same with the end certain to be looked for while both transactions are open: each one's failure is written, and
// neither has committed.
func TestTwoLastFailuresThatOverlapEndTheirTask(t *testing.T) {
	c := newCrowd(t, 2, 4)
	id := c.submit([]task.StepSpec{step(), step()})[0]
	tokens := c.claim(c.servers[0], 2)
	unlock := c.closeGate("parked")
	fail := func(n int) func() {
		return func() {
			took, change := c.verdictOf(c.servers[n], outcomeOf(tokens[n], task.PermanentFailure))
			if took != accepted {
				t.Errorf("a failure was %s", took)
			}
			c.settle(c.servers[n], change)
		}
	}
	open := func() {
		(&world{T: t, db: c.db}).untilBlocked(2)
		unlock()
	}
	together(fail(0), fail(1), open)
	if n := c.count("select count(*) from task_end where task_id = $1 and state = 'error'", id); n != 1 {
		t.Errorf("S13: a task whose two last steps failed has %d ends in error", n)
	}
	c.sound()
}

// An operator re-opens a task while its end is being recorded.
func TestRaceOfRetryAndSettle(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step()})[0]
		_, change := c.verdictOf(a, outcomeOf(c.claim(a, 1)[0], task.PermanentFailure))
		together(
			func() { c.settle(a, change) },
			func() { _, _, err := b.RetryStep(c.Context(), id.Step(1), act); c.refusal(err) },
		)
		if n := c.count("select count(*) from task_end where task_id = $1", id); n != 0 {
			t.Errorf("S13: a task that was re-opened has an end")
		}
		c.cancelled(a, id)
	})
}

// One token reported by two servers at once: recorded once, and the other is told what stands.
func TestRaceOfOneTokenInTwoFlushes(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step(), step(1)})[0]
		token := c.claim(a, 1)[0]
		one, two := outcomeOf(token, task.Success), outcomeOf(token, task.Success)
		want := repeated
		if id.Number()%2 == 0 {
			two.Results, two.Digest = `{"other":1}`, sha256.Sum256([]byte("other"))
			want = conflict
		}
		var first, second verdict
		together(
			func() { first, _ = c.verdictOf(a, one) },
			func() { second, _ = c.verdictOf(b, two) },
		)
		if (first != accepted || second != want) && (first != want || second != accepted) {
			t.Errorf("S4: one token in two flushes was %s and %s", first, second)
		}
		c.cancelled(a, id)
	})
}

// A report is sent again while its task is purged: it was recorded already, or its lease is no more.
func TestRaceOfARepeatedReportAndPurge(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step()})[0]
		r := outcomeOf(c.claim(a, 1)[0], task.Success)
		c.verdictOf(a, r)
		again := func() {
			for range 4 {
				answer, _, err := a.ReportLate(c.Context(), &r)
				if err != nil {
					c.Error(err)
				} else if answer.Refused != nil && answer.Refused.Reason != task.LeaseLost {
					c.Error(answer.Refused)
				}
			}
		}
		together(again, again, func() { _, err := b.PurgeTask(c.Context(), id, act); c.ok(err) })
	})
}

// Two operators act on one step.
func TestRaceOfRetryAndResolve(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step(), step(1)})[0]
		_, change := c.verdictOf(a, outcomeOf(c.claim(a, 1)[0], task.PermanentFailure))
		c.settle(a, change)
		var one, two task.Reason
		together(
			func() { _, _, err := a.RetryStep(c.Context(), id.Step(1), act); one = c.refusal(err) },
			func() { _, _, err := b.ResolveStep(c.Context(), id.Step(1), act); two = c.refusal(err) },
		)
		if (one == "") == (two == "") {
			t.Errorf("the retry was answered %q, the resolve %q", one, two)
		}
		c.cancelled(a, id)
	})
}

// Two servers open the same worker's session: the one whose epoch is older is granted nothing.
func TestRaceOfTakeOverAndClaim(t *testing.T) {
	race(t, func(c *crowd, a, b *store.Store) {
		id := c.submit([]task.StepSpec{step()})[0]
		claim := c.claimOf(1)
		var (
			grants []store.Grant
			after  int
		)
		together(
			func() {
				var err error
				grants, _, err = a.Claim(c.Context(), c.ns, claim)
				c.refusal(err)
			},
			func() {
				_, epoch, _, err := b.OpenSession(c.Context(), c.ns, [16]byte{2}, store.Session{
					WorkerID: "worker", InstanceID: "1", MaxInFlight: 1, Handlers: []string{"work"},
				})
				c.refusal(err)
				c.fence.Epoch = epoch
				leases, err := b.SessionLeases(c.Context(), c.ns, claim.Sessions[0].SessionID)
				c.refusal(err)
				after = len(leases)
			},
		)
		if len(grants) != after {
			t.Errorf("S10: the old server was granted %d steps, and the new one counted %d", len(grants), after)
		}
		c.cancelled(a, id)
	})
}

// Two instances of one worker that neither has a row yet: each must see the other, or both would have the worker_id.
func TestRaceOfTwoInstancesOfOneWorker(t *testing.T) {
	n := 0
	race(t, func(c *crowd, a, b *store.Store) {
		n++
		var opened, refused atomic.Int32
		open := func(s *store.Store, instance string) func() {
			return func() {
				_, _, _, err := s.OpenSession(c.Context(), c.ns, [16]byte{1}, store.Session{
					WorkerID: fmt.Sprint("twin ", n), InstanceID: instance, MaxInFlight: 1, Handlers: []string{"work"},
				})
				var no *task.Error
				switch {
				case err == nil:
					opened.Add(1)
				case errors.As(err, &no) && no.Reason == task.WorkerIDInUse:
					refused.Add(1)
				default:
					c.Error(err)
				}
			}
		}
		together(open(a, "1"), open(b, "2"))
		if opened.Load() != 1 || refused.Load() != 1 {
			t.Errorf("%d instances were let in and %d refused", opened.Load(), refused.Load())
		}
	})
}

// A worker whose lease ran out and the one that was granted its step may report in one flush: each is answered for itself.
func TestAStaleTokenInABatchIsAnsweredForItself(t *testing.T) {
	for _, outcome := range []task.Outcome{task.Success, task.RetryableFailure} {
		for _, staleFirst := range []bool{true, false} {
			c := newCrowd(t, 1, 2)
			c.submit([]task.StepSpec{step()})
			s := c.servers[0]
			stale := c.claim(s, 1)[0]
			_, _, err := s.GiveBack(c.Context(), c.ns, []store.HeldLease{{Step: stale.Step, Nonce: stale.Nonce}}, task.Released)
			c.ok(err)
			current := c.claim(s, 1)[0]
			batch, now := []task.Report{outcomeOf(stale, outcome), outcomeOf(current, outcome)}, 1
			if !staleFirst {
				batch[0], batch[1], now = batch[1], batch[0], 0
			}
			f, err := s.Turn(c.Context(), c.ns, nil, batch, nil)
			c.ok(err)
			if f.Answers[now].Late || f.Answers[now].Reported == nil {
				t.Errorf("S4: %s: the report under the current token is answered %+v", outcome, f.Answers[now])
			}
			if !f.Answers[1-now].Late || f.Answers[1-now].Reported != nil {
				t.Errorf("S4: %s: the report under the stale token is answered %+v", outcome, f.Answers[1-now])
			}
			if len(f.Change.Freed) != 1 || f.Change.Freed[0] != current {
				t.Errorf("%s: freed %v, want the current token alone", outcome, f.Change.Freed)
			}
		}
	}
}

// Workers send heartbeats for the very steps that they are reporting, until they are answered: no flush may be refused for it.
func TestHeartbeatsOfWhatIsReportedRefuseNoFlush(t *testing.T) {
	const steps = 100
	c := newCrowd(t, 3, 4)
	tasks := make([][]task.StepSpec, steps)
	for i := range tasks {
		tasks[i] = []task.StepSpec{step()}
	}
	for range 6 {
		c.submit(tasks...)
		tokens := c.claim(c.servers[0], steps)
		beats := make([]store.Beat, len(tokens))
		reports := make([]task.Report, len(tokens))
		for i, token := range tokens {
			beats[i], reports[i] = store.Beat{Token: token}, outcomeOf(token, task.Success)
		}
		done := make(chan struct{})
		beat := func(s *store.Store) func() {
			return func() {
				for {
					select {
					case <-done:
						return
					default:
						_, err := s.Heartbeat(c.Context(), c.ns, beats)
						c.refusal(err)
					}
				}
			}
		}
		together(beat(c.servers[1]), beat(c.servers[2]), beat(c.servers[2]), func() {
			defer close(done)
			if _, err := c.servers[0].Turn(c.Context(), c.ns, nil, reports, nil); err != nil {
				t.Errorf("the flush was refused: %v", err)
			}
		})
	}
	c.sound()
	c.noDeadlocks()
}
