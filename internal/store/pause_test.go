package store_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

func (c *crowd) pause(s *store.Store, handler string) (task.Pause, int32) {
	p, revision, err := s.PauseHandler(c.Context(), c.ns, task.Pause{Handler: handler, Reason: "r", Actor: "ann"})
	if err != nil {
		c.Error(err)
	}
	return p, revision
}

func (c *crowd) resume(s *store.Store, handler string) {
	if ended, _, err := s.ResumeHandler(c.Context(), c.ns, handler, act); err != nil || ended == nil {
		c.Errorf("resuming ended %v, %v", ended, err)
	}
}

// A claim that begins while a pause is about to commit waits for it, and is granted nothing: its server did not know.
func TestAClaimWaitsForAPauseThatIsUnderWay(t *testing.T) {
	c := newCrowd(t, 2, 4)
	c.submit([]task.StepSpec{step()})
	w := &world{T: t, db: c.db}
	open := c.closeGate("pause")
	together(
		func() { c.pause(c.servers[0], "work") },
		func() {
			w.untilBlocked(1)
			if tokens := c.claim(c.servers[1], 1); len(tokens) > 0 {
				t.Errorf("S15: a claim was granted %d steps of a paused handler", len(tokens))
			}
		},
		func() {
			w.untilBlocked(2)
			open()
		},
	)
	c.resume(c.servers[0], "work")
	claim := c.claimOf(1)
	claim.Pauses = 2
	if grants, _, err := c.servers[1].Claim(t.Context(), c.ns, claim); err != nil || len(grants) != 1 {
		t.Errorf("resumed, a claim was granted %d steps, %v", len(grants), err)
	}
	c.record()
	c.noDeadlocks()
}

// A pause waits for a claim that has come first; what that one granted was granted before.
func TestAPauseWaitsForAClaimThatIsUnderWay(t *testing.T) {
	c := newCrowd(t, 2, 4)
	c.submit([]task.StepSpec{step()})
	w := &world{T: t, db: c.db}
	open := c.closeGate("lease")
	var since time.Time
	together(
		func() {
			if n := len(c.claim(c.servers[1], 1)); n != 1 {
				t.Errorf("the claim was granted %d steps", n)
			}
		},
		func() {
			w.untilBlocked(1)
			p, _ := c.pause(c.servers[0], "work")
			since = p.Since
		},
		func() {
			w.untilBlocked(2)
			open()
		},
	)
	if n := c.count("select count(*) from lease where granted_at < $1", since); n != 1 {
		t.Errorf("%d leases were granted before the pause, which began at %v", n, since)
	}
	c.record()
	c.noDeadlocks()
}

// A session that opens while a pause is about to commit waits for it, so that it is fenced as well.
func TestASessionThatOpensMeanwhileIsPausedToo(t *testing.T) {
	for _, opensFirst := range []bool{false, true} {
		c := newCrowd(t, 2, 4)
		c.submit([]task.StepSpec{step()})
		w := &world{T: t, db: c.db}
		gate := "pause"
		if opensFirst {
			gate = "worker_session"
		}
		open := c.closeGate(gate)
		both := []func(){
			func() { c.pause(c.servers[1], "work") },
			func() { c.fence = c.open("another") },
		}
		if opensFirst {
			slices.Reverse(both)
		}
		var late atomic.Bool
		together(
			both[0],
			func() {
				w.untilBlocked(1)
				both[1]()
				late.Store(true)
			},
			func() {
				for !late.Load() && w.blocked() < 2 {
					time.Sleep(time.Millisecond)
				}
				open()
			},
		)
		if tokens := c.claim(c.servers[0], 1); len(tokens) > 0 {
			t.Errorf("S15: a session that opened during the pause (first: %v) was granted %d steps", opensFirst, len(tokens))
		}
		c.record()
		c.noDeadlocks()
	}
}

