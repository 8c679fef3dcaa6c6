package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/migrations"
	"github.com/taskerhq/tasker/server"
)

func init() { commands = append(commands, newMigrate) }

func newMigrate(c *cli) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring a database's schema up to this release, or see how far it is",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(
		newSchema(c, "up", "Run the migrations that the database lacks", server.Migrate),
		newSchema(c, "status", "Show which migrations the database lacks; exit status 1 if any", server.SchemaStatus))
	return cmd
}

// newSchema makes a command that does something to a database's schema and shows how it then stands.
func newSchema(c *cli, use, short string, do func(context.Context, server.Config, *slog.Logger) (migrations.State, error)) *cobra.Command {
	conf := server.Default()
	conf.LogLevel = "warn"
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long: short + `.

The database is the one at --database-url, else the server's own, which is started for it if no server runs. Servers of
the release before go on working on the schema of this one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := conf.ReadEnvironment(cmd.Flags(), c.getenv); err != nil {
				return &exitError{code: exitUsage, err: err}
			}
			log, err := conf.Logger(c.stderr)
			if err != nil {
				return err
			}
			state, err := do(cmd.Context(), conf, log)
			if err != nil {
				return err
			}
			return showSchema(c, state)
		},
	}
	conf.Bind(cmd.Flags(), server.Database)
	showGroups(cmd, server.Database)
	return cmd
}

func showSchema(c *cli, state migrations.State) error {
	switch {
	case state.Newer():
		fmt.Fprintf(c.stdout, "the database is at version %d, newer than this release's %d\n", state.Current, state.Latest)
	case state.Ready():
		fmt.Fprintf(c.stdout, "the database is at version %d, up to date\n", state.Current)
	default:
		fmt.Fprintf(c.stdout, "the database is at version %d of %d; it lacks:\n  %s\n", state.Current, state.Latest, strings.Join(state.Pending, "\n  "))
		return &exitError{code: 1}
	}
	return nil
}
