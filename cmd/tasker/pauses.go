package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func init() { commands = append(commands, newPause, newResume, newPauses) }

// handlerArg is a handler, or with --all none: the whole namespace is never meant by leaving something out.
func handlerArg(all *bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case *all && len(args) > 0:
			return usageError("--all and a HANDLER do not go together")
		case *all:
			return nil
		case len(args) == 0 || len(args) == 1 && args[0] == "":
			return usageError("name a HANDLER, or say --all for the whole namespace; see %s --help", cmd.CommandPath())
		}
		return exactly("HANDLER")(cmd, args)
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func newPause(c *cli) *cobra.Command {
	var reason, until string
	var span time.Duration
	var all bool
	cmd := &cobra.Command{
		Use:   "pause HANDLER --reason REASON",
		Short: "Give out no step of a handler, or of a namespace, until its end or a resume",
		Long: `Give out no step of a handler, on no server, until the end of the pause or until it is resumed; with --all, of no handler of the
namespace. Runs that are under way go on and are reported as ever. What waits keeps its place and its attempts, but its deadlines
go on. An earlier pause of the same handler is replaced.`,
		Example: `  tasker pause charge --reason 'the ledger is being corrected' --for 30m
  tasker pause --all --namespace billing --reason 'moving the database'`,
		Args: handlerArg(&all),
	}
	remote := c.newRemote(cmd)
	flags := cmd.Flags()
	flags.StringVar(&reason, "reason", "", "why, for the record and for those who wait")
	flags.StringVar(&until, "until", "", "until this `INSTANT` (RFC 3339, or a duration such as 2h); default: until it is resumed")
	flags.DurationVar(&span, "for", 0, "for this long")
	flags.BoolVar(&all, "all", false, "pause every handler of the namespace")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		request := &taskerv1.PauseHandlerRequest{Namespace: s.namespace, Handler: first(args), Reason: reason}
		now := time.Now()
		var err error
		if request.Until, err = parseInstant("until", until, now); err != nil {
			return err
		}
		switch {
		case reason == "":
			return usageError("--reason is missing: those who wait will ask")
		case span < 0:
			return usageError("--for %s: must not be negative", span)
		case span > 0 && until != "":
			return usageError("--until and --for do not go together")
		case span > 0:
			request.Until = timestamppb.New(now.Add(span))
		}
		answer, err := ask(ctx, s.remote, s.steps.PauseHandler, request)
		if err != nil {
			return fmt.Errorf("pausing %s: %w", paused(request), err)
		}
		end := "until it is resumed"
		if p := answer.GetPause(); p.GetUntil() != nil {
			end = "until " + instant(p.GetUntil())
		}
		return s.print(answer, func() error { return s.printf("%s is paused %s\n", paused(answer.GetPause()), end) })
	})
	return cmd
}

// paused names what a pause keeps back.
func paused(x interface {
	GetNamespace() string
	GetHandler() string
},
) string {
	switch {
	case x.GetHandler() != "":
		return "handler " + oneLine(x.GetHandler())
	case x.GetNamespace() != "":
		return "namespace " + oneLine(x.GetNamespace())
	}
	return "namespace default"
}

func newResume(c *cli) *cobra.Command {
	var reason string
	var all bool
	cmd := &cobra.Command{
		Use:   "resume HANDLER",
		Short: "End the pause of a handler, or of a namespace",
		Long: `End the pause of a handler; with --all, that of the whole namespace. Each ends only its own: a handler that is paused by itself
stays so when its namespace is resumed, and the other way round. What is not paused stays as it is.`,
		Args: handlerArg(&all),
	}
	remote := c.newRemote(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().BoolVar(&all, "all", false, "end the pause of the namespace")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, args []string) error {
		request := &taskerv1.ResumeHandlerRequest{Namespace: s.namespace, Handler: first(args), Reason: reason}
		answer, err := ask(ctx, s.remote, s.steps.ResumeHandler, request)
		if err != nil {
			return fmt.Errorf("resuming %s: %w", paused(request), err)
		}
		return s.print(answer, func() error {
			if answer.GetPause() == nil {
				return s.printf("%s was not paused\n", paused(request))
			}
			return s.printf("%s is resumed\n", paused(answer.GetPause()))
		})
	})
	return cmd
}

func newPauses(c *cli) *cobra.Command {
	var token string
	var limit int
	cmd := &cobra.Command{
		Use:   "pauses",
		Short: "List the pauses that are in force",
		Long: `List the pauses of a namespace that are in force: the namespace's own first, whose handler is empty. The headings are columns of
the view pauses_v, which also has those that are over.`,
		Args: exactly(),
	}
	remote := c.newRemote(cmd)
	cmd.Flags().IntVar(&limit, "limit", 50, "how many to list at most; 0 lists all")
	cmd.Flags().StringVar(&token, "page-token", "", "go on where an earlier list ended")
	cmd.RunE = remote.run(func(ctx context.Context, s *session, _ []string) error {
		request := &taskerv1.ListPausesRequest{Namespace: s.namespace, PageToken: token}
		answer := &taskerv1.ListPausesResponse{}
		err := s.pages(limit, func(size int32) (int, string, error) {
			request.PageSize = size
			page, err := ask(ctx, s.remote, s.steps.ListPauses, request)
			answer.Pauses = append(answer.Pauses, page.GetPauses()...)
			answer.NextPageToken = page.GetNextPageToken()
			request.PageToken = page.GetNextPageToken()
			return len(page.GetPauses()), page.GetNextPageToken(), err
		})
		if err != nil {
			return fmt.Errorf("listing pauses: %w", err)
		}
		return s.print(answer, func() error {
			list := s.table("handler", "since", "until", "reason", "actor")
			for _, p := range answer.GetPauses() {
				list.add(oneLine(p.GetHandler()), instant(p.GetSince()), instant(p.GetUntil()), brief(p.GetReason()), oneLine(p.GetActor()))
			}
			return s.page(list, answer.GetNextPageToken())
		})
	})
	return cmd
}
