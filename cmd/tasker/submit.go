package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

// Bounds of one BatchSubmitTasks. The server takes 1,000 tasks and 3.5 MiB.
const (
	submitBatch = 1000
	submitBytes = 3 << 20
)

func init() { commands = append(commands, newSubmit) }

// submission is what the flags of submit say.
type submission struct {
	template, file, name, context, key string
	labels, overrides                  []string
	notBefore, deadline                string
	priority                           int32
	count                              int
	wait, dryRun                       bool
}

func newSubmit(c *cli) *cobra.Command {
	given := &submission{}
	cmd := &cobra.Command{
		Use:   "submit --template NAME[@VERSION] [--context JSON]",
		Short: "Submit a task",
		Long: `Submit a task, or many alike, by a registered template or with the steps of a file.

A submit whose answer was lost can be repeated safely with --idempotency-key: the same key with the same task gives the task
that the first one made. With --count N, task number I has the key KEY-I. With --wait, the command ends when the tasks have,
and fails unless all of them are complete.`,
		Example: `  tasker submit --template user_registration --context '{"user_id": 7}'
  tasker submit --template user_registration@1.2.0 --context @order.json --idempotency-key order-7 --wait
  tasker submit --template user_registration --override 'create_user_account={"retryLimit": 1}'`,
		Args: exactly(),
	}
	remote := c.newRemote(cmd)
	flags := cmd.Flags()
	flags.StringVar(&given.template, "template", "", "the template's `NAME[@VERSION]`; without a version, the latest")
	flags.StringVarP(&given.file, "file", "f", "", "take the steps from a template `FILE` instead, without registering it; - is standard input")
	flags.StringVar(&given.name, "name", "", "the task's name; default: the template's")
	flags.StringVar(&given.context, "context", "", "one `JSON` object for every step; @FILE reads a file, - standard input")
	flags.IntVarP(&given.count, "count", "n", 1, "how many tasks to submit")
	flags.StringVar(&given.key, "idempotency-key", "", "your own name for this submit: a repeat finds the task instead of making another")
	flags.StringArrayVar(&given.labels, "label", nil, "a `KEY=VALUE` to find the task by; may be given several times")
	flags.Int32Var(&given.priority, "priority", 1, "0 (most urgent) to 3")
	flags.StringVar(&given.notBefore, "not-before", "", "run no step before this `INSTANT` (RFC 3339, or a duration from now such as 10m)")
	flags.StringVar(&given.deadline, "deadline", "", "give up what has not ended at this `INSTANT` (RFC 3339, or a duration from now)")
	flags.StringArrayVar(&given.overrides, "override", nil, "retry settings of one step for this task, as `STEP=JSON` of a StepOverride; may be given several times")
	flags.BoolVar(&given.wait, "wait", false, "wait until the tasks have ended")
	flags.BoolVar(&given.dryRun, "dry-run", false, "only check the task and show the steps it would have")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, _ []string) error {
		task, err := c.newTask(given, cmd.Flags().Changed("priority"))
		if err != nil {
			return err
		}
		switch {
		case given.dryRun:
			return s.validate(ctx, task)
		case given.count == 1:
			return s.submitOne(ctx, task, given.wait)
		}
		return s.submitMany(ctx, task, given)
	})
	return cmd
}

// newTask makes the message of what the flags say.
func (c *cli) newTask(given *submission, prioritised bool) (*taskerv1.TaskSubmission, error) {
	if given.count < 1 {
		return nil, usageError("--count %d: must be at least 1", given.count)
	}
	task := &taskerv1.TaskSubmission{}
	var err error
	switch {
	case (given.template == "") == (given.file == ""):
		return nil, usageError("either --template NAME[@VERSION] or --file FILE must be given")
	case given.template != "":
		task.Definition = &taskerv1.TaskSubmission_Template{Template: templateRef(given.template)}
	default:
		inline, err := c.readTemplate(given.file, given.name)
		if err != nil {
			return nil, err
		}
		given.name = inline.GetName()
		task.Definition = &taskerv1.TaskSubmission_Inline{Inline: &taskerv1.InlineSteps{Steps: inline.GetSteps()}}
	}
	if given.name != "" {
		task.Name = &given.name
	}
	if given.key != "" {
		task.IdempotencyKey = &given.key
	}
	if prioritised {
		task.Priority = &given.priority
	}
	if task.Context, err = c.parseObject("context", given.context); err != nil {
		return nil, err
	}
	if task.Labels, err = parsePairs("label", given.labels); err != nil {
		return nil, err
	}
	now := time.Now()
	if task.NotBefore, err = parseInstant("not-before", given.notBefore, now); err != nil {
		return nil, err
	}
	if task.Deadline, err = parseInstant("deadline", given.deadline, now); err != nil {
		return nil, err
	}
	for _, pair := range given.overrides {
		step, body, ok := strings.Cut(pair, "=")
		override := &taskerv1.StepOverride{}
		if !ok {
			return nil, usageError("--override %q: must be STEP=JSON", pair)
		}
		if err := protojson.Unmarshal([]byte(body), override); err != nil {
			return nil, usageError("--override %s: %v", step, err)
		}
		override.Name = step
		task.Overrides = append(task.Overrides, override)
	}
	return task, nil
}

