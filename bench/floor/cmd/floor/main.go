// Command floor prints what the bare statements of a step's life cost on a Postgres, as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/taskerhq/tasker/bench/floor"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	var cfg floor.Config
	flags := flag.NewFlagSet("floor", flag.ContinueOnError)
	flags.StringVar(&cfg.DSN, "dsn", getenv("DATABASE_URL"), "scratch database, as a URL or keywords; the schema tasker_bench_floor in it is dropped")
	flags.DurationVar(&cfg.Duration, "duration", 0, "measured window (default 8s)")
	flags.DurationVar(&cfg.Warmup, "warmup", 0, "time before the window (default 1s)")
	flags.IntVar(&cfg.Batch, "batch", 0, "steps a transaction (default 500)")
	flags.IntVar(&cfg.Loops, "loops", 0, "connections that claim and complete (default 2)")
	flags.IntVar(&cfg.ChainSteps, "chain", 0, "steps of the timed chain (default 300)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	result, err := floor.Run(ctx, cfg)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}
