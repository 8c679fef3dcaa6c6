//go:build linux

package chaos_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/taskerhq/tasker/internal/engine"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/store"
	"github.com/taskerhq/tasker/internal/task"
)

// hand is a worker.
type hand struct {
	e         *engine.Engine
	id, world string
	handlers  []string
	isSick    bool
	journal   *history.Journal

	mu   sync.Mutex
	held map[task.Token]bool // confirmed and running
}

const handsPerWorker = 6

// work opens a stream and runs what it brings, until ctx ends; and again, when the stream breaks.
func (h *hand) work(ctx context.Context) {
	var runs sync.WaitGroup
	defer runs.Wait()
	runs.Go(func() {
		for sleep(ctx, 300*time.Millisecond) {
			h.beat(ctx, nil)
		}
	})
	for sleep(ctx, 50*time.Millisecond) {
		st, err := h.e.Open(ctx, engine.Registration{Session: store.Session{
			WorkerID: h.id, InstanceID: "only", MaxInFlight: handsPerWorker, Handlers: h.handlers,
		}, Beats: true, DeliveryTimeout: time.Second, HeartbeatInterval: time.Second})
		if err != nil {
			continue // the database does not answer just now
		}
		for {
			f, err := st.Next(ctx)
			if err != nil {
				break
			}
			if f.Step != nil {
				runs.Go(func() { h.run(ctx, f.Step) })
			}
		}
		st.Close() //nolint:contextcheck // what was not delivered goes back, whether ctx has ended or not
	}
}

// beat confirms a step, or all that run.
func (h *hand) beat(ctx context.Context, step *task.ReadyStep) {
	h.mu.Lock()
	var beats []store.Beat
	if step != nil {
		h.held[step.Token] = true
		beats = []store.Beat{{Token: step.Token}}
	} else {
		for token := range h.held {
			beats = append(beats, store.Beat{Token: token})
		}
	}
	h.mu.Unlock()
	if len(beats) > 0 {
		_, _ = h.e.Heartbeat(ctx, beats) // A lease that is lost is found out by the report.
	}
}

// run does what its step's handler does, and writes down what it is given and what it says.
func (h *hand) run(ctx context.Context, step *task.ReadyStep) {
	h.write(history.Entry{Kind: history.FrameReceived, Probe: &step.Probe}, step)
	h.beat(ctx, step)
	defer func() {
		h.mu.Lock()
		delete(h.held, step.Token)
		h.mu.Unlock()
	}()
	if !sleep(ctx, h.takes(step)) {
		return
	}
	r := h.outcome(step)
	r.Token = step.Token
	r.Digest = sha256.Sum256(fmt.Append(nil, r.Outcome, step.Token.Nonce))
	h.write(history.Entry{Kind: history.ReportSent, Outcome: string(r.Outcome), Skip: &r.Skip}, step)
	for {
		a := h.e.Report(ctx, []task.Report{r})[0]
		answer := history.Entry{Kind: history.ReportAnswered, Outcome: string(r.Outcome)}
		var refusal *task.Error
		switch {
		case a.Err == nil:
			answer.AlreadyRecorded = a.Reported.AlreadyRecorded
		case errors.As(a.Err, &refusal) && (refusal.Reason == task.LeaseLost || refusal.Reason == task.ResultConflict):
			answer.Reason = string(refusal.Reason)
		default: // the outcome of the call is not known
			if !sleep(ctx, 50*time.Millisecond) {
				return
			}
			continue
		}
		h.write(answer, step)
		return
	}
}

// write keeps an entry. What a worker that cannot write did then would be done unseen.
func (h *hand) write(e history.Entry, step *task.ReadyStep) {
	e.StepID, e.Dispatch = int64(step.Token.Step), step.Dispatch
	e.Token = history.TokenDigest(fmt.Sprintf("%x", step.Token.Nonce))
	if err := h.journal.Write(e); err != nil {
		fmt.Fprintln(os.Stderr, "panic:", err)
		os.Exit(3)
	}
}

// isSo tells whether the test has put up a sign.
func (h *hand) isSo(sign string) bool {
	_, err := os.Stat(filepath.Join(h.world, sign))
	return err == nil
}

// takes is how long a run lasts.
func (h *hand) takes(step *task.ReadyStep) time.Duration {
	switch {
	case step.Handler == sluggish && step.Probe:
		return 400 * time.Millisecond // in somebody's hands when they are killed
	case step.Handler == fickle && step.Dispatch%16 == 0 && !h.isSo(healed), step.StepNo%50 == 0:
		return 700 * time.Millisecond // likewise
	}
	return time.Duration(5+step.StepNo%30) * time.Millisecond
}

// outcome is what a run comes to.
func (h *hand) outcome(step *task.ReadyStep) task.Report {
	failed := func(blame task.Blame, hint task.Hint) task.Report {
		return task.Report{
			Outcome: task.RetryableFailure, Blame: blame, Failure: task.Failure{ErrorCode: "BROKEN"}, Hint: hint,
			Skip: hint.After != nil, // what is told when to come back does not count
		}
	}
	within := func(d time.Duration) task.Hint { return task.Hint{Source: task.FromRetryAfter, After: &d} }
	succeeded := task.Report{Outcome: task.Success, Results: "{}"}
	isPoison := step.HandlerConfig == poison
	switch step.Handler {
	case flapping:
		if !h.isSo(down) {
			break
		}
		// Where a whole circuit should wait the dependency says so, now and then.
		if step.StepNo%3 == 0 {
			r := failed(task.BlameDependency, within(time.Second))
			r.ReachCircuit = true
			return r
		}
		return failed(task.BlameDependency, within(0))
	case sickened:
		if h.isSick {
			return failed(task.BlameDependency, within(0))
		}
	case blamed:
		if h.isSick {
			return failed(task.BlameWorker, within(0))
		}
	case poisoned:
		if isPoison {
			return failed(task.BlameStep, task.Hint{})
		}
	case venomous:
		if isPoison {
			return failed(task.BlameDependency, task.Hint{})
		}
	case sluggish:
		if succeeded.RunDuration = 10 * time.Millisecond; h.isSo(slow) {
			succeeded.RunDuration = 2 * slowCall
		}
	case patient:
		if isPoison {
			return failed(task.BlameStep, within(50*time.Millisecond))
		}
		if step.HandlerConfig == once && step.Dispatch == 1 {
			return failed(task.BlameStep, within(pause))
		}
	case fickle:
		// The token is as random as it gets.
		if step.Token.Nonce[0]%8 > 0 && !h.isSo(healed) {
			if step.Token.Nonce[1]%16 == 0 {
				return failed(task.BlameDependency, task.Hint{})
			}
			return failed(task.BlameDependency, within(5*time.Millisecond)) // does not count: attempts are few
		}
	}
	return succeeded
}