// TestNothingOfAPausedHandlerIsDispatched has four servers claim as fast as they can, by what they know, which may be old, and
// some of them take their sessions over anew, while two handlers are paused and resumed: between the return of a pause and its
// end, no dispatch of it is recorded.
func TestNothingOfAPausedHandlerIsDispatched(t *testing.T) {
	c := newCrowd(t, 4, 6)
	handlers := []string{"work", "other"}
	lanes := []int32{c.lane, 0}
	var err error
	lanes[1], _, err = c.servers[0].EnsureLane(t.Context(), store.Lane{NamespaceID: c.ns, Handler: "other", Priority: 1})
	c.ok(err)
	var (
		done   sync.WaitGroup
		stop   atomic.Bool
		claims [4]atomic.Int64
	)
	for n, s := range c.servers {
		done.Go(func() {
			name := string(rune('a' + n))
			var fence store.SessionFence
			var known store.Pauses
			for i := 0; !stop.Load() && !t.Failed(); i++ {
				var err error
				if i%(3+n) == 0 { // what is known grows old
					if known, err = s.Pauses(t.Context(), c.ns); err != nil {
						t.Error(err)
					}
				}
				if i%(20+n) == 0 {
					id, epoch, _, err := s.OpenSession(t.Context(), c.ns, [16]byte{byte(n)}, store.Session{WorkerID: name, InstanceID: "1", MaxInFlight: 1_000_000, Handlers: handlers})
					if err != nil {
						t.Error(err)
					}
					fence = store.SessionFence{SessionID: id, Epoch: epoch, DeliveryTimeout: time.Hour, Beats: true}
				}
				claim := &store.Claim{Sessions: []store.SessionFence{fence}, Pauses: known.Revision}
				_, all := known.Until[""]
				for k, h := range handlers {
					if _, is := known.Until[h]; !is && !all {
						claim.Lanes = append(claim.Lanes, store.LaneWant{LaneID: lanes[k], Slots: []int32{fence.SessionID, fence.SessionID}})
					}
				}
				if len(claim.Lanes) > 0 {
					if _, _, err := s.Claim(t.Context(), c.ns, claim); err != nil {
						t.Error(err)
					}
				}
				claims[n].Add(1)
			}
		})
	}
	dispatched := func(handler string) int {
		return c.count(`select count(*) from lease join lane using (lane_id) where $1 in ('', lane.handler)`, handler)
	}
	progress := func(rounds int64) {
		var from [4]int64
		for n := range claims {
			from[n] = claims[n].Load()
		}
		for n := range claims {
			for claims[n].Load() < from[n]+rounds && !t.Failed() {
				time.Sleep(100 * time.Microsecond) // until each server has claimed anew
			}
		}
	}
	for round := range max(*raceRounds/4, 5) {
		specs := slices.Repeat([]task.StepSpec{step()}, 200)
		c.lane = lanes[round%2]
		c.submit(specs)
		progress(rand.Int64N(3))
		handler := append(handlers, "")[rand.IntN(3)]
		c.pause(c.servers[round%4], handler)
		before := dispatched(handler)
		progress(12)
		if after := dispatched(handler); after != before {
			t.Errorf("S15: round %d: %d steps of handler %q were dispatched while it was paused", round, after-before, handler)
		}
		c.resume(c.servers[(round+1)%4], handler)
		if t.Failed() {
			break
		}
	}
	progress(20)
	if n := dispatched(""); n == 0 {
		t.Error("nothing was dispatched at all")
	}
	stop.Store(true)
	done.Wait()
	c.sound()
	c.record()
	c.noDeadlocks()
}

// gauged checks which pauses the metrics show as in force.
func (w *world) gauged(want ...store.PauseGauge) {
	w.Helper()
	g, err := w.s.Gauge(w.Context())
	w.ok(err)
	for i := range want {
		want[i].Namespace = "default"
	}
	if !slices.Equal(g.Pauses, want) {
		w.Errorf("in force are, for metrics, %+v, want %+v", g.Pauses, want)
	}
}

