// Command peers measures Tasker beside other queues on one Postgres, and writes docs/benchmarks.md. `make bench-peers`
// installs what it needs and runs it.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/taskerhq/tasker/bench/peers"
)

// page is where the document of a whole run goes.
const page = "docs/benchmarks.md"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		err = nil
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	conf := peers.Config{Said: func(line string) { fmt.Fprintln(stderr, line) }}
	var only, out string
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&conf.Root, "root", ".", "the project's directory")
	flags.IntVar(&conf.Rounds, "rounds", 0, "turns of each peer (default 3, or 1 with -quick)")
	flags.BoolVar(&conf.Quick, "quick", false, "run everything shorter: enough to see that it works, too short for figures to quote")
	flags.StringVar(&only, "peers", "", "names of the peers to run, separated by commas; all by default")
	flags.StringVar(&out, "out", "", "file to write; by default "+page+" of a whole run, and standard output of a quick one or of some peers only")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if conf.Rounds < 0 {
		return fmt.Errorf("%d rounds cannot be run", conf.Rounds)
	}
	if only != "" {
		conf.Peers = strings.Split(only, ",")
	}
	var err error
	if conf.Root, err = filepath.Abs(conf.Root); err != nil {
		return err
	}
	doc, err := peers.Run(ctx, conf)
	if err != nil {
		return err
	}
	if out == "" && (conf.Quick || only != "") {
		return doc.Write(stdout)
	}
	if out == "" {
		out = filepath.Join(conf.Root, page)
	}
	// Written when it is whole, so that a failure leaves the page of the last run.
	var body bytes.Buffer
	if err := doc.Write(&body); err != nil {
		return err
	}
	return os.WriteFile(out, body.Bytes(), 0o644) //nolint:gosec // a page for all to read
}
