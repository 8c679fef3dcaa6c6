package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func init() { commands = append(commands, newStepGroup) }

func newStepGroup(c *cli) *cobra.Command {
	cmd := group("step", "Read a step, or retry, resolve or complete one that failed")
	remote := c.newRemote(cmd)

	var payloads bool
	get := &cobra.Command{Use: "get STEP_ID", Short: "Show a step", Args: idArg("STEP_ID")}
	get.Flags().BoolVar(&payloads, "payloads", false, "show results, checkpoint and handler_config")
	get.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := ask(ctx, s.remote, s.steps.GetStep, &taskerv1.GetStepRequest{StepId: args[0], IncludePayloads: payloads})
		if err != nil {
			return fmt.Errorf("reading step %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.stepFacts(answer.GetStep()) })
	})

	var resolveReason string
	resolve := &cobra.Command{
		Use: "resolve STEP_ID", Short: "Let a failed step's dependants proceed without its results", Args: idArg("STEP_ID"),
	}
	resolve.Flags().StringVar(&resolveReason, "reason", "", "why, for the record")
	resolve.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := ask(ctx, s.remote, s.steps.ResolveStep, &taskerv1.ResolveStepRequest{StepId: args[0], Reason: resolveReason})
		if err != nil {
			return fmt.Errorf("resolving step %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.acted(answer.GetStep()) })
	})

	var completeReason, results string
	complete := &cobra.Command{
		Use: "complete STEP_ID", Short: "End a failed step as complete, with results that its dependants see", Args: idArg("STEP_ID"),
	}
	complete.Flags().StringVar(&completeReason, "reason", "", "why, for the record")
	complete.Flags().StringVar(&results, "results", "", "one `JSON` object; @FILE reads a file, - standard input")
	complete.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		object, err := c.parseObject("results", results)
		if err != nil {
			return err
		}
		answer, err := ask(ctx, s.remote, s.steps.CompleteStep, &taskerv1.CompleteStepRequest{StepId: args[0], Results: object, Reason: completeReason})
		if err != nil {
			return fmt.Errorf("completing step %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.acted(answer.GetStep()) })
	})
	cmd.AddCommand(get, newStepRetry(c, remote), resolve, complete)
	return cmd
}

// acted prints what an operator's act made of a step.
func (s *session) acted(step *taskerv1.Step) error {
	return s.printf("step %s (%s) of task %s is %s, epoch %d\n", step.GetStepId(), oneLine(step.GetName()), step.GetTaskId(),
		s.state(word(step.GetState())), step.GetEpoch())
}

// bulk is what the flags of step retry --bulk say.
type bulk struct {
	handlers, codes, tasks []string
	template, from, before string
	parked                 bool
	limit                  int
	spread                 time.Duration
}

func newStepRetry(_ *cli, remote *remote) *cobra.Command {
	var reason string
	var many bool
	var filter bulk
	cmd := &cobra.Command{
		Use:   "retry STEP_ID | --bulk FILTERS",
		Short: "Make a failed step due now with all its attempts before it, or with --bulk, every one that filters find",
		Long: `Make a step in error due now: its attempts and lost leases start again at 0, and its task is re-opened if it had ended in
error. With --bulk, all steps in error that satisfy every given filter are retried; at least one filter besides --parked-only
is required.`,
		Example: `  tasker step retry 81923 --reason 'the card service is back'
  tasker step retry --bulk --error-code CARD_DOWN --failed-from -2h --spread 5m`,
		Args: func(cmd *cobra.Command, args []string) error {
			if many {
				return exactly()(cmd, args)
			}
			return idArg("STEP_ID")(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&reason, "reason", "", "why, for the record")
	flags.BoolVar(&many, "bulk", false, "retry every step in error that the filters find")
	flags.StringArrayVar(&filter.handlers, "handler", nil, "with --bulk: only steps of this `HANDLER`; may be given several times")
	flags.StringArrayVar(&filter.codes, "error-code", nil, "with --bulk: only steps whose last failure bears this `CODE`; may be given several times")
	flags.StringArrayVar(&filter.tasks, "task", nil, "with --bulk: only steps of this `TASK_ID`; may be given several times")
	flags.StringVar(&filter.template, "template", "", "with --bulk: only steps of tasks of this template `NAME`")
	flags.StringVar(&filter.from, "failed-from", "", "with --bulk: only steps that last failed at this `INSTANT` or later (RFC 3339, or a duration such as -2h)")
	flags.StringVar(&filter.before, "failed-before", "", "with --bulk: only steps that last failed before this `INSTANT`")
	flags.BoolVar(&filter.parked, "parked-only", false, "with --bulk: only steps that failed for good, not those that wait for a retry")
	flags.IntVar(&filter.limit, "limit", 0, "with --bulk: how many steps to retry at most; 0 retries all")
	flags.DurationVar(&filter.spread, "spread", 0, "with --bulk: let each thousand steps come due evenly over this time instead of at once")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		if many {
			return s.retryMany(ctx, filter, reason)
		}
		answer, err := ask(ctx, s.remote, s.steps.RetryStep, &taskerv1.RetryStepRequest{StepId: args[0], Reason: reason})
		if err != nil {
			return fmt.Errorf("retrying step %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.acted(answer.GetStep()) })
	})
	return cmd
}

// retryMany calls BulkRetrySteps until the filter finds nothing more.
func (s *session) retryMany(ctx context.Context, given bulk, reason string) error {
	filter := &taskerv1.BulkRetryFilter{Handlers: given.handlers, ErrorCodes: given.codes, TaskIds: given.tasks, ParkedOnly: given.parked}
	if given.template != "" {
		filter.TemplateName = &given.template
	}
	now := time.Now()
	var err error
	if filter.FailedFrom, err = parseInstant("failed-from", given.from, now); err != nil {
		return err
	}
	if filter.FailedBefore, err = parseInstant("failed-before", given.before, now); err != nil {
		return err
	}
	request := &taskerv1.BulkRetryStepsRequest{Namespace: s.namespace, Filter: filter, Reason: reason}
	if given.spread > 0 {
		request.SpreadDuration = durationpb.New(given.spread)
	}
	answer := &taskerv1.BulkRetryStepsResponse{}
	err = s.pages(given.limit, func(size int32) (int, string, error) {
		request.MaxSteps = &size
		page, err := ask(ctx, s.remote, s.steps.BulkRetrySteps, request)
		answer.RetriedSteps += page.GetRetriedSteps()
		answer.NextPageToken = page.GetNextPageToken()
		request.PageToken = page.GetNextPageToken()
		return int(page.GetRetriedSteps()), page.GetNextPageToken(), err
	})
	if err != nil {
		return fmt.Errorf("retrying steps (%d are retried): %w", answer.GetRetriedSteps(), err)
	}
	return s.print(answer, func() error { return s.printf("%d steps retried\n", answer.GetRetriedSteps()) })
}
