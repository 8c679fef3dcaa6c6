//go:build linux

package chaos_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/taskerhq/tasker/internal/task"
)

// govern sets the circuits' policies.
func (r *circuitRun) govern() {
	r.Helper()
	for name, p := range map[string]task.CircuitPolicy{
		flapping: {FailureRateThreshold: ptr(0.1), MaxProbes: ptr(2), CloseAfterSuccesses: ptr(2), RecoveryWave: ptr(16)},
		sluggish: {SlowCallDuration: ptr(slowCall), SlowRateThreshold: ptr(0.3), MaxProbes: ptr(3), CloseAfterSuccesses: ptr(2), RecoveryWave: ptr(8)},
		// An eighth of the calls fails, all of them in one pair of hands.
		sickened: {MinFailingWorkers: ptr(2), FailureRateThreshold: ptr(0.05)},
		blamed:   {FailureRateThreshold: ptr(0.3), MinObservations: ptr(2)},
		poisoned: {FailureRateThreshold: ptr(0.1)},
		venomous: {MaxProbes: ptr(3), CloseAfterSuccesses: ptr(2), RecoveryWave: ptr(4)},
		narrow:   {MaxInFlight: ptr(3)},
		paced:    {Rate: ptr(25.0)},
		patient:  {SuspendBudgets: ptr(true), MaxProbes: ptr(2), CloseAfterSuccesses: ptr(2)},
	} {
		p.OpenDuration, p.MaxOpenDuration, p.Window = ptr(time.Second), ptr(2*time.Second), ptr(5*time.Second)
		if p.MinObservations == nil {
			p.MinObservations = ptr(6)
		}
		_, err := r.e.SetCircuitPolicy(r.Context(), "", name, p, []string{
			"min_observations", "open_duration", "max_open_duration", "window_duration", "max_probes", "close_after_successes", "recovery_wave",
			"min_failing_workers", "failure_rate_threshold", "slow_call_duration", "slow_rate_threshold", "max_in_flight", "rate",
			"suspend_budgets",
		}, "test", "chaos")
		r.must(err)
	}
}

func ptr[T any](v T) *T { return &v }

// stepBehind is a step of a handler and its circuit that may be tried for long.
func stepBehind(handler string) task.StepSpec {
	return task.StepSpec{
		Name: "s", Handler: handler, Circuit: handler, Priority: 1, HandlerConfig: "{}",
		Policy: task.Policy{
			RetryLimit: 100, Retryable: true, MaxLostLeases: 100, Initial: ptr(20 * time.Millisecond), Max: ptr(100 * time.Millisecond),
			Lease: ptr(2 * time.Second),
		},
	}
}

// stepsOf are how many steps a task of each handler has. Those of patient come with its windows.
var stepsOf = map[string]int{
	flapping: 50, sluggish: 16, sickened: 24, blamed: 16, poisoned: 12, venomous: 8, narrow: 6, paced: 10,
}

// submit submits tasks of each kind.
func (r *circuitRun) submit(n int) {
	r.Helper()
	for range n {
		var subs []*task.Submission
		for _, handler := range circuitHandlers {
			sub := &task.Submission{Name: handler, Context: "{}"}
			for no := range stepsOf[handler] {
				s := stepBehind(handler)
				switch {
				case no%2 == 1 && (handler == poisoned || handler == venomous && r.rounds < 4):
					s.HandlerConfig, s.RetryLimit = poison, 2
				case handler == flapping:
					s.RetryLimit = 2 // its failures do not count
				}
				s.Name = fmt.Sprint("s", no)
				sub.Steps = append(sub.Steps, s)
			}
			if len(sub.Steps) > 0 {
				subs = append(subs, sub)
			}
		}
		r.must(r.send(r.Context(), subs...))
		r.rounds++
	}
}

