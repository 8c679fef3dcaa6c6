package worker

import (
	"context"
	"time"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// beatBatch is the most heartbeats in one call, and beatBytes the most bytes of checkpoints.
const (
	beatBatch = 1000
	beatBytes = 3 << 20
)

// leaseShare is how much of heartbeat_by is used: the rest is for the way to the server and one lost call.
const leaseShare = 0.7

// beat sends one heartbeat for all runs, again and again.
func (w *Worker) beat(life context.Context) {
	last := time.Now()
	timer := time.NewTimer(w.cfg.HeartbeatEvery)
	defer timer.Stop()
	for {
		select {
		case <-life.Done():
			return
		case <-w.beatSoon:
			// A new run may ask for more than those before it.
		case <-timer.C:
			w.beatOnce(life)
			last = time.Now()
		}
		timer.Reset(max(0, w.beatEvery()-time.Since(last)))
	}
}

// beatEvery is the time between two heartbeats that suits the most pressing run.
func (w *Worker) beatEvery() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	every := w.cfg.HeartbeatEvery
	if w.deliveryTimeout > 0 {
		every = min(every, w.deliveryTimeout*2/5)
	}
	for _, run := range w.runs {
		if run.heartbeatBy > 0 {
			every = min(every, time.Duration(float64(run.heartbeatBy)*leaseShare))
		}
	}
	return every
}

// beatOnce beats for every run that is still ours, those whose report waits for its answer included: their lease must not end
// before the server has heard.
func (w *Worker) beatOnce(life context.Context) {
	w.mu.Lock()
	held := make([]*Run, 0, len(w.runs))
	for _, run := range w.runs {
		if !run.lost {
			held = append(held, run)
		}
	}
	w.mu.Unlock()
	for len(held) > 0 {
		var batch []*Run
		request := &taskerv1.HeartbeatStepsRequest{}
		for bytes := 0; len(held) > 0 && len(batch) < beatBatch && bytes < beatBytes; held = held[1:] {
			checkpoint := held[0].takeCheckpoint()
			if checkpoint != nil {
				bytes += len(*checkpoint)
			}
			batch = append(batch, held[0])
			request.Heartbeats = append(request.Heartbeats,
				&taskerv1.StepHeartbeat{LeaseToken: held[0].Step.GetLeaseToken(), Checkpoint: checkpoint})
		}
		w.sendBeats(life, batch, request)
	}
}

func (w *Worker) sendBeats(life context.Context, batch []*Run, request *taskerv1.HeartbeatStepsRequest) {
	ctx, cancel := context.WithTimeout(life, max(w.cfg.HeartbeatEvery, time.Second))
	defer cancel()
	answer, err := w.cfg.Client.HeartbeatSteps(ctx, request)
	if err != nil {
		for place, run := range batch {
			run.putBack(request.GetHeartbeats()[place].Checkpoint)
		}
		if life.Err() == nil {
			w.cfg.Logger.WarnContext(ctx, "heartbeat not answered", "runs", len(batch), "error", err)
		}
		return
	}
	w.clock.set(answer.GetServerTime())
	for place, entry := range answer.GetEntries() {
		w.journal(HeartbeatAnswered{Answer: entry})
		if place < len(batch) {
			w.takeBeat(life, batch[place], request.GetHeartbeats()[place], entry)
		}
	}
}

// takeBeat acts on how one lease stands.
func (w *Worker) takeBeat(ctx context.Context, run *Run, sent *taskerv1.StepHeartbeat, entry *taskerv1.HeartbeatStepsEntry) {
	switch judge(entry.GetStatus()) {
	case done:
		w.mu.Lock()
		if by := entry.GetHeartbeatBy().AsDuration(); by > 0 {
			run.heartbeatBy = by
		}
		concluded := run.concluded
		w.mu.Unlock()
		if !concluded {
			w.limit(run, entry)
		}
	case drop:
		w.revoke(entry.GetLeaseToken(), entry.GetRevokeReason())
	case correct:
		// Only a checkpoint can be wrong about a heartbeat. The lease stands.
		w.cfg.Logger.WarnContext(ctx, "checkpoint refused", "step_id", run.Step.GetStepId(), "error", entry.GetStatus().GetMessage())
	case again:
		run.putBack(sent.Checkpoint)
	}
}
