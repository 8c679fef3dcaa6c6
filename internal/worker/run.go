package worker

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// pageCall bounds one call that reads results of parents.
const pageCall = 10 * time.Second

// deadlineGrace is how long after a run's deadline the worker waits for the server to revoke it before it gives the run up by
// itself, as it must when no word from the server comes through.
const deadlineGrace = 2 * time.Second

// Run is a step in this worker's hands.
type Run struct {
	// Step is what the server sent, with the results of all parents filled in.
	Step *taskerv1.ReadyStep

	cancel context.CancelCauseFunc // of the handler's context
	// gaveUp ends the run when its deadline is long past. nil while it has none.
	gaveUp *time.Timer

	// The rest is guarded by Worker.mu.
	lost        bool          // the lease is not ours any more
	concluded   bool          // the handler has returned; what it said is in the outbox
	heartbeatBy time.Duration // the greatest time between two heartbeats

	checkpointing sync.Mutex
	checkpoint    *string // to go with the next heartbeat
}

// Checkpoint stores one JSON object with the next heartbeat. The next run of the step is given it unless this one succeeds.
func (r *Run) Checkpoint(object string) {
	r.checkpointing.Lock()
	defer r.checkpointing.Unlock()
	r.checkpoint = &object
}

func (r *Run) takeCheckpoint() *string {
	r.checkpointing.Lock()
	defer r.checkpointing.Unlock()
	taken := r.checkpoint
	r.checkpoint = nil
	return taken
}

// putBack keeps a checkpoint whose heartbeat failed, unless there is a newer one.
func (r *Run) putBack(checkpoint *string) {
	r.checkpointing.Lock()
	defer r.checkpointing.Unlock()
	if r.checkpoint == nil {
		r.checkpoint = checkpoint
	}
}

// begin puts a step that has come into the table and runs it.
func (w *Worker) begin(life context.Context, step *taskerv1.ReadyStep) {
	ctx, cancel := context.WithCancelCause(life)
	run := &Run{Step: step, cancel: cancel, heartbeatBy: step.GetHeartbeatBy().AsDuration()}
	handler := w.handlers[step.GetHandler()]

	w.mu.Lock()
	if _, known := w.runs[step.GetLeaseToken()]; known {
		w.mu.Unlock()
		cancel(nil)
		return
	}
	w.runs[step.GetLeaseToken()] = run
	unwanted := w.stopping || handler == nil
	run.concluded = unwanted
	if !unwanted {
		w.handling.Add(1)
	}
	w.mu.Unlock()

	if unwanted {
		cancel(nil)
		w.outbox.release(run)
		return
	}
	w.limit(run, step)
	poke(w.beatSoon)
	go func() {
		defer w.handling.Done()
		w.execute(ctx, run, handler)
	}()
}

// deadlined is a frame or an answer that says when the server will end a run.
type deadlined interface {
	GetDeadline() *timestamppb.Timestamp
}

// limit gives the run up some time after its deadline. The server ends it at the deadline itself; this is for when the
// server's word does not reach us.
func (w *Worker) limit(run *Run, until deadlined) {
	deadline := until.GetDeadline()
	if deadline == nil {
		return
	}
	left := w.clock.until(deadline) + deadlineGrace
	w.mu.Lock()
	defer w.mu.Unlock()
	if run.gaveUp != nil {
		run.gaveUp.Reset(left)
		return
	}
	token := run.Step.GetLeaseToken()
	run.gaveUp = time.AfterFunc(left, func() { w.revoke(token, taskerv1.RevokeReason_REVOKE_REASON_TIMED_OUT) })
}

// execute runs the handler and passes its outcome on.
func (w *Worker) execute(ctx context.Context, run *Run, handler Handler) {
	started := time.Now()
	var outcome Outcome
	if err := w.fetchOmitted(ctx, run); err != nil {
		w.cfg.Logger.WarnContext(ctx, "handing a step back: the results of its parents cannot be read",
			"step_id", run.Step.GetStepId(), "error", err)
	} else {
		outcome = safely(ctx, handler, run)
	}
	run.cancel(nil)

	w.mu.Lock()
	run.concluded = true
	lost := run.lost
	if run.gaveUp != nil {
		run.gaveUp.Stop()
	}
	w.mu.Unlock()
	switch {
	case lost:
		w.settle(run)
	case outcome == nil:
		w.outbox.release(run)
	default:
		outcome.LeaseToken = run.Step.GetLeaseToken()
		outcome.RunDuration = durationpb.New(time.Since(started))
		w.outbox.report(run, outcome)
	}
}

// safely turns a panic into a failure like any other: one bad step must not take the worker's other runs with it.
func safely(ctx context.Context, handler Handler, run *Run) (outcome Outcome) {
	defer func() {
		if reason := recover(); reason != nil {
			outcome = RetryableFailure(&taskerv1.Failure{
				ErrorCode:  "PANIC",
				Message:    fmt.Sprint(reason),
				ErrorClass: fmt.Sprintf("%T", reason),
				StackTrace: string(debug.Stack()),
			})
		}
	}()
	return handler(ctx, run)
}

// fetchOmitted reads the results of parents that were too large for the frame.
func (w *Worker) fetchOmitted(ctx context.Context, run *Run) error {
	omitted := run.Step.GetOmittedDependencies()
	if len(omitted) == 0 {
		return nil
	}
	if run.Step.DependencyResults == nil {
		run.Step.DependencyResults = make(map[string]string, len(omitted))
	}
	request := &taskerv1.GetDependencyResultsRequest{LeaseToken: run.Step.GetLeaseToken(), StepNames: omitted}
	pause := newBackoff(retryFirst, retryMost)
	for {
		call, cancel := context.WithTimeout(ctx, pageCall)
		page, err := w.cfg.Client.GetDependencyResults(call, request)
		cancel()
		if err != nil {
			if judge(statusOf(err)) != again || !pause.wait(ctx, retryDelay(err)) {
				return err
			}
			continue
		}
		for _, result := range page.GetResults() {
			run.Step.DependencyResults[result.GetStepName()] = result.GetResults()
		}
		request.PageToken = page.GetNextPageToken()
		if request.GetPageToken() == "" {
			run.Step.OmittedDependencies = nil
			return nil
		}
		pause.reset()
	}
}

// revoke ends a run whose lease is lost. One that has concluded goes on being reported: the report is then kept as evidence,
// or was recorded before and is only waiting for its answer.
func (w *Worker) revoke(token string, reason taskerv1.RevokeReason) {
	w.mu.Lock()
	run := w.runs[token]
	if run == nil || run.concluded || run.lost {
		w.mu.Unlock()
		return
	}
	run.lost = true
	w.mu.Unlock()
	w.cfg.Logger.Info("lease lost", "step_id", run.Step.GetStepId(), "step", run.Step.GetStepName(),
		"dispatch", run.Step.GetDispatch(), "reason", reason.String())
	run.cancel(&Revoked{Reason: reason})
}

// settle takes a run out of the table.
func (w *Worker) settle(run *Run) {
	w.mu.Lock()
	delete(w.runs, run.Step.GetLeaseToken())
	w.mu.Unlock()
	poke(w.settled)
}
