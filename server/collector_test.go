package server

import (
	"runtime"
	"runtime/debug"
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
		// Nor is it less at a smaller share of them.
		{2 * busyPercent, 8*busyBelow - 1, busyPercent},
		{2 * busyPercent, 8 * busyBelow, calmPercent},
	} {
		if got := collectorPercent(c.percent, c.since, smallHeap+1); got != calmPercent {
			t.Errorf("a large heap is let grow at %d", got)
		}
		if got := collectorPercent(c.percent, c.since, smallHeap); got != c.want {
			t.Errorf("at %d, %v after the last one: %d, want %d", c.percent, c.since, got, c.want)
		}
	}
}

func TestABusyHeapGrowsToTheSameSizeHoweverLittleLives(t *testing.T) {
	const mib = 1 << 20
	for live, want := range map[uint64]int{0: 12_700, mib: 12_700, 8 * mib: 1500, 9 * mib: 1300, 20 * mib: 500, 26 * mib: busyPercent, smallHeap: busyPercent} {
		got := collectorPercent(calmPercent, busyBelow-1, live)
		if got != want {
			t.Errorf("with %d bytes alive: %d, want %d", live, got, want)
		}
		if size := live * uint64(100+got) / 100; size > max(busyHeap, 5*live) {
			t.Errorf("with %d bytes alive the heap may grow to %d", live, size)
		}
	}
}

func TestAHeapInWhichEverMoreLivesIsCollectedMoreOften(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		what                    string
		before, live, allocated uint64
		want                    bool
	}{
		{"streams open", 40 * mib, 60 * mib, 50 * mib, true},
		{"work", 9 * mib, 11 * mib, 118 * mib, false},
		{"more work", 9 * mib, 24 * mib, 118 * mib, true},
		{"next to nothing", 9 * mib, 10 * mib, 2 * mib, false},
		{"streams end", 60 * mib, 20 * mib, 50 * mib, false},
	} {
		before, now := &heap{live: c.before, allocated: 100 * mib}, &heap{live: c.live, allocated: 100*mib + c.allocated}
		if got := now.grows(before); got != c.want {
			t.Errorf("%s: from %d to %d bytes alive of %d allocated: %v", c.what, c.before, c.live, c.allocated, got)
		}
	}
	// The pace is that of a heap that grows even where collections come as often as under load.
	defer debug.SetGCPercent(debug.SetGCPercent(calmPercent))
	runtime.GC()
	p := &pacer{percent: calmPercent, last: time.Now(), found: readHeap()}
	kept := make([]byte, p.found.live/2+8*mib)
	runtime.GC()
	p.collected()
	runtime.KeepAlive(kept)
	if p.percent != growingPercent {
		t.Errorf("the pace is %d", p.percent)
	}
	p.collected()
	if want := busyPace(p.found.live); p.percent != want {
		t.Errorf("when it grows no more the pace is %d, want %d", p.percent, want)
	}
	p.started = time.Now()
	if p.collected(); p.percent != calmPercent {
		t.Errorf("of a server that just started the pace is %d", p.percent)
	}
}

func TestAServerAtRestGivesMemoryBackOnce(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		what           string
		heap           heap
		before         uint64
		rests, returns bool
	}{
		{"opened many streams, and then nothing", heap{live: 20 * mib, allocated: 101 * mib, held: 60 * mib}, 100 * mib, true, true},
		{"at rest since it gave back", heap{live: 20 * mib, allocated: 101 * mib, held: 22 * mib}, 100 * mib, true, false},
		{"small, with little to give", heap{live: 4 * mib, allocated: 100 * mib, held: 6 * mib}, 100 * mib, true, false},
		{"at work", heap{live: 20 * mib, allocated: 103 * mib, held: 60 * mib}, 100 * mib, false, true},
		{"objects die before they are counted alive", heap{live: 20 * mib, allocated: 100 * mib, held: 19 * mib}, 100 * mib, true, false},
	} {
		if got := c.heap.atRest(c.before); got != c.rests {
			t.Errorf("%s: at rest %v", c.what, got)
		}
		if got := c.heap.worthReturning(); got != c.returns {
			t.Errorf("%s: worth returning %v", c.what, got)
		}
	}
}

// The pacer is the process's own, so what it does is tried on one that no collection beats for.
func TestRestEndsTheBusyPace(t *testing.T) {
	p := &pacer{percent: busyPercent}
	defer debug.SetGCPercent(debug.SetGCPercent(busyPercent))
	runtime.GC()
	p.allocated = readHeap().allocated
	p.rest()
	if got := debug.SetGCPercent(calmPercent); p.percent != calmPercent || got != calmPercent {
		t.Errorf("after a rest the pace is %d, the collector's %d", p.percent, got)
	}
	garbage := make([]byte, 16<<20)
	runtime.KeepAlive(garbage)
	p.percent = busyPercent
	p.rest()
	if p.percent != busyPercent {
		t.Error("at work it is taken for being at rest")
	}
}
