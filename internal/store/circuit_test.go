package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func TestOnlyAnOperatorsActNamesTheOperator(t *testing.T) {
	w := newWorld(t)
	id, err := w.s.EnsureCircuit(t.Context(), w.ns, "svc")
	w.ok(err)
	s := step()
	s.Circuit = "svc"
	first := w.submit(s)
	r := w.run(first.Step(1))
	w.report(r, task.RetryableFailure, func(r *task.Report) { r.ReachCircuit = true })
	w.ok(w.s.HoldCircuit(t.Context(), id, task.CircuitHold{From: w.now.Add(time.Hour), Actor: "somebody", Reason: "maintenance"}))
	w.pass(time.Minute)
	_, err = w.s.ReleaseCircuit(t.Context(), id, store.Act{Actor: "other"})
	w.ok(err)
	events, err := w.s.CircuitEvents(t.Context(), w.ns, task.CircuitEventQuery{Limit: 10})
	w.ok(err)
	got := map[task.CircuitCause]string{}
	for _, e := range events {
		got[e.Cause] = e.Actor
	}
	equal(w, "events", len(got), 4)
	equal(w, "actor of the hold", got[task.CauseHold], "somebody")
	equal(w, "actor of the end of the open time", got[task.CauseOpenElapsed], "")
	equal(w, "actor of the release", got[task.CauseRelease], "other")
}

// From the commit that opens a circuit on, nobody is granted a step of it: a claim waits for whoever has the circuit.
func TestAClaimWaitsForWhoeverOpensTheCircuit(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		w := newWorld(t)
		s := step()
		s.Circuit = "svc"
		w.submit(s, s)
		lane, circuit, err := w.s.EnsureLane(t.Context(), store.Lane{NamespaceID: w.ns, Handler: "work", Circuit: "svc", Priority: 1})
		w.ok(err)
		opens, err := w.db.Pool.Begin(t.Context())
		w.ok(err)
		_, err = opens.Exec(t.Context(), "update circuit set state = 'open', open_until = $1", w.now.Add(time.Hour))
		w.ok(err)
		type answer struct {
			grants []store.Grant
			err    error
		}
		answered := make(chan answer, 1)
		go func() {
			grants, _, err := w.s.Claim(context.WithoutCancel(t.Context()), w.ns, &store.Claim{
				Lanes:    []store.LaneWant{{LaneID: lane, CircuitID: circuit, Slots: []int32{w.session.SessionID}}},
				Sessions: []store.SessionFence{w.session},
				Circuits: []store.CircuitWant{{CircuitID: circuit, Exclusive: exclusive, LaneID: lane}},
			})
			answered <- answer{grants, err}
		}()
		waits := func() bool {
			return value[bool](w, `select exists (
				select from pg_locks join pg_stat_activity using (pid) where not granted and datname = current_database())`)
		}
		for deadline := time.Now().Add(10 * time.Second); !waits() && len(answered) == 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // between two looks
		}
		w.ok(opens.Commit(t.Context()))
		a := <-answered
		w.ok(a.err)
		equal(w, "S11: steps that a claim was granted after the commit that opened their circuit", len(a.grants), 0)
	}
}

