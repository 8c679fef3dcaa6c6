package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// boardPause is the time between two looks at all running tasks.
const boardPause = time.Second

func init() { commands = append(commands, newSteps, newAttempts) }

func newSteps(c *cli) *cobra.Command {
	var (
		states     []string
		limit      int
		token      string
		watch, all bool
	)
	cmd := &cobra.Command{
		Use:   "steps TASK_ID",
		Short: "Show the readiness of a task's steps",
		Long: `Show the readiness of a task's steps: the rows of get_step_readiness_status(task_id), under its column names.

With --watch the table is kept up to date on a terminal; elsewhere each change is a line. With --all in place of a task, the
steps of the newest tasks that have not ended are shown.`,
		Example: "  tasker steps 81920 --watch\n  tasker steps --all --watch --limit 20",
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return exactly()(cmd, args)
			}
			return idArg("TASK_ID")(cmd, args)
		},
	}
	remote := c.newRemote(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&states, "state", nil, "only steps in this `STATE`: pending, in_progress, complete, error, cancelled or resolved_manually; may be given several times")
	flags.IntVar(&limit, "limit", 0, "how many steps to list at most, or with --all, tasks; 0 lists all steps, and 50 tasks")
	flags.StringVar(&token, "page-token", "", "go on where an earlier list ended")
	flags.BoolVar(&watch, "watch", false, "follow the task until it has ended")
	flags.BoolVar(&all, "all", false, "show the tasks that have not ended")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		request := &taskerv1.ListStepsRequest{PageToken: token}
		for _, text := range states {
			state, err := enumOf[taskerv1.StepState](text)
			if err != nil {
				return usageError("--state %w", err)
			}
			request.States = append(request.States, state)
		}
		switch {
		case all:
			return s.unended(ctx, request, cmp.Or(limit, 50), watch)
		case watch:
			return s.watch(ctx, args[0], false, true)
		}
		request.TaskId = args[0]
		answer, err := s.listSteps(ctx, request, limit)
		if err != nil {
			return err
		}
		return s.print(answer, func() error { return s.page(s.readiness(answer.GetSteps(), false), answer.GetNextPageToken()) })
	})
	return cmd
}

