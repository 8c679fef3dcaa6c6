package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/taskerhq/tasker/examples/registration"
	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/postgres"
)

const (
	boardLook   = 400 * time.Millisecond // between two looks
	boardLine   = 4 * time.Second        // between two lines where there is no terminal
	boardBlind  = 20 * time.Second       // without any answer from the database
	boardDetail = 14                     // steps shown one by one
)

// demoBoard shows how the tasks stand: on a terminal as tables in place, else as a line now and then. It reads the SQL
// surface and nothing else, as the role that may read nothing else.
type demoBoard struct {
	*demo
	live     *live
	conn     *pgx.Conn
	saw      time.Time // the last answer
	lined    time.Time
	progress demoProgress
}

// demoProgress is how things stood at one instant.
type demoProgress struct {
	// workers have a stream open.
	workers                        int
	tasks, complete, failed, ended int
	// settledSteps are complete or failed for good.
	settledSteps int
	// buckets counts the steps of one name by what they are doing.
	buckets map[string]map[string]int
	// moving are steps that run or have failed, as the readiness function gives them.
	moving []*taskerv1.Step
}

// demoBuckets are the columns of the table of steps.
var demoBuckets = []string{"pending", "ready", "in_progress", "waiting_for_retry", "failed", "complete"}

func (d *demo) newBoard() *demoBoard {
	b := &demoBoard{demo: d, live: &live{printer: d.printer}, saw: time.Now()}
	d.board = b
	return b
}

// hide takes the tables away, so that a line can be said.
func (b *demoBoard) hide() {
	if b.live.drawn > 0 {
		_ = b.live.draw(nil) // The terminal is gone; there is nobody to tell.
		b.live.drawn = 0
	}
}

func (b *demoBoard) close(ctx context.Context) {
	b.disconnect(ctx)
	b.board = nil
}

func (b *demoBoard) disconnect(ctx context.Context) {
	if b.conn != nil {
		_ = b.conn.Close(ctx) // The server may have been killed.
		b.conn = nil
	}
}

// await looks until something holds of the progress. It fails when a process ended that was not to.
func (b *demoBoard) await(ctx context.Context, what string, holds func(demoProgress) bool) error {
	for {
		err := b.look(ctx)
		if err == nil {
			b.saw = time.Now()
			if err := b.show(); err != nil {
				return err
			}
			if holds(b.progress) {
				return nil
			}
		} else {
			b.disconnect(ctx)
		}
		if err := errors.Join(b.server.gone(), b.workersGone()); err != nil {
			return err
		}
		if time.Since(b.saw) > boardBlind {
			return fmt.Errorf("waiting until %s: the database does not answer: %w", what, err)
		}
		select {
		case <-time.After(boardLook):
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, context.Cause(ctx))
		}
	}
}

func (b *demoBoard) workersGone() error {
	var errs []error
	for _, worker := range b.workers {
		errs = append(errs, worker.gone())
	}
	return errors.Join(errs...)
}

// connectDemo connects to the demo's database, as a role unless that is empty.
func (d *demo) connectDemo(ctx context.Context, role string) (*pgx.Conn, error) {
	info, err := postgres.Attach(ctx, d.dataDir())
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, info.ConnString(postgres.Database))
	if err != nil {
		return nil, err
	}
	if role != "" {
		if _, err := conn.Exec(ctx, "set role "+pgx.Identifier{role}.Sanitize()); err != nil {
			return nil, errors.Join(err, conn.Close(ctx))
		}
	}
	return conn, nil
}

// readinessRow is what the board reads of get_step_readiness_status_batch.
type readinessRow struct {
	WorkflowStepID        int64
	TaskID                int64
	Name                  string
	CurrentState          string
	DependenciesSatisfied bool
	RetryEligible         bool
	ReadyForExecution     bool
	NextRetryAt           *time.Time
	Attempts              int32
	RetryLimit            int32
	BackoffRequestSeconds *float64
	Dispatches            int32
	LostLeases            int32
	ErrorCode             *string
	BlockedBy             []string
	LastFailureAt         *time.Time
}

// readiness asks for the steps of tasks.
func readiness(ctx context.Context, conn *pgx.Conn, tasks []int64) ([]readinessRow, error) {
	rows, err := conn.Query(ctx, `
		select workflow_step_id, task_id, name, current_state, dependencies_satisfied, retry_eligible, ready_for_execution,
		  next_retry_at, attempts, retry_limit, backoff_request_seconds::float8, dispatches, lost_leases, error_code, blocked_by,
		  last_failure_at
		from get_step_readiness_status_batch($1)`, tasks)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[readinessRow])
}

// bucket says what a step is doing, in the words of the execution context.
func (r readinessRow) bucket() string {
	switch {
	case r.ReadyForExecution:
		return "ready"
	case r.CurrentState == "error" && r.NextRetryAt != nil:
		return "waiting_for_retry"
	case r.CurrentState == "error":
		return "failed"
	}
	return r.CurrentState
}

// urgency orders steps for the eye: what waits for its retry, what runs, what has failed for good.
func (r readinessRow) urgency() int {
	switch {
	case r.NextRetryAt != nil:
		return 0
	case r.CurrentState == "in_progress":
		return 1
	}
	return 2
}

