package harness_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/taskerhq/tasker/bench/peers/harness"
)

// memory is a queue that loses everything with the process, and stores a completion some looks later.
type memory struct {
	mu      sync.Mutex
	waiting []int
	started func(int)
	ran     atomic.Int64
	looks   atomic.Int64
	broken  error
}

func (m *memory) Submit(_ context.Context, count, number int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for range count {
		m.waiting = append(m.waiting, number)
	}
	m.run()
	return m.broken
}

func (m *memory) SubmitOne(ctx context.Context, number int) error { return m.Submit(ctx, 1, number) }

func (m *memory) Work(_ context.Context, started func(int)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.started = started
	m.run()
	return nil
}

func (m *memory) run() {
	if m.started == nil {
		return
	}
	for _, number := range m.waiting {
		m.started(number)
		m.ran.Add(1)
	}
	m.waiting = nil
}

func (m *memory) Completed(context.Context) (int64, error) {
	if m.looks.Add(1)%3 != 0 {
		return m.ran.Load() - 1, nil
	}
	return m.ran.Load(), nil
}

func (m *memory) Close(context.Context) error { return nil }

func TestEachCommandIsAnsweredWithWhatItDid(t *testing.T) {
	queue, out := &memory{}, &bytes.Buffer{}
	who := harness.Identity{Peer: "memory", Version: "1", Batch: 30, Submitters: 2}
	err := harness.Serve(t.Context(), who, queue, strings.NewReader("fill 100\ndrain\nlatency 1000 0.1\nlife 70\n"), out)
	if err != nil {
		t.Fatal(err)
	}
	answers := json.NewDecoder(out)
	var first harness.Identity
	if err := answers.Decode(&first); err != nil || first != who {
		t.Fatalf("the first answer is %+v, %v", first, err)
	}
	var all []harness.Measurement
	for {
		var m harness.Measurement
		if err := answers.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	if len(all) != 4 {
		t.Fatalf("%d answers to 4 commands: %+v", len(all), all)
	}
	for i, want := range []struct {
		command string
		jobs    int64
	}{{"fill", 100}, {"drain", 100}, {"latency", all[2].Jobs}, {"life", 70}} {
		if all[i].Command != want.command || all[i].Jobs != want.jobs || all[i].Seconds <= 0 {
			t.Errorf("answer %d is %+v, want %+v", i, all[i], want)
		}
	}
	// About a hundred: the moments are random, if the same each time.
	if m := all[2]; m.Jobs < 50 || m.Jobs > 150 || m.P50 <= 0 || m.P99 < m.P50 || m.Max < m.P99 {
		t.Errorf("the timetable gave %+v", m)
	}
	// An answer may not come before the last completion is stored, which the queue admits at each third look only.
	if looks := queue.looks.Load(); looks != 9 {
		t.Errorf("the queue was looked at %d times, want 9", looks)
	}
}

func TestWhatFailsIsNoMeasurement(t *testing.T) {
	broken := errors.New("the disk is full")
	for _, test := range []struct {
		line  string
		queue *memory
		want  string
	}{
		{"fill 10", &memory{broken: broken}, "the disk is full"},
		{"latency 1000 0.01", &memory{broken: broken}, "the disk is full"},
		{"fill", &memory{}, "unexpected newline"},
		{"dance", &memory{}, "no such command"},
		{"", &memory{}, "no such command"},
	} {
		var out bytes.Buffer
		err := harness.Serve(t.Context(), harness.Identity{Batch: 10, Submitters: 1}, test.queue, strings.NewReader(test.line+"\n"), &out)
		if err == nil || !strings.Contains(err.Error(), test.want) && test.line != "fill" {
			t.Errorf("%q: %v, want %q", test.line, err, test.want)
		}
		if lines := strings.Count(out.String(), "\n"); lines != 1 {
			t.Errorf("%q: %d lines were answered, want the first one only", test.line, lines)
		}
	}
}
