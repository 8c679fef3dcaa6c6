package server

import (
	"os"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"sync"
	"time"
)

// The collector's pace. A server's live heap is small, so under load Go's default would collect it ten times a second and more,
// for a fifth of the server's processor time. It may then grow to 128 MB, or to five times what lives: half a gigabyte at most. A server at
// rest keeps the default and gives back what the load needed, so that its footprint follows the number of its streams: nothing
// else would make it, since a server that allocates next to nothing collects next to never.
const (
	calmPercent = 100 // Go's default
	busyPercent = 400 // at least, see busyPace
	busyHeap    = 128 << 20
	busyBelow   = 500 * time.Millisecond // between two collections
	// growingPercent is for a heap in which ever more lives, as while thousands of streams open: what is built among garbage stays
	// spread among it when that is gone, and pages that hold something cannot be given back.
	growingPercent = 50
	leastGrowth    = 1 << 20
	// smallHeap is what may live, at most, for the heap to be let grow.
	smallHeap = 96 << 20
	// restEvery is how often a server looks whether it is at rest, and calmAllocated what it may allocate meanwhile, in bytes, to be
	// out of the busy pace at least.
	restEvery     = 5 * time.Second
	calmAllocated = 8 << 20
	// leastSpare is what is worth giving back.
	leastSpare = 2 << 20
)

// pacer adjusts the collector's pace.
type pacer struct {
	mu        sync.Mutex
	percent   int
	started   time.Time // what is allocated in the first seconds is the server itself, and its workers' streams
	last      time.Time // when a collection was last seen to have ended
	found     heap      // then
	allocated uint64    // bytes, since the process began, at the last look for rest
}

var paceOnce sync.Once

// paceCollector lets the garbage collector run less often while it runs very often. An operator's own GOGC is left alone.
func paceCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	paceOnce.Do(func() {
		now := time.Now()
		p := &pacer{percent: calmPercent, started: now, last: now}
		var look func()
		look = func() {
			p.rest()
			time.AfterFunc(restEvery, look)
		}
		time.AfterFunc(restEvery, look)
		// A finalizer is called once a collection, on a goroutine that is there anyway.
		type pulse struct{ _ [16]byte }
		var beat func(*pulse)
		beat = func(x *pulse) {
			p.collected()
			runtime.SetFinalizer(x, beat)
		}
		runtime.SetFinalizer(&pulse{}, beat)
	})
}

// collected heeds that a collection has ended.
func (p *pacer) collected() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, found := time.Now(), readHeap()
	switch {
	case found.grows(&p.found):
		p.pace(growingPercent)
	case now.Sub(p.started) < restEvery:
		p.pace(calmPercent)
	default:
		p.pace(collectorPercent(p.percent, now.Sub(p.last), found.live))
	}
	p.last, p.found = now, found
}

// rest looks whether the server is at rest since the last look.
func (p *pacer) rest() {
	h := readHeap()
	p.mu.Lock()
	atRest, allocated := h.atRest(p.allocated), h.allocated-p.allocated
	p.allocated = h.allocated
	if atRest || allocated < calmAllocated {
		p.pace(calmPercent)
	}
	p.mu.Unlock()
	if atRest && h.worthReturning() {
		debug.FreeOSMemory()
	}
}

// pace needs p.mu.
func (p *pacer) pace(percent int) {
	if percent != p.percent {
		p.percent = percent
		debug.SetGCPercent(percent)
	}
}

// heap is what the runtime tells of its heap, in bytes.
type heap struct {
	live      uint64 // found alive by the last collection
	allocated uint64 // since the process began
	held      uint64 // taken by objects, dead ones too, or free and not given back
}

func readHeap() heap {
	samples := []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	runtimemetrics.Read(samples)
	return heap{live: samples[0].Value.Uint64(), allocated: samples[1].Value.Uint64(), held: samples[2].Value.Uint64() + samples[3].Value.Uint64()}
}

// grows tells whether more than an eighth of what was allocated since the collection before is kept.
func (h *heap) grows(before *heap) bool {
	return h.live > before.live+max((h.allocated-before.allocated)/8, leastGrowth)
}

// atRest: at the pace since the last look it would take eight looks and more to allocate as much as lives.
func (h *heap) atRest(allocatedBefore uint64) bool { return (h.allocated-allocatedBefore)*8 < h.live }

// worthReturning: a collection that gives memory back is worth its while, and was not done just now.
func (h *heap) worthReturning() bool { return h.held > h.live+max(h.live/4, leastSpare) }

// collectorPercent is GOGC after a collection that found so much alive and came so long after the one before. At a higher one
// collections are as many times as rare for the same load.
func collectorPercent(percent int, since time.Duration, live uint64) int {
	if live > smallHeap || since >= busyBelow*time.Duration(percent)/calmPercent {
		return calmPercent
	}
	return busyPace(live)
}

// busyPace lets the heap grow to busyHeap where little lives. It is rounded, so that it is seldom changed: that stops the world.
func busyPace(live uint64) int {
	return max(busyPercent, int(busyHeap/max(live, 1<<20)-1)*100) //nolint:gosec // at most 128
}