// A pause that ends by itself, one that is replaced, and one that is resumed are told apart in the record.
func TestPausesAreRecorded(t *testing.T) {
	w := newWorld(t)
	id := w.submit(step())
	pause := func(handler, reason string, span time.Duration) {
		t.Helper()
		p := task.Pause{Handler: handler, Reason: reason, Actor: "ann"}
		if span > 0 {
			p.Until = ptr(w.now.Add(span))
		}
		_, _, err := w.s.PauseHandler(t.Context(), w.ns, p)
		w.ok(err)
	}
	pause("work", "first", time.Minute)
	v := w.step(id.Step(1))
	if v.ReadyForExecution || v.WaitingFor != "paused" || v.WaitingUntil == nil || !v.WaitingUntil.Equal(w.now.Add(time.Minute)) {
		t.Errorf("a paused step waits for %q until %v", v.WaitingFor, v.WaitingUntil)
	}
	w.sound(id)
	pause("", "all", 2*time.Minute)
	if v := w.step(id.Step(1)); v.WaitingUntil == nil || !v.WaitingUntil.Equal(w.now.Add(2*time.Minute)) {
		t.Errorf("paused twice it waits until %v, and the later end counts", v.WaitingUntil)
	}
	w.pass(time.Second)
	pause("work", "second", 0)
	if v := w.step(id.Step(1)); v.WaitingFor != "paused" || v.WaitingUntil != nil {
		t.Errorf("paused for good it waits for %q until %v", v.WaitingFor, v.WaitingUntil)
	}
	w.pass(10 * time.Second)
	w.gauged(store.PauseGauge{Handler: "", Age: 11 * time.Second}, store.PauseGauge{Handler: "work", Age: 10 * time.Second})
	w.pass(time.Hour - 10*time.Second)
	w.gauged(store.PauseGauge{Handler: "work", Age: time.Hour})
	ended, _, err := w.s.ResumeHandler(t.Context(), w.ns, "", store.Act{Actor: "bob"})
	if err != nil || ended != nil {
		t.Errorf("what ended by itself was ended: %v, %v", ended, err)
	}
	ended, _, err = w.s.ResumeHandler(t.Context(), w.ns, "work", store.Act{Actor: "bob", Reason: "it is well"})
	if err != nil || ended == nil || ended.Reason != "second" || ended.Actor != "ann" {
		t.Errorf("resuming ended %+v, %v", ended, err)
	}
	if v := w.step(id.Step(1)); !v.ReadyForExecution {
		t.Errorf("resumed, it waits for %q", v.WaitingFor)
	}
	w.gauged()
	w.sound(id)
	got := value[string](w, `select string_agg(concat_ws('/', coalesce(handler, '*'), reason, actor, in_force, extract(epoch from ended_at - since), ended_by, end_reason), ' ' order by pause_id) from pauses_v`)
	if want := "work/first/ann/f/1.000000/ann/paused anew */all/ann/f/120.000000 work/second/ann/f/3600.000000/bob/it is well"; got != want {
		t.Errorf("the record is  %s\nand should be %s", got, want)
	}
	list, err := w.s.ListPauses(t.Context(), w.ns, nil, 10)
	if err != nil || len(list) > 0 {
		t.Errorf("in force are %v, %v", list, err)
	}
}

// What a pause keeps back does not wait for its circuit: it could not run, whatever that says.
func TestAPausedStepDoesNotWaitForItsCircuit(t *testing.T) {
	w := newWorld(t)
	behind := step()
	behind.Circuit = "svc"
	id := w.submit(behind)
	waiting := func() (n int) {
		t.Helper()
		list, err := w.s.Circuits(t.Context(), w.ns, store.CircuitFilter{})
		if err != nil || len(list) != 1 {
			t.Fatalf("circuits are %v, %v", list, err)
		}
		equal(w, "waiting steps by the view", value[int](w, "select waiting_steps from circuit_health"), list[0].Waiting)
		return list[0].Waiting
	}
	equal(w, "waiting steps", waiting(), 1)
	_, _, err := w.s.PauseHandler(t.Context(), w.ns, task.Pause{Reason: "r"})
	w.ok(err)
	equal(w, "waiting steps of a paused namespace", waiting(), 0)
	_, _, err = w.s.ResumeHandler(t.Context(), w.ns, "", act)
	w.ok(err)
	equal(w, "waiting steps", waiting(), 1)
	w.succeed(id.Step(1))
}