// templateRef reads NAME[@VERSION]. Names hold no @.
func templateRef(text string) *taskerv1.TemplateRef {
	name, version, versioned := strings.Cut(text, "@")
	ref := &taskerv1.TemplateRef{Name: name}
	if versioned {
		ref.Version = &version
	}
	return ref
}

func (s *session) validate(ctx context.Context, task *taskerv1.TaskSubmission) error {
	answer, err := ask(ctx, s.remote, s.tasks.ValidateTask, &taskerv1.ValidateTaskRequest{Namespace: s.namespace, Task: task})
	if err != nil {
		return fmt.Errorf("checking the task: %w", err)
	}
	return s.print(answer, func() error {
		plan := s.table("dependency_level", "name", "handler", "depends_on", "retry_limit", "retryable")
		for _, step := range answer.GetSteps() {
			definition := step.GetDefinition()
			plan.add(count(step.GetDependencyLevel()), definition.GetName(), definition.GetHandler(),
				strings.Join(definition.GetDependsOn(), ","), count(definition.GetRetryLimit()), s.yes(definition.GetRetryable()))
		}
		return plan.print()
	})
}

func (s *session) submitOne(ctx context.Context, task *taskerv1.TaskSubmission, wait bool) error {
	answer, err := ask(ctx, s.remote, s.tasks.SubmitTask, &taskerv1.SubmitTaskRequest{Namespace: s.namespace, Task: task})
	if err != nil {
		return fmt.Errorf("submitting the task: %w", err)
	}
	if !wait {
		return s.print(answer, func() error { return s.submitted([]string{answer.GetTask().GetTaskId()}) })
	}
	id := answer.GetTask().GetTaskId()
	unfinished, err := s.await(ctx, []string{id})
	if err != nil {
		return err
	}
	ended, err := s.getTask(ctx, id, false, true)
	if err != nil {
		return err
	}
	answer.Task, answer.LeafResults = ended.GetTask(), ended.GetLeafResults()
	if err := s.print(answer, func() error { return s.printTask(ended) }); err != nil {
		return err
	}
	return unfinished
}

func (s *session) submitMany(ctx context.Context, task *taskerv1.TaskSubmission, given *submission) error {
	answer := &taskerv1.BatchSubmitTasksResponse{}
	bar := s.newProgress("submitting", int64(given.count))
	defer bar.end()
	for made := 0; made < given.count; {
		batch := &taskerv1.BatchSubmitTasksRequest{Namespace: s.namespace}
		for bytes := 0; made < given.count && len(batch.GetTasks()) < submitBatch && bytes < submitBytes; made++ {
			one := proto.CloneOf(task)
			if given.key != "" {
				key := given.key + "-" + strconv.Itoa(made+1)
				one.IdempotencyKey = &key
			}
			batch.Tasks = append(batch.Tasks, one)
			// The next one must fit as well.
			bytes += proto.Size(one)
			if bytes+proto.Size(one) > submitBytes {
				bytes = submitBytes
			}
		}
		part, err := ask(ctx, s.remote, s.tasks.BatchSubmitTasks, batch)
		if err != nil {
			return fmt.Errorf("submitting tasks (%d of %d are submitted): %w", len(answer.GetResults()), given.count, err)
		}
		answer.Results = append(answer.Results, part.GetResults()...)
		bar.set(int64(len(answer.GetResults())), int64(given.count))
	}
	bar.end()
	ids := make([]string, 0, len(answer.GetResults()))
	for _, result := range answer.GetResults() {
		ids = append(ids, result.GetTaskId())
	}
	if err := s.print(answer, func() error { return s.submitted(ids) }); err != nil || !given.wait {
		return err
	}
	unfinished, err := s.await(ctx, ids)
	if err != nil {
		return err
	}
	return unfinished
}

// submitted prints the ids alone, one a line: what a shell wants to go on with.
func (s *session) submitted(ids []string) error {
	return s.write(strings.Join(ids, "\n") + "\n")
}

// await waits until all tasks have ended. unfinished is not nil where one of them did not end as complete.
func (s *session) await(ctx context.Context, ids []string) (unfinished, err error) {
	total := int64(len(ids))
	name := "tasks"
	if total == 1 {
		name = "steps"
	}
	bar := s.newProgress(name, total)
	defer bar.end()
	states := map[taskerv1.TaskState]int{}
	for done, id := range ids {
		task, err := s.follow(ctx, id, true, func(frame *taskerv1.WatchTaskResponse) error {
			sum := frame.GetSnapshot().GetExecutionContext()
			if sum == nil {
				sum = frame.GetChange().GetExecutionContext()
			}
			if total == 1 && sum != nil {
				bar.set(int64(sum.GetCompletedSteps()), int64(sum.GetTotalSteps()))
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		states[task.GetState()]++
		if total > 1 {
			bar.set(int64(done+1), total)
		}
	}
	if complete := states[taskerv1.TaskState_TASK_STATE_COMPLETE]; complete < len(ids) {
		return &exitError{code: 1, err: fmt.Errorf("%d of %d tasks are complete, %d in error, %d cancelled", complete, len(ids),
			states[taskerv1.TaskState_TASK_STATE_ERROR], states[taskerv1.TaskState_TASK_STATE_CANCELLED])}, nil
	}
	return nil, nil
}
