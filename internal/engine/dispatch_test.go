package engine

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// One transaction of twice the size costs less than two: a second one begins beside a first only where that is worth its cost.
func TestASecondTransactionBeginsWhenItIsWorthIt(t *testing.T) {
	for _, c := range []struct {
		name           string
		carries, waits int // reports: of the first, and for the second
		after          time.Duration
		begins         bool
	}{
		{"beside one of little", 8, 1, 0, true},
		{"not beside one of more", 9, 1, 0, false},
		{"beside one that takes long", 9, 1, 10 * time.Millisecond, true},
		{"not a moment earlier", 9, 1, 10*time.Millisecond - 1, false},
		{"with plenty of reports", 1000, 200, 0, true},
		{"not with one less", 1000, 199, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &hub{running: map[*flush]bool{}}
				h.work = sync.NewCond(&h.mu)
				defer h.shut()
				h.mu.Lock()
				h.begin(&flush{reports: make([]*pendingReport, c.carries)})
				h.mu.Unlock()
				time.Sleep(c.after)
				h.mu.Lock()
				defer h.mu.Unlock()
				h.reports = make([]*pendingReport, c.waits)
				if begins := h.mayBegin(); begins != c.begins {
					t.Errorf("it begins: %t", begins)
				}
				if !c.begins && !h.timerAt.Equal(time.Now().Add(10*time.Millisecond-c.after)) {
					t.Errorf("the hub looks again at %v, not when the first has taken long", h.timerAt)
				}
			})
		})
	}
}
