package bench

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// latencies is a histogram that many may write to at once: microseconds to a minute, three digits.
type latencies struct {
	mu sync.Mutex
	h  *hdrhistogram.Histogram
}

func newLatencies() *latencies {
	return &latencies{h: hdrhistogram.New(1, time.Minute.Microseconds(), 3)}
}

// record counts one. What is longer than a minute counts as a minute.
func (l *latencies) record(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.h.RecordValue(min(max(d.Microseconds(), 1), time.Minute.Microseconds())) // fails out of bounds only
}

func (l *latencies) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.h.TotalCount()
}

// add counts all that another one has counted.
func (l *latencies) add(other *latencies) {
	other.mu.Lock()
	defer other.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.Merge(other.h)
}

// ms is a percentile in milliseconds.
func (l *latencies) ms(percentile float64) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.h.ValueAtQuantile(percentile)) / 1e3
}

// least is the shortest, in milliseconds.
func (l *latencies) least() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return float64(l.h.Min()) / 1e3
}

// recordIn sets the usual percentiles under a key.
func (l *latencies) recordIn(d *Document, key string) {
	d.Set(key+".p50_ms", l.ms(50))
	d.Set(key+".p99_ms", l.ms(99))
	d.Set(key+".max_ms", l.ms(100))
	d.Set(key+".samples", float64(l.count()))
}

// median of values; of an even number, the mean of the two in the middle.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}
