package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskerhq/tasker/examples/registration"
	taskerv1 "github.com/taskerhq/tasker/gen/go/tasker/v1"
)

func init() { commands = append(commands, newDemo) }

// demoMutantVar names the environment variable that plants a defect, to see the demo notice it.
const demoMutantVar = "DEMO_MUTANT"

// demoMutants are the defects, and what is broken by each.
var demoMutants = map[string]string{
	"ignore_retry_after": "the workers in Go leave Retry-After out of their reports",
	"retry_refused":      "the workers in Go call refusals retryable",
	"tamper_journal":     "a worker's journal says that a report ended otherwise than it did",
	"forge_journal":      "a worker's journal holds a report that was acknowledged and never made",
	"drop_journal":       "a worker's journal has lost what it was given and said of one step",
	"lose_task":          "a client's journal holds a submit that was acknowledged and is nowhere",
	"no_circuit":         "in the outage, no step names the circuit",
	"call_again":         "the workers in Go make each call that failed once more, and tell nobody",
}

// The chapters of the demo.
const (
	chapterRegistration = "registration"
	chapterOutage       = "outage"
)

// demoOptions is what the command line says.
type demoOptions struct {
	tasks   int
	imports int
	chapter string
	seed    uint64
	python  string
	keep    string
	timeout time.Duration
	mutant  string
}

func newDemo(c *cli) *cobra.Command {
	var options demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a workflow on failing services, kill workers and the server, and take a service down",
		Long: `Run two chapters that go wrong on purpose, and check that nothing was lost by it.

Chapter "registration": a user registration against four HTTP services that are slow, ask for patience, refuse, break and hang.
The demo starts the services, a server with a PostgreSQL of its own, and workers in Go and in Python, each a process of its own
on a loopback address. It submits tasks, kills two workers and the server with SIGKILL, starts them again, and shows how
ready the steps are until every task is complete or rightly in error. Then three records that were kept apart are held
against each other: the workers' and the client's journals, the services' memory, and the history in the database.

Chapter "outage": user_service goes down for 20 seconds under 2,000 tasks, twice at the same time: once the steps name a shared
circuit, once they do not. What the service had to bear, and what it cost the steps, is printed side by side. By the record of the
circuit and of the attempts, by the journals and by the service's memory it is decided whether, with the circuit, the service was
called no more than its probes and what was under way, no waiting step lost an attempt, and the waves of the recovery doubled.

The workers in Python need python3 with the packages grpcio and grpcio-tools; "make demo" sees to that.

Exit status: 0 every promise was kept, 1 one was not, or the demo could not be run. $` + demoMutantVar + ` plants a defect, which
must be noticed: ` + mutantNames() + `.`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			options.mutant = c.getenv(demoMutantVar)
			if _, known := demoMutants[options.mutant]; options.mutant != "" && !known {
				return usageError("$%s=%s: must be one of %s", demoMutantVar, options.mutant, mutantNames())
			}
			if options.tasks < 1 || options.tasks > 5000 {
				return usageError("--tasks %d: must be from 1 to 5000", options.tasks)
			}
			if options.imports < 500 || options.imports > 5000 {
				return usageError("--outage-tasks %d: must be from 500 to 5000", options.imports)
			}
			if options.chapter != "" && options.chapter != chapterRegistration && options.chapter != chapterOutage {
				return usageError("--chapter %s: must be %s or %s", options.chapter, chapterRegistration, chapterOutage)
			}
			return runDemo(cmd.Context(), c, options)
		},
	}
	cmd.Flags().IntVar(&options.tasks, "tasks", 240, "how many users to register")
	cmd.Flags().IntVar(&options.imports, "outage-tasks", 2000, "how many tasks the outage meets, with the circuit and again without")
	cmd.Flags().StringVar(&options.chapter, "chapter", "", "only this `CHAPTER`: registration or outage; default: both")
	cmd.Flags().Uint64Var(&options.seed, "seed", 1, "what the services do to whom is a function of this `NUMBER`")
	cmd.Flags().StringVar(&options.python, "python", "", "the `PYTHON` that runs the workers in Python; default: .venv/bin/python, else python3")
	cmd.Flags().StringVar(&options.keep, "keep", "", "put the database, journals and logs into this new `DIR` and leave them there")
	cmd.Flags().DurationVar(&options.timeout, "timeout", 3*time.Minute, "give up after this `DURATION`")
	cmd.AddCommand(newDemoWorker(c))
	return cmd
}