// A probe that came to nothing stands last, so that the next one is another step.
func TestProbesRotate(t *testing.T) {
	for _, how := range []string{"released", "undelivered", "lost", "failed"} {
		for _, from := range []string{"ready", "backoff"} {
			w := newWorld(t)
			circuit, err := w.s.EnsureCircuit(t.Context(), w.ns, "svc")
			w.ok(err)
			s := step()
			s.Circuit = "svc"
			id := w.submit(s, s)
			if from == "backoff" {
				for _, g := range w.claim(2) {
					w.report(g, task.RetryableFailure, func(r *task.Report) { r.Blame = task.BlameStep })
				}
				w.pass(time.Minute)
			}
			w.ok(w.s.HoldCircuit(t.Context(), circuit, task.CircuitHold{}))
			_, err = w.s.ReleaseCircuit(t.Context(), circuit, operator)
			w.ok(err)
			first := w.claim(2)
			equal(w, "S11: probes that run", len(first), 1)
			token := first[0].Step.Token
			held := []store.HeldLease{{Step: token.Step, Nonce: token.Nonce, LaneID: first[0].LaneID, CircuitID: circuit}}
			switch how {
			case "released", "undelivered":
				_, _, err = w.s.GiveBack(t.Context(), w.ns, held, task.Outcome(how))
			case "lost":
				_, err = w.s.Heartbeat(t.Context(), w.ns, []store.Beat{{Token: token}})
				w.ok(err)
				w.pass(time.Minute)
				_, _, err = w.s.Expire(t.Context(), w.ns, held)
			case "failed":
				w.report(first[0], task.RetryableFailure, func(r *task.Report) {
					r.Blame, r.Hint = task.BlameStep, task.Hint{Source: task.FromRetryAfter, After: ptr(time.Duration(0))}
				})
			}
			w.ok(err)
			second := w.claim(2)
			equal(w, "S11: probes that run after one was "+how, len(second), 1)
			if len(second) == 1 && second[0].Step.Token.Step == token.Step {
				t.Errorf("S11: probes do not rotate: one from %s was %s, and step %d of task %s is the next one again", from, how, token.Step.No(), id)
			}
		}
	}
}

// Each success counts once: probes go one by one until enough have passed, and then waves, each twice as large as the last.
func TestARecoveryGoesInDoublingWaves(t *testing.T) {
	w := newWorld(t)
	circuit, err := w.s.EnsureCircuit(t.Context(), w.ns, "svc")
	w.ok(err)
	s := step()
	s.Circuit = "svc"
	w.submit(slices.Repeat([]task.StepSpec{s}, 20)...)
	w.ok(w.s.SetCircuitPolicy(t.Context(), circuit, operator, func(p task.CircuitPolicy) (task.CircuitPolicy, error) {
		p.CloseAfterSuccesses, p.RecoveryWave = ptr(2), ptr(2)
		return p, nil
	}))
	w.ok(w.s.HoldCircuit(t.Context(), circuit, task.CircuitHold{}))
	_, err = w.s.ReleaseCircuit(t.Context(), circuit, operator)
	w.ok(err)
	var went []int
	for n := -1; n != 0; {
		grants := w.claim(100)
		if n = len(grants); n > 0 {
			went = append(went, n)
		}
		for _, g := range grants {
			w.report(g, task.Success)
		}
	}
	if want := []int{1, 1, 2, 4, 8, 4}; !slices.Equal(went, want) {
		t.Errorf("S11: probes and waves went %v, want %v", went, want)
	}
}

// Time does not stand still within a transaction. A circuit whose open time ends between the statement that records that and
// the one that grants is open for the whole of it: what went now would go unmarked, and be no probe.
func TestACircuitThatIsDueInTheMidstOfAClaimLetsNothingGo(t *testing.T) {
	w := newWorld(t)
	s := step()
	s.Circuit = "svc"
	id := w.submit(s, s, s)
	w.report(w.run(id.Step(1)), task.RetryableFailure, func(r *task.Report) {
		r.ReachCircuit, r.Hint = true, task.Hint{Source: task.FromRetryAfter, After: ptr(time.Minute)}
	})
	for token, g := range w.held {
		_, _, err := w.s.GiveBack(t.Context(), w.ns, []store.HeldLease{{Step: token, Nonce: g.Step.Token.Nonce, LaneID: g.LaneID}}, task.Undelivered)
		w.ok(err)
	}
	before := w.now.Add(time.Minute - time.Microsecond)
	after := w.now.Add(time.Minute)
	asked := 0
	w.s.At = func() *time.Time {
		if asked++; asked == 1 {
			return &before
		}
		return &after
	}
	equal(w, "S11: steps that went behind a circuit that nobody has recorded to be half-open", len(w.claim(3)), 0)
	probes := w.claim(3)
	equal(w, "S11: probes", len(probes), 1)
	for _, g := range probes {
		equal(w, "S11: the next step is a probe", g.Step.Probe, true)
	}
}
