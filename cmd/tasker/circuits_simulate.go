package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/taskerhq/tasker/internal/postgres"
	"github.com/taskerhq/tasker/internal/rpc"
	"github.com/taskerhq/tasker/internal/simulate"
)

// simulation is what the flags of circuits simulate say.
type simulation struct {
	change               policyChange
	circuit              string
	since, until         string
	dataDir, databaseURL string
}

func newCircuitSimulate(c *cli, remote *remote) *cobra.Command {
	var sim simulation
	cmd := &cobra.Command{
		Use:   "simulate (--policy FILE | --set FIELD=VALUE...) --since TIME",
		Short: "Tell what another policy would have made of the recorded runs",
		Long: `Replay the recorded runs of circuits under another policy, and tell when each circuit would have tripped, for how long it would
have been open, what calls that would have saved and what delay it would have added, beside what really happened. Nothing is
changed. The policy is each circuit's own, in place of some fields of which others are set, as by circuits policy.

It reads the database: the one at --database-url, else the embedded one of a running server.

The judgement is that of the server. What the record does not say is assumed:

  - whom a failure was blamed on: the dependency. Failures that workers blamed on themselves or on the step are overrated
  - what runs observed of other circuits, and the run_duration that they reported: nothing, and the time from the confirmation
    to the report
  - which failures reached the whole circuit: those that opened it
  - which reports came in one batch: each is judged by itself, in the order in which they were recorded
  - what would have run later in the stead of a run that is kept back: nothing. The runs that began while the replayed circuit was
    half-open are its probes, within max_probes, and the next ones its waves

A run that was kept back then, by the circuit that there was, is not in the record at all: of times at which a circuit was open,
little can be told. max_in_flight and rate are not replayed, nor are holds. Workers that lose leases are not barred.

  calls_saved    failed runs that would not have been made
  runs_delayed   answered ones that would have waited: delay_added is the sum, longest_delay the most, each from the run's beginning
                 to when the circuit let more than probes through
  open           the time it was open in all; while it probes and recovers it is not`,
		Example: `  tasker circuits simulate --set failure_rate_threshold=0.3 --set open_duration=1m --since 24h
  tasker circuits simulate --circuit payments/eu --policy payments.yaml --since 2026-01-31T00:00:00Z -o json`,
		Args: exactly(),
	}
	flags := cmd.Flags()
	flags.StringVar(&sim.change.file, "policy", "", "the fields that this `FILE` sets; - is standard input")
	flags.StringArrayVar(&sim.change.set, "set", nil, "set `FIELD=VALUE`, such as rate=2.5 or window_duration=90s; may be given several times")
	flags.StringArrayVar(&sim.change.unset, "unset", nil, "leave this `FIELD` to the default; may be given several times")
	flags.StringVar(&sim.circuit, "circuit", "", "only this `CIRCUIT`; default: all that had runs")
	flags.StringVar(&sim.since, "since", "", "replay what ended at this `TIME` or later: RFC 3339, or a duration before now such as 24h")
	flags.StringVar(&sim.until, "until", "", "and before this `TIME`; default: now")
	flags.StringVar(&sim.dataDir, "data-dir", "", "the server's data `DIRECTORY`; default: the one that serve takes [$TASKER_DATA_DIR]")
	flags.StringVar(&sim.databaseURL, "database-url", "", "`URL` of the database; prefer the variable: other users can see the flags of a process [$TASKER_DATABASE_URL]")
	complete(cmd, "set", policyNames("="))
	complete(cmd, "unset", policyNames(""))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := remote.resolve(cmd); err != nil {
			return err
		}
		options, err := sim.options(c, remote.namespace)
		if err != nil {
			return err
		}
		report, err := sim.run(cmd.Context(), c, options)
		if err != nil {
			return err
		}
		return newPrinter(c, remote.output).simulation(&report)
	}
	return cmd
}

// options checks what the flags say.
func (s *simulation) options(c *cli, namespace string) (o simulate.Options, err error) {
	o = simulate.Options{Namespace: cmp.Or(namespace, "default"), Circuit: s.circuit}
	if err := s.change.read(c); err != nil {
		return o, err
	}
	if len(s.change.fields) == 0 {
		return o, usageError("no policy: --policy, --set or --unset says what would have been otherwise")
	}
	if s.since == "" {
		return o, usageError("--since is missing: from when on is the record to be replayed?")
	}
	now := time.Now()
	if o.From, err = parsePast("since", s.since, now); err != nil {
		return o, err
	}
	if s.until != "" {
		if o.Until, err = parsePast("until", s.until, now); err != nil {
			return o, err
		}
		if !o.Until.After(o.From) {
			return o, usageError("--until must be later than --since")
		}
	}
	o.Fields = s.change.fields
	if o.Policy, err = rpc.PolicyOf(s.change.policy); err != nil {
		return o, usageError("the policy: %v", err)
	}
	return o, nil
}

// parsePast reads an instant, or how long ago it was.
func parsePast(flag, text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago.Abs()), nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return at, usageError("--%s %q: must be an instant such as 2026-01-31T12:00:00Z or a duration before now such as 24h", flag, text)
	}
	return at, nil
}

func (s *simulation) run(ctx context.Context, c *cli, o simulate.Options) (report simulate.Report, err error) {
	conn, err := s.connect(ctx, c)
	if err != nil {
		return report, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return simulate.Replay(ctx, conn, o)
}

func (s *simulation) connect(ctx context.Context, c *cli) (*pgx.Conn, error) {
	url := cmp.Or(s.databaseURL, c.getenv("TASKER_DATABASE_URL"))
	if url == "" || s.dataDir != "" {
		info, err := postgres.Attach(ctx, cmp.Or(s.dataDir, c.getenv("TASKER_DATA_DIR")))
		if errors.Is(err, postgres.ErrNotRunning) {
			return nil, fmt.Errorf("%w\nhint: --data-dir must name the directory of a running server, or --database-url another database", err)
		}
		if err != nil {
			return nil, err
		}
		url = info.ConnString(postgres.Database)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		// pgx leaves the password out of its text, but not what it took for something else.
		return nil, errors.New("the database URL cannot be read: it must be postgres://USER:PASSWORD@HOST:PORT/DATABASE or key=value pairs")
	}
	config.RuntimeParams["application_name"] = "tasker circuits simulate"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	return conn, nil
}

// simulation prints a line for each circuit, and one for each of its trips.
func (p *printer) simulation(report *simulate.Report) error {
	body, err := json.Marshal(report)
	if err != nil {
		return err
	}
	answer := &structpb.Struct{}
	if err := answer.UnmarshalJSON(body); err != nil {
		return err
	}
	return p.print(answer, func() error {
		list := p.table("circuit", "runs", "failed", "recorded_trips", "recorded_open", "trips", "open", "state", "calls_saved", "runs_delayed",
			"delay_added", "longest_delay", "rerouted")
		trips := p.table("circuit", "tripped_at", "cause", "observed", "failed", "slow", "reopened", "open", "passed_at", "closed_at")
		for _, c := range report.Circuits {
			list.add(oneLine(c.Name), fmt.Sprint(c.Runs), fmt.Sprint(c.Failed), fmt.Sprint(len(c.Recorded.Trips)), c.Recorded.Open.Duration().String(),
				fmt.Sprint(len(c.Replayed.Trips)), c.Replayed.Open.Duration().String(), p.state(c.Replayed.State), fmt.Sprint(c.CallsSaved),
				fmt.Sprint(c.RunsDelayed), c.DelayAdded.Duration().String(), c.LongestDelay.Duration().String(), fmt.Sprint(c.Rerouted))
			for _, t := range c.Replayed.Trips {
				trips.add(oneLine(c.Name), moment(&t.At), t.Cause, fmt.Sprint(t.Observed), fmt.Sprint(t.Failed), fmt.Sprint(t.Slow),
					fmt.Sprint(t.Reopened), t.Open.Duration().String(), moment(t.PassedAt), moment(t.ClosedAt))
			}
		}
		if err := list.print(); err != nil || len(trips.rows) == 0 {
			return err
		}
		if err := p.write("\n"); err != nil {
			return err
		}
		return trips.print()
	})
}

// moment is an instant in a cell. Nil is empty.
func moment(at *time.Time) string {
	if at == nil {
		return ""
	}
	return instant(timestamppb.New(*at))
}