func (s *session) listSteps(ctx context.Context, request *taskerv1.ListStepsRequest, limit int) (*taskerv1.ListStepsResponse, error) {
	answer := &taskerv1.ListStepsResponse{}
	err := s.pages(limit, func(size int32) (int, string, error) {
		request.PageSize = size
		page, err := ask(ctx, s.remote, s.steps.ListSteps, request)
		answer.Steps = append(answer.Steps, page.GetSteps()...)
		answer.NextPageToken = page.GetNextPageToken()
		request.PageToken = page.GetNextPageToken()
		return len(page.GetSteps()), page.GetNextPageToken(), err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the steps of task %s: %w", request.GetTaskId(), err)
	}
	return answer, nil
}

// unended shows the steps of the newest tasks that have not ended, once or again and again.
func (s *session) unended(ctx context.Context, filter *taskerv1.ListStepsRequest, limit int, watch bool) error {
	live := &live{printer: s.printer}
	for {
		tasks, err := s.listTasks(ctx, &taskerv1.ListTasksRequest{
			Namespace: s.namespace,
			States:    []taskerv1.TaskState{taskerv1.TaskState_TASK_STATE_PENDING, taskerv1.TaskState_TASK_STATE_IN_PROGRESS},
		}, limit)
		if err != nil {
			return err
		}
		answer := &taskerv1.ListStepsResponse{}
		for _, task := range tasks.GetTasks() {
			steps, err := s.listSteps(ctx, &taskerv1.ListStepsRequest{TaskId: task.GetTaskId(), States: filter.GetStates()}, 0)
			if err != nil {
				return err
			}
			answer.Steps = append(answer.Steps, steps.GetSteps()...)
		}
		show := func() error { return s.readiness(answer.GetSteps(), true).print() }
		switch {
		case !watch:
			return s.print(answer, show)
		case s.terminal && s.format == "table":
			err = live.draw(s.readiness(answer.GetSteps(), true).lines())
		default:
			err = s.stream(answer, show)
		}
		if err != nil {
			return err
		}
		timer := time.NewTimer(boardPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil // Looking on is over when the reader says so.
		}
	}
}

// readiness is the table of steps, under the column names of the SQL surface.
func (p *printer) readiness(steps []*taskerv1.Step, withTask bool) *table {
	heads := []string{
		"step_id", "name", "current_state", "dependencies_satisfied", "retry_eligible", "ready_for_execution", "waiting_for",
		"waiting_until", "attempts", "retry_limit",
		"backoff_request_seconds", "next_retry_at", "dispatches", "lost_leases", "error_code", "blocked_by",
	}
	if withTask {
		heads = append([]string{"task_id"}, heads...)
	}
	readiness := p.table(heads...)
	for _, step := range steps {
		cells := []string{
			step.GetStepId(), oneLine(step.GetName()), p.state(word(step.GetState())), p.yes(step.GetDependenciesSatisfied()),
			p.yes(step.GetRetryEligible()), p.yes(step.GetReadyForExecution()), word(step.GetWaitingFor()),
			instant(step.GetWaitingUntil()), count(step.GetAttempts()), count(step.GetRetryLimit()),
			seconds(step.GetBackoffRequestDuration()), instant(step.GetNextRetryAt()), count(step.GetDispatches()), count(step.GetLostLeases()),
			oneLine(step.GetLastFailure().GetErrorCode()), oneLine(strings.Join(step.GetBlockedBy(), ",")),
		}
		if withTask {
			cells = append([]string{step.GetTaskId()}, cells...)
		}
		readiness.add(cells...)
	}
	return readiness
}

// byID orders steps as ids go: a longer decimal number is a greater one.
func byID(a, b *taskerv1.Step) int {
	return cmp.Or(cmp.Compare(len(a.GetStepId()), len(b.GetStepId())), cmp.Compare(a.GetStepId(), b.GetStepId()))
}

func newAttempts(c *cli) *cobra.Command {
	var limit int
	var token string
	cmd := &cobra.Command{
		Use:   "attempts STEP_ID",
		Short: "List every dispatch of a step, the newest first",
		Long: `List every dispatch of a step, the newest first: who ran it, how it ended, and how long the next one had to wait, and why.
Dispatches that cost no attempt (lost, released, undelivered) are listed too.`,
		Args: idArg("STEP_ID"),
	}
	remote := c.newRemote(cmd)
	cmd.Flags().IntVar(&limit, "limit", 50, "how many to list at most; 0 lists all")
	cmd.Flags().StringVar(&token, "page-token", "", "go on where an earlier list ended")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		request := &taskerv1.ListStepAttemptsRequest{StepId: args[0], PageToken: token}
		answer := &taskerv1.ListStepAttemptsResponse{}
		err := s.pages(limit, func(size int32) (int, string, error) {
			request.PageSize = size
			page, err := ask(ctx, s.remote, s.steps.ListStepAttempts, request)
			answer.Attempts = append(answer.Attempts, page.GetAttempts()...)
			answer.NextPageToken = page.GetNextPageToken()
			request.PageToken = page.GetNextPageToken()
			return len(page.GetAttempts()), page.GetNextPageToken(), err
		})
		if err != nil {
			return fmt.Errorf("listing the attempts of step %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.page(s.attemptTable(answer.GetAttempts()), answer.GetNextPageToken()) })
	})
	return cmd
}

func (p *printer) attemptTable(attempts []*taskerv1.Attempt) *table {
	list := p.table("dispatch", "attempt", "epoch", "worker_id", "dispatched_at", "ended_at", "outcome", "delay", "delay_source", "next_retry_at",
		"error_code", "message", "late_report")
	for _, attempt := range attempts {
		delay := seconds(attempt.GetDelay())
		if attempt.GetDelayClamped() {
			delay += " (clamped)"
		}
		number, late := "", ""
		if attempt.GetAttempt() > 0 {
			number = count(attempt.GetAttempt())
		}
		if report := attempt.GetLateReport(); report != nil {
			late = fmt.Sprintf("%s at %s", word(report.GetOutcome()), instant(report.GetRecordedAt()))
		}
		list.add(count(attempt.GetDispatch()), number, count(attempt.GetEpoch()), oneLine(attempt.GetWorkerId()), instant(attempt.GetDispatchedAt()),
			instant(attempt.GetEndedAt()), p.state(word(attempt.GetOutcome())), delay, word(attempt.GetDelaySource()), instant(attempt.GetNextRetryAt()),
			oneLine(attempt.GetFailure().GetErrorCode()), brief(attempt.GetFailure().GetMessage()), late)
	}
	return list
}

// stepFacts prints one fact a line.
func (p *printer) stepFacts(step *taskerv1.Step) error {
	facts := p.table("step_id", step.GetStepId())
	add := func(name, value string) {
		if value != "" {
			facts.add(p.paint(styleHead, name), value)
		}
	}
	row := p.readiness([]*taskerv1.Step{step}, false)
	add("task_id", step.GetTaskId())
	for column, head := range row.heads[1:] {
		add(head, row.rows[0][column+1])
	}
	add("handler", oneLine(step.GetHandler()))
	add("circuit", oneLine(step.GetCircuit()))
	add("depends_on", oneLine(strings.Join(slices.Sorted(slices.Values(step.GetDependsOn())), ",")))
	add("parents", fmt.Sprintf("%d of %d done", step.GetCompletedParents(), step.GetTotalParents()))
	add("epoch", count(step.GetEpoch()))
	add("priority", count(step.GetPriority()))
	add("parked_reason", word(step.GetParkedReason()))
	add("last_failure_at", instant(step.GetLastFailureAt()))
	add("last_attempted_at", instant(step.GetLastAttemptedAt()))
	add("last_started_at", instant(step.GetLastStartedAt()))
	add("ended_at", instant(step.GetEndedAt()))
	add("message", oneLine(step.GetLastFailure().GetMessage()))
	add("worker_id", oneLine(step.GetLease().GetWorkerId()))
	add("lease_expires_at", instant(step.GetLease().GetExpiresAt()))
	add("results", oneLine(step.GetResults()))
	add("checkpoint", oneLine(step.GetCheckpoint()))
	add("handler_config", oneLine(step.GetHandlerConfig()))
	return facts.print()
}
