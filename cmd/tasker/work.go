package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
	"github.com/taskerhq/tasker/internal/history"
	"github.com/taskerhq/tasker/internal/worker"
)

func init() { commands = append(commands, newWork) }

func newWork(c *cli) *cobra.Command {
	var (
		handlers, labels                    []string
		workerID, buildID, journal          string
		maxInFlight                         int
		drain, grace, delivery, idle, every time.Duration
		quiet                               bool
	)
	cmd := &cobra.Command{
		Use:   "work --handler NAME [--handler NAME]... [flags] -- COMMAND [ARG]...",
		Short: "Be a worker: run a command for each ready step",
		Long: `Be a worker: run a command for each ready step. Any executable will do.

The command reads the step from standard input: the ReadyStep message as one line of JSON. Its context, handler_config and
dependency_results are strings that hold JSON themselves. It writes its results, one JSON object or nothing at all, to standard
output. How it exits says how the run ended:

  0             success
  65            permanent failure: the step is not run again
  75            failure that may be retried
  other, signal failure that may be retried, with error_code EXIT_<status> or SIGNAL_<number>

A command that failed may write a JSON object with error_code, message, error_class, http_status, details and retry_after to
standard output. retry_after is a number of seconds, or the text of a Retry-After header: seconds or an HTTP date. It may be
written to file descriptor 3 instead. Without a message, the last 4 KiB of standard error are the message. "reach": "circuit" opens the
step's shared circuit at once, until retry_after has passed. "blame": "worker" or "step" keeps the failure from being charged to it.

In the command's environment: TASKER_ADDRESS, TASKER_NAMESPACE, TASKER_TASK_ID, TASKER_TASK_NAME, TASKER_STEP_ID, TASKER_STEP_NAME,
TASKER_HANDLER, TASKER_ATTEMPT, TASKER_RETRY_LIMIT, TASKER_DISPATCH, TASKER_IDEMPOTENCY_KEY, TASKER_LEASE_TOKEN, TASKER_DEADLINE, and
TRACEPARENT where the submit had one. A step may run more than once: pass TASKER_IDEMPOTENCY_KEY to whatever the command calls.

The lease is kept alive while the command runs. When it is lost, because the task was cancelled or the run timed out, the
command gets SIGTERM with all that it started, and SIGKILL after --kill-after. On SIGINT or SIGTERM no more steps are taken;
commands that run may end within --drain-timeout, and are killed and their steps handed back after that.`,
		Example: `  tasker work --handler send_mail --max-in-flight 4 -- ./send_mail.sh
  tasker work --handler charge -- sh -c 'curl -fsS -d @- https://billing.example/charge || exit 75'`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case cmd.ArgsLenAtDash() > 0:
				return usageError("%s: unexpected argument %q before --\nusage: %s", cmd.CommandPath(), args[0], cmd.UseLine())
			case len(args) == 0:
				return usageError("%s: COMMAND is missing\nusage: %s", cmd.CommandPath(), cmd.UseLine())
			}
			return nil
		},
	}
	remote := c.newRemote(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&handlers, "handler", nil, "take steps of this `NAME`, or NAME=N for at most N of them at once; may be given several times")
	flags.IntVar(&maxInFlight, "max-in-flight", runtime.GOMAXPROCS(0), "how many steps to run at once")
	flags.StringVar(&workerID, "worker-id", "", "this worker's `NAME`, unique among those at work; default: host name and process id")
	flags.StringVar(&buildID, "build-id", "", "which build of the command this is, for people")
	flags.StringArrayVar(&labels, "label", nil, "a `KEY=VALUE` that the list of workers shows; may be given several times")
	flags.DurationVar(&drain, "drain-timeout", worker.DefaultDrainTimeout, "how long commands may go on once the worker is stopping")
	flags.DurationVar(&grace, "kill-after", 5*time.Second, "how long a command may take to end once it was told to")
	flags.DurationVar(&delivery, "delivery-timeout", 0, "how long the server waits for the first sign of life of a run; default: the server's")
	flags.DurationVar(&idle, "idle-heartbeat", 0, "how often an idle connection is to carry a frame; default: the server's")
	flags.DurationVar(&every, "heartbeat-every", worker.DefaultHeartbeatEvery, "how often to beat for all runs at least")
	flags.StringVar(&journal, "journal", "", "write down in a `FILE` every step taken and every report answered, for a later check against the server's history")
	flags.BoolVarP(&quiet, "quiet", "q", false, "say only what goes wrong")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) (err error) {
		level := slog.LevelInfo
		if quiet {
			level = slog.LevelWarn
		}
		stderr := &lockedWriter{to: c.stderr}
		path, err := exec.LookPath(args[0])
		if err != nil {
			return usageError("the command cannot be run: %w", err)
		}
		program := &command{
			path:   path,
			args:   args[1:],
			env:    append(os.Environ(), "TASKER_ADDRESS="+s.address),
			grace:  grace,
			stderr: stderr,
		}
		subscriptions, err := parseHandlers(handlers, program.run)
		if err != nil {
			return err
		}
		facts, err := parsePairs("label", labels)
		if err != nil {
			return err
		}
		if workerID == "" {
			workerID = ownName()
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		keeper := &journalKeeper{runs: make(map[string]*taskerv1.ReadyStep), fail: cancel}
		config := worker.Config{
			Client:          s.workers,
			Namespace:       s.namespace,
			WorkerID:        workerID,
			Subscriptions:   subscriptions,
			MaxInFlight:     maxInFlight,
			Labels:          facts,
			BuildID:         buildID,
			ClientInfo:      "tasker-work/" + version,
			DeliveryTimeout: delivery,
			IdleHeartbeat:   idle,
			HeartbeatEvery:  every,
			DrainTimeout:    drain,
			Logger:          slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})),
		}
		if journal != "" {
			if keeper.file, err = history.OpenJournal(journal); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, keeper.file.Close()) }()
			config.Journal = keeper.keep
		}
		w, err := worker.New(config)
		if err != nil {
			return &exitError{code: exitUsage, err: err}
		}
		if err := w.Run(ctx); err != nil {
			return fmt.Errorf("working: %w", err)
		}
		return keeper.failed()
	})
	return cmd
}

// parseHandlers reads --handler NAME[=N].
func parseHandlers(given []string, run worker.Handler) ([]worker.Subscription, error) {
	if len(given) == 0 {
		return nil, usageError("--handler NAME is missing")
	}
	var subscriptions []worker.Subscription
	for _, text := range given {
		name, limit, limited := strings.Cut(text, "=")
		subscription := worker.Subscription{Handler: name, Run: run}
		if limited {
			most, err := strconv.Atoi(limit)
			if err != nil || most < 1 {
				return nil, usageError("--handler %q: must be NAME or NAME=N with N at least 1", text)
			}
			subscription.MaxInFlight = most
		}
		subscriptions = append(subscriptions, subscription)
	}
	return subscriptions, nil
}

// ownName is a worker's name where none is given: two processes of one host differ.
func ownName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}
