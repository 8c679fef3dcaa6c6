// Package harness is what the Go programs under bench/peers share: each drives one queue with the same no-op jobs, told by
// lines on its standard input what to do, and answers each with one line of JSON. The programs in bench/peers/node speak
// the same language.
//
//	fill N           submit N jobs while nobody works
//	drain            begin to work, and work off what was filled
//	life N           submit N jobs, a bounded number ahead of the work, and work them off
//	latency RATE S   submit RATE jobs a second for S seconds by a timetable, whatever became of those before
//
// The first line of output tells who speaks. Work begins with the first drain and goes on until the input ends. A job that
// has been run is counted when the queue itself says that its completion is stored, for what a crash would undo is not
// done. What a stretch of work costs is not measured here but by the one who gives the commands.
//
// It depends on the standard library alone, for it is built into modules whose dependencies are not this project's.
package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// ahead bounds how far the submitters of `life` run ahead of the work, as those of the floor do.
	ahead = 10_000
	// timeout bounds how long any command may wait for work to end.
	timeout = 4 * time.Minute
	// pollEvery is how often a queue is asked how much of the work is stored.
	pollEvery = 10 * time.Millisecond
	// unnumbered jobs are those whose latency is of no interest.
	unnumbered = -1
)

// Payload is what every job carries: as much as the floor's.
var Payload = strings.Repeat("x", 84)

// Queue is one system under test, in its own database.
type Queue interface {
	// Submit stores so many jobs, the way the queue likes best for many, with the given number each.
	Submit(ctx context.Context, count, number int) error
	// SubmitOne stores one job in a call of its own.
	SubmitOne(ctx context.Context, number int) error
	// Work begins to take jobs and returns; started is told the number of each as soon as its handler has it.
	Work(ctx context.Context, started func(number int)) error
	// Completed counts the jobs whose completion is stored.
	Completed(ctx context.Context) (int64, error)
	// Close ends the work.
	Close(ctx context.Context) error
}

// Identity says what answers.
type Identity struct {
	Peer    string `json:"peer"`
	Version string `json:"version"`
	// Batch is how many jobs one Submit of fill and life carries, Submitters how many of them go on at once.
	Batch      int `json:"batch"`
	Submitters int `json:"submitters"`
}

// Measurement is the answer to a command. Times are from the command to the last stored completion.
type Measurement struct {
	Command string  `json:"command"`
	Jobs    int64   `json:"jobs"`
	Seconds float64 `json:"seconds"`
	// From the intended submit to the handler's begin; of the command latency only.
	P50 float64 `json:"p50_ms,omitempty"`
	P99 float64 `json:"p99_ms,omitempty"`
	Max float64 `json:"max_ms,omitempty"`
}

// Main runs a program to the end of its input. What the queue is to be found at, mostly the URL of a database, is in the
// environment: PEER_TARGET.
func Main(who Identity, open func(ctx context.Context, target string) (Queue, error)) {
	ctx := context.Background()
	err := func() error {
		queue, err := open(ctx, os.Getenv("PEER_TARGET"))
		if err != nil {
			return fmt.Errorf("opening: %w", err)
		}
		return errors.Join(Serve(ctx, who, queue, os.Stdin, os.Stdout), queue.Close(ctx))
	}()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", who.Peer, err)
		os.Exit(1)
	}
}

// Serve obeys the commands of in.
func Serve(ctx context.Context, who Identity, queue Queue, in io.Reader, out io.Writer) error {
	h := &harness{who: who, queue: queue, progressed: make(chan struct{}, 1)}
	answers := json.NewEncoder(out)
	if err := answers.Encode(who); err != nil {
		return err
	}
	for lines := bufio.NewScanner(in); lines.Scan(); {
		m, err := h.obey(ctx, lines.Text())
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		if err := answers.Encode(m); err != nil {
			return err
		}
	}
	return nil
}

// harness counts what it has submitted and what was run.
type harness struct {
	who     Identity
	queue   Queue
	working bool

	submitted, started atomic.Int64
	progressed         chan struct{} // look at started again

	mu        sync.Mutex
	intended  []time.Time // when the jobs of a latency were to be submitted, by number
	latencies []time.Duration
}

