package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func init() { commands = append(commands, newTasks, newTaskGroup) }

func newTasks(c *cli) *cobra.Command {
	var (
		states, labels                []string
		template, from, before, token string
		limit                         int
	)
	cmd := &cobra.Command{
		Use:     "tasks",
		Short:   "List tasks, the newest first",
		Example: "  tasker tasks --state error --label customer=7",
		Args:    exactly(),
	}
	remote := c.newRemote(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&states, "state", nil, "only tasks in this `STATE`: pending, in_progress, complete, error or cancelled; may be given several times")
	flags.StringVar(&template, "template", "", "only tasks of this `NAME[@VERSION]`")
	flags.StringArrayVar(&labels, "label", nil, "only tasks with this `KEY=VALUE`; at most three")
	flags.StringVar(&from, "created-from", "", "only tasks created at this `INSTANT` or later (RFC 3339, or a duration such as -24h)")
	flags.StringVar(&before, "created-before", "", "only tasks created before this `INSTANT`")
	flags.IntVar(&limit, "limit", 50, "how many to list at most; 0 lists all")
	flags.StringVar(&token, "page-token", "", "go on where an earlier list ended")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, _ []string) error {
		request := &taskerv1.ListTasksRequest{Namespace: s.namespace, PageToken: token}
		for _, text := range states {
			state, err := enumOf[taskerv1.TaskState](text)
			if err != nil {
				return usageError("--state %w", err)
			}
			request.States = append(request.States, state)
		}
		if template != "" {
			request.Template = templateRef(template)
		}
		var err error
		if request.Labels, err = parsePairs("label", labels); err != nil {
			return err
		}
		now := time.Now()
		if request.CreatedFrom, err = parseInstant("created-from", from, now); err != nil {
			return err
		}
		if request.CreatedBefore, err = parseInstant("created-before", before, now); err != nil {
			return err
		}
		answer, err := s.listTasks(ctx, request, limit)
		if err != nil {
			return err
		}
		return s.print(answer, func() error {
			list := s.table("task_id", "name", "template", "state", "steps", "created_at", "ended_at", "labels")
			for _, task := range answer.GetTasks() {
				list.add(task.GetTaskId(), oneLine(task.GetName()), versioned(task.GetTemplate()), s.state(word(task.GetState())),
					count(task.GetStepCount()), instant(task.GetCreatedAt()), instant(task.GetEndedAt()), pairs(task.GetLabels()))
			}
			return s.page(list, answer.GetNextPageToken())
		})
	})
	return cmd
}

// listTasks reads pages until there are limit tasks, or all.
func (s *session) listTasks(ctx context.Context, request *taskerv1.ListTasksRequest, limit int) (*taskerv1.ListTasksResponse, error) {
	answer := &taskerv1.ListTasksResponse{}
	err := s.pages(limit, func(size int32) (int, string, error) {
		request.PageSize = size
		page, err := ask(ctx, s.remote, s.tasks.ListTasks, request)
		answer.Tasks = append(answer.Tasks, page.GetTasks()...)
		answer.NextPageToken = page.GetNextPageToken()
		request.PageToken = page.GetNextPageToken()
		return len(page.GetTasks()), page.GetNextPageToken(), err
	})
	if err != nil {
		return nil, fmt.Errorf("listing tasks: %w", err)
	}
	return answer, nil
}

// maxPage is the greatest page that a server gives.
const maxPage = 1000

// pages calls next for one page after the other until there are limit entries, or all where limit is 0. next returns how
// many entries its page had, and the token of the page after it.
func (s *session) pages(limit int, next func(size int32) (int, string, error)) error {
	if limit < 0 {
		return usageError("--limit %d: must not be negative", limit)
	}
	for have := 0; ; {
		size := maxPage
		if limit > 0 {
			size = min(limit-have, maxPage)
		}
		got, token, err := next(int32(size))
		if err != nil {
			return err
		}
		have += got
		if token == "" || (limit > 0 && have >= limit) {
			return nil
		}
	}
}

// page prints a table, and on stderr how to get what comes after it.
func (s *session) page(list *table, token string) error {
	if token != "" {
		fmt.Fprintf(s.cli.stderr, "tasker: there may be more: --page-token %s, or --limit 0\n", token)
	}
	return list.print()
}

func versioned(ref *taskerv1.TemplateRef) string {
	if ref == nil {
		return ""
	}
	return ref.GetName() + "@" + ref.GetVersion()
}

