package store_test

import (
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
	"time"
)

// shownStep is a row of the readiness table. Instants are microseconds since 1970; 0 stands for NULL.
type shownStep struct {
	ID                    int64
	TaskID                int64
	Name                  string
	CurrentState          string
	DependenciesSatisfied bool
	RetryEligible         bool
	ReadyForExecution     bool
	LastFailureAt         int64
	NextRetryAt           int64
	TotalParents          int
	CompletedParents      int
	Attempts              int
	RetryLimit            int
	BackoffRequest        int64 // µs; -1: none
	LastAttemptedAt       int64
	Dispatches            int
	LostLeases            int
	ErrorCode             string
	BlockedBy             string // joined by commas
	LastStartedAt         int64
	Epoch                 int
	PausedUntil           int64 // 0: until resumed; -1: no pause keeps it back
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// show is the readiness rule, column by column.
func (m *model) show(s *modelStep) shownStep {
	r := shownStep{
		ID: s.task.id + int64(s.no), TaskID: s.task.id, Name: s.name, CurrentState: s.state(),
		TotalParents: len(s.parents), CompletedParents: s.parentsDone(), Attempts: s.attempts, RetryLimit: s.policy.limit,
		Dispatches: s.dispatches, LostLeases: s.lost, Epoch: s.epoch, BackoffRequest: -1,
		BlockedBy:         strings.Join(m.blockedBy(s), ","),
		ReadyForExecution: m.ready(s),
		PausedUntil:       m.keptByPause(s),
	}
	r.DependenciesSatisfied = r.CompletedParents == r.TotalParents
	if f := s.failure; f != nil {
		r.LastFailureAt, r.LastAttemptedAt, r.LastStartedAt = micros(f.at), micros(f.at), micros(f.start)
		if s.place == isReady || s.place == isWaiting {
			r.NextRetryAt = micros(f.next)
		}
		if s.ending != "complete" {
			r.ErrorCode = f.code
			if f.requested != nil {
				r.BackoffRequest = f.requested.Microseconds()
			}
		}
	}
	if s.place == isParked {
		r.ErrorCode = s.parkCode
	}
	if s.lease != nil {
		r.LastStartedAt = micros(s.lease.began())
	}
	if s.place == isEnded && !s.lastStart.IsZero() {
		r.LastStartedAt = micros(s.lastStart)
	}
	if s.ending == "complete" && s.endedBy != nil {
		r.LastAttemptedAt = micros(s.endedAt)
	}
	waits := r.CurrentState == "pending" || r.CurrentState == "error" && s.place != isParked
	r.RetryEligible = waits && (m.now.UnixMicro() >= r.NextRetryAt)
	return r
}

// blockedBy names what a blocked step waits for: failed ancestors, then unfinished parents.
func (m *model) blockedBy(s *modelStep) []string {
	if s.place != isBlocked {
		return nil
	}
	ancestors := map[int]bool{}
	var climb func(*modelStep)
	climb = func(x *modelStep) {
		for _, p := range x.parents {
			if !ancestors[p] {
				ancestors[p] = true
				climb(s.task.steps[p-1])
			}
		}
	}
	climb(s)
	var failed, unfinished []string
	for _, x := range s.task.steps {
		switch {
		case ancestors[x.no] && x.place == isParked:
			failed = append(failed, x.name)
		case slices.Contains(s.parents, x.no) && !x.endedWell():
			unfinished = append(unfinished, x.name)
		}
	}
	return append(failed, unfinished...)
}

// shownTask is a row of the execution context, as the model has it.
type shownTask struct {
	TaskID          int64
	Status          string
	Total           int
	Pending         int
	InProgress      int
	Completed       int
	Failed          int
	Ready           int
	Waiting         int
	Cancelled       int
	ExecutionStatus string
	Recommended     string
	Percentage      float64
	Health          string
}

// nextActs is what to do about a task, by its execution status.
var nextActs = map[string]string{
	"all_complete": "finalize_task", "has_ready_steps": "execute_ready_steps", "processing": "wait_for_completion",
	"waiting_for_retry": "wait_for_retry", "blocked_by_failures": "handle_failures", "cancelled": "none",
	"waiting_for_dependencies": "wait_for_dependencies",
}

// sum counts a task's steps into seven buckets, each step into one.
func (m *model) sum(t *modelTask) shownTask {
	x := shownTask{TaskID: t.id, Total: len(t.steps)}
	started := false
	for _, s := range t.steps {
		started = started || s.started || s.failures > 0 || s.endedWell()
		switch {
		case s.endedWell():
			x.Completed++
		case s.place == isEnded:
			x.Cancelled++
		case s.place == isLeased:
			x.InProgress++
		case s.place == isParked:
			x.Failed++
		case m.ready(s):
			x.Ready++
		case m.runnable(s):
			x.Waiting++
		case s.place == isWaiting && s.failures > 0:
			x.Waiting++
		default:
			x.Pending++
		}
	}
	switch {
	case x.Completed == x.Total:
		x.Status = "complete"
	case x.Cancelled > 0:
		x.Status = "cancelled"
	case x.Failed > 0 && !t.canRun():
		x.Status = "error"
	case started:
		x.Status = "in_progress"
	default:
		x.Status = "pending"
	}
	switch {
	case x.Completed == x.Total:
		x.ExecutionStatus = "all_complete"
	case x.Ready > 0:
		x.ExecutionStatus = "has_ready_steps"
	case x.InProgress > 0:
		x.ExecutionStatus = "processing"
	case x.Waiting > 0:
		x.ExecutionStatus = "waiting_for_retry"
	case x.Failed > 0:
		x.ExecutionStatus = "blocked_by_failures"
	case x.Cancelled > 0:
		x.ExecutionStatus = "cancelled"
	default:
		x.ExecutionStatus = "waiting_for_dependencies"
	}
	switch {
	case x.Cancelled > 0:
		x.Health = "unknown"
	case x.ExecutionStatus == "blocked_by_failures":
		x.Health = "blocked"
	case x.Failed > 0, x.Waiting > 0:
		x.Health = "recovering"
	default:
		x.Health = "healthy"
	}
	x.Recommended = nextActs[x.ExecutionStatus]
	x.Percentage = float64((20_000*x.Completed+x.Total)/(2*x.Total)) / 100 // two decimals, half up
	return x
}

func TestTheModelImportsNothingOfTheProject(t *testing.T) {
	for _, file := range []string{"model_test.go", "model_pause_test.go", "model_verbs_test.go", "model_view_test.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range parsed.Imports {
			if strings.Contains(i.Path.Value, ".") {
				t.Errorf("%s imports %s", file, i.Path.Value)
			}
		}
	}
}
