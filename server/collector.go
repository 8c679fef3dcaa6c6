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
// for a fifth of the server's processor time. It may then grow to five times what lives, half a gigabyte at most; a server at rest keeps the default,
// and with it a footprint that follows the number of its streams.
const (
	calmPercent = 100 // Go's default
	busyPercent = 400
	busyBelow   = 500 * time.Millisecond // between two collections
	// smallHeap is what may live, at most, for the heap to be let grow.
	smallHeap = 96 << 20
)

var paceOnce sync.Once

// paceCollector lets the garbage collector run less often while it runs very often. An operator's own GOGC is left alone.
func paceCollector() {
	if os.Getenv("GOGC") != "" {
		return
	}
	paceOnce.Do(func() {
		last, percent := time.Now(), calmPercent
		// A finalizer is called once a collection, on a goroutine that is there anyway.
		type pulse struct{ _ [16]byte }
		var beat func(*pulse)
		beat = func(p *pulse) {
			now := time.Now()
			if next := collectorPercent(percent, now.Sub(last), liveHeap()); next != percent {
				percent = next
				debug.SetGCPercent(percent)
			}
			last = now
			runtime.SetFinalizer(p, beat)
		}
		runtime.SetFinalizer(&pulse{}, beat)
	})
}

// liveHeap is what the last collection found alive, in bytes.
func liveHeap() uint64 {
	sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(sample)
	return sample[0].Value.Uint64()
}

// collectorPercent is GOGC after a collection that found so much alive and came so long after the one before. At the busy pace
// collections are four times as rare for the same load.
func collectorPercent(percent int, since time.Duration, live uint64) int {
	if live > smallHeap {
		return calmPercent
	}
	limit := busyBelow
	if percent == busyPercent {
		limit *= busyPercent / calmPercent
	}
	if since < limit {
		return busyPercent
	}
	return calmPercent
}