func (h *harness) obey(ctx context.Context, line string) (Measurement, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var (
		verb          string
		rate, seconds float64
		count         int
	)
	_, _ = fmt.Sscan(line, &verb) // an empty line is no known verb
	m := Measurement{Command: verb}
	begun, before := time.Now(), h.submitted.Load()
	var err error
	switch verb {
	case "fill", "life":
		if _, err = fmt.Sscan(line, &verb, &count); err != nil {
			return m, err
		}
		if verb == "life" {
			err = h.work(ctx)
		}
		if err == nil {
			err = h.submit(ctx, count, verb == "life")
		}
	case "drain":
		before = 0
		err = h.work(ctx)
	case "latency":
		if _, err = fmt.Sscan(line, &verb, &rate, &seconds); err != nil {
			return m, err
		}
		if err = h.work(ctx); err == nil {
			err = h.onTime(ctx, rate, seconds)
		}
	default:
		return m, errors.New("no such command")
	}
	if err == nil && verb != "fill" {
		err = h.await(ctx)
	}
	m.Seconds, m.Jobs = time.Since(begun).Seconds(), h.submitted.Load()-before
	if err == nil && verb == "latency" {
		m.P50, m.P99, m.Max, err = h.percentiles(m.Jobs)
	}
	return m, err
}

// work begins to work, if that was not done before. It goes on when the command is over.
func (h *harness) work(ctx context.Context) error {
	if h.working {
		return nil
	}
	h.working = true
	return h.queue.Work(context.WithoutCancel(ctx), func(number int) {
		now := time.Now()
		if number >= 0 {
			h.mu.Lock()
			if number < len(h.intended) {
				h.latencies = append(h.latencies, now.Sub(h.intended[number]))
			}
			h.mu.Unlock()
		}
		h.started.Add(1)
		select {
		case h.progressed <- struct{}{}:
		default:
		}
	})
}

// submit submits count jobs in batches, and never runs further ahead than it may where bounded.
func (h *harness) submit(ctx context.Context, count int, bounded bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan int)
	var submitters sync.WaitGroup
	for range h.who.Submitters {
		submitters.Go(func() {
			for n := range batches {
				if err := h.queue.Submit(ctx, n, unnumbered); err != nil {
					cancel(err)
					return
				}
				h.submitted.Add(int64(n))
			}
		})
	}
	for left := count; left > 0; {
		n := min(left, h.who.Batch)
		for bounded && h.submitted.Load()-h.started.Load() > ahead && ctx.Err() == nil {
			h.wait(ctx)
		}
		select {
		case batches <- n:
			left -= n
		case <-ctx.Done():
			left = 0
		}
	}
	close(batches)
	submitters.Wait()
	return context.Cause(ctx)
}

// onTime submits single jobs at random moments, the same in every run, so that no queue's own rhythm meets ours.
func (h *harness) onTime(ctx context.Context, rate, seconds float64) error {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // to be the same each time is its purpose
	begin := time.Now()
	var plan []time.Time
	for at := random.ExpFloat64() / rate; at < seconds; at += random.ExpFloat64() / rate {
		plan = append(plan, begin.Add(time.Duration(at*float64(time.Second))))
	}
	h.mu.Lock()
	h.intended, h.latencies = plan, make([]time.Duration, 0, len(plan))
	h.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var submits sync.WaitGroup
	for number, at := range plan {
		time.Sleep(time.Until(at))
		submits.Go(func() {
			if err := h.queue.SubmitOne(ctx, number); err != nil {
				cancel(err)
				return
			}
			h.submitted.Add(1)
		})
	}
	submits.Wait()
	return context.Cause(ctx)
}

// await waits until everything that was submitted has been run and its completion is stored.
func (h *harness) await(ctx context.Context) error {
	for h.started.Load() < h.submitted.Load() && ctx.Err() == nil {
		h.wait(ctx)
	}
	for {
		n, err := h.queue.Completed(ctx)
		if err != nil || n >= h.submitted.Load() {
			return err
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d jobs have been run and %d are complete after %s", h.started.Load(), h.submitted.Load(), n, timeout)
		}
	}
}

// wait waits until another job has begun, or for a moment: one that began while nobody waited may have been the last.
func (h *harness) wait(ctx context.Context) {
	select {
	case <-h.progressed:
	case <-time.After(pollEvery):
	case <-ctx.Done():
	}
}

func (h *harness) percentiles(jobs int64) (p50, p99, most float64, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := len(h.latencies)
	if n == 0 || int64(n) != jobs {
		return 0, 0, 0, fmt.Errorf("%d jobs began, of %d submitted", n, jobs)
	}
	slices.Sort(h.latencies)
	ms := func(i int) float64 { return float64(h.latencies[min(i, n-1)].Microseconds()) / 1e3 }
	return ms(n / 2), ms(n * 99 / 100), ms(n - 1), nil
}
