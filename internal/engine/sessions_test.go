package engine

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
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
		s := &session{id: id, epoch: 7, opening: 1}
		s.reg.MaxInFlight = 1
		if i < full {
			s.keep([16]byte{1}, "a")
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

// Idle frames come an interval after the last at the latest.
func TestIdleFramesAreNeverLate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		interval := time.Duration(rapid.Int64Range(int64(40*time.Millisecond), int64(time.Minute)).Draw(t, "interval"))
		now := time.Duration(rapid.Int64Range(0, 1e18).Draw(t, "now"))
		in := beatTime(now, interval, rapid.Uint64().Draw(t, "connection")) - now
		if in > interval || in <= 0 {
			t.Fatalf("with an interval of %v the next is due in %v", interval, in)
		}
	})
}

// However a connection's streams opened and whenever the server wakes to send, their idle frames fall together; and connections
// lie apart.
func TestIdleFramesOfAConnectionFallTogether(t *testing.T) {
	const interval = DefaultHeartbeatInterval
	instants := map[time.Duration]bool{}
	for connection := range uint64(200) {
		own := map[time.Duration]bool{}
		for range 100 {
			at := beatTime(rand.N(interval), interval, connection)
			for range 10 {
				next := beatTime(at+rand.N(20*time.Millisecond), interval, connection) // it is sent a little late
				if next != at+interval {
					t.Fatalf("after %v the next is due in %v", at, next-at)
				}
				at = next
			}
			own[at%interval] = true
			instants[at%interval] = true
		}
		if len(own) != 1 {
			t.Fatalf("the streams of connection %d are sent idle frames at %d instants of an interval, want 1", connection, len(own))
		}
	}
	if want := int(interval / beatGrain); len(instants) != want {
		t.Errorf("two hundred connections are sent idle frames at %d instants, want %d", len(instants), want)
	}
}

// Sessions come and go in any order: those whose idle frames are due are taken, each once, and no others.
func TestIdleFramesAreSentWhenTheyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBeats()
		all := make([]*session, 300)
		for i := range all {
			all[i] = &session{}
			all[i].reg.HeartbeatInterval = []time.Duration{50 * time.Millisecond, 5 * time.Second, 7001 * time.Millisecond, 15 * time.Second}[rand.IntN(4)]
			all[i].reg.Connection = rand.Uint64N(20)
		}
		in := map[*session]time.Duration{} // when they are due
		for range 5000 {
			switch s := all[rand.IntN(len(all))]; rand.IntN(4) {
			case 0:
				b.remove(s)
				delete(in, s)
			case 1:
				time.Sleep(rand.N(100 * time.Millisecond))
			default:
				b.add(s, beatTime(time.Since(b.born), s.reg.HeartbeatInterval, s.reg.Connection))
				in[s] = s.beatAt
			}
			first, taken := time.Duration(math.MaxInt64), map[*session]bool{}
			now, those := b.take()
			for _, s := range those {
				if at, ok := in[s]; !ok || taken[s] || at > now || s.beatPlace != 0 {
					t.Fatalf("at %v one is taken that is due at %v (%t)", now, at, ok)
				}
				taken[s] = true
				delete(in, s)
			}
			for s, at := range in {
				first = min(first, at)
				if at <= now || s.beatAt != at {
					t.Fatalf("at %v one stays that is due at %v", now, at)
				}
			}
			if at, ok := b.nextAt(); ok != (len(in) > 0) || ok && at.Sub(b.born) > first {
				t.Fatalf("the next is due at %v, and is looked for at %v (%t)", first, at.Sub(b.born), ok)
			}
		}
	})
}

// One that went before its idle frame was due leaves nobody behind without theirs.
func TestIdleFramesComeAfterASessionThatWasFirstHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hub{beats: newBeats()}
		h.work = sync.NewCond(&h.mu)
		defer h.shut()
		first, second := &session{}, &session{}
		first.reg.HeartbeatInterval, second.reg.HeartbeatInterval = 5*time.Second, 10*time.Second
		h.mu.Lock()
		h.beatLater(first)
		h.beatLater(second)
		h.beats.remove(first)
		h.mu.Unlock()
		time.Sleep(6 * time.Second)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.beat()
		if want := h.beats.born.Add(second.beatAt); !h.timerAt.Equal(want) {
			t.Errorf("the timer fires at %v, and the next frame is due at %v", h.timerAt, want)
		}
	})
}