func newTaskGroup(c *cli) *cobra.Command {
	cmd := group("task", "Read, watch, cancel or purge one task")
	remote := c.newRemote(cmd)

	var withContext, withResults bool
	get := &cobra.Command{Use: "get TASK_ID", Short: "Show a task, the sum of its steps and its results", Args: idArg("TASK_ID")}
	get.Flags().BoolVar(&withContext, "context", false, "show the task's context")
	get.Flags().BoolVar(&withResults, "results", true, "show the results of the steps that no other depends on")
	get.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := s.getTask(ctx, args[0], withContext, withResults)
		if err != nil {
			return err
		}
		return s.print(answer, func() error { return s.printTask(answer) })
	})

	var idle bool
	watch := &cobra.Command{
		Use:   "watch TASK_ID",
		Short: "Print every change of a task until it ends",
		Long: `Print every change of a task until it is complete or cancelled. The exit status is 0 only when it is complete. With -o json,
each frame of the stream is a line. A lost connection is made again and nothing is missed.`,
		Args: idArg("TASK_ID"),
	}
	watch.Flags().BoolVar(&idle, "until-idle", false, "end also when the task stands in error and waits for an operator")
	watch.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		return s.watch(ctx, args[0], idle, false)
	})

	var cancelReason string
	cancel := &cobra.Command{Use: "cancel TASK_ID", Short: "End a task: waiting steps are cancelled, running ones revoked", Args: idArg("TASK_ID")}
	cancel.Flags().StringVar(&cancelReason, "reason", "", "why, for the record")
	cancel.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := ask(ctx, s.remote, s.tasks.CancelTask, &taskerv1.CancelTaskRequest{TaskId: args[0], Reason: cancelReason})
		if err != nil {
			return fmt.Errorf("cancelling task %s: %w", args[0], err)
		}
		return s.print(answer, func() error {
			return s.printf("task %s is %s: %d steps cancelled, %d of them running\n", args[0], s.state(word(answer.GetTask().GetState())),
				answer.GetCancelledSteps(), answer.GetRevokedLeases())
		})
	})

	var purgeReason string
	purge := &cobra.Command{Use: "purge TASK_ID", Short: "Delete an ended task with its steps and payloads, for good", Args: idArg("TASK_ID")}
	purge.Flags().StringVar(&purgeReason, "reason", "", "why, for the record")
	purge.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := ask(ctx, s.remote, s.tasks.PurgeTask, &taskerv1.PurgeTaskRequest{TaskId: args[0], Reason: purgeReason})
		if err != nil {
			return fmt.Errorf("purging task %s: %w", args[0], err)
		}
		return s.print(answer, func() error {
			return s.printf("task %s is purged with its %d steps\n", args[0], answer.GetPurgedSteps())
		})
	})
	cmd.AddCommand(get, watch, cancel, purge)
	return cmd
}

func (s *session) getTask(ctx context.Context, id string, withContext, withResults bool) (*taskerv1.GetTaskResponse, error) {
	answer, err := ask(ctx, s.remote, s.tasks.GetTask,
		&taskerv1.GetTaskRequest{TaskId: id, IncludeContext: withContext, IncludeLeafResults: withResults})
	if err != nil {
		return nil, fmt.Errorf("reading task %s: %w", id, err)
	}
	return answer, nil
}

// printTask prints one fact a line.
func (s *session) printTask(answer *taskerv1.GetTaskResponse) error {
	task, sum := answer.GetTask(), answer.GetExecutionContext()
	facts := s.table("task_id", task.GetTaskId())
	add := func(name, value string) {
		if value != "" {
			facts.add(s.paint(styleHead, name), value)
		}
	}
	add("name", oneLine(task.GetName()))
	add("namespace", task.GetNamespace())
	add("template", versioned(task.GetTemplate()))
	add("state", s.state(word(task.GetState())))
	add("labels", pairs(task.GetLabels()))
	add("not_before", instant(task.GetNotBefore()))
	add("deadline", instant(task.GetDeadline()))
	add("created_at", instant(task.GetCreatedAt()))
	add("created_by", oneLine(task.GetCreatedBy()))
	add("ended_at", instant(task.GetEndedAt()))
	add("execution_status", word(sum.GetExecutionStatus()))
	add("recommended_action", word(sum.GetRecommendedAction()))
	add("health_status", s.state(word(sum.GetHealthStatus())))
	add("completion_percentage", fmt.Sprintf("%.2f", sum.GetCompletionPercentage()))
	add("steps", fmt.Sprintf("%d: %d complete, %d in_progress, %d ready, %d waiting_for_retry, %d pending, %d failed, %d cancelled",
		sum.GetTotalSteps(), sum.GetCompletedSteps(), sum.GetInProgressSteps(), sum.GetReadySteps(), sum.GetWaitingForRetrySteps(),
		sum.GetPendingSteps(), sum.GetFailedSteps(), sum.GetCancelledSteps()))
	add("context", oneLine(task.GetContext()))
	for _, name := range slices.Sorted(maps.Keys(answer.GetLeafResults())) {
		add("results of "+oneLine(name), oneLine(answer.GetLeafResults()[name]))
	}
	for _, name := range answer.GetOmittedLeaves() {
		add("results of "+oneLine(name), "(too large: tasker step get STEP_ID --payloads)")
	}
	return facts.print()
}
