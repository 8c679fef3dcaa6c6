// Command tasker is the server and everything a person does with it.
//
// The commands stand in one file each, which registers itself in commands. Nothing here reads the environment, writes to
// the terminal or ends the process but through cli and run, so that a test can run any command.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set when the binary is built.
var version = "dev"

func main() {
	os.Exit(runUntilSignal())
}

// runUntilSignal gives the first SIGINT or SIGTERM to the command as the end of its context. The second one ends the process,
// as it would have without us.
func runUntilSignal() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
}

// run is the whole program: it runs the command that args name and gives the exit status.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &cli{stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv}
	root := newRoot(c)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if c.atEnd != nil {
		err = errors.Join(err, c.atEnd())
	}
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{code: 1, err: err}
	}
	if exit.err != nil {
		fmt.Fprintln(stderr, "tasker:", exit.err)
	}
	return exit.code
}

// exitError ends the program with a status of its own. A nil err says nothing more on the terminal.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }
