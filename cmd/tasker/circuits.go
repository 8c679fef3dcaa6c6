package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func init() { commands = append(commands, newCircuits) }

func newCircuits(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "circuits",
		Aliases: []string{"circuit"},
		Short:   "List the shared circuits, or read, hold, release or configure one",
		Long: `List the shared circuits: the dependencies that steps name, and where each stands. The headings are the columns of the
view circuit_health.

With --watch the table is kept up to date on a terminal; elsewhere each change is a line.`,
		Example: `  tasker circuits --state open --state half_open --waiting
  tasker circuits hold user_service --reason 'moving its database' --for 30m
  tasker circuits policy user_service --set max_in_flight=20`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("%s has no command %q; see %s --help", cmd.CommandPath(), args[0], cmd.CommandPath())
			}
			return nil
		},
	}
	remote := c.newRemote(cmd)
	listing(cmd, remote)
	list := &cobra.Command{Use: "list", Short: "List the shared circuits, as does the command without a word behind it", Args: exactly()}
	listing(list, remote)
	cmd.AddCommand(list, newCircuitGet(remote), newCircuitHold(remote), newCircuitRelease(remote), newCircuitPolicy(c, remote), newCircuitEvents(remote),
		newCircuitSimulate(c, remote))
	return cmd
}

// listing makes cmd a list of circuits.
func listing(cmd *cobra.Command, remote *remote) {
	var (
		states         []string
		token          string
		limit, waiting int
		watch          bool
	)
	flags := cmd.Flags()
	flags.StringArrayVar(&states, "state", nil, "only circuits in this `STATE`: closed, open, half_open, recovering or held; may be given several times")
	flags.IntVar(&waiting, "waiting", 0, "only circuits for which at least `N` steps wait; without =N, one")
	flags.Lookup("waiting").NoOptDefVal = "1"
	flags.IntVar(&limit, "limit", 50, "how many to list at most; 0 lists all")
	flags.StringVar(&token, "page-token", "", "go on where an earlier list ended")
	flags.BoolVar(&watch, "watch", false, "follow the circuits until interrupted")
	complete(cmd, "state", circuitStates())
	cmd.RunE = remote.run(func(ctx context.Context, s *session, _ []string) error {
		request := &taskerv1.ListCircuitsRequest{Namespace: s.namespace, PageToken: token, MinWaitingSteps: int32(min(waiting, 1<<30))} //nolint:gosec // It fits.
		for _, text := range states {
			state, err := enumOf[taskerv1.CircuitState](text)
			if err != nil {
				return usageError("--state %w", err)
			}
			request.States = append(request.States, state)
		}
		if watch {
			if token != "" {
				return usageError("--watch and --page-token do not go together")
			}
			return s.watchCircuits(ctx, request, limit)
		}
		answer, err := s.listCircuits(ctx, request, limit)
		if err != nil {
			return err
		}
		return s.print(answer, func() error { return s.page(s.circuitTable(answer.GetCircuits()), answer.GetNextPageToken()) })
	})
}

// complete offers values of a flag to shells.
func complete(cmd *cobra.Command, flag string, words []string) {
	// The error says only that the flag is unknown or has its completion already.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

func circuitStates() (words []string) {
	for i := range taskerv1.CircuitState(0).Descriptor().Values().Len() - 1 {
		words = append(words, word(taskerv1.CircuitState(i+1)))
	}
	return words
}

// listCircuits reads pages until there are limit circuits, or all.
func (s *session) listCircuits(ctx context.Context, request *taskerv1.ListCircuitsRequest, limit int) (*taskerv1.ListCircuitsResponse, error) {
	answer := &taskerv1.ListCircuitsResponse{}
	err := s.pages(limit, func(size int32) (int, string, error) {
		request.PageSize = size
		page, err := ask(ctx, s.remote, s.circuits.ListCircuits, request)
		answer.Circuits = append(answer.Circuits, page.GetCircuits()...)
		answer.NextPageToken = page.GetNextPageToken()
		request.PageToken = page.GetNextPageToken()
		return len(page.GetCircuits()), page.GetNextPageToken(), err
	})
	if err != nil {
		return nil, fmt.Errorf("listing circuits: %w", err)
	}
	return answer, nil
}

// circuitTable is the table of circuits, under the column names of the view circuit_health.
func (p *printer) circuitTable(circuits []*taskerv1.Circuit) *table {
	list := p.table("circuit", "state", "since", "cause", "open_until", "hold_reason", "held_until", "observed", "failed", "slow", "failure_rate", "in_flight",
		"waiting_steps", "barred_workers")
	for _, x := range circuits {
		list.add(oneLine(x.GetName()), p.state(word(x.GetState())), instant(x.GetSince()), word(x.GetCause()), instant(x.GetOpenUntil()),
			brief(x.GetHold().GetReason()), instant(x.GetHold().GetEndsAt()), count(x.GetObservedCalls()), count(x.GetFailedCalls()),
			count(x.GetSlowCalls()), failureRate(x), count(x.GetInFlight()), waiting(x), barred(x.GetBarredWorkers()))
	}
	return list
}

// failureRate is the share of failed calls. Nothing was called: empty.
func failureRate(x *taskerv1.Circuit) string {
	if x.GetObservedCalls() == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", float64(x.GetFailedCalls())/float64(x.GetObservedCalls()))
}

// mostWaiting is up to where the server counts waiting steps.
const mostWaiting = 10_000

func waiting(x *taskerv1.Circuit) string {
	if x.GetWaitingSteps() >= mostWaiting {
		return count(mostWaiting) + "+"
	}
	return count(x.GetWaitingSteps())
}

func barred(workers []*taskerv1.BarredWorker) string {
	var names []string
	for _, worker := range workers {
		names = append(names, oneLine(worker.GetWorkerId()))
	}
	return strings.Join(names, ",")
}

func newCircuitGet(remote *remote) *cobra.Command {
	cmd := &cobra.Command{Use: "get NAME", Short: "Show a circuit, and the policy it goes by", Args: exactly("NAME")}
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := ask(ctx, s.remote, s.circuits.GetCircuit, &taskerv1.GetCircuitRequest{Namespace: s.namespace, Circuit: args[0]})
		if err != nil {
			return fmt.Errorf("reading circuit %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.circuitFacts(answer.GetCircuit()) })
	})
	return cmd
}

// circuitFacts prints one fact a line, then the policy.
func (p *printer) circuitFacts(x *taskerv1.Circuit) error {
	facts := p.table("circuit", oneLine(x.GetName()))
	add := func(name, value string) {
		if value != "" {
			facts.add(p.paint(styleHead, name), value)
		}
	}
	add("namespace", x.GetNamespace())
	row := p.circuitTable([]*taskerv1.Circuit{x})
	for column, head := range row.heads[1:] {
		if head != "barred_workers" && head != "hold_reason" {
			add(head, row.rows[0][column+1])
		}
	}
	add("generation", fmt.Sprint(x.GetGeneration()))
	add("last_open_duration", seconds(x.GetLastOpenDuration()))
	if hold := x.GetHold(); hold != nil {
		add("hold_reason", oneLine(hold.GetReason()))
		add("held_by", oneLine(hold.GetActor()))
		add("held_from", instant(hold.GetStartsAt()))
	}
	add("failing_workers", count(x.GetFailingWorkers()))
	if x.GetState() == taskerv1.CircuitState_CIRCUIT_STATE_HALF_OPEN {
		add("successful_probes", fmt.Sprintf("%d of %d", x.GetSuccessfulProbes(), x.GetPolicyInForce().GetCloseAfterSuccesses()))
	}
	if x.GetWave() > 0 {
		add("wave", fmt.Sprintf("%d of %d succeeded", x.GetWaveSuccesses(), x.GetWave()))
	}
	for _, worker := range x.GetBarredWorkers() {
		add("barred_worker", fmt.Sprintf("%s until %s", oneLine(worker.GetWorkerId()), instant(worker.GetUntil())))
	}
	add("created_at", instant(x.GetCreatedAt()))
	if err := facts.print(); err != nil {
		return err
	}
	return p.write("\n" + strings.Join(p.policyTable(x).lines(), "\n") + "\n")
}

func newCircuitHold(remote *remote) *cobra.Command {
	var reason, from, until string
	var span time.Duration
	cmd := &cobra.Command{
		Use:   "hold NAME --reason REASON",
		Short: "Keep a circuit shut, now or in a planned window, until its end or a release",
		Long: `Keep a circuit shut: no step of it is given out, until the end of the hold or until it is released. Runs that are under way
go on. An earlier hold of the same circuit is replaced. A circuit that nobody has named yet is made.`,
		Example: `  tasker circuits hold user_service --reason 'moving its database' --for 30m
  tasker circuits hold user_service --reason 'planned window' --from 2026-01-31T02:00:00Z --for 1h`,
		Args: exactly("NAME"),
	}
	flags := cmd.Flags()
	flags.StringVar(&reason, "reason", "", "why, for the record and for those who wait")
	flags.StringVar(&from, "from", "", "hold it from this `INSTANT` on (RFC 3339, or a duration such as 2h); default: now")
	flags.StringVar(&until, "until", "", "hold it until this `INSTANT`; default: until it is released")
	flags.DurationVar(&span, "for", 0, "hold it for this long")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		request := &taskerv1.HoldCircuitRequest{Namespace: s.namespace, Circuit: args[0], Reason: reason}
		now := time.Now()
		var err error
		if request.StartsAt, err = parseInstant("from", from, now); err != nil {
			return err
		}
		if request.EndsAt, err = parseInstant("until", until, now); err != nil {
			return err
		}
		switch {
		case reason == "":
			return usageError("--reason is missing: those who wait will ask")
		case span < 0:
			return usageError("--for %s: must not be negative", span)
		case span > 0 && until != "":
			return usageError("--until and --for do not go together")
		case span > 0 && from != "":
			request.EndsAt = timestamppb.New(request.GetStartsAt().AsTime().Add(span))
		case span > 0:
			request.EndsAt = timestamppb.New(now.Add(span))
		}
		answer, err := ask(ctx, s.remote, s.circuits.HoldCircuit, request)
		if err != nil {
			return fmt.Errorf("holding circuit %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.heldLine(answer.GetCircuit()) })
	})
	return cmd
}

// heldLine says what a circuit's state is, and what hold is in force or planned.
func (s *session) heldLine(x *taskerv1.Circuit) error {
	line := fmt.Sprintf("circuit %s is %s", oneLine(x.GetName()), s.state(word(x.GetState())))
	if hold := x.GetHold(); hold != nil {
		if x.GetState() != taskerv1.CircuitState_CIRCUIT_STATE_HELD {
			line += ", to be held from " + instant(hold.GetStartsAt())
		}
		if hold.GetEndsAt() != nil {
			line += " until " + instant(hold.GetEndsAt())
		} else {
			line += " until it is released"
		}
	}
	return s.write(line + "\n")
}

func newCircuitRelease(remote *remote) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "release NAME",
		Short: "Let a held or open circuit probe now, and drop a planned hold",
		Long: `Let a held or open circuit probe now: it becomes half_open, never straight closed. A planned hold is dropped. A circuit in
another state stays as it is.`,
		Args: exactly("NAME"),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		answer, err := ask(ctx, s.remote, s.circuits.ReleaseCircuit,
			&taskerv1.ReleaseCircuitRequest{Namespace: s.namespace, Circuit: args[0], Reason: reason})
		if err != nil {
			return fmt.Errorf("releasing circuit %s: %w", args[0], err)
		}
		return s.print(answer, func() error { return s.heldLine(answer.GetCircuit()) })
	})
	return cmd
}

func newCircuitEvents(remote *remote) *cobra.Command {
	var from, to, token string
	var limit int
	cmd := &cobra.Command{
		Use:   "events [NAME]",
		Short: "List what happened to a circuit, or to all, the newest first",
		Long: `List what happened to a circuit, or to all of a namespace, the newest first: every transition, what brought it about, and every
act of an operator. The headings are the columns of the view circuit_events_v.`,
		Example: "  tasker circuits events user_service --from -24h",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return exactly("NAME")(cmd, args)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "only what happened at this `INSTANT` or later (RFC 3339, or a duration such as -24h)")
	cmd.Flags().StringVar(&to, "to", "", "only what happened before this `INSTANT`")
	cmd.Flags().IntVar(&limit, "limit", 50, "how many to list at most; 0 lists all")
	cmd.Flags().StringVar(&token, "page-token", "", "go on where an earlier list ended")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		request := &taskerv1.ListCircuitEventsRequest{Namespace: s.namespace, PageToken: token}
		if len(args) > 0 {
			request.Circuit = &args[0]
		}
		now := time.Now()
		var err error
		if request.RecordedFrom, err = parseInstant("from", from, now); err != nil {
			return err
		}
		if request.RecordedBefore, err = parseInstant("to", to, now); err != nil {
			return err
		}
		answer := &taskerv1.ListCircuitEventsResponse{}
		err = s.pages(limit, func(size int32) (int, string, error) {
			request.PageSize = size
			page, err := ask(ctx, s.remote, s.circuits.ListCircuitEvents, request)
			answer.Events = append(answer.Events, page.GetEvents()...)
			answer.NextPageToken = page.GetNextPageToken()
			request.PageToken = page.GetNextPageToken()
			return len(page.GetEvents()), page.GetNextPageToken(), err
		})
		if err != nil {
			return fmt.Errorf("listing the events of circuits: %w", err)
		}
		return s.print(answer, func() error { return s.page(s.circuitEventTable(answer.GetEvents()), answer.GetNextPageToken()) })
	})
	return cmd
}

// circuitEventTable is the record of circuits, under the column names of the view circuit_events_v.
func (p *printer) circuitEventTable(events []*taskerv1.CircuitEvent) *table {
	list := p.table("event_id", "circuit", "at", "generation", "from_state", "to_state", "cause", "open_until", "wave", "step_id", "dispatch", "workers",
		"actor", "reason", "observed", "failed", "slow")
	for _, e := range events {
		list.add(e.GetEventId(), oneLine(e.GetCircuit()), instant(e.GetRecordedAt()), fmt.Sprint(e.GetGeneration()), p.state(word(e.GetFromState())),
			p.state(word(e.GetToState())), word(e.GetCause()), instant(e.GetOpenUntil()), unlessZero(e.GetWave()), e.GetStepId(), unlessZero(e.GetDispatch()),
			oneLine(strings.Join(e.GetWorkerIds(), ",")), oneLine(e.GetActor()), brief(e.GetReason()), count(e.GetObservedCalls()), count(e.GetFailedCalls()),
			count(e.GetSlowCalls()))
	}
	return list
}

// unlessZero is a number in a cell, which is empty for one that says nothing.
func unlessZero(number int32) string {
	if number == 0 {
		return ""
	}
	return count(number)
}

// span is a duration in a cell as a person would type it. Unset is empty.
func span(duration *durationpb.Duration) string {
	if duration == nil {
		return ""
	}
	return duration.AsDuration().String()
}
