package server

import (
	"testing"
	"time"
)

func TestTheCollectorsPaceFollowsTheLoad(t *testing.T) {
	for _, c := range []struct {
		percent int
		since   time.Duration
		want    int
	}{
		{calmPercent, 2 * time.Minute, calmPercent},
		{calmPercent, busyBelow, calmPercent},
		{calmPercent, busyBelow - 1, busyPercent},
		// The same load, at a quarter of the collections, is still load.
		{busyPercent, busyBelow, busyPercent},
		{busyPercent, 4*busyBelow - 1, busyPercent},
		{busyPercent, 4 * busyBelow, calmPercent},
	} {
		if got := collectorPercent(c.percent, c.since, smallHeap+1); got != calmPercent {
			t.Errorf("a large heap is let grow at %d", got)
		}
		if got := collectorPercent(c.percent, c.since, smallHeap); got != c.want {
			t.Errorf("at %d, %v after the last one: %d, want %d", c.percent, c.since, got, c.want)
		}
	}
}
