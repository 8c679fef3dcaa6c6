package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/internal/postgres"
)

func init() { commands = append(commands, newSQL) }

var errNoPsql = errors.New("no psql found: install the PostgreSQL client (Debian: postgresql-client), or put psql on the PATH")

func newSQL(c *cli) *cobra.Command {
	var dataDir string
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "sql [--data-dir DIR] [-- PSQL_ARG...]",
		Short: "Open psql on the embedded database of a running server",
		Long: `Open psql on the embedded database of a running server. What follows -- is handed to psql, whose exit status is the command's.

With --read-only, the session has the rights of tasker_reader: the documented functions and views, and nothing else.`,
		Example: `  tasker sql
  tasker sql -- -c "select * from get_task_execution_context(81920)"`,
		Args: func(cmd *cobra.Command, args []string) error {
			if at := cmd.ArgsLenAtDash(); len(args) > 0 && at != 0 {
				return usageError("%s: unexpected argument %q: what is for psql goes after --", cmd.CommandPath(), args[0])
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "the server's data `DIRECTORY`; default: the one that serve takes [$TASKER_DATA_DIR]")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "use the rights of tasker_reader")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if dataDir == "" {
			dataDir = c.getenv("TASKER_DATA_DIR")
		}
		info, err := postgres.Attach(cmd.Context(), dataDir)
		if err != nil {
			if errors.Is(err, postgres.ErrNotRunning) {
				return fmt.Errorf("%w\nhint: `tasker serve` starts one; --data-dir must name the same directory", err)
			}
			return err
		}
		psql, err := findPsql(info.BinDir)
		if err != nil {
			return err
		}
		env := append(os.Environ(), "PGAPPNAME=tasker sql")
		if readOnly {
			env = append(env, "PGOPTIONS=-c role=tasker_reader")
		}
		return c.become(cmd.Context(), psql, append([]string{"--dbname", info.ConnString(postgres.Database)}, args...), env)
	}
	return cmd
}

// findPsql prefers the psql that came with the server: it knows the server's version.
func findPsql(binDir string) (string, error) {
	beside := filepath.Join(binDir, "psql")
	if found, err := exec.LookPath(beside); err == nil {
		return found, nil
	}
	found, err := exec.LookPath("psql")
	if err != nil {
		return "", errNoPsql
	}
	return found, nil
}

// become runs a program as if it had been called itself. On a terminal it replaces this process, because signals, job
// control and the screen are then all its own.
func (c *cli) become(ctx context.Context, path string, args, env []string) error {
	if c.stdin == os.Stdin && c.stdout == os.Stdout && c.stderr == os.Stderr {
		if err := syscall.Exec(path, append([]string{path}, args...), env); err != nil {
			return fmt.Errorf("running %s: %w", path, err)
		}
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = c.stdin, c.stdout, c.stderr, env
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &exitError{code: exit.ExitCode()}
	}
	if err != nil {
		return fmt.Errorf("running %s: %w", path, err)
	}
	return nil
}
