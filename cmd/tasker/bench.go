package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/taskerhq/tasker/internal/bench"
)

func init() { commands = append(commands, newBench) }

func newBench(c *cli) *cobra.Command {
	var (
		conf    bench.Config
		asJSON  bool
		verbose bool
	)
	cmd := &cobra.Command{
		Use:   "bench [flags] [-- SERVE_FLAGS]",
		Short: "Measure a server on this machine against the floor",
		Long:  benchHelp(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); at > 0 || at < 0 && len(args) > 0 {
				return usageError("bench: unexpected argument %q; flags of the server go behind --", args[0])
			}
			conf.ServeArgs = args
			if verbose {
				conf.Logger = slog.New(slog.NewTextHandler(c.stderr, nil))
			}
			show, end := c.benchProgress()
			conf.Progress = show
			doc, err := bench.Run(cmd.Context(), conf)
			end()
			if doc == nil {
				return err
			}
			// What was found before it went wrong is of use, too.
			if printErr := printBench(c, doc, asJSON); printErr != nil {
				return printErr
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&conf.Scenarios, "scenario", nil, "`NAMES` of the scenarios to run, separated by commas; all by default")
	flags.BoolVar(&asJSON, "json", false, "print one JSON object")
	flags.BoolVar(&conf.Quick, "quick", false, "run at most three minutes: enough to see that all is well, too short for figures to quote")
	flags.BoolVar(&conf.Full, "full", false, "run the sizes that take an hour and 20 GB of disk as well: backlogs of ten million, ten minutes under an old snapshot, ten thousand streams")
	flags.StringVar(&conf.DatabaseURL, "database-url", "", "`URL` of a PostgreSQL where databases may be made and dropped; without it, one of our own is started, fsync on")
	flags.StringVar(&conf.DataDir, "data-dir", "", "`DIR` on the disk where our own PostgreSQL keeps its data for the run; the temporary directory by default")
	flags.BoolVarP(&verbose, "verbose", "v", false, "log what happens to the processes")
	cmd.AddCommand(newEcho(c))
	return cmd
}

func benchHelp() string {
	var b strings.Builder
	b.WriteString(`Measure a server on this machine: it runs as a process of its own, the load comes from this one through gRPC. Every figure
stands beside that of the floor (bench/floor), measured in the same run: the least that the same work costs on this Postgres.

Scenarios:
`)
	for _, s := range bench.Scenarios() {
		fmt.Fprintf(&b, "  %-6s %s\n", s[0], s[1])
	}
	b.WriteString(`
Each scenario ends by holding its database against what was submitted, and by replaying the history of it. Exit status:
0 everything submitted was run once and no promise was broken, 1 something was lost or doubled, the history breaks a promise,
or the run failed, 2 the command line cannot be understood. A bar that is missed is told, and is no failure.`)
	return b.String()
}

func printBench(c *cli, doc *bench.Document, asJSON bool) error {
	if !asJSON {
		return doc.Write(c.stdout)
	}
	body, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.stdout, "%s\n", body)
	return err
}

// benchProgress shows a bar on a terminal.
func (c *cli) benchProgress() (show func(string, time.Duration, time.Duration), end func()) {
	if !isTerminal(c.stderr) {
		return nil, func() {}
	}
	var what atomic.Value
	what.Store("")
	container := mpb.New(mpb.WithOutput(c.stderr), mpb.WithWidth(30))
	bar := container.AddBar(1,
		mpb.BarRemoveOnComplete(),
		mpb.AppendDecorators(decor.Percentage(), decor.Any(func(decor.Statistics) string { return "  " + what.Load().(string) })),
	)
	return func(now string, done, total time.Duration) {
			what.Store(now)
			bar.SetTotal(total.Milliseconds(), false)
			bar.SetCurrent(done.Milliseconds())
		}, func() {
			bar.Abort(true)
			container.Wait()
		}
}

// newEcho is the server of empty calls that bench starts beside the one it measures.
func newEcho(c *cli) *cobra.Command {
	var idle bool
	cmd := &cobra.Command{
		Use:    "echo",
		Short:  "Serve empty calls",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return bench.ServeEmpty(cmd.Context(), c.stdout, idle) },
	}
	cmd.Flags().BoolVar(&idle, "idle", false, "take as little memory for a connection as a server does")
	return cmd
}
