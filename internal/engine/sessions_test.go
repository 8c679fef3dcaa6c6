package engine

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// resting makes an engine of one hub with so many sessions, which nothing runs. The first full ones look full.
func resting(t *testing.T, n, full int) (*Engine, *hub) {
	t.Helper()
	e := New(nil, Config{})
	h := e.hub(1)
	t.Cleanup(func() {
		h.shut()
		e.stop()
		e.workers.Wait()
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range n {
		id := int32(i + 1)
		s := &session{id: id, epoch: 7, leases: map[[16]byte]string{}, byHandler: map[string]int{}, opening: 1}
		s.reg.MaxInFlight = 1
		if i < full {
			s.leases[[16]byte{1}] = "a"
		}
		h.sessions[id] = s
	}
	return e, h
}

// However many sessions there are, and however many of them look full, each one's turn comes; those that look full come first.
func TestEverySessionIsLookedAtInTurn(t *testing.T) {
	for _, c := range []struct{ n, full, rounds int }{
		{10, 3, 1},
		{sessionsALook, 1, 1},
		{sessionsALook, sessionsALook, 1},
		{sessionsALook + 1, 0, 2},
		{5 * sessionsALook, 0, 5},
		{5 * sessionsALook, 10, 6},
		{5 * sessionsALook, 3 * sessionsALook, 10},
		{3 * sessionsALook, 3 * sessionsALook, 6},
	} {
		e, _ := resting(t, c.n, c.full)
		for range 3 {
			seen := map[int32]bool{}
			for range c.rounds {
				some := e.someSessions()
				if len(some.ids) > sessionsALook || len(some.epochs) != len(some.ids) || len(some.hubs) != len(some.ids) {
					t.Fatalf("%+v: a look takes %d sessions", c, len(some.ids))
				}
				this := map[int32]bool{}
				full := 0
				for _, id := range some.ids {
					if this[id] {
						t.Fatalf("%+v: a look takes a session twice", c)
					}
					this[id], seen[id] = true, true
					if int(id) <= c.full {
						full++
					}
				}
				if want := min(c.full, sessionsALook/2); full < want {
					t.Errorf("%+v: of those that look full a look takes %d, want %d", c, full, want)
				}
			}
			if len(seen) != c.n {
				t.Errorf("%+v: %d rounds looked at %d sessions", c, c.rounds, len(seen))
			}
		}
	}
}

// Whoever opens its session anew is looked at first: it may have been drained before.
func TestASessionThatIsNewIsLookedAtFirst(t *testing.T) {
	e, h := resting(t, 5*sessionsALook, 0)
	for range 20 {
		e.someSessions()
	}
	h.mu.Lock()
	h.sessions[77].epoch++
	h.mu.Unlock()
	if some := e.someSessions(); !slices.Contains(some.ids, 77) {
		t.Error("it must wait for its turn")
	}
}

// Idle frames come an interval after the last at the latest, and up to a grain earlier.
func TestIdleFramesAreNeverLate(t *testing.T) {
	for _, interval := range []time.Duration{50 * time.Millisecond, 4 * time.Second, 5 * time.Second, 15 * time.Second, time.Minute} {
		for range 100 {
			before := time.Now()
			at := beatTime(interval)
			early := time.Duration(0)
			if interval > 4*beatGrain {
				early = beatGrain
			}
			if at.After(time.Now().Add(interval)) || at.Before(before.Add(interval-early)) {
				t.Fatalf("with an interval of %v the next is due in %v", interval, at.Sub(before))
			}
		}
	}
}

// Sessions come and go in any order, and the next idle frame is the earliest that is due.
func TestIdleFramesAreSentInTheOrderTheyAreDue(t *testing.T) {
	_, h := resting(t, 300, 0)
	h.mu.Lock()
	defer h.mu.Unlock()
	in := map[*session]bool{}
	for range 5000 {
		s := h.sessions[int32(rand.IntN(300)+1)]
		if rand.IntN(3) == 0 {
			h.beatNoMore(s)
			delete(in, s)
		} else {
			s.reg.HeartbeatInterval = time.Duration(5+rand.IntN(55)) * time.Second
			h.beatLater(s)
			in[s] = true
		}
		if len(h.beats) != len(in) {
			t.Fatalf("%d sessions are sent idle frames, want %d", len(h.beats), len(in))
		}
	}
	var last time.Time
	for len(h.beats) > 0 {
		s := heap.Pop(&h.beats).(*session) //nolint:forcetypeassert // nothing else is in it
		if s.beatAt.Before(last) || !in[s] || s.beatPlace != 0 {
			t.Fatalf("one that is due at %v comes after one that is due at %v", s.beatAt, last)
		}
		delete(in, s)
		last = s.beatAt
	}
	if len(in) != 0 {
		t.Errorf("%d sessions are left out", len(in))
	}
}