func mutantNames() string { return strings.Join(slices.Sorted(maps.Keys(demoMutants)), ", ") }

// errPromiseBroken is what the demo ends with when it could be run and something did not hold.
var errPromiseBroken = errors.New("a promise was broken: see above")

// demo is one run.
type demo struct {
	demoOptions
	cli      *cli
	printer  *printer
	started  time.Time
	dir      string
	starter  *starter
	services *registration.Services
	server   *demoServer
	workers  []*demoWorker
	journals []string
	client   *demoClient
	sides    []*outageSide
	stubs    string              // the folder of the Python stubs
	board    interface{ hide() } // nil while nothing is shown
}

// runDemo is the story in order. Everything that it starts is ended when it returns.
func runDemo(ctx context.Context, c *cli, options demoOptions) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, options.timeout, fmt.Errorf("not finished within %s", options.timeout))
	defer cancel()
	d := &demo{demoOptions: options, cli: c, printer: newPrinter(c, "table"), started: time.Now(), starter: newStarter()}
	defer func() { err = errors.Join(err, d.close(context.WithoutCancel(ctx))) }()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	err = d.run(ctx)
	if err == nil || errors.Is(err, errPromiseBroken) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	return fmt.Errorf("%w\n%s", err, d.lastWords())
}

// say tells what is going on.
func (d *demo) say(format string, args ...any) {
	if d.board != nil {
		d.board.hide()
	}
	stamp := d.printer.paint(styleDim, fmt.Sprintf("%5.1fs", time.Since(d.started).Seconds()))
	fmt.Fprintf(d.cli.stdout, "%s  %s\n", stamp, fmt.Sprintf(format, args...))
}

// prepare makes everything that the run needs before anything can go wrong on purpose.
func (d *demo) prepare(ctx context.Context) error {
	if err := d.makeDir(); err != nil {
		return err
	}
	if d.mutant != "" {
		d.say("a defect is planted: %s", demoMutants[d.mutant])
	}
	if err := d.preparePython(ctx); err != nil {
		return err
	}
	return nil
}

// makeDir makes the folder for the database, the journals and the logs.
func (d *demo) makeDir() error {
	if d.keep != "" {
		dir, err := filepath.Abs(d.keep)
		if err != nil {
			return fmt.Errorf("finding --keep: %w", err)
		}
		d.dir = dir
		// An old database would bring old tasks.
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // PostgreSQL may run as another user, who must get through.
			return fmt.Errorf("making the folder of --keep, which must be new: %w", err)
		}
		return nil
	}
	dir, err := os.MkdirTemp("", "tasker-demo-")
	if err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	d.dir = dir
	return os.Chmod(dir, 0o755) //nolint:gosec // PostgreSQL may run as another user, who must get through.
}

// run starts the server and tells the chapters. One whose promises were broken is the last.
func (d *demo) run(ctx context.Context) error {
	var err error
	if d.server, err = d.startServer(ctx, "127.0.0.1:0"); err != nil {
		return err
	}
	d.say("the server is process %d, ready on %s, with a PostgreSQL of its own", d.server.pid(), d.server.address)
	for _, chapter := range []struct {
		name string
		tell func(context.Context) (holds bool, err error)
	}{{chapterRegistration, d.register}, {chapterOutage, d.outage}} {
		if d.chapter != "" && d.chapter != chapter.name {
			continue
		}
		if holds, err := chapter.tell(ctx); err != nil {
			return err
		} else if !holds {
			return errPromiseBroken
		}
	}
	return d.server.stop(ctx)
}

