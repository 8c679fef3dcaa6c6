package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/server"
)

func init() { commands = append(commands, newServe) }

func newServe(c *cli) *cobra.Command {
	conf := server.Default()
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a server",
		Long: `Run a server until it is told to stop by SIGINT or SIGTERM. Without a database URL it starts a PostgreSQL of its own.

When it is ready it writes one line to standard output: "serving on" and its address. Its log goes to standard error.
Every flag may also be given as the environment variable in brackets; the flag wins.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := conf.ReadEnvironment(cmd.Flags(), c.getenv); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			if err := conf.Check(); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			log, err := conf.Logger(c.stderr)
			if err != nil {
				return err
			}
			return server.Run(cmd.Context(), conf, c.stdout, log)
		},
	}
	conf.Bind(cmd.Flags())
	showGroups(cmd)
	return cmd
}

// showGroups makes the help of a command that takes the server's flags show them as the documentation does.
func showGroups(cmd *cobra.Command, groups ...server.Group) {
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		fmt.Fprintf(cmd.OutOrStdout(), "%s\n\nUsage:\n  %s\n\n%s", cmd.Long, cmd.UseLine(), server.Help(groups...))
	})
}