// compareTimes puts nil first.
func compareTimes(a, b *time.Time) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return a.Compare(*b)
}

// step is the row as the contract has it, for the table that `tasker steps` prints.
func (r readinessRow) step() *taskerv1.Step {
	step := &taskerv1.Step{
		StepId: strconv.FormatInt(r.WorkflowStepID, 10), TaskId: strconv.FormatInt(r.TaskID, 10), Name: r.Name,
		DependenciesSatisfied: r.DependenciesSatisfied, RetryEligible: r.RetryEligible, ReadyForExecution: r.ReadyForExecution,
		Attempts: r.Attempts, RetryLimit: r.RetryLimit, Dispatches: r.Dispatches, LostLeases: r.LostLeases, BlockedBy: r.BlockedBy,
	}
	// A state that this program does not know is shown as none.
	step.State, _ = enumOf[taskerv1.StepState](r.CurrentState)
	if r.NextRetryAt != nil {
		step.NextRetryAt = timestamppb.New(*r.NextRetryAt)
	}
	if r.BackoffRequestSeconds != nil {
		step.BackoffRequestDuration = durationpb.New(time.Duration(*r.BackoffRequestSeconds * float64(time.Second)))
	}
	if r.ErrorCode != nil {
		step.LastFailure = &taskerv1.Failure{ErrorCode: *r.ErrorCode}
	}
	return step
}

// look reads how all tasks stand.
func (b *demoBoard) look(ctx context.Context) error {
	if b.conn == nil {
		conn, err := b.connectDemo(ctx, "tasker_reader")
		if err != nil {
			return err
		}
		b.conn = conn
	}
	var tasks []int64
	for _, id := range b.client.users() {
		tasks = append(tasks, id)
	}
	now := demoProgress{tasks: len(tasks), buckets: make(map[string]map[string]int)}
	if err := b.conn.QueryRow(ctx, `select connected_workers from system_health_counts`).Scan(&now.workers); err != nil {
		return err
	}
	rows, err := b.conn.Query(ctx, `select status, count(*) from get_task_execution_contexts_batch($1) group by status`, tasks)
	if err != nil {
		return err
	}
	var status string
	var count int
	if _, err := pgx.ForEachRow(rows, []any{&status, &count}, func() error {
		switch status {
		case "complete":
			now.complete, now.ended = count, now.ended+count
		case "error":
			now.failed, now.ended = count, now.ended+count
		case "cancelled":
			now.ended += count
		}
		return nil
	}); err != nil {
		return err
	}
	steps, err := readiness(ctx, b.conn, tasks)
	if err != nil {
		return err
	}
	var moving []readinessRow
	for _, step := range steps {
		bucket := step.bucket()
		if now.buckets[step.Name] == nil {
			now.buckets[step.Name] = make(map[string]int)
		}
		now.buckets[step.Name][bucket]++
		switch bucket {
		case "complete", "failed":
			now.settledSteps++
		case "pending":
			continue
		}
		if step.LastFailureAt != nil && step.CurrentState != "complete" || bucket == "in_progress" {
			moving = append(moving, step)
		}
	}
	slices.SortStableFunc(moving, func(a, b readinessRow) int {
		return cmp.Or(cmp.Compare(a.urgency(), b.urgency()), compareTimes(a.NextRetryAt, b.NextRetryAt), -compareTimes(a.LastFailureAt, b.LastFailureAt))
	})
	for _, step := range moving[:min(len(moving), boardDetail)] {
		now.moving = append(now.moving, step.step())
	}
	b.progress = now
	return nil
}

func (p demoProgress) String() string {
	return fmt.Sprintf("%d tasks: %d complete, %d in error, %d going on", p.tasks, p.complete, p.failed, p.tasks-p.ended)
}

// show draws the tables, or now and then says a line.
func (b *demoBoard) show() error {
	if !b.printer.terminal {
		if b.progress.tasks == 0 || time.Since(b.lined) < boardLine {
			return nil
		}
		b.lined = time.Now()
		sums := make(map[string]int)
		for _, buckets := range b.progress.buckets {
			for bucket, count := range buckets {
				sums[bucket] += count
			}
		}
		line := b.progress.String() + "; steps:"
		for _, bucket := range demoBuckets {
			line += fmt.Sprintf(" %d %s", sums[bucket], bucket)
		}
		b.say("%s", line)
		return nil
	}
	if b.progress.tasks == 0 {
		return nil
	}
	byName := b.printer.table(append([]string{"name"}, demoBuckets...)...)
	for _, step := range registration.Steps {
		cells := []string{step.Name}
		for _, bucket := range demoBuckets {
			cells = append(cells, fmt.Sprint(b.progress.buckets[step.Name][bucket]))
		}
		byName.add(cells...)
	}
	lines := []string{"", b.progress.String(), ""}
	lines = append(lines, byName.lines()...)
	lines = append(lines, "")
	lines = append(lines, b.printer.readiness(b.progress.moving, true).lines()...)
	return b.live.draw(lines)
}