// register starts the workflow, breaks things, waits for the end, and judges.
func (d *demo) register(ctx context.Context) (holds bool, err error) {
	if d.services, err = registration.Start(ctx, d.seed); err != nil {
		return false, err
	}
	for _, step := range registration.Steps {
		d.say("%-21s listens on %s", step.Service, d.services.URLs[step.Service])
	}
	if d.client, err = d.newClient("default", registration.TemplateName); err != nil {
		return false, err
	}
	if err := d.client.register(ctx, registration.TemplateYAML, func(*taskerv1.Template) {}); err != nil {
		return false, err
	}
	for _, plan := range demoWorkers {
		if _, err := d.startWorker(plan); err != nil {
			return false, err
		}
	}
	board := d.newBoard()
	defer func() { board.close(context.WithoutCancel(ctx)) }()
	if err := d.breakThings(ctx, board); err != nil {
		return false, err
	}
	if err := board.await(ctx, "every task has ended", func(p demoProgress) bool { return p.ended == d.tasks }); err != nil {
		return false, err
	}
	board.close(ctx)
	if err := d.stopWorkers(ctx); err != nil {
		return false, err
	}
	return d.judge(ctx)
}

// breakThings submits the tasks and, as they get on, kills what works on them.
func (d *demo) breakThings(ctx context.Context, board *demoBoard) error {
	if err := board.await(ctx, "every worker has a stream open", func(p demoProgress) bool { return p.workers == len(d.workers) }); err != nil {
		return err
	}
	first := max(1, d.tasks*6/10)
	d.say("submitting %d tasks", first)
	if err := d.client.submit(ctx, 1, first); err != nil {
		return err
	}
	settled := func(share float64) func(demoProgress) bool {
		return func(p demoProgress) bool {
			// What is blocked behind a failure never settles, so few tasks may all end before their share is reached.
			return float64(p.settledSteps) >= share*float64(first*len(registration.Steps)) || p.ended == first
		}
	}
	for _, victim := range []struct {
		name  string
		share float64
	}{{"python-1", 0.15}, {"go-1", 0.30}} {
		if err := board.await(ctx, victim.name+" is in the middle of its work", func(p demoProgress) bool {
			return settled(victim.share)(p) && d.holds(victim.name) > 0 || settled(victim.share+0.4)(p)
		}); err != nil {
			return err
		}
		if err := d.replaceWorker(victim.name); err != nil {
			return err
		}
	}
	if err := board.await(ctx, "the tasks are half done", settled(0.45)); err != nil {
		return err
	}
	return d.replaceServer(ctx, first+1, d.tasks)
}

// replaceServer kills the server, and its PostgreSQL with it, while a client is submitting, and starts another.
func (d *demo) replaceServer(ctx context.Context, from, to int) error {
	submitted := make(chan error, 1)
	d.say("kill -9 server, process %d, and its PostgreSQL with it, while tasks are submitted", d.server.pid())
	go func() { submitted <- d.client.submit(ctx, from, to) }()
	d.server.kill()
	next, err := d.startServer(ctx, d.server.address)
	if err != nil {
		return err
	}
	d.server = next
	d.say("the server is process %d now, and has recovered the same database", d.server.pid())
	if err := <-submitted; err != nil {
		return err
	}
	d.say("the other %d tasks are submitted, each once, by their idempotency keys", to-from+1)
	d.say("what an operator asks now:")
	return d.askAll(ctx, "")
}

// closeTimeout bounds the end of a run that has failed.
const closeTimeout = 10 * time.Second

// close ends everything that still runs.
func (d *demo) close(ctx context.Context) error {
	for _, worker := range d.workers {
		worker.kill()
	}
	if d.server != nil {
		// A server that is asked to stop waits for its PostgreSQL; one that is killed leaves it behind for a moment, and with
		// it files that come and go.
		ctx, cancel := context.WithTimeout(ctx, closeTimeout)
		defer cancel()
		if err := d.server.stop(ctx); err != nil {
			d.server.kill()
		}
	}
	var errs []error
	if d.client != nil {
		errs = append(errs, d.client.close())
	}
	for _, side := range d.sides {
		errs = append(errs, side.close())
	}
	if d.services != nil {
		errs = append(errs, d.services.Close())
	}
	d.starter.close()
	if d.keep != "" {
		d.say("database, journals and logs are in %s", d.dir)
	} else if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}
