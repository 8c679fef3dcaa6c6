package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"
)

// cli is what a command may touch of the world around it.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	atEnd          func() error // nil: nothing
}

// commands makes the subcommands. Each file appends its own from an init function, so that a command is one file and nothing
// else; the help lists them by name, whatever the order here.
var commands []func(*cli) *cobra.Command

// exitUsage is the exit status of a command line that cannot be understood.
const exitUsage = 2

// newRoot makes the command that all others hang on.
func newRoot(c *cli) *cobra.Command {
	root := &cobra.Command{
		Use:   "tasker",
		Short: "Run tasks made of steps, with retries kept in Postgres",
		Long: `Tasker runs tasks made of steps. Clients submit tasks, workers take the steps that are ready and report how they
ended, and all retry and backoff state lives in Postgres, where SQL can read it.`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{code: exitUsage, err: err} })
	for _, command := range commands {
		root.AddCommand(command(c))
	}
	profiling(root, c)
	wrongArgsAreUsage(root)
	return root
}

// wrongArgsAreUsage gives wrong arguments the exit status of wrong flags, whatever the command.
func wrongArgsAreUsage(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			var exit *exitError
			if err == nil || errors.As(err, &exit) {
				return err
			}
			return &exitError{code: exitUsage, err: err}
		}
	}
	for _, sub := range cmd.Commands() {
		wrongArgsAreUsage(sub)
	}
}