// send submits, and keeps in mind what is to become of it.
func (r *circuitRun) send(ctx context.Context, subs ...*task.Submission) error {
	if _, err := r.e.Submit(ctx, subs, true); err != nil {
		return fmt.Errorf("submitting: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, sub := range subs {
		for _, s := range sub.Steps {
			if s.HandlerConfig == poison {
				r.bad[s.Circuit]++
			} else {
				r.good[s.Circuit]++
			}
		}
	}
	return nil
}

// flap takes a dependency down and up again, until ctx ends. It ends up.
func (r *circuitRun) flap(ctx context.Context) error {
	draw := r.draw(1)
	for sleep(ctx, time.Duration(300+draw.IntN(2500))*time.Millisecond) {
		if err := r.during(ctx, down, time.Duration(200+draw.IntN(2000))*time.Millisecond); err != nil {
			return err
		}
		r.flaps++
	}
	return nil
}

// drag makes another one slow for a while, again and again.
func (r *circuitRun) drag(ctx context.Context) error {
	draw := r.draw(4)
	for sleep(ctx, time.Duration(300+draw.IntN(1500))*time.Millisecond) {
		if err := r.during(ctx, slow, time.Duration(1000+draw.IntN(2000))*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// during puts up a sign for a while.
func (r *circuitRun) during(ctx context.Context, sign string, d time.Duration) error {
	path := filepath.Join(r.dir, sign)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	sleep(ctx, d)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// operate holds the flapping circuit for a while, now or a little later, and releases it before or after.
func (r *circuitRun) operate(ctx context.Context) error {
	draw := r.draw(3)
	always := context.WithoutCancel(ctx)
	for sleep(ctx, time.Duration(4000+draw.IntN(3000))*time.Millisecond) {
		now := time.Now()
		h := task.CircuitHold{Reason: "chaos", Actor: "test", Until: ptr(now.Add(time.Duration(1500+draw.IntN(1000)) * time.Millisecond))}
		if draw.IntN(2) == 0 {
			h.From = now.Add(500 * time.Millisecond)
		}
		if _, err := r.e.HoldCircuit(always, "", flapping, h); err != nil {
			return fmt.Errorf("holding a circuit: %w", err)
		}
		r.holds++
		sleep(ctx, time.Duration(draw.IntN(2500))*time.Millisecond)
		if _, err := r.e.ReleaseCircuit(always, "", flapping, "test", "chaos"); err != nil {
			return fmt.Errorf("releasing a circuit: %w", err)
		}
	}
	return nil
}

// The windows of circuit patient, and the time that its steps have, which is less.
const (
	windowIn     = 200 * time.Millisecond
	windowFor    = 3 * time.Second
	timeElapsed  = 2200 * time.Millisecond
	timeDeadline = 2 * time.Second
	timePoison   = time.Second
)

// plan has planned windows begin and end by themselves, over steps whose budget of time is shorter: some that have failed once
// before it, some whose deadline falls into it, and some that will use up theirs whatever is not counted.
func (r *circuitRun) plan(ctx context.Context) error {
	always := context.WithoutCancel(ctx)
	for sleep(ctx, 500*time.Millisecond) {
		tried := &task.Submission{Name: "tried", Context: "{}"}
		for no := range 3 {
			s := stepBehind(patient)
			s.Name, s.HandlerConfig, s.MaxElapsed = fmt.Sprint("s", no), once, ptr(timeElapsed)
			if no == 2 {
				s.HandlerConfig, s.MaxElapsed = poison, ptr(timePoison)
			}
			tried.Steps = append(tried.Steps, s)
		}
		if err := r.send(always, tried); err != nil {
			return err
		}
		if err := r.awaitFirstFailures(ctx); err != nil {
			return err
		}
		now := time.Now()
		window := task.CircuitHold{Reason: "a planned window", Actor: "test", From: now.Add(windowIn), Until: ptr(now.Add(windowIn + windowFor))}
		if _, err := r.e.HoldCircuit(always, "", patient, window); err != nil {
			return fmt.Errorf("planning a window: %w", err)
		}
		r.windows++
		sleep(ctx, windowIn+100*time.Millisecond)
		s := stepBehind(patient)
		due := &task.Submission{Name: "due", Context: "{}", Deadline: ptr(time.Now().Add(timeDeadline)), Steps: []task.StepSpec{s}}
		if err := r.send(always, due); err != nil {
			return err
		}
		sleep(ctx, windowFor+time.Second)
	}
	return nil
}

// awaitFirstFailures waits, not for long, until every step of patient has been tried.
func (r *circuitRun) awaitFirstFailures(ctx context.Context) error {
	const untried = `select count(*) from ready join lane using (lane_id) where circuit = $1 and failures = 0`
	for began := time.Now(); sleep(ctx, 50*time.Millisecond) && time.Since(began) < 5*time.Second; {
		var n int
		if err := r.db.Pool.QueryRow(ctx, untried, patient).Scan(&n); err != nil && ctx.Err() == nil {
			return fmt.Errorf("looking for steps that wait: %w", err)
		} else if err == nil && n == 0 {
			return nil
		}
	}
	return nil
}
